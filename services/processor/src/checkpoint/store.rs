//! The store of checkpoints, as all shards of this process use it.

use std::{sync::Arc, time::Duration};

use headwater_service::{Outage, Tasks};
use headwater_state::Store;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};

use crate::metrics::ProcessorMetrics;

/// The store, as all shards of this process use it.
pub(crate) struct CheckpointStore {
    pub(super) store: Store,
    pub(super) slots: Arc<Semaphore>,
    pub(super) every: Duration,
    pub(super) instance: String,
    pub(super) tasks: Tasks,
    pub(super) runtime: Handle,
    pub(super) metrics: ProcessorMetrics,
    /// Told once, however many shards find it out.
    pub(super) outage: Mutex<Outage>,
    /// The same of what is no longer needed and cannot be removed.
    pub(super) leftovers: Mutex<Outage>,
}

impl CheckpointStore {
    pub(crate) fn new(
        store: Store,
        at_once: usize,
        every: Duration,
        instance: String,
        tasks: Tasks,
        metrics: ProcessorMetrics,
    ) -> Self {
        let (slots, runtime) = (Arc::new(Semaphore::new(at_once)), Handle::current());
        let outage = Mutex::new(Outage::new("the store of checkpoints"));
        let leftovers = Mutex::new(Outage::new("removing older checkpoints from the store"));
        Self { store, slots, every, instance, tasks, runtime, metrics, outage, leftovers }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}
