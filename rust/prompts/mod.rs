//! Prompts: which texts are near-duplicates of others, and which occur in a held-out set. Knows texts and row numbers, no
//! tokens and no Python.

mod ngrams;

pub mod duplicates;
pub mod overlap;
