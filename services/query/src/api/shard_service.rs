//! The gRPC service that other query instances ask.

use std::sync::Arc;

use headwater_proto::query::v1::{
    ReadShardRequest, ReadShardResponse, shard_service_server::ShardService,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    api::{
        answer::{BoxStream, streamed},
        read_shard::read_shard,
    },
    context::RequestContext,
    limit::ConcurrencyLimit,
    peers::shard_locator::ShardLocator,
};

/// Answers other query instances.
#[derive(Clone)]
pub(crate) struct ShardApi {
    pub context: Arc<RequestContext>,
    pub locator: Arc<ShardLocator>,
    /// Bounds the threads that scan for other instances.
    pub limit: Arc<ConcurrencyLimit>,
}

#[tonic::async_trait]
impl ShardService for ShardApi {
    type ReadShardStream = BoxStream<ReadShardResponse>;

    async fn read_shard(
        &self,
        request: Request<Streaming<ReadShardRequest>>,
    ) -> Result<Response<Self::ReadShardStream>, Status> {
        let measured = self.context.metrics.begin("read_shard");
        let parts = read_shard(&self.context, &self.locator, &self.limit, request.into_inner());
        streamed(measured, parts.await, |_| 0)
    }
}
