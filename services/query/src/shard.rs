//! One shard as this instance reads it: on its own disk, opened when it is first asked for and caught up on
//! demand, or at a peer that shares the directory in which it lies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_proto::query::v1::{OpenShard, ScanRange, ShardOpened};
use headwater_state::{Identity, KeyRange, RowHeader, ShardReader, layout};
use headwater_types::{EventTime, GenerationId, Name, Offset, PartitionId, Remedy};
use parking_lot::Mutex;
use prost::bytes::Bytes;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};
use tracing::Instrument as _;

use crate::{
    error::Error,
    generation::Source,
    peers::{Peer, Refused},
    places::{Elsewhere, Place},
    session::Session,
    wire::Rows,
};

/// Waits between two looks at a shard that has not reached a position yet.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(25);
/// How often it is checked whether a shard that a peer is asked for has moved on.
const MOVED_PAUSE: Duration = Duration::from_millis(20);
/// A peer answers this much earlier than the deadline, so that its answer arrives.
const ROUND_TRIP: Duration = Duration::from_millis(20);

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
    /// Of the claim under which it was opened: with another owner the directory may have been made anew.
    epoch: u64,
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

/// What a request reads of each shard. It is said before the shard is held, because a peer opens all of it at
/// once.
#[derive(Default)]
pub(crate) struct Reads {
    /// One row.
    pub key: Option<Vec<u8>>,
    pub scans: Vec<ReadScan>,
    /// Until when it may be read.
    pub duration: Duration,
}

/// One scan of every shard.
pub(crate) struct ReadScan {
    pub range: KeyRange,
    /// Only rows that a record at or behind the position of its partition changed; one position per shard.
    pub changed_since: Option<Vec<Offset>>,
    /// About how many rows are read at first.
    pub first_rows: usize,
}

/// A shard that stands still until this is dropped.
pub(crate) struct Held {
    pub partition: PartitionId,
    pub position: Offset,
    pub watermark: EventTime,
    state: State,
}

enum State {
    Disk {
        reader: Arc<ShardReader>,
        /// When the reader's last catch-up began.
        caught_up: Instant,
        _guard: OwnedRwLockReadGuard<()>,
    },
    Peer {
        session: Arc<Session>,
        row: Bytes,
    },
}

/// Where the rows of a shard that is held are read.
#[derive(Clone)]
pub(crate) enum Rest {
    Disk(Arc<ShardReader>),
    Peer(Arc<Session>),
}

impl Held {
    fn on_disk(partition: PartitionId, opened: Opened, guard: OwnedRwLockReadGuard<()>) -> Self {
        let Opened { reader, caught_up, .. } = opened;
        // Nothing moves it while the guard is held.
        let progress = reader.progress();
        Self {
            partition,
            position: progress.position,
            watermark: progress.watermark,
            state: State::Disk { reader, caught_up, _guard: guard },
        }
    }

    fn at_peer(opened: ShardOpened, session: Session) -> Self {
        Self {
            partition: session.partition,
            position: Offset(opened.position),
            watermark: opened.watermark_micros.map_or(EventTime::MIN, EventTime),
            state: State::Peer { session: Arc::new(session), row: opened.row },
        }
    }

    pub(crate) fn is_elsewhere(&self) -> bool {
        matches!(self.state, State::Peer { .. })
    }

    /// The peer that reads it; `None` if we do.
    pub(crate) fn served_by(&self) -> Option<&str> {
        match &self.state {
            State::Disk { .. } => None,
            State::Peer { session, .. } => Some(&session.peer.instance),
        }
    }

    /// When we last caught up with it, if it is ours.
    pub(crate) fn caught_up(&self) -> Option<Instant> {
        match &self.state {
            State::Disk { caught_up, .. } => Some(*caught_up),
            State::Peer { .. } => None,
        }
    }

    pub(crate) fn rest(&self) -> Rest {
        match &self.state {
            State::Disk { reader, .. } => Rest::Disk(reader.clone()),
            State::Peer { session, .. } => Rest::Peer(session.clone()),
        }
    }

