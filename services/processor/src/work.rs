//! One shard at work: reads, applies, commits, takes checkpoints and publishes.
//!
//! It holds nothing that a crash could take away for good: whatever it knows beyond its database is
//! read again from the log, from the directory of checkpoints or from the control topic.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{CheckpointAt, CheckpointDuty};
use headwater_engine::{Limits, Shard, ViewPlan};
use headwater_log::{Ends, Log, Reader};
use headwater_state::{Identity, Options, Progress, ShardDb, ShardReader, layout};
use headwater_types::{Name, Offset, Remedy, Tallies};
use tokio::runtime::Handle;

use crate::{
    Config,
    metrics::ShardMetrics,
    outbox::{Permit, Publisher},
    trouble::Trouble,
};

/// How long the log is waited for when there is nothing else to do: also how late an order is seen.
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// How long more records are waited for before what there is gets committed.
const LINGER: Duration = Duration::from_millis(5);
/// Publishing is tried again after an error.
const PUBLISH_RETRY: Duration = Duration::from_millis(500);

/// What one shard is and has.
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    pub(crate) view: Name,
    pub(crate) plan: Arc<ViewPlan>,
    /// The first offset that is read.
    pub(crate) floor: Offset,
    pub(crate) data: PathBuf,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) runtime: Handle,
    pub(crate) options: Options,
    pub(crate) config: Config,
}

impl Setup {
    fn shard_dir(&self) -> PathBuf {
        layout::shard_dir(&self.data, self.identity.generation, self.identity.partition)
    }

    fn checkpoint_dir(&self, id: &str) -> PathBuf {
        layout::checkpoint_dir(&self.data, self.identity.generation, self.identity.partition, id)
    }
}

/// What the control state wants of the shard now.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    /// Read no record at or beyond it.
    pub(crate) hold_at: Option<Offset>,
    /// The checkpoints that shall exist, and no others.
    pub(crate) checkpoints: Vec<CheckpointDuty>,
    pub(crate) permit: Permit,
}

pub(crate) struct Work {
    setup: Setup,
    metrics: ShardMetrics,
    shard: Shard,
    /// At the shard's position, if there is one.
    reader: Option<Box<dyn Reader>>,
    publisher: Publisher,
    publish_again: Option<Instant>,
    checkpoints: BTreeMap<String, Offset>,
    commits: u64,
    committed_at: Instant,
    synced_at: Instant,
}

impl Work {
    pub(crate) fn open(setup: Setup, metrics: ShardMetrics) -> Result<Self, Trouble> {
        let db = ShardDb::open(&setup.shard_dir(), &setup.identity, &setup.options)?;
        let limits = Limits { cached_bytes: bytes(setup.config.groups.0), ..Limits::default() };
        let mut shard = Shard::open_with(setup.plan.clone(), db, limits)?;
        shard.skip_to(setup.floor);
        let publisher = Publisher::new(
            setup.log.clone(),
            setup.runtime.clone(),
            setup.identity,
            setup.view.clone(),
            &setup.plan.stream,
        );
        let now = Instant::now();
        let checkpoints = find_checkpoints(&setup)?;
        Ok(Self {
            setup,
            metrics,
            shard,
            reader: None,
            publisher,
            publish_again: None,
            checkpoints,
            commits: 0,
            committed_at: now,
            synced_at: now,
        })
    }

    /// One round: reads what is there, or waits a moment for it, and does what the orders say. Returns
    /// whether something happened that others wait for.
    pub(crate) fn step(&mut self, orders: &Orders) -> Result<bool, Trouble> {
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
        let happened = self.keep_checkpoints(orders)?;
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
        exact.chain(orders.hold_at).min()
    }

    /// Returns whether there may be more to read at once.
    fn read(&mut self, limit: Option<Offset>) -> Result<bool, Trouble> {
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
            self.reader = Some(reader);
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

    pub(crate) fn commit(&mut self) -> Result<(), Trouble> {
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

    fn wanted<'a>(&self, orders: &'a Orders) -> impl Iterator<Item = &'a CheckpointDuty> {
        orders.checkpoints.iter().filter(|duty| !self.checkpoints.contains_key(duty.id.as_str()))
    }

