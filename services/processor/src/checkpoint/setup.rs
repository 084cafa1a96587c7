use std::{path::PathBuf, sync::Arc};

use headwater_engine::ViewPlan;
use headwater_log::Log;
use headwater_state::{Identity, Options, layout};
use headwater_types::{Name, Offset};
use tokio::runtime::Handle;

use crate::{assignment::lease::Lease, checkpoint::store::CheckpointStore, config::Config};

/// Everything that one shard is opened from and run with.
pub(crate) struct ShardSetup {
    pub(crate) identity: Identity,
    pub(crate) view: Name,
    pub(crate) plan: Arc<ViewPlan>,
    /// The first offset that is read.
    pub(crate) floor: Offset,
    pub(crate) data: PathBuf,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) lease: Arc<Lease>,
    /// `None`: there is no store of checkpoints.
    pub(crate) checkpoint_store: Option<Arc<CheckpointStore>>,
    pub(crate) runtime: Handle,
    pub(crate) options: Options,
    pub(crate) config: Config,
}

impl ShardSetup {
    pub(crate) fn shard_dir(&self) -> PathBuf {
        layout::shard_dir(&self.data, self.identity.generation, self.identity.partition)
    }

    pub(crate) fn checkpoint_dir(&self, id: &str) -> PathBuf {
        layout::checkpoint_dir(&self.data, self.identity.generation, self.identity.partition, id)
    }
}
