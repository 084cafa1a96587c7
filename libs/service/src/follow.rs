//! Following the control plane: the control and status topics, folded in the background.
//!
//! Every service keeps one [`ControlView`] and acts on its snapshots. A snapshot is immutable and
//! cheap to get. A caller that must see everything decided before a moment asks
//! [`ControlView::wait_current`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{CONTROL_TOPIC, ControlState, FoldError, STATUS_TOPIC, StatusBoard};
use headwater_log::{Cleanup, Log, Record, TopicSpec, block_on};
use headwater_proto::control::v1::ControlRecord;
use headwater_types::{Name, Offset, PartitionId, Remedy, error_chain};
use prost::Message;
use tokio::sync::watch;

use crate::{Health, Node, OnFailure, Shutdown, outage::Outage};

/// What one read hands out at most, roughly.
const READ_BYTES: usize = 1 << 20;
/// How long a read waits at the end, and so how late a follower sees that it shall stop.
const WAIT: Duration = Duration::from_millis(100);

/// Why the control plane cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the topic {topic} cannot be read")]
    Log {
        topic: &'static str,
        #[source]
        source: headwater_log::Error,
    },
    /// A topic of Headwater exists with other settings: it would not keep what is written there.
    #[error(
        "topic {topic} is one of Headwater's own and exists with {existing}, but it needs {requested}: {}",
        own_topic_remedy(existing, requested)
    )]
    OwnTopic { topic: &'static str, existing: TopicSpec, requested: TopicSpec },
    #[error(
        "record {offset} of {topic} is not what Headwater writes there: {reason}; restore the topic from a copy"
    )]
    Undecodable { topic: &'static str, offset: Offset, reason: String },
    #[error(transparent)]
    Fold(#[from] FoldError),
    #[error("the control plane is no longer followed: the process is ending")]
    Ended,
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Log { source, .. } => source.remedy(),
            Self::OwnTopic { .. } => Remedy::Correct,
            Self::Undecodable { .. } => Remedy::Repair,
            Self::Fold(error) => error.remedy(),
            Self::Ended => Remedy::Retry,
        }
    }
}

/// The name of a topic of the control plane.
fn topic_name(topic: &'static str) -> Result<Name, Error> {
    Name::new(topic).map_err(|error| Error::Undecodable {
        topic,
        offset: Offset::ZERO,
        reason: error.to_string(),
    })
}

/// Creates the two topics of the control plane unless they exist.
pub async fn create_topics(log: &dyn Log) -> Result<(), Error> {
    for (topic, spec) in
        [(CONTROL_TOPIC, TopicSpec::keep(1)), (STATUS_TOPIC, TopicSpec::compact(1))]
    {
        log.create_topic(&topic_name(topic)?, spec).await.map_err(|source| {
            if let headwater_log::Error::TopicDiffers { existing, requested, .. } = source {
                Error::OwnTopic { topic, existing, requested }
            } else {
                Error::Log { topic, source }
            }
        })?;
    }
    Ok(())
}

/// How a topic becomes what it must be.
fn own_topic_remedy(existing: &TopicSpec, requested: &TopicSpec) -> &'static str {
    match requested.cleanup {
        _ if existing.partitions != requested.partitions => {
            "delete it if nothing needs it, and Headwater makes it as it must be"
        }
        Cleanup::Compact => "set cleanup.policy=compact on it",
        Cleanup::Keep | Cleanup::Expire => {
            "set cleanup.policy=delete, retention.ms=-1 and retention.bytes=-1 on it"
        }
    }
}

/// The control record that a log record carries.
pub fn decode_control(record: &Record<'_>) -> Result<ControlRecord, Error> {
    ControlRecord::decode(record.value.unwrap_or_default()).map_err(|error| Error::Undecodable {
        topic: CONTROL_TOPIC,
        offset: record.offset,
        reason: error.to_string(),
    })
}

