//! A view contains what DataFusion computes in batch over the same records.
//!
//! Random records take two paths. As JSON they go through the log's layout and several shards with
//! random chunks and commits, and the shards' rows are merged. As Arrow columns, which this file
//! builds without the decoder, they go through a plain SQL query. This file also decides which
//! records are late, independently of the engine.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array,
        StringArray, TimestampMicrosecondArray,
    },
    compute::cast,
    datatypes::{DataType as ArrowType, Field, Schema},
    record_batch::RecordBatch,
    util::display::array_value_to_string,
};
use datafusion::prelude::{SessionConfig, SessionContext};
use headwater_engine::{Shard, ViewPlan, arrow_type, read::MergedScan};
use headwater_log::{BatchBuilder, Chunk, partition_for_key};
use headwater_sql::{parse_stream, parse_view, plan_view};
use headwater_state::{Identity, KeyRange, Options, ShardDb, ShardReader};
use headwater_types::{DataType, GenerationInputs, Offset, PartitionId, Tallies};
use proptest::prelude::*;

const PARTITIONS: u32 = 3;
const DELAY: i64 = 2_000_000;

const STREAM: &str = "CREATE STREAM s (k VARCHAR, i INTEGER, b BIGINT, x DOUBLE, d DECIMAL(10,2), t VARCHAR, f BOOLEAN, \
    ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '2 seconds') WITH (key = 'k', partitions = 3, max_future = '99999 days')";

/// A select list, and WHERE and GROUP BY. Each path adds its own FROM.
struct Query {
    select: &'static str,
    tail: &'static str,
    /// Size and offset of the windows, and the lateness allowed, in seconds.
    window: Option<(i64, i64, i64)>,
}

const QUERIES: [Query; 8] = [
    Query {
        select: "k, count(*) AS n, count(i) AS ni, sum(i) AS si, min(i) AS lo, max(i) AS hi, avg(i) AS ai",
        tail: "GROUP BY k",
        window: None,
    },
    Query {
        select: "t, sum(x) AS sx, avg(x) AS ax, min(x) AS lo, max(x) AS hi, sum(d) AS sd, avg(d) AS ad, max(d) AS md",
        tail: "WHERE f IS NOT FALSE GROUP BY t",
        window: None,
    },
    Query {
        select: "window_start, window_end, window_time, count(*) AS n, sum(b) AS s, min(t) AS t, max(ts) AS last",
        tail: "GROUP BY window_start, window_end, window_time",
        window: Some((10, 0, 0)),
    },
    Query {
        select: "k, window_start, window_end, count(*) FILTER (WHERE f) AS yes, count(*) FILTER (WHERE NOT f) AS no, \
            sum(i) FILTER (WHERE i > 0 AND t LIKE '%a%') AS s, coalesce(sum(i), 0) * 2 - count(*) AS e, \
            CASE WHEN count(i) > 1 THEN 'many' WHEN max(f) THEN upper(min(t)) END AS c",
        tail: "WHERE coalesce(i, 0) <> 7 GROUP BY k, window_start, window_end",
        window: Some((7, 3, 5)),
    },
    Query {
        select: "upper(t) AS u, i % 3 AS m, f, date_trunc('minute', ts) AS minute, count(*) AS n, max(x + i) AS e",
        tail: "GROUP BY upper(t), i % 3, f, date_trunc('minute', ts)",
        window: None,
    },
    Query {
        select: "f, d, window_end, avg(b) AS a, min(ts) AS first, max(length(t)) AS longest, sum(d * 2) AS dd, \
            count(nullif(t, 'a')) AS c",
        tail: "WHERE x IS NULL OR x < 1.5 GROUP BY 1, 2, window_end",
        window: Some((5, -1, 3)),
    },
    Query {
        select: "x, b, count(*) AS n, min(k) AS k, max(CAST(i AS VARCHAR) || ':' || k) AS label",
        tail: "GROUP BY x, b",
        window: None,
    },
    Query {
        select: "CASE WHEN i IS NULL THEN 'none' WHEN i < 0 THEN 'less' ELSE 'more' END AS sign, min(f) AS f0, max(f) AS f1, \
            sum(b) / nullif(count(*), 0) AS r, avg(d) FILTER (WHERE d > 0) AS ad, round(avg(x), 2) AS rx",
        tail: "WHERE k BETWEEN 'a' AND 'd' AND (t IS NULL OR t NOT LIKE 'b%') GROUP BY 1",
        window: None,
    },
];

