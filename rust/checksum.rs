//! Checksums of bytes and of files, on all threads. Knows nothing of what they mean.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use crate::interrupt;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes that a thread hashes in one go.
const BLOCK: usize = 1 << 20;

/// 128 bits of the buffers' lengths and bytes: XXH3 of each length and of the XXH3 of each block, at the speed of
/// memory.
///
/// It detects what disks and copies do to bytes. It is no defence against somebody who changes them on purpose.
///
/// # Examples
/// ```
/// use mipo::checksum::checksum;
///
/// let whole = checksum(&[b"prompt", b"response"]);
/// assert_eq!(checksum(&[b"prompt", b"response"]), whole);
/// assert_ne!(checksum(&[b"promp", b"tresponse"]), whole, "borders count");
/// ```
#[must_use]
pub fn checksum(buffers: &[&[u8]]) -> u128 {
    let mut digest = Vec::new();
    for buffer in buffers {
        // A few bytes wait for no thread: in a forked process there is none.
        let blocks = if buffer.len() <= BLOCK {
            buffer.chunks(BLOCK).map(xxh3_128).collect()
        } else {
            buffer.par_chunks(BLOCK).map(xxh3_128).collect::<Vec<_>>()
        };
        append(&mut digest, buffer.len() as u64, &blocks);
    }
    xxh3_128(&digest)
}

/// 128 bits of each text, high half first: the same wherever they are computed.
///
/// # Examples
/// ```
/// use mipo::checksum::digests;
///
/// let same = digests(&["prompt", "Prompt", "prompt"]);
/// assert_eq!(same[0], same[2]);
/// assert_ne!(same[0], same[1]);
/// ```
#[must_use]
pub fn digests(texts: &[&str]) -> Vec<[u64; 2]> {
    let halves = |digest: u128| [(digest >> 64) as u64, digest as u64];
    texts.par_iter().map(|text| halves(xxh3_128(text.as_bytes()))).collect()
}

/// The checksum of a file's bytes, those of `hole` read as zeros: a file may hold its own checksum there.
///
/// A thread holds a block at a time; nothing is mapped, so that a file that is cut off meanwhile is an error.
///
/// # Errors
/// Those of the system for a file that cannot be read.
pub fn checksum_file(path: &Path, hole: Range<u64>) -> io::Result<u128> {
    let length = path.metadata()?.len();
    let open = || (File::open(path), Vec::new());
    let hash = |(file, bytes): &mut (io::Result<File>, Vec<u8>), block: u64| {
        interrupt::check();
        let file = file.as_mut().map_err(|error| io::Error::from(error.kind()))?;
        let start = block * BLOCK as u64;
        let end = length.min(start + BLOCK as u64);
        bytes.resize((end - start) as usize, 0);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(bytes)?;
        let within = |place: u64| (place.clamp(start, end) - start) as usize;
        bytes[within(hole.start)..within(hole.end)].fill(0);
        Ok(xxh3_128(bytes))
    };
    let count = length.div_ceil(BLOCK as u64);
    let blocks = if count <= 1 {
        let mut file = open();
        (0..count).map(|block| hash(&mut file, block)).collect()
    } else {
        (0..count)
            .into_par_iter()
            .map_init(open, hash)
            .collect::<io::Result<Vec<_>>>()
    };
    let mut digest = Vec::new();
    append(&mut digest, length, &blocks?);
    Ok(xxh3_128(&digest))
}

/// Appends what stands for one buffer: its length and the hashes of its blocks.
fn append(digest: &mut Vec<u8>, length: u64, blocks: &[u128]) {
    digest.extend_from_slice(&length.to_le_bytes());
    digest.extend(blocks.iter().flat_map(|block| block.to_le_bytes()));
}
