//! Headwater as its clients see it, whether it is one process or many containers.

use headwater_proto::{
    control::v1::{
        ApplyRequest, ApplyResponse, DefinitionFile, ReplayOptions,
        catalog_service_client::CatalogServiceClient, replay_service_client::ReplayServiceClient,
    },
    ingest::v1::{
        dead_letter_service_client::DeadLetterServiceClient,
        ingest_service_client::IngestServiceClient,
    },
    query::v1::query_service_client::QueryServiceClient,
};
use tonic::{Status, transport::Channel};

/// Where the services are.
#[allow(async_fn_in_trait, reason = "tests need no Send bound on it")]
pub trait Platform {
    fn ingest_channel(&self) -> Channel;
    fn coordinator_channel(&self) -> Channel;
    fn query_channel(&self) -> Channel;

    fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.ingest_channel())
    }

    fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.ingest_channel())
    }

    fn query(&self) -> QueryServiceClient<Channel> {
        QueryServiceClient::new(self.query_channel())
    }

    fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.coordinator_channel())
    }

    fn replays(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.coordinator_channel())
    }

    /// Applies definitions, once however often it is asked with one id.
    fn apply(
        &self,
        request_id: &str,
        sql: &[&str],
    ) -> impl Future<Output = Result<ApplyResponse, Status>> + Send {
        self.apply_with(request_id, sql, ReplayOptions::default())
    }

    /// As [`Platform::apply`], with options for the replays that it starts.
    fn apply_with(
        &self,
        request_id: &str,
        sql: &[&str],
        options: ReplayOptions,
    ) -> impl Future<Output = Result<ApplyResponse, Status>> + Send {
        let files = sql.iter().enumerate();
        let files = files.map(|(place, sql)| DefinitionFile {
            name: format!("{place}.sql"),
            sql: (*sql).into(),
        });
        let request = ApplyRequest {
            files: files.collect(),
            request_id: request_id.into(),
            options: Some(options),
            ..ApplyRequest::default()
        };
        let mut catalog = self.catalog();
        async move { catalog.apply(request).await.map(tonic::Response::into_inner) }
    }
}
