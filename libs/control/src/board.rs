//! The fold of the status topic, and the ends of the log.

use std::{collections::BTreeMap, sync::Arc};

use headwater_proto::status::v1::{Checkpoint, InstanceStatus, ShardStatus};
use headwater_types::{GenerationId, Name, Offset, PartitionId};

use prost::Message;

use crate::CheckpointId;

/// The key of a shard's status on the status topic.
pub fn status_key(generation: GenerationId, partition: PartitionId) -> String {
    format!("{generation}/{partition}")
}

/// The key of an instance's status on the status topic.
pub fn instance_key(service: &str, instance: &str) -> String {
    format!("{INSTANCES}{service}/{instance}")
}

const INSTANCES: &str = "instance/";

/// The fold of the status topic: the last status of every shard and of every instance. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct StatusBoard {
    shards: BTreeMap<(GenerationId, PartitionId), Arc<ShardStatus>>,
    /// The status of each instance, by [`instance_key`].
    instances: BTreeMap<String, Arc<InstanceStatus>>,
}

impl StatusBoard {
    /// Folds a record of the status topic: a key, and a status or `None` if it was deleted. A
    /// status that cannot be decoded is skipped and returned as an error. Statuses are derived, and
    /// the next one replaces it.
    pub fn fold_record(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), prost::DecodeError> {
        let key = String::from_utf8_lossy(key);
        match value {
            None => self.forget(&key),
            Some(value) if key.starts_with(INSTANCES) => {
                let status = InstanceStatus::decode(value)?;
                self.instances.insert(key.into_owned(), Arc::new(status));
            }
            Some(value) => self.fold(ShardStatus::decode(value)?),
        }
        Ok(())
    }

    /// Folds a status, unless it comes from a former owner of its shard or its generation is not an
    /// id.
    pub fn fold(&mut self, status: ShardStatus) {
        let Ok(generation) = status.generation.parse() else { return };
        let shard = (generation, PartitionId(status.partition));
        let outdated = |present: &Arc<ShardStatus>| present.epoch > status.epoch;
        if !self.shards.get(&shard).is_some_and(outdated) {
            self.shards.insert(shard, Arc::new(status));
        }
    }

    /// Removes the shard with this [`status_key`], or the instance with this [`instance_key`]: its
    /// status was deleted.
    pub fn forget(&mut self, key: &str) {
        self.instances.remove(key);
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

    /// The instances of a service that have announced themselves and not withdrawn.
    pub fn instances<'a>(&'a self, service: &'a str) -> impl Iterator<Item = &'a InstanceStatus> {
        self.instances.values().map(Arc::as_ref).filter(move |status| status.service == service)
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

/// The readable offsets of a partition of a stream's topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// The oldest offset that can be read.
    pub start: Offset,
    /// The position after the last readable record.
    pub end: Offset,
}

/// The readable offsets of every partition of the streams that have a view.
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
