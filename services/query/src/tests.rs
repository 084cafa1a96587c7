//! The service over an in-memory log, with control records and shards written by hand.

use std::{collections::BTreeMap, path::Path, time::Duration};

mod forward;
mod freshness;
mod get;
mod peers;
mod scan;
mod shard_moves;
mod sql;
mod swap;
mod watch;

use arrow::ipc::reader::StreamReader;
use futures::{Stream, StreamExt};
use headwater_control::{CONTROL_TOPIC, ReplayId, STATUS_TOPIC, status_key};
use headwater_engine::Shard;
use headwater_log::{BatchBuilder, Log, MemoryLog, TopicSpec, partition_for_key};
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
use headwater_state::{Identity, ShardDb};
use headwater_types::{
    GenerationId, GenerationInputs, Name, Offset, PartitionId, StreamDefinition, Token,
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Status, transport::Server};

use super::*;
use crate::peers::pool::SERVICE;

const STREAM: &str = "CREATE STREAM orders (
    region VARCHAR, kind VARCHAR, amount BIGINT, price DECIMAL(12,2), ts TIMESTAMP,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'region', partitions = 2)";

const PER_REGION: &str = "CREATE MATERIALIZED VIEW per_region WITH (retention = 'forever') AS
    SELECT region, window_start, count(*) AS orders, sum(amount) AS amount, sum(price) AS price
    FROM TUMBLE(orders, ts, INTERVAL '1 minute')
    GROUP BY region, window_start, window_end";

/// What `PER_REGION` becomes: it counts every order twice.
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

/// A query instance with a data directory of its own.
struct Seat {
    /// Its parent is removed at the end.
    data: TempDir,
    node: Node,
    rpc: Rpc,
}

impl Seat {
    /// The only instance.
    async fn alone(log: Arc<dyn Log>, config: Config) -> Self {
        let data = TempDir::new().unwrap();
        let node = Node::new(log, data.path(), "here");
        let rpc = Rpc(Query::start(config, &node).await.unwrap().service);
        Self { data, node, rpc }
    }

    /// One of several: it serves what others ask of it.
    async fn among(log: Arc<dyn Log>, number: usize, config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let data = TempDir::new().unwrap();
        let mut node = Node::new(log, data.path(), format!("query-{number}"));
        node.directory = directory(number);
        node.advertise = Some(format!("http://{}", listener.local_addr().unwrap()));
        Self::serve(data, node, listener, config).await
    }

    async fn serve(data: TempDir, node: Node, listener: TcpListener, config: Config) -> Self {
        let query = Query::start(config, &node).await.unwrap();
        let mut routes = tonic::service::RoutesBuilder::default();
        query.add_to(&mut routes);
        let incoming = TcpListenerStream::new(listener);
        let server = Server::builder().add_routes(routes.routes());
        // It ends with the runtime, whatever streams are still open.
        node.tasks.spawn_once("server", async move {
            server.serve_with_incoming(incoming).await?;
            Ok(())
        });
        Self { data, node, rpc: Rpc(query.service) }
    }

    /// What a metric says, labels included in its name.
    fn metric(&self, name: &str) -> u64 {
        let text = self.node.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse().unwrap())
    }
}

fn directory(number: usize) -> String {
    format!("directory-{number}")
}