/// The control plane as this process knows it. Clones share the work; each has its own idea of what
/// changed since it last asked.
#[derive(Clone)]
pub struct ControlView {
    log: Arc<dyn Log>,
    state: watch::Receiver<Arc<ControlState>>,
    board: watch::Receiver<Arc<StatusBoard>>,
    /// Everything before it is in `state`.
    folded: watch::Receiver<Offset>,
    /// Everything before it is in `board`.
    boarded: watch::Receiver<Offset>,
}

impl ControlView {
    /// Follows the two topics of the control plane on two threads until shutdown, and creates them
    /// first if need be. It returns at once, wherever the log is.
    ///
    /// A record that cannot be folded stops the process: all it would go on to do would rest on a
    /// wrong state.
    pub fn start(node: &Node) -> Self {
        let Node { log, tasks, health, .. } = node;
        let (state_sender, state) = watch::channel(Arc::new(ControlState::default()));
        let (board_sender, board) = watch::channel(Arc::new(StatusBoard::default()));
        let (folded_sender, folded) = watch::channel(Offset::ZERO);
        let (boarded_sender, boarded) = watch::channel(Offset::ZERO);

        let source = Source { log: log.clone(), health: health.clone() };
        tasks.spawn_thread("control-follower", OnFailure::Stop, move |shutdown| {
            let mut state = ControlState::default();
            source.follow(CONTROL_TOPIC, &shutdown, |step| {
                match step {
                    Step::Record(record) => {
                        return Ok(state.fold(record.offset, &decode_control(&record)?)?);
                    }
                    Step::Behind(position) => {
                        if state.position() != state_sender.borrow().position() {
                            state_sender.send_replace(Arc::new(state.clone()));
                        }
                        folded_sender.send_replace(position);
                    }
                }
                Ok(())
            })?;
            Ok(())
        });
        let source = Source { log: log.clone(), health: health.clone() };
        tasks.spawn_thread("status-follower", OnFailure::Stop, move |shutdown| {
            let mut board = StatusBoard::default();
            source.follow(STATUS_TOPIC, &shutdown, |step| {
                match step {
                    Step::Record(record) => {
                        let key = record.key.unwrap_or_default();
                        if let Err(error) = board.fold_record(key, record.value) {
                            tracing::warn!(offset = record.offset.0, %error, "a status cannot be decoded");
                        }
                    }
                    Step::Behind(position) => {
                        board_sender.send_replace(Arc::new(board.clone()));
                        boarded_sender.send_replace(position);
                    }
                }
                Ok(())
            })?;
            Ok(())
        });
        Self { log: log.clone(), state, board, folded, boarded }
    }

    /// The control state as far as it is folded.
    pub fn current(&self) -> Arc<ControlState> {
        self.state.borrow().clone()
    }

    /// What the shards said last.
    pub fn board(&self) -> Arc<StatusBoard> {
        self.board.borrow().clone()
    }

    /// Waits until everything that is in the control topic now is folded, and returns the state.
    pub async fn wait_current(&self) -> Result<Arc<ControlState>, Error> {
        let end = self.end(CONTROL_TOPIC).await?;
        self.folded.clone().wait_for(|folded| *folded >= end).await.map_err(|_| Error::Ended)?;
        Ok(self.current())
    }

    /// Waits until everything that the status topic has before `end` is on the board, and returns
    /// it.
    pub async fn wait_board(&self, end: Offset) -> Result<Arc<StatusBoard>, Error> {
        self.boarded.clone().wait_for(|boarded| *boarded >= end).await.map_err(|_| Error::Ended)?;
        Ok(self.board())
    }

    /// Where a topic of the control plane ends now.
    async fn end(&self, topic: &'static str) -> Result<Offset, Error> {
        let name = topic_name(topic)?;
        let failed = |source| Error::Log { topic, source };
        let ends = match self.log.ends(&name, PartitionId::ONLY).await {
            // The followers have not created it yet.
            Err(headwater_log::Error::UnknownTopic { .. }) => {
                create_topics(&*self.log).await?;
                self.log.ends(&name, PartitionId::ONLY).await
            }
            ends => ends,
        };
        Ok(ends.map_err(failed)?.end)
    }

