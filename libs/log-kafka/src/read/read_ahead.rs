//! How much the consumers of a process may hold for their readers.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes of `kafka.read-ahead-bytes`, in equal parts for all readers of the process.
pub(crate) struct ReadAheadBudget {
    bytes: usize,
    readers: AtomicUsize,
}

impl ReadAheadBudget {
    pub(super) fn new(bytes: u64) -> Self {
        Self { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), readers: AtomicUsize::new(0) }
    }

    pub(super) fn add_reader(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_reader(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// The part of one reader, at least one MiB.
    pub(super) fn share(&self) -> usize {
        (self.bytes / self.readers.load(Ordering::Relaxed).max(1)).max(1 << 20)
    }
}
