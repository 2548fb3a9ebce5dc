//! mipo's native half: counterparts of rows, texts that are alike, chat templates and token ids. `python` (on by default) adds the
//! module `mipo._native`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod checksum;
pub mod contrast;
pub mod duplicates;
pub mod engine;
pub mod error;
pub mod groups;
mod ngrams;
pub mod overlap;
pub mod pytext;
pub mod random;
pub mod seams;

pub mod template;
pub mod texts;
pub mod tokens;
pub mod within;

mod exchange;
mod filters;
mod near;
mod probe;
mod remainder;
mod segment;
mod sort;

#[cfg(feature = "python")]
mod python;