#[derive(Clone, Debug)]
struct Row {
    k: String,
    i: Option<i32>,
    b: Option<i64>,
    /// The value in quarters, so that every order of additions gives the same sum.
    x: Option<i32>,
    /// The value in hundredths.
    d: Option<i32>,
    t: Option<String>,
    f: Option<bool>,
    ts: i64,
    /// Whether NULL is a missing field instead of a null.
    omit: bool,
}

fn row() -> impl Strategy<Value = Row> {
    let text =
        prop::sample::select(vec!["a", "b", "ba", "ß", "日本", "q\"uote\\", "", "\u{1F600}"]);
    (
        prop::sample::select(vec!["a", "b", "c", "d", "é"]),
        prop::option::of(prop_oneof![-9..10i32, Just(i32::MAX), Just(i32::MIN)]),
        prop::option::of(prop_oneof![-99..100i64, -(1i64 << 50)..(1i64 << 50)]),
        prop::option::of(-12..12i32),
        prop::option::of(prop_oneof![-300..300i32, Just(999_999_999)]),
        prop::option::of(text),
        prop::option::of(any::<bool>()),
        // Whole seconds are the boundaries of windows and watermarks.
        prop_oneof![(0..25i64).prop_map(|seconds| seconds * 1_000), 0..25_000i64],
        any::<bool>(),
    )
        .prop_map(|(k, i, b, x, d, t, f, millis, omit)| Row {
            k: k.into(),
            i,
            b,
            x,
            d,
            t: t.map(str::to_owned),
            f,
            ts: 1_356_998_400_000_000 + millis * 1_000,
            omit,
        })
}

/// Rows whose times increase by about a second and are up to 25 seconds out of order.
fn rows() -> impl Strategy<Value = Vec<Row>> {
    prop::collection::vec(row(), 1..80).prop_map(|mut rows| {
        for (index, row) in rows.iter_mut().enumerate() {
            row.ts += index as i64 * 1_000_000;
        }
        rows
    })
}

impl Row {
    fn json(&self) -> String {
        let mut json = format!("{{\"k\":{}", serde_json::json!(self.k));
        let mut put = |name: &str, value: Option<String>| {
            if let Some(value) = value.or_else(|| (!self.omit).then(|| "null".into())) {
                let _ = write!(json, ",\"{name}\":{value}");
            }
        };
        put("i", self.i.map(|i| i.to_string()));
        put("b", self.b.map(|b| b.to_string()));
        put("x", self.x.map(|quarters| format!("{:?}", f64::from(quarters) / 4.0)));
        let sign = |d: i32| if d < 0 { "-" } else { "" };
        put("d", self.d.map(|d| format!("{}{}.{:02}", sign(d), d.abs() / 100, d.abs() % 100)));
        put("t", self.t.as_ref().map(|t| serde_json::json!(t).to_string()));
        put("f", self.f.map(|f| f.to_string()));
        put("ts", Some((self.ts / 1_000).to_string()));
        json.push('}');
        json
    }

    fn window(&self, size: i64, offset: i64) -> i64 {
        self.ts - (self.ts - offset * 1_000_000).rem_euclid(size * 1_000_000)
    }
}

/// The rows that count: those that are not late in their own partition.
fn in_time(query: &Query, rows: &[Row]) -> Vec<Row> {
    let Some((size, offset, lateness)) = query.window else { return rows.to_vec() };
    let mut watermarks = BTreeMap::new();
    let mut kept = Vec::new();
    for row in rows {
        let watermark =
            watermarks.entry(partition_for_key(row.k.as_bytes(), PARTITIONS)).or_insert(i64::MIN);
        let closes = row.window(size, offset) + (size + lateness) * 1_000_000;
        if closes > *watermark {
            kept.push(row.clone());
        }
        *watermark = (*watermark).max(row.ts - DELAY);
    }
    kept
}

