//! Lists dead letters, and appends them to their stream again.

mod scan;

use std::{cell::Cell, collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures::stream::BoxStream;
use headwater_proto::ingest::v1::{
    DeadLetter, ListDeadLettersRequest, ReplayDeadLettersRequest, ReplayDeadLettersResponse,
    append_result::Outcome, dead_letter_service_server::DeadLetterService,
};
use headwater_service::Shutdown;
use headwater_types::{Name, Token};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use scan::{Scan, Selection};

use crate::{append::Appender, budget::MemoryBudget, catalog::Stream, refusal::Refusal};

/// Letters that wait between the reading thread and the connection.
const QUEUE: usize = 16;

/// A batch of a replay ends at this many events, or at this size.
const BATCH: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

/// Reasons that the answer to a replay lists.
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

    /// Reads the selected letters that are there now, until the receiver is dropped. Reading
    /// blocks, so it has a thread.
    async fn read(
        &self,
        topic: Name,
        selection: ListDeadLettersRequest,
    ) -> Result<mpsc::Receiver<Result<DeadLetter, Status>>, Status> {
        let selection = Selection::try_from(selection)?;
        let scan = Scan::open(&**self.appender.log(), &topic, selection).await;
        let mut scan = scan.map_err(|error| headwater_service::log_status(&error))?;
        let shutdown = self.shutdown.clone();
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::task::spawn_blocking(move || {
            loop {
                let cut_short = Cell::new(false);
                let stopped = || {
                    cut_short.set(shutdown.is_cancelled() || sender.is_closed());
                    cut_short.get()
                };
                let next = match scan.next(&stopped) {
                    Ok(Some(letter)) => Ok(letter),
                    Ok(None) if cut_short.get() => Err(Refusal::Stopping.into()),
                    Ok(None) => return,
                    Err(error) => Err(headwater_service::log_status(&error)),
                };
                let last = next.is_err();
                if sender.blocking_send(next).is_err() || last {
                    return;
                }
            }
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
        // Dead letters can be read even if the stream's own topic cannot be used.
        let stream = self.appender.catalog().definition(&selection.stream).await?;
        let letters = self.read(stream.dead_letter_topic(), selection).await?;
        Ok(Response::new(Box::pin(ReceiverStream::new(letters))))
    }

    async fn replay(
        &self,
        request: Request<ReplayDeadLettersRequest>,
    ) -> Result<Response<ReplayDeadLettersResponse>, Status> {
        let selection = request.into_inner().selection.unwrap_or_default();
        let stream = self.appender.catalog().stream(&selection.stream).await?;
        let mut letters = self.read(stream.definition.dead_letter_topic(), selection).await?;
        let mut replay = DeadLetterReplay::new(&self.appender, stream);
        // Several views, and several generations of a view, make a dead letter of the same record.
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

/// Dead letters that are appended to their stream again, in batches.
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
                // To go on would leave a gap that the answer cannot name.
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
