//! One shard as this instance reads it: on its own disk, opened when it is first asked for and caught up on
//! demand, or at a peer that shares the directory in which it lies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_state::{Identity, ShardReader, layout};
use headwater_types::{GenerationId, Name, Offset, PartitionId, Remedy};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::{
    error::Error,
    peers::shard_locator::ShardLocation,
    snapshot::generation_cache::Source,
    snapshot::shard_snapshot::{FreshnessGoal, ReadPlan, ShardSnapshot},
};

use crate::peers::forward::ROUND_TRIP;

/// Waits between two looks at a shard that has not reached a position yet.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// One shard of a generation.
pub(crate) struct ShardSource {
    pub view: Name,
    pub identity: Identity,
    /// The topic of its stream.
    topic: Name,
    pub source: Arc<Source>,
    opened: Mutex<Option<OpenReader>>,
    /// Held for writing while the reader catches up, and for reading while an answer takes its view of
    /// the shard: an answer never blocks its thread on a catch-up, and everything that it opens
    /// under one guard shows the same commit.
    gate: Arc<RwLock<()>>,
}

#[derive(Clone)]
struct OpenReader {
    reader: Arc<ShardReader>,
    position: Offset,
    /// When the last successful catch-up began.
    caught_up: Instant,
    /// Of the claim under which it was opened: with another owner the directory may have been made anew.
    epoch: u64,
}

/// Who asked.
#[derive(Clone, Copy)]
enum Requester<'a> {
    /// Whoever has the shard may answer.
    Client(&'a ReadPlan),
    /// Who knows of the claim with this epoch. We answer from our disk or not at all.
    Peer { epoch: u64 },
}

impl ShardSource {
    pub(crate) fn new(view: Name, identity: Identity, topic: Name, source: Arc<Source>) -> Self {
        Self { view, identity, topic, source, opened: Mutex::default(), gate: Arc::default() }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.identity.partition
    }

    pub(crate) fn generation(&self) -> GenerationId {
        self.identity.generation
    }

