//! Laws of counterparts under constraints, with obvious twins.

use std::collections::HashSet;

use mipo::error::Error;
use mipo::negatives::{ABSENT, Near, counterparts_within};

use crate::data::{noise, on_threads};

/// χ² lies this many standard deviations above its mean about once in 30,000 draws; the seeds are fixed.
const SIGMAS: f64 = 4.0;

/// What makes two rows a pair, written down once.
#[derive(Clone, Copy)]
struct Table<'a> {
    alike: &'a [u64],
    unlike: &'a [&'a [u64]],
    near: Option<Near<'a>>,
}

impl Table<'_> {
    fn admits(&self, row: usize, other: usize) -> bool {
        self.alike[row] == self.alike[other]
            && self.unlike.iter().all(|codes| codes[row] != codes[other])
            && self
                .near
                .is_none_or(|near| (near.values[row] - near.values[other]).abs() <= near.tolerance)
    }

    fn admissible(&self, row: usize) -> Vec<usize> {
        (0..self.alike.len()).filter(|&other| self.admits(row, other)).collect()
    }

    fn draw(&self, negatives: usize, seed: u64) -> Vec<u64> {
        counterparts_within(self.alike, self.unlike, self.near, negatives as u64, seed).unwrap()
    }

    /// Draws, and checks that rows have admissible, distinct counterparts exactly where there are enough.
    fn check(&self, negatives: usize, seed: u64) -> Vec<u64> {
        let flat = self.draw(negatives, seed);
        assert_eq!(flat.len(), self.alike.len() * negatives);
        for (row, others) in flat.chunks_exact(negatives).enumerate() {
            let count = self.admissible(row).len();
            if count < negatives {
                assert!(
                    others.iter().all(|&other| other == ABSENT),
                    "row {row} has {count} admissible rows"
                );
            } else {
                let good = others
                    .iter()
                    .all(|&other| other != ABSENT && self.admits(row, other as usize));
                assert!(good, "row {row}: {others:?}");
                assert_eq!(others.iter().collect::<HashSet<_>>().len(), negatives);
            }
        }
        flat
    }
}

/// Whether every row can have K counterparts and be the counterpart of K rows: a bipartite matching, by augmenting
/// paths.
fn can_balance(table: &Table, negatives: usize) -> bool {
    let n = table.alike.len();
    let mut uses = vec![vec![false; n]; n];
    (0..n * negatives).all(|turn| augment(table, negatives, &mut uses, &mut vec![false; n], turn % n))
}

fn augment(table: &Table, negatives: usize, uses: &mut [Vec<bool>], seen: &mut [bool], row: usize) -> bool {
    for other in table.admissible(row) {
        if uses[row][other] || std::mem::replace(&mut seen[other], true) {
            continue;
        }
        let users: Vec<usize> = (0..uses.len()).filter(|&user| uses[user][other]).collect();
        if users.len() < negatives {
            uses[row][other] = true;
            return true;
        }
        for user in users {
            if augment(table, negatives, uses, seen, user) {
                uses[user][other] = false;
                uses[row][other] = true;
                return true;
            }
        }
    }
    false
}

fn is_balanced(flat: &[u64], n: usize, negatives: usize) -> bool {
    let mut uses = vec![0; n];
    flat.iter()
        .filter(|&&other| other != ABSENT)
        .for_each(|&other| uses[other as usize] += 1);
    uses.iter().all(|&count| count == negatives)
}