    /// Waits until the control state or the board is another than when this clone last waited. Once
    /// the process is ending it waits for ever: wait for shutdown beside it.
    pub async fn changed(&mut self) {
        let changed = tokio::select! {
            changed = self.state.changed() => changed,
            changed = self.board.changed() => changed,
        };
        if changed.is_err() {
            std::future::pending::<()>().await;
        }
        self.state.mark_unchanged();
        self.board.mark_unchanged();
    }

    /// As [`ControlView::changed`], for the control state alone.
    pub async fn control_changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

enum Step<'a> {
    Record(Record<'a>),
    /// Everything before this position was handed out: publish.
    Behind(Offset),
}

/// The log as a follower sees it.
struct Source {
    log: Arc<dyn Log>,
    health: Health,
}

impl Source {
    /// Hands out a topic's records from its start until shutdown. A log that is away is tried again
    /// until it is back; the outage is reported once.
    fn follow(
        &self,
        topic: &'static str,
        shutdown: &Shutdown,
        mut step: impl FnMut(Step<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let name = topic_name(topic)?;
        let failed = |source| Error::Log { topic, source };
        let mut outage = Outage::new(topic);
        let mut position = loop {
            match self.start(topic, &name) {
                Ok(position) => break position,
                Err(error) => self.wait_after(error, &mut outage, shutdown)?,
            }
            if shutdown.is_cancelled() {
                return Ok(());
            }
        };
        step(Step::Behind(position))?;
        let mut reader = None;
        while !shutdown.is_cancelled() {
            let read = match reader.take() {
                Some(reader) => Ok(reader),
                None => block_on(self.log.reader(&name, PartitionId::ONLY, position)),
            }
            .and_then(|mut open| {
                let chunk = open.read(READ_BYTES, WAIT)?;
                reader = Some(open);
                Ok(chunk)
            });
            match read {
                Ok(Some(chunk)) => {
                    for record in chunk.records(position) {
                        step(Step::Record(record.map_err(failed)?))?;
                    }
                    position = chunk.end();
                    step(Step::Behind(position))?;
                    outage.over();
                }
                Ok(None) => {
                    // Some offsets hold no record; a caller that waits for the end waits for them
                    // too.
                    let behind = reader.as_ref().map_or(position, |reader| reader.position());
                    if behind > position {
                        position = behind;
                        step(Step::Behind(position))?;
                    }
                    outage.over();
                }
                Err(error) => self.wait_after(failed(error), &mut outage, shutdown)?,
            }
        }
        Ok(())
    }

    /// The first offset of a topic, which exists from then on.
    fn start(&self, topic: &'static str, name: &Name) -> Result<Offset, Error> {
        block_on(async {
            create_topics(&*self.log).await?;
            let ends = self.log.ends(name, PartitionId::ONLY).await;
            Ok(ends.map_err(|source| Error::Log { topic, source })?.start)
        })
    }

    /// Sleeps before the next try, or returns the error if trying again does not help.
    fn wait_after(
        &self,
        error: Error,
        outage: &mut Outage,
        shutdown: &Shutdown,
    ) -> Result<(), Error> {
        match error.remedy() {
            Remedy::Retry => {
                // The process has reported a log that is away as a whole.
                let reported = self.health.log_is_away()
                    && matches!(
                        error,
                        Error::Log { source: headwater_log::Error::Unavailable(_), .. }
                    );
                let report = if reported { Outage::note } else { Outage::failed };
                report(outage, &error_chain(&error));
                sleep(outage.wait(), shutdown);
                Ok(())
            }
            Remedy::Correct | Remedy::StandDown | Remedy::Repair => Err(error),
        }
    }
}

/// Sleeps, but not much longer than the process lives.
fn sleep(wait: Duration, shutdown: &Shutdown) {
    let until = Instant::now() + wait;
    while !shutdown.is_cancelled() && Instant::now() < until {
        std::thread::sleep(WAIT.min(until.saturating_duration_since(Instant::now())));
    }
}

#[cfg(test)]
mod tests;
