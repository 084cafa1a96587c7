//! The control topic, written.

use std::sync::Arc;

use headwater_control::{CONTROL_TOPIC, ControlState, Effect, FoldError};
use headwater_log::{BatchBuilder, FencedWriter, Log, WriterId};
use headwater_proto::control::v1::{ControlRecord, control_record::Event};
use headwater_service::follow;
use headwater_types::{Name, Offset, PartitionId, Remedy};
use prost::Message;
use tokio::sync::watch;

const WRITER: &str = "coordinator";
const ONLY: PartitionId = PartitionId(0);
const READ_BYTES: usize = 1 << 20;

/// Why a record was not written, or the topic not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("another coordinator took over: this one stops; run one coordinator only")]
    Fenced(#[source] headwater_log::Error),
    #[error("the control topic is not available")]
    Log(#[source] headwater_log::Error),
    #[error(transparent)]
    Follow(#[from] follow::Error),
    /// Nothing was written.
    #[error("refused: {0}")]
    Impossible(#[source] FoldError),
}

impl From<headwater_log::Error> for Error {
    fn from(error: headwater_log::Error) -> Self {
        match error.remedy() {
            Remedy::StandDown => Self::Fenced(error),
            Remedy::Retry | Remedy::Correct | Remedy::Repair => Self::Log(error),
        }
    }
}

impl Error {
    pub(crate) fn remedy(&self) -> Remedy {
        match self {
            Self::Fenced(_) => Remedy::StandDown,
            Self::Log(error) => error.remedy(),
            Self::Follow(error) => error.remedy(),
            Self::Impossible(error) => error.remedy(),
        }
    }
}

/// The fold of the control topic and the claim to extend it. It has one owner, which writes one batch
/// after the other.
pub(crate) struct Ledger {
    log: Arc<dyn Log>,
    writer: Arc<dyn FencedWriter>,
    topic: Name,
    state: ControlState,
    published: watch::Sender<Arc<ControlState>>,
}

impl Ledger {
    /// Claims the topic, so that every other coordinator is fenced, and only then reads it to its end:
    /// nothing can come after that but its own records. It blocks.
    pub(crate) fn open(log: Arc<dyn Log>) -> anyhow::Result<Self> {
        follow::create_topics(&*log)?;
        let writer = log.writer(&WriterId(WRITER.into()))?;
        let topic = Name::new(CONTROL_TOPIC)?;
        let published = watch::Sender::new(Arc::new(ControlState::default()));
        let mut ledger = Self { log, writer, topic, state: ControlState::default(), published };
        ledger.catch_up()?;
        tracing::info!(
            epoch = ledger.writer.epoch().0,
            records = ledger.state.position().0,
            "the control topic is folded"
        );
        Ok(ledger)
    }

    pub(crate) fn state(&self) -> &ControlState {
        &self.state
    }

    /// Every state that was written, for those who answer requests.
    pub(crate) fn published(&self) -> watch::Receiver<Arc<ControlState>> {
        self.published.subscribe()
    }

    /// Folds what is in the topic and not in the state: at the start, and after an append whose outcome
    /// was unknown.
    pub(crate) fn catch_up(&mut self) -> Result<(), Error> {
        let ends = self.log.ends(&self.topic, ONLY)?;
        if ends.end > self.state.position() {
            let mut position = self.state.position();
            let mut reader = self.log.reader(&self.topic, ONLY, position)?;
            while let Some(chunk) = reader.read(READ_BYTES, std::time::Duration::ZERO)? {
                for record in chunk.records(position) {
                    let record = record?;
                    let event = follow::decode_control(&record)?;
                    self.state.fold(record.offset, &event).map_err(follow::Error::Fold)?;
                }
                position = chunk.end();
            }
            self.published.send_replace(Arc::new(self.state.clone()));
        }
        Ok(())
    }

    /// Writes the events as one batch, if each can follow from those before it, and returns what they did
    /// if they are of a request.
    ///
    /// Must not be dropped halfway: the batch may come to the topic nevertheless.
    pub(crate) async fn append(
        &mut self,
        at_ms: i64,
        request_id: &str,
        events: Vec<Event>,
    ) -> Result<Vec<Effect>, Error> {
        self.catch_up()?;
        let base = self.state.position();
        let mut next = self.state.clone();
        let mut batch = BatchBuilder::new();
        let kinds: Vec<_> = events.iter().map(kind).collect();
        for (offset, event) in (base.0..).map(Offset).zip(events) {
            let record =
                ControlRecord { at_ms, request_id: request_id.to_owned(), event: Some(event) };
            next.fold(offset, &record).map_err(Error::Impossible)?;
            batch.push(at_ms, None, Some(&record.encode_to_vec()), &[]);
        }
        let Some(batch) = batch.build() else { return Ok(Vec::new()) };
        let stored = self.writer.append(&self.topic, ONLY, batch).await?;
        if stored == base {
            self.state = next;
            self.published.send_replace(Arc::new(self.state.clone()));
        } else {
            self.catch_up()?;
        }
        for (offset, kind) in (stored.0..).zip(kinds) {
            tracing::info!(offset, kind, request = request_id, "control record written");
        }
        Ok(self.state.effects(request_id).unwrap_or_default().to_vec())
    }
}

/// The name of an event for the log.
fn kind(event: &Event) -> &'static str {
    match event {
        Event::StreamDeclared(_) => "stream declared",
        Event::ViewCreated(_) => "view created",
        Event::ReplayStarted(_) => "replay started",
        Event::AlignRequested(_) => "align requested",
        Event::FenceNamed(_) => "fence named",
        Event::DiffRecorded(_) => "diff recorded",
        Event::SwapRequested(_) => "swap requested",
        Event::Swapped(_) => "swapped",
        Event::ReplayEnded(_) => "replay ended",
        Event::GenerationRetired(_) => "generation retired",
        Event::SwapCancelled(_) => "swap cancelled",
    }
}
