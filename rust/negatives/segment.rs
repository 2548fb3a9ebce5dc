//! The rows of one segment: balanced counterparts by shifts, and by exchanges where a shift meets an inadmissible row.

use rayon::prelude::*;

use crate::negatives::exchange::Exchange;
use crate::negatives::record::{ROW_BITS, row_of, run_of, segment_of};
use crate::negatives::remainder::Unserved;
use crate::negatives::rule::Rule;
use crate::negatives::shifts::{Shifts, turn};
use crate::random::{Scramble, Stream, key};

/// From here on the rows of one segment are shared among threads.
const SHARED: usize = 1 << 16;

/// The segment at hand; one after another is read into the same memory.
pub(crate) struct Segment<'a> {
    rule: Rule<'a>,
    shifts: &'a Shifts,
    /// The segment's scrambled code, and where it lies among all.
    code: u64,
    start: usize,
    /// Rows, in runs of equal codes.
    rows: Vec<usize>,
    /// The codes of the column that the rows are sorted by, scrambled; the length of the longest run.
    runs: Vec<u64>,
    longest: usize,
    /// Codes of the other differ columns.
    others: Vec<Vec<u64>>,
    drawn: Vec<usize>,
}

impl<'a> Segment<'a> {
    pub(crate) fn new(rule: Rule<'a>, shifts: &'a Shifts) -> Self {
        let others = vec![Vec::new(); rule.differ.len() - 1];
        Self {
            rule,
            shifts,
            code: 0,
            start: 0,
            rows: Vec::new(),
            runs: Vec::new(),
            longest: 0,
            others,
            drawn: Vec::new(),
        }
    }

    /// Reads the records of a segment, which lie in runs; the first one is number `start` among all.
    pub(crate) fn read(&mut self, start: usize, records: &[u128], rows: &Scramble<ROW_BITS>) {
        self.code = segment_of(records[0]);
        self.start = start;
        let row = |record: &u128| rows.decode(row_of(*record)) as usize;
        let run = |record: &u128| run_of(*record);
        if records.len() < SHARED {
            self.rows.clear();
            self.rows.extend(records.iter().map(row));
            self.runs.clear();
            self.runs.extend(records.iter().map(run));
        } else {
            records.par_iter().map(row).collect_into_vec(&mut self.rows);
            records.par_iter().map(run).collect_into_vec(&mut self.runs);
        }
        self.longest = longest_run(&self.runs);
    }

    /// Writes the counterparts of the segment's rows. Those that it cannot serve, but another draw may, go into
    /// `unserved`.
    pub(crate) fn draw(&mut self, write: &(impl Fn(usize, usize, u64) + Sync), unserved: &mut Vec<Unserved>) {
        if !self.draw_shifts() {
            return self.pass_on(unserved);
        }
        let shifted = self.longest >= 1 && self.drawn.iter().all(|&shift| self.fits(shift));
        if shifted && self.others.is_empty() {
            return self.write_shifted(write);
        }
        self.read_others();
        let mut bad = self.bad();
        if !bad.is_empty() && self.sort_by_longer_run() {
            if !self.draw_shifts() {
                return self.pass_on(unserved);
            }
            bad = self.bad();
        }
        if bad.is_empty() {
            return self.write_shifted(write);
        }
        self.write_mended(&bad, write, unserved);
    }

    /// Draws the shifts, if each row can have K counterparts and be the counterpart of K rows.
    fn draw_shifts(&mut self) -> bool {
        let (size, negatives) = (self.rows.len(), self.shifts.negatives);
        let possible = 2 * self.longest <= size && size - self.longest >= negatives;
        if possible {
            self.shifts.draw(self.code, size, self.longest, &mut self.drawn);
        }
        possible
    }

    fn fits(&self, shift: usize) -> bool {
        (self.longest..=self.rows.len() - self.longest).contains(&shift)
    }

    /// Passes on the rows that may have counterparts: with `near` all, since a block is not all that is near, and else
    /// those with enough rows outside their run.
    fn pass_on(&self, unserved: &mut Vec<Unserved>) {
        let mut start = 0;
        for run in self.runs.chunk_by(|one, next| one == next) {
            if self.rule.near.is_some() || self.rows.len() - run.len() >= self.shifts.negatives {
                unserved.extend((start..start + run.len()).map(|place| self.unserved(place)));
            }
            start += run.len();
        }
    }

    fn unserved(&self, place: usize) -> Unserved {
        Unserved {
            row: self.rows[place],
            window: self.start..self.start + self.rows.len(),
        }
    }

