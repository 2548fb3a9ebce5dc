//! The threads that a call from Python works on. A forked child has none of its parent's, and a pool without threads
//! waits for ever; so each process has its own.

use std::mem;
use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::Python;
use pyo3::marker::Ungil;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// The pool, and the process that made it.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Does `work` on all threads, without Python's lock.
pub(super) fn detached<T: Send + Ungil>(py: Python<'_>, work: impl FnOnce() -> T + Send + Ungil) -> T {
    py.detach(|| match pool() {
        Some(pool) => pool.install(work),
        None => work(),
    })
}

/// This process's pool; none where no thread can be started.
fn pool() -> Option<Arc<ThreadPool>> {
    let mut known = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match known.as_ref() {
        Some((owner, pool)) if *owner == process::id() => return Some(pool.clone()),
        _ => mem::forget(known.take()), // a parent's: to end its threads would mean to wait for them
    }
    let pool = Arc::new(ThreadPoolBuilder::new().build().ok()?);
    *known = Some((process::id(), pool.clone()));
    Some(pool)
}