    /// The row with the key of [`Reads::key`].
    pub(crate) fn row(
        &self,
        generation: GenerationId,
        key: &[u8],
    ) -> Result<Option<(RowHeader, Vec<u8>)>, Error> {
        match &self.state {
            State::Disk { reader, .. } => {
                let partition = self.partition;
                let failed = |source| Error::State { generation, partition, source };
                reader.view().get(key).map_err(failed)
            }
            State::Peer { session, row } => {
                let mut rows = Rows::new(row.clone());
                let row = rows.next().transpose().map_err(|_| session.damaged())?;
                Ok(row.map(|(_, header, payload)| (header, payload.to_vec())))
            }
        }
    }
}

/// Who asked.
#[derive(Clone, Copy)]
enum Asker<'a> {
    /// Whoever has the shard may answer.
    Client(&'a Reads),
    /// Who knows of the claim with this epoch. We answer from our disk or not at all.
    Peer { epoch: u64 },
}

impl LiveShard {
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
        wanted: Wanted,
        reads: &Reads,
    ) -> Result<Held, Error> {
        self.hold_from(wanted, Asker::Client(reads)).await
    }

    /// As [`LiveShard::hold`], for a peer who was told by the claim with this epoch that the shard is here.
    pub(crate) async fn hold_here(
        self: &Arc<Self>,
        wanted: Wanted,
        epoch: u64,
    ) -> Result<Held, Error> {
        self.hold_from(wanted, Asker::Peer { epoch }).await
    }

    async fn hold_from(self: &Arc<Self>, wanted: Wanted, asker: Asker<'_>) -> Result<Held, Error> {
        let mut since = wanted.since;
        let mut pause = FIRST_PAUSE;
        let mut round_trip = Duration::ZERO;
        loop {
            let outcome = match asker {
                Asker::Client(reads) => match self.source.places.of(&self.identity) {
                    Place::Here { epoch } => self.hold_now(since, epoch).await,
                    Place::Elsewhere(place) => self.forward(&place, wanted, reads).await,
                },
                Asker::Peer { epoch } => match self.source.places.holds(&self.identity, epoch) {
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
                // Its processor may be about to create it, or to move it, or a peer about to come.
                Err(error) if error.is_passing() => error,
                Err(error) => return Err(error),
            };
            let left = wanted.deadline.saturating_duration_since(Instant::now());
            if left <= round_trip {
                return Err(missed);
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            since = Instant::now();
        }
    }

    fn moved(&self) -> Error {
        Error::Moved { generation: self.generation(), partition: self.partition() }
    }

    async fn hold_now(self: &Arc<Self>, since: Instant, epoch: u64) -> Result<Held, Error> {
        let guard = self.gate.clone().read_owned().await;
        if let Some(opened) = self.opened_since(since, epoch) {
            return Ok(Held::on_disk(self.partition(), opened, guard));
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
        Ok(Held::on_disk(self.partition(), opened, exclusive.downgrade()))
    }

    /// The reader, if it has every commit that is older than `since`.
    fn opened_since(&self, since: Instant, epoch: u64) -> Option<Opened> {
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
        let ends = self.source.log.ends(&self.topic, self.partition()).ok()?;
        if opened.position < ends.end {
            return None;
        }
        opened.caught_up = now;
        Some(opened)
    }

    /// Blocks. Called with the gate held for writing.
    fn catch_up(&self, epoch: u64) -> Result<Opened, Error> {
        let began = Instant::now();
        let present = self.opened.lock().clone().filter(|opened| opened.epoch == epoch);
        let reader = match present {
            Some(Opened { reader, .. }) => {
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
        let opened = Opened { position, reader, caught_up: began, epoch };
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

    /// Asks the peers that share the shard's directory, one after the other.
    async fn forward(
        &self,
        place: &Elsewhere,
        wanted: Wanted,
        reads: &Reads,
    ) -> Result<Held, Error> {
        let mut problem = "no query instance says that it shares that directory".to_owned();
        let Source { places, peers, .. } = &*self.source;
        for peer in peers.sharing(&places.board(), &place.directory) {
            let span = tracing::debug_span!(
                "forward",
                generation = %self.generation(),
                partition = %self.partition(),
                instance = %peer.instance,
            );
            let ask = self.ask(&peer, place, wanted, reads).instrument(span);
            let asked = tokio::select! {
                asked = tokio::time::timeout_at(wanted.deadline.into(), ask) => asked,
                () = self.leaves(place) => {
                    problem = "it has just moved".into();
                    break;
                }
            };
            let Peer { instance, address } = &peer;
            match asked {
                Ok(Ok(held)) => return Ok(held),
                Ok(Err(Refused { status, down })) => {
                    problem = format!("{instance} at {address} says: {}", status.message());
                    if !down && is_final(status.code()) {
                        return Err(Error::Peer {
                            generation: self.generation(),
                            partition: self.partition(),
                            instance: instance.to_string(),
                            address: address.to_string(),
                            code: status.code(),
                            message: status.message().to_owned(),
                        });
                    }
                }
                Err(_) => {
                    problem = format!("{instance} at {address} did not answer in time");
                    break;
                }
            }
        }
        Err(Error::Elsewhere {
            view: self.view.to_string(),
            generation: self.generation(),
            partition: self.partition(),
            processor: place.processor.clone(),
            directory: place.directory.clone(),
            problem,
        })
    }

    async fn ask(
        &self,
        peer: &Peer,
        place: &Elsewhere,
        wanted: Wanted,
        reads: &Reads,
    ) -> Result<Held, Refused> {
        let began = Instant::now();
        let left = wanted.deadline.saturating_duration_since(began);
        let partition = self.partition();
        let range = |scan: &ReadScan| ScanRange {
            start: scan.range.start.clone(),
            end: scan.range.end.clone(),
            changed_since: scan
                .changed_since
                .as_ref()
                .map(|since| since.get(partition.0 as usize).map_or(0, |position| position.0)),
        };
        let open = OpenShard {
            generation: self.generation().to_string(),
            partition: partition.0,
            directory: place.directory.clone(),
            epoch: place.epoch,
            position: wanted.position.0,
            max_age_micros: micros(began.saturating_duration_since(wanted.since)),
            timeout_ms: millis(left.saturating_sub(ROUND_TRIP.min(left / 4))),
            duration_ms: millis(reads.duration),
            key: reads.key.clone(),
            scans: reads.scans.iter().map(range).collect(),
        };
        let first_rows: Vec<u32> = reads
            .scans
            .iter()
            .map(|scan| u32::try_from(scan.first_rows.max(1)).unwrap_or(u32::MAX))
            .collect();
        let opened = self.source.peers.open(peer, open, &first_rows).await;
        self.source.metrics.forwarded(began, opened.as_ref().map(drop).map_err(|it| &it.status));
        let (opened, stream) = opened?;
        let peer = Peer { instance: opened.instance.as_str().into(), ..peer.clone() };
        let session = Session::new(self.generation(), partition, peer, stream, first_rows);
        Ok(Held::at_peer(opened, session))
    }

    /// Resolves when the shard is no longer where it was.
    async fn leaves(&self, place: &Elsewhere) {
        loop {
            tokio::time::sleep(MOVED_PAUSE).await;
            match self.source.places.of(&self.identity) {
                Place::Elsewhere(now)
                    if now.directory == place.directory && now.epoch == place.epoch => {}
                Place::Elsewhere(_) | Place::Here { .. } => return,
            }
        }
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
        if let Place::Elsewhere(place) = self.source.places.of(&self.identity)
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

/// Whether asking again, here or elsewhere, would not help.
fn is_final(code: tonic::Code) -> bool {
    use tonic::Code;
    match code {
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::PermissionDenied
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::Unimplemented
        | Code::Unavailable => false,
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