    fn write_shifted(&self, write: &(impl Fn(usize, usize, u64) + Sync)) {
        let write_row = |place: usize| {
            for (k, &shift) in self.drawn.iter().enumerate() {
                let other = self.rows[turn(place as u64, shift as u64, self.rows.len() as u64) as usize];
                write(self.rows[place], k, other as u64);
            }
        };
        if self.rows.len() < SHARED {
            (0..self.rows.len()).for_each(write_row);
        } else {
            (0..self.rows.len()).into_par_iter().for_each(write_row);
        }
    }

    fn read_others(&mut self) {
        for (codes, column) in self.others.iter_mut().zip(&self.rule.differ[1..]) {
            let code = |&row: &usize| column[row];
            if self.rows.len() < SHARED {
                codes.clear();
                codes.extend(self.rows.iter().map(code));
            } else {
                self.rows.par_iter().map(code).collect_into_vec(codes);
            }
        }
    }

    /// Whether the rows at two places differ in all that they must.
    fn admits(&self, place: usize, other: usize) -> bool {
        self.runs[place] != self.runs[other] && self.others.iter().all(|codes| codes[place] != codes[other])
    }

    fn target(&self, place: usize, k: usize) -> usize {
        turn(place as u64, self.drawn[k] as u64, self.rows.len() as u64) as usize
    }

    /// Entries, place · K + k, whose shifted counterparts are not admissible.
    fn bad(&self) -> Vec<usize> {
        let negatives = self.drawn.len();
        let is_bad = |entry: &usize| {
            let place = entry / negatives;
            !self.admits(place, self.target(place, entry % negatives))
        };
        let entries = 0..self.rows.len() * negatives;
        if self.rows.len() < SHARED {
            entries.filter(is_bad).collect()
        } else {
            entries.into_par_iter().filter(is_bad).collect()
        }
    }

    /// Sorts the rows by the column with the longest run, if that is not how they lie already.
    fn sort_by_longer_run(&mut self) -> bool {
        let run = |codes: &Vec<u64>| {
            let mut sorted = codes.clone();
            sorted.par_sort_unstable();
            longest_run(&sorted)
        };
        let Some((longest, column)) = self
            .others
            .iter()
            .enumerate()
            .map(|(column, codes)| (run(codes), column))
            .max()
        else {
            return false;
        };
        if longest <= self.longest {
            return false;
        }
        let scramble = Scramble::<64>::new(key(&[self.shifts.key, self.code]));
        // Runs in random order, and rows within a run in the random order that they have.
        let mut order: Vec<(u64, usize)> = self.others[column]
            .iter()
            .enumerate()
            .map(|(place, &code)| (scramble.code(code), place))
            .collect();
        order.par_sort_unstable();
        let arrange = |codes: &[u64]| order.iter().map(|&(_, place)| codes[place]).collect::<Vec<u64>>();
        let runs = arrange(&self.runs);
        self.others.iter_mut().for_each(|codes| *codes = arrange(codes));
        self.rows = order.iter().map(|&(_, place)| self.rows[place]).collect();
        self.runs = std::mem::replace(&mut self.others[column], runs);
        self.longest = longest;
        true
    }

    /// Exchanges bad counterparts for good ones, so that every row is used as often as before. Rows for which that
    /// fails are passed on.
    fn write_mended(&self, bad: &[usize], write: &(impl Fn(usize, usize, u64) + Sync), unserved: &mut Vec<Unserved>) {
        let negatives = self.drawn.len();
        let targets = (0..self.rows.len() * negatives).map(|entry| self.target(entry / negatives, entry % negatives));
        let admits = |place: usize, other: usize| self.admits(place, other);
        let mut exchange = Exchange::new(targets.collect(), negatives, &admits);
        let failed = exchange.mend(bad, &mut Stream::new(&[self.shifts.swaps, self.code]));
        unserved.extend(failed.iter().map(|&place| self.unserved(place)));
        let mut failed = failed.into_iter().peekable();
        for (place, targets) in exchange.targets.chunks_exact(negatives).enumerate() {
            if failed.next_if_eq(&place).is_none() {
                for (k, &target) in targets.iter().enumerate() {
                    write(self.rows[place], k, self.rows[target] as u64);
                }
            }
        }
    }
}

fn longest_run(codes: &[u64]) -> usize {
    let (mut longest, mut length) = (usize::from(!codes.is_empty()), 1);
    for pair in codes.windows(2) {
        length = if pair[0] == pair[1] { length + 1 } else { 1 };
        longest = longest.max(length);
    }
    longest
}
