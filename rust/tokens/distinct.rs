//! Distinct sequences of ids, each stored once in a table that is emptied now and then. Knows ids and their hashes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::tokenizer::Table;

/// Sequences that are remembered at a time; with one more all are forgotten, so that memory does not grow with their
/// number. So many fill a hash map that one more would double.
const KNOWN: usize = 7 << 15;

/// Ids for which a table has room from the start. The system hands out so large a piece by itself, untouched, and gets
/// it back whole; a table that grew to that size would leave holes all over the heap.
const ROOM: usize = 12 << 20;

/// Sequences by 128 bits of their content: two of 10⁶ different ones share them with a chance below 10⁻²⁶.
#[derive(Debug, Default)]
pub(crate) struct Distinct {
    known: HashMap<u128, u64, BuildHasherDefault<LowerHalf>>,
    rows: u64,
    pending: Table,
}

impl Distinct {
    /// The row of the sequence with this hash, which is stored if it is new.
    pub(crate) fn row(&mut self, hash: u128, ids: &[u32]) -> u64 {
        if let Some(&row) = self.known.get(&hash) {
            return row;
        }
        if self.known.len() == KNOWN {
            self.known.clear();
        }
        if self.pending.is_empty() {
            self.pending.ids.reserve(ROOM);
        }
        self.known.insert(hash, self.rows);
        self.pending.push(ids);
        self.rows += 1;
        self.rows - 1
    }

    /// The sequences that were stored since the last call.
    pub(crate) fn take(&mut self) -> Table {
        std::mem::take(&mut self.pending)
    }

    /// Bytes of the ids that were not taken yet.
    pub(crate) fn pending(&self) -> usize {
        size_of_val(self.pending.ids.as_slice())
    }
}

/// The lower half of a key that is a hash already.
#[derive(Default)]
struct LowerHalf(u64);

impl Hasher for LowerHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a key of 128 bits is written by write_u128");
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}
