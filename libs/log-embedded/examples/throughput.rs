//! How fast the embedded log is on this machine's disk.
//!
//! ```text
//! cargo run -p headwater-log-embedded --example throughput [DIRECTORY]
//! ```
//!
//! Appenders write batches of 1,000 events of 158 bytes, each waiting for its acknowledgement, that
//! is for an fsync. Then everything is read back record by record.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use headwater_log::{BatchBuilder, EncodedBatch, Log, TopicSpec, block_on};
use headwater_log_embedded::{EmbeddedLog, Options};
use headwater_types::{Name, Offset, PartitionId};

const EVENTS: u64 = 1_000;
const PARTITIONS: u32 = 4;

fn batch(number: u64) -> EncodedBatch {
    let mut builder = BatchBuilder::with_capacity(200 * EVENTS as usize);
    let mut value = Vec::with_capacity(200);
    for event in 0..EVENTS {
        let id = number * EVENTS + event;
        value.clear();
        value.extend_from_slice(
            format!(r#"{{"order_id":{id:012},"user_id":{:08},"amount":"#, id % 10_000).as_bytes(),
        );
        value.resize(157, b'1');
        value.push(b'}');
        builder.push(1_700_000_000_000 + id as i64, Some(&value[12..24]), Some(&value), &[]);
    }
    builder.build().expect("there are events in it")
}

fn main() {
    let directory = std::env::args().nth(1).map(PathBuf::from);
    let temporary = tempfile::TempDir::new().expect("a temporary directory");
    let directory = directory.unwrap_or_else(|| temporary.path().into());
    println!("appenders  batches/s   events/s  p50 ms  p99 ms");
    for appenders in [1, 4, 16, 64] {
        append(&directory.join(format!("{appenders}")), appenders);
    }
}

/// The time for which this thread has had a processor, where Linux says so: on a busy machine it
/// says more than the clock.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

fn append(directory: &std::path::Path, appenders: u64) {
    let log = EmbeddedLog::open(directory, Options::default()).expect("the log opens");
    let topic = Name::new("events").expect("a name");
    block_on(log.create_topic(&topic, TopicSpec::keep(PARTITIONS))).expect("the topic is new");
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(5);
    let mut waits: Vec<Duration> = thread::scope(|scope| {
        let appending: Vec<_> = (0..appenders)
            .map(|appender| {
                let (log, topic, next) = (&log, &topic, &next);
                scope.spawn(move || {
                    let template = batch(appender);
                    let mut waits = Vec::new();
                    while Instant::now() < until {
                        next.fetch_add(1, Ordering::Relaxed);
                        let partition = PartitionId(appender as u32 % PARTITIONS);
                        let begun = Instant::now();
                        block_on(log.append(topic, partition, template.clone()))
                            .expect("it is appended");
                        waits.push(begun.elapsed());
                    }
                    waits
                })
            })
            .collect();
        appending
            .into_iter()
            .flat_map(|appending| appending.join().expect("no appender panics"))
            .collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    waits.sort();
    let at = |share: f64| waits[(waits.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    let batches = waits.len() as f64 / seconds;
    println!(
        "{appenders:>9} {batches:>10.0} {:>10.0} {:>7.1} {:>7.1}",
        batches * EVENTS as f64,
        at(0.5),
        at(0.99)
    );
    drop(log);

    let log = EmbeddedLog::open(directory, Options::default()).expect("the log opens again");
    for pass in ["first", "second"] {
        let (begun, cpu_begun) = (Instant::now(), cpu());
        let (mut records, mut bytes) = (0u64, 0u64);
        for partition in (0..PARTITIONS).map(PartitionId) {
            let mut reader =
                block_on(log.reader(&topic, partition, Offset::ZERO)).expect("it is readable");
            while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).expect("it is readable") {
                for record in chunk.records(Offset::ZERO) {
                    bytes += record.expect("it is intact").value.unwrap_or_default().len() as u64;
                    records += 1;
                }
            }
        }
        let rate = records as f64 / begun.elapsed().as_secs_f64();
        let nanos = (cpu() - cpu_begun).as_nanos() as f64 / records as f64;
        assert_eq!(records, waits.len() as u64 * EVENTS, "everything is read");
        println!(
            "          read, {pass} pass: {rate:.0} events/s, {nanos:.0} ns of CPU each, {} MB",
            bytes >> 20
        );
    }
}
