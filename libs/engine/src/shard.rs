//! A shard: applies one partition's records to one shard database.

mod batch;
mod time_rules;
mod uncommitted;

use std::sync::Arc;

use headwater_log::{Chunk, Record};
use headwater_state::{Progress, ShardDb};
use headwater_types::{Offset, PartitionId};

use crate::{Error, Stage, decode::JsonDecoder, plan::ViewPlan};
use batch::Scratch;
use time_rules::TimeRules;
use uncommitted::Uncommitted;

/// Limits of a shard's memory. They never affect what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The greatest number of records in a batch.
    pub batch_rows: usize,
    /// The size in bytes at which a batch ends; its last record may exceed it.
    pub batch_bytes: usize,
    /// The size in bytes of committed groups that stay in memory.
    pub cached_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { batch_rows: 4096, batch_bytes: 16 << 20, cached_bytes: 64 << 20 }
    }
}

/// Applies one partition's records to its shard database.
///
/// Nothing is stored before [`Shard::commit`]. A shard that is dropped continues from its last
/// commit when it is opened again.
pub struct Shard {
    limits: Limits,
    db: ShardDb,
    decoder: JsonDecoder,
    uncommitted: Uncommitted,
    scratch: Scratch,
    /// An error interrupted a batch, so the state in memory belongs to no offset.
    interrupted: bool,
}

impl Shard {
    pub fn open(plan: Arc<ViewPlan>, db: ShardDb) -> Result<Self, Error> {
        Self::open_with(plan, db, Limits::default())
    }

    pub fn open_with(plan: Arc<ViewPlan>, db: ShardDb, limits: Limits) -> Result<Self, Error> {
        let rules = TimeRules::of(&plan)?;
        Ok(Self {
            limits,
            decoder: JsonDecoder::new(&plan.stream, &plan.input),
            uncommitted: Uncommitted::new(plan, rules, &db),
            scratch: Scratch::default(),
            interrupted: false,
            db,
        })
    }

    pub fn plan(&self) -> &Arc<ViewPlan> {
        &self.uncommitted.plan
    }

    pub fn partition(&self) -> PartitionId {
        self.db.identity().partition
    }

    /// The offset of the next record to be applied.
    pub fn position(&self) -> Offset {
        self.uncommitted.applied.position
    }

    /// Applies the chunk's records from [`Shard::position`] on and before `until`. Returns their
    /// number.
    ///
    /// The outcome of each record is decided on its own, in this order:
    ///
    /// 1. The record is decoded. A record without a value or with a wrong one becomes a dead
    ///    letter.
    /// 2. The event time is checked. If it is missing, out of range or too far ahead of the
    ///    record's own timestamp, the record becomes a dead letter. Otherwise it advances the
    ///    watermark, whatever else happens to the record.
    /// 3. WHERE filters the record. If WHERE has no value, the record becomes a dead letter.
    /// 4. Keys, FILTERs and arguments are evaluated. If one has no value, the record becomes a dead
    ///    letter.
    /// 5. Lateness is decided by the watermark before the record.
    /// 6. The record is applied to its group. If the group has expired by the watermark after this
    ///    record, the record starts a new group.
    ///
    /// After an error, nothing can be committed any more. [`Error::Log`] is the exception: all
    /// records before the unreadable one are applied and can be committed.
    pub fn apply(&mut self, chunk: &Chunk, until: Option<Offset>) -> Result<usize, Error> {
        if self.interrupted {
            return Err(self.interruption());
        }
        let mut records: Vec<Record<'_>> = Vec::new();
        let mut bytes = 0;
        let mut read = 0;
        let mut unreadable = None;
        for record in chunk.records(self.uncommitted.applied.position) {
            let record = match record {
                Ok(record) => record,
                Err(source) => {
                    unreadable =
                        Some(Error::Log { view: self.uncommitted.plan.view.clone(), source });
                    break;
                }
            };
            if until.is_some_and(|until| record.offset >= until) {
                break;
            }
            read += 1;
            let Some(value) = record.value else {
                self.uncommitted.refuse(
                    &record,
                    Stage::Decode,
                    "the record has no value: it is a tombstone",
                );
                self.uncommitted.applied.position = record.offset.next();
                continue;
            };
            match self.decoder.decode(value) {
                Ok(()) => {
                    records.push(record);
                    bytes += value.len();
                }
                Err(error) => self.uncommitted.refuse_undecodable(&record, &error),
            }
            self.uncommitted.applied.position = record.offset.next();
            if records.len() >= self.limits.batch_rows || bytes >= self.limits.batch_bytes {
                self.apply_batch(&records)?;
                records.clear();
                bytes = 0;
            }
        }
        self.apply_batch(&records)?;
        unreadable.map_or(Ok(read), Err)
    }

    /// Applies the decoded records: one row per record.
    fn apply_batch(&mut self, records: &[Record<'_>]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        // An error would leave the batch partly applied.
        self.interrupted = true;
        let batch = self.decoder.take();
        self.uncommitted.apply_batch(&self.db, records, batch, &mut self.scratch)?;
        self.interrupted = false;
        Ok(())
    }

    /// Skips offsets without a record: the log has compacted them away, or they are transaction
    /// markers.
    pub fn skip_to(&mut self, position: Offset) {
        self.uncommitted.applied.position = self.uncommitted.applied.position.max(position);
    }

    /// The approximate size of the next commit.
    pub fn pending_bytes(&self) -> usize {
        self.uncommitted.bytes()
    }

    pub fn has_uncommitted(&self) -> bool {
        self.uncommitted.applied.position != self.uncommitted.committed.position
    }

    /// Stores everything that was applied in one write. Returns the progress after it.
    pub fn commit(&mut self) -> Result<Progress, Error> {
        if self.interrupted {
            return Err(self.interruption());
        } else if !self.has_uncommitted() {
            return Ok(self.uncommitted.committed);
        }
        self.uncommitted.commit(&self.db, self.limits.cached_bytes)
    }

    /// The progress of the last commit.
    pub fn progress(&self) -> Progress {
        self.uncommitted.committed
    }

    pub fn db(&self) -> &ShardDb {
        &self.db
    }

    fn interruption(&self) -> Error {
        Error::Interrupted { view: self.uncommitted.plan.view.clone() }
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("view", &self.uncommitted.plan.view)
            .field("applied", &self.uncommitted.applied)
            .field("db", &self.db)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
