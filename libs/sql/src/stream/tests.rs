use proptest::prelude::*;

use super::*;
use crate::{Diagnostics, parse_stream};

const FLIGHTS: &str = include_str!("../../../../examples/flights/stream.sql");

#[test]
fn a_stream_has_its_columns_its_watermark_and_its_options() {
    let stream = parse_stream(FLIGHTS).unwrap();
    assert_eq!(stream.name.as_str(), "flights");
    assert_eq!(stream.columns.len(), 11);
    assert_eq!(stream.event_time, stream.column("scheduled").unwrap());
    assert_eq!(stream.watermark_delay_micros, 3_600_000_000);
    assert_eq!(stream.key, stream.column("origin"));
    assert_eq!((stream.topic.as_str(), stream.partitions), ("flights", 4));
    assert_eq!(stream.max_future_micros, 24 * 3_600_000_000);
    let tail = &stream.columns[stream.column("tail").unwrap()];
    assert_eq!((tail.data_type, tail.nullable), (DataType::Varchar, true));
}

#[test]
fn a_stream_that_says_little_gets_the_documented_defaults() {
    let sql = "create stream s (ts timestamptz, who text, watermark for ts as ts)";
    assert_eq!(
        parse_stream(sql).unwrap().sql,
        "CREATE STREAM s (\n  ts TIMESTAMP NOT NULL,\n  who VARCHAR,\n  WATERMARK FOR ts AS ts\n) \
         WITH (topic = 's', format = 'json', partitions = 4, max_future = '1 day')"
    );
}

#[test]
fn every_spelling_of_a_type_is_one_type() {
    let sql = "CREATE STREAM s (a BOOL, b BOOLEAN, c INT, d INTEGER, e INT4, f BIGINT, g INT8, h DOUBLE, \
        i DOUBLE PRECISION, j FLOAT8, k DECIMAL(10,2), l NUMERIC(10), m VARCHAR, n TEXT, o STRING, \
        p TIMESTAMP, q TIMESTAMPTZ, r TIMESTAMP WITH TIME ZONE, WATERMARK FOR p AS p)";
    let types: Vec<String> =
        parse_stream(sql).unwrap().columns.iter().map(|c| c.data_type.to_string()).collect();
    assert_eq!(
        types.join(" "),
        "BOOLEAN BOOLEAN INTEGER INTEGER INTEGER BIGINT BIGINT DOUBLE DOUBLE DOUBLE DECIMAL(10,2) \
         DECIMAL(10,0) VARCHAR VARCHAR VARCHAR TIMESTAMP TIMESTAMP TIMESTAMP"
    );
}

#[test]
fn the_normal_form_ignores_space_comments_letter_case_and_the_order_of_options() {
    let one = "CREATE STREAM Orders (ID BIGINT, \"Amount\" DOUBLE NULL, ts TIMESTAMP, \
        WATERMARK FOR ts AS ts - INTERVAL '90 seconds') WITH (key='id', partitions=8)";
    let other = "  create /* a */ stream ORDERS -- b\n(\tid int8,\n \"Amount\" double precision , \"ts\" timestamp not null,\
        watermark for TS as ts - interval '90' SECOND) with (PARTITIONS = '8', key = 'ID', topic = 'orders',\
        max_future = interval '1 day', format = 'JSON');;";
    let (one, other) = (parse_stream(one).unwrap(), parse_stream(other).unwrap());
    assert_eq!(one.sql, other.sql);
    assert_eq!(one, other);
    assert_eq!(parse_stream(&one.sql).unwrap(), one, "the normal form is its own normal form");
}

#[test]
fn names_that_need_quotes_keep_them() {
    let sql = "CREATE STREAM \"Web-Clicks.v2\" (\"userId\" VARCHAR, \"select\" INT, date TIMESTAMP, \"a\"\"b'c\" VARCHAR, \
        WATERMARK FOR \"date\" AS date) WITH (key = 'a\"b''c')";
    let stream = parse_stream(sql).unwrap();
    let names: Vec<&str> = stream.columns.iter().map(|column| &*column.name).collect();
    assert_eq!(names, ["userId", "select", "date", "a\"b'c"]);
    assert_eq!(stream.name.as_str(), "Web-Clicks.v2");
    assert_eq!(stream.key, Some(3));
    assert_eq!(parse_stream(&stream.sql).unwrap(), stream);
}

fn refusal(sql: &str) -> String {
    let Diagnostics(diagnostics) = parse_stream(sql).unwrap_err();
    assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
    diagnostics[0].to_string()
}

