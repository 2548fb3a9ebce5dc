//! Laws of the counterparts.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use mipo::error::Error;
use mipo::negatives::draw::Draw::{Balanced, Independent};
use mipo::negatives::draw::counterparts;
use mipo::random::{Permutation, ROUNDS};

fn threads<T: Send>(count: usize, work: impl Fn() -> T + Send + Sync) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build()
        .unwrap()
        .install(work)
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
                for (row, found) in flat.chunks_exact(negatives as usize).enumerate() {
                    let case = || format!("{draw:?}, n {n}, negatives {negatives}, row {row}");
                    assert!(!found.contains(&(row as u64)), "{}: is its own counterpart", case());
                    let distinct = found.iter().collect::<HashSet<_>>().len() as u64;
                    assert_eq!(distinct, negatives, "{}: repeats", case());
                    found.iter().for_each(|&other| uses[other as usize] += 1);
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
                let first: Vec<u64> = rows.flat_map(|found| &found[..fewer as usize]).copied().collect();
                assert_eq!(counterparts(n, fewer, 3, 0, n, draw).unwrap(), first);
            }
        }
    }
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    for draw in [Balanced, Independent] {
        let drawn = || counterparts(50_000, 3, 11, 0, 50_000, draw).unwrap();
        let alone = threads(1, drawn);
        assert_eq!(alone, threads(2, drawn));
        assert_eq!(alone, threads(8, drawn));
    }
}

/// What this version draws: a change here changes every result for every seed, and belongs into CHANGELOG.md.
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
        let found = counterparts(n, 4, 1, n - 100, n, draw).unwrap();
        assert_eq!(found.iter().collect::<HashSet<_>>().len(), 400);
        let mut rows = found.chunks_exact(4).zip(n - 100..n);
        assert!(rows.all(|(found, row)| found.iter().all(|&other| other < n && other != row)));
    }
}

#[test]
fn a_permutation_and_its_inverse_undo_each_other() {
    for n in sizes().chain([1]) {
        for permutation in [Permutation::new(n, 5), Permutation::feistel(n, 5, ROUNDS)] {
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

/// Numbers side by side in vectors, and one alone, take the same rounds.
#[test]
fn many_at_once_are_each_alone() {
    for n in [4_097, 1_000_003, (1 << 63) - 1] {
        let permutation = Permutation::new(n, 9);
        let places: Vec<u64> = (0..77).map(|place| n / 80 * place).collect();
        let mut many = places.clone();
        permutation.at_each(&mut many);
        assert!(places.iter().zip(&many).all(|(&place, &x)| permutation.at(place) == x));
        permutation.place_of_each(&mut many);
        assert_eq!(places, many);
    }
}

#[test]
fn errors_say_what_was_expected_what_came_and_what_to_do() {
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
