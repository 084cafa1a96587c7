use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array,
        StringArray, TimestampMicrosecondArray,
    },
    record_batch::RecordBatch,
    util::display::array_value_to_string,
};
use headwater_engine::plan::{AggregateFunction, ViewPlan, arrow_type};
use headwater_types::{DataType, StreamDefinition};

use crate::{parse_stream, parse_view, plan_view};

const FLIGHTS: &str = include_str!("../../../../examples/flights/stream.sql");
const V1: &str = include_str!("../../../../examples/flights/punctuality_v1.sql");
const V2: &str = include_str!("../../../../examples/flights/punctuality_v2.sql");

fn events() -> StreamDefinition {
    parse_stream(
        "CREATE STREAM s (k VARCHAR, i INTEGER, b BIGINT, x DOUBLE, d DECIMAL(10,2), t VARCHAR, f BOOLEAN, ts TIMESTAMP, \
         \"Mixed\" INTEGER, WATERMARK FOR ts AS ts) WITH (key = 'k')",
    )
    .unwrap()
}

fn try_plan(query: &str) -> Result<ViewPlan, crate::Diagnostic> {
    let sql = format!("CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS {query}");
    let view = parse_view(&sql).unwrap_or_else(|error| panic!("{query}\n{error}"));
    plan_view(&view, &events())
}

fn plan(query: &str) -> ViewPlan {
    try_plan(query).unwrap_or_else(|error| panic!("{query}\n{error}"))
}

/// Some rows of the stream, with extreme values.
fn rows(plan: &ViewPlan) -> RecordBatch {
    let all: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["one", "zwei", "três"])),
        Arc::new(Int32Array::from(vec![Some(1), None, Some(i32::MAX)])),
        Arc::new(Int64Array::from(vec![Some(i64::MAX), Some(-5), Some(0)])),
        Arc::new(Float64Array::from(vec![Some(0.5), None, Some(f64::NAN)])),
        Arc::new(
            Decimal128Array::from(vec![Some(1234), Some(-1), None])
                .with_precision_and_scale(10, 2)
                .unwrap(),
        ),
        Arc::new(StringArray::from(vec![Some("a"), None, Some("ß")])),
        Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
        Arc::new(
            TimestampMicrosecondArray::from(vec![0, 1_356_998_400_123_456, -1])
                .with_timezone("UTC"),
        ),
        Arc::new(Int32Array::from(vec![7, 8, 9])),
    ];
    let columns = plan.input.iter().map(|&place| Arc::clone(&all[place])).collect();
    RecordBatch::try_new(Arc::clone(&plan.input_schema), columns).unwrap()
}

fn show(array: &ArrayRef) -> Vec<String> {
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                "NULL".into()
            } else {
                array_value_to_string(array, row).unwrap()
            }
        })
        .collect()
}

/// The values of an expression over [`rows`], with the type in the plan. Each row alone must give
/// the same value.
fn values(expression: &str) -> Result<(DataType, Vec<String>), String> {
    let plan = plan(&format!("SELECT {expression} AS e, count(*) AS n FROM s GROUP BY 1"));
    let key = &plan.keys[0];
    let batch = rows(&plan);
    let array = key.expression.evaluate(&batch).map_err(|error| error.to_string())?;
    assert_eq!(array.data_type(), &arrow_type(key.data_type), "{expression}");
    let whole = show(&array);
    for row in 0..batch.num_rows() {
        let alone = key.expression.evaluate(&batch.slice(row, 1)).unwrap();
        assert_eq!(show(&alone), whole[row..=row], "{expression} in row {row}");
    }
    Ok((key.data_type, whole))
}

