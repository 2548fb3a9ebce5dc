//! Records: (segment, code, row) in one number of 128 bits, so that sorting numbers sorts rows. Knows bits alone.

/// Bits of a segment, and of a code.
pub(crate) const CODE_BITS: u32 = 42;

/// Bits of a row.
pub(crate) const ROW_BITS: u32 = 44;

/// Three numbers that fit their bits, the first one uppermost.
#[inline]
pub(crate) fn pack(segment: u64, code: u64, row: u64) -> u128 {
    u128::from(segment) << (CODE_BITS + ROW_BITS) | u128::from(code) << ROW_BITS | u128::from(row)
}

/// The segment of a record.
#[inline]
pub(crate) fn segment_of(record: u128) -> u64 {
    (record >> (CODE_BITS + ROW_BITS)) as u64
}

/// What is equal for two records of one segment where their codes are.
#[inline]
pub(crate) fn run_of(record: u128) -> u64 {
    (record >> ROW_BITS) as u64
}

/// The row of a record.
#[inline]
pub(crate) fn row_of(record: u128) -> u64 {
    record as u64 & (u64::MAX >> (64 - ROW_BITS))
}
