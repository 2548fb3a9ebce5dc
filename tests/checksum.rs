//! Checksums: any other bit, length or border is another one; a file has that of its bytes.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use mipo::checksum::{checksum, checksum_file};

fn threads<T: Send>(count: usize, work: impl Fn() -> T + Send + Sync) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    pool.install(work)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u64)
        .map(|place| (place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

/// A file that is gone when the test ends.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("mipo-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn any_flipped_bit_changes_it() {
    let mut given = bytes(600);
    let mut seen = HashSet::from([checksum(&[&given])]);
    for place in 0..given.len() {
        for bit in 0..8 {
            given[place] ^= 1 << bit;
            assert!(seen.insert(checksum(&[&given])), "bit {bit} of byte {place}");
            given[place] ^= 1 << bit;
        }
    }
}

#[test]
fn bytes_far_apart_change_it_on_any_number_of_threads() {
    let mut given = bytes((3 << 20) + 5);
    let whole = checksum(&[&given]);
    assert_eq!(threads(1, || checksum(&[&given])), threads(5, || checksum(&[&given])));
    for place in [
        0,
        (1 << 20) - 1,
        1 << 20,
        2 << 20,
        (3 << 20) - 1,
        3 << 20,
        (3 << 20) + 4,
    ] {
        given[place] ^= 1;
        assert_ne!(checksum(&[&given]), whole, "byte {place}");
        given[place] ^= 1;
    }
}

#[test]
fn any_moved_border_changes_it() {
    let zeros = [0; 12];
    let mut seen = HashSet::from([checksum(&[]), checksum(&[&[]])]);
    for length in 0..=zeros.len() {
        let (one, other) = zeros.split_at(length);
        assert!(seen.insert(checksum(&[one, other])), "border at {length}");
        assert!(
            seen.insert(checksum(&[one, other, &[]])),
            "an empty buffer after {length}"
        );
        assert_eq!(seen.insert(checksum(&[one])), length > 0, "{length} bytes alone");
    }
}

#[test]
fn blocks_in_another_order_are_other_bytes() {
    let given = bytes(2 << 20);
    let (one, other) = given.split_at(1 << 20);
    assert_ne!(checksum(&[&given]), checksum(&[&[other, one].concat()]));
}

#[test]
fn a_file_has_the_checksum_of_its_bytes_but_for_the_hole() {
    const BLOCK: u64 = 1 << 20;
    for length in [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
        let given = bytes(length as usize);
        let file = Written::new(&format!("hole-{length}"), &given);
        let holes: [Range<u64>; 5] = [0..0, 0..9, 40..72, BLOCK - 5..BLOCK + 5, 2 * BLOCK..9 * BLOCK];
        for hole in holes {
            let mut zeroed = given.clone();
            let within = |place: u64| place.min(length) as usize;
            zeroed[within(hole.start)..within(hole.end)].fill(0);
            let expected = checksum(&[&zeroed]);
            assert_eq!(
                checksum_file(&file.0, hole.clone()).unwrap(),
                expected,
                "{length} {hole:?}"
            );
            assert_eq!(threads(3, || checksum_file(&file.0, hole.clone()).unwrap()), expected);
        }
    }
}

#[test]
fn no_file_is_an_error() {
    let gone = std::env::temp_dir().join("mipo-no-such-file");
    assert_eq!(
        checksum_file(&gone, 0..0).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}
