use proptest::prelude::*;

use crate::{Diagnostics, Statement, differences, parse, parse_view};

const V1: &str = include_str!("../../../../examples/flights/punctuality_v1.sql");
const V2: &str = include_str!("../../../../examples/flights/punctuality_v2.sql");

fn view(query: &str) -> String {
    format!("CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS {query}")
}

fn normal(sql: &str) -> String {
    match parse_view(sql) {
        Ok(view) => view.sql,
        Err(error) => panic!("{sql}\n{error}"),
    }
}

#[test]
fn the_normal_form_spells_out_every_default_in_one_order() {
    let sql = "create materialized view Punctual as select ORIGIN, window_start, count(*) n \
        from tumble(table Flights, descriptor(Scheduled), interval '60' minute) f \
        where dep_delay::int > 15 group by Origin, WINDOW_START";
    assert_eq!(
        normal(sql),
        "CREATE MATERIALIZED VIEW punctual WITH (allowed_lateness = '0 seconds', retention = 'forever') AS\n\
         SELECT origin,\n  window_start,\n  count(*) AS n\n\
         FROM TUMBLE(flights, scheduled, INTERVAL '1 hour') AS f\n\
         WHERE CAST(dep_delay AS INTEGER) > 15\n\
         GROUP BY origin, window_start\n\
         EMIT ON UPDATE"
    );
}

#[test]
fn the_normal_form_ignores_space_comments_letter_case_and_the_order_of_options() {
    let one = "CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '600 seconds', retention = '30 days') AS \
        SELECT a, sum(b) FILTER (WHERE c IS NOT NULL) AS \"Total\", count(*) AS count FROM s GROUP BY a";
    let other = "/* x */ create  materialized\nview V with (RETENTION = interval '720' hour, Allowed_Lateness = '10 minutes') as\n\
        select A, SUM(\"b\") filter (where C is not null) as \"Total\", -- y\n Count(*) from S\n group by A emit changes;";
    assert_eq!(normal(one), normal(other));
}

#[test]
fn the_normal_form_is_its_own_normal_form() {
    let queries = [
        "SELECT a, count(*) FROM s GROUP BY a",
        "SELECT s.\"A b\", count(*) FROM s GROUP BY s.\"A b\"",
        "SELECT upper(a) AS k, sum(-(-b)) AS n, min(- -b) AS m FROM s GROUP BY upper(a)",
        "SELECT CASE WHEN a = 'x''y' THEN 1 WHEN a LIKE 'b%' ESCAPE '!' THEN 2 ELSE NULL END AS k, max(b % 2) FROM s GROUP BY 1",
        "SELECT EXTRACT(HOUR FROM ts) AS h, avg(b::double) FROM s GROUP BY h",
        "SELECT substr(a, 1, 2) AS p, substring(a from 2 for 1) AS q, trim(both ' ' from a) AS t, count(1) FROM s GROUP BY 1, 2, 3",
        "SELECT date_trunc('day', ts) AS day, count(*) FILTER (WHERE ts > TIMESTAMP '2020-01-01' - INTERVAL '1' day) AS n FROM s GROUP BY day",
        "SELECT position('x' in a) AS p, overlay(a placing 'b' from 1) AS o, ceil(b) AS c, count(*) FROM s GROUP BY 1, 2, 3",
        "SELECT a IS DISTINCT FROM b AS d, NOT a IN ('x', 'y') AS i, b NOT BETWEEN 1 AND 2 AS n, count(*) FROM s GROUP BY 1, 2, 3",
        "SELECT E'tab\\there' AS k, $$dollar$$ AS d, TRY_CAST(a AS decimal(10,2)) AS t, a ~ '^x' AS r, count(*) FROM s GROUP BY 1, 2, 3, 4",
        "SELECT ts AT TIME ZONE 'Europe/Berlin' AS l, a || 'x' AS c, count(*) FROM s GROUP BY 1, 2",
        "SELECT \"select\", \"window\", date, count(*) AS \"from\" FROM s GROUP BY 1, 2, 3",
        "SELECT window_start, count(*) FROM TUMBLE(s, ts, INTERVAL '90 minutes', INTERVAL '-15 minutes') GROUP BY window_start",
    ];
    for query in queries {
        let sql = normal(&view(query));
        assert_eq!(normal(&sql), sql);
    }
}

