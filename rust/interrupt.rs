//! Interrupts: work on many threads ends before it is done, as when somebody presses Ctrl-C. Knows no algorithm.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whether all work is to end.
static ASKED: AtomicBool = AtomicBool::new(false);

/// What `check` unwinds with.
pub(crate) struct Interrupted;

/// Unwinds if all work is to end; called between pieces of some milliseconds. rayon carries it to whoever waits.
pub(crate) fn check() {
    if ASKED.load(Relaxed) {
        resume_unwind(Box::new(Interrupted));
    }
}

/// Asks all work to end, or lets it go on.
#[cfg(feature = "python")]
pub(crate) fn ask(end: bool) {
    ASKED.store(end, Relaxed);
}
