//! What reading costs: a consumer that counts records and bytes, and does nothing else.
//!
//! `null bare|ours|walk one-core|any-core BOOTSTRAP TOPIC` prints one line of JSON with the CPU
//! time of the process. `bare` is librdkafka's batch queue without our code; `ours` reads through
//! the log and counts what the headers of its batches say; `walk` looks at every record of them.
//! All of them place their threads alike, so that the ratio to `bare` shows what our reader adds.

#![allow(unsafe_code, reason = "rdkafka has no safe way to take many records at once")]

use std::{
    env,
    time::{Duration, Instant},
};

use headwater_log::{BatchHeader, Log};
use headwater_log_kafka::{KafkaConfig, KafkaLog, Placement};
use headwater_types::{Name, PartitionId};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    bindings::{
        rd_kafka_consume_batch_queue, rd_kafka_message_destroy, rd_kafka_queue_get_consumer,
        rd_kafka_resp_err_t as Code,
    },
    consumer::{BaseConsumer, Consumer},
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [lane, placement, bootstrap, topic] = arguments.as_slice() else {
        eprintln!("usage: null bare|ours|walk one-core|any-core BOOTSTRAP TOPIC");
        std::process::exit(2);
    };
    let one_core = placement == "one-core";
    let begun = Instant::now();
    let report = |records: u64, bytes: u64| {
        let cpu = cpu_seconds();
        println!(
            "{{\"lane\":\"{lane}-{placement}\",\"events\":{records},\"bytes\":{bytes},\"cpu_s\":{cpu:.3},\"wall_s\":{:.3},\"us_per_event\":{:.3}}}",
            begun.elapsed().as_secs_f64(),
            cpu * 1e6 / records as f64
        );
        // Destroying the clients is not measured.
        std::process::exit(0);
    };
    match lane.as_str() {
        "bare" => bare(bootstrap, topic, one_core, report),
        "ours" => ours(bootstrap, topic, one_core, false, report),
        _ => ours(bootstrap, topic, one_core, true, report),
    }
}

/// User and system time of the process so far.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 =
        fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number");
    ticks / rustix::param::clock_ticks_per_second() as f64
}

fn ours(bootstrap: &str, topic: &str, one_core: bool, walk: bool, report: impl FnOnce(u64, u64)) {
    let config = KafkaConfig {
        bootstrap_servers: bootstrap.into(),
        placement: if one_core { Placement::OneCore } else { Placement::AnyCore },
        ..KafkaConfig::default()
    };
    let log = KafkaLog::connect(&config, "null").expect("the settings are right");
    let topic = Name::new(topic).expect("a topic's name");
    let partitions = headwater_log::block_on(log.topic(&topic))
        .expect("a broker")
        .expect("the topic")
        .partitions;
    let threads: Vec<_> = (0..partitions)
        .map(PartitionId)
        .map(|partition| {
            let (log, topic) = (log.clone(), topic.clone());
            std::thread::spawn(move || {
                let ends = headwater_log::block_on(log.ends(&topic, partition)).expect("a broker");
                let mut reader = headwater_log::block_on(log.reader(&topic, partition, ends.start))
                    .expect("a reader");
                let (mut records, mut bytes) = (0, 0);
                while reader.position() < ends.end {
                    let from = reader.position();
                    let chunk = reader.read(1 << 20, Duration::from_secs(10)).expect("readable");
                    let Some(chunk) = chunk else { continue };
                    if walk {
                        for record in chunk.records(from) {
                            records += 1;
                            bytes += record.expect("intact").value.map_or(0, <[u8]>::len) as u64;
                        }
                    } else {
                        records +=
                            u64::from(BatchHeader::read(chunk.bytes()).expect("a batch").records);
                        bytes += chunk.bytes().len() as u64;
                    }
                }
                (records, bytes)
            })
        })
        .collect();
    let counted = threads.into_iter().map(|thread| thread.join().expect("no panic"));
    let (records, bytes) = counted.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    report(records, bytes);
}

fn bare(bootstrap: &str, topic: &str, one_core: bool, report: impl FnOnce(u64, u64)) {
    if one_core {
        let allowed = sched_getaffinity(None).expect("an affinity");
        let cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect::<Vec<_>>();
        let mut own = CpuSet::new();
        own.set(cores[std::process::id() as usize % cores.len()]);
        sched_setaffinity(None, &own).expect("may choose a core");
    }
    // The settings of the log's own reader.
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "null")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "false")
        .set("fetch.wait.max.ms", "50")
        .set("fetch.queue.backoff.ms", "1")
        .set("fetch.message.max.bytes", "1048576")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", "16384")
        .create()
        .expect("the settings are right");
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("a broker");
    let mut list = TopicPartitionList::new();
    let mut wanted = 0;
    for partition in metadata.topics()[0].partitions() {
        let id = partition.id();
        let (start, end) =
            consumer.fetch_watermarks(topic, id, Duration::from_secs(10)).expect("a broker");
        wanted += (end - start) as u64;
        list.add_partition_offset(topic, id, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("an assignment");
    let (mut records, mut bytes) = (0, 0);
    let mut taken = vec![std::ptr::null_mut(); 10_000];
    // SAFETY: the queue outlives the loop, and every message is destroyed once.
    unsafe {
        let queue = rd_kafka_queue_get_consumer(consumer.client().native_ptr());
        while records < wanted {
            let count = rd_kafka_consume_batch_queue(queue, 100, taken.as_mut_ptr(), taken.len());
            for message in &taken[..usize::try_from(count).unwrap_or(0)] {
                if (**message).err == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    records += 1;
                    bytes += (**message).len as u64;
                }
                rd_kafka_message_destroy(*message);
            }
        }
    }
    report(records, bytes);
}
