//! One shard as this instance reads it: opened when it is first asked for, caught up on demand.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_state::{Identity, ShardReader, layout};
use headwater_types::{GenerationId, Name, Offset, PartitionId, Remedy};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::{error::Error, generation::Source};

/// Waits between two looks at a shard that has not reached a position yet.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// One shard of a generation.
pub(crate) struct LiveShard {
    view: Name,
    identity: Identity,
    /// The topic of its stream.
    topic: Name,
    source: Arc<Source>,
    opened: Mutex<Option<Opened>>,
    /// Held for writing while the reader catches up, and for reading while an answer takes its view of
    /// the shard: an answer never blocks its thread on a catch-up, and everything that it opens
    /// under one guard shows the same commit.
    gate: Arc<RwLock<()>>,
}

#[derive(Clone)]
struct Opened {
    reader: Arc<ShardReader>,
    position: Offset,
    /// When the last successful catch-up began.
    caught_up: Instant,
}

/// What a request wants of a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The answer has every commit that is older than this.
    pub since: Instant,
    /// The answer has every record before this.
    pub position: Offset,
    /// In whose name: the first words of "… position 17 in partition 3".
    pub reason: &'static str,
    pub deadline: Instant,
}

/// A shard whose reader stands still until this is dropped.
pub(crate) struct Held {
    pub partition: PartitionId,
    pub reader: Arc<ShardReader>,
    /// When the reader's last catch-up began.
    pub caught_up: Instant,
    _guard: OwnedRwLockReadGuard<()>,
}

impl LiveShard {
    pub(crate) fn new(view: Name, identity: Identity, topic: Name, source: Arc<Source>) -> Self {
        Self { view, identity, topic, source, opened: Mutex::default(), gate: Arc::default() }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.identity.partition
    }

    fn generation(&self) -> GenerationId {
        self.identity.generation
    }

    /// Holds the shard still once it has what is wanted, waiting for that until the deadline.
    pub(crate) async fn hold(self: &Arc<Self>, wanted: Wanted) -> Result<Held, Error> {
        let mut since = wanted.since;
        let mut pause = FIRST_PAUSE;
        loop {
            let outcome = self.hold_now(since).await;
            let missed = match outcome {
                Ok(held) => {
                    let present = held.reader.view().progress().position;
                    if present >= wanted.position {
                        return Ok(held);
                    }
                    Error::NotReached {
                        view: self.view.to_string(),
                        generation: self.generation(),
                        partition: self.partition(),
                        wanted: wanted.position,
                        present,
                        reason: wanted.reason,
                    }
                }
                // Its processor may be about to create it.
                Err(error @ Error::NoState { .. }) => error,
                Err(error) => return Err(error),
            };
            let left = wanted.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(missed);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            since = Instant::now();
        }
    }

    async fn hold_now(self: &Arc<Self>, since: Instant) -> Result<Held, Error> {
        let hold = |Opened { reader, caught_up, .. }, guard| Held {
            partition: self.partition(),
            reader,
            caught_up,
            _guard: guard,
        };
        let guard = self.gate.clone().read_owned().await;
        if let Some(opened) = self.opened_since(since) {
            return Ok(hold(opened, guard));
        }
        drop(guard);
        let mut exclusive = self.gate.clone().write_owned().await;
        // Whoever waited for the gate beside us may have done it.
        let opened = match self.opened_since(since) {
            Some(opened) => opened,
            None => {
                let shard = Arc::clone(self);
                // The guard goes along: a request that is given up must not open the gate early.
                let outcome =
                    tokio::task::spawn_blocking(move || (shard.catch_up(), exclusive)).await;
                let outcome = outcome.map_err(|_| Error::Panicked)?;
                exclusive = outcome.1;
                outcome.0?
            }
        };
        Ok(hold(opened, exclusive.downgrade()))
    }

    /// The reader, if it has every commit that is older than `since`.
    fn opened_since(&self, since: Instant) -> Option<Opened> {
        let mut opened = self.opened.lock().clone()?;
        if opened.caught_up >= since {
            return Some(opened);
        }
        // With all of the log in it there is nothing to catch up with.
        let now = Instant::now();
        let ends = self.source.log.ends(&self.topic, self.partition()).ok()?;
        if opened.position < ends.end {
            return None;
        }
        opened.caught_up = now;
        Some(opened)
    }

    /// Blocks. Called with the gate held for writing.
    fn catch_up(&self) -> Result<Opened, Error> {
        let began = Instant::now();
        let present = self.opened.lock().as_ref().map(|opened| opened.reader.clone());
        let reader = match present {
            Some(reader) => {
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
        self.source.catch_up_seconds.observe(began.elapsed().as_secs_f64());
        let opened = Opened { position: reader.progress().position, reader, caught_up: began };
        *self.opened.lock() = Some(opened.clone());
        Ok(opened)
    }

    fn open(&self) -> Result<ShardReader, Error> {
        let (generation, partition) = (self.generation(), self.partition());
        let Source { data, instance, options, .. } = &*self.source;
        let primary = layout::shard_dir(data, generation, partition);
        let scratch = layout::reader_dir(data, instance, generation, partition);
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
    pub(crate) fn close(&self) {
        *self.opened.lock() = None;
    }
}
