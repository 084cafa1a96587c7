//! What the gRPC services share: the state as it was last written, and the way to ask for more.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use headwater_control::{
    ControlState, Effect, LogEnds, Reach, ReplayEntry, ReplayId, StatusBoard, is_open,
    replay_status,
};
use headwater_log::Log;
use headwater_proto::control::v1::{Replay, control_record::Event};
use headwater_service::{Node, Refusal, Shutdown, follow::ControlView, log_status, status};
use headwater_state::Store;
use headwater_types::{Clock, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{config::Config, definitions::StreamCache};

/// Requests that may wait for the reconciler; a client beyond that waits to hand its own in.
const INBOX: usize = 64;

/// What a request makes of the state: the records to be written, none if there is nothing to do.
pub(crate) type Command = Box<dyn FnOnce(&ControlState) -> Result<Vec<Event>, Status> + Send>;

/// One request on its way to the reconciler.
pub(crate) struct QueuedCommand {
    pub(crate) request_id: String,
    pub(crate) command: Command,
    pub(crate) answer: oneshot::Sender<Result<CommandOutcome, Status>>,
}

/// The state after a request, and what the request did, now or when it was first sent.
pub(crate) struct CommandOutcome {
    pub(crate) state: Arc<ControlState>,
    pub(crate) effects: Vec<Effect>,
}

/// Whether this coordinator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    Leads,
    /// Why it does not, for a person.
    Not(String),
}

pub(crate) struct Context {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) data: PathBuf,
    /// Where checkpoints from the store lie while they are compared.
    pub(crate) scratch: PathBuf,
    pub(crate) store: Option<Store>,
    pub(crate) view: ControlView,
    pub(crate) streams: StreamCache,
    pub(crate) config: Config,
    pub(crate) shutdown: Shutdown,
    directory: String,
    pub(crate) standing: watch::Receiver<Leadership>,
    published: watch::Receiver<Arc<ControlState>>,
    inbox: mpsc::Sender<QueuedCommand>,
    /// The fastest that all shards of a view were seen together, in records per second.
    rates: Mutex<HashMap<Name, f64>>,
    /// What a remote log said last, and when.
    ends: Mutex<Option<(Instant, Arc<ReplayedEnds>)>>,
}

/// How far the log goes for the streams that are replayed, and why that is not known of some.
#[derive(Debug, Default)]
pub(crate) struct ReplayedEnds {
    pub(crate) known: LogEnds,
    pub(crate) unknown: Vec<headwater_log::Error>,
}

