//! Connections to a server.

use std::{error::Error as _, time::Duration};

use headwater_proto::{
    control::v1::{
        catalog_service_client::CatalogServiceClient, replay_service_client::ReplayServiceClient,
    },
    ingest::v1::{
        dead_letter_service_client::DeadLetterServiceClient,
        ingest_service_client::IngestServiceClient,
    },
    query::v1::query_service_client::QueryServiceClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Exit, Failure, Result};

/// Answers may carry many rows; requests stay small.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// One connection, from which a client for each service is made.
#[derive(Clone)]
pub struct Server(Channel);

impl Server {
    pub async fn connect(address: &str) -> Result<Self> {
        let url =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| {
                Failure::usage(format!("--server {address:?} is no address: {error}"))
            })?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Failure::new(
                Exit::Unavailable,
                format!("no server at {url} ({cause}); start `headwater dev`, or name another with --server"),
            )
        })?;
        Ok(Self(channel))
    }

    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn replays(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn query(&self) -> QueryServiceClient<Channel> {
        QueryServiceClient::new(self.0.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// Names this call, so that the server does it once even if it arrives twice.
pub fn request_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}
