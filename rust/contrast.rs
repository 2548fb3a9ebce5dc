//! Which other row is a row's counterpart: x ↦ x'. Knows row numbers and codes of columns, no text and no Python.
//!
//! Every function here is pure in its arguments: the same bytes for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Error;
use crate::random::{Permutation, Stream, key, mix};

/// What stands in the places of a row that has too few admissible counterparts.
pub const ABSENT: u64 = u64::MAX;

/// Entries that a thread fills in one go.
const CHUNK: usize = 8_192;

/// Names of the independent sources of randomness, so that no two of them share a key.
mod source {
    pub(super) const ROWS: u64 = 1;
    pub(super) const SHIFTS: u64 = 2;
    pub(super) const CODE_ORDER: u64 = 3;
    pub(super) const ROW_ORDER: u64 = 4;
    pub(super) const SEGMENT_SHIFTS: u64 = 5;
    pub(super) const SAMPLE: u64 = 6;
    pub(super) const EXACT: u64 = 7;
}

/// K = `negatives` counterparts of each of the rows `start..stop` of `n`, row-major `[stop - start, negatives]`.
///
/// Counterpart k of row i is π((π⁻¹(i) + s_k) mod n), with π a keyed permutation of `0..n` and s_k distinct random
/// shifts of `1..n`, both pure functions of (seed, n). So no row is its own counterpart, the K are distinct, every
/// row is used exactly K times, fewer negatives are the first of more, and a slice is the slice of the whole.
///
/// # Errors
/// n < 2 or n > 2^63; negatives = 0 or ≥ n; a slice outside `0..n`; a result larger than memory.
pub fn counterparts(n: u64, negatives: u64, seed: u64, start: u64, stop: u64) -> Result<Vec<u64>, Error> {
    check_counts(n, negatives)?;
    if start > stop || stop > n {
        return Err(Error::Slice { start, stop, n });
    }
    let mut out = allocate(stop - start, negatives)?;
    if out.is_empty() {
        return Ok(out);
    }
    let rows = Permutation::new(n, key(&[source::ROWS, seed]));
    let shifts = draw_shifts(1..n, negatives, key(&[source::SHIFTS, seed]));
    for_each_chunk(&mut out, shifts.len(), |first, chunk| {
        let first = start + first as u64;
        let mut places: Vec<u64> = (first..first + (chunk.len() / shifts.len()) as u64).collect();
        rows.place_of_each(&mut places);
        for (counterparts, place) in chunk.chunks_exact_mut(shifts.len()).zip(places) {
            for (counterpart, shift) in counterparts.iter_mut().zip(&shifts) {
                *counterpart = turn(place, *shift, n);
            }
        }
        rows.at_each(chunk);
    });
    Ok(out)
}

/// K = `negatives` counterparts of every row with the same match code and another code in *every* differ column,
/// row-major `[n, negatives]`; [`ABSENT`] in all K places of a row with fewer than K admissible rows.
///
/// Rows of one match code (a segment of m rows) are sorted by (differ column with the longest run, random key); with
/// r that run, K distinct random shifts of `r..=m - r` never stay inside a run, and use every row exactly K times.
/// Where no such shifts exist, and for rows whose shifted counterparts agree in another differ column, the K are
/// drawn uniformly without replacement from the row's admissible rows.
///
/// # Errors
/// negatives = 0; no differ column; columns of different lengths; a result larger than memory.
pub fn counterparts_within(
    match_codes: &[u64],
    differ_codes: &[&[u64]],
    negatives: u64,
    seed: u64,
) -> Result<Vec<u64>, Error> {
    check_columns(match_codes, differ_codes, negatives)?;
    let mut out = allocate(match_codes.len() as u64, negatives)?;
    if out.is_empty() {
        return Ok(out);
    }
    let arrangement = Arrangement::new(match_codes, differ_codes, negatives, seed);
    let negatives = negatives as usize;
    for_each_chunk(&mut out, negatives, |first, chunk| {
        for (row, places) in (first..).zip(chunk.chunks_exact_mut(negatives)) {
            if !(arrangement.shift(row, places) || arrangement.sample(row, places)) {
                places.fill(ABSENT);
            }
        }
    });
    for (row, counterparts) in arrangement.search(&out, negatives) {
        out[row * negatives..][..negatives].copy_from_slice(&counterparts);
    }
    Ok(out)
}

