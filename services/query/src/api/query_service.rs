//! The gRPC service that clients ask.

use std::sync::Arc;

use headwater_proto::query::v1::{
    DescribeRequest, DescribeResponse, GetRequest, GetResponse, QueryRequest, QueryResponse,
    ScanRequest, ScanResponse, WatchRequest, WatchResponse, query_service_server::QueryService,
};
use tonic::{Request, Response, Status};

use crate::{
    api::{
        answer::{BoxStream, answered, streamed},
        describe::describe,
        get::get,
        scan::scan,
        watch::watch,
    },
    context::RequestContext,
    sql::query::SqlEngine,
};

/// Answers clients.
#[derive(Clone)]
pub(crate) struct QueryApi {
    pub context: Arc<RequestContext>,
    pub sql: Arc<SqlEngine>,
}

#[tonic::async_trait]
impl QueryService for QueryApi {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let measured = self.context.metrics.begin("get");
        let answer = get(&self.context, request.get_ref()).await;
        answered(measured, answer, |answer| answer.row.iter().len())
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let measured = self.context.metrics.begin("describe");
        answered(measured, describe(&self.context, request.get_ref()).await, |_| 0)
    }

    type ScanStream = BoxStream<ScanResponse>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let measured = self.context.metrics.begin("scan");
        let parts = scan(&self.context, request.get_ref()).await;
        streamed(measured, parts, |part| part.rows.len())
    }

    type QueryStream = BoxStream<QueryResponse>;

    async fn query(
        &self,
        request: Request<QueryRequest>,
    ) -> Result<Response<Self::QueryStream>, Status> {
        let measured = self.context.metrics.begin("query");
        let parts = self.sql.run(request.into_inner()).await;
        streamed(measured, parts, |part| part.rows.len())
    }

    type WatchStream = BoxStream<WatchResponse>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let measured = self.context.metrics.begin("watch");
        let parts = watch(&self.context, request.get_ref()).await;
        streamed(measured, parts, |part| part.rows.len())
    }
}
