//! What a request wants of a shard, and the shard once it is held for it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_proto::query::v1::ShardOpened;
use headwater_state::{KeyRange, RowHeader, ShardReader};
use headwater_types::{EventTime, GenerationId, Offset, PartitionId};
use prost::bytes::Bytes;
use tokio::sync::OwnedRwLockReadGuard;

use crate::{error::Error, peers::row_codec::EncodedRows, peers::session::PeerSession};

/// What a request wants of a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreshnessGoal {
    /// The answer has every commit that is older than this.
    pub since: Instant,
    /// The answer has every record before this.
    pub position: Offset,
    /// In whose name: the first words of "… position 17 in partition 3".
    pub reason: &'static str,
    pub deadline: Instant,
}

/// What a request reads of each shard. It is said before the shard is held, because a peer opens all of it at
/// once.
#[derive(Default)]
pub(crate) struct ReadPlan {
    /// One row.
    pub key: Option<Vec<u8>>,
    pub scans: Vec<ScanPlan>,
    /// Until when it may be read.
    pub duration: Duration,
}

/// One scan of every shard.
pub(crate) struct ScanPlan {
    pub range: KeyRange,
    /// Only rows that a record at or behind the position of its partition changed; one position per shard.
    pub changed_since: Option<Vec<Offset>>,
    /// About how many rows are read at first.
    pub first_rows: usize,
}

/// A shard that stands still until this is dropped.
pub(crate) struct ShardSnapshot {
    pub partition: PartitionId,
    pub position: Offset,
    pub watermark: EventTime,
    state: State,
}

enum State {
    Disk {
        reader: Arc<ShardReader>,
        /// When the reader's last catch-up began.
        caught_up: Instant,
        _guard: OwnedRwLockReadGuard<()>,
    },
    Peer {
        session: Arc<PeerSession>,
        row: Bytes,
    },
}

/// Where the rows of a shard that is held are read.
#[derive(Clone)]
pub(crate) enum SnapshotReader {
    Disk(Arc<ShardReader>),
    Peer(Arc<PeerSession>),
}

impl ShardSnapshot {
    /// On our disk; the guard keeps it from being caught up with.
    pub(crate) fn on_disk(
        partition: PartitionId,
        reader: Arc<ShardReader>,
        caught_up: Instant,
        guard: OwnedRwLockReadGuard<()>,
    ) -> Self {
        let progress = reader.progress();
        Self {
            partition,
            position: progress.position,
            watermark: progress.watermark,
            state: State::Disk { reader, caught_up, _guard: guard },
        }
    }

    pub(crate) fn at_peer(opened: ShardOpened, session: PeerSession) -> Self {
        Self {
            partition: session.partition,
            position: Offset(opened.position),
            watermark: opened.watermark_micros.map_or(EventTime::MIN, EventTime),
            state: State::Peer { session: Arc::new(session), row: opened.row },
        }
    }

    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.state, State::Peer { .. })
    }

    /// The peer that reads it; `None` if we do.
    pub(crate) fn served_by(&self) -> Option<&str> {
        match &self.state {
            State::Disk { .. } => None,
            State::Peer { session, .. } => Some(&session.peer.instance),
        }
    }

    /// When we last caught up with it, if it is ours.
    pub(crate) fn caught_up(&self) -> Option<Instant> {
        match &self.state {
            State::Disk { caught_up, .. } => Some(*caught_up),
            State::Peer { .. } => None,
        }
    }

    pub(crate) fn rest(&self) -> SnapshotReader {
        match &self.state {
            State::Disk { reader, .. } => SnapshotReader::Disk(reader.clone()),
            State::Peer { session, .. } => SnapshotReader::Peer(session.clone()),
        }
    }

    /// The row with the key of [`ReadPlan::key`].
    pub(crate) fn row(
        &self,
        generation: GenerationId,
        key: &[u8],
    ) -> Result<Option<(RowHeader, Vec<u8>)>, Error> {
        match &self.state {
            State::Disk { reader, .. } => {
                let partition = self.partition;
                let failed = |source| Error::State { generation, partition, source };
                reader.view().get(key).map_err(failed)
            }
            State::Peer { session, row } => {
                let mut rows = EncodedRows::new(row.clone());
                let row = rows.next().transpose().map_err(|_| session.damaged())?;
                Ok(row.map(|(_, header, payload)| (header, payload.to_vec())))
            }
        }
    }
}
