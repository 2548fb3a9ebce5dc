//! Every other row is as likely, in pairs, in sequence and along the rows; and a bad permutation is detected.

use std::collections::HashMap;

use mipo::negatives::Draw::{Balanced, Independent};
use mipo::negatives::counterparts;
use mipo::random::{Permutation, ROUNDS};

/// The chance that a fair draw fails anywhere below is 1e-4: there are less than 200 tables and correlations in this
/// file, each of which may lie this many standard deviations off once in two million. The seeds are fixed.
const SIGMAS: f64 = 5.0;

/// A bad permutation lies at least so far off: no accident.
const BAD: f64 = 10.0;

/// Draws for each cell of a table.
const PER_CELL: u64 = 100;

/// How far χ² of `counts` against a uniform law lies from its middle, in standard deviations of a normal law
/// (Wilson and Hilferty 1931), of which too even a table has less than none.
fn sigmas(counts: &[u64], freedom: f64) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let statistic: f64 = counts
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    let spread = 2.0 / (9.0 * freedom);
    ((statistic / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// The cells of an n × n table whose row is not their column.
fn off_diagonal(counts: &[u64], n: u64) -> Vec<u64> {
    let off = |cell: &usize| !(*cell as u64).is_multiple_of(n + 1);
    (0..counts.len()).filter(off).map(|cell| counts[cell]).collect()
}

/// χ² of the pairs (row, counterpart) that `draw` gives for n rows and a seed.
fn pairs(n: u64, draw: impl Fn(u64) -> Vec<u64>, freedom: u64) -> f64 {
    let mut counts = vec![0; (n * n) as usize];
    for seed in 0..PER_CELL * (n - 1) {
        for (row, other) in (0..n).zip(draw(seed)) {
            counts[(row * n + other) as usize] += 1;
        }
    }
    sigmas(&off_diagonal(&counts, n), freedom as f64)
}

#[test]
fn every_other_row_is_as_likely() {
    for n in 5..=50 {
        // Each row of the table sums to the number of seeds; where every row is used equally, each column too.
        let balanced = pairs(
            n,
            |seed| counterparts(n, 1, seed, 0, n, Balanced).unwrap(),
            n * n - 3 * n + 1,
        );
        let independent = pairs(
            n,
            |seed| counterparts(n, 1, seed, 0, n, Independent).unwrap(),
            n * (n - 2),
        );
        assert!(balanced.abs() < SIGMAS, "n {n}: {balanced}");
        assert!(independent.abs() < SIGMAS, "n {n}: {independent}");
    }
}

/// χ² of (first, second) counterpart of row 3.
fn successive(n: u64, draw: impl Fn(u64) -> (u64, u64)) -> f64 {
    let mut counts = HashMap::new();
    let cells = (n - 1) * (n - 2);
    for seed in 0..PER_CELL * cells {
        *counts.entry(draw(seed)).or_insert(0) += 1;
    }
    let mut counts: Vec<u64> = counts.into_values().collect();
    assert!(counts.len() as u64 <= cells);
    counts.resize(cells as usize, 0);
    sigmas(&counts, cells as f64 - 1.0)
}

#[test]
fn successive_counterparts_of_a_row_are_independent() {
    for n in [5, 6, 7, 11, 16, 23, 32, 50] {
        for draw in [Balanced, Independent] {
            let off = successive(n, |seed| {
                let others = counterparts(n, 2, seed, 3, 4, draw).unwrap();
                (others[0], others[1])
            });
            assert!(off.abs() < SIGMAS, "{draw:?}, n {n}: {off}");
        }
    }
}

#[test]
fn shifts_one_after_another_are_detected() {
    let off = successive(16, |seed| {
        let permutation = Permutation::new(16, seed);
        let place = permutation.place_of(3);
        (permutation.at((place + 1) % 16), permutation.at((place + 2) % 16))
    });
    // Fair for one row: it is along the rows that they are chained.
    assert!(off.abs() < SIGMAS);
    let chained = (0..16).all(|row| {
        let permutation = Permutation::new(16, row);
        let next = |row| permutation.at((permutation.place_of(row) + 1) % 16);
        next(next(row)) == permutation.at((permutation.place_of(row) + 2) % 16)
    });
    assert!(chained);
    let drawn = counterparts(5_000, 2, 1, 0, 5_000, Balanced).unwrap();
    let chains = (0..5_000)
        .filter(|row| drawn[2 * row + 1] == drawn[2 * drawn[2 * row] as usize])
        .count();
    assert!(chains < 50);
}

/// χ² of (π(3), π(4)) over keys.
fn neighbours(n: u64, permute: impl Fn(u64) -> Permutation) -> f64 {
    let mut counts = vec![0; (n * n) as usize];
    for key in 0..20 * n * n {
        let permutation = permute(key);
        counts[(permutation.at(3) * n + permutation.at(4)) as usize] += 1;
    }
    sigmas(&off_diagonal(&counts, n), (n * n - n - 1) as f64)
}

#[test]
fn eight_rounds_scatter_neighbours_fairly_where_the_table_would_do() {
    for n in [65, 130, 257] {
        let off = neighbours(n, |key| Permutation::feistel(n, key, ROUNDS));
        assert!(off.abs() < SIGMAS, "n {n}: {off}");
    }
}

#[test]
fn four_rounds_are_detected() {
    for n in [65, 130, 257] {
        let off = neighbours(n, |key| Permutation::feistel(n, key, 4));
        assert!(off > BAD, "n {n}: {off}");
    }
}

/// The next row in the order of a permutation of so many rounds: with one shift for all keys, whatever is wrong with
/// the permutation shows in the pairs.
fn next_of_each(n: u64, key: u64, rounds: usize) -> Vec<u64> {
    let permutation = Permutation::feistel(n, key, rounds);
    (0..n)
        .map(|row| permutation.at((permutation.place_of(row) + 1) % n))
        .collect()
}

#[test]
fn pairs_of_four_rounds_are_detected_and_of_eight_are_fair() {
    for n in [65, 130, 257] {
        let freedom = n * n - 3 * n + 1;
        let bad = pairs(n, |seed| next_of_each(n, seed, 4), freedom);
        assert!(bad > BAD, "n {n}: {bad}");
        let good = pairs(n, |seed| next_of_each(n, seed, ROUNDS), freedom);
        assert!(good.abs() < SIGMAS, "n {n}: {good}");
    }
}

/// Correlation of row i's counterpart with row i + lag's, in standard deviations of independent ones.
fn lag_correlation(drawn: &[u64], lag: usize) -> f64 {
    let n = drawn.len() as f64;
    let (mean, variance) = ((n - 1.0) / 2.0, (n * n - 1.0) / 12.0);
    let pairs = drawn.iter().zip(&drawn[lag..]);
    let sum: f64 = pairs
        .map(|(&one, &other)| (one as f64 - mean) * (other as f64 - mean))
        .sum();
    sum / variance / (n - lag as f64).sqrt()
}

#[test]
fn counterparts_along_the_rows_are_not_correlated() {
    let n = 1_000_000;
    for draw in [Balanced, Independent] {
        for seed in 0..3 {
            let drawn = counterparts(n, 1, seed, 0, n, draw).unwrap();
            for lag in [1, 2, 3, 16, 1_000, 1_024, 4_096] {
                let off = lag_correlation(&drawn, lag);
                assert!(off.abs() < SIGMAS, "{draw:?}, seed {seed}, lag {lag}: {off}");
            }
        }
    }
}

#[test]
fn a_plain_rotation_is_detected() {
    let n = 1_000_000;
    let rotated: Vec<u64> = (0..n).map(|row| (row + 314_159) % n).collect();
    assert!(lag_correlation(&rotated, 1) > BAD);
}

#[test]
fn the_table_shuffles_fairly() {
    let mut counts = HashMap::new();
    for key in 0..24 * 500 {
        let permutation = Permutation::new(4, key);
        let order: Vec<u64> = (0..4).map(|place| permutation.at(place)).collect();
        *counts.entry(order).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    let counts: Vec<u64> = counts.into_values().collect();
    assert!(sigmas(&counts, 23.0).abs() < SIGMAS);
}
