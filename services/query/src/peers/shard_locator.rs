//! Where each shard is: in the data directory that this instance can read, or in another one.
//!
//! The owner of a shard writes its directory to the status topic before it commits anything there.
//! An instance that has read all statuses written before a moment therefore knows where everything
//! lies that was committed before that moment ([`ShardLocator::refresh`]). It never takes a copy
//! that a former owner left behind for the shard.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use headwater_control::{STATUS_TOPIC, StatusBoard};
use headwater_log::Log;
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Node, directory_id, follow::ControlView};
use headwater_state::Identity;
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::RwLock;

use crate::{error::Error, refresh::SharedRefresh};

/// Where a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShardLocation {
    /// On this instance's disk.
    Local {
        /// The epoch of the claim under which the shard was written there; 0 if none is known.
        epoch: u64,
    },
    Remote(RemoteShard),
}

/// The last status of a shard that is not on this instance's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteShard {
    pub processor: String,
    pub directory: String,
    pub epoch: u64,
}

/// Knows where every shard is.
pub(crate) struct ShardLocator {
    control: ControlView,
    log: Arc<dyn Log>,
    directory: LocalDirectory,
    board: SharedRefresh,
}

impl ShardLocator {
    pub(crate) fn new(node: &Node, control: ControlView) -> Self {
        Self {
            control,
            log: node.log.clone(),
            directory: LocalDirectory::of(node),
            board: SharedRefresh::default(),
        }
    }

    /// The name of the data directory on this instance's disk; empty if it has none yet.
    pub(crate) fn directory(&self) -> Arc<str> {
        self.directory.id.read().clone()
    }

    /// Reads the name of the data directory again, and says whether it changed. Blocks.
    pub(crate) fn read_directory(&self) -> bool {
        self.directory.read()
    }

    /// The statuses of the processors and of the other instances.
    pub(crate) fn board(&self) -> Arc<StatusBoard> {
        self.control.board()
    }

    /// The control plane, as this instance follows it.
    pub(crate) fn control(&self) -> &ControlView {
        &self.control
    }

    pub(crate) fn locate(&self, shard: &Identity) -> ShardLocation {
        let board = self.control.board();
        match board.get(shard.generation, shard.partition) {
            None => ShardLocation::Local { epoch: 0 },
            Some(status) if self.is_ours(status) => ShardLocation::Local { epoch: status.epoch },
            Some(status) => ShardLocation::Remote(RemoteShard {
                processor: status.processor.clone(),
                directory: status.directory.clone(),
                epoch: status.epoch,
            }),
        }
    }

    /// Whether a peer that knows the claim with this epoch may be answered from this disk. Only a
    /// status that is at least as new as that claim says that it may not. Returns the epoch that
    /// counts, or `None`.
    pub(crate) fn local_epoch(&self, shard: &Identity, epoch: u64) -> Option<u64> {
        let board = self.control.board();
        match board.get(shard.generation, shard.partition) {
            Some(status) if status.epoch >= epoch => self.is_ours(status).then_some(status.epoch),
            Some(_) | None => Some(epoch),
        }
    }

    fn is_ours(&self, status: &ShardStatus) -> bool {
        status.directory.is_empty() || *status.directory == **self.directory.id.read()
    }

    /// Waits until the board has every status that was written before `since`.
    pub(crate) async fn refresh(&self, since: Instant) -> Result<(), Error> {
        self.board
            .since(since, async {
                let end = self.status_end().await?;
                let read = self.control.wait_board(end).await;
                read.map(drop).map_err(|error| Error::Control(error.to_string()))
            })
            .await
    }

    /// Where the status topic ends now.
    async fn status_end(&self) -> Result<Offset, Error> {
        let failed = |reason: String| Error::Control(reason);
        let topic = Name::new(STATUS_TOPIC).map_err(|error| failed(error.to_string()))?;
        match self.log.ends(&topic, PartitionId::ONLY).await {
            Ok(ends) => Ok(ends.end),
            // Without the topic no status has been written.
            Err(headwater_log::Error::UnknownTopic { .. }) => Ok(Offset::ZERO),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// The data directory on this instance's disk.
struct LocalDirectory {
    path: PathBuf,
    /// The directory's name.
    id: RwLock<Arc<str>>,
    /// Whether a file in the directory has the name. The directory may then appear, or be made
    /// anew, while this instance runs.
    names_itself: bool,
}

impl LocalDirectory {
    fn of(node: &Node) -> Self {
        let names_itself = node.directory.is_empty()
            || read_id(&node.data).is_some_and(|id| *id == *node.directory);
        Self {
            path: node.data.clone(),
            id: RwLock::new(node.directory.as_str().into()),
            names_itself,
        }
    }

    fn read(&self) -> bool {
        if !self.names_itself {
            return false;
        }
        match read_id(&self.path) {
            Some(id) if *id != **self.id.read() => {
                tracing::info!(directory = id, path = %self.path.display(), "data directory found");
                *self.id.write() = id.as_str().into();
                true
            }
            Some(_) | None => false,
        }
    }
}

fn read_id(path: &Path) -> Option<String> {
    directory_id(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "the data directory cannot be read");
        None
    })
}