#[test]
fn the_flights_views_decode_only_what_they_need_and_keep_a_row_in_one_shard() {
    let stream = parse_stream(FLIGHTS).unwrap();
    let plan = plan_view(&parse_view(V1).unwrap(), &stream).unwrap();
    let decoded: Vec<&str> = plan.input.iter().map(|&place| &*stream.columns[place].name).collect();
    assert_eq!(decoded, ["origin", "scheduled", "dep_delay"]);
    assert!(plan.key_is_stream_key);
    assert_eq!(plan.key_names(), ["origin", "window_start"]);
    assert_eq!(plan.keys[0].expression.as_column(), Some(0), "a plain column is never evaluated");
    assert_eq!(plan.window.unwrap().size_micros, 3_600_000_000);
    let functions: Vec<AggregateFunction> =
        plan.aggregates.iter().map(|aggregate| aggregate.function).collect();
    use AggregateFunction::{Avg, CountStar, Max};
    assert_eq!(functions, [CountStar, CountStar, Avg, Max]);
    let output: Vec<String> =
        plan.output.iter().map(|c| format!("{} {} {:?}", c.name, c.data_type, c.key)).collect();
    assert_eq!(
        output,
        [
            "origin VARCHAR Some(0)",
            "window_start TIMESTAMP Some(1)",
            "window_end TIMESTAMP None",
            "departures BIGINT None",
            "on_time BIGINT None",
            "avg_delay DOUBLE None",
            "max_delay INTEGER None",
        ]
    );
    assert_eq!(plan.aggregates[3].argument.as_ref().unwrap().as_column(), Some(2));
    let plan = plan_view(&parse_view(V2).unwrap(), &stream).unwrap();
    assert_eq!(plan.output.len(), 8);
    assert_eq!(
        plan.aggregates[3].input_type,
        Some(DataType::Integer),
        "an average adds integers as integers"
    );
}

#[test]
fn a_plan_of_the_normal_form_is_the_plan_of_the_text() {
    let stream = parse_stream(FLIGHTS).unwrap();
    for text in [V1, V2] {
        let view = parse_view(text).unwrap();
        let stored =
            plan_view(&parse_view(&view.sql).unwrap(), &parse_stream(&stream.sql).unwrap());
        assert_eq!(
            format!("{:?}", plan_view(&view, &stream).unwrap()),
            format!("{:?}", stored.unwrap())
        );
    }
}

#[test]
fn expressions_have_the_types_and_values_that_sql_says() {
    let double = DataType::Double;
    let decimal = |precision, scale| DataType::Decimal { precision, scale };
    let cases: &[(&str, DataType, [&str; 3])] = &[
        ("k", DataType::Varchar, ["one", "zwei", "três"]),
        ("S.K", DataType::Varchar, ["one", "zwei", "três"]),
        ("upper(t)", DataType::Varchar, ["A", "NULL", "SS"]),
        ("\"Mixed\"", DataType::Integer, ["7", "8", "9"]),
        ("coalesce(i, -1) % 10", DataType::BigInt, ["1", "-1", "7"]),
        (
            "CASE WHEN i IS NULL THEN 'none' WHEN i > 1 THEN 'many' ELSE 'one' END",
            DataType::Varchar,
            ["one", "none", "many"],
        ),
        ("b / 2", DataType::BigInt, ["4611686018427387903", "-2", "0"]),
        ("x * 2", double, ["1.0", "NULL", "NaN"]),
        ("d + 0.5", double, ["12.84", "0.49", "NULL"]),
        ("CAST(d AS DECIMAL(12,1))", decimal(12, 1), ["12.3", "0.0", "NULL"]),
        ("CAST(i AS VARCHAR) || '!'", DataType::Varchar, ["1!", "NULL", "2147483647!"]),
        ("TRY_CAST(k AS INTEGER)", DataType::Integer, ["NULL", "NULL", "NULL"]),
        ("k LIKE '%e%'", DataType::Boolean, ["true", "true", "false"]),
        ("k IN ('one', 'x') AND f", DataType::Boolean, ["true", "false", "false"]),
        ("length(k)", DataType::Integer, ["3", "4", "4"]),
        ("EXTRACT(YEAR FROM ts)", DataType::Integer, ["1970", "2013", "1969"]),
        ("date_part('epoch', ts)", double, ["0.0", "1356998400.123456", "-1e-6"]),
        ("ts > TIMESTAMP '2000-01-01'", DataType::Boolean, ["false", "true", "false"]),
        (
            "date_part('hour', date_trunc('hour', ts) + INTERVAL '1 hour')",
            DataType::Integer,
            ["1", "1", "0"],
        ),
        ("nullif(k, 'one')", DataType::Varchar, ["NULL", "zwei", "três"]),
        ("round(abs(x), 1)", double, ["0.5", "NULL", "NaN"]),
        ("substr(k, 2, 2)", DataType::Varchar, ["ne", "we", "rê"]),
        ("regexp_replace(k, '[aeiou]', '_', 'g')", DataType::Varchar, ["_n_", "zw__", "três"]),
        ("1 + 1", DataType::BigInt, ["2", "2", "2"]),
        ("CAST(NULL AS INTEGER)", DataType::Integer, ["NULL", "NULL", "NULL"]),
    ];
    for (expression, data_type, expected) in cases {
        match values(expression) {
            Ok((found, values)) => {
                assert_eq!(found, *data_type, "{expression}");
                assert_eq!(values, *expected, "{expression}");
            }
            Err(error) => panic!("{expression}: {error}"),
        }
    }
}

