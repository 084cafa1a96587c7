//! The control topic, written.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{CONTROL_TOPIC, ControlState, Effect, FoldError};
use headwater_log::{Appended, BatchBuilder, FencedWriter, Log, WriterId};
use headwater_proto::control::v1::{ControlRecord, control_record::Event};
use headwater_service::follow;
use headwater_types::{Name, Offset, PartitionId, Remedy};
use prost::Message;
use tokio::sync::watch;

use crate::context::off_worker;

const WRITER: &str = "coordinator";
const ONLY: PartitionId = PartitionId(0);
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for records that are known to be there, and how long all of them together.
const READ_WAIT: Duration = Duration::from_millis(200);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After this time nobody knows what became of an append.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a record was not written, or the topic not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("another coordinator took over: this one stops; run one coordinator only")]
    Fenced(#[source] headwater_log::Error),
    #[error("the control topic is not available")]
    Log(#[source] headwater_log::Error),
    #[error(transparent)]
    Follow(follow::Error),
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

impl From<follow::Error> for Error {
    fn from(error: follow::Error) -> Self {
        match error {
            follow::Error::Log { source, .. } if source.remedy() == Remedy::Retry => {
                Self::Log(source)
            }
            follow::Error::Log { .. }
            | follow::Error::OwnTopic { .. }
            | follow::Error::Undecodable { .. }
            | follow::Error::Fold(_)
            | follow::Error::Ended => Self::Follow(error),
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
pub(crate) struct ControlLog {
    log: Arc<dyn Log>,
    writer: Arc<dyn FencedWriter>,
    topic: Name,
    state: Arc<ControlState>,
    /// Where the next record is likely to go.
    end: Offset,
    published: watch::Sender<Arc<ControlState>>,
}

impl ControlLog {
    /// Claims the topic, so that every other coordinator is fenced, and only then reads it to its end:
    /// nothing can come after that but its own records. Every state that is written goes to `published`.
    ///
    /// Must not be dropped halfway: a claim may be made nevertheless.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        published: watch::Sender<Arc<ControlState>>,
    ) -> Result<Self, Error> {
        let source = log.clone();
        let (topic, writer) = off_worker(log.is_remote(), move || {
            headwater_log::block_on(follow::create_topics(&*source))?;
            let topic = control_topic()?;
            Ok::<_, Error>((
                topic,
                headwater_log::block_on(source.writer(&WriterId(WRITER.into())))?,
            ))
        })
        .await?;
        let state = Arc::default();
        let mut control_log = Self { log, writer, topic, state, end: Offset::ZERO, published };
        control_log.catch_up().await?;
        tracing::info!(
            epoch = control_log.writer.epoch().0,
            position = control_log.state.position().0,
            "the control topic is folded"
        );
        Ok(control_log)
    }

    /// Claims the topic anew and folds what is in it and not in the state: after an append whose outcome is
    /// unknown. Whatever was under way is either in the state then, or will never be in the topic.
    ///
    /// Must not be dropped halfway: the claim may be made nevertheless.
    pub(crate) async fn claim_anew(&mut self) -> Result<(), Error> {
        let log = self.log.clone();
        let claim = move || headwater_log::block_on(log.writer(&WriterId(WRITER.into())));
        self.writer = off_worker(self.log.is_remote(), claim).await?;
        self.catch_up().await
    }

    pub(crate) fn state(&self) -> &Arc<ControlState> {
        &self.state
    }

    async fn catch_up(&mut self) -> Result<(), Error> {
        let (log, topic, state) = (self.log.clone(), self.topic.clone(), self.state.clone());
        let read = move || read(&*log, &topic, state);
        (self.state, self.end) = off_worker(self.log.is_remote(), read).await?;
        self.published.send_replace(self.state.clone());
        Ok(())
    }

    /// Writes the events as one batch, if each can follow from those before it, and returns what they did
    /// if they are of a request.
    ///
    /// After an error that is not [`Error::Impossible`] nobody knows whether it was written, and
    /// [`claim_anew`](Self::claim_anew) finds out. The same holds for a future that is dropped.
    pub(crate) async fn append(
        &mut self,
        at_ms: i64,
        request_id: &str,
        events: Vec<Event>,
    ) -> Result<Vec<Effect>, Error> {
        let kinds: Vec<_> = events.iter().map(kind).collect();
        let record =
            |event| ControlRecord { at_ms, request_id: request_id.to_owned(), event: Some(event) };
        let records: Vec<_> = events.into_iter().map(record).collect();
        let expected = Appended::consecutive(self.end, u32::try_from(records.len()).unwrap_or(0));
        let mut next = folded(&self.state, &records, &expected)?;
        let mut batch = BatchBuilder::new();
        for record in &records {
            batch.push(at_ms, None, Some(&record.encode_to_vec()), &[]);
        }
        let Some(batch) = batch.build() else { return Ok(Vec::new()) };
        let append = self.writer.append(&self.topic, ONLY, batch);
        let stored = tokio::time::timeout(APPEND_TIMEOUT, append)
            .await
            .unwrap_or_else(|late| Err(headwater_log::Error::Uncertain(late.into())))?;
        if stored != expected {
            // Offsets between them and the last ones hold no record: nobody else could write.
            next = folded(&self.state, &records, &stored)?;
        }
        (self.state, self.end) = (Arc::new(next), stored.end());
        self.published.send_replace(self.state.clone());
        for (index, kind) in (0..).zip(kinds) {
            let offset = stored.offset(index).0;
            tracing::info!(offset, kind, request = request_id, "control record written");
        }
        Ok(self.state.effects(request_id).unwrap_or_default().to_vec())
    }
}

fn control_topic() -> Result<Name, Error> {
    Name::new(CONTROL_TOPIC).map_err(|error| {
        Error::Follow(follow::Error::Undecodable {
            topic: CONTROL_TOPIC,
            offset: Offset::ZERO,
            reason: error.to_string(),
        })
    })
}

/// The state after these records, stored there.
fn folded(
    state: &ControlState,
    records: &[ControlRecord],
    stored: &Appended,
) -> Result<ControlState, Error> {
    let mut next = state.clone();
    for (index, record) in (0..).zip(records) {
        next.fold(stored.offset(index), record).map_err(Error::Impossible)?;
    }
    Ok(next)
}

/// The state after all that is in the topic now, and the topic's end.
fn read(
    log: &dyn Log,
    topic: &Name,
    known: Arc<ControlState>,
) -> Result<(Arc<ControlState>, Offset), Error> {
    let ends = headwater_log::block_on(log.ends(topic, ONLY))?;
    let mut position = known.position();
    if ends.end <= position {
        return Ok((known, ends.end));
    }
    let mut state = (*known).clone();
    let mut reader = headwater_log::block_on(log.reader(topic, ONLY, position))?;
    let deadline = Instant::now() + READ_TIMEOUT;
    while reader.position() < ends.end {
        let Some(chunk) = reader.read(READ_BYTES, READ_WAIT)? else {
            if reader.position() < ends.end && Instant::now() > deadline {
                let reason =
                    format!("it ends at {}, and cannot be read at {}", ends.end, reader.position());
                return Err(headwater_log::Error::Unavailable(reason.into()).into());
            }
            continue;
        };
        for record in chunk.records(position) {
            let record = record?;
            let event = follow::decode_control(&record)?;
            state.fold(record.offset, &event).map_err(follow::Error::Fold)?;
        }
        position = chunk.end();
    }
    Ok((Arc::new(state), ends.end))
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