    /// Holds the shard still, wherever it is, once it has what is wanted, waiting for that until the deadline.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        wanted: FreshnessGoal,
        reads: &ReadPlan,
    ) -> Result<ShardSnapshot, Error> {
        self.hold_from(wanted, Requester::Client(reads)).await
    }

    /// As [`ShardSource::hold`], for a peer who was told by the claim with this epoch that the shard is here.
    pub(crate) async fn hold_here(
        self: &Arc<Self>,
        wanted: FreshnessGoal,
        epoch: u64,
    ) -> Result<ShardSnapshot, Error> {
        self.hold_from(wanted, Requester::Peer { epoch }).await
    }

    async fn hold_from(
        self: &Arc<Self>,
        wanted: FreshnessGoal,
        asker: Requester<'_>,
    ) -> Result<ShardSnapshot, Error> {
        let mut since = wanted.since;
        let mut pause = FIRST_PAUSE;
        let mut round_trip = Duration::ZERO;
        let mut before = None;
        loop {
            let outcome = match asker {
                Requester::Client(reads) => match self.source.locator.of(&self.identity) {
                    ShardLocation::Local { epoch } => self.hold_now(since, epoch).await,
                    ShardLocation::Remote(place) => self.forward(&place, wanted, reads).await,
                },
                Requester::Peer { epoch } => match self.source.locator.holds(&self.identity, epoch)
                {
                    Some(epoch) => self.hold_now(since, epoch).await,
                    None => return Err(self.moved()),
                },
            };
            let missed = match outcome {
                Ok(held) if held.position >= wanted.position => return Ok(held),
                Ok(held) => {
                    // A peer has waited as long as there was time for its answer.
                    round_trip = if held.is_elsewhere() { ROUND_TRIP * 2 } else { Duration::ZERO };
                    Error::NotReached {
                        view: self.view.to_string(),
                        generation: self.generation(),
                        partition: self.partition(),
                        wanted: wanted.position,
                        present: held.position,
                        reason: wanted.reason,
                    }
                }
                // Its processor may be about to create it, or to move it, or a peer about to come. One that
                // was cut off by the deadline says less than the one before.
                Err(error) if error.is_passing() => match before.take() {
                    Some(before)
                        if matches!(error, Error::ShardUnreachable { .. })
                            && wanted.deadline <= Instant::now() =>
                    {
                        before
                    }
                    Some(_) | None => error,
                },
                Err(error) => return Err(error),
            };
            let left = wanted.deadline.saturating_duration_since(Instant::now());
            if left <= round_trip {
                return Err(missed);
            }
            before = Some(missed);
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            since = Instant::now();
        }
    }

    fn moved(&self) -> Error {
        Error::Moved { generation: self.generation(), partition: self.partition() }
    }

    async fn hold_now(
        self: &Arc<Self>,
        since: Instant,
        epoch: u64,
    ) -> Result<ShardSnapshot, Error> {
        let guard = self.gate.clone().read_owned().await;
        if let Some(opened) = self.opened_since(since, epoch) {
            return Ok(self.held(opened, guard));
        }
        drop(guard);
        let mut exclusive = self.gate.clone().write_owned().await;
        // Whoever waited for the gate beside us may have done it.
        let opened = match self.opened_since(since, epoch) {
            Some(opened) => opened,
            None => {
                let shard = Arc::clone(self);
                // The guard goes along: a request that is given up must not open the gate early.
                let outcome =
                    tokio::task::spawn_blocking(move || (shard.catch_up(epoch), exclusive)).await;
                let outcome = outcome.map_err(|_| Error::Panicked)?;
                exclusive = outcome.1;
                outcome.0?
            }
        };
        Ok(self.held(opened, exclusive.downgrade()))
    }

    fn held(&self, opened: OpenReader, guard: OwnedRwLockReadGuard<()>) -> ShardSnapshot {
        ShardSnapshot::on_disk(self.partition(), opened.reader, opened.caught_up, guard)
    }

    /// The reader, if it has every commit that is older than `since`.
    fn opened_since(&self, since: Instant, epoch: u64) -> Option<OpenReader> {
        let mut opened = self.opened.lock().clone()?;
        if opened.epoch != epoch {
            return None;
        }
        if opened.caught_up >= since {
            return Some(opened);
        }
        if self.source.log.is_remote() {
            // Asking where the log ends would take longer than catching up, and would block.
            return None;
        }
        // With all of the log in it there is nothing to catch up with.
        let now = Instant::now();
        let ends =
            headwater_log::block_on(self.source.log.ends(&self.topic, self.partition())).ok()?;
        if opened.position < ends.end {
            return None;
        }
        opened.caught_up = now;
        Some(opened)
    }

    /// Blocks. Called with the gate held for writing.
    fn catch_up(&self, epoch: u64) -> Result<OpenReader, Error> {
        let began = Instant::now();
        let present = self.opened.lock().clone().filter(|opened| opened.epoch == epoch);
        let reader = match present {
            Some(OpenReader { reader, .. }) => {
                if let Err(source) = reader.refresh() {
                    // Opened anew, it may get over what stopped it.
                    *self.opened.lock() = None;
                    return Err(Error::State {
                        generation: self.generation(),
                        partition: self.partition(),
                        source,
                    });
                }
                reader
            }
            None => Arc::new(self.open()?),
        };
        self.source.metrics.catch_up.observe(began.elapsed().as_secs_f64());
        let position = reader.progress().position;
        let opened = OpenReader { position, reader, caught_up: began, epoch };
        *self.opened.lock() = Some(opened.clone());
        Ok(opened)
    }

    fn open(&self) -> Result<ShardReader, Error> {
        let (generation, partition) = (self.generation(), self.partition());
        let Source { data, scratch, instance, options, .. } = &*self.source;
        let primary = layout::shard_dir(data, generation, partition);
        let scratch = layout::reader_dir(scratch, instance, generation, partition);
        let opened = ShardReader::open_live_with(&primary, &scratch, &self.identity, options);
        opened.map_err(|source| match source.remedy() {
            Remedy::Retry => {
                Error::NoState { view: self.view.to_string(), generation, partition, source }
            }
            Remedy::Correct | Remedy::StandDown | Remedy::Repair => {
                Error::State { generation, partition, source }
            }
        })
    }

    /// Gives the reader up. Answers that still read it keep it until they end.
    pub(crate) fn close(&self) -> bool {
        let closed = self.opened.lock().take().is_some();
        if closed {
            let Source { scratch, instance, .. } = &*self.source;
            // What is left is a few log files of RocksDB; the next start removes them.
            let _ = std::fs::remove_dir_all(layout::reader_dir(
                scratch,
                instance,
                self.generation(),
                self.partition(),
            ));
        }
        closed
    }

    /// Closes the reader of a copy that its owner left behind.
    pub(crate) fn close_if_moved(&self) {
        if let ShardLocation::Remote(place) = self.source.locator.of(&self.identity)
            && self.close()
        {
            tracing::info!(
                generation = %self.generation(),
                partition = %self.partition(),
                processor = place.processor,
                directory = place.directory,
                "shard closed, it has moved"
            );
        }
    }
}
