//! Counterparts under constraints: equal in some columns, different in others, near in a number. Knows codes of columns,
//! no text and no Python.
//!
//! Rows of one match code (of m rows; with `near`, those of a block of near values) are a segment. Sorted by (differ
//! code, at random), with r the longest run of one code, K shifts of `r..=m - r` never stay inside a run and use every
//! row exactly K times. [`Segment`] does that; rows that it cannot serve are drawn from all their admissible rows by
//! [`Remainder`].

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::error::Error;
use crate::negatives::blocks::blocks;
use crate::negatives::draw::source;
use crate::negatives::remainder::Remainder;
use crate::negatives::segment::{Segment, Shifts};
use crate::negatives::sort::sort;
use crate::random::{Scramble, key};

/// What stands in the places of a row that has too few admissible counterparts.
pub const ABSENT: u64 = u64::MAX;

/// Bits of a code, and of a row, in what is sorted.
pub(crate) const CODE_BITS: u32 = 42;
pub(crate) const ROW_BITS: u32 = 44;

/// Rows that a thread takes at once.
const SHARE: usize = 1 << 14;

/// A number of each row, and how far that of a counterpart may be from it.
#[derive(Debug, Clone, Copy)]
pub struct Near<'a> {
    /// [n]; a row whose value is NaN is near to nobody.
    pub values: &'a [f64],
    /// The largest difference, at least 0.
    pub tolerance: f64,
}

/// What makes two rows a pair, but for their match code.
#[derive(Clone, Copy)]
pub(crate) struct Rule<'a> {
    pub(crate) differ: &'a [&'a [u64]],
    pub(crate) near: Option<Near<'a>>,
}

impl Rule<'_> {
    #[inline]
    pub(crate) fn admits(&self, row: usize, other: usize) -> bool {
        self.differ.iter().all(|codes| codes[row] != codes[other])
            && self
                .near
                .is_none_or(|near| (near.values[row] - near.values[other]).abs() <= near.tolerance)
    }
}

/// K = `negatives` counterparts of every row: with the same match code, another code in *every* differ column and, if
/// asked, a near value; row-major `[n, negatives]`. [`ABSENT`] in all K places of a row with fewer than K such rows.
///
/// Every row is used exactly K times where shifts, and swaps of two counterparts where shifts fail, can do it; the
/// counterparts of other rows are drawn uniformly without replacement from their admissible rows.
///
/// # Errors
/// negatives = 0; no differ column; columns of different lengths; a tolerance below 0 or NaN; a result larger than
/// memory.
pub fn counterparts_within(
    match_codes: &[u64],
    differ_codes: &[&[u64]],
    near: Option<Near>,
    negatives: u64,
    seed: u64,
) -> Result<Vec<u64>, Error> {
    check(match_codes, differ_codes, near, negatives)?;
    let rows = match_codes.len();
    let too_large = Error::Memory {
        rows: rows as u64,
        negatives,
    };
    let length = usize::try_from(negatives)
        .ok()
        .and_then(|negatives| rows.checked_mul(negatives));
    let length = length.ok_or(too_large.clone())?;
    Vec::<u64>::new().try_reserve_exact(length).map_err(|_| too_large)?;
    let out: Vec<AtomicU64> = (0..length).into_par_iter().map(|_| AtomicU64::new(ABSENT)).collect();
    if negatives < rows as u64 {
        draw(match_codes, differ_codes, near, negatives as usize, seed, &out);
    }
    Ok(out.into_iter().map(AtomicU64::into_inner).collect())
}

fn check(match_codes: &[u64], differ_codes: &[&[u64]], near: Option<Near>, negatives: u64) -> Result<(), Error> {
    if negatives == 0 {
        return Err(Error::NoNegatives);
    }
    if differ_codes.is_empty() {
        return Err(Error::NoDiffer);
    }
    let expected = match_codes.len();
    let wrong = |name: String, got| Error::Length {
        name,
        what: "row of match_codes",
        expected,
        got,
    };
    for (place, column) in differ_codes.iter().enumerate() {
        if column.len() != expected {
            return Err(wrong(format!("differ_codes[{place}]"), column.len()));
        }
    }
    match near {
        Some(near) if near.values.len() != expected => Err(wrong("near".into(), near.values.len())),
        Some(near) if near.tolerance.is_nan() || near.tolerance < 0.0 => {
            Err(Error::Tolerance(near.tolerance.to_string()))
        }
        _ => Ok(()),
    }
}

fn draw(
    match_codes: &[u64],
    differ_codes: &[&[u64]],
    near: Option<Near>,
    negatives: usize,
    seed: u64,
    out: &[AtomicU64],
) {
    let differ = order_columns(differ_codes);
    let rule = Rule { differ: &differ, near };
    let match_codes = dense(match_codes);
    let write = |row: usize, k: usize, other: u64| out[row * negatives + k].store(other, Relaxed);
    let blocked = near.map(|near| blocks(&match_codes, near, seed));
    let segment_codes = blocked.as_ref().map_or(&*match_codes, |blocks| &blocks.codes);
    let sorted = Sorted::new(segment_codes, &dense(differ[0]), seed);
    let left = sorted.draw(&rule, negatives, seed, &write);
    if !left.is_empty() {
        let order = blocked.map_or_else(|| sorted.order(), |blocks| blocks.order);
        Remainder::new(&order, &match_codes, rule, negatives, seed).draw(left, &write);
    }
}

