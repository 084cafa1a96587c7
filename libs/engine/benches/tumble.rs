//! The engine's usual work: JSON events of 158 bytes and 8 fields, 10,000 keys, windows of one
//! minute with count, sum, min and max, from a chunk of the log to committed rows. One thread. The
//! figure is the CPU time per event of the whole process, RocksDB's own threads included.
//!
//! `cargo bench -p headwater-engine --bench tumble`

use std::{fs, sync::Arc, time::Duration};

use arrow::datatypes::{Field, Schema};
use criterion::{
    BatchSize, Criterion, Throughput,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use headwater_engine::{
    Limits, Shard, ViewPlan, arrow_type,
    decode::JsonDecoder,
    plan::{Aggregate, AggregateFunction, ColumnRef, Expression, KeyColumn, OutputColumn, Tumble},
    read::MergedScan,
};
use headwater_log::{BatchBuilder, Chunk};
use headwater_state::{Identity, KeyRange, Options, ShardDb, ShardReader};
use headwater_types::{
    Column, DataType, GenerationInputs, Name, Offset, PartitionId, StreamDefinition,
};

const EVENTS: usize = 400_000;
const KEYS: u64 = 10_000;
const CHUNK_EVENTS: usize = 5_000;
const BATCH_EVENTS: usize = 1_000;
const EVENTS_PER_COMMIT: usize = 200_000;
/// Event time between two events: a run covers 3 minutes, so 4 windows.
const STEP_MICROS: i64 = 450;
const START_MICROS: i64 = 1_577_836_800_000_000;

/// CPU time of all threads of this process.
struct CpuTime;

fn cpu_time() -> Duration {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;
    fn start(&self) -> Duration {
        cpu_time()
    }
    fn end(&self, start: Duration) -> Duration {
        cpu_time().saturating_sub(start)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn stream() -> StreamDefinition {
    let column =
        |name: &str, data_type| Column { name: name.into(), data_type, nullable: name != "ts" };
    StreamDefinition {
        name: Name::new("orders").expect("a legal name"),
        sql: String::new(),
        columns: vec![
            column("order_id", DataType::BigInt),
            column("user_id", DataType::BigInt),
            column("amount", DataType::Double),
            column("quantity", DataType::Integer),
            column("country", DataType::Varchar),
            column("status", DataType::Varchar),
            column("session", DataType::Varchar),
            column("ts", DataType::Timestamp),
        ],
        event_time: 7,
        watermark_delay_micros: 5_000_000,
        topic: Name::new("orders").expect("a legal name"),
        partitions: 1,
        key: Some(1),
        max_future_micros: i64::MAX / 2,
    }
}

fn plan() -> ViewPlan {
    use AggregateFunction::{CountStar, Max, Min, Sum};
    let stream = stream();
    let input = vec![1, 2, 7];
    let fields = input.iter().map(|index: &usize| {
        let column = &stream.columns[*index];
        Field::new(&column.name, arrow_type(column.data_type), column.nullable)
    });
    let input_schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let aggregate = |function| Aggregate {
        function,
        argument: (function != CountStar).then(|| Arc::new(ColumnRef(1)) as Arc<dyn Expression>),
        filter: None,
        input_type: (function != CountStar).then_some(DataType::Double),
        output_type: if function == CountStar { DataType::BigInt } else { DataType::Double },
    };
    let output = |name: &str, data_type, place, key| OutputColumn {
        name: name.into(),
        data_type,
        expression: Arc::new(ColumnRef(place)),
        key,
    };
    ViewPlan {
        view: Name::new("spend_per_minute").expect("a legal name"),
        stream: Arc::new(stream),
        input,
        input_schema,
        filter: None,
        keys: vec![KeyColumn {
            name: "user_id".into(),
            expression: Arc::new(ColumnRef(0)),
            data_type: DataType::BigInt,
        }],
        window: Some(Tumble { size_micros: 60_000_000, offset_micros: 0 }),
        aggregates: [CountStar, Sum, Min, Max].map(aggregate).into(),
        output: vec![
            output("user_id", DataType::BigInt, 0, Some(0)),
            output("window_start", DataType::Timestamp, 1, Some(1)),
            output("orders", DataType::BigInt, 4, None),
            output("spend", DataType::Double, 5, None),
        ],
        allowed_lateness_micros: Some(10_000_000),
        retention_micros: Some(30 * 86_400_000_000),
        key_is_stream_key: true,
    }
}

/// The event with this number; always 158 bytes.
fn event(number: usize) -> String {
    // A multiplicative generator instead of a random one, so that every run is the same.
    let random = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let user = random % KEYS;
    let cents = (random >> 16) % 100_000;
    let late = (random >> 8) % 3_000;
    let ts = (START_MICROS + number as i64 * STEP_MICROS) / 1000 - late as i64;
    let text = format!(
        r#"{{"order_id":{:08},"user_id":{},"amount":{}.{:02},"quantity":{},"country":"DE","status":"paid","session":"","ts":{ts}}}"#,
        10_000_000 + number,
        10_000 + user,
        cents / 100,
        cents % 100,
        1 + random % 9,
    );
    let session = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let missing = 158 - text.len();
    text.replace(r#""session":"""#, &format!(r#""session":"{}""#, &session[..missing]))
}

fn chunks() -> Vec<Chunk> {
    let chunk = |first: usize| {
        let mut bytes = Vec::new();
        for base in (first..first + CHUNK_EVENTS).step_by(BATCH_EVENTS) {
            let mut builder = BatchBuilder::new();
            for number in base..base + BATCH_EVENTS {
                let value = event(number);
                let timestamp_ms = (START_MICROS + number as i64 * STEP_MICROS) / 1000;
                builder.push(timestamp_ms, Some(b"12345"), Some(value.as_bytes()), &[]);
            }
            let mut batch = builder.build().expect("records were pushed");
            batch.assign(Offset(base as u64));
            bytes.extend_from_slice(batch.bytes());
        }
        Chunk::new(bytes, Offset((first + CHUNK_EVENTS) as u64))
    };
    (0..EVENTS).step_by(CHUNK_EVENTS).map(chunk).collect()
}

fn identity() -> Identity {
    let inputs = GenerationInputs { stream_sql: "", view_sql: "", floor: &[], ordinal: 0 };
    Identity { generation: inputs.digest(), partition: PartitionId(0) }
}

fn open(plan: &Arc<ViewPlan>) -> (tempfile::TempDir, Shard) {
    let directory = tempfile::tempdir().expect("a directory for the state");
    let db =
        ShardDb::open(directory.path(), &identity(), &Options::default()).expect("a new shard");
    (directory, Shard::open_with(Arc::clone(plan), db, Limits::default()).expect("a good plan"))
}

fn benchmark(criterion: &mut Criterion<CpuTime>) {
    assert_eq!(event(0).len(), 158);
    let plan = Arc::new(plan());
    let chunks = chunks();
    let mut group = criterion.benchmark_group("tumble");
    group.throughput(Throughput::Elements(EVENTS as u64)).sample_size(10);

    group.bench_function("walk the log", |bencher| {
        bencher.iter(|| {
            let records = chunks.iter().flat_map(|chunk| chunk.records(Offset::ZERO));
            records
                .map(|record| record.expect("intact").value.map_or(0, <[u8]>::len))
                .sum::<usize>()
        });
    });
    group.bench_function("walk and decode", |bencher| {
        let mut decoder = JsonDecoder::new(&plan.stream, &plan.input);
        bencher.iter(|| {
            for chunk in &chunks {
                for record in chunk.records(Offset::ZERO) {
                    decoder
                        .decode(record.expect("intact").value.unwrap_or_default())
                        .expect("a good event");
                }
                std::hint::black_box(decoder.take());
            }
        });
    });
    for (name, commit) in [("apply", usize::MAX), ("apply and commit", EVENTS_PER_COMMIT)] {
        group.bench_function(name, |bencher| {
            let run = |(directory, mut shard): (tempfile::TempDir, Shard)| {
                let mut committed = 0;
                for chunk in &chunks {
                    shard.apply(chunk, None).expect("applied");
                    if shard.position().0 as usize - committed >= commit {
                        committed = shard.position().0 as usize;
                        shard.commit().expect("committed");
                    }
                }
                if commit < usize::MAX {
                    let tallies = shard.commit().expect("committed").tallies;
                    assert_eq!(tallies.applied, EVENTS as u64);
                }
                (directory, shard)
            };
            bencher.iter_batched(|| open(&plan), run, BatchSize::PerIteration);
        });
    }
    group.finish();

    let (directory, mut shard) = open(&plan);
    for chunk in &chunks {
        shard.apply(chunk, None).expect("applied");
    }
    shard.commit().expect("committed");
    drop(shard);
    let reader = ShardReader::open_checkpoint(directory.path(), &identity()).expect("a shard");
    let scan = || {
        let mut scan = MergedScan::new(&plan, vec![reader.view().scan(KeyRange::all())]);
        let mut rows = 0;
        while let Some(batch) = scan.next_batch(4096).expect("readable rows") {
            rows += batch.len();
        }
        rows
    };
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Elements(scan() as u64)).sample_size(10);
    group.bench_function("scan and finish rows", |bencher| bencher.iter(scan));
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    benchmark(&mut criterion);
    criterion.final_summary();
}
