//! A table of token ids. Knows rows of ids and no texts.

/// Ids of one text per row, in Arrow's list layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `[rows + 1]`: row i is `ids[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<i64>,
    /// The ids of all rows, one after another.
    pub ids: Vec<u32>,
}

impl Table {
    /// A table with no rows.
    #[must_use]
    pub fn new() -> Self {
        Self {
            offsets: vec![0],
            ids: Vec::new(),
        }
    }

    /// Rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids of one row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u32] {
        &self.ids[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    pub(crate) fn push(&mut self, ids: &[u32]) {
        self.ids.extend_from_slice(ids);
        self.offsets.push(self.ids.len() as i64);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}
