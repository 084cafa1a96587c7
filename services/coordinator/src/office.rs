//! What the gRPC services share: the state as it was last written, and the way to ask for more.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use headwater_control::{
    ControlState, Effect, LogEnds, Reach, ReplayEntry, StatusBoard, is_open, replay_status,
};
use headwater_log::Log;
use headwater_proto::control::v1::{Replay, control_record::Event};
use headwater_service::{Node, Shutdown, follow::ControlView, log_status};
use headwater_types::{Clock, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{Config, definitions::Streams};

/// Requests that may wait for the desk; a client beyond that waits to hand its own in.
const INBOX: usize = 64;

/// What a request makes of the state: the records to be written, none if there is nothing to do.
pub(crate) type Wish = Box<dyn FnOnce(&ControlState) -> Result<Vec<Event>, Status> + Send>;

/// One request on its way to the desk.
pub(crate) struct Request {
    pub(crate) request_id: String,
    pub(crate) wish: Wish,
    pub(crate) answer: oneshot::Sender<Result<Answer, Status>>,
}

/// The state after a request, and what the request did, now or when it was first sent.
pub(crate) struct Answer {
    pub(crate) state: Arc<ControlState>,
    pub(crate) effects: Vec<Effect>,
}

pub(crate) struct Office {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) data: PathBuf,
    pub(crate) view: ControlView,
    pub(crate) streams: Streams,
    pub(crate) config: Config,
    pub(crate) shutdown: Shutdown,
    published: watch::Receiver<Arc<ControlState>>,
    inbox: mpsc::Sender<Request>,
    /// The fastest that all shards of a view were seen together, in records per second.
    rates: Mutex<HashMap<Name, f64>>,
}

impl Office {
    pub(crate) fn new(
        config: &Config,
        node: &Node,
        view: ControlView,
        published: watch::Receiver<Arc<ControlState>>,
    ) -> (Arc<Self>, mpsc::Receiver<Request>) {
        let (sender, inbox) = mpsc::channel(INBOX);
        let office = Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            data: node.data.clone(),
            view,
            streams: Streams::default(),
            config: config.clone(),
            shutdown: node.tasks.shutdown(),
            published,
            inbox: sender,
            rates: Mutex::default(),
        };
        (Arc::new(office), inbox)
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

    /// Has a wish carried out, once per request id.
    pub(crate) async fn request(
        &self,
        request_id: &str,
        wish: impl FnOnce(&ControlState) -> Result<Vec<Event>, Status> + Send + 'static,
    ) -> Result<Answer, Status> {
        let ending = || {
            headwater_service::status(
                Remedy::Retry,
                "the coordinator is ending: try again in a moment",
            )
        };
        let (answer, answered) = oneshot::channel();
        let request = Request { request_id: request_id.to_owned(), wish: Box::new(wish), answer };
        self.inbox.send(request).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }

    /// How far the log goes for all streams that are replayed.
    pub(crate) fn replayed_ends(&self, state: &ControlState) -> Result<LogEnds, Status> {
        let mut ends = LogEnds::default();
        for replay in state.replays().values().filter(|replay| is_open(replay.phase)) {
            self.add_ends(state, replay, &mut ends)?;
        }
        Ok(ends)
    }

    fn add_ends(
        &self,
        state: &ControlState,
        replay: &ReplayEntry,
        ends: &mut LogEnds,
    ) -> Result<(), Status> {
        let Some(generation) = state.generations().get(&replay.new) else { return Ok(()) };
        let stream = self.streams.parse(&generation.stream_sql)?;
        for partition in generation.partitions() {
            let found =
                self.log.ends(&stream.topic, partition).map_err(|error| log_status(&error))?;
            ends.set(&generation.stream, partition, Reach { start: found.start, end: found.end });
        }
        Ok(())
    }

    /// A replay as it is now.
    pub(crate) fn replay(
        &self,
        state: &ControlState,
        replay: &ReplayEntry,
    ) -> Result<Replay, Status> {
        let mut ends = LogEnds::default();
        self.add_ends(state, replay, &mut ends)?;
        Ok(replay_status(state, &self.board(), &ends, replay))
    }

    /// The records of a stream that can be read now.
    pub(crate) fn records(&self, topic: &Name, partitions: u32) -> Result<u64, Status> {
        (0..partitions).map(PartitionId).try_fold(0, |records, partition| {
            let ends = self.log.ends(topic, partition).map_err(|error| log_status(&error))?;
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
