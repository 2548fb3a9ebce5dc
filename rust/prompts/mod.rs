//! Prompts: which texts are near-duplicates of others, and which occur in a held-out set. Knows texts and row numbers;
//! no ids, no columns and no Python.
//!
//! Everything is a pure function of its arguments: the same result for any number of threads.

mod duplicates;
mod forest;
mod ngrams;
mod overlap;

pub use duplicates::clusters;
pub use overlap::{ABSENT, Overlaps, overlaps};
