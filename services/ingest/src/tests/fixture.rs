use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request, http::StatusCode};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use headwater_control::CONTROL_TOPIC;
use headwater_log::{
    BatchBuilder, EncodedBatch, Ends, Error, FencedWriter, Log, MemoryLog, Reader, TopicSpec,
    WriterId,
};
use headwater_proto::{
    control::v1::{ControlRecord, StreamDeclared, control_record::Event},
    ingest::v1::{
        AppendRequest, AppendResponse, AppendResult, append_result::Outcome,
        dead_letter_service_client::DeadLetterServiceClient,
        ingest_service_client::IngestServiceClient,
    },
};
use headwater_service::Node;
use headwater_types::{Clock, Name, Offset, PartitionId, Token};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
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

/// A log that fails or waits where it is told to.
pub(super) struct Moody {
    inner: MemoryLog,
    /// Appends to these partitions of any stream fail.
    pub(super) failing: Mutex<Vec<PartitionId>>,
    /// Appends become durable once this many are let through.
    pub(super) let_through: watch::Sender<usize>,
    appends: Mutex<usize>,
}

impl Moody {
    pub(super) fn appends(&self) -> usize {
        *self.appends.lock()
    }
}

impl Log for Moody {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Result<(), Error> {
        self.inner.create_topic(topic, spec)
    }
    fn topic(&self, topic: &Name) -> Result<Option<TopicSpec>, Error> {
        self.inner.topic(topic)
    }
    fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        self.inner.ends(topic, partition)
    }
    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> BoxFuture<'static, Result<Offset, Error>> {
        if topic.as_str() == CONTROL_TOPIC {
            return self.inner.append(topic, partition, batch);
        }
        if self.failing.lock().contains(&partition) {
            return std::future::ready(Err(Error::Unavailable("the broker is gone".into())))
                .boxed();
        }
        let number = {
            let mut appends = self.appends.lock();
            *appends += 1;
            *appends
        };
        let (append, mut let_through) =
            (self.inner.append(topic, partition, batch), self.let_through.subscribe());
        async move {
            let offset = append.await?;
            let _ = let_through.wait_for(|&count| count >= number).await;
            Ok(offset)
        }
        .boxed()
    }
    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Result<Box<dyn Reader>, Error> {
        self.inner.reader(topic, partition, from)
    }
    fn writer(&self, id: &WriterId) -> Result<Arc<dyn FencedWriter>, Error> {
        self.inner.writer(id)
    }
    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Result<(), Error> {
        self.inner.trim(topic, partition, before)
    }
    fn size(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<u64, Error> {
        self.inner.size(topic, partition, from, to)
    }
}

/// Timestamp, key and value.
pub(super) type Stored = (i64, Option<Vec<u8>>, Vec<u8>);

/// Ingest with the stream `orders` declared.
pub(super) struct Fixture {
    pub(super) log: Arc<Moody>,
    pub(super) node: Node,
    pub(super) router: axum::Router,
    channel: Channel,
}

impl Fixture {
    pub(super) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(super) async fn with(config: Config) -> Self {
        let log = Arc::new(Moody {
            inner: MemoryLog::new(),
            failing: Mutex::default(),
            let_through: watch::Sender::new(usize::MAX),
            appends: Mutex::default(),
        });
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
        let fixture = Self { log, node, router: ingest.http(), channel };
        fixture.declare("orders", ORDERS).await;
        fixture
    }

    pub(super) async fn declare(&self, name: &str, sql: &str) {
        let sql = headwater_sql::parse_stream(sql).unwrap_or_else(|error| panic!("{error}")).sql;
        let event = Event::StreamDeclared(StreamDeclared { name: name.into(), sql });
        let record = ControlRecord { event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let topic = Name::new(CONTROL_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
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
    pub(super) fn stored(&self) -> Vec<Vec<Stored>> {
        let topic = Name::new("orders").unwrap();
        let partitions = self.log.topic(&topic).unwrap().map_or(0, |spec| spec.partitions);
        (0..partitions)
            .map(|partition| {
                let mut reader =
                    self.log.reader(&topic, PartitionId(partition), Offset::ZERO).unwrap();
                let mut records = Vec::new();
                while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
                    records.extend(chunk.records(Offset::ZERO).map(|record| {
                        let record = record.unwrap();
                        (
                            record.timestamp_ms,
                            record.key.map(Vec::from),
                            record.value.unwrap().to_vec(),
                        )
                    }));
                }
                records
            })
            .collect()
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
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it happens in time")
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