#[test]
fn timestamps_are_microseconds_in_utc_whatever_made_them() {
    for expression in [
        "ts",
        "CAST(CAST(ts AS VARCHAR) AS TIMESTAMP)",
        "date_trunc('microsecond', ts)",
        "ts + INTERVAL '1 day' - INTERVAL '24 hours'",
        "ts AT TIME ZONE 'America/New_York'",
        "to_timestamp_micros(CAST(ts AS BIGINT))",
        "CASE WHEN true THEN ts END",
    ] {
        let plan = plan(&format!("SELECT {expression} AS e, count(*) FROM s GROUP BY 1"));
        assert_eq!(plan.keys[0].data_type, DataType::Timestamp, "{expression}");
        let array = plan.keys[0].expression.evaluate(&rows(&plan)).unwrap();
        let array = array.as_any().downcast_ref::<TimestampMicrosecondArray>().unwrap();
        assert_eq!(array.values(), &[0, 1_356_998_400_123_456, -1], "{expression}");
    }
}

#[test]
fn integers_that_overflow_and_divisions_by_zero_are_errors() {
    for (expression, part) in [
        ("b + 1", "overflow"),
        ("b * 2", "overflow"),
        ("-2 - b", "overflow"),
        ("1 + (b + 1) * 0", "overflow"),
        ("- (b - 9223372036854775807 - 1 - b * 0)", ""),
        ("10 / b", "divide by zero"),
        ("10 % b", "divide by zero"),
        ("CAST(b AS INTEGER)", "can't cast"),
        ("CAST(k AS INTEGER)", "cannot cast"),
        ("CAST(k AS TIMESTAMP)", "parsing timestamp"),
        ("CASE WHEN b = 0 THEN 1 / b ELSE 0 END", "divide by zero"),
        ("abs(CAST(b AS BIGINT)) + b", "overflow"),
    ] {
        let error = values(expression).unwrap_err();
        assert!(error.to_lowercase().contains(part), "{expression}: {error}");
        assert!(error.contains(": "), "{error} names the expression");
    }
    // i64::MIN comes from a row, so that constant folding cannot compute the result.
    let plan = plan("SELECT -b AS e, count(*) AS n FROM s GROUP BY 1");
    let ts: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("UTC"));
    let batch = RecordBatch::try_new(
        Arc::clone(&plan.input_schema),
        vec![Arc::new(Int64Array::from(vec![i64::MIN])), ts],
    );
    assert!(
        plan.keys[0]
            .expression
            .evaluate(&batch.unwrap())
            .unwrap_err()
            .to_string()
            .contains("verflow")
    );
    // A branch that is not taken is not evaluated.
    assert_eq!(values("CASE WHEN b <> 0 THEN 10 / b ELSE 0 END").unwrap().1, ["0", "-2", "0"]);
}