/// The columns without those that say nothing, the one with the most equal codes first.
///
/// A column in which every row is its own code forbids only the row itself, as any other column does too.
fn order_columns<'a>(columns: &[&'a [u64]]) -> Vec<&'a [u64]> {
    let distinct = |codes: &[u64]| codes.par_iter().enumerate().all(|(row, &code)| code == row as u64);
    let mut told: Vec<&[u64]> = columns.iter().copied().filter(|codes| !distinct(codes)).collect();
    if told.is_empty() {
        return columns[..1].to_vec();
    }
    if told.len() > 1 {
        told.sort_by_cached_key(|codes| std::cmp::Reverse(commonest(codes)));
    }
    told
}

/// How often the commonest code stands in a sample of the rows.
fn commonest(codes: &[u64]) -> usize {
    let mut sample: Vec<u64> = codes.iter().step_by(codes.len() / 4_096 + 1).copied().collect();
    sample.sort_unstable();
    sample
        .chunk_by(|one, next| one == next)
        .map(<[u64]>::len)
        .max()
        .unwrap_or(0)
}

/// Codes that fit in what is sorted: as they are, or numbered in ascending order.
fn dense(codes: &[u64]) -> Cow<'_, [u64]> {
    if codes.par_iter().all(|&code| code >> CODE_BITS == 0) {
        return Cow::Borrowed(codes);
    }
    let mut known = codes.to_vec();
    known.par_sort_unstable();
    known.dedup();
    let number = |code: &u64| known.partition_point(|other| other < code) as u64;
    Cow::Owned(codes.par_iter().map(number).collect())
}

/// The rows in the order of (segment code, differ code, random), all three scrambled and in one number each.
struct Sorted {
    records: Vec<u128>,
    rows: Scramble<ROW_BITS>,
}

/// A row that its segment could not serve, and where in the order rows are that may be admissible.
pub(crate) struct Left {
    pub(crate) row: usize,
    pub(crate) window: Range<usize>,
}

impl Sorted {
    fn new(segment_codes: &[u64], differ_codes: &[u64], seed: u64) -> Self {
        let scramble = |part| Scramble::<CODE_BITS>::new(key(&[source::ORDER, seed, part]));
        let (segments, differ) = (scramble(0), scramble(1));
        let rows = Scramble::<ROW_BITS>::new(key(&[source::ORDER, seed, 2]));
        let record = |(row, (&segment, &code)): (usize, (&u64, &u64))| {
            let segment = segments.code(segment);
            // Scrambled with the segment, so that codes are neighbours in one segment and not in the next.
            let code = differ.code(differ.code(code) ^ segment);
            u128::from(segment) << (CODE_BITS + ROW_BITS)
                | u128::from(code) << ROW_BITS
                | u128::from(rows.code(row as u64))
        };
        let mut records: Vec<u128> = segment_codes
            .par_iter()
            .zip(differ_codes)
            .enumerate()
            .map(record)
            .collect();
        sort(&mut records);
        Self { records, rows }
    }

    fn order(&self) -> Vec<usize> {
        self.records
            .par_iter()
            .map(|&record| row_of(record, &self.rows))
            .collect()
    }

    /// Draws segment by segment; gives back the rows for which there is more to try.
    fn draw(&self, rule: &Rule, negatives: usize, seed: u64, write: &(impl Fn(usize, usize, u64) + Sync)) -> Vec<Left> {
        let segment_of = |record: &u128| record >> (CODE_BITS + ROW_BITS);
        let begins = |place: usize| {
            place == 0
                || place == self.records.len()
                || segment_of(&self.records[place - 1]) != segment_of(&self.records[place])
        };
        // A share begins with the first segment that begins in its part.
        let shares = self.records.len().div_ceil(SHARE);
        let begin = |share: usize| {
            let part = share * SHARE..((share + 1) * SHARE).min(self.records.len());
            part.into_iter().find(|&place| begins(place))
        };
        let mut starts: Vec<usize> = (0..shares).into_par_iter().filter_map(begin).collect();
        starts.push(self.records.len());
        let shifts = Shifts::new(negatives, seed);
        starts
            .par_windows(2)
            .flat_map_iter(|window| {
                let mut segment = Segment::new(*rule, &shifts);
                let (mut left, mut start) = (Vec::new(), window[0]);
                for records in
                    self.records[window[0]..window[1]].chunk_by(|one, next| segment_of(one) == segment_of(next))
                {
                    segment.read(start, records, &self.rows);
                    segment.draw(write, &mut left);
                    start += records.len();
                }
                left
            })
            .collect()
    }
}

/// The row in a record.
pub(crate) fn row_of(record: u128, rows: &Scramble<ROW_BITS>) -> usize {
    rows.decode(record as u64 & (u64::MAX >> (64 - ROW_BITS))) as usize
}
