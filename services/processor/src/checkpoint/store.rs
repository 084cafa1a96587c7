use std::{sync::Arc, time::Duration};

use headwater_service::{Outage, Tasks};
use headwater_state::Store;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};

use crate::metrics::ProcessorMetrics;

/// The store of checkpoints, as all shards of this process use it.
pub(crate) struct CheckpointStore {
    pub(super) store: Store,
    /// One permit for each upload that may run.
    pub(super) slots: Arc<Semaphore>,
    /// Time between two checkpoints of a shard.
    pub(super) interval: Duration,
    pub(super) instance: String,
    pub(super) tasks: Tasks,
    pub(super) runtime: Handle,
    pub(super) metrics: ProcessorMetrics,
    /// Logs once that the store fails, however many shards find it.
    pub(super) outage: Mutex<Outage>,
    /// The same for checkpoints that are no longer needed and cannot be removed.
    pub(super) prune_outage: Mutex<Outage>,
}

impl CheckpointStore {
    pub(crate) fn new(
        store: Store,
        concurrent_uploads: usize,
        interval: Duration,
        instance: String,
        tasks: Tasks,
        metrics: ProcessorMetrics,
    ) -> Self {
        Self {
            store,
            slots: Arc::new(Semaphore::new(concurrent_uploads)),
            interval,
            instance,
            tasks,
            runtime: Handle::current(),
            metrics,
            outage: Mutex::new(Outage::new("the store of checkpoints")),
            prune_outage: Mutex::new(Outage::new("removing older checkpoints from the store")),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}
