//! Negatives: which other row is a row's counterpart, x ↦ x', among all rows or among those that a rule admits. Knows
//! row numbers and codes of columns; no text and no Python.
//!
//! Every draw is a pure function of its arguments: the same bytes for any number of threads.

mod blocks;
pub(crate) mod draw;
mod exchange;
mod independent;
mod record;
mod remainder;
mod rule;
mod segment;
mod shifts;
mod sort;
mod source;
mod within;

pub use draw::{Draw, counterparts};
pub use rule::Near;
pub use within::{ABSENT, counterparts_within};
