//! Clusters of sets that grow by joining two of them, from any thread: a union-find forest. Knows numbers alone.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Of each set another of its cluster with a smaller number, or itself.
pub(crate) struct Forest(Vec<AtomicU32>);

impl Forest {
    pub(crate) fn new(sets: u32) -> Self {
        Self((0..sets).map(AtomicU32::new).collect())
    }

    /// The set that stands for the cluster of `set`, as far as clusters are joined.
    pub(crate) fn root(&self, mut set: u32) -> u32 {
        loop {
            let parent = self.0[set as usize].load(Relaxed);
            let above = self.0[parent as usize].load(Relaxed);
            if parent == above {
                return parent;
            }
            // Parents only ever move towards the root, so a lost exchange costs a step, nothing else.
            let _ = self.0[set as usize].compare_exchange_weak(parent, above, Relaxed, Relaxed);
            set = above;
        }
    }

    /// Joins the clusters of two sets.
    pub(crate) fn join(&self, one: u32, other: u32) {
        loop {
            let (one, other) = (self.root(one), self.root(other));
            let (low, high) = (one.min(other), one.max(other));
            // `high` may have got a parent in the meantime: then both roots are looked up again.
            if low == high
                || self.0[high as usize]
                    .compare_exchange(high, low, Relaxed, Relaxed)
                    .is_ok()
            {
                return;
            }
        }
    }
}
