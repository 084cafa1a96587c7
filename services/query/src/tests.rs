//! The service over an in-memory log, with control records and shards written by hand.

use std::{collections::BTreeMap, path::Path, time::Duration};

use arrow::ipc::reader::StreamReader;
use futures::{Stream, StreamExt};
use headwater_control::{CONTROL_TOPIC, ReplayId};
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
};
use headwater_state::{Identity, ShardDb};
use headwater_types::{
    GenerationId, GenerationInputs, Name, Offset, PartitionId, StreamDefinition, Token,
};
use prost::Message as _;
use tempfile::TempDir;
use tonic::{Code, Request, Status};

use super::*;

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

struct Bench {
    _data: TempDir,
    node: Node,
    rpc: Rpc,
    stream: StreamDefinition,
    /// A shard stays open as in a processor.
    shards: BTreeMap<(GenerationId, u32), Shard>,
    generations: Vec<GenerationId>,
}

impl Bench {
    async fn start() -> Self {
        Self::start_with(Config { max_staleness: Duration::ZERO, ..Config::default() }).await
    }

    async fn start_with(config: Config) -> Self {
        let data = TempDir::new().unwrap();
        let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
        let node = Node::new(log, data.path(), "here");
        let stream = headwater_sql::parse_stream(STREAM).unwrap();
        node.log.create_topic(&stream.topic, TopicSpec::keep(PARTITIONS)).unwrap();
        let query = Query::start(config, &node).await.unwrap();
        let rpc = Rpc(query.service.clone());
        let bench = Self {
            _data: data,
            node,
            rpc,
            stream,
            shards: BTreeMap::new(),
            generations: Vec::new(),
        };
        let declared = StreamDeclared { name: "orders".into(), sql: bench.stream.sql.clone() };
        bench.record(Event::StreamDeclared(declared)).await;
        bench
    }

    async fn record(&self, event: Event) {
        let record = ControlRecord { event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let topic = Name::new(CONTROL_TOPIC).unwrap();
        self.node.log.append(&topic, PartitionId(0), batch.build().unwrap()).await.unwrap();
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

    fn open_shards(&mut self, sql: &str, generation: GenerationId) {
        let view = headwater_sql::parse_view(sql).unwrap();
        let plan = Arc::new(headwater_sql::plan_view(&view, &self.stream).unwrap());
        for partition in 0..PARTITIONS {
            let identity = Identity { generation, partition: PartitionId(partition) };
            let path = layout::shard_dir(&self.node.data, generation, identity.partition);
            let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
            self.shards.insert((generation, partition), Shard::open(plan.clone(), db).unwrap());
        }
    }

    async fn create(&mut self, sql: &str) -> GenerationId {
        let id = self.declare(sql).await;
        self.open_shards(sql, id);
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
        self.open_shards(sql, id);
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
            offset: self.node.log.ends(&self.stream.topic, PartitionId(partition)).unwrap().end.0,
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
        let append = self.node.log.append(&self.stream.topic, partition, batch.build().unwrap());
        let mut token = Token::new(self.stream.name.clone());
        token.cover(partition, append.await.unwrap());
        token
    }

    /// Applies and commits all that is in the log.
    fn process(&mut self, generation: GenerationId) {
        for partition in 0..PARTITIONS {
            let shard = self.shards.get_mut(&(generation, partition)).unwrap();
            let topic = &self.stream.topic;
            let mut reader =
                self.node.log.reader(topic, PartitionId(partition), shard.position()).unwrap();
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
    Freshness { after: vec![token.to_string()], timeout_ms: 5_000, ..Freshness::default() }
}

fn within(timeout_ms: u64) -> Freshness {
    Freshness { timeout_ms, ..Freshness::default() }
}

fn exists(path: &Path) -> bool {
    path.exists()
}

#[tokio::test]
async fn get_returns_the_row_and_says_where_it_comes_from() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    bench.order("north", "book", 3, 0).await;
    bench.order("north", "pen", 4, 0).await;
    bench.order("south", "book", 9, 1).await;
    bench.process(generation);

    let answer =
        bench.get("per_region", vec![text("north"), minute(0)], within(1_000)).await.unwrap();

    assert_eq!(show(&answer.row.unwrap()), "north +0 2 7 7.50");
    let names: Vec<&str> = answer.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["region", "window_start", "orders", "amount", "price"]);
    assert_eq!(answer.columns[4].sql_type, "DECIMAL(38,2)");
    let provenance = answer.provenance.unwrap();
    assert_eq!(provenance.generation, generation.to_string());
    assert_eq!((provenance.epoch, provenance.served_by.as_str()), (1, "here"));
    let partition = partition_for_key(b"north", PARTITIONS);
    assert_eq!(provenance.partitions.len(), 1, "only the shard of the key is read");
    assert_eq!(provenance.partitions[0].partition, partition.0);
    assert!(provenance.partitions[0].offset >= 2);
    assert!(provenance.partitions[0].watermark_micros.is_some());

    let absent =
        bench.get("per_region", vec![text("north"), minute(5)], within(1_000)).await.unwrap();
    assert!(absent.row.is_none() && absent.provenance.is_some());
}

#[tokio::test]
async fn a_row_whose_key_is_not_the_streams_is_merged_from_all_shards() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_KIND).await;
    let regions = ["a", "b", "c", "d", "e", "f"];
    for (place, region) in regions.iter().enumerate() {
        bench.order(region, "book", 1 << place, 0).await;
    }
    bench.process(generation);