fn check_counts(n: u64, negatives: u64) -> Result<(), Error> {
    match (n, negatives) {
        (0 | 1, _) => Err(Error::TooFewRows(n)),
        (_, 0) => Err(Error::NoNegatives),
        _ if n > 1 << 63 => Err(Error::TooManyRows(n)),
        _ if negatives >= n => Err(Error::TooManyNegatives { negatives, n }),
        _ => Ok(()),
    }
}

fn check_columns(match_codes: &[u64], differ_codes: &[&[u64]], negatives: u64) -> Result<(), Error> {
    if negatives == 0 {
        return Err(Error::NoNegatives);
    }
    if differ_codes.is_empty() {
        return Err(Error::NoDiffer);
    }
    let expected = match_codes.len();
    match differ_codes.iter().position(|column| column.len() != expected) {
        Some(place) => Err(Error::Length {
            name: format!("differ_codes[{place}]"),
            what: "row of match_codes",
            expected,
            got: differ_codes[place].len(),
        }),
        None => Ok(()),
    }
}

/// Zeros for `rows` × `negatives` counterparts.
fn allocate(rows: u64, negatives: u64) -> Result<Vec<u64>, Error> {
    let too_large = Error::Memory { rows, negatives };
    let length = rows
        .checked_mul(negatives)
        .and_then(|length| usize::try_from(length).ok())
        .ok_or(too_large.clone())?;
    // `vec!` takes zeroed pages that the threads then touch first, but aborts where memory is short: ask before.
    Vec::<u64>::new().try_reserve_exact(length).map_err(|_| too_large)?;
    Ok(vec![0; length])
}

/// Calls `fill(first row, places of its rows)` for chunks of whole rows of `out`, on all threads.
fn for_each_chunk(out: &mut [u64], negatives: usize, fill: impl Fn(usize, &mut [u64]) + Sync) {
    let rows = (CHUNK / negatives).max(1);
    out.par_chunks_mut(rows * negatives)
        .enumerate()
        .for_each(|(number, chunk)| fill(number * rows, chunk));
}

/// The first `count` of a random order of `range`.
fn draw_shifts(range: Range<u64>, count: u64, key: u64) -> Vec<u64> {
    let order = Permutation::new(range.end - range.start, key);
    (0..count).map(|k| range.start + order.at(k)).collect()
}

/// (place + shift) mod n for both below n, at most 2^63.
#[inline]
fn turn(place: u64, shift: u64, n: u64) -> u64 {
    let sum = place + shift;
    if sum >= n { sum - n } else { sum }
}

/// The rows, sorted into segments of equal match code and, within each, into runs of equal code.
struct Arrangement<'a> {
    differ_codes: &'a [&'a [u64]],
    seed: u64,
    segments: Vec<Segment>,
    /// Rows, segment after segment.
    order: Vec<usize>,
    /// Of each row: its segment and its place in `order`.
    places: Vec<(usize, usize)>,
}

/// Rows of one match code.
struct Segment {
    /// Its part of `order`.
    range: Range<usize>,
    /// The differ column with the longest run; rows lie in runs of its codes.
    column: usize,
    /// Orders the codes of that column; random, so that no two codes are always neighbours.
    code_key: u64,
    /// K of them, or none where a shift could stay inside a run.
    shifts: Vec<u64>,
}

