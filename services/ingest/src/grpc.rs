use std::sync::Arc;

use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use headwater_proto::ingest::v1::{
    AppendRequest, AppendResponse, ingest_service_server::IngestService,
};
use headwater_service::Shutdown;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::{
    append::{Appender, PendingAppend},
    budget::MemoryBudget,
    refusal::Refusal,
};

/// `IngestService`.
pub(crate) struct IngestGrpc {
    appender: Arc<Appender>,
    shutdown: Shutdown,
}

impl IngestGrpc {
    pub(crate) fn new(appender: Arc<Appender>, shutdown: Shutdown) -> Self {
        Self { appender, shutdown }
    }
}

#[tonic::async_trait]
impl IngestService for IngestGrpc {
    async fn append(
        &self,
        request: Request<AppendRequest>,
    ) -> Result<Response<AppendResponse>, Status> {
        let AppendRequest { stream, events } = request.into_inner();
        let reserved = self.appender.budget().try_reserve(MemoryBudget::cost(&events))?;
        let span = tracing::info_span!("append", stream, events = events.len());
        Ok(Response::new(self.appender.append(&stream, events, reserved).instrument(span).await?))
    }

    type AppendStreamStream = BoxStream<'static, Result<AppendResponse, Status>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let window = self.appender.config().stream_window.get();
        let submissions = Submissions {
            requests: request.into_inner(),
            appender: self.appender.clone(),
            shutdown: self.shutdown.clone(),
        };
        // Batches are handed to the log one after the other, and wait for its answers together.
        let answers = stream::unfold(Some(submissions), Submissions::next)
            .map(async |pending: Result<PendingAppend, Status>| Ok(pending?.finish().await))
            .buffered(window);
        Ok(Response::new(answers.boxed()))
    }
}

/// The batches of one `AppendStream`. They are checked and handed to the log in their order.
struct Submissions {
    requests: Streaming<AppendRequest>,
    appender: Arc<Appender>,
    shutdown: Shutdown,
}

impl Submissions {
    /// The next batch. An error is the last item: later batches are not read.
    async fn next(this: Option<Self>) -> Option<(Result<PendingAppend, Status>, Option<Self>)> {
        let mut this = this?;
        match this.submit().await {
            Ok(Some(pending)) => Some((Ok(pending), Some(this))),
            Ok(None) => None,
            Err(status) => Some((Err(status), None)),
        }
    }

    async fn submit(&mut self) -> Result<Option<PendingAppend>, Status> {
        let request = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return Err(Refusal::Stopping.into()),
            request = self.requests.message() => request?,
        };
        let Some(AppendRequest { stream, events }) = request else { return Ok(None) };
        let stream = self.appender.catalog().stream(&stream).await?;
        let reserved = self.appender.budget().reserve(MemoryBudget::cost(&events)).await?;
        let span =
            tracing::info_span!("append", stream = %stream.definition.name, events = events.len());
        Ok(Some(self.appender.submit(stream, events, reserved).instrument(span).await?))
    }
}