    let answer = bench.get("per_kind", vec![text("book")], within(1_000)).await.unwrap();

    let provenance = answer.provenance.unwrap();
    assert_eq!(show(&answer.row.unwrap()), "book 6 63");
    assert_eq!(offsets(&provenance).len(), 2);
    assert!(offsets(&provenance).iter().all(|&offset| offset > 0), "both shards must have a part");
    assert_eq!(offsets(&provenance).iter().sum::<u64>(), 6);
}

#[tokio::test]
async fn a_wrong_key_is_refused_with_the_columns_that_it_should_have() {
    let mut bench = Bench::start().await;
    bench.create(PER_REGION).await;
    let error = bench.get("per_region", vec![text("north")], within(1_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("(region VARCHAR, window_start TIMESTAMP)"),
        "{}",
        error.message()
    );
    let error =
        bench.get("per_region", vec![text("north"), text("now")], within(1_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("value 2 (window_start) is text, not TIMESTAMP"),
        "{}",
        error.message()
    );

    let error = bench.get("per_regoin", vec![text("north")], within(1_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("there are: per_region"), "{}", error.message());
}

#[tokio::test]
async fn an_answer_without_a_token_has_what_was_committed_max_staleness_before() {
    let key = vec![text("north"), minute(0)];
    for (max_staleness, seen) in
        [(Duration::ZERO, "north +0 2 4 4.50"), (Duration::from_secs(3_600), "north +0 1 3 3.25")]
    {
        let mut bench = Bench::start_with(Config { max_staleness, ..Config::default() }).await;
        let generation = bench.create(PER_REGION).await;
        bench.order("north", "book", 3, 0).await;
        bench.process(generation);
        bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
        bench.order("north", "book", 1, 0).await;
        bench.process(generation);
        let answer = bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
        assert_eq!(show(&answer.row.unwrap()), seen, "{max_staleness:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_shard_gets_there_and_not_before() {
    let mut bench = Bench::start_with(Config {
        max_staleness: Duration::from_secs(3_600),
        ..Config::default()
    })
    .await;
    let generation = bench.create(PER_REGION).await;
    bench.process(generation);
    let key = vec![text("north"), minute(0)];
    assert!(bench.get("per_region", key.clone(), within(1_000)).await.unwrap().row.is_none());
    let token = bench.order("north", "book", 3, 0).await;
    let request = GetRequest { view: "per_region".into(), key, freshness: Some(after(&token)) };
    let service = bench.rpc.0.clone();

    let waiting = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(async move { service.get(&request).await })
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    bench.process(generation);

    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(show(&answer.row.unwrap()), "north +0 1 3 3.25");
}

#[tokio::test]
async fn a_wait_that_is_too_long_says_what_was_wanted_and_what_is_there() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    bench.process(generation);
    let token = bench.order("north", "book", 3, 0).await;
    let (partition, position) = token.positions.first_key_value().unwrap();
    let freshness = Freshness { timeout_ms: 30, ..after(&token) };

    let error =
        bench.get("per_region", vec![text("north"), minute(0)], freshness).await.unwrap_err();

    assert_eq!(error.code(), Code::DeadlineExceeded);
    let wanted = format!(
        "the token asks for position {position} in partition {partition}, and its shard is at 0"
    );
    assert!(error.message().contains(&wanted), "{}", error.message());
}

#[tokio::test]
async fn a_token_of_another_stream_or_partition_is_refused() {
    let mut bench = Bench::start().await;
    bench.create(PER_REGION).await;
    for (token, reason) in [
        (
            "visits@0:1",
            "the token visits@0:1 is for stream visits, but view per_region reads orders",
        ),
        ("orders@7:1", "names partition 7, but stream orders has 2 partitions"),
        ("orders", "is not a token"),
    ] {
        let freshness = Freshness { after: vec![token.into()], ..within(1_000) };
        let error = bench
            .get("per_region", vec![text("n"), minute(0)], freshness.clone())
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(reason), "{}", error.message());
        let sql = QueryRequest {
            sql: "SELECT * FROM per_region".into(),
            freshness: Some(freshness),
            ..QueryRequest::default()
        };
        assert_eq!(bench.sql_with(sql).await.unwrap_err().code(), Code::InvalidArgument, "{token}");
    }
}

#[tokio::test]
async fn a_shard_that_does_not_exist_yet_is_waited_for() {
    let mut bench = Bench::start().await;
    let generation = bench.declare(PER_REGION).await;
    let key = vec![text("north"), minute(0)];
    let error = bench.get("per_region", key.clone(), within(30)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("has no state here yet"), "{}", error.message());

    let service = bench.rpc.0.clone();
    let request = GetRequest { view: "per_region".into(), key, freshness: Some(within(5_000)) };
    let waiting = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(async move { service.get(&request).await })
    });
    bench.open_shards(PER_REGION, generation);
    bench.process(generation);
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test]
async fn scan_pages_through_a_prefix_and_a_range_of_windows() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    for minute in 0..10 {
        for region in ["east", "north", "south"] {
            bench.order(region, "book", minute, minute).await;
        }
    }
    bench.process(generation);
    let shown = |parts: &[ScanResponse]| -> Vec<String> {
        parts.iter().flat_map(|part| &part.rows).map(show).collect()
    };

    let all = bench
        .scan(ScanRequest { view: "per_region".into(), ..ScanRequest::default() })
        .await
        .unwrap();
    assert_eq!(shown(&all).len(), 30);
    assert!(shown(&all).is_sorted(), "in key order over all shards");
    assert_eq!(all[0].columns.len(), 5);
    assert_eq!(offsets(all[0].provenance.as_ref().unwrap()).iter().sum::<u64>(), 30);
    assert!(all.last().unwrap().next_page_token.is_empty());

    let windows = |prefix: Vec<Value>| ScanRequest {
        view: "per_region".into(),
        prefix,
        window_from_micros: Some(START + 3 * MINUTE),
        window_to_micros: Some(START + 5 * MINUTE),
        ..ScanRequest::default()
    };
    let north = bench.scan(windows(vec![text("north")])).await.unwrap();
    assert_eq!(shown(&north), ["north +3 1 3 3.25", "north +4 1 4 4.25"]);
    let any = bench.scan(windows(vec![])).await.unwrap();
    assert_eq!(shown(&any).len(), 6);

    for page_size in [1, 2, 3, 5, 6] {
        let (mut paged, mut pages) = (Vec::new(), 0);
        let mut request = ScanRequest { page_size, ..windows(vec![]) };
        loop {
            let parts = bench.scan(request.clone()).await.unwrap();
            paged.extend(shown(&parts));
            pages += 1;
            request.page_token = parts.last().unwrap().next_page_token.clone();
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(paged, shown(&any), "pages of {page_size}");
        assert_eq!(pages, 6_u64.div_ceil(page_size), "no empty page at the end");
    }
    let damaged = ScanRequest { page_token: vec![1, 2, 3], ..windows(vec![]) };
    assert_eq!(bench.scan(damaged).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn sql_reads_views_with_all_that_datafusion_can() {
    let mut bench = Bench::start().await;
    let regions = bench.create(PER_REGION).await;
    let kinds = bench.create(PER_KIND).await;
    for minute in 0..4 {
        bench.order("north", "book", minute, minute).await;
        bench.order("south", "pen", 10 * minute, minute).await;
    }
    bench.process(regions);
    bench.process(kinds);

    let total = "SELECT region, sum(orders) AS orders, sum(price) FROM per_region GROUP BY region ORDER BY region";
    assert_eq!(bench.rows(total).await, ["north 4 7.00", "south 4 61.00"]);
    assert_eq!(bench.rows("SELECT count(*) FROM per_region").await, ["8"]);
    let pruned = "SELECT orders, amount FROM per_region
        WHERE region = 'south' AND window_start >= '2020-01-01T00:01:00Z' AND window_start < '2020-01-01T00:03:00Z'";
    assert_eq!(bench.rows(pruned).await, ["1 10", "1 20"]);
    assert_eq!(
        bench.rows("SELECT amount FROM per_region WHERE 'south' = region LIMIT 2").await,
        ["0", "10"]
    );
    let joined = "SELECT a.window_start, a.amount + b.amount FROM per_region a
        JOIN per_region b ON a.window_start = b.window_start AND a.region < b.region ORDER BY 1";
    assert_eq!(bench.rows(joined).await, ["+0 0", "+1 11", "+2 22", "+3 33"]);
    let subquery = "SELECT kind FROM per_kind WHERE amount = (SELECT max(amount) FROM per_kind)";
    assert_eq!(bench.rows(subquery).await, ["pen"]);

    let two = "SELECT k.orders FROM per_kind k, per_region r LIMIT 1";
    let parts = bench.sql(two).await.unwrap();
    let views: Vec<&str> =
        parts[0].provenance.iter().map(|provenance| provenance.view.as_str()).collect();
    assert_eq!(views.len(), 2);
    assert!(views.contains(&"per_kind") && views.contains(&"per_region"));

    let plan =
        bench.rows("EXPLAIN SELECT * FROM per_region WHERE region = 'north'").await.join("\n");
    assert!(plan.contains("ViewScan: view=per_region") && plan.contains("keys=range"), "{plan}");
}

#[tokio::test]
async fn sql_values_of_every_type_travel_exactly() {
    let bench = Bench::start().await;
    let rows = bench
        .rows(
            "SELECT true, CAST(7 AS TINYINT), CAST(-9223372036854775808 AS BIGINT), CAST(1.5 AS DOUBLE),
             CAST('12345678901234567890.123456789' AS DECIMAL(38,9)), 'ü', NULL, DATE '2020-02-29',
             TIMESTAMP '2020-01-01T00:02:00Z', CAST(18446744073709551615 AS BIGINT UNSIGNED), INTERVAL '1 day'",
        )
        .await;
    let expected = "true 7 -9223372036854775808 1.5 12345678901234567890.123456789 ü NULL 2020-02-29 +2 \
                    18446744073709551615";
    assert!(rows[0].starts_with(expected), "{rows:?}");
}

#[tokio::test]
async fn anything_but_one_select_is_refused() {
    let mut bench = Bench::start().await;
    bench.create(PER_REGION).await;
    for (sql, reason) in [
        ("INSERT INTO per_region VALUES (1)", "INSERT"),
        ("DROP VIEW per_region", "DROP"),
        ("CREATE TABLE x AS SELECT 1", "CREATE"),
        ("COPY per_region TO 'x.csv'", "COPY"),
        ("SET datafusion.execution.batch_size = 1", "SET"),
        ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN ANALYZE"),
        ("SHOW TABLES", "SHOW"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT * INTO y FROM per_region", ""),
        ("SELECT orders FROM '/etc/passwd'", "there are: per_region"),
        ("SELECT orders FROM a.b", "there are: per_region"),
        ("SELECT odrers FROM per_region", "orders"),
        ("SELECT", ""),
        ("WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT * FROM n", ""),
    ] {
        let error = bench.sql(sql).await.expect_err(sql);
        assert!(matches!(error.code(), Code::InvalidArgument | Code::NotFound), "{sql}: {error:?}");
        assert!(error.message().contains(reason), "{sql}: {}", error.message());
    }
}

#[tokio::test]
async fn a_query_that_needs_too_much_memory_or_time_is_stopped() {
    let limited =
        Config { memory_limit: headwater_service::config::ByteSize::kib(4), ..Config::default() };
    let mut bench = Bench::start_with(limited).await;
    let generation = bench.create(PER_REGION).await;
    for minute in 0..200 {
        bench.order("north", "book", minute, minute).await;
    }
    bench.process(generation);
    let sorted = "SELECT * FROM per_region ORDER BY amount DESC";
    assert_eq!(bench.sql(sorted).await.unwrap_err().code(), Code::ResourceExhausted);

    let hasty = Config { max_duration: Duration::from_millis(300), ..Config::default() };
    let mut bench = Bench::start_with(hasty).await;
    let generation = bench.create(PER_REGION).await;
    for minute in 0..250 {
        bench.order("north", "book", minute, minute).await;
    }
    bench.process(generation);
    let cross = "SELECT count(*) FROM per_region a, per_region b, per_region c
        WHERE a.amount + b.amount + c.amount = -1";
    assert_eq!(bench.sql(cross).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn an_arrow_answer_is_one_ipc_stream() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    for minute in 0..5 {
        bench.order("north", "book", minute, minute).await;
    }
    bench.process(generation);
    let request = QueryRequest {
        sql: "SELECT region, price FROM per_region".into(),
        format: ResultFormat::Arrow as i32,
        freshness: None,
    };
    let parts = bench.sql_with(request).await.unwrap();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.arrow.clone()).collect();
    let batches: Vec<_> =
        StreamReader::try_new(bytes.as_slice(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 5);
    assert_eq!(batches[0].num_columns(), 2);
    assert!(parts.iter().all(|part| part.rows.is_empty()));
}

#[tokio::test]
async fn an_answer_reads_one_generation_however_the_view_is_swapped_meanwhile() {
    let mut bench =
        Bench::start_with(Config { batch_rows: 1.try_into().unwrap(), ..Config::default() }).await;
    let old = bench.create(PER_REGION).await;
    for minute in 0..50 {
        bench.order("north", "book", minute, minute).await;
    }
    bench.process(old);
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.process(new);
    bench.compare().await;
    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let mut parts = bench.rpc.scan(Request::new(request.clone())).await.unwrap().into_inner();
    let first = parts.next().await.unwrap().unwrap();
    assert_eq!(first.provenance.unwrap().generation, old.to_string());

    bench.swap(1, old, new, false).await;

    let after_swap = bench.scan(request).await.unwrap();
    assert_eq!(after_swap[0].provenance.as_ref().unwrap().generation, new.to_string());
    assert_eq!(after_swap[0].provenance.as_ref().unwrap().epoch, 2);
    let counts = |parts: &[ScanResponse]| -> Vec<Value> {
        parts.iter().flat_map(|part| &part.rows).map(|row| row.values[2].clone()).collect()
    };
    let integer = |value| Value { kind: Some(Kind::Integer(value)) };
    assert_eq!(counts(&after_swap), vec![integer(2); 50]);
    let rest = collect(parts).await.unwrap();
    assert_eq!(counts(&rest), vec![integer(1); 50], "begun before the swap, finished after it");

    // The other one can still be asked for by its id.
    let freshness = Freshness { generation: old.to_string(), ..within(1_000) };
    let answer = bench.get("per_region", vec![text("north"), minute(0)], freshness).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 0);
    assert_eq!(answer.row.unwrap().values[2], integer(1));

    bench.swap(2, new, old, true).await;
    let answer =
        bench.get("per_region", vec![text("north"), minute(0)], within(1_000)).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 3);
    assert_eq!(answer.row.unwrap().values[2], integer(1));
}

#[tokio::test]
async fn time_never_runs_backwards_over_a_swap() {
    let mut bench = Bench::start().await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.order("north", "book", 1, 0).await;
    bench.process(new);
    bench.order("north", "book", 1, 0).await;
    bench.process(old);
    bench.compare().await;
    let key = vec![text("north"), minute(0)];
    let seen = bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
    assert_eq!(offsets(&seen.provenance.unwrap()), [2]);

    bench.swap(1, old, new, false).await;

    let error = bench.get("per_region", key.clone(), within(50)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(
        error.message().contains("an earlier answer had already shown position 2"),
        "{}",
        error.message()
    );
    let sql = QueryRequest {
        sql: "SELECT 1 FROM per_region".into(),
        freshness: Some(within(50)),
        ..QueryRequest::default()
    };
    assert_eq!(bench.sql_with(sql).await.unwrap_err().code(), Code::DeadlineExceeded);
    // Whoever asks for a generation by its id takes it as it is.
    let named = Freshness { generation: new.to_string(), ..within(50) };
    assert!(bench.get("per_region", key.clone(), named).await.is_ok());

    bench.process(new);
    let answer = bench.get("per_region", key, within(1_000)).await.unwrap();
    assert_eq!(offsets(&answer.provenance.unwrap()), [2]);
    assert_eq!(show(&answer.row.unwrap()), "north +0 4 2 2.50");
}

#[tokio::test]
async fn a_retired_generation_is_closed_and_refused() {
    let mut bench = Bench::start().await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.process(old);
    bench.process(new);
    bench.compare().await;
    bench.get("per_region", vec![text("north"), minute(0)], within(1_000)).await.unwrap();
    let scratch =
        layout::reader_dir(&bench.node.data, "here", old, partition_for_key(b"north", PARTITIONS));
    assert!(exists(&scratch));
    bench.swap(1, old, new, false).await;

    let retired = GenerationRetired { generation: old.to_string(), reason: String::new() };
    bench.record(Event::GenerationRetired(retired)).await;

    let named = Freshness { generation: old.to_string(), ..within(1_000) };
    let error = bench.get("per_region", vec![text("north"), minute(0)], named).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    tokio::time::timeout(Duration::from_secs(5), async {
        while exists(&scratch) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("its reader is closed");
}

#[tokio::test]
async fn describe_says_columns_key_and_definition() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    bench.process(generation);
    let request = DescribeRequest { view: "per_region".into(), freshness: None };
    let answer = bench.rpc.describe(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(answer.key, ["region", "window_start"]);
    assert_eq!(answer.stream, "orders");
    assert_eq!(answer.columns.len(), 5);
    assert!(answer.sql.contains("per_region"));
    assert_eq!(answer.provenance.unwrap().generation, generation.to_string());
}

#[tokio::test]
async fn watch_sends_what_changes_and_all_of_another_generation() {
    let mut bench = Bench::start_with(Config {
        max_staleness: Duration::ZERO,
        watch_interval: Duration::from_millis(5),
        ..Config::default()
    })
    .await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.order("north", "book", 1, 0).await;
    bench.order("south", "book", 1, 0).await;
    bench.process(old);
    let request = WatchRequest { view: "per_region".into(), initial: false };
    let mut watch = bench.rpc.watch(Request::new(request)).await.unwrap().into_inner();
    let mut next = async || -> WatchResponse {
        let part = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
        part.expect("something changed").unwrap().unwrap()
    };
    let head = next().await;
    assert_eq!((head.columns.len(), head.rows.len()), (5, 0));

    bench.order("south", "book", 5, 0).await;
    bench.process(old);
    let change = next().await;
    assert_eq!(change.rows.iter().map(show).collect::<Vec<_>>(), ["south +0 2 6 6.50"]);
    assert_eq!(change.provenance.unwrap().generation, old.to_string());

    bench.process(new);
    bench.compare().await;
    bench.swap(1, old, new, false).await;
    let head = next().await;
    assert_eq!(head.columns.len(), 5);
    assert_eq!(head.provenance.unwrap().generation, new.to_string());
    let mut rows: Vec<String> = Vec::new();
    while rows.len() < 2 {
        rows.extend(next().await.rows.iter().map(show));
    }
    assert_eq!(rows, ["north +0 2 1 1.25", "south +0 4 6 6.50"]);
}