impl<'a> Arrangement<'a> {
    fn new(match_codes: &[u64], differ_codes: &'a [&'a [u64]], negatives: u64, seed: u64) -> Self {
        let mut order: Vec<usize> = (0..match_codes.len()).collect();
        order.par_sort_unstable_by_key(|&row| (match_codes[row], row));
        let mut parts: Vec<&mut [usize]> = order
            .chunk_by_mut(|&one, &next| match_codes[one] == match_codes[next])
            .collect();
        let mut segments: Vec<Segment> = parts
            .par_iter_mut()
            .map(|rows| Segment::arrange(rows, differ_codes, negatives, key(&[seed, match_codes[rows[0]]])))
            .collect();
        let mut end = 0;
        for segment in &mut segments {
            segment.range = end..end + segment.range.len();
            end = segment.range.end;
        }
        let mut places = vec![(0, 0); order.len()];
        for (number, segment) in segments.iter().enumerate() {
            for place in segment.range.clone() {
                places[order[place]] = (number, place);
            }
        }
        Self {
            differ_codes,
            seed,
            segments,
            order,
            places,
        }
    }

    /// Fills in the balanced counterparts of `row`, and says whether there are K admissible ones.
    fn shift(&self, row: usize, places: &mut [u64]) -> bool {
        let (segment, place) = self.places[row];
        let Segment { range, shifts, .. } = &self.segments[segment];
        let place = (place - range.start) as u64;
        for (counterpart, shift) in places.iter_mut().zip(shifts) {
            let other = self.order[range.start + turn(place, *shift, range.len() as u64) as usize];
            if !self.admits(row, other) {
                return false;
            }
            *counterpart = other as u64;
        }
        !shifts.is_empty()
    }

    /// Draws K distinct admissible rows from outside the row's run, with a bounded number of tries: says whether
    /// they were found. Which rows are found, given that K are, is uniform.
    fn sample(&self, row: usize, places: &mut [u64]) -> bool {
        let segment = &self.segments[self.places[row].0];
        let run = self.run(row);
        let outside = segment.range.len() - run.len();
        if outside < places.len() {
            return false;
        }
        let mut stream = Stream::new(&[source::SAMPLE, self.seed, row as u64]);
        let mut found = 0;
        for _ in 0..64 + 4 * places.len() {
            let draw = segment.range.start + stream.below(outside as u64) as usize;
            let other = self.order[if draw < run.start { draw } else { draw + run.len() }];
            if self.admits(row, other) && !places[..found].contains(&(other as u64)) {
                places[found] = other as u64;
                found += 1;
                if found == places.len() {
                    return true;
                }
            }
        }
        false
    }

    /// For rows that sampling left [`ABSENT`]: the K counterparts of those that have enough admissible rows.
    ///
    /// Rows with the same codes have the same admissible rows, so each kind of row is searched once: a user who owns
    /// nearly all rows costs one pass, not one for each.
    fn search(&self, out: &[u64], negatives: usize) -> Vec<(usize, Vec<u64>)> {
        let mut rows: Vec<usize> = (0..self.order.len())
            .into_par_iter()
            .filter(|&row| out[row * negatives] == ABSENT && self.outside(row) >= negatives)
            .collect();
        let kind = |row: usize| {
            (
                self.places[row].0,
                self.differ_codes.iter().map(move |column| column[row]),
            )
        };
        let compare = |one: &usize, other: &usize| {
            let ((segment, codes), (other_segment, other_codes)) = (kind(*one), kind(*other));
            segment.cmp(&other_segment).then_with(|| codes.cmp(other_codes))
        };
        rows.par_sort_by(compare);
        let kinds: Vec<&[usize]> = rows.chunk_by(|one, other| compare(one, other).is_eq()).collect();
        kinds
            .par_iter()
            .flat_map_iter(|rows| self.search_kind(rows, negatives))
            .collect()
    }

    /// Counterparts of rows that have equal codes, or nothing where there are too few.
    fn search_kind(&self, rows: &[usize], negatives: usize) -> Vec<(usize, Vec<u64>)> {
        let range = self.segments[self.places[rows[0]].0].range.clone();
        let mut admissible: Vec<u64> = self.order[range]
            .iter()
            .filter(|&&other| self.admits(rows[0], other))
            .map(|&other| other as u64)
            .collect();
        if admissible.len() < negatives {
            return Vec::new();
        }
        let mut draw = |&row: &usize| {
            let mut stream = Stream::new(&[source::EXACT, self.seed, row as u64]);
            (row, draw_distinct(&mut admissible, negatives, &mut stream))
        };
        rows.iter().map(&mut draw).collect()
    }

    /// Whether `other` differs from `row` in every differ column.
    fn admits(&self, row: usize, other: usize) -> bool {
        self.differ_codes.iter().all(|codes| codes[row] != codes[other])
    }

    /// Rows of the segment of `row` outside its run: no fewer than the admissible ones.
    fn outside(&self, row: usize) -> usize {
        self.segments[self.places[row].0].range.len() - self.run(row).len()
    }

    /// The part of `order` whose rows have the code of `row` in the segment's column.
    fn run(&self, row: usize) -> Range<usize> {
        let segment = &self.segments[self.places[row].0];
        let codes = self.differ_codes[segment.column];
        let rank = |row: usize| mix(codes[row] ^ segment.code_key);
        let rows = &self.order[segment.range.clone()];
        let start = rows.partition_point(|&other| rank(other) < rank(row));
        let stop = rows.partition_point(|&other| rank(other) <= rank(row));
        segment.range.start + start..segment.range.start + stop
    }
}

