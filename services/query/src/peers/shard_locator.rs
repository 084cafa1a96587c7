//! Where the shards are: in the data directory that this instance can read, or in another one.
//!
//! A shard is where its present owner keeps it, and the owner says so on the status topic before it commits
//! anything there. So whoever knows all statuses that were written before a moment knows where everything
//! lies that was committed before it ([`ShardLocator::know`]); a copy that was left behind by a former owner is never
//! taken for the shard.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use headwater_control::{ControlState, STATUS_TOPIC, StatusBoard};
use headwater_log::Log;
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{
    Node, directory_id,
    follow::{self, ControlView},
};
use headwater_state::Identity;
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::{Mutex, RwLock};

use crate::error::Error;

/// The status topic has one partition.
const ONLY: PartitionId = PartitionId(0);

/// Where a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShardLocation {
    /// On our disk.
    Local {
        /// Of the claim under which it was written there; 0 if none is known.
        epoch: u64,
    },
    Remote(RemoteShard),
}

/// The last that was heard of a shard that is not on our disk.
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
    directory: Directory,
    /// There is no other instance, so that everything is here: nothing needs to be looked up.
    alone: bool,
    /// All statuses that were written before this moment are on the board; `None`: it is not read yet.
    known: Mutex<Option<Instant>>,
    /// Held by whoever asks for more: the others wait for its answer.
    asking: tokio::sync::Mutex<()>,
    /// All that was in the control topic at this moment is folded. Locked as `asking` is.
    controlled: tokio::sync::Mutex<Option<Instant>>,
}

impl ShardLocator {
    pub(crate) fn new(node: &Node, control: ControlView) -> Self {
        Self {
            control,
            log: node.log.clone(),
            directory: Directory::of(node),
            alone: node.advertise.is_none() && !node.log.is_remote(),
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            controlled: tokio::sync::Mutex::default(),
        }
    }

    /// The control plane as of this call. On a log behind a network all who call while one asks where the
    /// topic ends share the next answer: one that was asked for before a call may be too old for it.
    pub(crate) async fn control(&self) -> Result<Arc<ControlState>, Error> {
        let failed = |error: follow::Error| Error::Control(error.to_string());
        if !self.log.is_remote() {
            return self.control.wait_current().await.map_err(failed);
        }
        let called = Instant::now();
        let mut controlled = self.controlled.lock().await;
        if controlled.is_some_and(|asked| asked >= called) {
            return Ok(self.control.current());
        }
        let now = Instant::now();
        let state = self.control.wait_current().await.map_err(failed)?;
        *controlled = Some(now);
        Ok(state)
    }

    pub(crate) fn alone(&self) -> bool {
        self.alone
    }

    pub(crate) fn directory(&self) -> Arc<str> {
        self.directory.id()
    }

    /// Looks again what our directory is called. Reads a file. Says whether that changed.
    pub(crate) fn read_directory(&self) -> bool {
        self.directory.read()
    }

    /// What the processors and the other instances say.
    pub(crate) fn board(&self) -> Arc<StatusBoard> {
        self.control.board()
    }

    pub(crate) fn of(&self, shard: &Identity) -> ShardLocation {
        if self.alone {
            return ShardLocation::Local { epoch: 0 };
        }
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

    /// Whether an asker who knows of the claim with this epoch may be answered from our disk: only newer news
    /// than its own say that it may not. `None` if it may not; otherwise the epoch that counts.
    pub(crate) fn holds(&self, shard: &Identity, epoch: u64) -> Option<u64> {
        let board = self.control.board();
        match board.get(shard.generation, shard.partition) {
            Some(status) if status.epoch >= epoch => self.is_ours(status).then_some(status.epoch),
            Some(_) | None => Some(epoch),
        }
    }

    fn is_ours(&self, status: &ShardStatus) -> bool {
        status.directory.is_empty() || *status.directory == **self.directory.id.read()
    }

    /// Waits until this instance knows of all that was said before `since`.
    pub(crate) async fn know(&self, since: Instant) -> Result<(), Error> {
        let is_known = || self.known.lock().is_some_and(|known| known >= since);
        if self.alone || is_known() {
            return Ok(());
        }
        let _asking = self.asking.lock().await;
        if is_known() {
            return Ok(());
        }
        let failed = |reason: String| Error::Control(reason);
        let topic = Name::new(STATUS_TOPIC).map_err(|error| failed(error.to_string()))?;
        let now = Instant::now();
        let ends = if self.log.is_remote() {
            let log = self.log.clone();
            let ends = tokio::task::spawn_blocking(move || {
                headwater_log::block_on(log.ends(&topic, ONLY))
            })
            .await;
            ends.map_err(|_| Error::Panicked)?
        } else {
            headwater_log::block_on(self.log.ends(&topic, ONLY))
        };
        let end = match ends {
            Ok(ends) => ends.end,
            // Then nobody has said anything.
            Err(headwater_log::Error::UnknownTopic { .. }) => Offset::ZERO,
            Err(error) => return Err(failed(error.to_string())),
        };
        self.control.wait_board(end).await.map_err(|error| failed(error.to_string()))?;
        *self.known.lock() = Some(now);
        Ok(())
    }
}

/// The name of the data directory that we can read.
struct Directory {
    path: PathBuf,
    id: RwLock<Arc<str>>,
    /// Whether the directory itself says what it is called. Then it may appear, or be made anew, while we run.
    says_itself: bool,
}

impl Directory {
    fn of(node: &Node) -> Self {
        let says_itself =
            node.directory.is_empty() || read(&node.data).is_some_and(|id| *id == *node.directory);
        Self {
            path: node.data.clone(),
            id: RwLock::new(node.directory.as_str().into()),
            says_itself,
        }
    }

    fn id(&self) -> Arc<str> {
        self.id.read().clone()
    }

    fn read(&self) -> bool {
        if !self.says_itself {
            return false;
        }
        match read(&self.path) {
            Some(id) if *id != **self.id.read() => {
                tracing::info!(directory = id, path = %self.path.display(), "data directory found");
                *self.id.write() = id.as_str().into();
                true
            }
            Some(_) | None => false,
        }
    }
}

fn read(path: &Path) -> Option<String> {
    directory_id(path).unwrap_or_else(|error| {
        tracing::warn!(%error, "the data directory cannot be read");
        None
    })
}
