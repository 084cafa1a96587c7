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

use crate::{
    cli::ServerArgs,
    failure::{Exit, Failure, Result},
};

/// The largest message of an answer, which may carry many rows.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A service that a command calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Ingest,
    Query,
    Coordinator,
}

impl Service {
    /// The address of the service, and the option that gave it.
    pub fn address(self, servers: &ServerArgs) -> (&str, &'static str) {
        let own = match self {
            Self::Ingest => &servers.ingest_server,
            Self::Query => &servers.query_server,
            Self::Coordinator => &servers.coordinator_server,
        };
        match own {
            Some(own) => (own, self.option()),
            None => (&servers.server, "--server"),
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Ingest => "--ingest-server",
            Self::Query => "--query-server",
            Self::Coordinator => "--coordinator-server",
        }
    }

    pub fn variable(self) -> &'static str {
        match self {
            Self::Ingest => "HEADWATER_INGEST_SERVER",
            Self::Query => "HEADWATER_QUERY_SERVER",
            Self::Coordinator => "HEADWATER_COORDINATOR_SERVER",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest service",
            Self::Query => "query service",
            Self::Coordinator => "coordinator",
        }
    }
}

/// A connection to a server, from which clients are made.
#[derive(Clone)]
pub struct Server {
    channel: Channel,
    service: Service,
    url: String,
    option: &'static str,
}

impl Server {
    pub async fn connect(service: Service, servers: &ServerArgs) -> Result<Self> {
        let (address, option) = service.address(servers);
        let url =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| {
                Failure::usage(format!("{option} {address:?} is no address: {error}"))
            })?
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Failure::new(
                Exit::Unavailable,
                format!("no server at {url} ({cause}); start `headwater dev`, or name another with {option}"),
            )
        })?;
        Ok(Self { channel, service, url, option })
    }

    /// Explains a failed call: a server that does not have the method is the wrong server.
    pub fn explain(&self, failure: Failure) -> Failure {
        if !failure.unimplemented {
            return failure;
        }
        let Self { service, url, option, .. } = self;
        let (name, own) = (service.name(), service.option());
        let remedy = if *option == own {
            format!("give the {name}'s address to {own}")
        } else {
            format!(
                "where services are processes of their own, give the {name}'s address to {own} or {}",
                service.variable()
            )
        };
        Failure::usage(format!("the server at {url} is not the {name}; {remedy}"))
    }

    pub fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn replays(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn query(&self) -> QueryServiceClient<Channel> {
        QueryServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }
}

/// An id for a request, by which the server recognises a repetition.
pub fn request_id() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_service_has_its_own_address_or_that_of_all() {
        use Service::{Coordinator, Ingest, Query};
        let address = |arguments: &[&str], service: Service| {
            let arguments = ["headwater"].iter().chain(arguments).chain(&["status"]);
            let servers = Cli::try_parse_from(arguments).unwrap().servers;
            let (url, option) = service.address(&servers);
            (url.to_owned(), option)
        };
        // The environment of the tests may have addresses too.
        let all = ["--server", "a:1"];
        for (service, option) in [
            (Ingest, "--ingest-server"),
            (Query, "--query-server"),
            (Coordinator, "--coordinator-server"),
        ] {
            if std::env::var_os(service.variable()).is_none() {
                assert_eq!(address(&all, service), ("a:1".into(), "--server"));
            }
            let own = [&all[..], &[option, "b:2"]].concat();
            assert_eq!(address(&own, service), ("b:2".into(), option));
        }
    }

    /// A connection to a server that has none of our services.
    async fn stranger(own: bool) -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (_, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().add_service(health);
        tokio::runtime::Handle::current()
            .spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let servers = ServerArgs {
            server: if own { "127.0.0.1:1".into() } else { address.clone() },
            ingest_server: None,
            query_server: own.then_some(address),
            coordinator_server: None,
        };
        Server::connect(Service::Query, &servers).await.unwrap()
    }

    #[tokio::test]
    async fn the_wrong_server_is_said_to_be_wrong_with_the_option_that_names_the_right_one() {
        for own in [false, true] {
            let server = stranger(own).await;
            let request = headwater_proto::query::v1::QueryRequest::default();
            let status = server.query().query(request).await.unwrap_err();
            let failure = server.explain(status.into());
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains("is not the query service"), "{}", failure.message);
            assert!(failure.message.contains("--query-server"), "{}", failure.message);
            assert_eq!(failure.message.contains("HEADWATER_QUERY_SERVER"), !own);
        }
    }

    #[tokio::test]
    async fn an_address_without_a_server_is_named_with_its_option() {
        let servers = ServerArgs {
            server: "127.0.0.1:1".into(),
            ingest_server: Some("http://127.0.0.1:2".into()),
            query_server: None,
            coordinator_server: Some("no address".into()),
        };
        for (service, exit, expected) in [
            (Service::Ingest, Exit::Unavailable, "name another with --ingest-server"),
            (Service::Query, Exit::Unavailable, "no server at http://127.0.0.1:1"),
            (
                Service::Coordinator,
                Exit::Usage,
                "--coordinator-server \"no address\" is no address",
            ),
        ] {
            let Err(failure) = Server::connect(service, &servers).await else {
                panic!("{service:?}")
            };
            assert_eq!(failure.exit, exit);
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }
}
