//! Rows that draw their counterparts by themselves, without a balance among them. Knows row numbers alone.

use crate::negatives::source;
use crate::random::{GOLDEN, key, mix};

/// Up to this many counterparts a row are compared one by one, more are looked up in a table.
const FEW: usize = 32;

/// Row i takes the words of its own SplitMix64 stream, skips those that are biased or name a row that it has already,
/// and keeps the first K others.
pub(crate) struct Independent {
    key: u64,
    /// n - 1: each row numbers the other rows without itself.
    others: u64,
    /// Products with a lower half below this are biased (Lemire 2019).
    threshold: u64,
}

impl Independent {
    pub(crate) fn new(n: u64, seed: u64) -> Self {
        let others = n - 1;
        Self {
            key: key(&[source::INDEPENDENT, seed]),
            others,
            threshold: others.wrapping_neg() % others,
        }
    }

    /// Writes the counterparts of the rows from `first` on, row-major.
    pub(crate) fn fill(&self, first: u64, chunk: &mut [u64], negatives: usize) {
        let mut seen = Seen::new(if negatives > FEW { negatives } else { 0 });
        for (row, counterparts) in (first..).zip(chunk.chunks_exact_mut(negatives)) {
            match negatives {
                1 => self.fill_few::<1>(row, counterparts),
                2 => self.fill_few::<2>(row, counterparts),
                4 => self.fill_few::<4>(row, counterparts),
                8 => self.fill_few::<8>(row, counterparts),
                _ => self.fill_row(row, counterparts, &mut seen),
            }
        }
    }

    /// The same as [`Self::fill_row`], with the rare case apart: K words at once, and all over again where one of them
    /// is biased or a repeat.
    #[inline]
    fn fill_few<const K: usize>(&self, row: u64, counterparts: &mut [u64]) {
        let state = self.state(row);
        let drawn: [(u64, bool); K] = std::array::from_fn(|k| self.word(state, k as u64, row));
        let mut valid = true;
        for k in 0..K {
            valid &= drawn[k].1;
            for other in 0..k {
                valid &= drawn[k].0 != drawn[other].0;
            }
            counterparts[k] = drawn[k].0;
        }
        if !valid {
            self.fill_row(row, counterparts, &mut Seen::new(0));
        }
    }

    #[cold]
    fn fill_row(&self, row: u64, counterparts: &mut [u64], seen: &mut Seen) {
        let state = self.state(row);
        let (mut words, mut kept) = (0, 0);
        seen.clear();
        while kept < counterparts.len() {
            let (other, fair) = self.word(state, words, row);
            words += 1;
            let new = fair
                && if seen.is_used() {
                    seen.insert(other)
                } else {
                    !counterparts[..kept].contains(&other)
                };
            if new {
                counterparts[kept] = other;
                kept += 1;
            }
        }
    }

    #[inline]
    fn state(&self, row: u64) -> u64 {
        mix(row.wrapping_mul(GOLDEN) ^ self.key)
    }

    /// Word `number` of the row's stream as another row, and whether it is without bias.
    #[inline]
    fn word(&self, state: u64, number: u64, row: u64) -> (u64, bool) {
        let word = mix(state.wrapping_add((number + 1).wrapping_mul(GOLDEN)));
        let product = u128::from(word) * u128::from(self.others);
        let other = (product >> 64) as u64;
        (other + u64::from(other >= row), product as u64 >= self.threshold)
    }
}

/// A set of row numbers: an open hash table of (round, row), cleared by a new round.
struct Seen {
    round: u64,
    slots: Vec<(u64, u64)>,
}

impl Seen {
    fn new(count: usize) -> Self {
        Self {
            round: 0,
            slots: vec![(0, 0); if count == 0 { 0 } else { (2 * count).next_power_of_two() }],
        }
    }

    fn is_used(&self) -> bool {
        !self.slots.is_empty()
    }

    fn clear(&mut self) {
        self.round += 1;
    }

    /// Adds the row; whether it is new.
    fn insert(&mut self, row: u64) -> bool {
        let last = self.slots.len() - 1;
        let mut slot = mix(row) as usize & last;
        while self.slots[slot].0 == self.round {
            if self.slots[slot].1 == row {
                return false;
            }
            slot = (slot + 1) & last;
        }
        self.slots[slot] = (self.round, row);
        true
    }
}
