use std::{
    thread,
    time::{Duration, Instant},
};

use headwater_types::{Offset, PartitionId};

use super::{
    Bench, Content, PATIENCE, Subject, ZERO, at, batch,
    bench::{keyed, numbered},
    fresh, one,
};
use crate::{BatchHeader, Error, TopicSpec, block_on};

pub(super) fn records_come_back_as_they_went_in(subject: &dyn Subject) {
    let bench = Bench::new(subject, "faithful", one());
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let contents = [
        Content { timestamp_ms: 1_357_035_300_000, ..keyed("key", "value") },
        Content { timestamp_ms: 1, key: None, value: text("no key"), headers: vec![] },
        Content { timestamp_ms: 1, key: text(""), value: text(""), headers: vec![] },
        Content {
            timestamp_ms: 1_700_000_000_000,
            key: text("gone"),
            value: None,
            headers: vec![],
        },
        Content {
            key: Some(vec![0, 255, 10, 13]),
            value: Some((0..=255).collect()),
            ..Content::default()
        },
        Content { value: Some(vec![7; 300_000]), ..keyed("large", "") },
        Content {
            headers: vec![
                ("a".into(), b"1".to_vec()),
                ("größe".into(), vec![]),
                ("a".into(), vec![0; 200]),
            ],
            ..keyed("with", "headers")
        },
        Content { headers: vec![("why".into(), b"empty".to_vec())], ..keyed("with", "") },
    ];
    bench.append(0, &contents);
    for content in &contents {
        bench.append(0, std::slice::from_ref(content));
    }
    let twice: Vec<_> = contents.iter().chain(&contents).cloned().collect();
    bench.expect(0, 0, &twice);
}

pub(super) fn a_chunk_is_whole_batches_within_its_size(subject: &dyn Subject) {
    let bench = Bench::new(subject, "chunks", one());
    let contents = numbered("r", 300);
    let len = batch(&contents[..10]).bytes().len();
    bench.append_in(10, 0, &contents);
    for max_bytes in [1, len, 3 * len + len / 2, 1 << 20] {
        let mut reader =
            block_on(bench.log.reader(&bench.topic, ZERO, Offset::ZERO)).expect("it is readable");
        let mut next = Offset::ZERO;
        while let Some(chunk) = reader.read(max_bytes, Duration::ZERO).expect("it is readable") {
            let mut rest = chunk.bytes();
            assert!(!rest.is_empty(), "a chunk has at least one batch");
            let mut batches = 0;
            while !rest.is_empty() {
                let header = BatchHeader::read(rest).expect("a chunk is batches from end to end");
                assert_eq!(header.base_offset, next, "batches follow each other");
                next = header.end();
                rest = &rest[header.len..];
                batches += 1;
            }
            assert_eq!(next, chunk.end());
            let fits = batches == 1 || chunk.bytes().len() <= max_bytes + len;
            assert!(fits, "{} bytes where {max_bytes} were asked for", chunk.bytes().len());
        }
        assert_eq!(next, at(300), "the reader comes to the end");
    }
}

pub(super) fn what_was_acknowledged_can_be_read_at_once(subject: &dyn Subject) {
    let bench = Bench::new(subject, "at-once", one());
    let mut reader =
        block_on(bench.log.reader(&bench.topic, ZERO, Offset::ZERO)).expect("it is readable");
    for number in 0..50 {
        let offset = bench.append(0, &[keyed("k", &number.to_string())]);
        assert_eq!(bench.ends(0).1, offset + 1, "the end moves before the acknowledgement");
        let chunk = reader
            .read(1, Duration::ZERO)
            .expect("it is readable")
            .expect("it can be read at once");
        let record =
            chunk.records(at(offset)).next().expect("there is a record").expect("it is intact");
        assert_eq!(record.value, Some(number.to_string().as_bytes()));
    }
}

pub(super) fn reading_begins_in_the_middle_of_a_batch(subject: &dyn Subject) {
    let bench = Bench::new(subject, "middle", one());
    let contents = numbered("r", 30);
    bench.append_in(10, 0, &contents);
    for from in [0, 1, 9, 10, 15, 29, 30] {
        bench.expect(0, from, &contents[from as usize..]);
    }
}

pub(super) fn two_reads_return_the_same(subject: &dyn Subject) {
    let bench = Bench::new(subject, "repeatable", one());
    bench.append_in(7, 0, &numbered("r", 200));
    let records = |max_bytes| {
        let mut reader =
            block_on(bench.log.reader(&bench.topic, ZERO, Offset::ZERO)).expect("it is readable");
        let mut all = Vec::new();
        while reader.position() < at(200) {
            let position = reader.position();
            let chunk = reader
                .read(max_bytes, Duration::ZERO)
                .expect("it is readable")
                .expect("it has an end");
            // How records are put into batches is the log's own affair.
            for record in chunk.records(position) {
                all.push(format!("{:?}", record.expect("it is intact")));
            }
        }
        all
    };
    let before = records(1);
    bench.append(0, &numbered("later", 3));
    assert!(records(1)[..before.len()] == before[..], "a second read returns other records");
    assert!(records(10_000)[..before.len()] == before[..], "other chunks hold other records");
}