    /// A checkpoint that is to be taken at this very position.
    fn due<'a>(&self, orders: &'a Orders) -> Option<&'a CheckpointDuty> {
        let position = self.shard.position();
        self.wanted(orders).find(|duty| match duty.at {
            CheckpointAt::Now => true,
            CheckpointAt::Exactly(at) => at == position,
        })
    }

    /// Takes the checkpoints that are due and removes those that nobody needs.
    fn keep_checkpoints(&mut self, orders: &Orders) -> Result<bool, Trouble> {
        let mut happened = false;
        while let Some(duty) = self.due(orders) {
            self.commit()?;
            let directory = self.setup.checkpoint_dir(duty.id.as_str());
            let progress = self.shard.db().checkpoint(&directory)?;
            tracing::info!(
                shard = %self.setup.identity,
                checkpoint = %duty.id,
                position = progress.position.0,
                "checkpoint taken"
            );
            self.checkpoints.insert(duty.id.to_string(), progress.position);
            happened = true;
        }
        let needed = |id: &str| orders.checkpoints.iter().any(|duty| duty.id.as_str() == id);
        while let Some(id) = self.checkpoints.keys().find(|id| !needed(id)).cloned() {
            layout::remove(&self.setup.checkpoint_dir(&id))?;
            self.checkpoints.remove(&id);
            happened = true;
        }
        Ok(happened)
    }

    /// State never waits for the outputs: what cannot be published for now is tried again later.
    fn publish(&mut self, permit: &Permit) -> Result<(), Trouble> {
        if self.publish_again.is_some_and(|again| Instant::now() < again) {
            return Ok(());
        }
        self.publish_again = None;
        match self.publisher.publish(self.shard.db(), permit) {
            Ok(0) => Ok(()),
            Ok(count) => {
                self.metrics.published(count);
                Ok(())
            }
            Err(trouble) if trouble.remedy == Remedy::Retry => {
                tracing::warn!(shard = %self.setup.identity, reason = trouble.reason, "outputs cannot be published, trying again");
                self.publish_again = Some(Instant::now() + PUBLISH_RETRY);
                Ok(())
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Lets compaction remove what has expired since.
    fn sync(&mut self) -> Result<(), Trouble> {
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
    pub(crate) fn close(mut self) -> Result<(), Trouble> {
        self.commit()?;
        Ok(self.shard.db().sync()?)
    }

    pub(crate) fn progress(&self) -> Progress {
        self.shard.progress()
    }

    /// See [`Publisher::frontier`].
    pub(crate) fn frontier(&mut self) -> Result<Offset, Trouble> {
        self.publisher.frontier(self.shard.db())
    }

    pub(crate) fn published(&self) -> Result<Offset, Trouble> {
        self.publisher.published(self.shard.db())
    }

    /// By id, with the position of each.
    pub(crate) fn checkpoints(&self) -> &BTreeMap<String, Offset> {
        &self.checkpoints
    }

    pub(crate) fn checkpoint_dir(&self, id: &str) -> PathBuf {
        self.setup.checkpoint_dir(id)
    }

    pub(crate) fn commits(&self) -> u64 {
        self.commits
    }

    pub(crate) fn ends(&self) -> Result<Ends, Trouble> {
        Ok(self.setup.log.ends(&self.setup.plan.stream.topic, self.setup.identity.partition)?)
    }

    pub(crate) fn state_bytes(&self) -> u64 {
        self.shard.db().size_bytes()
    }

    pub(crate) fn metrics(&self) -> &ShardMetrics {
        &self.metrics
    }
}

/// The checkpoints that are there since an earlier life.
fn find_checkpoints(setup: &Setup) -> Result<BTreeMap<String, Offset>, Trouble> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(setup.checkpoint_dir("").as_path()) else { return Ok(found) };
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        match ShardReader::open_checkpoint_with(&entry.path(), &setup.identity, &setup.options) {
            Ok(reader) => {
                found.insert(id, reader.progress().position);
            }
            Err(error) if error.remedy() == Remedy::Retry && !is_missing(&error) => {
                return Err(error.into());
            }
            // One that a crash left half done, or damage: another can be taken, this one cannot be used.
            Err(error) => {
                tracing::info!(path = %entry.path().display(), %error, "removing what is no checkpoint");
                layout::remove(&entry.path())?;
            }
        }
    }
    Ok(found)
}

fn is_missing(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Missing { .. })
}

/// Says what was lost and what to do, which the log cannot know.
fn trimmed(error: headwater_log::Error) -> Trouble {
    let headwater_log::Error::Trimmed { topic, partition, requested, start } = &error else {
        return error.into();
    };
    Trouble::new(
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