#[test]
fn aggregates_have_the_result_types_of_datafusion() {
    let aggregates = [
        ("count(*)", "BIGINT"),
        ("count(t)", "BIGINT"),
        ("sum(i)", "BIGINT"),
        ("sum(b)", "BIGINT"),
        ("sum(x)", "DOUBLE"),
        ("sum(d)", "DECIMAL(38,2)"),
        ("avg(i)", "DOUBLE"),
        ("avg(x)", "DOUBLE"),
        ("avg(d)", "DECIMAL(14,6)"),
        ("avg(CAST(d AS DECIMAL(38,36)))", "DECIMAL(38,38)"),
        ("min(t)", "VARCHAR"),
        ("max(ts)", "TIMESTAMP"),
        ("min(f)", "BOOLEAN"),
        ("max(d)", "DECIMAL(10,2)"),
        ("sum(i) * 1.5", "DOUBLE"),
        ("sum(b) / count(*)", "BIGINT"),
        ("coalesce(max(t), 'none')", "VARCHAR"),
        ("upper(k) || CAST(count(*) AS VARCHAR)", "VARCHAR"),
    ];
    for (aggregate, data_type) in aggregates {
        let plan = plan(&format!("SELECT k, {aggregate} AS e FROM s GROUP BY k"));
        assert_eq!(plan.output[1].data_type.to_string(), data_type, "{aggregate}");
    }
}

#[test]
fn equal_aggregates_are_kept_once_and_counts_of_what_is_never_null_count_rows() {
    let plan = plan(
        "SELECT k, sum(i) AS a, sum(i) + 1 AS b, count(*) AS c, count(k) AS d, count(1) AS e, count(i) AS f, \
         sum(i) FILTER (WHERE f) AS g FROM s GROUP BY k",
    );
    let functions: Vec<AggregateFunction> =
        plan.aggregates.iter().map(|aggregate| aggregate.function).collect();
    use AggregateFunction::{Count, CountStar, Sum};
    assert_eq!(functions[..2], [Sum, CountStar]);
    assert_eq!(functions.iter().filter(|function| **function == Sum).count(), 2);
    assert!(functions.contains(&Count));
    let counts_rows = |name: &str| {
        let place = plan.output.iter().position(|column| column.name == name).unwrap();
        let aggregate = plan.output[place].expression.as_column().unwrap() - 1;
        plan.aggregates[aggregate].function == CountStar
    };
    assert!(counts_rows("c") && counts_rows("d") && counts_rows("e"));
    assert!(!counts_rows("f"));
}

#[test]
fn keys_may_be_named_numbered_or_spelled_out() {
    for query in [
        "SELECT upper(t) AS u, count(*) AS n FROM s GROUP BY u",
        "SELECT upper(t) AS u, count(*) AS n FROM s GROUP BY 1",
        "SELECT upper(t) AS u, count(*) AS n FROM s GROUP BY upper(t)",
        "SELECT upper(t) AS u, count(*) AS n FROM s GROUP BY (upper(s.t))",
    ] {
        let plan = plan(query);
        assert_eq!(plan.key_names(), ["u"], "{query}");
        assert_eq!(plan.output[0].key, Some(0), "{query}");
        assert!(!plan.key_is_stream_key);
    }
    // A column of the stream takes precedence over a name of the select list, as in PostgreSQL.
    let error = try_plan("SELECT upper(t) AS k, count(*) AS n FROM s GROUP BY k").unwrap_err();
    assert!(error.reason.contains("the key k is not selected"), "{error}");
    let plan = plan("SELECT e.k AS who, upper(e.k) AS u, count(*) AS n FROM s AS e GROUP BY e.k");
    assert_eq!(plan.key_names(), ["who"]);
    assert!(plan.key_is_stream_key);
    assert_eq!(plan.output[1].key, None);
}

#[test]
fn a_view_without_keys_has_one_row_or_one_per_window() {
    assert_eq!(plan("SELECT count(*) AS n FROM s").key_names(), Vec::<String>::new());
    let windowed = plan(
        "SELECT window_start, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s', INTERVAL '250 ms') GROUP BY window_start",
    );
    assert_eq!(windowed.key_names(), ["window_start"]);
    let window = windowed.window.unwrap();
    assert_eq!((window.size_micros, window.offset_micros), (1_000_000, 250_000));
    assert_eq!(windowed.input, [7], "the event time is always decoded");
    let plain = plan(
        "SELECT k, window_end, date_part('minute', window_time) AS m, count(*) AS n \
        FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY k, window_start, window_end, window_time",
    );
    assert_eq!(plain.output[1].key, None);
}

