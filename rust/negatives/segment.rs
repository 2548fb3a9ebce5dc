//! The rows of one segment: balanced counterparts by shifts, and by exchanges where a shift meets a row it may not.

use rayon::prelude::*;

use crate::negatives::draw::{draw_shifts, source, turn};
use crate::negatives::exchange::Exchange;
use crate::negatives::within::{CODE_BITS, Left, ROW_BITS, Rule, row_of};
use crate::random::{Scramble, Stream, key};

/// From here on the rows of one segment are shared among threads.
const SHARED: usize = 1 << 16;

/// How the shifts of every segment are drawn.
pub(crate) struct Shifts {
    negatives: usize,
    key: u64,
    swaps: u64,
}

impl Shifts {
    pub(crate) fn new(negatives: usize, seed: u64) -> Self {
        Self {
            negatives,
            key: key(&[source::SEGMENT_SHIFTS, seed]),
            swaps: key(&[source::SWAPS, seed]),
        }
    }

    /// K distinct shifts of `longest..=size - longest` in random order. Where there are fewer, those nearest to them too.
    fn draw(&self, segment: u64, size: usize, longest: usize, shifts: &mut Vec<usize>) {
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
        let drawn = draw_shifts(0..free as u64, self.negatives.min(free) as u64, stream.word());
        shifts.extend(drawn.into_iter().map(|shift| longest + shift as usize));
        let outside = (1..longest).rev().flat_map(|shift| [shift, size - shift]);
        shifts.extend(outside.take(self.negatives - shifts.len()));
    }
}

/// One segment after another, in the same memory.
pub(crate) struct Segment<'a> {
    rule: Rule<'a>,
    shifts: &'a Shifts,
    /// The segment's scrambled code, and where it lies among all.
    code: u64,
    start: usize,
    /// Rows in runs of equal codes.
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

    /// Takes over the rows of one segment, in runs.
    pub(crate) fn read(&mut self, start: usize, records: &[u128], rows: &Scramble<ROW_BITS>) {
        self.code = (records[0] >> (CODE_BITS + ROW_BITS)) as u64;
        self.start = start;
        let row = |record: &u128| row_of(*record, rows);
        let run = |record: &u128| (record >> ROW_BITS) as u64;
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

    /// Writes the counterparts of the segment's rows. Into `left` go those of whom more is to be tried.
    pub(crate) fn draw(&mut self, write: &(impl Fn(usize, usize, u64) + Sync), left: &mut Vec<Left>) {
        if !self.draw_shifts() {
            return self.leave(left);
        }
        let shifted = self.longest >= 1 && self.drawn.iter().all(|&shift| self.fits(shift));
        if shifted && self.others.is_empty() {
            return self.write_shifted(write);
        }
        self.read_others();
        let mut bad = self.bad();
        if !bad.is_empty() && self.sort_by_longer_run() {
            if !self.draw_shifts() {
                return self.leave(left);
            }
            bad = self.bad();
        }
        if bad.is_empty() {
            return self.write_shifted(write);
        }
        self.write_mended(&bad, write, left);
    }

    /// Whether each row can have K counterparts, and be the counterpart of K rows.
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

    /// Leaves the rows that may have counterparts: with `near` all, since a block is not all that is near, and else those
    /// with enough rows outside their run.
    fn leave(&self, left: &mut Vec<Left>) {
        let mut start = 0;
        for run in self.runs.chunk_by(|one, next| one == next) {
            if self.rule.near.is_some() || self.rows.len() - run.len() >= self.shifts.negatives {
                left.extend((start..start + run.len()).map(|place| self.left(place)));
            }
            start += run.len();
        }
    }

    fn left(&self, place: usize) -> Left {
        Left {
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

    /// Entries, place · K + k, of the shifted counterparts that are none.
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

    /// Exchanges bad counterparts for good ones, so that every row is used as often as before. Rows for which that fails
    /// are left.
    fn write_mended(&self, bad: &[usize], write: &(impl Fn(usize, usize, u64) + Sync), left: &mut Vec<Left>) {
        let negatives = self.drawn.len();
        let targets = (0..self.rows.len() * negatives).map(|entry| self.target(entry / negatives, entry % negatives));
        let admits = |place: usize, other: usize| self.admits(place, other);
        let mut exchange = Exchange::new(targets.collect(), negatives, &admits);
        let lost = exchange.mend(bad, &mut Stream::new(&[self.shifts.swaps, self.code]));
        left.extend(lost.iter().map(|&place| self.left(place)));
        let mut lost = lost.into_iter().peekable();
        for (place, targets) in exchange.targets.chunks_exact(negatives).enumerate() {
            if lost.next_if_eq(&place).is_none() {
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
