use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request, http::StatusCode};
use bytes::Bytes;
use headwater_control::CONTROL_TOPIC;
use headwater_log::{BatchBuilder, Log};
use headwater_proto::{
    control::v1::{ControlRecord, StreamDeclared, control_record::Event},
    ingest::v1::{
        AppendRequest, AppendResponse, AppendResult, append_result::Outcome,
        dead_letter_service_client::DeadLetterServiceClient,
        ingest_service_client::IngestServiceClient,
    },
};
use headwater_service::{Node, follow::create_topics};
use headwater_testkit::FaultyLog;
use headwater_types::{Clock, Name, Offset, PartitionId, Token};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tonic::transport::Channel;
use tower::ServiceExt as _;

use crate::{Config, Ingest};

pub(super) const ORDERS: &str = "CREATE STREAM orders (
    user_id BIGINT NOT NULL, amount DOUBLE, note VARCHAR, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 4, max_future = '1 hour')";

/// 2023-11-14T22:13:20Z
pub(super) const NOW_MS: i64 = 1_700_000_000_000;

pub(super) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Duration {
        Duration::from_millis(NOW_MS as u64)
    }
}

/// Timestamp, key and value.
pub(super) type Stored = (i64, Option<Vec<u8>>, Vec<u8>);

/// Ingest with the stream `orders` declared.
pub(super) struct Fixture {
    pub(super) log: Arc<FaultyLog>,
    pub(super) node: Node,
    pub(super) router: axum::Router,
    channel: Channel,
    ingest: Ingest,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(super) async fn with(config: Config) -> Self {
        Self::on(FaultyLog::new(), config).await
    }

    pub(super) async fn on(log: Arc<FaultyLog>, config: Config) -> Self {
        log.spared.lock().insert(CONTROL_TOPIC.into());
        // The service creates these topics in the background, and the test declares a stream at
        // once.
        create_topics(log.memory()).await.unwrap();
        let mut node = Node::new(log.clone(), "unused", "test");
        node.clock = Arc::new(FixedClock);
        let ingest = Ingest::start(config, &node).await.unwrap();
        let mut routes = tonic::service::Routes::builder();
        ingest.add_to(&mut routes);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_routes(routes.routes())
            .serve_with_incoming_shutdown(
                tokio_stream::wrappers::TcpListenerStream::new(listener),
                node.tasks.shutdown().cancelled_owned(),
            );
        node.tasks.spawn_once("grpc", async move { Ok(server.await?) });
        let channel =
            Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let fixture = Self { log, node, router: ingest.http(), channel, ingest };
        fixture.declare("orders", ORDERS).await;
        fixture
    }

    pub(super) async fn declare(&self, name: &str, sql: &str) {
        let sql = headwater_sql::parse_stream(sql).unwrap_or_else(|error| panic!("{error}")).sql;
        self.record(Event::StreamDeclared(StreamDeclared { name: name.into(), sql })).await;
    }

    /// Writes a control record.
    pub(super) async fn record(&self, event: Event) {
        let record = ControlRecord { event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let topic = Name::new(CONTROL_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
    }

    pub(super) fn summary(&self) -> String {
        self.ingest.summary()
    }

    pub(super) fn client(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    pub(super) fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.channel.clone())
    }

    pub(super) async fn append(&self, events: Vec<Bytes>) -> AppendResponse {
        self.client().append(request(events)).await.unwrap().into_inner()
    }

    /// Everything in the topic `orders`: timestamp, key and value per partition.
    pub(super) async fn stored(&self) -> Vec<Vec<Stored>> {
        let topic = Name::new("orders").unwrap();
        let spec = self.log.topic(&topic).await.unwrap();
        let mut partitions = Vec::new();
        for partition in (0..spec.map_or(0, |spec| spec.partitions)).map(PartitionId) {
            let mut reader = self.log.reader(&topic, partition, Offset::ZERO).await.unwrap();
            let mut records = Vec::new();
            while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
                records.extend(chunk.records(Offset::ZERO).map(|record| {
                    let record = record.unwrap();
                    let value = record.value.unwrap().to_vec();
                    (record.timestamp_ms, record.key.map(Vec::from), value)
                }));
            }
            partitions.push(records);
        }
        partitions
    }

    pub(super) async fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.post_to("orders", headers, body).await
    }

    pub(super) async fn post_to(
        &self,
        stream: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::post(format!("/v1/streams/{stream}/events"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = body.collect().await.unwrap().to_bytes();
        let header =
            |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        Answer {
            status: parts.status,
            retry_after: header("retry-after"),
            json: serde_json::from_slice(&text).unwrap_or_else(|_| panic!("{text:?}")),
        }
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<String>,
    pub(super) json: serde_json::Value,
}

impl Answer {
    pub(super) fn error(&self) -> &str {
        self.json["error"].as_str().unwrap_or_default()
    }
}

/// Waits for what other tasks bring about; the limit only bounds a failing test.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it happens in time")
}

pub(super) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

pub(super) fn request(events: Vec<Bytes>) -> AppendRequest {
    AppendRequest { stream: "orders".into(), events }
}

/// A good event, in a spelling of its own.
pub(super) fn event(user: u64) -> Bytes {
    format!(r#" {{ "ts":"2023-11-14T22:00:00Z","user_id": {user},"amount":1.50 }} "#).into()
}

pub(super) fn partition_of(user: u64) -> u32 {
    headwater_log::partition_for_key(user.to_string().as_bytes(), 4).0
}

pub(super) fn accepted(result: &AppendResult) -> Option<(u32, u64)> {
    match result.outcome.as_ref().unwrap() {
        Outcome::Accepted(place) => Some((place.partition, place.offset)),
        Outcome::Rejected(_) => None,
    }
}

/// Field, reason and whether to retry.
pub(super) fn rejected(result: &AppendResult) -> Option<(&str, &str, bool)> {
    match result.outcome.as_ref().unwrap() {
        Outcome::Rejected(rejected) => {
            Some((&rejected.field, &rejected.reason, rejected.retryable))
        }
        Outcome::Accepted(_) => None,
    }
}

pub(super) fn token(text: &str) -> Token {
    text.parse().unwrap()
}
