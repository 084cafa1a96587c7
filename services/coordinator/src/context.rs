//! The context that every verb and the leader share: the log, the settings, the state as it was
//! last written, and the reports of the shards.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use headwater_control::{ControlState, ReplayEntry, ReplayId, StatusBoard, replay_status};
use headwater_log::Log;
use headwater_proto::control::v1::Replay;
use headwater_service::{Node, Refusal, Shutdown, follow::ControlView, log_status};
use headwater_state::Store;
use headwater_types::{Clock, GenerationId, Name, PartitionId, Remedy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

use crate::{
    config::Config, definitions::StreamCache, leadership::Leadership, log_reach::LogReach,
};

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
    pub(crate) leadership: watch::Receiver<Leadership>,
    directory: String,
    published: watch::Receiver<Arc<ControlState>>,
    /// The highest rate of each view, over all its shards together, in records per second.
    rates: Mutex<HashMap<Name, f64>>,
    /// How often the leader had nothing left to do.
    #[cfg(test)]
    pub(crate) idle_rounds: watch::Sender<u64>,
}

impl Context {
    pub(crate) fn new(
        config: Config,
        node: &Node,
        leadership: watch::Receiver<Leadership>,
        published: watch::Receiver<Arc<ControlState>>,
    ) -> anyhow::Result<Arc<Self>> {
        let store = node.checkpoints.as_deref().map(Store::open).transpose();
        let store =
            store.map_err(|error| Refusal { reason: error.to_string(), remedy: error.remedy() })?;
        Ok(Arc::new(Self {
            log: node.log.clone(),
            clock: node.clock.clone(),
            data: node.data.clone(),
            scratch: node.data.join("diffs").join(&node.instance),
            store,
            view: ControlView::start(node),
            streams: StreamCache::default(),
            config,
            shutdown: node.tasks.shutdown(),
            leadership,
            directory: node.directory.clone(),
            published,
            rates: Mutex::default(),
            #[cfg(test)]
            idle_rounds: watch::Sender::new(0),
        }))
    }

    /// Refuses everything unless this coordinator leads.
    pub(crate) fn require_lead(&self) -> Result<(), Status> {
        self.leadership.borrow().require()
    }

    /// The state as it was last written.
    pub(crate) fn state(&self) -> Arc<ControlState> {
        self.published.borrow().clone()
    }

    /// Tells when another state is written.
    pub(crate) fn published(&self) -> watch::Receiver<Arc<ControlState>> {
        self.published.clone()
    }

    pub(crate) fn board(&self) -> Arc<StatusBoard> {
        self.view.board()
    }

    /// A replay as it is now.
    pub(crate) async fn replay(
        &self,
        state: &ControlState,
        replay: &ReplayEntry,
    ) -> Result<Replay, Status> {
        let mut reach = LogReach::default();
        reach.add(&*self.log, &self.streams, state, replay).await?;
        match reach.unknown.first() {
            Some(error) if error.remedy() == Remedy::Retry => Err(log_status(error)),
            // The topic is gone: the replay is shown as its shards last reported it.
            Some(_) | None => Ok(replay_status(state, &self.board(), &reach.known, replay)),
        }
    }

    /// As [`replay`](Self::replay), for a replay that must be in the state.
    pub(crate) async fn replay_by_id(
        &self,
        state: &ControlState,
        id: &ReplayId,
    ) -> Result<Replay, Status> {
        match state.replays().get(id) {
            Some(replay) => self.replay(state, replay).await,
            None => Err(Status::not_found(format!("replay {id} is gone"))),
        }
    }

    /// Bytes that are free where the shards of a generation lie. 0 if that is unknown: no shard has
    /// reported, or one lies on another machine's disk.
    pub(crate) fn disk_free(&self, serving: GenerationId) -> u64 {
        let board = self.board();
        let mut shards = board.of(serving).peekable();
        let elsewhere = |directory: &str| !directory.is_empty() && directory != self.directory;
        if shards.peek().is_none() || shards.any(|(_, status)| elsewhere(&status.directory)) {
            return 0;
        }
        rustix::fs::statvfs(&self.data)
            .map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The records of a stream that can be read now.
    pub(crate) async fn records(&self, topic: &Name, partitions: u32) -> Result<u64, Status> {
        let mut records = 0;
        for partition in (0..partitions).map(PartitionId) {
            let ends = self.log.ends(topic, partition).await.map_err(|error| log_status(&error))?;
            records += ends.end.0 - ends.start.0;
        }
        Ok(records)
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

    /// The highest rate of this view, or of any view if this one was not measured.
    pub(crate) fn measured_rate(&self, view: &Name) -> Option<f64> {
        let rates = self.rates.lock();
        let any = || rates.values().copied().reduce(f64::max);
        rates.get(view).copied().or_else(any).filter(|rate| *rate > 0.0)
    }
}
