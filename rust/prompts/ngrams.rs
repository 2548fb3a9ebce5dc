//! Texts as sets of character n-grams, and whether the Jaccard similarity of two of them reaches a threshold. Knows no
//! clusters.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rayon::prelude::*;

use crate::interrupt;
use crate::random::mix;

/// Bits of a token that are its n-gram's hash; those above say how often the n-gram occurs.
const HASH_BITS: u32 = 58;

/// Entries of the table of counts, at most: 64 MiB.
const COUNTS_MAX: usize = 1 << 24;

/// Sets of tokens in the order of their sizes; `set` is a number in that order.
pub(crate) struct Sets {
    threshold: f64,
    /// Tokens of all sets; a set is sorted, so its rarest come first.
    tokens: Vec<u64>,
    /// Of each set the parity of its tokens in each of as many classes as it has tokens, or up to twice as many.
    parities: Vec<u64>,
    sets: Vec<Set>,
}

#[derive(Clone, Copy)]
struct Set {
    row: u32,
    size: u32,
    /// Where its tokens start in `tokens`.
    start: usize,
    /// Where its words of 64 parities start in `parities`.
    parity: usize,
}

impl Sets {
    pub(crate) fn new(texts: &[&str], rows: &[u32], size: usize, threshold: f64) -> Self {
        let most = |&row: &u32| (texts[row as usize].chars().count() + 1).saturating_sub(size).max(1);
        let lengths: Vec<usize> = rows.par_iter().map(most).collect();
        let mut tokens = vec![0; lengths.iter().sum()];
        let mut sets = Vec::with_capacity(rows.len());
        let mut slices = Vec::with_capacity(rows.len());
        let (mut rest, mut start) = (tokens.as_mut_slice(), 0);
        for (&row, &length) in rows.iter().zip(&lengths) {
            let (slice, after) = rest.split_at_mut(length);
            sets.push(Set {
                row,
                size: 0,
                start,
                parity: 0,
            });
            slices.push(slice);
            (rest, start) = (after, start + length);
        }
        let counts = Counts::new(start);
        sets.par_iter_mut().zip(&mut slices).for_each(|(set, slice)| {
            interrupt::check();
            set.size = shingle(texts[set.row as usize], size, slice) as u32;
            slice[..set.size as usize].iter().for_each(|&token| counts.add(token));
        });
        sets.par_iter().zip(slices).for_each(|(set, slice)| {
            let slice = &mut slice[..set.size as usize];
            slice.iter_mut().for_each(|token| *token = counts.rank(*token));
            slice.sort_unstable();
        });
        sets.par_sort_unstable_by_key(|set| (set.size, set.row));
        let mut parities = Vec::new();
        for set in &mut sets {
            let words = (set.size as usize).next_power_of_two().max(128) / 64;
            set.parity = parities.len();
            parities.resize(set.parity + words, 0);
            for &token in &tokens[set.start..][..set.size as usize] {
                parities[set.parity + ((token >> 6) as usize & (words - 1))] ^= 1 << (token & 63);
            }
        }
        Self {
            threshold,
            tokens,
            parities,
            sets,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.sets.len() as u32
    }

    /// The row of the text.
    pub(crate) fn row(&self, set: u32) -> u32 {
        self.sets[set as usize].row
    }

    pub(crate) fn size(&self, set: u32) -> u32 {
        self.sets[set as usize].size
    }

    pub(crate) fn tokens(&self, set: u32) -> &[u64] {
        let Set { start, size, .. } = self.sets[set as usize];
        &self.tokens[start..start + size as usize]
    }

    fn parities(&self, set: u32) -> &[u64] {
        let end = self
            .sets
            .get(set as usize + 1)
            .map_or(self.parities.len(), |next| next.parity);
        &self.parities[self.sets[set as usize].parity..end]
    }

    /// The parities of a set in 128 classes.
    pub(crate) fn folded(&self, set: u32) -> u128 {
        let fold = |sum: u128, words: &[u64]| sum ^ (u128::from(words[1]) << 64 | u128::from(words[0]));
        self.parities(set).chunks_exact(2).fold(0, fold)
    }

    /// The smallest set that is large enough to be like `set`.
    pub(crate) fn first_like(&self, set: u32) -> u32 {
        let size = f64::from(self.size(set));
        self.sets
            .partition_point(|other| f64::from(other.size) / size < self.threshold) as u32
    }

    /// The places whose tokens a set must look up to meet each like set that is no larger. Those before them hold
    /// tokens that no other set has.
    pub(crate) fn prefix(&self, set: u32) -> Range<u32> {
        let size = self.size(set);
        // A smaller set that is like this one shares so much that even as a part of this one it reaches the threshold.
        let mut shared = (f64::from(size) * self.threshold) as u32;
        while shared == 0 || f64::from(shared) / f64::from(size) < self.threshold {
            shared += 1;
        }
        while shared > 1 && f64::from(shared - 1) / f64::from(size) >= self.threshold {
            shared -= 1;
        }
        let end = size - shared + 1;
        let alone = self.tokens(set).partition_point(|token| token >> HASH_BITS == 0) as u32;
        alone.min(end)..end
    }

    /// The number of first places by which each like set that is no smaller meets this one.
    pub(crate) fn indexed(&self, set: u32) -> u32 {
        let size = self.size(set);
        size - self.needed(size, size) + 1
    }

    /// The fewest tokens that sets of these sizes share where they reach the threshold.
    pub(crate) fn needed(&self, size: u32, other: u32) -> u32 {
        let sum = f64::from(size) + f64::from(other);
        let reaches = |shared: f64| shared / (sum - shared) >= self.threshold;
        let mut shared = (sum * self.threshold / (1.0 + self.threshold)).floor().max(1.0);
        while !reaches(shared) {
            shared += 1.0;
        }
        while shared > 1.0 && reaches(shared - 1.0) {
            shared -= 1.0;
        }
        shared as u32
    }

    /// Whether two sets reach the threshold, given that they share nothing before these places.
    pub(crate) fn are_alike(&self, (set, place): (u32, u32), (other, other_place): (u32, u32)) -> bool {
        let (size, other_size) = (self.size(set), self.size(other));
        let needed = self.needed(size, other_size);
        if (size - place).min(other_size - other_place) < needed {
            return false;
        }
        // A token of one set alone changes one parity.
        let (mut wide, mut narrow) = (self.parities(set), self.parities(other));
        if wide.len() < narrow.len() {
            (wide, narrow) = (narrow, wide);
        }
        let mut unshared = 0;
        for (class, word) in narrow.iter().enumerate() {
            let folded = wide[class..]
                .iter()
                .step_by(narrow.len())
                .fold(*word, |one, other| one ^ other);
            unshared += folded.count_ones();
        }
        if u64::from(unshared) + 2 * u64::from(needed) > u64::from(size) + u64::from(other_size) {
            return false;
        }
        let (one, two) = (self.tokens(set), self.tokens(other));
        share(&one[place as usize..], &two[other_place as usize..], needed as usize)
    }
}

/// A hash of the bytes, without collisions among those of at most eight.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(mix(state)
            .wrapping_add(u64::from_le_bytes(word))
            .wrapping_add((chunk.len() as u64) << 56))
    })
}

