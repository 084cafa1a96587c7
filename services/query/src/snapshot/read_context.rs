//! The parts that all shards are read with.

use std::{path::PathBuf, sync::Arc};

use headwater_state::Options;

use crate::{
    metrics::Metrics,
    peers::{forward::Forwarder, shard_locator::ShardLocator},
};

/// Where shards are, and what they are read with.
pub(crate) struct ReadContext {
    /// The directory whose shards are on this instance's disk.
    pub data: PathBuf,
    /// The directory for what readers write.
    pub scratch: PathBuf,
    pub instance: String,
    pub options: Options,
    pub locator: Arc<ShardLocator>,
    pub forwarder: Forwarder,
    pub metrics: Metrics,
}