/// The rows as DataFusion's input, with the window's columns.
fn table(query: &Query, rows: &[Row]) -> RecordBatch {
    let utc = |times: Vec<i64>| {
        Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef
    };
    let (size, offset, _) = query.window.unwrap_or((1, 0, 0));
    let starts: Vec<i64> = rows.iter().map(|row| row.window(size, offset)).collect();
    let decimals = rows.iter().map(|row| row.d.map(i128::from)).collect::<Decimal128Array>();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("k", Arc::new(rows.iter().map(|row| Some(&row.k)).collect::<StringArray>())),
        ("i", Arc::new(rows.iter().map(|row| row.i).collect::<Int32Array>())),
        ("b", Arc::new(rows.iter().map(|row| row.b).collect::<Int64Array>())),
        (
            "x",
            Arc::new(
                rows.iter().map(|row| row.x.map(|x| f64::from(x) / 4.0)).collect::<Float64Array>(),
            ),
        ),
        ("d", Arc::new(decimals.with_precision_and_scale(10, 2).unwrap())),
        ("t", Arc::new(rows.iter().map(|row| row.t.as_ref()).collect::<StringArray>())),
        ("f", Arc::new(rows.iter().map(|row| row.f).collect::<BooleanArray>())),
        ("ts", utc(rows.iter().map(|row| row.ts).collect())),
        ("window_start", utc(starts.clone())),
        ("window_end", utc(starts.iter().map(|start| start + size * 1_000_000).collect())),
        ("window_time", utc(starts.iter().map(|start| start + size * 1_000_000 - 1_000).collect())),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|(_, array)| array).collect(),
    )
    .unwrap()
}

/// Rows as sorted lines of text, and the types of the columns.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayRef> = batch
            .columns()
            .iter()
            .map(|column| {
                if matches!(column.data_type(), ArrowType::Timestamp(..)) {
                    cast(column, &ArrowType::Int64).unwrap()
                } else {
                    Arc::clone(column)
                }
            })
            .collect();
        for row in 0..batch.num_rows() {
            let cell = |column: &ArrayRef| match column.is_null(row) {
                true => "NULL".to_owned(),
                false => format!("'{}'", array_value_to_string(column, row).unwrap()),
            };
            lines.push(columns.iter().map(cell).collect::<Vec<_>>().join(" "));
        }
    }
    lines.sort();
    lines
}

fn by_datafusion(query: &Query, rows: &[Row]) -> (Vec<ArrowType>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let context =
            SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
        context.register_batch("s", table(query, rows)).unwrap();
        let sql = format!("SELECT {} FROM s {}", query.select, query.tail);
        let frame = context.sql(&sql).await.unwrap();
        let types = frame.schema().fields().iter().map(|field| field.data_type().clone()).collect();
        (types, lines(&frame.collect().await.unwrap()))
    })
}

