use std::{path::PathBuf, sync::Arc};

use headwater_log::Log;
use headwater_service::{Health, follow::ControlView};
use headwater_state::Options;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{
    assignment::partition_check::PartitionCheck, checkpoint::store::CheckpointStore,
    config::Config, log_outage::LogOutage, metrics::ProcessorMetrics, plan_cache::PlanCache,
    publish::status_reporter::StatusReporter,
};

/// Shared by the supervisor and all shard threads.
pub(crate) struct ProcessorContext {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) control: ControlView,
    pub(crate) status_reporter: StatusReporter,
    pub(crate) plans: PlanCache,
    pub(crate) options: Options,
    pub(crate) config: Config,
    pub(crate) metrics: ProcessorMetrics,
    pub(crate) health: Health,
    pub(crate) partition_check: Arc<PartitionCheck>,
    pub(crate) log_outage: LogOutage,
    /// `None`: there is no store of checkpoints.
    pub(crate) checkpoint_store: Option<Arc<CheckpointStore>>,
    pub(crate) data: PathBuf,
    pub(crate) instance: String,
    pub(crate) directory: String,
    pub(crate) runtime: Handle,
    /// How the shards were handed over at the end; see `Service::summary`.
    pub(crate) summary: Arc<Mutex<Option<String>>>,
}
