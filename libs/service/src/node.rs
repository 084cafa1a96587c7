use std::{path::PathBuf, sync::Arc};

use headwater_log::Log;
use headwater_types::{Clock, SystemClock};

use crate::{Health, Metrics, Tasks};

/// What every service needs to start. In `headwater dev` one node carries all four services.
#[derive(Clone)]
pub struct Node {
    pub log: Arc<dyn Log>,
    pub tasks: Tasks,
    pub metrics: Metrics,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// The directory that this process owns; see [`crate::DataDir`].
    pub data: PathBuf,
    /// Tells this process from others in logs, statuses and paths; a legal file name.
    pub instance: String,
}

impl Node {
    /// A node on the current runtime and the machine's clock, with nothing running yet.
    pub fn new(log: Arc<dyn Log>, data: impl Into<PathBuf>, instance: impl Into<String>) -> Self {
        Self {
            log,
            tasks: Tasks::new(),
            metrics: Metrics::new(),
            health: Health::new(),
            clock: Arc::new(SystemClock),
            data: data.into(),
            instance: instance.into(),
        }
    }
}