/// Writes the hashes of the text's distinct n-grams into `into`; returns their number. A text of c characters has at
/// most max(c - size + 1, 1), which is the length of `into`.
fn shingle(text: &str, size: usize, into: &mut [u64]) -> usize {
    let ends = text
        .char_indices()
        .map(|(place, _)| place)
        .skip(size)
        .chain([text.len()]);
    let mut count = 0;
    for ((start, _), end) in text.char_indices().zip(ends).take(into.len()) {
        into[count] = hash(&text.as_bytes()[start..end]);
        count += 1;
    }
    if count == 0 {
        into[0] = hash(text.as_bytes());
        count = 1;
    }
    into[..count].sort_unstable();
    distinct(&mut into[..count])
}

/// Moves the distinct entries of a sorted slice to its front; returns their number.
fn distinct(sorted: &mut [u64]) -> usize {
    let mut count = 0;
    for place in 0..sorted.len() {
        if count == 0 || sorted[place] != sorted[count - 1] {
            sorted[count] = sorted[place];
            count += 1;
        }
    }
    count
}

/// Whether two sorted slices share at least `needed` entries.
fn share(one: &[u64], other: &[u64], needed: usize) -> bool {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while shared < needed {
        if shared + (one.len() - i).min(other.len() - j) < needed {
            return false;
        }
        let (a, b) = (one[i], other[j]);
        shared += usize::from(a == b);
        i += usize::from(a <= b);
        j += usize::from(b <= a);
    }
    true
}

/// In how many sets a token occurs, counted by a part of its hash: never too few.
struct Counts(Vec<AtomicU32>);

impl Counts {
    fn new(tokens: usize) -> Self {
        let length = tokens.next_power_of_two().clamp(1 << 10, COUNTS_MAX);
        Self((0..length).map(|_| AtomicU32::new(0)).collect())
    }

    fn entry(&self, token: u64) -> &AtomicU32 {
        &self.0[(token >> 20) as usize & (self.0.len() - 1)]
    }

    fn add(&self, token: u64) {
        self.entry(token).fetch_add(1, Relaxed);
    }

    /// The token with its frequency before it, in half octaves: 0 where one set has it, 1 where two have it.
    fn rank(&self, token: u64) -> u64 {
        let count = u64::from(self.entry(token).load(Relaxed).max(1));
        let class = (count * count).ilog2().saturating_sub(u32::from(count > 1));
        u64::from(class) << HASH_BITS | token & ((1 << HASH_BITS) - 1)
    }
}