#[test]
fn a_condition_is_boolean_and_sees_the_input_alone() {
    let plan = plan(
        "SELECT k, count(*) FILTER (WHERE b > 0) AS n FROM s WHERE x IS NOT NULL OR i = 1 GROUP BY k",
    );
    let batch = rows(&plan);
    let show_all = |expression: &Arc<dyn headwater_engine::plan::Expression>| {
        show(&expression.evaluate(&batch).unwrap())
    };
    assert_eq!(show_all(plan.filter.as_ref().unwrap()), ["true", "NULL", "true"]);
    assert_eq!(show_all(plan.aggregates[0].filter.as_ref().unwrap()), ["true", "false", "false"]);
    assert_eq!(plan.input, [0, 1, 2, 3, 7]);
}

/// Refusals that need the stream: the query, the text at the position, the reason, and the advice.
#[test]
fn what_cannot_be_planned_is_refused_with_place_reason_and_remedy() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("SELECT kk, count(*) AS n FROM s GROUP BY kk", "kk, c", "no column kk", "did you mean k?"),
        (
            "SELECT k, count(*) AS n FROM s WHERE zzzzzz > 1 GROUP BY k",
            "zzzzzz",
            "no column zzzzzz",
            "there are: k, i, b",
        ),
        (
            "SELECT k, sum(mixed) AS n FROM s GROUP BY k",
            "mixed",
            "no column mixed",
            "did you mean Mixed?",
        ),
        ("SELECT k, count(*) AS n FROM s GROUP BY t.k", "t.k", "there is no t", "s.column"),
        ("SELECT k, count(*) AS n FROM s AS e GROUP BY s.k", "s.k", "there is no s", "e.column"),
        ("SELECT k FROM s", "k FROM", "neither grouped by nor inside", "max(k)"),
        ("SELECT 1 AS one FROM s", "1 AS", "copy of its stream", "count(*)"),
        (
            "SELECT k, i, count(*) AS n FROM s GROUP BY k",
            "i, c",
            "i is neither grouped by",
            "add i to GROUP BY",
        ),
        (
            "SELECT count(*) AS n FROM s GROUP BY k",
            "k\0",
            "k is not selected",
            "add k to the select list",
        ),
        ("SELECT k, count(*) AS n FROM s GROUP BY k, k", "k\0", "twice", "keep one"),
        ("SELECT k, count(*) AS n FROM s GROUP BY k, 5", "5", "not a place", "from 1 to 2"),
        (
            "SELECT k, count(*) AS n FROM s GROUP BY k, n",
            "n\0",
            "GROUP BY cannot contain",
            "columns",
        ),
        (
            "SELECT k, count(*) AS n FROM s GROUP BY 'x'",
            "'x'",
            "one group of all",
            "columns to group by",
        ),
        (
            "SELECT k, count(*) AS n FROM s WHERE i GROUP BY k",
            "i G",
            "WHERE takes a condition, and this is INTEGER",
            "comparison",
        ),
        (
            "SELECT k, count(*) FILTER (WHERE i + 1) AS n FROM s GROUP BY k",
            "count",
            "FILTER takes a condition",
            "comparison",
        ),
        (
            "SELECT k, sum(t) AS n FROM s GROUP BY k",
            "sum",
            "sum takes a number, and this is VARCHAR",
            "CAST",
        ),
        (
            "SELECT k, avg(ts) AS n FROM s GROUP BY k",
            "avg",
            "avg takes a number, and this is TIMESTAMP",
            "CAST",
        ),
        (
            "SELECT k, max(CAST(ts AS DATE)) AS n FROM s GROUP BY k",
            "max",
            "cannot be DATE",
            "AS TIMESTAMP",
        ),
        ("SELECT k, max(ts) - min(ts) AS n FROM s GROUP BY k", "max", "cannot be", "epoch"),
        ("SELECT k, NULL AS n, count(*) AS c FROM s GROUP BY k", "NULL", "no type", "CAST(NULL AS"),
        (
            "SELECT CAST(ts AS DATE) AS day, count(*) AS c FROM s GROUP BY 1",
            "1\0",
            "cannot be DATE",
            "AS TIMESTAMP",
        ),
        (
            "SELECT k, max(9223372036854775807 + 1) AS n FROM s GROUP BY k",
            "max",
            "out of reach",
            "DECIMAL(38,0)",
        ),
        ("SELECT k, max(upper(k, k)) AS n FROM s GROUP BY k", "max", "upper", ""),
        ("SELECT k, max(k + 1.5) AS n FROM s GROUP BY k", "max", "", ""),
        (
            "SELECT k, window_start, count(*) AS n FROM s GROUP BY k, window_start",
            "window_start\0",
            "",
            "",
        ),
        (
            "SELECT k, window_start, count(*) AS n FROM s GROUP BY k",
            "window_start",
            "needs a window",
            "TUMBLE(s",
        ),
        (
            "SELECT k, count(*) AS n FROM TUMBLE(s, tz, INTERVAL '1 s') GROUP BY k",
            "tz",
            "not the event time of s",
            "TUMBLE(s, ts",
        ),
        (
            "SELECT k, count(*) AS n FROM TUMBLE(s, i, INTERVAL '1 s') GROUP BY k",
            "i, INT",
            "not the event time of s",
            "TUMBLE(s, ts",
        ),
        (
            "SELECT k, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY k",
            "GROUP",
            "must group by",
            "window_start, window_end",
        ),
        (
            "SELECT k, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY k, window_start",
            "GROUP",
            "window is not selected",
            "window_start or window_end",
        ),
        (
            "SELECT k, window_start AS w, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY k, window_start",
            "GROUP",
            "window is not selected",
            "without another name",
        ),
        (
            "SELECT k, window_end, count(*) AS window_start FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY k, window_end",
            "count",
            "its own column",
            "another name",
        ),
        (
            "SELECT window_start, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') WHERE window_start > ts GROUP BY 1",
            "window_start >",
            "WHERE cannot use",
            "event time",
        ),
        (
            "SELECT window_start, max(window_end) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY 1",
            "max",
            "window's columns",
            "event time",
        ),
        (
            "SELECT window_start, date_trunc('day', window_start) AS d, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 s') GROUP BY 1, 2",
            "2\0",
            "cannot compute",
            "window_start",
        ),
    ];
    let mut wrong = Vec::new();
    for (query, at, reason, remedy) in cases {
        let Err(error) = try_plan(query) else {
            wrong.push(format!("{query}\n  is accepted"));
            continue;
        };
        let message = error.to_string();
        let prefix = "CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS ".len();
        let place = match at.strip_suffix('\0') {
            Some(at) => query.rfind(at),
            None => query.find(at),
        };
        let place = format!("line 1, column {}: ", prefix + place.expect(query) + 1);
        let missing = [&*place, reason, remedy].into_iter().find(|part| !message.contains(part));
        wrong.extend(missing.map(|part| format!("{query}\n  says: {message}\n  without: {part}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_unknown_stream_is_refused_with_the_streams_that_there_are() {
    let view = parse_view(V1).unwrap();
    let stream = events();
    assert!(plan_view(&view, &stream).unwrap_err().reason.contains("reads flights, not s"));
    let names = [headwater_types::Name::new("flight").unwrap()];
    let message = view.unknown_stream(&names).to_string();
    assert!(message.contains("line 15, column 13: there is no stream flights"), "{message}");
    assert!(message.contains("did you mean flight?"), "{message}");
    assert!(view.unknown_stream([]).to_string().contains("CREATE STREAM first"));
}

#[test]
fn an_expression_of_the_greatest_size_is_planned_and_evaluated_on_a_small_stack() {
    let long = "i + ".repeat(400);
    let plan = plan(&format!("SELECT k, max({long}i) AS n FROM s GROUP BY k"));
    let batch = rows(&plan).slice(0, 1);
    let argument = Arc::clone(plan.aggregates[0].argument.as_ref().unwrap());
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let evaluated = thread.spawn(move || show(&argument.evaluate(&batch).unwrap())).unwrap();
    assert_eq!(evaluated.join().unwrap(), ["401"]);
}