/// The service, the log, and the processors' part by hand.
struct Bench {
    log: Arc<dyn Log>,
    seats: Vec<Seat>,
    /// The first seat's.
    node: Node,
    rpc: Rpc,
    stream: StreamDefinition,
    /// A shard stays open as in a processor.
    shards: BTreeMap<(GenerationId, u32), Shard>,
    /// In whose directory it is, and the epoch of its claim.
    owners: BTreeMap<(GenerationId, u32), (usize, u64)>,
    generations: Vec<GenerationId>,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(Config { max_staleness: Duration::ZERO, ..Config::default() }).await
    }

    async fn start_with(config: Config) -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
        let seat = Seat::alone(log.clone(), config).await;
        Self::of(log, vec![seat]).await
    }

    /// Several instances; the shards are shared out among them by the numbers of their partitions.
    async fn several(count: usize, config: Config) -> Self {
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
        let mut seats = Vec::new();
        for number in 0..count {
            seats.push(Seat::among(log.clone(), number, config.clone()).await);
        }
        let bench = Self::of(log, seats).await;
        bench.all_announced(count).await;
        bench
    }

    async fn of(log: Arc<dyn Log>, seats: Vec<Seat>) -> Self {
        let stream = headwater_sql::parse_stream(STREAM).unwrap();
        headwater_log::block_on(log.create_topic(&stream.topic, TopicSpec::keep(PARTITIONS)))
            .unwrap();
        let bench = Self {
            log,
            node: seats[0].node.clone(),
            rpc: seats[0].rpc.clone(),
            seats,
            stream,
            shards: BTreeMap::new(),
            owners: BTreeMap::new(),
            generations: Vec::new(),
        };
        let declared = StreamDeclared { name: "orders".into(), sql: bench.stream.sql.clone() };
        bench.record(Event::StreamDeclared(declared)).await;
        bench
    }

    /// Waits until every instance has been told of as many.
    async fn all_announced(&self, count: usize) {
        for seat in &self.seats {
            until("all instances are announced", || {
                seat.rpc.0.locator.board().instances(SERVICE).count() == count
            })
            .await;
        }
    }

    /// The same requests are answered by another instance.
    fn ask(&mut self, seat: usize) {
        self.rpc = self.seats[seat].rpc.clone();
    }

    async fn record(&self, event: Event) {
        let record = ControlRecord { event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let topic = Name::new(CONTROL_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
    }

    fn build(&mut self, sql: &str) -> (GenerationId, Build) {
        let view = headwater_sql::parse_view(sql).unwrap();
        let floor = [Offset::ZERO; PARTITIONS as usize];
        let id = GenerationInputs {
            stream_sql: &self.stream.sql,
            view_sql: &view.sql,
            floor: &floor,
            ordinal: self.generations.len() as u64,
        }
        .digest();
        self.generations.push(id);
        let build = Build {
            id: id.to_string(),
            view: view.name.to_string(),
            stream: "orders".into(),
            view_sql: view.sql.clone(),
            stream_sql: self.stream.sql.clone(),
            floor: (0..PARTITIONS)
                .map(|partition| PartitionOffset { partition, offset: 0 })
                .collect(),
            engine_version: headwater_types::ENGINE_VERSION,
        };
        (id, build)
    }

    /// A view whose shards have not been created.
    async fn declare(&mut self, sql: &str) -> GenerationId {
        let (id, generation) = self.build(sql);
        self.record(Event::ViewCreated(ViewCreated { generation: Some(generation) })).await;
        id
    }

    async fn open_shards(&mut self, sql: &str, generation: GenerationId) {
        for partition in 0..PARTITIONS {
            let seat = partition as usize % self.seats.len();
            self.own(sql, generation, partition, seat).await;
        }
    }

    /// Opens the shard in a seat's directory, as a processor that claims it.
    async fn own(&mut self, sql: &str, generation: GenerationId, partition: u32, seat: usize) {
        let view = headwater_sql::parse_view(sql).unwrap();
        let plan = Arc::new(headwater_sql::plan_view(&view, &self.stream).unwrap());
        let path = self.shard_dir(seat, generation, partition);
        let identity = Identity { generation, partition: PartitionId(partition) };
        let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
        let shard = Shard::open(plan, db).unwrap();
        let key = (generation, partition);
        let epoch = self.owners.get(&key).map_or(1, |(_, epoch)| epoch + 1);
        if self.seats.len() > 1 {
            self.status(&ShardStatus {
                generation: generation.to_string(),
                partition,
                position: shard.position().0,
                processor: format!("processor-{seat}"),
                directory: directory(seat),
                epoch,
                ..ShardStatus::default()
            })
            .await;
        }
        self.shards.insert(key, shard);
        self.owners.insert(key, (seat, epoch));
    }

    fn shard_dir(
        &self,
        seat: usize,
        generation: GenerationId,
        partition: u32,
    ) -> std::path::PathBuf {
        layout::shard_dir(self.seats[seat].data.path(), generation, PartitionId(partition))
    }

    async fn status(&self, status: &ShardStatus) {
        let generation: GenerationId = status.generation.parse().unwrap();
        let key = status_key(generation, PartitionId(status.partition));
        self.say(&key, Some(&status.encode_to_vec())).await;
    }

    async fn say(&self, key: &str, value: Option<&[u8]>) {
        let mut batch = BatchBuilder::new();
        batch.push(0, Some(key.as_bytes()), value, &[]);
        let topic = Name::new(STATUS_TOPIC).unwrap();
        self.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
    }

    /// Hands a shard over, with a copy of its state; what it leaves behind stays where it is.
    async fn hand_over(&mut self, sql: &str, generation: GenerationId, partition: u32, to: usize) {
        drop(self.shards.remove(&(generation, partition)).unwrap());
        let from = self.owners[&(generation, partition)].0;
        let (from, into) = (
            self.shard_dir(from, generation, partition),
            self.shard_dir(to, generation, partition),
        );
        let _ = std::fs::remove_dir_all(&into);
        copy(&from, &into);
        self.own(sql, generation, partition, to).await;
    }

    async fn create(&mut self, sql: &str) -> GenerationId {
        let id = self.declare(sql).await;
        self.open_shards(sql, id).await;
        id
    }

    /// A generation that is built beside the serving one.
    async fn replay(&mut self, sql: &str, replaces: GenerationId) -> GenerationId {
        let (id, generation) = self.build(sql);
        let replay_id = ReplayId::of(&Name::new(&generation.view).unwrap(), 1).to_string();
        let started = ReplayStarted {
            replay_id,
            generation: Some(generation),
            replaces: replaces.to_string(),
            options: None,
        };
        self.record(Event::ReplayStarted(started)).await;
        self.open_shards(sql, id).await;
        id
    }

    /// All that leads to the first swap but the shards' part.
    async fn compare(&self) {
        let replay_id = "per_region-1".to_owned();
        let fence =
            (0..PARTITIONS).map(|partition| PartitionOffset { partition, offset: 0 }).collect();
        self.record(Event::AlignRequested(AlignRequested { replay_id: replay_id.clone() })).await;
        self.record(Event::FenceNamed(FenceNamed { replay_id: replay_id.clone(), fence })).await;
        self.record(Event::DiffRecorded(DiffRecorded {
            replay_id,
            report: Some(DiffReport::default()),
            verdict: Verdict::Pass as i32,
        }))
        .await;
    }

    async fn swap(&self, number: u32, from: GenerationId, to: GenerationId, undo: bool) {
        let replay = ReplayId::from("per_region-1");
        let (swap_id, replay_id) = (replay.swap(number).to_string(), replay.to_string());
        let (from, to) = (from.to_string(), to.to_string());
        self.record(Event::SwapRequested(SwapRequested {
            swap_id: swap_id.clone(),
            view: "per_region".into(),
            from: from.clone(),
            to: to.clone(),
            replay_id: replay_id.clone(),
            undo,
            reason: String::new(),
        }))
        .await;
        let fence = |partition| PartitionOffset {
            partition,
            offset: headwater_log::block_on(
                self.log.ends(&self.stream.topic, PartitionId(partition)),
            )
            .unwrap()
            .end
            .0,
        };
        self.record(Event::Swapped(Swapped {
            swap_id,
            view: "per_region".into(),
            from,
            to,
            epoch: u64::from(number) + 1,
            fence: (0..PARTITIONS).map(fence).collect(),
            replay_id,
            undo,
            retain_until_ms: 0,
        }))
        .await;
    }

    /// Appends an order to the partition of its region.
    async fn order(&self, region: &str, kind: &str, amount: i64, minute: i64) -> Token {
        let ts = (START + minute * MINUTE) / 1_000;
        let event = format!(
            r#"{{"region":"{region}","kind":"{kind}","amount":{amount},"price":{amount}.25,"ts":{ts}}}"#
        );
        let partition = partition_for_key(region.as_bytes(), PARTITIONS);
        let mut batch = BatchBuilder::new();
        batch.push(ts, Some(region.as_bytes()), Some(event.as_bytes()), &[]);
        let append = self.log.append(&self.stream.topic, partition, batch.build().unwrap());
        let mut token = Token::new(self.stream.name.clone());
        token.cover(partition, append.await.unwrap().first());
        token
    }

    /// Applies and commits all that is in the log.
    fn process(&mut self, generation: GenerationId) {
        for partition in 0..PARTITIONS {
            let shard = self.shards.get_mut(&(generation, partition)).unwrap();
            let topic = &self.stream.topic;
            let mut reader = headwater_log::block_on(self.log.reader(
                topic,
                PartitionId(partition),
                shard.position(),
            ))
            .unwrap();
            while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
                shard.apply(&chunk, None).unwrap();
            }
            shard.commit().unwrap();
        }
    }

    async fn get(
        &self,
        view: &str,
        key: Vec<Value>,
        freshness: Freshness,
    ) -> Result<GetResponse, Status> {
        let request = GetRequest { view: view.into(), key, freshness: Some(freshness) };
        self.rpc.get(Request::new(request)).await.map(tonic::Response::into_inner)
    }

    async fn scan(&self, request: ScanRequest) -> Result<Vec<ScanResponse>, Status> {
        collect(self.rpc.scan(Request::new(request)).await?.into_inner()).await
    }

    /// Rows of a scan as text.
    async fn scanned(&self, request: ScanRequest) -> Vec<String> {
        shown(&self.scan(request).await.unwrap())
    }

    async fn sql(&self, sql: &str) -> Result<Vec<QueryResponse>, Status> {
        self.sql_with(QueryRequest { sql: sql.into(), ..QueryRequest::default() }).await
    }

    async fn sql_with(&self, request: QueryRequest) -> Result<Vec<QueryResponse>, Status> {
        collect(self.rpc.query(Request::new(request)).await?.into_inner()).await
    }

    /// The rows of a query as text.
    async fn rows(&self, sql: &str) -> Vec<String> {
        let parts = self.sql(sql).await.unwrap();
        parts.iter().flat_map(|part| &part.rows).map(show).collect()
    }
}

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

/// Waits for something that is about to be so.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.expect(what);
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
    Freshness { after: vec![token.to_string()], timeout_ms: 20_000, ..Freshness::default() }
}

fn within(timeout_ms: u64) -> Freshness {
    Freshness { timeout_ms, ..Freshness::default() }
}

fn exists(path: &Path) -> bool {
    path.exists()
}
