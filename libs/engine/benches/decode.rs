//! The cost of decoding: `cargo bench -p headwater-engine --bench decode --profile dev`.

use std::hint::black_box;

use criterion::{
    Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};
use headwater_engine::decode::{JsonDecoder, Validator};
use headwater_types::{Column, DataType, Name, StreamDefinition};

/// CPU time of this thread, which depends less on other work on the machine than wall time does.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = u64;
    type Value = u64;
    fn start(&self) -> u64 {
        // The kernel updates the figure when a thread yields.
        std::thread::yield_now();
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default()
    }
    fn end(&self, started: u64) -> u64 {
        self.start() - started
    }
    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }
    fn zero(&self) -> u64 {
        0
    }
    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

fn stream() -> StreamDefinition {
    let column =
        |name: &str, data_type| Column { name: name.to_owned(), data_type, nullable: name != "ts" };
    StreamDefinition {
        name: Name::new("events").unwrap(),
        sql: String::new(),
        columns: vec![
            column("event_id", DataType::Varchar),
            column("user_id", DataType::Varchar),
            column("event_type", DataType::Varchar),
            column("amount", DataType::BigInt),
            column("price", DataType::Double),
            column("country", DataType::Varchar),
            column("ts", DataType::Timestamp),
            column("device", DataType::Varchar),
        ],
        event_time: 6,
        watermark_delay_micros: 0,
        topic: Name::new("events").unwrap(),
        partitions: 1,
        key: Some(1),
        max_future_micros: i64::MAX,
    }
}

/// Records of 158 bytes, in the form that JSON libraries write.
fn records(space: &str, text_time: bool, optional: bool) -> Vec<Vec<u8>> {
    let record = |n: u64| {
        let user = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 10_000;
        let kind = ["click", "view", "purchase"][(n % 3) as usize];
        let millis = 1_700_000_000_000 + n;
        let time = match text_time {
            true => format!(
                "\"2023-11-14T22:{:02}:{:02}.{:03}Z\"",
                n / 60_000 % 60,
                n / 1000 % 60,
                n % 1000
            ),
            false => millis.to_string(),
        };
        let country = if optional && n.is_multiple_of(2) {
            String::new()
        } else {
            format!("\"country\":{space}\"NZ\",{space}")
        };
        format!(
            "{{\"event_id\":{space}\"e{n:012}\",{space}\"user_id\":{space}\"u{user:07}\",{space}\"event_type\":{space}\"{kind}\",{space}\
             \"amount\":{space}{},{space}\"price\":{space}{}.{:02},{space}{country}\"ts\":{space}{time},{space}\"device\":{space}\"android-14-x64\"}}",
            n % 100_000,
            n % 500,
            n % 100,
        )
        .into_bytes()
    };
    (0..10_000).map(record).collect()
}

fn decode(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("decode");
    let stream = stream();
    let cases = [
        ("compact", records("", false, false)),
        ("spaced", records(" ", false, false)),
        ("text time", records("", true, false)),
        ("optional field", records("", false, true)),
    ];
    for (name, records) in &cases {
        println!("{name}: {} bytes", records[5].len());
        group.throughput(Throughput::Elements(records.len() as u64));
        group.bench_function(format!("4 of 8 columns, {name}"), |b| {
            let mut decoder = JsonDecoder::new(&stream, &[1, 2, 3, 6]);
            b.iter(|| {
                for record in records {
                    decoder.decode(record).unwrap();
                }
                black_box(decoder.take())
            });
        });
    }
    group.bench_function("check at ingest", |b| {
        let mut validator = Validator::new(&stream);
        b.iter(|| {
            for record in &cases[0].1 {
                black_box(validator.check(record).unwrap());
            }
        });
    });
    group.bench_function("UTF-8 alone", |b| {
        b.iter(|| {
            for record in &cases[0].1 {
                black_box(std::str::from_utf8(record).unwrap());
            }
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime).without_plots().sample_size(20);
    targets = decode
}
criterion_main!(benches);
