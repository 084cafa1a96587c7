//! The gRPC surface: each request is measured, each error becomes a status.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::Stream;
use headwater_proto::query::v1::{
    DescribeRequest, DescribeResponse, GetRequest, GetResponse, QueryRequest, QueryResponse,
    ReadShardRequest, ReadShardResponse, ScanRequest, ScanResponse, WatchRequest, WatchResponse,
    query_service_server::QueryService, shard_service_server::ShardService,
};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{Service, error::Error, metrics::Measured};

#[derive(Clone)]
pub(crate) struct Rpc(pub Arc<Service>);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl QueryService for Rpc {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let measured = self.0.metrics.begin("get");
        answered(measured, self.0.get(request.get_ref()).await, |answer| answer.row.iter().len())
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let measured = self.0.metrics.begin("describe");
        answered(measured, self.0.describe(request.get_ref()).await, |_| 0)
    }

    type ScanStream = BoxStream<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let measured = self.0.metrics.begin("scan");
        streamed(measured, self.0.scan(request.get_ref()).await, |part| part.rows.len())
    }

    type QueryStream = BoxStream<QueryResponse>;

    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let measured = self.0.metrics.begin("query");
        streamed(measured, self.0.query(request.into_inner()).await, |part| part.rows.len())
    }

    type WatchStream = BoxStream<WatchResponse>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let measured = self.0.metrics.begin("watch");
        streamed(measured, self.0.watch(request.get_ref()).await, |part| part.rows.len())
    }
}

#[tonic::async_trait]
impl ShardService for Rpc {
    type ReadShardStream = BoxStream<ReadShardResponse>;

    async fn read_shard(
        &self,
        request: Request<Streaming<ReadShardRequest>>,
    ) -> Result<Response<Self::ReadShardStream>, Status> {
        let measured = self.0.metrics.begin("read_shard");
        streamed(measured, self.0.read_shard(request.into_inner()).await, |_| 0)
    }
}

fn answered<T>(
    mut measured: Measured,
    answer: Result<T, Error>,
    rows: impl Fn(&T) -> usize,
) -> Result<Response<T>, Status> {
    match answer {
        Ok(answer) => {
            measured.rows(rows(&answer));
            measured.end(Code::Ok);
            Ok(Response::new(answer))
        }
        Err(error) => Err(refused(&mut measured, error)),
    }
}

fn streamed<T: 'static>(
    mut measured: Measured,
    answer: Result<impl Stream<Item = Result<T, Error>> + Send + 'static, Error>,
    rows: fn(&T) -> usize,
) -> Result<Response<BoxStream<T>>, Status> {
    match answer {
        Ok(parts) => {
            Ok(Response::new(Box::pin(MeasuredStream { parts: Box::pin(parts), measured, rows })))
        }
        Err(error) => Err(refused(&mut measured, error)),
    }
}

fn refused(measured: &mut Measured, error: Error) -> Status {
    measured.end(error.code());
    if matches!(error.code(), Code::Internal | Code::DataLoss) {
        tracing::error!(%error, "a request could not be answered");
    }
    error.into()
}

/// An answer in parts, measured until its end.
struct MeasuredStream<S, T> {
    parts: Pin<Box<S>>,
    measured: Measured,
    rows: fn(&T) -> usize,
}

impl<S: Stream<Item = Result<T, Error>>, T> Stream for MeasuredStream<S, T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.parts.as_mut().poll_next(context).map(|part| match part {
            Some(Ok(part)) => {
                this.measured.rows((this.rows)(&part));
                Some(Ok(part))
            }
            Some(Err(error)) => Some(Err(refused(&mut this.measured, error))),
            None => {
                this.measured.end(Code::Ok);
                None
            }
        })
    }
}
