//! One partition's share of a view.

mod batch;
mod rules;

use std::sync::Arc;

use headwater_log::{Chunk, Record};
use headwater_state::{Commit, OutboxKey, Progress, ShardDb};
use headwater_types::{Offset, PartitionId};

use crate::{
    DeadLetter, Error, Stage,
    decode::{DecodeError, JsonDecoder},
    groups::Groups,
    plan::ViewPlan,
};
use batch::Scratch;
use rules::Rules;

/// How much a shard keeps in memory. None of it is visible in what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records that are decoded into one batch.
    pub batch_rows: usize,
    /// Bytes of records that are decoded into one batch; a record more may go beyond.
    pub batch_bytes: usize,
    /// Committed groups are kept in memory up to this many bytes.
    pub cached_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch_rows: 4096, batch_bytes: 16 << 20, cached_bytes: 64 << 20 }
    }
}

/// Applies one partition's records to its shard database.
///
/// Nothing is stored before [`Shard::commit`]; a shard that is dropped goes on from its last commit
/// when it is opened again.
pub struct Shard {
    plan: Arc<ViewPlan>,
    rules: Rules,
    limits: Limits,
    db: ShardDb,
    decoder: JsonDecoder,
    groups: Groups,
    /// What [`Shard::commit`] would store; the horizon is that of the last commit.
    applied: Progress,
    committed: Progress,
    outbox: Vec<(OutboxKey, Vec<u8>)>,
    outbox_bytes: usize,
    scratch: Scratch,
    /// A batch was interrupted, so that what is in memory belongs to no offset.
    interrupted: bool,
}

impl Shard {
    pub fn open(plan: Arc<ViewPlan>, db: ShardDb) -> Result<Self, Error> {
        Self::open_with(plan, db, Limits::default())
    }

    pub fn open_with(plan: Arc<ViewPlan>, db: ShardDb, limits: Limits) -> Result<Self, Error> {
        let rules = Rules::of(&plan)?;
        let committed = db.progress();
        Ok(Self {
            rules,
            limits,
            decoder: JsonDecoder::new(&plan.stream, &plan.input),
            groups: Groups::new(&plan),
            applied: committed,
            committed,
            outbox: Vec::new(),
            outbox_bytes: 0,
            scratch: Scratch::default(),
            interrupted: false,
            plan,
            db,
        })
    }

    pub fn plan(&self) -> &Arc<ViewPlan> {
        &self.plan
    }

    pub fn partition(&self) -> PartitionId {
        self.db.identity().partition
    }

    /// The next record to be applied.
    pub fn position(&self) -> Offset {
        self.applied.position
    }

    /// Applies the chunk's records from [`Shard::position`] on and before `until`. Returns how many.
    ///
    /// What becomes of a record is decided in this order, for each record by itself:
    ///
    /// 1. It is decoded; a record without a value or with a bad one is a dead letter.
    /// 2. Its event time, if missing, out of range or too far ahead of the record's own timestamp,
    ///    makes it a dead letter. From here on it moves the watermark, whatever else becomes of it.
    /// 3. WHERE filters it, or makes it a dead letter if it has no value.
    /// 4. Keys, FILTERs and arguments, if they have no value, make it a dead letter.
    /// 5. It may be late, by the watermark before it.
    /// 6. It is applied to its group. A group that has expired by now, by the watermark with this
    ///    record in it, starts from nothing.
    ///
    /// After an error nothing can be committed any more, except after [`Error::Log`]: then all records
    /// before the unreadable one are applied.
    pub fn apply(&mut self, chunk: &Chunk, until: Option<Offset>) -> Result<usize, Error> {
        if self.interrupted {
            return Err(self.interruption());
        }
        let mut records: Vec<Record<'_>> = Vec::new();
        let mut bytes = 0;
        let mut read = 0;
        let mut unreadable = None;
        for record in chunk.records(self.applied.position) {
            let record = match record {
                Ok(record) => record,
                Err(source) => {
                    unreadable = Some(Error::Log { view: self.plan.view.clone(), source });
                    break;
                }
            };
            if until.is_some_and(|until| record.offset >= until) {
                break;
            }
            read += 1;
            let Some(value) = record.value else {
                self.refuse(&record, Stage::Decode, "the record has no value: it is a tombstone");
                self.applied.position = record.offset.next();
                continue;
            };
            match self.decoder.decode(value) {
                Ok(()) => {
                    records.push(record);
                    bytes += value.len();
                }
                Err(error) => self.refuse_undecodable(&record, &error),
            }
            self.applied.position = record.offset.next();
            if records.len() >= self.limits.batch_rows || bytes >= self.limits.batch_bytes {
                self.apply_batch(&records)?;
                records.clear();
                bytes = 0;
            }
        }
        self.apply_batch(&records)?;
        unreadable.map_or(Ok(read), Err)
    }

    /// Passes over offsets that hold no record: the log has removed them, or they are markers.
    pub fn skip_to(&mut self, position: Offset) {
        self.applied.position = self.applied.position.max(position);
    }

    /// Memory that waits to be committed, roughly.
    pub fn pending_bytes(&self) -> usize {
        self.groups.dirty_bytes() + self.outbox_bytes
    }

    pub fn has_uncommitted(&self) -> bool {
        self.applied.position != self.committed.position
    }

    /// Stores all that was applied, in one write. Returns what is committed now.
    pub fn commit(&mut self) -> Result<Progress, Error> {
        if self.interrupted {
            return Err(self.interruption());
        } else if !self.has_uncommitted() {
            return Ok(self.committed);
        }
        self.applied.rows_expired_before = self.rules.horizon(self.applied.watermark);
        // Dead letters of one batch come stage by stage.
        self.outbox.sort_unstable_by_key(|(key, _)| *key);
        let commit =
            Commit { progress: self.applied, puts: self.groups.rows(), outbox: &self.outbox };
        let failed = |source| Error::State { view: self.plan.view.clone(), source };
        self.db.commit(commit).map_err(failed)?;
        self.committed = self.applied;
        self.groups.committed(self.limits.cached_bytes);
        self.outbox.clear();
        self.outbox_bytes = 0;
        Ok(self.committed)
    }

    /// What is committed.
    pub fn progress(&self) -> Progress {
        self.committed
    }

    pub fn db(&self) -> &ShardDb {
        &self.db
    }

    fn interruption(&self) -> Error {
        Error::Interrupted { view: self.plan.view.clone() }
    }

    /// A wrong event time counts as a fault of time, not of form.
    #[cold]
    fn refuse_undecodable(&mut self, record: &Record<'_>, error: &DecodeError) {
        let event_time = &self.plan.stream.columns[self.plan.stream.event_time].name;
        let stage =
            if error.column.as_ref() == Some(event_time) { Stage::Time } else { Stage::Decode };
        self.refuse(record, stage, &error.to_string());
    }

    #[cold]
    fn refuse(&mut self, record: &Record<'_>, stage: Stage, reason: &str) {
        let letter = DeadLetter {
            stage,
            reason,
            topic: self.plan.stream.topic.as_str(),
            partition: self.partition(),
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

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("view", &self.plan.view)
            .field("applied", &self.applied)
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
