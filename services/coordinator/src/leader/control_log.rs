//! The control topic as its one writer has it: claimed, folded, extended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{CONTROL_TOPIC, ControlState, Effect, FoldError};
use headwater_log::{Appended, BatchBuilder, FencedWriter, Log, Reader, WriterId};
use headwater_proto::control::v1::{ControlRecord, control_record::Event};
use headwater_service::follow;
use headwater_types::{Name, Offset, PartitionId, Remedy};
use prost::Message;
use tokio::sync::watch;

const WRITER: &str = "coordinator";
const READ_BYTES: usize = 1 << 20;
/// How long one read waits for records that must be there.
const READ_WAIT: Duration = Duration::from_millis(200);
/// How long all reads together wait for them.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// After this time the outcome of an append counts as unknown.
const APPEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a record was not written, or the topic was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("another coordinator took the lead; this one writes nothing more")]
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

/// The fold of the control topic, and the claim to extend it. It has one owner, which appends one
/// batch after the other.
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
    /// Claims the topic, which fences every other coordinator, and only then folds it to its end:
    /// after that, no records but its own can follow. Every state that is written goes to
    /// `published`.
    ///
    /// Await it to its end: a future that is dropped may have claimed the topic.
    pub(crate) async fn open(
        log: Arc<dyn Log>,
        published: watch::Sender<Arc<ControlState>>,
    ) -> Result<Self, Error> {
        follow::create_topics(&*log).await?;
        let topic = control_topic()?;
        let writer = log.writer(&WriterId(WRITER.into())).await?;
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

    /// Claims the topic anew and folds the records that are not in the state yet, after an append
    /// whose outcome is unknown. That append is either in the state then, or never stored.
    ///
    /// Await it to its end: a future that is dropped may have claimed the topic.
    pub(crate) async fn claim_anew(&mut self) -> Result<(), Error> {
        self.writer = self.log.writer(&WriterId(WRITER.into())).await?;
        self.catch_up().await
    }

    pub(crate) fn state(&self) -> &Arc<ControlState> {
        &self.state
    }

    async fn catch_up(&mut self) -> Result<(), Error> {
        self.end = self.log.ends(&self.topic, PartitionId::ONLY).await?.end;
        let position = self.state.position();
        if self.end > position {
            let reader = self.log.reader(&self.topic, PartitionId::ONLY, position).await?;
            let (state, end) = (self.state.clone(), self.end);
            // A reader blocks its thread.
            let fold = tokio::task::spawn_blocking(move || fold_until(end, reader, &state));
            self.state = fold.await.map_err(|_| follow::Error::Ended)??;
        }
        self.published.send_replace(self.state.clone());
        Ok(())
    }

    /// Writes the events as one batch, if each can follow from those before it. Returns what they
    /// did, if a request made them.
    ///
    /// After an error that is not [`Error::Impossible`], and after the future was dropped, it is
    /// unknown whether the batch was written: [`claim_anew`](Self::claim_anew) finds out.
    pub(crate) async fn append(
        &mut self,
        at_ms: i64,
        request_id: &str,
        events: Vec<Event>,
    ) -> Result<Vec<Effect>, Error> {
        let kinds: Vec<_> = events.iter().map(kind).collect();
        // Requests carry no identity yet.
        let record = |event| ControlRecord {
            at_ms,
            request_id: request_id.to_owned(),
            actor: String::new(),
            event: Some(event),
        };
        let records: Vec<_> = events.into_iter().map(record).collect();
        let expected = Appended::consecutive(self.end, u32::try_from(records.len()).unwrap_or(0));
        let mut next = folded(&self.state, &records, &expected)?;
        let mut batch = BatchBuilder::new();
        for record in &records {
            batch.push(at_ms, None, Some(&record.encode_to_vec()), &[]);
        }
        let Some(batch) = batch.build() else { return Ok(Vec::new()) };
        let append = self.writer.append(&self.topic, PartitionId::ONLY, batch);
        let stored = tokio::time::timeout(APPEND_TIMEOUT, append)
            .await
            .unwrap_or_else(|late| Err(headwater_log::Error::Uncertain(late.into())))?;
        if stored != expected {
            // The offsets before them hold no record: no other coordinator can write.
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

/// The state after these records, stored at these offsets.
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

/// The state after all records before `end`.
fn fold_until(
    end: Offset,
    mut reader: Box<dyn Reader>,
    state: &ControlState,
) -> Result<Arc<ControlState>, Error> {
    let mut state = state.clone();
    let mut position = reader.position();
    let deadline = Instant::now() + READ_TIMEOUT;
    while reader.position() < end {
        let Some(chunk) = reader.read(READ_BYTES, READ_WAIT)? else {
            if reader.position() < end && Instant::now() > deadline {
                let reason =
                    format!("it ends at {end}, and cannot be read at {}", reader.position());
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
    Ok(Arc::new(state))
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
        Event::StreamDeleted(_) => "stream deleted",
        Event::ViewDeleted(_) => "view deleted",
        Event::ReplayHeld(_) => "replay held",
        Event::ReplayResumed(_) => "replay resumed",
    }
}
