//! Names of the independent sources of randomness: the first part of a key, so that no two draws share one.

pub(crate) const ROWS: u64 = 1;
pub(crate) const SHIFTS: u64 = 2;
pub(crate) const ORDER: u64 = 3;
pub(crate) const SEGMENT_SHIFTS: u64 = 4;
pub(crate) const SWAPS: u64 = 5;
pub(crate) const SAMPLE: u64 = 6;
pub(crate) const INDEPENDENT: u64 = 7;
pub(crate) const BLOCKS: u64 = 8;
