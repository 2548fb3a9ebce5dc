//! Laws of the counterparts, and an obvious twin of the constrained ones.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};

use mipo::contrast::{ABSENT, counterparts, counterparts_within};
use mipo::error::Error;
use mipo::random::Permutation;

/// χ² of a fair table lies this many standard deviations above its mean about once in 30,000 draws.
const SIGMAS: f64 = 4.0;

fn threads<T: Send>(count: usize, work: impl Fn() -> T + Send + Sync) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .unwrap()
        .install(work)
}

/// How far χ² of `counts` against a uniform law lies from its mean, in standard deviations.
fn chi_square(counts: &[u64], freedom: f64) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
    let statistic: f64 = counts
        .iter()
        .map(|&count| (count as f64 - expected).powi(2) / expected)
        .sum();
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// Numbers for test data; the library's own stream is not public.
fn noise(state: &mut u64, n: u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % n
}

fn sizes() -> impl Iterator<Item = u64> {
    (2..70).chain([
        100, 255, 256, 257, 1_000, 4_095, 4_096, 4_097, 4_098, 5_000, 10_007, 65_536, 100_003,
    ])
}

#[test]
fn counterparts_are_distinct_other_rows_and_every_row_is_used_equally() {
    for n in sizes() {
        for negatives in [1, 2, 5, n - 1].into_iter().filter(|&k| k < n && n * k < 1_000_000) {
            let flat = counterparts(n, negatives, 7 * n, 0, n).unwrap();
            let mut uses = vec![0; n as usize];
            for (row, found) in flat.chunks_exact(negatives as usize).enumerate() {
                assert!(
                    !found.contains(&(row as u64)),
                    "n {n}: row {row} is its own counterpart"
                );
                assert_eq!(
                    found.iter().collect::<HashSet<_>>().len() as u64,
                    negatives,
                    "n {n}: row {row} repeats"
                );
                found.iter().for_each(|&other| uses[other as usize] += 1);
            }
            assert!(
                uses.iter().all(|&count| count == negatives),
                "n {n}, negatives {negatives}: not balanced"
            );
        }
    }
}

#[test]
fn a_slice_is_the_slice_of_the_whole_and_fewer_are_the_first_of_more() {
    for n in [2, 3, 50, 4_096, 4_097, 30_000] {
        let negatives = (n - 1).min(3);
        let whole = counterparts(n, negatives, 3, 0, n).unwrap();
        for (start, stop) in [(0, 0), (0, 1), (n / 3, n / 2), (n - 1, n), (n, n)] {
            let part = &whole[(start * negatives) as usize..(stop * negatives) as usize];
            assert_eq!(counterparts(n, negatives, 3, start, stop).unwrap(), part);
        }
        let first: Vec<u64> = whole.chunks_exact(negatives as usize).map(|found| found[0]).collect();
        assert_eq!(counterparts(n, 1, 3, 0, n).unwrap(), first);
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let codes: Vec<u64> = (0..40_000).map(|row| row % 7).collect();
    let users: Vec<u64> = (0..40_000).map(|row| row / 5).collect();
    let texts: Vec<u64> = (0..40_000).map(|row| row * row % 1_013).collect();
    let draw = || {
        let free = counterparts(50_000, 3, 11, 0, 50_000).unwrap();
        (free, counterparts_within(&codes, &[&users, &texts], 3, 11).unwrap())
    };
    let alone = threads(1, draw);
    assert_eq!(alone, threads(2, draw));
    assert_eq!(alone, threads(8, draw));
}

#[test]
fn seeds_change_the_counterparts() {
    for n in [20, 5_000] {
        let draws: HashSet<_> = (0..50).map(|seed| counterparts(n, 1, seed, 0, n).unwrap()).collect();
        assert_eq!(draws.len(), 50);
    }
}

#[test]
fn the_largest_set_still_has_rows_and_counterparts() {
    let n = 1 << 63;
    let found = counterparts(n, 4, 1, n - 100, n).unwrap();
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), 400);
    assert!(
        found
            .chunks_exact(4)
            .zip(n - 100..n)
            .all(|(found, row)| found.iter().all(|&o| o < n && o != row))
    );
}

#[test]
fn a_permutation_and_its_inverse_undo_each_other() {
    for n in sizes().chain([1]) {
        for permutation in [Permutation::new(n, 5), Permutation::feistel(n, 5)] {
            let image: HashSet<u64> = (0..n).map(|place| permutation.at(place)).collect();
            assert_eq!(image.len() as u64, n);
            assert!((0..n).all(|place| permutation.place_of(permutation.at(place)) == place && image.contains(&place)));
        }
    }
    for n in [
        (1 << 32) - 1,
        1 << 32,
        (1 << 40) + 12_345,
        (1 << 62) + 1,
        (1 << 63) - 1,
        1 << 63,
    ] {
        let permutation = Permutation::new(n, 5);
        let mut state = n;
        for place in (0..1_000)
            .map(|_| noise(&mut state, 1 << 31).wrapping_mul(0x1_0000_0003) % n)
            .chain([0, n - 1])
        {
            assert!(permutation.at(place) < n);
            assert_eq!(permutation.place_of(permutation.at(place)), place);
        }
    }
}

