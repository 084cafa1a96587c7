use headwater_types::{Column, DataType, Name};

use super::*;
use crate::reference::{Stage, View};

fn stream() -> StreamDefinition {
    let column =
        |name: &str, data_type, nullable| Column { name: name.to_owned(), data_type, nullable };
    StreamDefinition {
        name: Name::new("s").unwrap(),
        sql: String::new(),
        columns: vec![
            column("k", DataType::Varchar, true),
            column("b", DataType::Boolean, true),
            column("i", DataType::Integer, true),
            column("l", DataType::BigInt, true),
            column("d", DataType::Double, true),
            column("m", DataType::Decimal { precision: 20, scale: 2 }, true),
            column("v", DataType::Varchar, true),
            column("t", DataType::Timestamp, false),
        ],
        event_time: 7,
        watermark_delay_micros: 5_000_000,
        topic: Name::new("s").unwrap(),
        partitions: 3,
        key: Some(0),
        max_future_micros: 3_600_000_000,
    }
}

fn everything(stream: &StreamDefinition) -> View {
    View::new(stream).wanting(&["k", "b", "i", "l", "d", "m", "v"]).tumble(60_000_000).count_star()
}

#[test]
fn the_same_seed_gives_the_same_records_and_another_seed_others() {
    let (stream, mix) = (stream(), Mix::default());
    assert_eq!(generate(&stream, &mix, 1), generate(&stream, &mix, 1));
    assert_ne!(generate(&stream, &mix, 1), generate(&stream, &mix, 2));
}

#[test]
fn a_clean_mix_is_applied_to_the_last_record() {
    let (stream, mix) = (stream(), Mix::clean());
    let mut applied = 0;
    for records in generate(&stream, &mix, 7) {
        let partition = everything(&stream).run(&records);
        assert_eq!(partition.refused, []);
        applied += partition.tallies.applied;
    }
    assert_eq!(applied, mix.records as u64);
}

#[test]
fn the_default_mix_has_some_of_everything() {
    let (stream, mix) = (stream(), Mix::default().records(5_000));
    let partitions = generate(&stream, &mix, 3);
    assert!(partitions.iter().all(|records| records.len() > 500));
    let mut stages = Vec::new();
    let mut read = 0;
    for records in &partitions {
        let partition = everything(&stream).run(records);
        assert!(partition.tallies.applied > 500);
        read += partition.tallies.read();
        stages.extend(partition.refused.into_iter().map(|(_, stage)| stage));
    }
    assert_eq!(read, 5_000);
    for stage in [Stage::Decode, Stage::Time, Stage::Late] {
        assert!(stages.iter().filter(|other| **other == stage).count() > 10, "{stage:?}");
    }
}

#[test]
fn a_chunk_has_the_records_that_went_in() {
    let records = generate(&stream(), &Mix::default().records(300), 5).remove(1);
    let chunk = chunk(&records[10..]);
    assert_eq!(chunk.end(), Offset(records.len() as u64));
    let read = chunk.records(Offset::ZERO).map(|record| record.unwrap());
    let read: Vec<Record> = read
        .map(|record| Record {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
        })
        .collect();
    assert_eq!(read, records[10..]);
}