/// Small random tables: (match codes, three differ columns, values).
fn table(state: &mut u64, most: u64) -> (Vec<u64>, [Vec<u64>; 3], Vec<f64>) {
    let n = noise(state, most) as usize;
    let mut column = |values: u64| -> Vec<u64> {
        let values = 1 + noise(state, values);
        (0..n)
            .map(|_| noise(state, values).wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect()
    };
    let (alike, unlike) = (column(4), [column(8), column(8), column(8)]);
    let values = (0..n).map(|_| noise(state, 200) as f64 / 4.0 - 20.0).collect();
    (alike, unlike, values)
}

#[test]
fn counterparts_are_admissible_and_absent_exactly_where_too_few_are() {
    let mut state = 1;
    for case in 0..6_000 {
        let (alike, columns, mut values) = table(&mut state, 40);
        let unlike: Vec<&[u64]> = columns[..1 + case % 3].iter().map(Vec::as_slice).collect();
        if case % 5 == 0 {
            values.iter_mut().step_by(3).for_each(|value| *value = f64::NAN);
        }
        let tolerance = [0.0, 0.25, 3.0, 30.0, 1e9][case % 5];
        let near = (case % 2 == 1).then_some(Near {
            values: &values,
            tolerance,
        });
        Table {
            alike: &alike,
            unlike: &unlike,
            near,
        }
        .check(1 + case % 4, case as u64);
    }
}

#[test]
fn one_column_is_balanced_exactly_where_that_is_possible() {
    let (mut state, mut possible) = (2, 0);
    for case in 0..4_000 {
        let (_, columns, _) = table(&mut state, 12);
        let alike = vec![7; columns[0].len()];
        let table = Table {
            alike: &alike,
            unlike: &[&columns[0]],
            near: None,
        };
        let negatives = 1 + case % 4;
        let flat = table.check(negatives, case as u64);
        let can = can_balance(&table, negatives);
        assert_eq!(
            is_balanced(&flat, alike.len(), negatives),
            can,
            "{:?}, negatives {negatives}",
            columns[0]
        );
        possible += usize::from(can);
    }
    assert!(possible > 500);
}

#[test]
fn several_columns_are_balanced_exactly_where_that_is_possible() {
    let (mut state, mut possible) = (3, 0);
    for case in 0..4_000 {
        let (_, columns, _) = table(&mut state, 14);
        let alike = vec![7; columns[0].len()];
        let table = Table {
            alike: &alike,
            unlike: &[&columns[0], &columns[1]],
            near: None,
        };
        let negatives = 1 + case % 3;
        let flat = table.check(negatives, case as u64);
        let can = can_balance(&table, negatives);
        assert_eq!(
            is_balanced(&flat, alike.len(), negatives),
            can,
            "{columns:?}, negatives {negatives}"
        );
        possible += usize::from(can);
    }
    assert!(possible > 500);
}

#[test]
fn large_tables_are_balanced_in_two_columns_and_near_a_number() {
    let n = 60_000;
    let mut state = 4;
    let mut column = |values: u64| -> Vec<u64> { (0..n).map(|_| noise(&mut state, values)).collect() };
    let (alike, users, texts) = (column(3), column(50), column(9));
    let values: Vec<f64> = column(300).into_iter().map(|value| value as f64).collect();
    for near in [
        None,
        Some(Near {
            values: &values,
            tolerance: 12.5,
        }),
    ] {
        let unlike: [&[u64]; 2] = [&users, &texts];
        let table = Table {
            alike: &alike,
            unlike: &unlike,
            near,
        };
        for negatives in [1, 3] {
            let flat = table.draw(negatives, 5);
            let good = |(row, &other): (usize, &u64)| table.admits(row / negatives, other as usize);
            assert!(flat.iter().enumerate().all(good));
            assert!(is_balanced(&flat, n, negatives));
        }
    }
}

#[test]
fn one_column_is_balanced_where_no_value_owns_more_than_half() {
    // The last is one that a thread shares.
    for (n, users) in [(1_000, 41), (1_000, 2), (150_000, 7)] {
        let (alike, users): (Vec<u64>, Vec<u64>) = (vec![0; n], (0..n as u64).map(|row| row % users).collect());
        let flat = Table {
            alike: &alike,
            unlike: &[&users],
            near: None,
        }
        .draw(4, 9);
        assert!(is_balanced(&flat, n, 4));
        assert!(
            flat.iter()
                .enumerate()
                .all(|(place, &other)| users[place / 4] != users[other as usize])
        );
    }
}

#[test]
fn rows_of_a_value_that_owns_most_are_found_or_given_up_quickly() {
    let n = 200_000;
    let alike = vec![0; n];
    let distinct: Vec<u64> = (0..n as u64).collect();
    let mostly_one: Vec<u64> = (0..n as u64).map(|row| row.saturating_sub(n as u64 - 10)).collect();
    let values: Vec<f64> = (0..n).map(|row| row as f64 / 10.0).collect();
    let both: [&[u64]; 2] = [&distinct, &mostly_one];
    for near in [
        None,
        Some(Near {
            values: &values,
            tolerance: n as f64,
        }),
    ] {
        let flat = Table {
            alike: &alike,
            unlike: &both,
            near,
        }
        .draw(9, 1);
        let good =
            |(place, &other): (usize, &u64)| other != ABSENT && mostly_one[place / 9] != mostly_one[other as usize];
        assert!(flat.iter().enumerate().all(good));
    }
    let nobody = Table {
        alike: &alike,
        unlike: &[&alike],
        near: None,
    }
    .draw(1, 1);
    assert!(nobody.iter().all(|&other| other == ABSENT));
    let too_many = Table {
        alike: &alike,
        unlike: &[&mostly_one],
        near: None,
    }
    .draw(10, 1);
    assert_eq!(too_many[0], ABSENT);
    assert_ne!(too_many[too_many.len() - 1], ABSENT);
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let n = 150_000;
    let tasks: Vec<u64> = (0..n).map(|row| row % 2).collect();
    let users: Vec<u64> = (0..n).map(|row| row / 5).collect();
    let texts: Vec<u64> = (0..n).map(|row| row * row % 1_013).collect();
    let values: Vec<f64> = (0..n).map(|row| (row * 7 % 1_000) as f64).collect();
    let draw = || {
        let near = Near {
            values: &values,
            tolerance: 20.0,
        };
        [None, Some(near)].map(|near| counterparts_within(&tasks, &[&users, &texts], near, 3, 11).unwrap())
    };
    let alone = on_threads(1, draw);
    assert_eq!(alone, on_threads(2, draw));
    assert_eq!(alone, on_threads(8, draw));
}

fn chi_square(counts: &[u64]) -> f64 {
    let (expected, freedom) = (
        counts.iter().sum::<u64>() as f64 / counts.len() as f64,
        counts.len() as f64 - 1.0,
    );
    let statistic: f64 = counts
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// Counts of each admissible counterpart of row `row` over seeds.
fn drawn(table: &Table, row: usize, negatives: usize) -> Vec<u64> {
    let mut counts = vec![0; table.alike.len()];
    for seed in 0..20_000 {
        let flat = table.draw(negatives, seed);
        flat[row * negatives..][..negatives]
            .iter()
            .for_each(|&other| counts[other as usize] += 1);
    }
    table.admissible(row).into_iter().map(|other| counts[other]).collect()
}

#[test]
fn rows_without_shifts_draw_uniformly_from_their_admissible_rows() {
    let table = Table {
        alike: &[0; 9],
        unlike: &[&[0, 0, 0, 0, 0, 1, 1, 2, 3]],
        near: None,
    };
    for (row, admissible) in [(0, 4), (5, 7), (8, 8)] {
        let counts = drawn(&table, row, 1);
        assert_eq!(counts.len(), admissible);
        assert!(chi_square(&counts) < SIGMAS, "row {row}: {counts:?}");
        // Two without replacement spread less than two independent draws, so this bound is a loose one.
        assert!(chi_square(&drawn(&table, row, 2)) < SIGMAS);
    }
}

#[test]
fn equal_runs_draw_uniformly_from_their_admissible_rows() {
    for users in [
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ] {
        let counts = drawn(
            &Table {
                alike: &[0; 12],
                unlike: &[&users],
                near: None,
            },
            0,
            1,
        );
        assert_eq!(counts.len(), if users[1] == 0 { 10 } else { 11 });
        assert!(chi_square(&counts) < SIGMAS, "{counts:?}");
    }
}

#[test]
fn errors_say_what_was_expected_and_what_was_got() {
    assert_eq!(counterparts_within(&[1], &[], None, 1, 0), Err(Error::NoDiffer));
    assert_eq!(counterparts_within(&[1], &[&[1]], None, 0, 0), Err(Error::NoNegatives));
    let refusal = |differ: &[&[u64]], values: &[f64], tolerance| {
        counterparts_within(&[1, 2], differ, Some(Near { values, tolerance }), 1, 0)
            .unwrap_err()
            .to_string()
    };
    let message = refusal(&[&[1, 2], &[1]], &[1.0, 2.0], 1.0);
    assert!(
        message.starts_with("differ_codes[1]: expected length 2, got 1; give one entry"),
        "{message}"
    );
    assert!(refusal(&[&[1, 2]], &[1.0], 1.0).starts_with("near: expected length 2, got 1"));
    assert!(refusal(&[&[1, 2]], &[1.0, 2.0], -1.0).starts_with("tolerance: expected a number of at least 0, got -1;"));
    assert!(
        refusal(&[&[1, 2]], &[1.0, 2.0], f64::NAN).starts_with("tolerance: expected a number of at least 0, got NaN;")
    );
}