#[test]
fn the_example_views_differ_in_what_the_correction_says() {
    let (one, two) = (parse_view(V1).unwrap(), parse_view(V2).unwrap());
    assert_eq!(one.name, two.name);
    assert_eq!(one.allowed_lateness_micros, Some(2 * 86_400_000_000));
    assert_eq!(differences(&one, &one), Vec::<String>::new());
    assert_eq!(
        differences(&one, &two),
        [
            "column departures: count(*) -> count(*) FILTER (WHERE departed IS NOT NULL)",
            "column on_time: count(*) FILTER (WHERE coalesce(dep_delay, 0) <= 15) -> \
             count(*) FILTER (WHERE departed IS NOT NULL AND dep_delay <= 15)",
            "column avg_delay: avg(coalesce(dep_delay, 0)) -> avg(dep_delay)",
            "column cancelled is new: count(*) FILTER (WHERE departed IS NULL)",
        ]
    );
}

#[test]
fn differences_name_windows_options_and_conditions() {
    let old = parse_view(
        "CREATE MATERIALIZED VIEW v AS SELECT a, window_start, count(*) AS n, sum(b) AS s \
         FROM TUMBLE(s, ts, INTERVAL '1 minute') WHERE b > 1 GROUP BY a, window_start",
    );
    let new = parse_view(
        "CREATE MATERIALIZED VIEW v WITH (retention = '1 day', allowed_lateness = '1 hour') AS \
         SELECT a, window_start, count(*) AS n FROM TUMBLE(s, ts, INTERVAL '1 hour') GROUP BY 1, window_start",
    );
    assert_eq!(
        differences(&old.unwrap(), &new.unwrap()),
        [
            "FROM: TUMBLE(s, ts, INTERVAL '1 minute') -> TUMBLE(s, ts, INTERVAL '1 hour')",
            "WHERE: b > 1 -> none",
            "GROUP BY: a, window_start -> 1, window_start",
            "allowed_lateness: 0 seconds -> 1 hour",
            "retention: forever -> 1 day",
            "column s is gone: sum(b)",
        ]
    );
}

#[test]
fn a_file_holds_any_number_of_statements_and_all_that_is_wrong_comes_at_once() {
    let stream = include_str!("../../../../examples/flights/stream.sql");
    let statements = parse(&format!("{stream};;\n-- nothing here\n;{V1}\n{V2}")).unwrap();
    assert!(matches!(
        statements.as_slice(),
        [Statement::Stream(_), Statement::View(_), Statement::View(_)]
    ));
    assert!(parse("").unwrap().is_empty());
    assert!(parse(" -- only a comment").unwrap().is_empty());

    let text =
        format!("CREATE STREAM s (ts TIMESTAMP);\n{V1};\nCREATE MATERIALIZED VIEW v AS SELECT 1");
    let Diagnostics(found) = parse(&text).unwrap_err();
    let lines: Vec<u32> = found.iter().map(|diagnostic| diagnostic.line).collect();
    assert_eq!(lines.len(), 2, "{found:?}");
    assert_eq!(lines[0], 1);
    assert!(lines[1] > 10);
}

fn refusal(sql: &str) -> String {
    match parse_view(sql) {
        Ok(view) => panic!("{sql}\nis accepted as {}", view.sql),
        Err(Diagnostics(diagnostics)) => {
            assert_eq!(diagnostics.len(), 1, "{diagnostics:?}");
            diagnostics[0].to_string()
        }
    }
}

