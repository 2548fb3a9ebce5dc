//! Laws of the counterparts.

use std::collections::HashSet;

use mipo::error::Error;
use mipo::negatives::Draw::{Balanced, Independent};
use mipo::negatives::counterparts;

use crate::data::on_threads;

/// Numbers of rows, with and without a table for their permutation.
pub(crate) fn sizes() -> impl Iterator<Item = u64> {
    (2..70).chain([
        100, 255, 256, 257, 1_000, 4_095, 4_096, 4_097, 4_098, 5_000, 8_191, 8_192, 8_193, 10_007, 65_536, 100_003,
    ])
}

#[test]
fn counterparts_are_distinct_other_rows_and_every_row_is_used_equally() {
    for n in sizes() {
        for negatives in [1, 2, 4, 5, 40, n - 1]
            .into_iter()
            .filter(|&k| k < n && n * k < 1_000_000)
        {
            for draw in [Balanced, Independent] {
                let flat = counterparts(n, negatives, 7 * n, 0, n, draw).unwrap();
                let mut uses = vec![0; n as usize];
                for (row, others) in flat.chunks_exact(negatives as usize).enumerate() {
                    let case = || format!("{draw:?}, n {n}, negatives {negatives}, row {row}");
                    assert!(!others.contains(&(row as u64)), "{}: is its own counterpart", case());
                    let distinct = others.iter().collect::<HashSet<_>>().len() as u64;
                    assert_eq!(distinct, negatives, "{}: repeats", case());
                    others.iter().for_each(|&other| uses[other as usize] += 1);
                }
                if draw == Balanced {
                    assert!(
                        uses.iter().all(|&count| count == negatives),
                        "n {n}, negatives {negatives}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_used_rows_are_k_copies_of_all_rows() {
    let (n, negatives) = (12_345, 3);
    let mut used = counterparts(n, negatives, 5, 0, n, Balanced).unwrap();
    used.sort_unstable();
    let copies: Vec<u64> = (0..n).flat_map(|row| [row; 3]).collect();
    assert_eq!(used, copies);
}

#[test]
fn a_slice_is_the_slice_of_the_whole_and_fewer_are_the_first_of_more() {
    for n in [2, 3, 50, 4_096, 4_097, 30_000] {
        for (draw, negatives) in [(Balanced, 3), (Independent, 3), (Independent, 4), (Independent, 48)] {
            let negatives = (n - 1).min(negatives);
            let whole = counterparts(n, negatives, 3, 0, n, draw).unwrap();
            for (start, stop) in [(0, 0), (0, 1), (n / 3, n / 2), (n - 1, n), (n, n)] {
                let part = &whole[(start * negatives) as usize..(stop * negatives) as usize];
                assert_eq!(counterparts(n, negatives, 3, start, stop, draw).unwrap(), part);
            }
            for fewer in [1, 2, 4].into_iter().filter(|&fewer| fewer <= negatives) {
                let rows = whole.chunks_exact(negatives as usize);
                let first: Vec<u64> = rows.flat_map(|others| &others[..fewer as usize]).copied().collect();
                assert_eq!(counterparts(n, fewer, 3, 0, n, draw).unwrap(), first);
            }
        }
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    for draw in [Balanced, Independent] {
        let drawn = || counterparts(50_000, 3, 11, 0, 50_000, draw).unwrap();
        let alone = on_threads(1, drawn);
        assert_eq!(alone, on_threads(2, drawn));
        assert_eq!(alone, on_threads(8, drawn));
    }
}

/// What this version draws: a change here changes every result for every seed, and belongs in CHANGELOG.md.
#[test]
fn the_same_bytes_on_any_machine() {
    let drawn = |n, draw| counterparts(n, 2, 42, 3, 5, draw).unwrap();
    assert_eq!(drawn(10, Balanced), GOLDEN[0]);
    assert_eq!(drawn(1_000_000, Balanced), GOLDEN[1]);
    assert_eq!(drawn(1 << 63, Balanced), GOLDEN[2]);
    assert_eq!(drawn(10, Independent), GOLDEN[3]);
    assert_eq!(drawn(1 << 63, Independent), GOLDEN[4]);
}

const GOLDEN: [[u64; 4]; 5] = [
    [4, 6, 8, 5],
    [252_200, 30_578, 936_587, 169_757],
    [
        504_527_707_289_736_087,
        8_411_444_822_941_836_532,
        444_330_455_463_092_752,
        6_600_649_284_465_629_352,
    ],
    [0, 4, 5, 1],
    [
        418_480_916_697_541_417,
        3_230_760_103_910_066_487,
        4_584_076_325_632_201_142,
        4_752_947_605_977_689_356,
    ],
];

#[test]
fn seeds_change_the_counterparts() {
    for n in [20, 5_000] {
        for draw in [Balanced, Independent] {
            let draws: HashSet<_> = (0..50)
                .map(|seed| counterparts(n, 1, seed, 0, n, draw).unwrap())
                .collect();
            assert_eq!(draws.len(), 50);
        }
    }
}

#[test]
fn the_largest_set_still_has_rows_and_counterparts() {
    let n = 1 << 63;
    for draw in [Balanced, Independent] {
        let drawn = counterparts(n, 4, 1, n - 100, n, draw).unwrap();
        assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), 400);
        let mut rows = drawn.chunks_exact(4).zip(n - 100..n);
        assert!(rows.all(|(others, row)| others.iter().all(|&other| other < n && other != row)));
    }
}

#[test]
fn errors_say_what_was_expected_and_what_was_got() {
    let draw = |n, negatives, start, stop| counterparts(n, negatives, 0, start, stop, Balanced);
    assert_eq!(draw(1, 1, 0, 1), Err(Error::TooFewRows(1)));
    assert_eq!(draw((1 << 63) + 1, 1, 0, 1), Err(Error::TooManyRows((1 << 63) + 1)));
    assert_eq!(draw(5, 0, 0, 5), Err(Error::NoNegatives));
    assert_eq!(draw(5, 5, 0, 5), Err(Error::TooManyNegatives { negatives: 5, n: 5 }));
    let slice = |start, stop| Err(Error::Slice { start, stop, n: 5 });
    assert_eq!(draw(5, 1, 3, 2), slice(3, 2));
    assert_eq!(draw(5, 1, 3, 6), slice(3, 6));
    assert!(matches!(draw(1 << 60, 1 << 40, 0, 1 << 60), Err(Error::Memory { .. })));
    assert!(matches!(draw(1 << 60, 1, 0, 1 << 60), Err(Error::Memory { .. })));
}
