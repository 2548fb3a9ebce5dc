//! Which other row is a row's counterpart: x ↦ x'. Knows row numbers, no columns, no text and no Python.
//!
//! Every function here is pure in its arguments: the same bytes for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Error;
use crate::random::{GOLDEN, Permutation, key, mix};

/// Entries that a thread fills in one go: with their places they stay in a first-level cache.
const CHUNK: usize = 2_048;

/// Up to this many counterparts a row are compared one by one, more are looked up in a table.
const FEW: usize = 32;

/// Names of the independent sources of randomness, so that no two of them share a key.
pub(crate) mod source {
    pub(crate) const ROWS: u64 = 1;
    pub(crate) const SHIFTS: u64 = 2;
    pub(crate) const ORDER: u64 = 3;
    pub(crate) const SEGMENT_SHIFTS: u64 = 4;
    pub(crate) const SWAPS: u64 = 5;
    pub(crate) const SAMPLE: u64 = 6;
    pub(crate) const INDEPENDENT: u64 = 7;
    pub(crate) const BLOCKS: u64 = 8;
}

/// How the counterparts of different rows hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation of `0..n` and s_k distinct random
    /// shifts of `1..n`, both pure functions of (seed, n): every row is used exactly K times.
    Balanced,
    /// Each row draws its K by itself, uniformly without replacement from the other rows: rows are used K times only on
    /// average. Cheaper for many counterparts.
    Independent,
}

/// K = `negatives` counterparts of each of the rows `start..stop` of `n`, row-major `[stop - start, negatives]`.
///
/// No row is its own counterpart, the K are distinct, fewer negatives are the first of more, and a slice is the slice
/// of the whole.
///
/// # Errors
/// n < 2 or n > 2^63; negatives = 0 or ≥ n; a slice outside `0..n`; a result larger than memory.
pub fn counterparts(n: u64, negatives: u64, seed: u64, start: u64, stop: u64, draw: Draw) -> Result<Vec<u64>, Error> {
    let length = length(n, negatives, start, stop)?;
    let too_large = Error::Memory {
        rows: stop - start,
        negatives,
    };
    // `vec!` takes zeroed pages that the threads then touch first, but aborts where memory is short: ask before.
    Vec::<u64>::new().try_reserve_exact(length).map_err(|_| too_large)?;
    let mut out = vec![0; length];
    fill(&mut out, n, negatives, seed, start, draw);
    Ok(out)
}

/// Entries of the rows `start..stop` of `n`, if they can be drawn.
///
/// # Errors
/// Those of [`counterparts`].
pub fn length(n: u64, negatives: u64, start: u64, stop: u64) -> Result<usize, Error> {
    match (n, negatives) {
        (0 | 1, _) => return Err(Error::TooFewRows(n)),
        (_, 0) => return Err(Error::NoNegatives),
        _ if n > 1 << 63 => return Err(Error::TooManyRows(n)),
        _ if negatives >= n => return Err(Error::TooManyNegatives { negatives, n }),
        _ if start > stop || stop > n => return Err(Error::Slice { start, stop, n }),
        _ => {}
    }
    (stop - start)
        .checked_mul(negatives)
        .and_then(|length| isize::try_from(length).ok()?.checked_mul(size_of::<u64>() as isize))
        .map(|bytes| bytes as usize / size_of::<u64>())
        .ok_or(Error::Memory {
            rows: stop - start,
            negatives,
        })
}

/// Writes the counterparts of the rows from `start` on into `out`, each entry once. Arguments that [`length`] takes.
pub fn fill(out: &mut [u64], n: u64, negatives: u64, seed: u64, start: u64, draw: Draw) {
    if out.is_empty() {
        return;
    }
    let negatives = negatives as usize;
    match draw {
        Draw::Balanced => {
            let rows = Permutation::new(n, key(&[source::ROWS, seed]));
            let shifts = draw_shifts(1..n, negatives as u64, key(&[source::SHIFTS, seed]));
            for_each_chunk(out, negatives, |first, chunk| {
                turn_each(&rows, &shifts, n, start + first, chunk)
            });
        }
        Draw::Independent => {
            let source = Independent::new(n, seed);
            for_each_chunk(out, negatives, |first, chunk| {
                source.fill(start + first, chunk, negatives)
            });
        }
    }
}