/// Refusals: the query, the text at the position, the reason, and the advice.
#[test]
fn what_a_view_cannot_be_is_refused_with_place_reason_and_remedy() {
    let cases: &[(&str, &str, &str, &str)] = &[
        ("SELECT a, count(*) FROM s JOIN t ON true GROUP BY a", "JOIN", "joins", "event"),
        ("SELECT a, count(*) FROM s, t GROUP BY a", "FROM", "joins", "FROM stream"),
        (
            "SELECT a, count(*) FROM (SELECT * FROM s) GROUP BY a",
            "FROM",
            "subqueries",
            "FROM stream",
        ),
        (
            "SELECT a, count(*) FROM s WHERE a IN (SELECT 1) GROUP BY a",
            "a IN",
            "subqueries",
            "view per step",
        ),
        ("SELECT a, (SELECT 1) AS x FROM s GROUP BY a", "SELECT 1", "subqueries", "view per step"),
        (
            "WITH x AS (SELECT 1) SELECT a, count(*) FROM x GROUP BY a",
            "WITH x",
            "common table",
            "without WITH",
        ),
        (
            "SELECT a, count(*) FROM s GROUP BY a UNION ALL SELECT 1, 2",
            "UNION",
            "UNION",
            "one view per SELECT",
        ),
        ("SELECT DISTINCT a FROM s", "DISTINCT", "DISTINCT", "GROUP BY"),
        ("SELECT a, count(*) FROM s GROUP BY a ORDER BY a", "ORDER", "no order", "query"),
        ("SELECT a, count(*) FROM s GROUP BY a LIMIT 5", "LIMIT", "all of its rows", "query"),
        (
            "SELECT a, count(*) FROM s GROUP BY a HAVING count(*) > 1",
            "HAVING",
            "HAVING",
            "filter when you query",
        ),
        ("SELECT a, sum(b) OVER (PARTITION BY a) FROM s GROUP BY a", "sum", "OVER", "GROUP BY"),
        (
            "SELECT a, row_number() AS r FROM s GROUP BY a",
            "row_number",
            "window function",
            "GROUP BY",
        ),
        ("SELECT a, count(*) FROM s GROUP BY a QUALIFY true", "QUALIFY", "QUALIFY", "query"),
        ("SELECT * FROM s GROUP BY a", "SELECT", "SELECT *", "list the keys"),
        ("SELECT a, a FROM s GROUP BY a", "a FROM", "two columns are called a", "AS another_name"),
        (
            "SELECT a, count(*), count(b) FROM s GROUP BY a",
            "count(b)",
            "two columns are called count",
            "AS another_name",
        ),
        ("SELECT a, sum(b) + 1 FROM s GROUP BY a", "sum(b) + 1", "no name", "AS name"),
        (
            "SELECT a, count(*) FROM HOP(s, ts, INTERVAL '1 s', INTERVAL '2 s') GROUP BY a",
            "HOP",
            "HOP windows",
            "TUMBLE",
        ),
        (
            "SELECT a, count(*) FROM CUMULATE(TABLE s, DESCRIPTOR(ts), INTERVAL '1 s', INTERVAL '2 s') GROUP BY a",
            "CUMULATE",
            "CUMULATE",
            "TUMBLE",
        ),
        (
            "SELECT a, count(*) FROM session(s, ts, INTERVAL '1 s') GROUP BY a",
            "session",
            "SESSION",
            "TUMBLE",
        ),
        (
            "SELECT a, count(*) FROM other(s, ts, INTERVAL '1 s') GROUP BY a",
            "other",
            "no window function other",
            "TUMBLE",
        ),
        (
            "SELECT a, count(*) FROM TUMBLE(s, ts) GROUP BY a",
            "TUMBLE",
            "takes a stream",
            "TUMBLE(stream, time",
        ),
        (
            "SELECT a, count(*) FROM TUMBLE(s, ts, 5) GROUP BY a",
            "5",
            "not a length",
            "INTERVAL '1 minute'",
        ),
        (
            "SELECT a, count(*) FROM TUMBLE(s, ts, INTERVAL '0 s') GROUP BY a",
            "'0 s'",
            "contains nothing",
            "above zero",
        ),
        (
            "SELECT a, count(*) FROM TUMBLE(s, ts, INTERVAL '-1 s') GROUP BY a",
            "'-1 s'",
            "contains nothing",
            "above zero",
        ),
        (
            "SELECT a, count(*) FROM TUMBLE(s, ts, INTERVAL '1 month') GROUP BY a",
            "'1 month'",
            "no fixed length",
            "days",
        ),
        (
            "SELECT a, count(*) FROM s GROUP BY a EMIT ON WINDOW CLOSE",
            "EMIT",
            "not supported yet",
            "EMIT ON UPDATE",
        ),
        (
            "SELECT a, count(*) FROM s GROUP BY a EMIT FINAL",
            "EMIT",
            "not supported yet",
            "EMIT ON UPDATE",
        ),
        (
            "SELECT a, count(*) FROM s GROUP BY a EMIT SOMETIMES",
            "SOMETIMES",
            "expected ON",
            "EMIT ON UPDATE",
        ),
        (
            "SELECT a, count(DISTINCT b) FROM s GROUP BY a",
            "count",
            "DISTINCT",
            "group by the column",
        ),
        (
            "SELECT a, median(b) FROM s GROUP BY a",
            "median",
            "not supported yet",
            "count, sum, min, max or avg",
        ),
        (
            "SELECT a, approx_distinct(b) FROM s GROUP BY a",
            "approx_distinct",
            "not supported yet",
            "count, sum",
        ),
        (
            "SELECT a, array_agg(b) FROM s GROUP BY a",
            "array_agg",
            "not supported yet",
            "count, sum",
        ),
        (
            "SELECT a, count(*) FROM s WHERE ts < now() GROUP BY a",
            "now",
            "replayed",
            "event-time column",
        ),
        (
            "SELECT a, count(*) FROM s WHERE ts < CURRENT_TIMESTAMP GROUP BY a",
            "CURRENT_TIMESTAMP",
            "replayed",
            "event-time",
        ),
        (
            "SELECT a, count(*) FROM s WHERE ts < current_date GROUP BY a",
            "current_date",
            "replayed",
            "event-time",
        ),
        ("SELECT a, max(random()) FROM s GROUP BY a", "random", "replayed", "producer"),
        ("SELECT uuid() AS u, count(*) FROM s GROUP BY u", "uuid", "replayed", "producer"),
        ("SELECT a, max(version()) FROM s GROUP BY a", "version", "replayed", "producer"),
        (
            "SELECT uper(a) AS u, count(*) FROM s GROUP BY u",
            "uper",
            "no function uper",
            "did you mean upper?",
        ),
        (
            "SELECT a, count(*) FROM s WHERE sum(b) > 1 GROUP BY a",
            "sum",
            "WHERE cannot contain",
            "FILTER",
        ),
        ("SELECT a, sum(max(b)) FROM s GROUP BY a", "max", "inside of another", "one aggregate"),
        (
            "SELECT a, count(*) FILTER (WHERE sum(b) > 1) FROM s GROUP BY a",
            "sum",
            "inside of another",
            "one aggregate",
        ),
        ("SELECT a, sum(b, c) FROM s GROUP BY a", "sum", "one argument", "sum(x)"),
        (
            "SELECT a, count(*) FROM s GROUP BY ROLLUP (a)",
            "a)",
            "grouping sets",
            "one view per grouping",
        ),
        ("SELECT a, count(*) FROM s GROUP BY ALL", "GROUP", "GROUP BY ALL", "list the columns"),
        ("SELECT a, max($1) FROM s GROUP BY a", "$1", "parameters", "write the value"),
        ("SELECT a, max(b ^ 2) FROM s GROUP BY a", "b ^", "operator", "power"),
        (
            "SELECT a, max(CAST(b AS FLOAT)) FROM s GROUP BY a",
            "b AS FLOAT",
            "FLOAT",
            "write DOUBLE",
        ),
        (
            "SELECT a, max(ARRAY[b]) FROM s GROUP BY a",
            "",
            "not supported in a view",
            "columns, operators",
        ),
        (
            "SELECT a, count(*) FROM s TABLESAMPLE BERNOULLI (10) GROUP BY a",
            "FROM",
            "not support",
            "FROM stream",
        ),
        ("SELECT a.b.c, count(*) FROM s GROUP BY 1", "a.b", "more parts", "alias.column"),
        ("SELECT a, FROM s GROUP BY a", "s G", "expected an expression, found FROM", ""),
        ("SELECT a, count(*) FROM s GROUP a", "GROUP", "does not belong here", ""),
        ("VALUES (1)", "VALUES", "expected SELECT", "AS SELECT"),
    ];
    let mut wrong = Vec::new();
    for (query, at, reason, remedy) in cases {
        let sql = view(query);
        let message = refusal(&sql);
        let place = match at.strip_suffix('\0') {
            Some(at) => query.rfind(at),
            None => query.find(at),
        };
        let start = sql.len() - query.len();
        let place = format!("line 1, column {}: ", start + place.unwrap() + 1);
        let place = if at.is_empty() { "line 1, column " } else { &*place };
        wrong.extend(missing(query, &message, &[place, reason, remedy]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The parts that a message should contain but does not.
fn missing(sql: &str, message: &str, parts: &[&str]) -> Option<String> {
    let missing = parts.iter().find(|part| !message.contains(**part))?;
    Some(format!("{sql}\n  says: {message}\n  without: {missing}"))
}

#[test]
fn options_that_contradict_each_other_or_are_missing_are_refused() {
    let query = "SELECT a, count(*) FROM s GROUP BY a";
    let cases = [
        (
            format!("CREATE MATERIALIZED VIEW v AS {query}"),
            "column 26",
            "how long it keeps a row",
            "retention = 'forever'",
        ),
        (
            format!(
                "CREATE MATERIALIZED VIEW v WITH (retention = '1 day', allowed_lateness = '2 days') AS {query}"
            ),
            "column 46",
            "less than allowed_lateness",
            "'2 days' or more",
        ),
        (
            format!("CREATE MATERIALIZED VIEW v WITH (retention = '0 s') AS {query}"),
            "column 46",
            "keep nothing",
            "forever",
        ),
        (
            format!("CREATE MATERIALIZED VIEW v WITH (retention = '-1 s') AS {query}"),
            "column 46",
            "keep nothing",
            "forever",
        ),
        (
            format!("CREATE MATERIALIZED VIEW v WITH (retention = 'always') AS {query}"),
            "column 46",
            "not a length",
            "10 minutes",
        ),
        (
            format!(
                "CREATE MATERIALIZED VIEW v WITH (allowed_lateness = '-1 s', retention = 'forever') AS {query}"
            ),
            "column 53",
            "less than 0 seconds",
            "longer",
        ),
        (
            format!(
                "CREATE MATERIALIZED VIEW v WITH (output = 'x', retention = 'forever') AS {query}"
            ),
            "column 43",
            "not supported yet",
            "leave output out",
        ),
        (
            format!("CREATE MATERIALIZED VIEW v WITH (retain = '1 day') AS {query}"),
            "column 34",
            "no option retain",
            "retention",
        ),
        (
            format!("CREATE MATERIALIZED VIEW v\nWITH (partitions = 3) AS {query}"),
            "line 2, column 7",
            "no option partitions",
            "allowed_lateness, retention, output",
        ),
        (format!("CREATE VIEW v AS {query}"), "column 8", "always materialized", "MATERIALIZED"),
        (
            format!("CREATE MATERIALIZED VIEW v (a) AS {query}"),
            "column 28",
            "expected AS",
            "AS SELECT",
        ),
    ];
    let mut wrong = Vec::new();
    for (sql, place, reason, remedy) in cases {
        wrong.extend(missing(&sql, &refusal(&sql), &[place, reason, remedy]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn text_of_any_depth_is_answered_and_never_overflows_the_stack() {
    let deep = |open: &str, inner: &str, close: &str, times: usize| {
        view(&format!(
            "SELECT a, max({}{inner}{}) AS m FROM s GROUP BY a",
            open.repeat(times),
            close.repeat(times)
        ))
    };
    for sql in [
        deep("(", "b", ")", 100_000),
        deep("(", "b", "", 20_000),
        deep("abs(", "b", ")", 5_000),
        deep("CASE WHEN a THEN ", "b", " END", 5_000),
        deep("- ", "b", "", 20_000),
        deep("NOT ", "b", "", 20_000),
        deep("b + ", "b", "", 20_000),
        deep("INTERVAL ", "b", "", 20_000),
        deep("", "b", " IS NULL", 20_000),
        deep("", "b", "::int", 20_000),
        deep("", "b", "[1]", 20_000),
        view(&"(".repeat(100_000)),
        format!("CREATE STREAM s ({}", "(".repeat(100_000)),
        format!("CREATE STREAM s (a {}", "ARRAY<".repeat(40_000)),
        "x".repeat(2 << 20),
    ] {
        let message = parse(&sql).unwrap_err().to_string();
        assert!(message.starts_with("line 1, column "), "{message}");
        assert!(message.len() < 2_000, "{}", message.len());
    }
    // Realistic nesting is accepted.
    normal(&deep("(", "b", ")", 40));
    normal(&deep("b + ", "b", "", 400));
    normal(&deep("CASE WHEN b = 1 THEN ", "b", " END", 40));
}

proptest! {
    /// Valid words in any order get an answer and cause no panic.
    #[test]
    fn no_order_of_words_makes_the_parser_panic(words in proptest::collection::vec(prop::sample::select(vec![
        "SELECT", "FROM", "WHERE", "GROUP", "BY", "TUMBLE", "(", ")", ",", "a", "'x'", "1", "count", "*", "INTERVAL",
        "TABLE", "DESCRIPTOR", "EMIT", "ON", "UPDATE", "CHANGES", "AS", "CASE", "WHEN", "THEN", "END", "FILTER", "=",
        "NOT", "NULL", "CAST", "::", "int", "+", "-", ".", "\"q\"", "OVER", "DISTINCT", "window_start", "CREATE",
    ]), 0..40)) {
        let _ = parse(&view(&words.join(" ")));
        let _ = parse(&view(&format!("SELECT {} GROUP BY a", words.join(" "))));
    }
}
