use std::{path::PathBuf, sync::Arc};

use headwater_log::{Alone, Log, Membership};
use headwater_types::{Clock, SystemClock};

use crate::{Health, Metrics, Tasks};

/// What every service needs to start. In `headwater dev` one node carries all four services.
#[derive(Clone)]
pub struct Node {
    pub log: Arc<dyn Log>,
    /// Shares the partitions out among processes.
    pub membership: Arc<dyn Membership>,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// The directory that this process owns; see [`crate::DataDir`].
    pub data: PathBuf,
    /// Tells this process from others in logs, statuses and paths; a legal file name.
    pub instance: String,
    /// Names the data directory: processes that share it say the same.
    pub directory: String,
    /// The URL of the store that keeps checkpoints for other machines; `None`: they stay on this disk.
    pub checkpoints: Option<String>,
    /// The address at which other instances reach this one's gRPC services; `None`: there are no others.
    pub advertise: Option<String>,
}

impl Node {
    /// A node on the current runtime and the machine's clock, with nothing running yet.
    /// It has the log, and all partitions, for itself.
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
