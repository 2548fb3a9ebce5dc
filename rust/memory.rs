//! Memory: whether there is enough of it. Rust's collections abort the process where there is none, so every call that
//! needs much asks first. Knows no algorithm.

use crate::error::Error;

/// What each call takes for threads and small things, whatever its arguments.
const BESIDES: usize = 1 << 26;

/// Asks the system for `count` times `each` bytes and gives them back.
///
/// Where memory is promised and not reserved (Linux without limits), too much is refused only if the machine does not
/// have it at all.
///
/// # Errors
/// [`Error::NoMemory`] where the system refuses.
pub(crate) fn expect(count: usize, each: usize) -> Result<(), Error> {
    let bytes = count.saturating_mul(each).saturating_add(BESIDES);
    let asked = Vec::<u8>::new().try_reserve_exact(bytes);
    asked.map_err(|_| Error::NoMemory { mebibytes: bytes >> 20 })
}

/// The bytes of all texts, and `each` for every one of them.
pub(crate) fn bytes(texts: &[&str], each: usize) -> usize {
    texts.iter().map(|text| text.len() + each).sum()
}