#[test]
fn the_table_shuffles_fairly() {
    let mut counts = HashMap::new();
    for key in 0..24 * 500 {
        let permutation = Permutation::new(4, key);
        *counts
            .entry((0..4).map(|place| permutation.at(place)).collect::<Vec<_>>())
            .or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 24);
    let counts: Vec<u64> = counts.into_values().collect();
    assert!(chi_square(&counts, 23.0).abs() < SIGMAS);
}

/// The cells of an n × n table whose row is not their column.
fn off_diagonal(counts: Vec<u64>, n: u64) -> Vec<u64> {
    counts
        .into_iter()
        .enumerate()
        .filter(|(cell, _)| !(*cell as u64).is_multiple_of(n + 1))
        .map(|(_, count)| count)
        .collect()
}

/// Pairs (row, counterpart) under shift `shift` of a permutation, over many keys.
fn pairs(n: u64, keys: u64, permute: impl Fn(u64) -> Permutation) -> f64 {
    let mut counts = vec![0; (n * n) as usize];
    for key in 0..keys {
        let permutation = permute(key);
        for row in 0..n {
            let other = permutation.at((permutation.place_of(row) + 1 + key % (n - 1)) % n);
            counts[(row * n + other) as usize] += 1;
        }
    }
    // Rows and columns of the table have fixed sums: the freedom of a derangement's table.
    chi_square(&off_diagonal(counts, n), (n * n - 3 * n + 1) as f64)
}

#[test]
fn eight_rounds_pair_rows_fairly() {
    for n in [33, 65, 257] {
        let sigmas = pairs(n, 40 * n, |key| Permutation::feistel(n, key));
        assert!(sigmas.abs() < SIGMAS, "n {n}: {sigmas}");
    }
}

#[test]
fn eight_rounds_scatter_neighbours_fairly() {
    for n in [17, 65, 130] {
        let mut counts = vec![0; (n * n) as usize];
        for key in 0..20 * n * n {
            let permutation = Permutation::feistel(n, key);
            counts[(permutation.at(3) * n + permutation.at(4)) as usize] += 1;
        }
        let sigmas = chi_square(&off_diagonal(counts, n), (n * n - n - 1) as f64);
        assert!(sigmas.abs() < SIGMAS, "n {n}: {sigmas}");
    }
}

#[test]
fn the_table_pairs_rows_fairly() {
    for n in [5, 12, 50, 257] {
        let sigmas = pairs(n, 40 * n, |key| Permutation::new(n, key));
        assert!(sigmas.abs() < SIGMAS, "n {n}: {sigmas}");
    }
}

/// What makes two rows a pair, written down once.
fn admits(alike: &[u64], unlike: &[&[u64]], row: usize, other: usize) -> bool {
    alike[row] == alike[other] && unlike.iter().all(|codes| codes[row] != codes[other])
}

fn check_within(alike: &[u64], unlike: &[&[u64]], negatives: usize, seed: u64) {
    let flat = counterparts_within(alike, unlike, negatives as u64, seed).unwrap();
    assert_eq!(flat.len(), alike.len() * negatives);
    for (row, found) in flat.chunks_exact(negatives).enumerate() {
        let admissible = (0..alike.len())
            .filter(|&other| admits(alike, unlike, row, other))
            .count();
        if admissible < negatives {
            assert!(
                found.iter().all(|&other| other == ABSENT),
                "row {row} has {admissible} admissible rows"
            );
        } else {
            assert!(
                found.iter().all(|&other| admits(alike, unlike, row, other as usize)),
                "row {row}: {found:?}"
            );
            assert_eq!(found.iter().collect::<HashSet<_>>().len(), negatives);
        }
    }
}

#[test]
fn constrained_counterparts_are_admissible_and_absent_exactly_where_too_few_are() {
    let mut state = 1;
    for case in 0..3_000 {
        let n = noise(&mut state, 30) as usize;
        let mut column = || {
            let values = 1 + noise(&mut state, 8);
            (0..n)
                .map(|_| noise(&mut state, values).wrapping_mul(0x9e37_79b9))
                .collect::<Vec<u64>>()
        };
        let columns = [column(), column(), column(), column()];
        let unlike: Vec<&[u64]> = columns[1..2 + case % 3].iter().map(Vec::as_slice).collect();
        check_within(&columns[0], &unlike, 1 + case % 4, case as u64);
    }
}

