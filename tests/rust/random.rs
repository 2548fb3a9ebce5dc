//! Laws of permutations.

use std::collections::HashSet;

use mipo::random::{Permutation, ROUNDS};

use crate::data::noise;
use crate::negatives::sizes;

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
