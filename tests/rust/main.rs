//! The tests of the Rust half: one program, since each links everything. Its folders are those of `rust/`.
#![allow(clippy::unwrap_used)]

mod checksum;
mod data;
mod negatives;
mod prompts;
mod random;
mod tokenizer;
mod tokens;
