//! An open shard: reads, applies, commits, takes checkpoints and publishes.
//!
//! A crash takes nothing away for good: what the task knows beyond its database is read again from
//! the log, from the directory of checkpoints or from the control topic.

mod checkpoints;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{CheckpointAt, CheckpointDuty};
use headwater_engine::{Limits, Shard};
use headwater_log::{Ends, FencedWriter, Reader, block_on};
use headwater_state::Progress;
use headwater_types::{Epoch, Offset, Remedy, StreamDefinition, Tallies};

use crate::{
    checkpoint::{
        replay::{ReplayCheckpoint, find_checkpoints},
        restore::OpenedDatabase,
        setup::ShardSetup,
        upload::CheckpointUploader,
    },
    error::ShardError,
    metrics::ShardMetrics,
    publish::outbox::{Permit, Publisher},
};

/// How long an idle shard waits for the log: an order is seen at most that late.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// How long a shard with uncommitted records waits for more before it commits.
const LINGER: Duration = Duration::from_millis(5);
/// Time between an error of publishing and the next try.
const PUBLISH_RETRY: Duration = Duration::from_millis(500);

/// The orders of the control state to the shard.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// Read no record at or beyond this offset.
    pub(crate) hold_at: Option<Offset>,
    /// The checkpoints that have to exist, and no others.
    pub(crate) checkpoints: Vec<CheckpointDuty>,
    pub(crate) permit: Permit,
}

/// An open shard.
pub(crate) struct ShardTask {
    setup: ShardSetup,
    metrics: ShardMetrics,
    shard: Shard,
    /// Stands at the shard's position.
    reader: Option<Box<dyn Reader>>,
    publisher: Publisher,
    publish_after: Option<Instant>,
    /// Publishing failed, and that was logged.
    publish_failed: bool,
    checkpoints: BTreeMap<String, ReplayCheckpoint>,
    uploader: Option<CheckpointUploader>,
    commits: u64,
    committed_at: Instant,
    synced_at: Instant,
}

impl ShardTask {
    pub(crate) fn open(
        setup: ShardSetup,
        opened: OpenedDatabase,
        metrics: ShardMetrics,
    ) -> Result<Self, ShardError> {
        let OpenedDatabase { db, newest, .. } = opened;
        let limits = Limits { cached_bytes: bytes(setup.config.groups.0), ..Limits::default() };
        let mut shard = Shard::open_with(setup.plan.clone(), db, limits)?;
        shard.skip_to(setup.floor);
        let publisher = Publisher::new(
            setup.log.clone(),
            setup.runtime.clone(),
            setup.lease.clone(),
            setup.view.clone(),
            &setup.plan.stream,
        );
        let now = Instant::now();
        let checkpoints = find_checkpoints(&setup)?;
        let uploader = match &setup.checkpoint_store {
            Some(store) => {
                let (store, lease) = (store.clone(), setup.lease.clone());
                Some(CheckpointUploader::new(store, lease, &setup.data, newest)?)
            }
            None => None,
        };
        Ok(Self {
            setup,
            metrics,
            shard,
            reader: None,
            publisher,
            publish_after: None,
            publish_failed: false,
            checkpoints,
            uploader,
            commits: 0,
            committed_at: now,
            synced_at: now,
        })
    }

    /// The shard was claimed with this writer.
    pub(crate) fn set_writer(&mut self, writer: Arc<dyn FencedWriter>) {
        self.publisher.set_writer(writer);
    }