/// Refusals: the position, the reason, and the advice.
#[test]
fn what_a_stream_cannot_be_is_refused_with_place_reason_and_remedy() {
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            "CREATE STREAM s (ts TIMESTAMP)",
            "line 1, column 17",
            "event time",
            "add WATERMARK FOR ts AS ts",
        ),
        ("CREATE STREAM s (a INT)", "column 17", "event time", "add WATERMARK FOR ts AS ts"),
        (
            "CREATE STREAM s (ts VARCHAR, WATERMARK FOR ts AS ts)",
            "column 18",
            "ts is VARCHAR",
            "declare ts TIMESTAMP",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR t AS t)",
            "column 46",
            "no column t ",
            "did you mean ts?",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS tt)",
            "column 52",
            "computed from tt",
            "WATERMARK FOR ts AS ts",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts + INTERVAL '1 s')",
            "column 55",
            "ahead",
            "- INTERVAL",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '-1 s')",
            "column 57",
            "ahead",
            "zero or more",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts - INTERVAL '1 month')",
            "column 57",
            "no fixed length",
            "write days",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts - 5)",
            "column 57",
            "expected INTERVAL",
            "INTERVAL '10 minutes'",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP NULL, WATERMARK FOR ts AS ts)",
            "column 31",
            "never be NULL",
            "NOT NULL",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts, WATERMARK FOR ts AS ts)",
            "column 56",
            "second",
            "keep one",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, k VARCHAR, WATERMARK FOR ts AS ts) WITH (key = 'kk')",
            "column 79",
            "not a column",
            "did you mean k?",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, k DOUBLE, WATERMARK FOR ts AS ts) WITH (key = 'k')",
            "column 78",
            "k is DOUBLE",
            "VARCHAR, INTEGER or BIGINT",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (fromat = 'json')",
            "column 62",
            "no option fromat",
            "did you mean format?",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (nonsense = 1)",
            "column 62",
            "no option",
            "topic, format, key, partitions, max_future",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (format = 'avro')",
            "column 71",
            "avro",
            "format = 'json'",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (partitions = 0)",
            "column 75",
            "'0'",
            "from 1 to",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (partitions = -1)",
            "column 75",
            "'-'",
            "name = 'value'",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (key = 'ts', key = 'ts')",
            "column 74",
            "twice",
            "keep one",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts) WITH (max_future = '1 year')",
            "column 75",
            "no fixed length",
            "days",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a BLOB, WATERMARK FOR ts AS ts)",
            "column 34",
            "BLOB",
            "BOOLEAN, INTEGER",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a FLOAT, WATERMARK FOR ts AS ts)",
            "column 34",
            "FLOAT",
            "write DOUBLE",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a VARCHAR(10), WATERMARK FOR ts AS ts)",
            "column 34",
            "length",
            "write VARCHAR",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a DECIMAL(39,2), WATERMARK FOR ts AS ts)",
            "column 34",
            "does not exist",
            "1 to 38",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a DECIMAL(3,-2), WATERMARK FOR ts AS ts)",
            "column 34",
            "does not exist",
            "1 to 38",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a DATE, WATERMARK FOR ts AS ts)",
            "column 34",
            "DATE",
            "TIMESTAMP",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a INT DEFAULT 1, WATERMARK FOR ts AS ts)",
            "column 38",
            "DEFAULT",
            "name TYPE",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a INT PRIMARY KEY, WATERMARK FOR ts AS ts)",
            "column 38",
            "PRIMARY",
            "name TYPE",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, a, WATERMARK FOR ts AS ts)",
            "column 33",
            "type of column a",
            "name TYPE",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, TS INT, WATERMARK FOR ts AS ts)",
            "column 32",
            "twice",
            "keep one",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, window_end INT, WATERMARK FOR ts AS ts)",
            "column 32",
            "window",
            "another name",
        ),
        (
            "CREATE STREAM s (ts TIMESTAMP, WATERMARK FOR ts AS ts",
            "column 54",
            "end of the statement",
            "WATERMARK FOR",
        ),
        (
            "CREATE STREAM s\n(ts TIMESTAMP,\n  WATERMARK FOR ts AS ts) extra",
            "line 3, column 27",
            "extra",
            "';'",
        ),
        (
            "CREATE STREAM \"a b\" (ts TIMESTAMP, WATERMARK FOR ts AS ts)",
            "column 15",
            "cannot name",
            "letters",
        ),
        ("CREATE STREAM 5 (ts TIMESTAMP)", "column 15", "'5'", "CREATE STREAM name"),
        ("CREATE STREAM IF NOT EXISTS s (ts TIMESTAMP)", "column 15", "not needed", "leave it out"),
        ("CREATE OR REPLACE STREAM s (ts TIMESTAMP)", "column 8", "not needed", "leave it out"),
        ("CREATE TABLE s (ts TIMESTAMP)", "column 8", "'TABLE'", "CREATE STREAM"),
        ("SELECT 1", "column 1", "no queries", "headwater query"),
        ("ALTER STREAM s", "column 1", "what there is", "apply"),
        ("hello", "column 1", "'hello'", "CREATE STREAM"),
        ("CREATE STREAM s (ts TIMESTAMP, a 'x", "column 34", "Unterminated", ""),
    ];
    let mut wrong = Vec::new();
    for (sql, place, reason, remedy) in cases {
        let message = refusal(sql);
        let missing = [place, reason, remedy].into_iter().find(|part| !message.contains(**part));
        wrong.extend(missing.map(|part| format!("{sql}\n  says: {message}\n  without: {part}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_name_leaves_room_for_what_is_derived_from_it() {
    let named = |length: usize| {
        format!("CREATE STREAM {} (ts TIMESTAMP, WATERMARK FOR ts AS ts)", "s".repeat(length))
    };
    let stream = parse_stream(&named(180)).unwrap();
    assert!(stream.dead_letter_topic().as_str().ends_with(".dead-letters"));
    assert!(refusal(&named(181)).contains("at most 180"));
}

proptest! {
    /// For any bytes there is an answer and no panic.
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
        let _ = crate::parse(&text);
        let _ = crate::parse(&format!("CREATE STREAM s (ts TIMESTAMP, {text}"));
        let _ = crate::parse(&format!("CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS SELECT {text}"));
    }
}
