use headwater_types::{Column, DataType, Name};

use super::*;

const SECOND: i64 = 1_000_000;

fn stream() -> StreamDefinition {
    let column =
        |name: &str, data_type, nullable| Column { name: name.to_owned(), data_type, nullable };
    StreamDefinition {
        name: Name::new("s").unwrap(),
        sql: String::new(),
        columns: vec![
            column("k", DataType::Varchar, true),
            column("n", DataType::BigInt, true),
            column("m", DataType::Decimal { precision: 10, scale: 2 }, true),
            column("d", DataType::Double, true),
            column("t", DataType::Timestamp, false),
        ],
        event_time: 4,
        watermark_delay_micros: 5 * SECOND,
        topic: Name::new("s").unwrap(),
        partitions: 1,
        key: Some(0),
        max_future_micros: 3600 * SECOND,
    }
}

/// Records whose timestamps are a second apart, from JSON with times in milliseconds.
fn records(values: &[&str]) -> Vec<Record> {
    let record = |(offset, value): (usize, &&str)| Record {
        offset: Offset(offset as u64),
        timestamp_ms: offset as i64 * 1_000,
        key: None,
        value: (!value.is_empty()).then(|| value.as_bytes().to_vec()),
    };
    values.iter().enumerate().map(record).collect()
}

fn text(text: &str) -> Datum {
    Datum::Text(text.to_owned())
}

#[test]
fn each_record_counts_once_and_rows_are_computed_from_all_their_values() {
    let view =
        View::new(&stream())
            .wanting(&["k", "n", "m", "d"])
            .filter(|event| match event.get("n").integer() {
                Some(13) => Err("unlucky".to_owned()),
                Some(n) => Ok(Datum::Boolean(n >= 0)),
                None => Ok(Datum::Null),
            })
            .key(|event| {
                if event.get("k") == text("bad") {
                    Err("bad".to_owned())
                } else {
                    Ok(event.get("k"))
                }
            })
            .tumble(10 * SECOND)
            .count_star()
            .aggregate(Function::Sum, |event| Ok(event.get("n")))
            .aggregate(Function::Avg, |event| Ok(event.get("m")))
            .aggregate(Function::Sum, |event| Ok(event.get("d")))
            .aggregate(Function::Count, |event| Ok(event.get("d")))
            .only(|event| Ok(Datum::Boolean(event.get("n").integer() > Some(1))));
    let records = records(&[
        r#"{"k":"a","n":1,"m":1.00,"d":0.1,"t":1000}"#,
        r#"{"k":"a","n":2,"m":1.01,"d":0.2,"t":9999}"#,
        r#"{"k":"a","n":3,"m":0.01,"t":"1970-01-01T00:00:09.9999Z"}"#,
        r#"{"k":null,"n":3,"t":10000}"#,
        r#"{"k":"a","n":-1,"t":1000}"#,
        r#"{"k":"a","t":1000}"#,
        r#"{"k":"a","n":13,"t":1000}"#,
        r#"{"k":"bad","n":1,"t":1000}"#,
        r#"{"k":"a","n":1,"t":"later"}"#,
        r#"{"k":"a","n":1,"t":3610000}"#,
        r#"{"k":1.5,"n":true,"t":1000}"#,
        "",
        r#"{"k":"b","n":1,"t":14999}"#,
        r#"{"k":"a","n":10,"t":9000}"#,
        r#"{"k":"b","n":1,"t":15000}"#,
        r#"{"k":"a","n":100,"t":9999}"#,
        r#"{"n":4,"t":10000,"n":5}"#,
    ]);
    let partition = view.run(&records);
    let refused: Vec<_> =
        partition.refused.iter().map(|(offset, stage)| (offset.0, *stage)).collect();
    assert_eq!(
        refused,
        [
            (6, Stage::Filter),
            (7, Stage::Expression),
            (8, Stage::Time),
            (9, Stage::Time),
            (10, Stage::Decode),
            (11, Stage::Decode),
            (15, Stage::Late),
            (16, Stage::Decode),
        ]
    );
    let expected = Tallies { applied: 7, filtered: 2, late: 1, duplicate: 0, dead_lettered: 7 };
    assert_eq!(partition.tallies, expected);
    assert_eq!(partition.watermark, Some(10 * SECOND));
    assert_eq!(partition.position, Offset(17));

    let rows = merge(&view, &[partition]);
    let row = |key: Datum, start: i64| {
        let row = rows[&vec![key, Datum::Timestamp(start)]].clone();
        row.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    assert_eq!(rows.len(), 3);
    assert_eq!(
        row(text("a"), 0),
        [
            Datum::Integer(4),
            Datum::Integer(16),
            Datum::Decimal { units: 673_333, scale: 6 },
            Datum::Double(0.30000000000000004),
            Datum::Integer(1),
        ]
    );
    assert_eq!(row(Datum::Null, 10 * SECOND)[..2], [Datum::Integer(1), Datum::Integer(3)]);
    assert_eq!(row(text("b"), 10 * SECOND)[2..], [Datum::Null, Datum::Null, Datum::Integer(0)]);
}

#[test]
fn rows_without_a_window_expire_and_begin_again() {
    let view = View::new(&stream()).wanting(&["k"]).key(|event| Ok(event.get("k"))).count_star();
    let view = view.retention(100 * SECOND);
    let first = records(&[
        r#"{"k":"a","t":0}"#,
        r#"{"k":"b","t":50000}"#,
        r#"{"k":"a","t":105000}"#,
        r#"{"k":"c","t":0}"#,
    ]);
    let partition = view.run(&first);
    // With its own event time the watermark is 100 s, and the first row of a has expired.
    assert_eq!(partition.rows[&vec![text("a")]].values[0].len(), 1);
    assert_eq!(partition.tallies.late, 1);
    let later = records(&[r#"{"k":"b","t":50000}"#, r#"{"k":"a","t":155000}"#]);
    let seen = merge(&view, &[view.run(&later)]);
    assert_eq!(seen.keys().collect::<Vec<_>>(), [&vec![text("a")]]);
}

#[test]
fn partial_rows_of_partitions_are_put_together() {
    let view =
        View::new(&stream()).wanting(&["n"]).aggregate(Function::Sum, |event| Ok(event.get("n")));
    let part = |values: &[&str]| view.run(&records(values));
    let big = r#"{"n":9223372036854775807,"t":0}"#;
    let rows = merge(&view, &[part(&[big]), part(&[r#"{"n":-7,"t":0}"#])]);
    assert_eq!(rows[&vec![]], [Ok(Datum::Integer(i64::MAX - 7))]);
    assert!(merge(&view, &[part(&[big]), part(&[big])])[&vec![]][0].is_err());
}
