use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
};

use headwater_control::CONTROL_TOPIC;
use headwater_log::{Alone, TopicSpec, WriterId};
use headwater_proto::control::v1::{
    GetCatalogRequest, catalog_service_client::CatalogServiceClient,
};
use headwater_testkit::FaultyLog;
use headwater_types::{Epoch, Name};
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{Code, service::RoutesBuilder, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::*;
use crate::{Data, OnFailure, follow::ControlView, settings::Common};

/// Bounds a failing test.
const SOON: Duration = Duration::from_secs(60);

/// How the tested service behaves.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// This many starts fail as if a broker were moving.
    flaky: u32,
    /// A task of the service is fenced.
    fenced: bool,
    /// A task of the service does not end.
    deaf: bool,
    #[serde(skip)]
    starts: Arc<AtomicU32>,
}

struct Tested;

impl Service for Tested {
    const NAME: &'static str = "tested";
    const ABOUT: &'static str = "Is tested";
    const GRPC: &'static [&'static str] = &["headwater.control.v1.CatalogService"];
    const DATA: Data = Data::Unused;

    type Config = Config;

    fn check(_: &Config) -> anyhow::Result<()> {
        Ok(())
    }

    async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        node.health.condition("tested").ready();
        node.metrics.register("tested_starts", "Starts", Counter::<u64>::default()).inc();
        let control = ControlView::start(node);
        control.wait_current().await?;
        if config.starts.fetch_add(1, SeqCst) < config.flaky {
            let _ = node.health.condition("left over");
            let error = headwater_log::Error::Unavailable("a broker is moving".into());
            return Err(anyhow::Error::new(error).context("the claim failed"));
        }
        if config.deaf {
            node.tasks.spawn_once("deaf", std::future::pending());
        }
        if config.fenced {
            node.tasks.spawn("writer", OnFailure::Stop, |_| {
                let (writer, ours) = (WriterId("control".into()), Epoch(1));
                std::future::ready(Err(headwater_log::Error::Fenced { writer, ours }.into()))
            });
        }
        Ok(Self)
    }

    fn add_to(&self, _: &mut RoutesBuilder) {}

    fn http(&self) -> axum::Router {
        axum::Router::new().route("/own", axum::routing::get(async || "mine"))
    }

    fn summary(&self) -> Option<String> {
        Some("3 events".into())
    }
}

/// A process on a log whose faults the test chooses.
struct Process {
    log: Arc<FaultyLog>,
    callback: Arc<Mutex<Option<ReachabilityCallback>>>,
    flushed: Arc<AtomicBool>,
    stop: Shutdown,
    grpc: SocketAddr,
    http: SocketAddr,
    ended: JoinHandle<ProcessExit>,
}

impl Process {
    async fn begin(log: Arc<FaultyLog>, config: Config, stop_deadline: Duration) -> Self {
        let listeners = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let [grpc, http] =
            [&listeners.0, &listeners.1].map(|listener| listener.local_addr().unwrap());
        let mut common = Common::default();
        common.server.stop_deadline = stop_deadline;
        common.server.instance = Some("one".into());
        let settings = Settings { common, own: config };
        let local = LocalResources { data: "unused".into(), directory: String::new(), listeners };
        let (callback, flushed) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (registered, flush, fake) = (callback.clone(), flushed.clone(), log.clone());
        let connect = move |_: &KafkaConfig, client: &str| {
            assert_eq!(client, "headwater-tested-one");
            Ok(RemoteLog {
                log: fake.clone(),
                membership: Arc::new(Alone::new(fake)),
                on_reachable: Box::new(move |callback| *registered.lock() = Some(callback)),
                close: Box::new(move |_| flush.store(true, SeqCst)),
            })
        };
        let stop = Shutdown::new();
        let stopped = stop.clone();
        let ended = Handle::current()
            .spawn(async move { run::<Tested>(settings, local, &stopped, connect).await });
        Self { log, callback, flushed, stop, grpc, http, ended }
    }

    fn tell(&self, reachable: Result<(), String>) {
        self.callback.lock().as_ref().expect("a callback is registered")(reachable);
    }

    async fn end(self) -> (ProcessExit, bool) {
        let outcome = timeout(SOON, self.ended).await.expect("it ends").unwrap();
        (outcome, self.flushed.load(SeqCst))
    }

    async fn get(&self, path: &str) -> (u16, String) {
        get(self.http, path).await
    }

