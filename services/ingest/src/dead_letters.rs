//! What could not be processed: read back, and appended again.

use std::{
    cell::Cell,
    collections::{HashSet, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::stream::BoxStream;
use headwater_engine::Stage;
use headwater_log::{Error as LogError, Log, Reader, Record};
use headwater_proto::{
    headers,
    ingest::v1::{
        DeadLetter, ListDeadLettersRequest, ReplayDeadLettersRequest, ReplayDeadLettersResponse,
        append_result::Outcome, dead_letter_service_server::DeadLetterService,
    },
};
use headwater_service::Shutdown;
use headwater_types::{Name, Offset, PartitionId, Token};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{append::Appender, budget::MemoryBudget, catalog::Stream, refusal::Refusal};

/// Letters between the reading thread and the connection; each has at most the size of an event.
const QUEUE: usize = 16;
const READ_BYTES: usize = 256 << 10;
const READ_WAIT: Duration = Duration::from_millis(100);
/// How long a remote log may keep us waiting for what it says it has.
const PATIENCE: Duration = Duration::from_secs(10);

/// A batch of a replay ends at this many events, or at this size.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

const REASONS: usize = 10;

/// `DeadLetterService`.
pub(crate) struct DeadLetters {
    appender: Arc<Appender>,
    shutdown: Shutdown,
}

impl DeadLetters {
    pub(crate) fn new(appender: Arc<Appender>, shutdown: Shutdown) -> Self {
        Self { appender, shutdown }
    }

    /// Reads the selected letters that are there now, on a thread of its own, until the receiver is
    /// dropped.
    fn read(
        &self,
        topic: Name,
        selection: ListDeadLettersRequest,
    ) -> Result<mpsc::Receiver<Result<DeadLetter, Status>>, Status> {
        let selection = Selection::try_from(selection)?;
        let (log, shutdown) = (self.appender.log().clone(), self.shutdown.clone());
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            let cut_short = Cell::new(false);
            let ended = || {
                let ended = shutdown.is_cancelled() || sender.is_closed();
                cut_short.set(ended);
                ended
            };
            let read = scan(&*log, &topic, &selection, ended, |letter| {
                match sender.blocking_send(Ok(letter)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            // A receiver that has gone needs no error.
            let _ = match read {
                Err(error) => sender.blocking_send(Err(headwater_service::log_status(&error))),
                Ok(()) if cut_short.get() => sender.blocking_send(Err(Refusal::Stopping.into())),
                Ok(()) => Ok(()),
            };
        });
        Ok(receiver)
    }
}

#[tonic::async_trait]
impl DeadLetterService for DeadLetters {
    type ListStream = BoxStream<'static, Result<DeadLetter, Status>>;

    async fn list(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let selection = request.into_inner();
        // Letters can be read whatever has become of the stream's own topic.
        let stream = self.appender.catalog().definition(&selection.stream).await?;
        let letters = self.read(stream.dead_letter_topic(), selection)?;
        Ok(Response::new(Box::pin(ReceiverStream::new(letters))))
    }

    async fn replay(
        &self,
        request: Request<ReplayDeadLettersRequest>,
    ) -> Result<Response<ReplayDeadLettersResponse>, Status> {
        let selection = request.into_inner().selection.unwrap_or_default();
        let stream = self.appender.catalog().stream(&selection.stream).await?;
        let mut letters = self.read(stream.definition.dead_letter_topic(), selection)?;
        let mut replay = DeadLetterReplay::new(&self.appender, stream);
        // Several views, and several generations of one, put the same record aside.
        let mut seen = HashSet::new();
        while let Some(letter) = letters.recv().await {
            let letter = letter?;
            if seen.insert((letter.partition, letter.offset)) {
                replay.push(letter.value).await?;
            }
        }
        Ok(Response::new(replay.finish().await?))
    }
}

/// Dead letters on their way back.
struct DeadLetterReplay<'a> {
    appender: &'a Appender,
    stream: Arc<Stream>,
    events: Vec<Bytes>,
    bytes: usize,
    token: Token,
    response: ReplayDeadLettersResponse,
}

impl<'a> DeadLetterReplay<'a> {
    fn new(appender: &'a Appender, stream: Arc<Stream>) -> Self {
        let token = Token::new(stream.definition.name.clone());
        Self {
            appender,
            stream,
            events: Vec::new(),
            bytes: 0,
            token,
            response: ReplayDeadLettersResponse::default(),
        }
    }

    async fn push(&mut self, event: Bytes) -> Result<(), Status> {
        self.bytes += event.len();
        self.events.push(event);
        if self.events.len() >= BATCH || self.bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<ReplayDeadLettersResponse, Status> {
        self.flush().await?;
        self.response.token = self.token.to_string();
        Ok(self.response)
    }

    async fn flush(&mut self) -> Result<(), Status> {
        let events = std::mem::take(&mut self.events);
        self.bytes = 0;
        if events.is_empty() {
            return Ok(());
        }
        let reserved = self.appender.budget().reserve(MemoryBudget::cost(&events)).await?;
        let answer =
            self.appender.submit(self.stream.clone(), events, reserved).await?.finish().await;
        self.response.accepted += answer.accepted;
        self.response.rejected += answer.rejected;
        if let Ok(token) = answer.token.parse() {
            self.token.join(&token);
        }
        for result in answer.results {
            let Some(Outcome::Rejected(rejected)) = result.outcome else { continue };
            if rejected.retryable {
                // Going on would leave a hole that nobody can name.
                let accepted = self.response.accepted;
                let reason = rejected.reason;
                return Err(Status::unavailable(format!(
                    "{reason}; {accepted} dead letters were appended before that: {}",
                    self.token
                )));
            }
            if self.response.reasons.len() < REASONS {
                let Some(separator) = (!rejected.field.is_empty()).then_some(": ") else {
                    self.response.reasons.push(rejected.reason);
                    continue;
                };
                self.response.reasons.push(rejected.field + separator + &rejected.reason);
            }
        }
        Ok(())
    }
}

/// Which dead letters are meant.
struct Selection {
    stage: Option<Stage>,
    view: Option<String>,
    partition: Option<u32>,
    offset: Option<u64>,
    limit: u64,
}

impl TryFrom<ListDeadLettersRequest> for Selection {
    type Error = Status;
    fn try_from(request: ListDeadLettersRequest) -> Result<Self, Status> {
        let ListDeadLettersRequest { stream: _, stage, view, limit, partition, offset } = request;
        let stage = (!stage.is_empty()).then(|| stage.parse()).transpose();
        let stage = stage.map_err(|error| Status::invalid_argument(format!("stage: {error}")))?;
        let view = (!view.is_empty()).then_some(view);
        Ok(Self {
            stage,
            view,
            partition,
            offset,
            limit: if limit == 0 { u64::MAX } else { limit },
        })
    }
}

impl Selection {
    fn has(&self, letter: &DeadLetter) -> bool {
        self.stage.is_none_or(|stage| stage.as_str() == letter.stage)
            && self.view.as_ref().is_none_or(|view| *view == letter.view)
            && self.partition.is_none_or(|partition| partition == letter.partition)
            && self.offset.is_none_or(|offset| offset == letter.offset)
    }
}

/// Hands out the selected letters, oldest first, up to where the topic ends now.
fn scan(
    log: &dyn Log,
    topic: &Name,
    selection: &Selection,
    ended: impl Fn() -> bool,
    mut found: impl FnMut(DeadLetter) -> ControlFlow<()>,
) -> Result<(), LogError> {
    // No topic yet: nothing was ever put aside.
    let Some(spec) = headwater_log::block_on(log.topic(topic))? else { return Ok(()) };
    let mut sources = Vec::new();
    for partition in (0..spec.partitions).map(PartitionId) {
        sources.push(PartitionScan::open(log, topic, partition)?);
    }
    for _ in 0..selection.limit {
        for source in &mut sources {
            source.fill(selection, &ended)?;
        }
        let oldest = sources
            .iter_mut()
            .filter(|source| !source.letters.is_empty())
            .min_by_key(|source| source.letters.front().map(|letter| letter.timestamp_ms));
        let Some(letter) = oldest.and_then(|source| source.letters.pop_front()) else { break };
        if ended() || found(letter).is_break() {
            break;
        }
    }
    Ok(())
}

/// One partition of the dead-letter topic.
struct PartitionScan {
    reader: Box<dyn Reader>,
    /// The log, if it is one that takes its time.
    remote: Option<String>,
    end: Offset,
    letters: VecDeque<DeadLetter>,
    done: bool,
}

impl PartitionScan {
    fn open(log: &dyn Log, topic: &Name, partition: PartitionId) -> Result<Self, LogError> {
        let ends = headwater_log::block_on(log.ends(topic, partition))?;
        let reader = headwater_log::block_on(log.reader(topic, partition, ends.start))?;
        let remote = log.is_remote().then(|| format!("{topic}[{partition}]"));
        Ok(Self { reader, remote, end: ends.end, letters: VecDeque::new(), done: false })
    }

    /// Reads on until there is a selected letter or nothing is left.
    fn fill(&mut self, selection: &Selection, ended: &impl Fn() -> bool) -> Result<(), LogError> {
        let mut waited = Instant::now();
        while self.letters.is_empty() && !self.done && !ended() {
            let from = self.reader.position();
            if from >= self.end {
                self.done = true;
                break;
            }
            let Some(chunk) = self.reader.read(READ_BYTES, READ_WAIT)? else {
                match &self.remote {
                    // Below the end there is something to read, or a gap up to the end.
                    None => self.done = true,
                    Some(_) if self.reader.position() > from => waited = Instant::now(),
                    // It is on its way.
                    Some(_) if waited.elapsed() < PATIENCE => {}
                    Some(partition) => {
                        let what = format!("nothing of {partition} arrived for {PATIENCE:?}");
                        return Err(LogError::Unavailable(what.into()));
                    }
                }
                continue;
            };
            waited = Instant::now();
            for record in chunk.records(from) {
                let record = record?;
                if record.offset >= self.end {
                    break;
                }
                match letter(&record) {
                    Some(letter) if selection.has(&letter) => self.letters.push_back(letter),
                    Some(_) => {}
                    None => {
                        tracing::warn!(offset = %record.offset, "record in a dead-letter topic is none")
                    }
                }
            }
        }
        Ok(())
    }
}

/// `None`: somebody else wrote it.
fn letter(record: &Record<'_>) -> Option<DeadLetter> {
    let text = |name: &str| {
        let value = record.headers.iter().find(|(header, _)| *header == name)?.1?;
        std::str::from_utf8(value).ok().map(str::to_owned)
    };
    Some(DeadLetter {
        stream: text(headers::STREAM)?,
        topic: text(headers::TOPIC)?,
        partition: text(headers::PARTITION)?.parse().ok()?,
        offset: text(headers::OFFSET)?.parse().ok()?,
        stage: text(headers::STAGE)?,
        reason: text(headers::REASON)?,
        view: text(headers::VIEW)?,
        generation: text(headers::GENERATION)?,
        key: record.key.map(Bytes::copy_from_slice),
        value: Bytes::copy_from_slice(record.value.unwrap_or_default()),
        timestamp_ms: record.timestamp_ms,
    })
}