    /// The epoch of the latest claim.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.publisher.epoch()
    }

    /// One round: reads what is there, or waits a moment for it, and follows the orders. Returns
    /// whether something happened that others wait for.
    pub(crate) fn step(&mut self, orders: &Orders) -> Result<bool, ShardError> {
        let limit = self.limit(orders);
        let at_limit = |position| limit.is_some_and(|limit| position >= limit);
        let more = if at_limit(self.shard.position()) {
            if !self.shard.has_uncommitted() && self.due_checkpoint(orders).is_none() {
                std::thread::sleep(IDLE_WAIT);
            }
            false
        } else {
            self.read(limit)?
        };
        let config = &self.setup.config;
        let full = self.shard.pending_bytes() >= bytes(config.commit_bytes.0);
        let overdue = self.committed_at.elapsed() >= config.commit_interval;
        if !more || full || overdue || at_limit(self.shard.position()) {
            self.commit()?;
        }
        let mut happened = self.take_and_remove_checkpoints(orders)?;
        happened |= self.upload_checkpoints(orders)?;
        self.publish(&orders.permit)?;
        self.sync_if_due()?;
        Ok(happened)
    }

    /// The offset before which the shard stops for now.
    fn limit(&self, orders: &Orders) -> Option<Offset> {
        let position = self.shard.position();
        let exact = self.missing_checkpoints(orders).filter_map(|duty| match duty.at {
            CheckpointAt::Now => None,
            CheckpointAt::Exactly(at) => Some(at).filter(|at| *at >= position),
        });
        // Not beyond a checkpoint before it is uploaded: the coordinator would think that the shard
        // has missed it.
        let uploading = orders.checkpoints.iter().filter_map(|duty| match duty.at {
            CheckpointAt::Now => None,
            CheckpointAt::Exactly(at) => {
                let taken = self.checkpoints.get(duty.id.as_str());
                taken.filter(|checkpoint| checkpoint.location.is_none())?;
                Some(at)
            }
        });
        exact.chain(uploading).chain(orders.hold_at).min()
    }

    /// Returns whether there may be more to read at once.
    fn read(&mut self, limit: Option<Offset>) -> Result<bool, ShardError> {
        let (topic, partition) = (&self.setup.plan.stream.topic, self.setup.identity.partition);
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let position = self.shard.position();
                block_on(self.setup.log.reader(topic, partition, position))
                    .map_err(explain_trimmed)?
            }
        };
        let wait = if self.shard.has_uncommitted() { LINGER } else { IDLE_WAIT };
        let chunk =
            reader.read(bytes(self.setup.config.read_bytes.0), wait).map_err(explain_trimmed)?;
        let Some(chunk) = chunk else {
            // Some offsets hold no record.
            let passed = limit.map_or(reader.position(), |limit| limit.min(reader.position()));
            self.shard.skip_to(passed);
            self.reader = Some(reader).filter(|reader| reader.position() == passed);
            return Ok(false);
        };
        self.shard.apply(&chunk, limit)?;
        match limit {
            // The reader stands behind the limit now and is dropped.
            Some(limit) if limit < chunk.end() => self.shard.skip_to(limit),
            Some(_) | None => {
                self.shard.skip_to(chunk.end());
                self.reader = Some(reader);
            }
        }
        Ok(true)
    }

    pub(crate) fn commit(&mut self) -> Result<(), ShardError> {
        if !self.shard.has_uncommitted() {
            self.committed_at = Instant::now();
            return Ok(());
        }
        let before = self.shard.progress().tallies;
        let begun = Instant::now();
        let progress = self.shard.commit()?;
        self.committed_at = Instant::now();
        self.commits += 1;
        let seconds = (self.committed_at - begun).as_secs_f64();
        self.metrics.committed(seconds, &progress, difference(progress.tallies, before));
        Ok(())
    }

    /// Publishes what the permit allows. State never waits for outputs: after an error that may
    /// pass, publishing is tried again later.
    fn publish(&mut self, permit: &Permit) -> Result<(), ShardError> {
        if self.publish_after.is_some_and(|after| Instant::now() < after) {
            return Ok(());
        }
        self.publish_after = None;
        match self.publisher.publish(self.shard.db(), permit) {
            Ok(count) => {
                if count > 0 {
                    self.metrics.published(count);
                    self.publish_failed = false;
                }
                Ok(())
            }
            Err(error) if error.remedy == Remedy::Retry => {
                if error.log_away {
                    // Reading finds this too, and logs it once for all shards.
                    tracing::debug!(shard = %self.setup.identity, reason = error.reason, "outputs wait for the log");
                } else if !self.publish_failed {
                    tracing::warn!(shard = %self.setup.identity, reason = error.reason, "outputs cannot be published, trying again");
                    self.publish_failed = true;
                }
                self.publish_after = Some(Instant::now() + PUBLISH_RETRY);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes commits durable every so often: compaction removes only what had expired by then.
    fn sync_if_due(&mut self) -> Result<(), ShardError> {
        if self.synced_at.elapsed() >= self.setup.config.sync_interval {
            self.synced_at = Instant::now();
            let db = self.shard.db();
            if db.progress().rows_expired_before > db.durable_horizon() {
                db.sync()?;
            }
        }
        Ok(())
    }

    /// Commits what is in memory and closes the database.
    pub(crate) fn close(mut self) -> Result<(), ShardError> {
        self.commit()?;
        Ok(self.shard.db().sync()?)
    }

    pub(crate) fn progress(&self) -> Progress {
        self.shard.progress()
    }

    /// See [`Publisher::frontier`].
    pub(crate) fn frontier(&mut self) -> Result<Offset, ShardError> {
        self.publisher.frontier(self.shard.db())
    }

    pub(crate) fn published(&self) -> Result<Offset, ShardError> {
        self.publisher.published(self.shard.db())
    }

    /// See [`Publisher::waiting`].
    pub(crate) fn waiting(&self) -> Result<usize, ShardError> {
        self.publisher.waiting(self.shard.db())
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits
    }

    pub(crate) fn stream(&self) -> &StreamDefinition {
        &self.setup.plan.stream
    }

    pub(crate) fn ends(&self) -> Result<Ends, ShardError> {
        let (topic, partition) = (&self.setup.plan.stream.topic, self.setup.identity.partition);
        Ok(block_on(self.setup.log.ends(topic, partition))?)
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.shard.db().size_bytes()
    }

    pub(crate) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }
}

/// Adds to the log's error what was lost and what to do.
fn explain_trimmed(error: headwater_log::Error) -> ShardError {
    let headwater_log::Error::Trimmed { topic, partition, requested, start } = &error else {
        return error.into();
    };
    ShardError::new(
        Remedy::Correct,
        format!(
            "records {requested} to {start} of {topic}[{partition}] were trimmed before this generation had read them: \
             keep records longer, and start a replay of the view from what is left"
        ),
    )
}

fn difference(now: Tallies, before: Tallies) -> Tallies {
    Tallies {
        applied: now.applied - before.applied,
        filtered: now.filtered - before.filtered,
        late: now.late - before.late,
        duplicate: now.duplicate - before.duplicate,
        dead_lettered: now.dead_lettered - before.dead_lettered,
    }
}

fn bytes(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
