//! The threads that a call from Python works on. A forked child has none of its parent's, and a pool without threads
//! waits for ever; so each process has its own. The calling thread waits, and answers signals meanwhile.

use std::any::Any;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::marker::Ungil;
use pyo3::{PyErr, PyResult, Python};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::Error;
use crate::interrupt::{self, Interrupted};

/// The pool, and the process that made it.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// How long a signal waits at most before Python sees it.
const TICK: Duration = Duration::from_millis(50);

/// Does `work` on all threads, without Python's lock.
///
/// # Errors
/// What a signal's handler raises (KeyboardInterrupt), which ends the work early; no threads.
pub(super) fn detached<T: Send + Ungil>(py: Python<'_>, work: impl FnOnce() -> T + Send + Ungil) -> PyResult<T> {
    let (pool, result, mut signal) = (py.detach(pool)?, Outcome::new(), Ok(()));
    pool.in_place_scope(|scope| {
        scope.spawn(|_| result.put(catch_unwind(AssertUnwindSafe(work))));
        while py.detach(|| result.is_awaited()) {
            if signal.is_ok() {
                signal = py.check_signals();
                interrupt::ask(signal.is_err());
            }
        }
    });
    if signal.is_err() {
        interrupt::ask(false);
    }
    match result.take() {
        Some(Ok(value)) => signal.map(|()| value),
        Some(Err(panic)) if !panic.is::<Interrupted>() => resume_unwind(panic),
        _ => Err(signal.err().unwrap_or_else(|| PyErr::new::<PyKeyboardInterrupt, _>(()))),
    }
}

/// What the work returned, or the payload of its panic.
struct Outcome<T> {
    value: Mutex<Option<Result<T, Box<dyn Any + Send>>>>,
    is_there: Condvar,
}

impl<T> Outcome<T> {
    fn new() -> Self {
        Self {
            value: Mutex::new(None),
            is_there: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<T, Box<dyn Any + Send>>>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, value: Result<T, Box<dyn Any + Send>>) {
        *self.lock() = Some(value);
        self.is_there.notify_all();
    }

    /// Waits for it a while; whether it is still not there.
    fn is_awaited(&self) -> bool {
        let waited = self
            .is_there
            .wait_timeout_while(self.lock(), TICK, |value| value.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_none()
    }

    fn take(&self) -> Option<Result<T, Box<dyn Any + Send>>> {
        self.lock().take()
    }
}

/// This process's pool.
fn pool() -> Result<Arc<ThreadPool>, Error> {
    let mut known = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    match known.as_ref() {
        Some((owner, pool)) if *owner == process::id() => return Ok(pool.clone()),
        _ => mem::forget(known.take()), // a parent's: to end its threads would mean to wait for them
    }
    let built = ThreadPoolBuilder::new().build();
    let pool = Arc::new(built.map_err(|error| Error::NoThreads {
        reason: error.to_string(),
    })?);
    *known = Some((process::id(), pool.clone()));
    Ok(pool)
}