/// One partition's records in chunks, applied and committed as `cuts` say.
fn by_shards(plan: &Arc<ViewPlan>, rows: &[Row], cuts: &[usize]) -> (Vec<String>, Tallies) {
    let directory = tempfile::tempdir().unwrap();
    let generation =
        GenerationInputs { stream_sql: "s", view_sql: "v", floor: &[], ordinal: 0 }.digest();
    let mut tallies = Tallies::default();
    let mut readers = Vec::new();
    let mut shards = Vec::new();
    for partition in (0..PARTITIONS).map(PartitionId) {
        let identity = Identity { generation, partition };
        let path = directory.path().join(partition.to_string());
        let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
        let mut shard = Shard::open(Arc::clone(plan), db).unwrap();
        let own =
            rows.iter().filter(|row| partition_for_key(row.k.as_bytes(), PARTITIONS) == partition);
        let own: Vec<&Row> = own.collect();
        let mut at = 0;
        let mut cuts = cuts.iter().cycle();
        while at < own.len() {
            let until = own.len().min(at + 1 + cuts.next().copied().unwrap_or(9));
            let mut builder = BatchBuilder::new();
            for row in &own[at..until] {
                builder.push(
                    row.ts / 1_000,
                    Some(row.k.as_bytes()),
                    Some(row.json().as_bytes()),
                    &[],
                );
            }
            let mut batch = builder.build().unwrap();
            batch.assign(Offset(at as u64));
            at = until;
            let chunk = Chunk::new(batch.into_bytes(), Offset(at as u64));
            shard.apply(&chunk, None).unwrap();
            if until.is_multiple_of(2) {
                shard.commit().unwrap();
            }
        }
        tallies += shard.commit().unwrap().tallies;
        let scratch = directory.path().join(format!("reader-{partition}"));
        readers.push(ShardReader::open_live(&path, &scratch, &identity).unwrap());
        shards.push(shard);
    }
    for reader in &readers {
        reader.refresh().unwrap();
    }
    let scans = readers.iter().map(|reader| reader.view().scan(KeyRange::all())).collect();
    let mut scan = MergedScan::new(plan, scans);
    let mut batches = Vec::new();
    while let Some(batch) = scan.next_batch(5).unwrap() {
        batches.push(batch.batch);
    }
    (lines(&batches), tallies)
}

fn plan(query: &Query) -> Arc<ViewPlan> {
    let (from, lateness) = match query.window {
        None => ("s".to_owned(), String::new()),
        Some((size, offset, lateness)) => (
            format!("TUMBLE(s, ts, INTERVAL '{size} seconds', INTERVAL '{offset} seconds')"),
            format!("allowed_lateness = '{lateness} seconds', "),
        ),
    };
    let sql = format!(
        "CREATE MATERIALIZED VIEW v WITH ({lateness}retention = 'forever') AS SELECT {} FROM {from} {}",
        query.select, query.tail
    );
    let view = parse_view(&sql).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    let stream = parse_stream(STREAM).unwrap();
    Arc::new(plan_view(&view, &stream).unwrap_or_else(|error| panic!("{sql}\n{error}")))
}

/// Whether DataFusion's type represents one of the seven types. DataFusion's sums of decimals have
/// ten digits more than their argument; ours have 38.
fn same_type(datafusion: &ArrowType, ours: DataType) -> bool {
    match (datafusion, ours) {
        (ArrowType::Utf8View | ArrowType::LargeUtf8, DataType::Varchar) => true,
        (ArrowType::Decimal128(_, theirs), DataType::Decimal { precision: 38, scale }) => {
            *theirs == scale as i8
        }
        (found, ours) => *found == arrow_type(ours),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_view_holds_what_datafusion_computes_in_batch(
        rows in rows(),
        cuts in prop::collection::vec(0..7usize, 1..6),
        which in 0..QUERIES.len(),
    ) {
        let query = &QUERIES[which];
        let plan = plan(query);
        let kept = in_time(query, &rows);
        let (types, expected) = by_datafusion(query, &kept);
        for (column, found) in plan.output.iter().zip(&types) {
            prop_assert!(same_type(found, column.data_type), "{}: {} is {found} in DataFusion", column.name, column.data_type);
        }
        let (found, tallies) = by_shards(&plan, &rows, &cuts);
        prop_assert_eq!(found, expected, "{} {}", query.select, query.tail);
        prop_assert_eq!(tallies.read(), rows.len() as u64);
        prop_assert_eq!(tallies.dead_lettered, 0);
    }
}

#[test]
fn every_query_of_the_set_is_planned_with_the_types_of_datafusion() {
    let rows = [Row {
        k: "a".into(),
        i: Some(1),
        b: None,
        x: None,
        d: None,
        t: None,
        f: None,
        ts: 0,
        omit: false,
    }];
    for query in &QUERIES {
        let (types, _) = by_datafusion(query, &rows);
        for (column, found) in plan(query).output.iter().zip(&types) {
            assert!(
                same_type(found, column.data_type),
                "{}: {} is {found} in DataFusion",
                column.name,
                column.data_type
            );
        }
    }
}
