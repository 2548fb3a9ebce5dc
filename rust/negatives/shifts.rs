//! Shifts: how far counterparts lie from a row's place, on the circle of all places. Knows places and no rows.

use std::ops::Range;

use crate::negatives::source;
use crate::random::{Permutation, Stream, key};

/// The first `count` numbers of a random order of `range`.
pub(crate) fn draw_distinct(range: Range<u64>, count: u64, key: u64) -> Vec<u64> {
    let order = Permutation::new(range.end - range.start, key);
    (0..count).map(|k| range.start + order.at(k)).collect()
}

/// (place + shift) mod n for both below n, at most 2^63.
#[inline]
pub(crate) fn turn(place: u64, shift: u64, n: u64) -> u64 {
    let sum = place + shift;
    if sum >= n { sum - n } else { sum }
}

/// The keys by which the shifts of every segment are drawn, and its exchanges.
pub(crate) struct Shifts {
    pub(crate) negatives: usize,
    pub(crate) key: u64,
    pub(crate) swaps: u64,
}

impl Shifts {
    pub(crate) fn new(negatives: usize, seed: u64) -> Self {
        Self {
            negatives,
            key: key(&[source::SEGMENT_SHIFTS, seed]),
            swaps: key(&[source::SWAPS, seed]),
        }
    }

    /// K distinct shifts of `longest..=size - longest` in random order. Where there are fewer, the nearest others as
    /// well.
    pub(crate) fn draw(&self, segment: u64, size: usize, longest: usize, shifts: &mut Vec<usize>) {
        shifts.clear();
        let (free, mut stream) = (size + 1 - 2 * longest, Stream::new(&[self.key, segment]));
        if free >= 2 * self.negatives && self.negatives <= 16 {
            while shifts.len() < self.negatives {
                let shift = longest + stream.below(free as u64) as usize;
                if !shifts.contains(&shift) {
                    shifts.push(shift);
                }
            }
            return;
        }
        let drawn = draw_distinct(0..free as u64, self.negatives.min(free) as u64, stream.word());
        shifts.extend(drawn.into_iter().map(|shift| longest + shift as usize));
        let outside = (1..longest).rev().flat_map(|shift| [shift, size - shift]);
        shifts.extend(outside.take(self.negatives - shifts.len()));
    }
}