#[test]
fn one_differ_column_is_balanced_where_no_value_owns_more_than_half() {
    let alike = vec![0; 1_000];
    let users: Vec<u64> = (0..1_000).map(|row| row % 41).collect();
    let mut uses = vec![0; 1_000];
    counterparts_within(&alike, &[&users], 4, 9)
        .unwrap()
        .iter()
        .for_each(|&other| uses[other as usize] += 1);
    assert!(uses.iter().all(|&count| count == 4));
}

#[test]
fn rows_of_a_value_that_owns_most_are_found_or_given_up_quickly() {
    let n = 200_000;
    let alike = vec![0; n];
    let distinct: Vec<u64> = (0..n as u64).collect();
    let mostly_one: Vec<u64> = (0..n as u64).map(|row| row.saturating_sub(n as u64 - 10)).collect();
    let flat = counterparts_within(&alike, &[&distinct, &mostly_one], 9, 1).unwrap();
    assert!(flat.chunks_exact(9).enumerate().all(|(row, found)| {
        found
            .iter()
            .all(|&other| other != ABSENT && mostly_one[row] != mostly_one[other as usize])
    }));
    let nobody = counterparts_within(&alike, &[&alike], 1, 1).unwrap();
    assert!(nobody.iter().all(|&other| other == ABSENT));
    let too_many = counterparts_within(&alike, &[&mostly_one], 10, 1).unwrap();
    assert_eq!(too_many[0], ABSENT);
    assert_ne!(too_many[too_many.len() - 1], ABSENT);
}

/// Counts of each counterpart of row `row` over seeds.
fn drawn(row: usize, alike: &[u64], unlike: &[&[u64]], negatives: u64) -> Vec<u64> {
    let mut counts = vec![0; alike.len()];
    for seed in 0..20_000 {
        let flat = counterparts_within(alike, unlike, negatives, seed).unwrap();
        let found = &flat[row * negatives as usize..][..negatives as usize];
        found.iter().for_each(|&other| counts[other as usize] += 1);
    }
    counts
        .into_iter()
        .enumerate()
        .filter(|(other, _)| admits(alike, unlike, row, *other))
        .map(|(_, c)| c)
        .collect()
}

#[test]
fn rows_without_shifts_draw_uniformly_from_their_admissible_rows() {
    let alike = [0; 9];
    let users = [0, 0, 0, 0, 0, 1, 1, 2, 3];
    for (row, admissible) in [(0, 4), (5, 7), (8, 8)] {
        let counts = drawn(row, &alike, &[&users], 1);
        assert_eq!(counts.len(), admissible);
        assert!(
            chi_square(&counts, admissible as f64 - 1.0) < SIGMAS,
            "row {row}: {counts:?}"
        );
        // Two without replacement spread less than two independent draws, so this bound is a loose one.
        assert!(chi_square(&drawn(row, &alike, &[&users], 2), admissible as f64 - 1.0) < SIGMAS);
    }
}

#[test]
fn equal_runs_draw_uniformly_from_their_admissible_rows() {
    let counts = drawn(0, &[0; 12], &[&[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]], 1);
    assert_eq!(counts.len(), 10);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(*least > 1_500 && *most < 2_500, "{counts:?}");
}

#[test]
fn errors_say_what_was_expected_what_came_and_what_to_do() {
    assert_eq!(counterparts(1, 1, 0, 0, 1), Err(Error::TooFewRows(1)));
    assert_eq!(
        counterparts((1 << 63) + 1, 1, 0, 0, 1),
        Err(Error::TooManyRows((1 << 63) + 1))
    );
    assert_eq!(counterparts(5, 0, 0, 0, 5), Err(Error::NoNegatives));
    assert_eq!(
        counterparts(5, 5, 0, 0, 5),
        Err(Error::TooManyNegatives { negatives: 5, n: 5 })
    );
    assert_eq!(
        counterparts(5, 1, 0, 3, 2),
        Err(Error::Slice {
            start: 3,
            stop: 2,
            n: 5
        })
    );
    assert_eq!(
        counterparts(5, 1, 0, 3, 6),
        Err(Error::Slice {
            start: 3,
            stop: 6,
            n: 5
        })
    );
    assert!(matches!(
        counterparts(1 << 60, 1 << 40, 0, 0, 1 << 60),
        Err(Error::Memory { .. })
    ));
    assert!(matches!(
        counterparts(1 << 60, 1, 0, 0, 1 << 60),
        Err(Error::Memory { .. })
    ));
    assert_eq!(counterparts_within(&[1], &[], 1, 0), Err(Error::NoDiffer));
    assert_eq!(counterparts_within(&[1], &[&[1]], 0, 0), Err(Error::NoNegatives));
    let message = counterparts_within(&[1, 2], &[&[1, 2], &[1]], 1, 0)
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("differ_codes[1]: expected length 2, got 1; give one entry"),
        "{message}"
    );
}