    /// Waits until the path is answered with this status and a text that has this part.
    async fn until(&self, path: &str, status: u16, text: &str) {
        let mut last = String::new();
        let found = timeout(SOON, async {
            loop {
                let (found, body) = self.get(path).await;
                if found == status && body.contains(text) {
                    return;
                }
                last = format!("{found} {body}");
                sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(found.await.is_ok(), "{path} never was {status} {text:?}, at last: {last}");
    }

    /// Calls the service; the code and message of the answer.
    async fn call(&self) -> (Code, String) {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        let mut client = CatalogServiceClient::new(endpoint.connect().await.unwrap());
        let status = client.get_catalog(GetCatalogRequest {}).await.unwrap_err();
        (status.code(), status.message().to_owned())
    }

    async fn health(&self) -> ServingStatus {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let request = HealthCheckRequest { service: Tested::GRPC[0].into() };
        client.check(request).await.unwrap().into_inner().status()
    }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn topic(name: &str) -> Name {
    Name::new(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_alive_while_the_log_is_away_and_ready_when_it_is_there() {
    let log = FaultyLog::new();
    log.away.store(true, SeqCst);
    let process = Process::begin(log, Config::default(), SOON).await;
    process.until("/readyz", 503, "log: connecting to 127.0.0.1:9092").await;
    process.tell(Err("Kafka at 127.0.0.1:9092 cannot be reached: refused".into()));

    process.until("/readyz", 503, "log: Kafka at 127.0.0.1:9092 cannot be reached: refused").await;
    assert_eq!(process.get("/healthz").await.0, 200);
    assert_eq!(process.health().await, ServingStatus::NotServing);
    let (status, why) = process.get("/own").await;
    assert!(status == 503 && why.contains("starting") && why.contains("refused"), "{why}");
    let (code, why) = process.call().await;
    assert!(code == Code::Unavailable && why.contains("refused"), "{why}");

    process.log.away.store(false, SeqCst);
    process.tell(Ok(()));
    process.until("/readyz", 200, "ready").await;
    assert_eq!(process.get("/own").await, (200, "mine".into()));
    assert_eq!(process.call().await.0, Code::Unimplemented, "the service answers itself now");
    assert_eq!(process.health().await, ServingStatus::Serving);

    // The log goes away again and comes back; the process does not end.
    process.log.away.store(true, SeqCst);
    process.tell(Err("refused".into()));
    process.until("/readyz", 503, "log: refused").await;
    assert_eq!(process.get("/own").await.0, 200);
    process.log.away.store(false, SeqCst);
    process.tell(Ok(()));
    process.until("/readyz", 200, "ready").await;

    process.stop.begin();
    let (ProcessExit { code, line }, flushed) = process.end().await;
    assert_eq!(code, 0, "{line}");
    assert!(line.starts_with("stopped in ") && line.ends_with(" s; 3 events"), "{line}");
    assert!(flushed, "what the log holds is written before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_never_reached_the_log_ends_at_once_when_told_to() {
    let log = FaultyLog::new();
    log.away.store(true, SeqCst);
    let process = Process::begin(log, Config::default(), Duration::from_secs(10)).await;
    process.until("/readyz", 503, "log: connecting").await;
    process.tell(Err("refused".into()));
    let started = Instant::now();

    process.stop.begin();

    assert_eq!(process.end().await.0.code, 0);
    assert!(started.elapsed() < CONNECT_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_for_a_while_is_tried_again_from_nothing() {
    let config = Config { flaky: 2, ..Config::default() };
    let process = Process::begin(FaultyLog::new(), config.clone(), SOON).await;
    process.until("/readyz", 503, "connecting").await;
    process.tell(Ok(()));

    process.until("/readyz", 200, "ready\n  log: ok\n  process: ok\n  tested: ok\n").await;

    assert_eq!(config.starts.load(SeqCst), 3);
    let (_, metrics) = process.get("/metrics").await;
    let lines = metrics.matches("headwater_tested_starts_total 1").count();
    assert_eq!(lines, 1, "what failed starts registered is gone: {metrics}");
    process.stop.begin();
    assert_eq!(process.end().await.0.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_ours_with_wrong_settings_ends_the_process_with_what_is_wrong() {
    let log = FaultyLog::new();
    headwater_log::block_on(
        log.memory().create_topic(&topic(CONTROL_TOPIC), TopicSpec::compact(3)),
    )
    .unwrap();
    let process = Process::begin(log, Config::default(), SOON).await;
    process.until("/readyz", 503, "connecting").await;
    process.tell(Ok(()));

    let (ProcessExit { code, line }, _) = process.end().await;

    assert_eq!(code, 2, "{line}");
    assert!(line.starts_with("cannot start: topic headwater.control"), "{line}");
    assert!(line.contains("3 partitions that keep the latest record of each key"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_fenced_ends_the_process_with_1_and_says_why() {
    let config = Config { fenced: true, ..Config::default() };
    let process = Process::begin(FaultyLog::new(), config, SOON).await;
    process.until("/readyz", 503, "").await;
    process.tell(Ok(()));

    let (ProcessExit { code, line }, flushed) = process.end().await;

    assert_eq!(
        (code, line.as_str()),
        (1, "writer failed: writer control is fenced: its claim 1 was superseded")
    );
    assert!(flushed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_is_a_failure_that_names_what_still_ran() {
    let config = Config { deaf: true, ..Config::default() };
    let process = Process::begin(FaultyLog::new(), config, Duration::from_secs(1)).await;
    process.until("/readyz", 503, "").await;
    process.tell(Ok(()));
    process.until("/readyz", 200, "ready").await;
    process.stop.begin();

    let (ProcessExit { code, line }, _) = process.end().await;

    assert_eq!(code, 1, "{line}");
    assert!(line.starts_with("did not stop within 1s: "), "{line}");
    assert!(line.contains("deaf") && line.ends_with("; 3 events"), "{line}");
}
