//! Checksums: any other bit, length or border is another one; a file has that of its bytes.

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use mipo::checksum::{checksum, checksum_file};

use crate::data::on_threads;

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
    let mut content = bytes(600);
    let mut seen = HashSet::from([checksum(&[&content])]);
    for place in 0..content.len() {
        for bit in 0..8 {
            content[place] ^= 1 << bit;
            assert!(seen.insert(checksum(&[&content])), "bit {bit} of byte {place}");
            content[place] ^= 1 << bit;
        }
    }
}

#[test]
fn contentfar_apart_change_it_on_any_number_of_on_threads() {
    let mut content = bytes((3 << 20) + 5);
    let whole = checksum(&[&content]);
    assert_eq!(
        on_threads(1, || checksum(&[&content])),
        on_threads(5, || checksum(&[&content]))
    );
    for place in [
        0,
        (1 << 20) - 1,
        1 << 20,
        2 << 20,
        (3 << 20) - 1,
        3 << 20,
        (3 << 20) + 4,
    ] {
        content[place] ^= 1;
        assert_ne!(checksum(&[&content]), whole, "byte {place}");
        content[place] ^= 1;
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
    let content = bytes(2 << 20);
    let (one, other) = content.split_at(1 << 20);
    assert_ne!(checksum(&[&content]), checksum(&[&[other, one].concat()]));
}

#[test]
fn a_file_has_the_checksum_of_its_contentbut_for_the_hole() {
    const BLOCK: u64 = 1 << 20;
    for length in [0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
        let content = bytes(length as usize);
        let file = Written::new(&format!("hole-{length}"), &content);
        let holes: [Range<u64>; 5] = [0..0, 0..9, 40..72, BLOCK - 5..BLOCK + 5, 2 * BLOCK..9 * BLOCK];
        for hole in holes {
            let mut zeroed = content.clone();
            let within = |place: u64| place.min(length) as usize;
            zeroed[within(hole.start)..within(hole.end)].fill(0);
            let expected = checksum(&[&zeroed]);
            assert_eq!(
                checksum_file(&file.0, hole.clone()).unwrap(),
                expected,
                "{length} {hole:?}"
            );
            assert_eq!(
                on_threads(3, || checksum_file(&file.0, hole.clone()).unwrap()),
                expected
            );
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
