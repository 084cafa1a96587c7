//! The example's definitions over its data, compared with a computation that knows neither SQL nor
//! Arrow.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    sync::Arc,
};

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use flate2::read::GzDecoder;
use headwater_engine::{Shard, read::MergedScan};
use headwater_log::{BatchBuilder, Chunk, partition_for_key};
use headwater_sql::{Statement, parse, parse_view, plan_view};
use headwater_state::{Identity, KeyRange, Options, ShardDb, ShardReader};
use headwater_types::{GenerationInputs, Offset, PartitionId, Tallies};

const STREAM: &str = include_str!("../../../examples/flights/stream.sql");
const V1: &str = include_str!("../../../examples/flights/punctuality_v1.sql");
const V2: &str = include_str!("../../../examples/flights/punctuality_v2.sql");
const DATA: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/flights/flights-2013-01.ndjson.gz");
const HOUR: i64 = 3_600_000_000;

/// The values of a row, in either version of the view.
#[derive(Clone, Debug, Default, PartialEq)]
struct Hour {
    departures: i64,
    cancelled: i64,
    on_time: i64,
    avg_delay: Option<f64>,
    max_delay: Option<i64>,
}

type Rows = BTreeMap<(String, i64), Hour>;

fn flights() -> Vec<(serde_json::Value, String)> {
    let file = std::fs::File::open(DATA).unwrap();
    let lines = BufReader::new(GzDecoder::new(file)).lines();
    lines.map(Result::unwrap).map(|line| (serde_json::from_str(&line).unwrap(), line)).collect()
}

/// Parses a time such as "2013-01-01T10:15:00Z", in January or February of 2013.
fn micros(time: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| time[range].parse::<i64>().unwrap();
    let day = number(8..10) - 1 + if number(5..7) == 2 { 31 } else { 0 };
    let seconds = day * 86_400 + number(11..13) * 3_600 + number(14..16) * 60 + number(17..19);
    assert_eq!(&time[..5], "2013-");
    1_356_998_400_000_000 + seconds * 1_000_000
}

/// The expected rows. `correct` leaves out flights that never departed; otherwise such a flight
/// counts as a departure without a delay.
fn expected(flights: &[(serde_json::Value, String)], correct: bool) -> Rows {
    let mut hours: BTreeMap<_, (Hour, Vec<i64>)> = BTreeMap::new();
    for (flight, _) in flights {
        let start = micros(flight["scheduled"].as_str().unwrap()).div_euclid(HOUR) * HOUR;
        let (hour, delays) =
            hours.entry((flight["origin"].as_str().unwrap().to_owned(), start)).or_default();
        let delay = flight["dep_delay"].as_i64();
        hour.max_delay = hour.max_delay.max(delay);
        if correct && flight["departed"].is_null() {
            hour.cancelled += 1;
            continue;
        }
        hour.departures += 1;
        delays.push(delay.unwrap_or(0));
        hour.on_time += i64::from(delay.unwrap_or(0) <= 15);
    }
    let average = |delays: &[i64]| {
        (!delays.is_empty()).then(|| delays.iter().sum::<i64>() as f64 / delays.len() as f64)
    };
    hours
        .into_iter()
        .map(|(key, (hour, delays))| (key, Hour { avg_delay: average(&delays), ..hour }))
        .collect()
}

fn through_the_engine(flights: &[(serde_json::Value, String)], view: &str) -> (Rows, Tallies) {
    let Statement::Stream(stream) = parse(STREAM).unwrap().remove(0) else {
        panic!("the file holds a stream")
    };
    let plan = Arc::new(plan_view(&parse_view(view).unwrap(), &stream).unwrap());
    let directory = tempfile::tempdir().unwrap();
    let generation =
        GenerationInputs { stream_sql: "s", view_sql: "v", floor: &[], ordinal: 0 }.digest();
    let mut tallies = Tallies::default();
    let mut readers = Vec::new();
    for partition in (0..stream.partitions).map(PartitionId) {
        let identity = Identity { generation, partition };
        let path = directory.path().join(partition.to_string());
        let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
        let mut shard = Shard::open(Arc::clone(&plan), db).unwrap();
        let origin = |flight: &serde_json::Value| flight["origin"].as_str().unwrap().to_owned();
        let own = flights.iter().filter(|(flight, _)| {
            partition_for_key(origin(flight).as_bytes(), stream.partitions) == partition
        });
        let own: Vec<_> = own.collect();
        for (index, lines) in own.chunks(700).enumerate() {
            let base = Offset(700 * index as u64);
            let mut builder = BatchBuilder::new();
            for (flight, line) in lines {
                let at = micros(flight["scheduled"].as_str().unwrap()) / 1_000;
                builder.push(at, Some(origin(flight).as_bytes()), Some(line.as_bytes()), &[]);
            }
            let mut batch = builder.build().unwrap();
            batch.assign(base);
            let end = Offset(base.0 + lines.len() as u64);
            shard.apply(&Chunk::new(batch.into_bytes(), end), None).unwrap();
        }
        tallies += shard.commit().unwrap().tallies;
        drop(shard);
        let scratch = directory.path().join(format!("reader-{partition}"));
        readers.push(ShardReader::open_live(&path, &scratch, &identity).unwrap());
    }
    let scans = readers.iter().map(|reader| reader.view().scan(KeyRange::all())).collect();
    let mut scan = MergedScan::new(&plan, scans);
    let mut rows = Rows::new();
    while let Some(batch) = scan.next_batch(1_000).unwrap() {
        let batch = batch.batch;
        let column =
            |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
        for row in 0..batch.num_rows() {
            let key = column("origin").as_string::<i32>().value(row).to_owned();
            let start =
                column("window_start").as_primitive::<TimestampMicrosecondType>().value(row);
            let end = column("window_end").as_primitive::<TimestampMicrosecondType>().value(row);
            assert_eq!(end - start, HOUR);
            let count = |name: &str| column(name).as_primitive::<Int64Type>().value(row);
            let average = column("avg_delay").as_primitive::<Float64Type>();
            let max = column("max_delay").as_primitive::<Int32Type>();
            let hour = Hour {
                departures: count("departures"),
                cancelled: batch.column_by_name("cancelled").map_or(0, |_| count("cancelled")),
                on_time: count("on_time"),
                avg_delay: average.is_valid(row).then(|| average.value(row)),
                max_delay: max.is_valid(row).then(|| max.value(row).into()),
            };
            assert!(rows.insert((key, start), hour).is_none());
        }
    }
    (rows, tallies)
}

#[test]
fn both_versions_of_the_example_count_every_flight_and_say_what_they_are_meant_to_say() {
    let flights = flights();
    assert_eq!(flights.len(), 27_004);
    for (view, correct) in [(V1, false), (V2, true)] {
        let (rows, tallies) = through_the_engine(&flights, view);
        assert_eq!(
            tallies,
            Tallies { applied: 27_004, ..Tallies::default() },
            "none is late, none is refused"
        );
        let expected = expected(&flights, correct);
        assert_eq!(rows.len(), expected.len());
        for (key, hour) in &expected {
            assert_eq!(rows.get(key), Some(hour), "{key:?}");
        }
        let cancelled: i64 = rows.values().map(|hour| hour.cancelled).sum();
        assert_eq!(cancelled, if correct { 521 } else { 0 });
        assert_eq!(rows.values().map(|hour| hour.departures).sum::<i64>(), 27_004 - cancelled);
    }
}