pub(super) fn a_waiting_reader_is_woken_by_an_append(subject: &dyn Subject) {
    let bench = Bench::new(subject, "woken", TopicSpec::keep(2));
    let contents = numbered("r", 5);
    for (index, content) in contents.iter().enumerate() {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let from = at(index as u64);
                let mut reader = block_on(bench.log.reader(&bench.topic, PartitionId(1), from))
                    .expect("it is readable");
                let begun = Instant::now();
                let chunk = reader.read(1 << 20, PATIENCE).expect("it is readable");
                (chunk.is_some(), begun.elapsed())
            });
            thread::sleep(Duration::from_millis(30));
            bench.append(0, std::slice::from_ref(content));
            bench.append(1, std::slice::from_ref(content));
            let (read, waited) = waiting.join().expect("the reader does not panic");
            assert!(
                read && waited < PATIENCE / 2,
                "the append did not wake the reader: {waited:?}"
            );
        });
    }
    bench.expect(1, 0, &contents);
}

pub(super) fn a_reader_at_the_end_waits_no_longer_than_asked(subject: &dyn Subject) {
    let bench = Bench::new(subject, "waiting", one());
    bench.append(0, &numbered("r", 3));
    let mut reader =
        block_on(bench.log.reader(&bench.topic, ZERO, at(3))).expect("the end is a position");
    let begun = Instant::now();
    assert!(reader.read(1, Duration::ZERO).expect("the end is readable").is_none());
    assert!(begun.elapsed() < PATIENCE / 4, "no wait was asked for");
    let begun = Instant::now();
    assert!(reader.read(1, Duration::from_millis(80)).expect("the end is readable").is_none());
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_millis(70) && waited < PATIENCE / 4, "waited {waited:?}");
    assert_eq!(reader.position(), at(3), "waiting does not move a reader");
}

pub(super) fn an_offset_beyond_the_end_is_an_error(subject: &dyn Subject) {
    let bench = Bench::new(subject, "beyond", one());
    bench.append(0, &numbered("r", 3));
    let beyond = block_on(bench.log.reader(&bench.topic, ZERO, at(4)));
    let beyond = beyond.and_then(|mut reader| reader.read(1, Duration::ZERO).map(drop));
    let Err(Error::OffsetOutOfRange { topic, partition, requested, end }) = beyond else {
        panic!("{beyond:?}")
    };
    assert_eq!((topic, partition, requested, end), (bench.topic.clone(), ZERO, at(4), at(3)));
}

pub(super) fn what_is_unknown_is_named(subject: &dyn Subject) {
    let bench = Bench::new(subject, "unknown", TopicSpec::keep(2));
    let log = &bench.log;
    let nowhere = fresh("nowhere");
    let unknown = |result: Result<(), Error>| match result {
        Err(Error::UnknownTopic { topic }) => assert_eq!(topic, nowhere),
        other => panic!("an unknown topic: {other:?}"),
    };
    unknown(block_on(log.ends(&nowhere, ZERO)).map(drop));
    unknown(block_on(log.reader(&nowhere, ZERO, at(0))).map(drop));
    unknown(block_on(log.trim(&nowhere, ZERO, at(0))));
    unknown(block_on(log.size(&nowhere, ZERO, at(0), at(1))).map(drop));
    unknown(block_on(log.append(&nowhere, ZERO, batch(&numbered("r", 1)))).map(drop));
    let outside = |result: Result<(), Error>| match result {
        Err(Error::UnknownPartition { topic, partition: PartitionId(2), partitions: 2 }) => {
            assert_eq!(topic, bench.topic)
        }
        other => panic!("an unknown partition: {other:?}"),
    };
    outside(block_on(log.ends(&bench.topic, PartitionId(2))).map(drop));
    outside(block_on(log.reader(&bench.topic, PartitionId(2), at(0))).map(drop));
    outside(bench.try_append(2, &numbered("r", 1)).map(drop));
}

pub(super) fn size_follows_the_bytes(subject: &dyn Subject) {
    let bench = Bench::new(subject, "size", one());
    let contents = numbered("r", 1000);
    let mut stored = 0;
    for part in contents.chunks(10) {
        bench.append(0, part);
        stored += batch(part).bytes().len() as u64;
    }
    let size = |from, to| {
        block_on(bench.log.size(&bench.topic, ZERO, at(from), at(to))).expect("it has a size")
    };
    let near = |size: u64, stored: u64| size * 10 >= stored * 7 && size * 10 <= stored * 13;
    assert!(near(size(0, 1000), stored), "{} of {stored} bytes", size(0, 1000));
    assert!(near(size(0, 500), stored / 2), "{} of {} bytes", size(0, 500), stored / 2);
    assert!(near(size(500, 9999), stored / 2), "{} of {} bytes", size(500, 9999), stored / 2);
    assert_eq!(size(1000, 1000), 0, "an empty range");
    assert_eq!(size(700, 300), 0, "a range that ends before it begins");
}
