//! What is known of topics and partitions without asking RocksDB.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use headwater_log::{Cleanup, Compaction, Ends, Error, TopicSpec};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::{Condvar, Mutex};

use crate::keys;

pub(crate) struct Topic {
    pub(crate) id: u32,
    pub(crate) name: Name,
    pub(crate) spec: TopicSpec,
    /// The name of its column family.
    pub(crate) family: String,
    partitions: Vec<Partition>,
}

/// Offsets move only when what they say is durable, and by the one writer at a time.
#[derive(Default)]
pub(crate) struct Partition {
    start: AtomicU64,
    end: AtomicU64,
    bytes: AtomicU64,
    /// Only used where the topic compacts.
    pub(crate) compaction: Mutex<Compaction>,
    gate: Mutex<()>,
    grown: Condvar,
}

impl Topic {
    pub(crate) fn new(id: u32, name: Name, spec: TopicSpec) -> Self {
        let partitions = (0..spec.partitions).map(|_| Partition::default()).collect();
        Self { id, name, spec, family: keys::family(id), partitions }
    }

    pub(crate) fn compacts(&self) -> bool {
        self.spec.cleanup == Cleanup::Compact
    }

    pub(crate) fn partition(&self, partition: PartitionId) -> Result<&Partition, Error> {
        self.partitions.get(partition.0 as usize).ok_or_else(|| Error::UnknownPartition {
            topic: self.name.clone(),
            partition,
            partitions: self.spec.partitions,
        })
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        (0..).map(PartitionId).zip(&self.partitions)
    }

    /// Reading and trimming need an offset that is neither trimmed nor beyond the end.
    pub(crate) fn check(
        &self,
        partition: PartitionId,
        requested: Offset,
        ends: Ends,
    ) -> Result<(), Error> {
        let topic = || self.name.clone();
        if requested < ends.start {
            return Err(Error::Trimmed { topic: topic(), partition, requested, start: ends.start });
        }
        if requested > ends.end {
            return Err(Error::OffsetOutOfRange {
                topic: topic(),
                partition,
                requested,
                end: ends.end,
            });
        }
        Ok(())
    }

    pub(crate) fn corrupt(
        &self,
        partition: PartitionId,
        offset: Offset,
        detail: impl Into<String>,
    ) -> Error {
        let (topic, partition) = (Some(self.name.clone()), Some(partition));
        Error::Corrupt { topic, partition, offset, detail: detail.into() }
    }
}

impl Partition {
    pub(crate) fn ends(&self) -> Ends {
        // The start first: the end that is read after it cannot lie before it.
        let start = self.start.load(Ordering::Acquire);
        Ends { start: Offset(start), end: Offset(self.end.load(Ordering::Acquire)) }
    }

    /// The bytes of all batches that were ever stored; the next batch's `before`.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Makes records before `end` readable and wakes the readers that wait for them.
    pub(crate) fn grow(&self, end: Offset, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
        self.end.store(end.0, Ordering::Release);
        self.wake();
    }

    pub(crate) fn trimmed(&self, start: Offset) {
        self.start.store(start.0, Ordering::Release);
    }

    pub(crate) fn wake(&self) {
        // Taken once, so that no reader is between its look at the end and its sleep.
        drop(self.gate.lock());
        self.grown.notify_all();
    }

    /// Waits until there is something at `position`, for up to `wait`, or until `over`.
    pub(crate) fn wait_for(&self, position: Offset, wait: Duration, over: impl Fn() -> bool) {
        let waiting = || self.end.load(Ordering::Acquire) == position.0 && !over();
        if wait.is_zero() || !waiting() {
            return;
        }
        let mut gate = self.gate.lock();
        // A wait that no clock can express has no end.
        match Instant::now().checked_add(wait) {
            Some(deadline) => _ = self.grown.wait_while_until(&mut gate, |()| waiting(), deadline),
            None => self.grown.wait_while(&mut gate, |()| waiting()),
        }
    }
}
