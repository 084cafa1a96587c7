//! One shard at work: reads, applies, commits, takes checkpoints and publishes.
//!
//! It holds nothing that a crash could take away for good: whatever it knows beyond its database is
//! read again from the log, from the directory of checkpoints or from the control topic.

mod checkpoints;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use checkpoints::{ReplayCheckpoint, find_checkpoints};
use headwater_control::{CheckpointAt, CheckpointDuty};
use headwater_engine::{Limits, Shard, ViewPlan};
use headwater_log::{Ends, FencedWriter, Log, Reader};
use headwater_state::{Identity, Options, Progress, layout};
use headwater_types::{Epoch, Name, Offset, Remedy, StreamDefinition, Tallies};
use tokio::runtime::Handle;

use crate::{
    checkpoint::{restore::OpenedDatabase, setup::ShardSetup, upload::CheckpointUploader},
    error::ShardError,
    metrics::ShardMetrics,
    publish::outbox::{Permit, Publisher},
};

/// How long the log is waited for when there is nothing else to do: also how late an order is seen.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// How long more records are waited for before what there is gets committed.
const LINGER: Duration = Duration::from_millis(5);
/// Publishing is tried again after an error.
const PUBLISH_RETRY: Duration = Duration::from_millis(500);

/// What the control state wants of the shard now.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// Read no record at or beyond it.
    pub(crate) hold_at: Option<Offset>,
    /// The checkpoints that shall exist, and no others.
    pub(crate) checkpoints: Vec<CheckpointDuty>,
    pub(crate) permit: Permit,
}

pub(crate) struct ShardTask {
    setup: ShardSetup,
    metrics: ShardMetrics,
    shard: Shard,
    /// At the shard's position, if there is one.
    reader: Option<Box<dyn Reader>>,
    publisher: Publisher,
    publish_again: Option<Instant>,
    /// Publishing failed, and that was said.
    unpublished: bool,
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
            Some(checkpoint_store) => {
                let (checkpoint_store, lease) = (checkpoint_store.clone(), setup.lease.clone());
                Some(CheckpointUploader::new(checkpoint_store, lease, &setup.data, newest)?)
            }
            None => None,
        };
        Ok(Self {
            setup,
            metrics,
            shard,
            reader: None,
            publisher,
            publish_again: None,
            unpublished: false,
            checkpoints,
            uploader,
            commits: 0,
            committed_at: now,
            synced_at: now,
        })
    }

    /// The shard was claimed with this writer.
    pub(crate) fn claimed(&mut self, writer: Arc<dyn FencedWriter>) {
        self.publisher.claimed(writer);
    }

    /// Of the latest claim.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.publisher.epoch()
    }

    /// One round: reads what is there, or waits a moment for it, and does what the orders say. Returns
    /// whether something happened that others wait for.
    pub(crate) fn step(&mut self, orders: &Orders) -> Result<bool, ShardError> {
        let limit = self.limit(orders);
        let at_limit = |position| limit.is_some_and(|limit| position >= limit);
        let more = if at_limit(self.shard.position()) {
            if !self.shard.has_uncommitted() && self.due(orders).is_none() {
                std::thread::sleep(IDLE_WAIT);
            }
            false
        } else {
            self.read(limit)?
        };
        let config = &self.setup.config;
        let full = self.shard.pending_bytes() >= bytes(config.commit_bytes.0);
        let late = self.committed_at.elapsed() >= config.commit_interval;
        if !more || full || late || at_limit(self.shard.position()) {
            self.commit()?;
        }
        let mut happened = self.keep_checkpoints(orders)?;
        happened |= self.upload(orders)?;
        self.publish(&orders.permit)?;
        self.sync()?;
        Ok(happened)
    }

    /// Before which offset the shard stops for now.
    fn limit(&self, orders: &Orders) -> Option<Offset> {
        let position = self.shard.position();
        let exact = self.wanted(orders).filter_map(|duty| match duty.at {
            CheckpointAt::Now => None,
            CheckpointAt::Exactly(at) => Some(at).filter(|at| *at >= position),
        });
        // A position beyond a checkpoint that nobody can see yet would say that it was missed.
        let uploading = orders.checkpoints.iter().filter_map(|duty| match duty.at {
            CheckpointAt::Now => None,
            CheckpointAt::Exactly(at) => {
                self.checkpoints.get(duty.id.as_str()).filter(|taken| taken.location.is_none())?;
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
                self.setup.log.reader(topic, partition, self.shard.position()).map_err(trimmed)?
            }
        };
        let wait = if self.shard.has_uncommitted() { LINGER } else { IDLE_WAIT };
        let chunk = reader.read(bytes(self.setup.config.read_bytes.0), wait).map_err(trimmed)?;
        let Some(chunk) = chunk else {
            // Some offsets hold no record.
            let passed = limit.map_or(reader.position(), |limit| limit.min(reader.position()));
            self.shard.skip_to(passed);
            self.reader = Some(reader).filter(|reader| reader.position() == passed);
            return Ok(false);
        };
        self.shard.apply(&chunk, limit)?;
        match limit {
            // The reader is beyond the shard now, and goes.
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

    /// State never waits for the outputs: what cannot be published for now is tried again later.
    fn publish(&mut self, permit: &Permit) -> Result<(), ShardError> {
        if self.publish_again.is_some_and(|again| Instant::now() < again) {
            return Ok(());
        }
        self.publish_again = None;
        match self.publisher.publish(self.shard.db(), permit) {
            Ok(count) => {
                if count > 0 {
                    self.metrics.published(count);
                    self.unpublished = false;
                }
                Ok(())
            }
            Err(error) if error.remedy == Remedy::Retry => {
                if error.away {
                    // Whoever reads the log says so for all.
                    tracing::debug!(shard = %self.setup.identity, reason = error.reason, "outputs wait for the log");
                } else if !self.unpublished {
                    tracing::warn!(shard = %self.setup.identity, reason = error.reason, "outputs cannot be published, trying again");
                    self.unpublished = true;
                }
                self.publish_again = Some(Instant::now() + PUBLISH_RETRY);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Lets compaction remove what has expired since.
    fn sync(&mut self) -> Result<(), ShardError> {
        if self.synced_at.elapsed() >= self.setup.config.sync_interval {
            self.synced_at = Instant::now();
            let db = self.shard.db();
            if db.progress().rows_expired_before > db.durable_horizon() {
                db.sync()?;
            }
        }
        Ok(())
    }

    /// Commits what is in memory, as far as it can be, and closes the database.
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

    /// How many outputs wait; see [`Publisher::waiting`].
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
        Ok(self.setup.log.ends(&self.setup.plan.stream.topic, self.setup.identity.partition)?)
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.shard.db().size_bytes()
    }

    pub(crate) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }
}

/// Says what was lost and what to do, which the log cannot know.
fn trimmed(error: headwater_log::Error) -> ShardError {
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