impl Context {
    pub(crate) fn new(
        config: &Config,
        node: &Node,
        standing: watch::Receiver<Leadership>,
        published: watch::Receiver<Arc<ControlState>>,
    ) -> anyhow::Result<(Arc<Self>, mpsc::Receiver<QueuedCommand>)> {
        let (sender, inbox) = mpsc::channel(INBOX);
        let store = node.checkpoints.as_deref().map(Store::open).transpose();
        let store =
            store.map_err(|error| Refusal { reason: error.to_string(), remedy: error.remedy() })?;
        let context = Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            data: node.data.clone(),
            scratch: node.data.join("diffs").join(&node.instance),
            store,
            view: ControlView::start(node),
            streams: StreamCache::default(),
            config: config.clone(),
            shutdown: node.tasks.shutdown(),
            directory: node.directory.clone(),
            standing,
            published,
            inbox: sender,
            rates: Mutex::default(),
            ends: Mutex::default(),
        };
        Ok((Arc::new(context), inbox))
    }

    /// Refuses everything unless this coordinator leads.
    pub(crate) fn leads(&self) -> Result<(), Status> {
        match &*self.standing.borrow() {
            Leadership::Leads => Ok(()),
            Leadership::Not(why) => Err(refusal(why)),
        }
    }

    /// Does what may ask the log where it does not hold others up.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<Self>) -> T + Send + 'static,
    ) -> T {
        let context = self.clone();
        off_worker(self.log.is_remote(), move || work(&context)).await
    }

    /// The state as it was last written.
    pub(crate) fn state(&self) -> Arc<ControlState> {
        self.published.borrow().clone()
    }

    /// Tells when the state is another one.
    pub(crate) fn published(&self) -> watch::Receiver<Arc<ControlState>> {
        self.published.clone()
    }

    pub(crate) fn board(&self) -> Arc<StatusBoard> {
        self.view.board()
    }

    /// Has a command carried out, once per request id.
    pub(crate) async fn request(
        &self,
        request_id: &str,
        command: impl FnOnce(&ControlState) -> Result<Vec<Event>, Status> + Send + 'static,
    ) -> Result<CommandOutcome, Status> {
        self.leads()?;
        let ending = || {
            status(Remedy::Retry, "the coordinator is ending or hands over: try again in a moment")
        };
        let (answer, answered) = oneshot::channel();
        let request =
            QueuedCommand { request_id: request_id.to_owned(), command: Box::new(command), answer };
        self.inbox.send(request).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }

    /// How far the log goes for all streams that are replayed. A remote log is not asked more often than
    /// decisions are due.
    pub(crate) async fn replayed_ends(
        self: &Arc<Self>,
        state: &Arc<ControlState>,
    ) -> Result<Arc<ReplayedEnds>, Status> {
        if !self.log.is_remote() {
            return self.ends_now(state).map(Arc::new);
        }
        if let Some((at, ends)) = &*self.ends.lock()
            && at.elapsed() < self.config.decide_every
        {
            return Ok(ends.clone());
        }
        let state = state.clone();
        let ends = Arc::new(self.ask(move |context| context.ends_now(&state)).await?);
        *self.ends.lock() = Some((Instant::now(), ends.clone()));
        Ok(ends)
    }

    fn ends_now(&self, state: &ControlState) -> Result<ReplayedEnds, Status> {
        let mut ends = ReplayedEnds::default();
        for replay in state.replays().values().filter(|replay| is_open(replay.phase)) {
            self.add_ends(state, replay, &mut ends)?;
        }
        Ok(ends)
    }

    fn add_ends(
        &self,
        state: &ControlState,
        replay: &ReplayEntry,
        ends: &mut ReplayedEnds,
    ) -> Result<(), Status> {
        let Some(generation) = state.generations().get(&replay.new) else { return Ok(()) };
        let stream = self.streams.parse(&generation.stream_sql)?;
        for partition in generation.partitions() {
            match headwater_log::block_on(self.log.ends(&stream.topic, partition)) {
                Ok(found) => {
                    let reach = Reach { start: found.start, end: found.end };
                    ends.known.set(&generation.stream, partition, reach);
                }
                Err(error) => ends.unknown.push(error),
            }
        }
        Ok(())
    }

    /// A replay as it is now.
    pub(crate) fn replay(
        &self,
        state: &ControlState,
        replay: &ReplayEntry,
    ) -> Result<Replay, Status> {
        let mut ends = ReplayedEnds::default();
        self.add_ends(state, replay, &mut ends)?;
        match ends.unknown.first() {
            Some(error) if error.remedy() == Remedy::Retry => Err(log_status(error)),
            // A topic that is gone: what the shards say is what is known.
            Some(_) | None => Ok(replay_status(state, &self.board(), &ends.known, replay)),
        }
    }

    /// The same, of a replay that is in the state.
    pub(crate) async fn replay_now(
        self: &Arc<Self>,
        state: Arc<ControlState>,
        id: ReplayId,
    ) -> Result<Replay, Status> {
        self.ask(move |context| match state.replays().get(&id) {
            Some(replay) => context.replay(&state, replay),
            None => Err(Status::not_found(format!("replay {id} is gone"))),
        })
        .await
    }

    /// Bytes that are free where the state lies; 0 if nobody here knows, because the shards of a generation
    /// lie on another machine's disk.
    pub(crate) fn disk_free(&self, serving: headwater_types::GenerationId) -> u64 {
        let board = self.board();
        let mut shards = board.of(serving).peekable();
        let nobody = shards.peek().is_none() && self.log.is_remote();
        let elsewhere = |directory: &str| !directory.is_empty() && directory != self.directory;
        if nobody || shards.any(|(_, status)| elsewhere(&status.directory)) {
            return 0;
        }
        disk_free(&self.data)
    }

    /// The records of a stream that can be read now.
    pub(crate) fn records(&self, topic: &Name, partitions: u32) -> Result<u64, Status> {
        (0..partitions).map(PartitionId).try_fold(0, |records, partition| {
            let ends = headwater_log::block_on(self.log.ends(topic, partition))
                .map_err(|error| log_status(&error))?;
            Ok(records + (ends.end.0 - ends.start.0))
        })
    }

    /// Remembers how fast views go, so that a plan can say how long a replay takes.
    pub(crate) fn measure(&self, state: &ControlState, board: &StatusBoard) {
        let mut rates = self.rates.lock();
        for generation in state.generations().values() {
            let rate: f64 =
                board.of(generation.id).map(|(_, status)| status.records_per_second).sum();
            if rate > 0.0 && rate.is_finite() {
                let fastest = rates.entry(generation.view.clone()).or_default();
                *fastest = fastest.max(rate);
            }
        }
    }

    /// The fastest that this view was seen, or any view if it was not.
    pub(crate) fn measured_rate(&self, view: &Name) -> Option<f64> {
        let rates = self.rates.lock();
        let any = || rates.values().copied().reduce(f64::max);
        rates.get(view).copied().or_else(any).filter(|rate| *rate > 0.0)
    }
}

/// Bytes that are free there, or 0 if the system does not say.
fn disk_free(data: &Path) -> u64 {
    rustix::fs::statvfs(data).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What a coordinator answers that does not lead.
pub(crate) fn refusal(why: &str) -> Status {
    status(Remedy::Retry, why)
}

/// Does work that may block on a remote log, on a thread that may.
pub(crate) async fn off_worker<T: Send + 'static>(
    remote: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if !remote {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process is ending.
            Err(_) => std::future::pending().await,
        },
    }
}