impl Segment {
    /// Sorts `rows` into runs of the column with the longest run, at random within a run; draws the shifts.
    fn arrange(rows: &mut [usize], differ_codes: &[&[u64]], negatives: u64, seed: u64) -> Self {
        let (code_key, row_key) = (key(&[source::CODE_ORDER, seed]), key(&[source::ROW_ORDER, seed]));
        let (mut column, mut longest, mut arranged) = (0, 0, Vec::new());
        for (place, codes) in differ_codes.iter().enumerate() {
            // `mix` is a bijection: equal ranks are equal codes, and no two rows tie.
            let rank = |&row: &usize| (mix(codes[row] ^ code_key), mix(row as u64 ^ row_key), row);
            let mut ranks: Vec<_> = rows.iter().map(rank).collect();
            ranks.par_sort_unstable();
            let run = ranks
                .chunk_by(|one, next| one.0 == next.0)
                .map(<[_]>::len)
                .max()
                .unwrap_or(0);
            if run > longest {
                (column, longest, arranged) = (place, run, ranks);
            }
        }
        for (row, rank) in rows.iter_mut().zip(&arranged) {
            *row = rank.2;
        }
        let (size, run) = (rows.len() as u64, longest as u64);
        let range = run..(size + 1).saturating_sub(run);
        let fits = range.end.saturating_sub(range.start) >= negatives;
        let shifts = if fits {
            draw_shifts(range, negatives, key(&[source::SEGMENT_SHIFTS, seed]))
        } else {
            Vec::new()
        };
        Self {
            range: 0..rows.len(),
            column,
            code_key,
            shifts,
        }
    }
}

/// `count` distinct entries of `pool`, uniformly, in random order; `pool` keeps its entries and their order.
fn draw_distinct(pool: &mut [u64], count: usize, stream: &mut Stream) -> Vec<u64> {
    let swaps: Vec<(usize, usize)> = (0..count)
        .map(|k| (k, k + stream.below((pool.len() - k) as u64) as usize))
        .collect();
    swaps.iter().for_each(|&(k, other)| pool.swap(k, other));
    let drawn = pool[..count].to_vec();
    swaps.iter().rev().for_each(|&(k, other)| pool.swap(k, other));
    drawn
}
