//! Blocks of near values: any two rows of a block are within the tolerance.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::negatives::record::{CODE_BITS, pack, row_of};
use crate::negatives::rule::Near;
use crate::negatives::sort::sort;
use crate::negatives::source;
use crate::random::Stream;

/// The block of each row, and the rows by match code and value.
pub(crate) struct Blocks {
    /// `[n]`: the number of each row's block.
    pub(crate) codes: Vec<u64>,
    /// `[n]`: rows in the order of (match code, value).
    pub(crate) order: Vec<usize>,
}

/// Cuts the rows of each match code, sorted by value, wherever a value is more than the tolerance above the first of
/// its block. The first block is shorter by a random part, so that cuts lie elsewhere for another seed.
pub(crate) fn blocks(match_codes: &[u64], near: Near, seed: u64) -> Blocks {
    let ranks = ranks(near.values);
    let record = |row: usize| pack(match_codes[row], ranks[row], row as u64);
    let mut records: Vec<u128> = (0..ranks.len()).into_par_iter().map(record).collect();
    drop(ranks);
    sort(&mut records);
    let order: Vec<usize> = records.par_iter().map(|&record| row_of(record) as usize).collect();
    drop(records);
    let sorted: Vec<(u64, f64)> = order
        .par_iter()
        .map(|&row| (match_codes[row], near.values[row]))
        .collect();
    let codes: Vec<AtomicU64> = (0..order.len()).into_par_iter().map(|_| AtomicU64::new(0)).collect();
    let (mut block, mut first, mut width) = (0, (0, f64::NAN), 0.0);
    for (&row, &(code, value)) in order.iter().zip(&sorted) {
        // NaN is within no width, so every row without a value is a block of its own.
        let within = value - first.1 <= width;
        if code != first.0 || !within {
            let share = Stream::new(&[source::BLOCKS, seed, code]).word() as f64 / u64::MAX as f64;
            width = if code != first.0 || block == 0 {
                near.tolerance * share
            } else {
                near.tolerance
            };
            block += 1;
            first = (code, value);
        }
        codes[row].store(block, Relaxed);
    }
    Blocks {
        codes: codes.into_iter().map(AtomicU64::into_inner).collect(),
        order,
    }
}

/// Numbers in the order of the values, equal for equal values; NaN comes last.
fn ranks(values: &[f64]) -> Vec<u64> {
    const END: f64 = (1_u64 << CODE_BITS) as f64;
    if values
        .par_iter()
        .all(|&value| (0.0..END).contains(&value) && value.fract() == 0.0)
    {
        return values.par_iter().map(|&value| value as u64).collect();
    }
    // As unsigned numbers the bits of floats are in order, but for a sign; 0.0 + -0.0 is 0.0.
    let bits = |value: f64| {
        let bits = if value.is_nan() {
            u64::MAX >> 1
        } else {
            (value + 0.0).to_bits()
        };
        if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
    };
    let record = |(row, &value): (usize, &f64)| u128::from(bits(value)) << 64 | row as u128;
    let mut records: Vec<u128> = values.par_iter().enumerate().map(record).collect();
    sort(&mut records);
    let ranks: Vec<AtomicU64> = (0..values.len()).into_par_iter().map(|_| AtomicU64::new(0)).collect();
    for (rank, equal) in records.chunk_by(|one, next| one >> 64 == next >> 64).enumerate() {
        for record in equal {
            ranks[*record as u64 as usize].store(rank as u64, Relaxed);
        }
    }
    ranks.into_iter().map(AtomicU64::into_inner).collect()
}
