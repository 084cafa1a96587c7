//! Shards treat bad, late and extreme records as the naive interpreter does.
//!
//! Seeded streams go through SQL, decoder, shards and the merge of their rows, and record by record
//! through `headwater_testkit::reference`, which shares no code with them. Rows, tallies,
//! watermarks, positions, and every refused record with its stage must be equal, however the
//! records were cut into chunks and commits.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use headwater_engine::{DeadLetter, Shard, Stage, ViewPlan, read::MergedScan};
use headwater_sql::{parse_stream, parse_view, plan_view};
use headwater_state::{Identity, KeyRange, Options, OutboxKey, Progress, ShardDb, ShardReader};
use headwater_testkit::{
    Datum, Event, Function, Mix, Record, View, chunk,
    events::{Random, generate},
    reference,
};
use headwater_types::{DataType, GenerationInputs, Offset, PartitionId, StreamDefinition};
use proptest::prelude::*;

const STREAM: &str = "CREATE STREAM s (k VARCHAR, b BOOLEAN, i INTEGER, l BIGINT, d DOUBLE, m DECIMAL(20,2), v VARCHAR, \
    t TIMESTAMP NOT NULL, WATERMARK FOR t AS t - INTERVAL '5 seconds') \
    WITH (key = 'k', partitions = 3, max_future = '1 hour')";

const SECOND: i64 = 1_000_000;

/// The same view twice: in SQL, whose select list has the keys first, and as closures.
fn views(stream: &StreamDefinition) -> Vec<(&'static str, View)> {
    let column = |name: &'static str| move |event: &Event| Ok(event.get(name));
    vec![
        (
            "WITH (allowed_lateness = '20 seconds', retention = '3 minutes') AS \
             SELECT k, window_start, count(*) AS n, sum(i) AS si, avg(i) AS ai, sum(d) AS sd, avg(d) AS ad, \
             min(l) AS lo, max(l) AS hi, count(v) FILTER (WHERE b) AS yes, min(v) AS v, max(t) AS last \
             FROM TUMBLE(s, t, INTERVAL '1 minute') WHERE 1000 / (i % 10) > -400 GROUP BY k, window_start, window_end",
            View::new(stream)
                .wanting(&["k", "b", "i", "l", "d", "v"])
                .filter(|event| match event.get("i").integer().map(|i| i % 10) {
                    None => Ok(Datum::Null),
                    Some(0) => Err("division by zero".to_owned()),
                    Some(rest) => Ok(Datum::Boolean(1000 / rest > -400)),
                })
                .key(column("k"))
                .tumble(60 * SECOND)
                .allowed_lateness(20 * SECOND)
                .retention(180 * SECOND)
                .count_star()
                .aggregate(Function::Sum, column("i"))
                .aggregate(Function::Avg, column("i"))
                .aggregate(Function::Sum, column("d"))
                .aggregate(Function::Avg, column("d"))
                .aggregate(Function::Min, column("l"))
                .aggregate(Function::Max, column("l"))
                .aggregate(Function::Count, column("v"))
                .only(column("b"))
                .aggregate(Function::Min, column("v"))
                .aggregate(Function::Max, column("t")),
        ),
        (
            "WITH (allowed_lateness = '30 seconds', retention = '1 minute') AS \
             SELECT v, b, count(*) AS n, sum(m) AS sm, avg(m) AS am, max(m) AS hi, max(d) AS d, min(b) AS f \
             FROM s GROUP BY v, b",
            View::new(stream)
                .wanting(&["b", "d", "m", "v"])
                .key(column("v"))
                .key(column("b"))
                .allowed_lateness(30 * SECOND)
                .retention(60 * SECOND)
                .count_star()
                .aggregate(Function::Sum, column("m"))
                .aggregate(Function::Avg, column("m"))
                .aggregate(Function::Max, column("m"))
                .aggregate(Function::Max, column("d"))
                .aggregate(Function::Min, column("b")),
        ),
        (
            "WITH (retention = 'forever') AS \
             SELECT d, count(*) AS n, count(CAST(v AS INTEGER)) AS none, max(i) AS i FROM s GROUP BY d",
            View::new(stream)
                .wanting(&["d", "i", "v"])
                .key(column("d"))
                .count_star()
                // No generated text is a whole number.
                .aggregate(Function::Count, |event| match event.get("v").text() {
                    None => Ok(Datum::Null),
                    Some(text) => Err(format!("{text} is no number")),
                })
                .aggregate(Function::Max, column("i")),
        ),
    ]
}

fn plan(stream: &StreamDefinition, definition: &str) -> Arc<ViewPlan> {
    let sql = format!("CREATE MATERIALIZED VIEW v {definition}");
    let view = parse_view(&sql).unwrap_or_else(|error| panic!("{sql}\n{error}"));
    Arc::new(plan_view(&view, stream).unwrap_or_else(|error| panic!("{sql}\n{error}")))
}

/// The records that a shard has refused: offset and stage.
fn refused(shard: &Shard) -> Vec<(Offset, reference::Stage)> {
    let stage = |stage| match stage {
        Stage::Decode => reference::Stage::Decode,
        Stage::Time => reference::Stage::Time,
        Stage::Filter => reference::Stage::Filter,
        Stage::Expression => reference::Stage::Expression,
        Stage::Late => reference::Stage::Late,
    };
    let letters = shard.db().outbox(OutboxKey::at(Offset::ZERO), usize::MAX).unwrap();
    let read = |(_, bytes): &(OutboxKey, Vec<u8>)| {
        let letter = DeadLetter::decode(bytes).unwrap();
        (letter.offset, stage(letter.stage))
    };
    letters.iter().map(read).collect()
}

