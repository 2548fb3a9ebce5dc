//! mipo's native half: counterparts of rows, texts that are alike, chat templates and token ids. `python` (on by default) adds the
//! module `mipo._native`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod checksum;
pub mod error;
pub mod negatives;
pub mod prompts;
pub mod random;
pub mod tokenizer;
pub mod tokens;

#[cfg(feature = "python")]
mod python;
