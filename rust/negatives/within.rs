//! Counterparts under constraints: equal in some columns, different in others, near in a number. Knows codes of columns
//! and numbers of rows, no text and no Python.
//!
//! Rows of one match code (of m rows; with `near`, those of a block of near values) are a segment. Sorted by (differ
//! code, at random), with r the longest run of one code, K shifts of `r..=m - r` never stay inside a run and use every
//! row exactly K times. [`Segment`] does that; rows that it cannot serve are drawn from all their admissible rows by
//! [`Remainder`].

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rayon::prelude::*;

use crate::error::Error;
use crate::interrupt;
use crate::memory;
use crate::negatives::blocks::blocks;
use crate::negatives::record::{CODE_BITS, ROW_BITS, pack, row_of, segment_of};
use crate::negatives::remainder::{Remainder, Unserved};
use crate::negatives::rule::{Near, Rule};
use crate::negatives::segment::Segment;
use crate::negatives::shifts::Shifts;
use crate::negatives::sort::sort;
use crate::negatives::source;
use crate::random::{Scramble, key};

/// Stands in all places of a row that has too few admissible counterparts.
pub const ABSENT: u64 = u64::MAX;

/// Bytes that a row needs besides its counterparts, and with `near` once more: what is sorted, twice, and codes.
const ROW_BYTES: usize = 96;

/// Rows that a thread takes at once.
const SHARE: usize = 1 << 14;

/// K = `negatives` counterparts of every row, with the same match code, another code in *every* differ column and,
/// given `near`, a near value: row-major `[n, negatives]`. A row with fewer than K admissible rows has [`ABSENT`] in
/// all its places.
///
/// Every row is used exactly K times where shifts, and swaps of two counterparts where shifts fail, can do it; the
/// counterparts of other rows are drawn uniformly without replacement from their admissible rows.
///
/// # Errors
/// negatives = 0; no differ column; columns of different lengths; a tolerance below 0 or NaN; a result larger than
/// memory.
///
/// # Examples
/// Another user's row of the same task:
/// ```
/// use mipo::negatives::{ABSENT, counterparts_within};
///
/// let tasks = [0, 0, 0, 1, 1, 1, 2];
/// let users = [0, 1, 2, 0, 1, 1, 0];
/// let others = counterparts_within(&tasks, &[&users], None, 1, 7)?;
/// for (row, &other) in others[..6].iter().enumerate() {
///     // Two of the three rows of task 1 are of user 1 and share the third one.
///     assert_eq!(tasks[row], tasks[other as usize]);
///     assert_ne!(users[row], users[other as usize]);
/// }
/// assert_eq!(others[6], ABSENT, "the only row of task 2");
/// # Ok::<(), mipo::error::Error>(())
/// ```
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
    let besides = ROW_BYTES * (1 + usize::from(near.is_some()));
    memory::expect(rows, besides.saturating_add(8 * negatives as usize))?;
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
    let wrong_length = |name: String, got| Error::Length {
        name,
        what: "row of match_codes",
        expected,
        got,
    };
    for (place, column) in differ_codes.iter().enumerate() {
        if column.len() != expected {
            return Err(wrong_length(format!("differ_codes[{place}]"), column.len()));
        }
    }
    match near {
        Some(near) if near.values.len() != expected => Err(wrong_length("near".into(), near.values.len())),
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
    let unserved = sorted.draw(&rule, negatives, seed, &write);
    if !unserved.is_empty() {
        let order = blocked.map_or_else(|| sorted.order(), |blocks| blocks.order);
        Remainder::new(&order, &match_codes, rule, negatives, seed).draw(unserved, &write);
    }
}

/// The columns that forbid more than the row itself, the one with the most equal codes first. A column in which every
/// row is its own code forbids no more than that, as any column does.
fn order_columns<'a>(columns: &[&'a [u64]]) -> Vec<&'a [u64]> {
    let distinct = |codes: &[u64]| codes.par_iter().enumerate().all(|(row, &code)| code == row as u64);
    let mut forbidding: Vec<&[u64]> = columns.iter().copied().filter(|codes| !distinct(codes)).collect();
    if forbidding.is_empty() {
        return columns[..1].to_vec();
    }
    if forbidding.len() > 1 {
        forbidding.sort_by_cached_key(|codes| std::cmp::Reverse(commonest(codes)));
    }
    forbidding
}

/// How often the commonest code occurs in a sample of the rows.
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

impl Sorted {
    fn new(segment_codes: &[u64], differ_codes: &[u64], seed: u64) -> Self {
        let scramble = |part| Scramble::<CODE_BITS>::new(key(&[source::ORDER, seed, part]));
        let (segments, differ) = (scramble(0), scramble(1));
        let rows = Scramble::<ROW_BITS>::new(key(&[source::ORDER, seed, 2]));
        let record = |(row, (&segment, &code)): (usize, (&u64, &u64))| {
            let segment = segments.code(segment);
            // Scrambled with the segment, so that codes are neighbours in one segment and not in the next.
            let code = differ.code(differ.code(code) ^ segment);
            pack(segment, code, rows.code(row as u64))
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
            .map(|&record| self.rows.decode(row_of(record)) as usize)
            .collect()
    }

    /// Draws segment by segment; returns the rows that a draw from all their admissible rows may serve.
    fn draw(
        &self,
        rule: &Rule,
        negatives: usize,
        seed: u64,
        write: &(impl Fn(usize, usize, u64) + Sync),
    ) -> Vec<Unserved> {
        let begins = |place: usize| {
            place == 0
                || place == self.records.len()
                || segment_of(self.records[place - 1]) != segment_of(self.records[place])
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
                interrupt::check();
                let mut segment = Segment::new(*rule, &shifts);
                let (mut unserved, mut start) = (Vec::new(), window[0]);
                for records in
                    self.records[window[0]..window[1]].chunk_by(|&one, &next| segment_of(one) == segment_of(next))
                {
                    segment.read(start, records, &self.rows);
                    segment.draw(write, &mut unserved);
                    start += records.len();
                }
                unserved
            })
            .collect()
    }
}
