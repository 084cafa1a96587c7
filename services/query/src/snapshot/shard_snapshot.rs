//! A shard at one commit.

use std::{sync::Arc, time::Instant};

use headwater_state::{RowHeader, ShardReader};
use headwater_types::{EventTime, GenerationId, Offset, PartitionId};
use prost::bytes::Bytes;
use tokio::sync::OwnedRwLockReadGuard;

use crate::{
    error::Error,
    peers::{row_codec::EncodedRows, session::PeerSession},
};

/// A shard at one commit. The shard stays there until this is dropped.
pub(crate) struct ShardSnapshot {
    pub partition: PartitionId,
    pub position: Offset,
    pub watermark: EventTime,
    state: SnapshotState,
}

enum SnapshotState {
    Disk {
        reader: Arc<ShardReader>,
        /// When the reader's last catch-up began.
        caught_up: Instant,
        /// Keeps the reader from catching up.
        _guard: OwnedRwLockReadGuard<()>,
    },
    Peer {
        session: Arc<PeerSession>,
        row: Bytes,
    },
}

/// Reads the rows of a snapshot.
#[derive(Clone)]
pub(crate) enum SnapshotReader {
    Disk(Arc<ShardReader>),
    Peer(Arc<PeerSession>),
}

impl ShardSnapshot {
    /// A shard on this disk; the guard keeps its reader from catching up.
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
            state: SnapshotState::Disk { reader, caught_up, _guard: guard },
        }
    }

    pub(crate) fn at_peer(session: PeerSession) -> Self {
        let opened = &session.opened;
        Self {
            partition: session.shard.partition,
            position: Offset(opened.position),
            watermark: opened.watermark_micros.map_or(EventTime::MIN, EventTime),
            state: SnapshotState::Peer { row: opened.row.clone(), session: Arc::new(session) },
        }
    }

    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.state, SnapshotState::Peer { .. })
    }

    /// The peer that reads the shard; `None` if this instance does.
    pub(crate) fn served_by(&self) -> Option<&str> {
        match &self.state {
            SnapshotState::Disk { .. } => None,
            SnapshotState::Peer { session, .. } => Some(&session.peer.instance),
        }
    }

    /// When this instance last caught up with the shard; `None` if a peer reads it.
    pub(crate) fn caught_up(&self) -> Option<Instant> {
        match &self.state {
            SnapshotState::Disk { caught_up, .. } => Some(*caught_up),
            SnapshotState::Peer { .. } => None,
        }
    }

    pub(crate) fn reader(&self) -> SnapshotReader {
        match &self.state {
            SnapshotState::Disk { reader, .. } => SnapshotReader::Disk(reader.clone()),
            SnapshotState::Peer { session, .. } => SnapshotReader::Peer(session.clone()),
        }
    }

    /// The row with the key of the read plan.
    pub(crate) fn row(
        &self,
        generation: GenerationId,
        key: &[u8],
    ) -> Result<Option<(RowHeader, Vec<u8>)>, Error> {
        match &self.state {
            SnapshotState::Disk { reader, .. } => {
                let partition = self.partition;
                let failed = |source| Error::State { generation, partition, source };
                reader.view().get(key).map_err(failed)
            }
            SnapshotState::Peer { session, row } => {
                let mut rows = EncodedRows::new(row.clone());
                let row = rows.next().transpose().map_err(|_| session.damaged())?;
                Ok(row.map(|(_, header, payload)| (header, payload.to_vec())))
            }
        }
    }
}
