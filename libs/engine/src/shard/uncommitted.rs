//! The state that a shard keeps in memory between two commits.

use std::sync::Arc;

use headwater_log::Record;
use headwater_state::{Commit, OutboxKey, Progress, ShardDb};
use headwater_types::PartitionId;

use super::time_rules::TimeRules;
use crate::{DeadLetter, Error, Stage, decode::DecodeError, groups::Groups, plan::ViewPlan};

/// Groups, dead letters and progress of the records that were applied since the last commit.
/// `batch.rs` applies records to it.
pub(super) struct Uncommitted {
    pub(super) plan: Arc<ViewPlan>,
    pub(super) rules: TimeRules,
    pub(super) groups: Groups,
    /// The progress that the next commit stores. Its horizon is still that of the last commit.
    pub(super) applied: Progress,
    pub(super) committed: Progress,
    partition: PartitionId,
    outbox: Vec<(OutboxKey, Vec<u8>)>,
    outbox_bytes: usize,
}

impl Uncommitted {
    pub(super) fn new(plan: Arc<ViewPlan>, rules: TimeRules, db: &ShardDb) -> Self {
        let committed = db.progress();
        Self {
            rules,
            groups: Groups::new(&plan),
            applied: committed,
            committed,
            partition: db.identity().partition,
            outbox: Vec::new(),
            outbox_bytes: 0,
            plan,
        }
    }

    /// The memory that the next commit writes, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.groups.dirty_bytes() + self.outbox_bytes
    }

    /// Stores everything in one write. Keeps groups of at most about `cached_bytes` in memory.
    pub(super) fn commit(&mut self, db: &ShardDb, cached_bytes: usize) -> Result<Progress, Error> {
        self.applied.rows_expired_before = self.rules.horizon(self.applied.watermark);
        // A batch adds its dead letters stage by stage.
        self.outbox.sort_unstable_by_key(|(key, _)| *key);
        let commit =
            Commit { progress: self.applied, puts: self.groups.rows(), outbox: &self.outbox };
        let failed = |source| Error::State { view: self.plan.view.clone(), source };
        db.commit(commit).map_err(failed)?;
        self.committed = self.applied;
        self.groups.committed(cached_bytes);
        self.outbox.clear();
        self.outbox_bytes = 0;
        Ok(self.committed)
    }

    /// Refuses a record that cannot be decoded. A wrong event time counts for stage `time`.
    #[cold]
    pub(super) fn refuse_undecodable(&mut self, record: &Record<'_>, error: &DecodeError) {
        let event_time = &self.plan.stream.columns[self.plan.stream.event_time].name;
        let stage =
            if error.column.as_ref() == Some(event_time) { Stage::Time } else { Stage::Decode };
        self.refuse(record, stage, &error.to_string());
    }

    #[cold]
    pub(super) fn refuse(&mut self, record: &Record<'_>, stage: Stage, reason: &str) {
        let letter = DeadLetter {
            stage,
            reason,
            topic: self.plan.stream.topic.as_str(),
            partition: self.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key,
            value: record.value,
        };
        let bytes = letter.encode();
        self.outbox_bytes += bytes.len() + size_of::<(OutboxKey, Vec<u8>)>();
        self.outbox.push((OutboxKey::at(record.offset), bytes));
        match stage {
            Stage::Late => self.applied.tallies.late += 1,
            Stage::Decode | Stage::Time | Stage::Filter | Stage::Expression => {
                self.applied.tallies.dead_lettered += 1;
            }
        }
    }
}