struct Found {
    rows: BTreeMap<Vec<Datum>, Vec<Datum>>,
    shards: Vec<(Progress, Vec<(Offset, reference::Stage)>)>,
}

/// Runs the partitions through shards, in chunks and commits that the seed decides.
fn by_shards(plan: &Arc<ViewPlan>, partitions: &[Vec<Record>], keys: usize, seed: u64) -> Found {
    let directory = tempfile::tempdir().unwrap();
    let generation =
        GenerationInputs { stream_sql: "s", view_sql: "v", floor: &[], ordinal: 0 }.digest();
    let mut random = Random::new(seed);
    let (mut shards, mut readers) = (Vec::new(), Vec::new());
    for (partition, records) in (0..).map(PartitionId).zip(partitions) {
        let identity = Identity { generation, partition };
        let path = directory.path().join(partition.to_string());
        let open = || {
            Shard::open(
                Arc::clone(plan),
                ShardDb::open(&path, &identity, &Options::default()).unwrap(),
            )
        };
        let mut shard = open().unwrap();
        let mut rest = records.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(1 + random.below(60) as usize));
            shard.apply(&chunk(now), None).unwrap();
            rest = later;
            match random.below(6) {
                0..3 => drop(shard.commit().unwrap()),
                // A crash: uncommitted records are read again.
                3 => {
                    let position = shard.progress().position.0;
                    drop(shard);
                    shard = open().unwrap();
                    rest = &records[position as usize..];
                }
                _ => {}
            }
        }
        shard.commit().unwrap();
        let scratch = directory.path().join(format!("reader-{partition}"));
        let reader = ShardReader::open_live(&path, &scratch, &identity).unwrap();
        reader.refresh().unwrap();
        readers.push(reader);
        shards.push((shard.progress(), refused(&shard)));
    }
    let scans = readers.iter().map(|reader| reader.view().scan(KeyRange::all())).collect();
    let mut scan = MergedScan::new(plan, scans);
    let mut rows = BTreeMap::new();
    while let Some(batch) = scan.next_batch(50).unwrap() {
        for row in 0..batch.batch.num_rows() {
            let cells = plan.output.iter().zip(batch.batch.columns());
            let mut cells: Vec<Datum> =
                cells.map(|(output, array)| datum(array, row, output.data_type)).collect();
            let values = cells.split_off(keys);
            assert_eq!(rows.insert(cells, values), None, "a key came twice");
        }
    }
    Found { rows, shards }
}

fn datum(array: &ArrayRef, row: usize, data_type: DataType) -> Datum {
    if array.is_null(row) {
        return Datum::Null;
    }
    match data_type {
        DataType::Boolean => Datum::Boolean(array.as_boolean().value(row)),
        DataType::Integer => Datum::Integer(array.as_primitive::<Int32Type>().value(row).into()),
        DataType::BigInt => Datum::Integer(array.as_primitive::<Int64Type>().value(row)),
        DataType::Double => Datum::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal { scale, .. } => {
            Datum::Decimal { units: array.as_primitive::<Decimal128Type>().value(row), scale }
        }
        DataType::Varchar => Datum::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Timestamp => {
            Datum::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
    }
}

/// Compares both paths. Returns the stages of the refused records.
fn compare(which: usize, mix: &Mix, seed: u64) -> Result<Vec<reference::Stage>, TestCaseError> {
    let stream = parse_stream(STREAM).unwrap();
    let (definition, view) = views(&stream).remove(which);
    let plan = plan(&stream, definition);
    let partitions = generate(&stream, mix, seed);
    let expected: Vec<reference::Partition> =
        partitions.iter().map(|records| view.run(records)).collect();

    let keys = plan.keys.len() + usize::from(plan.window.is_some());
    let found = by_shards(&plan, &partitions, keys, seed);
    for ((progress, refused), expected) in found.shards.iter().zip(&expected) {
        prop_assert_eq!(refused, &expected.refused);
        prop_assert_eq!(progress.tallies, expected.tallies);
        prop_assert_eq!(progress.position, expected.position);
        prop_assert_eq!(progress.watermark.known().map(|time| time.0), expected.watermark);
        prop_assert_eq!(
            progress.max_event_time.known().map(|time| time.0),
            expected.max_event_time
        );
    }
    let rows: BTreeMap<_, Vec<Datum>> = reference::merge(&view, &expected)
        .into_iter()
        .map(|(key, values)| (key, values.into_iter().map(|value| value.unwrap()).collect()))
        .collect();
    prop_assert_eq!(&found.rows, &rows);
    Ok(expected
        .into_iter()
        .flat_map(|partition| partition.refused)
        .map(|(_, stage)| stage)
        .collect())
}

#[test]
fn a_long_stream_meets_every_stage_and_both_ways_agree() {
    let mut stages = Vec::new();
    for which in 0..3 {
        stages.extend(compare(which, &Mix::default().records(4_000), 1).unwrap());
    }
    use reference::Stage::{Decode, Expression, Filter, Late, Time};
    for stage in [Decode, Time, Filter, Expression, Late] {
        assert!(stages.iter().filter(|other| **other == stage).count() > 20, "{stage:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_view_holds_what_the_naive_interpreter_says(which in 0..3usize, seed in any::<u64>(), records in 1..700usize) {
        // Records that are slightly late, and times on whole seconds: the boundaries of the rules.
        let mix = Mix { missing: 0.2, extreme: 0.2, late: 0.3, lateness_micros: 120 * SECOND, whole_seconds: 0.9, ..Mix::default().records(records) };
        compare(which, &mix, seed)?;
    }
}
