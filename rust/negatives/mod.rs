//! Negatives: which other row is a row's counterpart, at random or under constraints. Knows row numbers and codes of
//! columns, no text and no Python.

mod blocks;
mod exchange;
mod remainder;
mod segment;
mod sort;

pub mod draw;
pub mod within;
