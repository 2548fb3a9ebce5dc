//! mipo's native half: what is done for every row, at the speed of the machine.
//!
//! | module | in one line |
//! |---|---|
//! | [`error`], [`random`], [`checksum`] | what the others stand on |
//! | [`negatives`] | which other row is each row's counterpart |
//! | [`prompts`] | which prompts are near-duplicates, and which occur in a held-out set |
//! | [`tokenizer`] | chats to texts and texts to ids, equal to those of transformers |
//! | [`tokens`] | preference groups as row numbers of tables of ids |
//!
//! Everything runs on all threads and gives the same bytes for any number of them. A module knows only those above it;
//! `tests/house/test_rust_layers.py` holds the order. The feature `python`, on by default, adds the Python module
//! `mipo._native`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod checksum;
pub mod error;
mod interrupt;
mod memory;
pub mod negatives;
pub mod prompts;
pub mod random;
pub mod tokenizer;
pub mod tokens;

#[cfg(feature = "python")]
mod python;
