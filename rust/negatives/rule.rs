//! The rule by which two rows of one match code are a pair. Knows codes and numbers of rows, not how they are drawn.

/// A number of each row, and how far a counterpart's may be from it.
#[derive(Debug, Clone, Copy)]
pub struct Near<'a> {
    /// `[n]`; a row whose value is NaN is near to no other.
    pub values: &'a [f64],
    /// The largest difference, at least 0.
    pub tolerance: f64,
}

impl Near<'_> {
    #[inline]
    fn admits(&self, row: usize, other: usize) -> bool {
        (self.values[row] - self.values[other]).abs() <= self.tolerance
    }
}

/// What two rows of one match code must differ in, and be near in.
#[derive(Clone, Copy)]
pub(crate) struct Rule<'a> {
    /// Columns `[n]` in which a counterpart has another code; at least one.
    pub(crate) differ: &'a [&'a [u64]],
    pub(crate) near: Option<Near<'a>>,
}

impl Rule<'_> {
    #[inline]
    pub(crate) fn admits(&self, row: usize, other: usize) -> bool {
        self.differ.iter().all(|codes| codes[row] != codes[other])
            && self.near.is_none_or(|near| near.admits(row, other))
    }
}
