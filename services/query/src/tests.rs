//! The service over an in-memory log, with control records and shards written by hand.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

mod deleting;
mod fixture;
mod forward;
mod freshness;
mod get;
mod instance;
mod late_log;
mod peers;
mod scan;
mod shard_moves;
mod sql;
mod swap;
mod watch;
mod watch_resume;

use arrow::ipc::reader::StreamReader;
use fixture::Fixture;
use futures::{Stream, StreamExt};
use headwater_control::{CONTROL_TOPIC, ReplayId, STATUS_TOPIC, StatusBoard, status_key};
use headwater_engine::Shard;
use headwater_log::{BatchBuilder, Log, MemoryLog, TopicSpec, block_on, partition_for_key};
use headwater_proto::{
    common::v1::{PartitionOffset, Row, Value, value::Kind},
    control::v1::{
        AlignRequested, ControlRecord, DiffRecorded, DiffReport, FenceNamed, Generation as Build,
        GenerationRetired, ReplayStarted, StreamDeclared, SwapRequested, Swapped, Verdict,
        ViewCreated, control_record::Event,
    },
    query::v1::{
        DescribeRequest, Freshness, GetRequest, GetResponse, Provenance, QueryRequest,
        QueryResponse, ResultFormat, ScanRequest, ScanResponse, WatchRequest, WatchResponse,
        query_service_server::QueryService,
    },
    status::v1::ShardStatus,
};
use headwater_service::{Node, Service as _, Shutdown};
use headwater_state::{Identity, Options, ShardDb, layout};
use headwater_types::{
    GenerationId, GenerationInputs, Name, Offset, PartitionId, StreamDefinition, Token,
};
use instance::{Instance, directory};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Handle, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};

use crate::{
    Config, Query,
    api::{query_service::QueryApi, shard_service::ShardApi},
    peers::pool::SERVICE,
};

const STREAM: &str = "CREATE STREAM orders (
    region VARCHAR, kind VARCHAR, amount BIGINT, price DECIMAL(12,2), ts TIMESTAMP,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'region', partitions = 2)";

const PER_REGION: &str = "CREATE MATERIALIZED VIEW per_region WITH (retention = 'forever') AS
    SELECT region, window_start, count(*) AS orders, sum(amount) AS amount, sum(price) AS price
    FROM TUMBLE(orders, ts, INTERVAL '1 minute')
    GROUP BY region, window_start, window_end";

/// The next definition of `PER_REGION`, which counts every order twice.
const PER_REGION_TWICE: &str = "CREATE MATERIALIZED VIEW per_region WITH (retention = 'forever') AS
    SELECT region, window_start, count(*) * 2 AS orders, sum(amount) AS amount, sum(price) AS price
    FROM TUMBLE(orders, ts, INTERVAL '1 minute')
    GROUP BY region, window_start, window_end";

const PER_KIND: &str = "CREATE MATERIALIZED VIEW per_kind WITH (retention = 'forever') AS
    SELECT kind, count(*) AS orders, sum(amount) AS amount FROM orders GROUP BY kind";

/// 2020-01-01T00:00:00Z in microseconds, and one minute.
const START: i64 = 1_577_836_800_000_000;
const MINUTE: i64 = 60_000_000;
const PARTITIONS: u32 = 2;

/// How long a test waits for something that will come. No test passes or fails by it on any machine
/// that works.
const PATIENCE: Duration = Duration::from_secs(120);

async fn collect<T>(
    mut parts: impl Stream<Item = Result<T, Status>> + Unpin,
) -> Result<Vec<T>, Status> {
    let mut all = Vec::new();
    while let Some(part) = parts.next().await {
        all.push(part?);
    }
    Ok(all)
}

fn shown(parts: &[ScanResponse]) -> Vec<String> {
    parts.iter().flat_map(|part| &part.rows).map(show).collect()
}

fn copy(from: &Path, into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), into.join(entry.file_name())).unwrap();
    }
}

/// Every answer has all that is committed, and watchers look often.
fn eager() -> Config {
    Config {
        max_staleness: Duration::ZERO,
        watch_interval: Duration::from_millis(5),
        ..Config::default()
    }
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.expect(what);
}

/// The next part of an answer that goes on.
async fn next<T>(parts: &mut (impl Stream<Item = Result<T, Status>> + Unpin)) -> T {
    let part = tokio::time::timeout(PATIENCE, parts.next()).await;
    part.expect("a part comes").expect("the answer goes on").unwrap()
}

/// The error of a request that cannot succeed. `ask` gets a timeout in milliseconds. A machine that
/// is too slow to come to the error in time gets ten times as long.
async fn refused<T>(said: &str, mut ask: impl AsyncFnMut(u64) -> Result<T, Status>) -> Status {
    let mut timeout_ms = 50;
    loop {
        let Err(error) = ask(timeout_ms).await else { panic!("the request succeeded") };
        if error.message().contains(said) {
            return error;
        }
        timeout_ms *= 10;
        assert!(timeout_ms <= 50_000, "{}", error.message());
    }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::Text(text.into())) }
}

fn minute(minute: i64) -> Value {
    Value { kind: Some(Kind::TimestampMicros(START + minute * MINUTE)) }
}

fn show(row: &Row) -> String {
    let value = |value: &Value| match &value.kind {
        None => "NULL".to_owned(),
        Some(Kind::Boolean(value)) => value.to_string(),
        Some(Kind::Integer(value)) => value.to_string(),
        Some(Kind::Double(value)) => format!("{value:?}"),
        Some(Kind::Text(value) | Kind::Decimal(value)) => value.clone(),
        Some(Kind::TimestampMicros(value)) => match (value - START) % MINUTE {
            0 => format!("+{}", (value - START) / MINUTE),
            _ => value.to_string(),
        },
    };
    row.values.iter().map(value).collect::<Vec<_>>().join(" ")
}

fn offsets(provenance: &Provenance) -> Vec<u64> {
    provenance.partitions.iter().map(|partition| partition.offset).collect()
}

fn after(token: &Token) -> Freshness {
    Freshness { after: vec![token.to_string()], ..patient() }
}

/// For a request that will succeed: as long as the slowest machine may take.
fn patient() -> Freshness {
    within(u64::try_from(PATIENCE.as_millis()).unwrap())
}

fn within(timeout_ms: u64) -> Freshness {
    Freshness { timeout_ms, ..Freshness::default() }
}

fn exists(path: &Path) -> bool {
    path.exists()
}
