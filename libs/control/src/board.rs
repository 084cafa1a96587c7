//! What the processors report, and how far the log goes.

use std::{collections::BTreeMap, sync::Arc};

use headwater_proto::status::v1::{Checkpoint, ShardStatus};
use headwater_types::{GenerationId, Name, Offset, PartitionId};

use crate::CheckpointId;

/// The key of a shard's status on the status topic.
pub fn status_key(generation: GenerationId, partition: PartitionId) -> String {
    format!("{generation}/{partition}")
}

/// The fold of the status topic: the last status of every shard. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard {
    shards: BTreeMap<(GenerationId, PartitionId), Arc<ShardStatus>>,
}

impl StatusBoard {
    /// Takes a status in. One whose generation is no id is left out: a status is derived, and the next
    /// one says it again.
    pub fn fold(&mut self, status: ShardStatus) {
        if let Ok(generation) = status.generation.parse() {
            self.shards.insert((generation, PartitionId(status.partition)), Arc::new(status));
        }
    }

    /// Forgets the shard with this [`status_key`]: its status was deleted.
    pub fn forget(&mut self, key: &str) {
        let parsed = key.split_once('/').and_then(|(generation, partition)| {
            Some((generation.parse().ok()?, PartitionId(partition.parse().ok()?)))
        });
        if let Some(shard) = parsed {
            self.shards.remove(&shard);
        }
    }

    pub fn get(&self, generation: GenerationId, partition: PartitionId) -> Option<&ShardStatus> {
        self.shards.get(&(generation, partition)).map(Arc::as_ref)
    }

    /// All shards by generation and partition.
    pub fn shards(&self) -> impl Iterator<Item = (GenerationId, PartitionId, &ShardStatus)> {
        self.shards
            .iter()
            .map(|(&(generation, partition), status)| (generation, partition, status.as_ref()))
    }

    /// The shards of one generation by partition.
    pub fn of(
        &self,
        generation: GenerationId,
    ) -> impl Iterator<Item = (PartitionId, &ShardStatus)> {
        let range = (generation, PartitionId(0))..=(generation, PartitionId(u32::MAX));
        self.shards.range(range).map(|(&(_, partition), status)| (partition, status.as_ref()))
    }

    /// The committed position that the shard reports.
    pub fn position(&self, generation: GenerationId, partition: PartitionId) -> Option<Offset> {
        self.get(generation, partition).map(|status| Offset(status.position))
    }

    /// The checkpoint that the shard reports for exactly this attempt.
    pub fn checkpoint(
        &self,
        generation: GenerationId,
        partition: PartitionId,
        id: &CheckpointId,
    ) -> Option<&Checkpoint> {
        self.get(generation, partition)?
            .checkpoints
            .iter()
            .find(|checkpoint| checkpoint.replay_id == id.as_str())
    }
}

/// How far a partition of a stream's topic goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The oldest offset that can be read.
    pub start: Offset,
    /// The position after the last readable record.
    pub end: Offset,
}

/// The reach of every partition of every stream that matters.
#[derive(Clone, Debug, Default)]
pub struct LogEnds {
    streams: BTreeMap<Name, BTreeMap<PartitionId, Reach>>,
}

impl LogEnds {
    pub fn set(&mut self, stream: &Name, partition: PartitionId, reach: Reach) {
        self.streams.entry(stream.clone()).or_default().insert(partition, reach);
    }

    pub fn get(&self, stream: &Name, partition: PartitionId) -> Option<Reach> {
        self.streams.get(stream)?.get(&partition).copied()
    }
}
