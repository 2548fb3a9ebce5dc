//! Sorting distinct numbers of 128 bits, on all threads. Knows nothing of rows.

use rayon::prelude::*;

use crate::interrupt;

/// Bits of a digit: as many streams of writes as a cache has room for.
const DIGIT: u32 = 8;
const BUCKETS: usize = 1 << DIGIT;

/// From here on a comparison sort in cache is as good (16 bytes each: 64 KiB).
const SMALL: usize = 4_096;

/// From here on a single pass is shared among threads.
const SHARED: usize = 1 << 18;

/// Sorts `records`, which must be distinct, from the highest bit down: one pass for every eight bits in which they
/// differ, until the parts are small. Takes as much memory again.
pub(crate) fn sort(records: &mut [u128]) {
    if records.len() <= SMALL {
        records.sort_unstable();
        return;
    }
    let mut scratch = vec![0; records.len()];
    sort_into(records, &mut scratch, false);
}

/// Sorts `records`; with `moved`, into `scratch`.
fn sort_into(records: &mut [u128], scratch: &mut [u128], moved: bool) {
    interrupt::check();
    if records.len() <= SMALL {
        records.sort_unstable();
        if moved {
            scratch.copy_from_slice(records);
        }
        return;
    }
    let shift = (u128::BITS - differing(records).leading_zeros()).saturating_sub(DIGIT);
    let counts = if records.len() < SHARED {
        scatter(records, scratch, shift)
    } else {
        scatter_shared(records, scratch, shift)
    };
    let mut parts = Vec::with_capacity(BUCKETS);
    let (mut from, mut to) = (records, scratch);
    for count in counts {
        let (part, rest) = from.split_at_mut(count);
        let (twin, twins) = to.split_at_mut(count);
        parts.push((part, twin));
        (from, to) = (rest, twins);
    }
    parts
        .into_par_iter()
        .for_each(|(part, twin)| sort_into(twin, part, !moved));
}

/// The bits in which any two of the records differ.
fn differing(records: &[u128]) -> u128 {
    let first = records[0];
    let bits = |part: &[u128]| part.iter().fold(0, |bits, record| bits | (record ^ first));
    if records.len() < SHARED {
        bits(records)
    } else {
        records
            .par_chunks(SHARED / 4)
            .map(bits)
            .reduce(|| 0, |one, other| one | other)
    }
}

fn digit(record: u128, shift: u32) -> usize {
    (record >> shift) as usize % BUCKETS
}

fn count(records: &[u128], shift: u32) -> [usize; BUCKETS] {
    let mut counts = [0; BUCKETS];
    for &record in records {
        counts[digit(record, shift)] += 1;
    }
    counts
}

/// Copies the records into buckets, in ascending order of their digit; returns the size of each bucket.
fn scatter(records: &[u128], to: &mut [u128], shift: u32) -> [usize; BUCKETS] {
    let counts = count(records, shift);
    let mut ends = [0; BUCKETS];
    for bucket in 1..BUCKETS {
        ends[bucket] = ends[bucket - 1] + counts[bucket - 1];
    }
    for &record in records {
        let end = &mut ends[digit(record, shift)];
        to[*end] = record;
        *end += 1;
    }
    counts
}

/// The same on all threads: each has a slice of every bucket to itself.
fn scatter_shared(records: &[u128], to: &mut [u128], shift: u32) -> [usize; BUCKETS] {
    let chunk = records.len().div_ceil(4 * rayon::current_num_threads()).max(SHARED / 4);
    let counts: Vec<[usize; BUCKETS]> = records.par_chunks(chunk).map(|part| count(part, shift)).collect();
    let mut slices: Vec<Vec<&mut [u128]>> = counts.iter().map(|_| Vec::with_capacity(BUCKETS)).collect();
    let mut rest = to;
    for bucket in 0..BUCKETS {
        for (slices, counts) in slices.iter_mut().zip(&counts) {
            let (slice, others) = rest.split_at_mut(counts[bucket]);
            slices.push(slice);
            rest = others;
        }
    }
    records.par_chunks(chunk).zip(slices).for_each(|(part, mut slices)| {
        let mut ends = [0; BUCKETS];
        for &record in part {
            let bucket = digit(record, shift);
            slices[bucket][ends[bucket]] = record;
            ends[bucket] += 1;
        }
    });
    std::array::from_fn(|bucket| counts.iter().map(|counts| counts[bucket]).sum())
}
