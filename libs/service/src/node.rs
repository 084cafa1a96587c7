use std::{path::PathBuf, sync::Arc};

use headwater_log::{Alone, Log, Membership};
use headwater_types::{Clock, SystemClock};

use crate::{Health, Metrics, Tasks};

/// The surroundings that every service is started with. In `headwater dev` all four services share
/// one node.
#[derive(Clone)]
pub struct Node {
    pub log: Arc<dyn Log>,
    /// Assigns partitions to processes.
    pub membership: Arc<dyn Membership>,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// The data directory of this process; see [`crate::DataDir`].
    pub data: PathBuf,
    /// The name of this process in logs, statuses and paths. It is a legal file name.
    pub instance: String,
    /// The identity of the data directory, the same in all processes that share it.
    pub directory: String,
    /// The URL of the store for checkpoints; `None`: checkpoints stay on this disk.
    pub checkpoints: Option<String>,
    /// The URL at which other instances reach this one; `None`: there are no other instances.
    pub advertise: Option<String>,
}

impl Node {
    /// A node on the current runtime and the machine's clock. No other process has partitions of
    /// the log.
    pub fn new(log: Arc<dyn Log>, data: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        let instance = instance.into();
        Self {
            membership: Arc::new(Alone::new(log.clone())),
            log,
            tasks: Tasks::new(),
            metrics: Metrics::new(),
            health: Health::new(),
            clock: Arc::new(SystemClock),
            data: data.into(),
            directory: instance.clone(),
            instance,
            checkpoints: None,
            advertise: None,
        }
    }
}
