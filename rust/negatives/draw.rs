//! Counterparts among all rows. Knows row numbers, no columns, no text and no Python.

use rayon::prelude::*;

use crate::error::Error;
use crate::interrupt;
use crate::negatives::independent::Independent;
use crate::negatives::shifts::{draw_distinct, turn};
use crate::negatives::source;
use crate::random::{Permutation, key};

/// Entries that a thread fills in one go: with their places they stay in a first-level cache.
const CHUNK: usize = 2_048;

/// How the counterparts of different rows depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation of `0..n` and s_k distinct random
    /// shifts of `1..n`, both pure functions of (seed, n): every row is used exactly K times.
    Balanced,
    /// Each row draws its K by itself, uniformly without replacement from the other rows: a row is used K times only on
    /// average. Cheaper for many counterparts.
    Independent,
}

/// K = `negatives` counterparts of each of the rows `start..stop` of `n`, row-major `[stop - start, negatives]`.
///
/// No row is its own counterpart and the K of a row are distinct. Fewer negatives are the first of more, and a slice is
/// the slice of the whole.
///
/// # Errors
/// n < 2 or n > 2^63; negatives = 0 or ≥ n; a slice outside `0..n`; a result larger than memory.
///
/// # Examples
/// ```
/// use mipo::negatives::{Draw, counterparts};
///
/// let (n, negatives, seed) = (1_000, 2, 7);
/// let whole = counterparts(n, negatives, seed, 0, n, Draw::Balanced)?;
/// for (row, others) in (0..n).zip(whole.chunks(2)) {
///     assert!(others[0] != row && others[1] != row && others[0] != others[1]);
/// }
/// for row in 0..n {
///     assert_eq!(whole.iter().filter(|&&other| other == row).count(), 2, "every row is used twice");
/// }
/// // A shard of the rows is drawn by itself.
/// assert_eq!(counterparts(n, negatives, seed, 500, 600, Draw::Balanced)?, whole[1_000..1_200]);
/// # Ok::<(), mipo::error::Error>(())
/// ```
pub fn counterparts(n: u64, negatives: u64, seed: u64, start: u64, stop: u64, draw: Draw) -> Result<Vec<u64>, Error> {
    let length = checked_length(n, negatives, start, stop)?;
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

/// How many entries [`counterparts`] has for these arguments, or its error.
pub(crate) fn checked_length(n: u64, negatives: u64, start: u64, stop: u64) -> Result<usize, Error> {
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

/// Writes the counterparts of the rows from `start` on into `out`, each entry once. The arguments have passed
/// [`checked_length`].
pub(crate) fn fill(out: &mut [u64], n: u64, negatives: u64, seed: u64, start: u64, draw: Draw) {
    if out.is_empty() {
        return;
    }
    match draw {
        Draw::Balanced => {
            let rows = Permutation::new(n, key(&[source::ROWS, seed]));
            let shifts = draw_distinct(1..n, negatives, key(&[source::SHIFTS, seed]));
            for_each_chunk(out, negatives as usize, |first, chunk| {
                fill_balanced(&rows, &shifts, n, start + first, chunk);
            });
        }
        Draw::Independent => {
            let rows = Independent::new(n, seed);
            for_each_chunk(out, negatives as usize, |first, chunk| {
                rows.fill(start + first, chunk, negatives as usize);
            });
        }
    }
}

/// Calls `fill(first row, entries of the chunk's rows)` for chunks of whole rows of `out`, on all threads.
fn for_each_chunk(out: &mut [u64], negatives: usize, fill: impl Fn(u64, &mut [u64]) + Sync) {
    let rows = (CHUNK / negatives).max(1);
    out.par_chunks_mut(rows * negatives)
        .enumerate()
        .for_each(|(number, chunk)| {
            interrupt::check();
            fill((number * rows) as u64, chunk);
        });
}

fn fill_balanced(rows: &Permutation, shifts: &[u64], n: u64, first: u64, chunk: &mut [u64]) {
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