/// Calls `fill(first row, places of its rows)` for chunks of whole rows of `out`, on all threads.
fn for_each_chunk(out: &mut [u64], negatives: usize, fill: impl Fn(u64, &mut [u64]) + Sync) {
    let rows = (CHUNK / negatives).max(1);
    out.par_chunks_mut(rows * negatives)
        .enumerate()
        .for_each(|(number, chunk)| fill((number * rows) as u64, chunk));
}

/// The balanced counterparts of the rows from `first` on.
fn turn_each(rows: &Permutation, shifts: &[u64], n: u64, first: u64, chunk: &mut [u64]) {
    let mut places = [0; CHUNK];
    let places = &mut places[..chunk.len() / shifts.len()];
    for (place, row) in places.iter_mut().zip(first..) {
        *place = row;
    }
    rows.place_of_each(places);
    for (counterparts, place) in chunk.chunks_exact_mut(shifts.len()).zip(places) {
        for (counterpart, shift) in counterparts.iter_mut().zip(shifts) {
            *counterpart = turn(*place, *shift, n);
        }
    }
    rows.at_each(chunk);
}

/// The first `count` of a random order of `range`.
pub(crate) fn draw_shifts(range: Range<u64>, count: u64, key: u64) -> Vec<u64> {
    let order = Permutation::new(range.end - range.start, key);
    (0..count).map(|k| range.start + order.at(k)).collect()
}

/// (place + shift) mod n for both below n, at most 2^63.
#[inline]
pub(crate) fn turn(place: u64, shift: u64, n: u64) -> u64 {
    let sum = place + shift;
    if sum >= n { sum - n } else { sum }
}

/// Rows that draw by themselves: row i takes the words of its own SplitMix64 stream, skips those that are biased or
/// name a row it has, and keeps the first K others.
struct Independent {
    key: u64,
    /// n - 1, of which every row has an own numbering that leaves itself out.
    others: u64,
    /// Products with a lower half below this are biased (Lemire 2019).
    threshold: u64,
}

impl Independent {
    fn new(n: u64, seed: u64) -> Self {
        let others = n - 1;
        Self {
            key: key(&[source::INDEPENDENT, seed]),
            others,
            threshold: others.wrapping_neg() % others,
        }
    }

    fn fill(&self, first: u64, chunk: &mut [u64], negatives: usize) {
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
    /// is no good.
    #[inline]
    fn fill_few<const K: usize>(&self, row: u64, counterparts: &mut [u64]) {
        let state = self.state(row);
        let drawn: [(u64, bool); K] = std::array::from_fn(|k| self.word(state, k as u64, row));
        let mut good = true;
        for k in 0..K {
            good &= drawn[k].1;
            for other in 0..k {
                good &= drawn[k].0 != drawn[other].0;
            }
            counterparts[k] = drawn[k].0;
        }
        if !good {
            self.fill_row(row, counterparts, &mut Seen::new(0));
        }
    }

    #[cold]
    fn fill_row(&self, row: u64, counterparts: &mut [u64], seen: &mut Seen) {
        let state = self.state(row);
        let (mut count, mut found) = (0, 0);
        seen.clear();
        while found < counterparts.len() {
            let (other, fair) = self.word(state, count, row);
            count += 1;
            let new = fair
                && if seen.is_used() {
                    seen.insert(other)
                } else {
                    !counterparts[..found].contains(&other)
                };
            if new {
                counterparts[found] = other;
                found += 1;
            }
        }
    }

    #[inline]
    fn state(&self, row: u64) -> u64 {
        mix(row.wrapping_mul(GOLDEN) ^ self.key)
    }

    /// Word `count` of the row's stream as another row, and whether it is a fair one.
    #[inline]
    fn word(&self, state: u64, count: u64, row: u64) -> (u64, bool) {
        let word = mix(state.wrapping_add((count + 1).wrapping_mul(GOLDEN)));
        let product = u128::from(word) * u128::from(self.others);
        let other = (product >> 64) as u64;
        (other + u64::from(other >= row), product as u64 >= self.threshold)
    }
}

/// A set of row numbers that is cleared in no time: an open table of (round, row).
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

    /// Whether the row was not there.
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
