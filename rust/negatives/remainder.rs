//! The rows that no shift serves: their counterparts are drawn uniformly from all their admissible rows, exactly.

use std::ops::Range;

use rayon::prelude::*;

use crate::interrupt;
use crate::negatives::rule::{Near, Rule};
use crate::negatives::shifts::draw_distinct;
use crate::negatives::source;
use crate::random::{Stream, key};

/// Rows that are tried at random before all admissible ones are looked up.
const TRIES: usize = 64;

/// A row that its segment could not serve.
pub(crate) struct Unserved {
    pub(crate) row: usize,
    /// Where in the order of the rows those lie that may be admissible.
    pub(crate) window: Range<usize>,
}

pub(crate) struct Remainder<'a> {
    /// Rows in segments of equal match codes, with `near` in the order of the match codes and, within, of the values.
    order: &'a [usize],
    match_codes: &'a [u64],
    rule: Rule<'a>,
    negatives: usize,
    seed: u64,
}

impl<'a> Remainder<'a> {
    pub(crate) fn new(order: &'a [usize], match_codes: &'a [u64], rule: Rule<'a>, negatives: usize, seed: u64) -> Self {
        Self {
            order,
            match_codes,
            rule,
            negatives,
            seed,
        }
    }

    /// Writes the counterparts of the rows that have enough admissible rows.
    pub(crate) fn draw(&self, mut unserved: Vec<Unserved>, write: &(impl Fn(usize, usize, u64) + Sync)) {
        if let Some(near) = self.rule.near {
            unserved
                .par_iter_mut()
                .for_each(|one| one.window = self.window(one.row, near));
        }
        let try_sampling = |others: &mut Vec<usize>, one: Unserved| {
            (one.window.len() >= self.negatives && !self.sample(&one, others, write)).then_some(one)
        };
        let hard = unserved.into_par_iter().map_init(Vec::new, try_sampling).flatten_iter();
        self.look_up(hard.collect(), write);
    }

    /// Rows that may be admissible: of the same match code and with near values.
    fn window(&self, row: usize, near: Near) -> Range<usize> {
        let code = self.match_codes[row];
        let start = self.order.partition_point(|&other| self.match_codes[other] < code);
        let stop = self.order.partition_point(|&other| self.match_codes[other] <= code);
        let (rows, value) = (&self.order[start..stop], near.values[row]);
        // Such that all comparisons with NaN, which stands last, give an empty window.
        let first = rows.partition_point(|&other| value - near.values[other] > near.tolerance);
        let last = rows.partition_point(|&other| near.values[other] - value <= near.tolerance);
        start + first..start + last.max(first)
    }

    /// Draws K distinct admissible rows with a bounded number of tries; whether that succeeds. Where it does, every
    /// choice of K was equally likely.
    fn sample(&self, one: &Unserved, others: &mut Vec<usize>, write: &(impl Fn(usize, usize, u64) + Sync)) -> bool {
        interrupt::check();
        let Unserved { row, ref window } = *one;
        let mut stream = Stream::new(&[source::SAMPLE, self.seed, row as u64]);
        others.clear();
        for _ in 0..TRIES + 4 * self.negatives {
            let other = self.order[window.start + stream.below(window.len() as u64) as usize];
            if self.rule.admits(row, other) && other != row && !others.contains(&other) {
                others.push(other);
                if others.len() == self.negatives {
                    (0..).zip(others).for_each(|(k, other)| write(row, k, *other as u64));
                    return true;
                }
            }
        }
        false
    }

    /// Rows with the same codes have the same admissible rows, up to their windows, so each kind of row is looked up
    /// once: a user who owns nearly all rows costs one pass, not one a row.
    fn look_up(&self, mut hard: Vec<Unserved>, write: &(impl Fn(usize, usize, u64) + Sync)) {
        let codes = |row: usize| self.rule.differ.iter().map(move |column| column[row]);
        let key = |hard: &Unserved| (hard.window.start, hard.window.end, hard.row);
        hard.par_sort_unstable_by(|one, other| {
            codes(one.row)
                .cmp(codes(other.row))
                .then_with(|| key(one).cmp(&key(other)))
        });
        // A kind ends where the next window begins after all before it have ended.
        let (mut kinds, mut rest, mut end) = (Vec::new(), hard.as_slice(), 0);
        while let Some(first) = rest.first() {
            let mut length = 0;
            while let Some(next) = rest.get(length) {
                if length > 0 && (next.window.start >= end || codes(next.row).ne(codes(first.row))) {
                    break;
                }
                end = end.max(next.window.end);
                length += 1;
            }
            kinds.push((&rest[..length], first.window.start..end));
            (rest, end) = (&rest[length..], 0);
        }
        kinds
            .par_iter()
            .for_each(|(rows, union)| self.look_up_kind(rows, union.clone(), write));
    }

    fn look_up_kind(&self, rows: &[Unserved], union: Range<usize>, write: &(impl Fn(usize, usize, u64) + Sync)) {
        let one = rows[0].row;
        let differs = |&place: &usize| {
            self.rule
                .differ
                .iter()
                .all(|codes| codes[one] != codes[self.order[place]])
        };
        let admissible: Vec<usize> = union.filter(differs).collect();
        for Unserved { row, window } in rows {
            interrupt::check();
            let start = admissible.partition_point(|&place| place < window.start);
            let stop = admissible.partition_point(|&place| place < window.end);
            if stop - start < self.negatives {
                continue;
            }
            let key = key(&[source::SAMPLE, self.seed, *row as u64, 1]);
            let drawn = draw_distinct(start as u64..stop as u64, self.negatives as u64, key);
            for (k, place) in drawn.into_iter().enumerate() {
                write(*row, k, self.order[admissible[place as usize]] as u64);
            }
        }
    }
}
