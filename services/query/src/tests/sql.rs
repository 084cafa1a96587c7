//! `Query`.

use super::*;

#[tokio::test]
async fn sql_reads_views_with_all_that_datafusion_can() {
    let mut fixture = Fixture::start().await;
    let regions = fixture.create(PER_REGION).await;
    let kinds = fixture.create(PER_KIND).await;
    for minute in 0..4 {
        fixture.order("north", "book", minute, minute).await;
        fixture.order("south", "pen", 10 * minute, minute).await;
    }
    fixture.process(regions);
    fixture.process(kinds);

    let total = "SELECT region, sum(orders) AS orders, sum(price) FROM per_region GROUP BY region ORDER BY region";
    assert_eq!(fixture.rows(total).await, ["north 4 7.00", "south 4 61.00"]);
    assert_eq!(fixture.rows("SELECT count(*) FROM per_region").await, ["8"]);
    let pruned = "SELECT orders, amount FROM per_region
        WHERE region = 'south' AND window_start >= '2020-01-01T00:01:00Z' AND window_start < '2020-01-01T00:03:00Z'";
    assert_eq!(fixture.rows(pruned).await, ["1 10", "1 20"]);
    assert_eq!(
        fixture.rows("SELECT amount FROM per_region WHERE 'south' = region LIMIT 2").await,
        ["0", "10"]
    );
    let joined = "SELECT a.window_start, a.amount + b.amount FROM per_region a
        JOIN per_region b ON a.window_start = b.window_start AND a.region < b.region ORDER BY 1";
    assert_eq!(fixture.rows(joined).await, ["+0 0", "+1 11", "+2 22", "+3 33"]);
    let subquery = "SELECT kind FROM per_kind WHERE amount = (SELECT max(amount) FROM per_kind)";
    assert_eq!(fixture.rows(subquery).await, ["pen"]);

    let two = "SELECT k.orders FROM per_kind k, per_region r LIMIT 1";
    let parts = fixture.sql(two).await.unwrap();
    let views: Vec<&str> =
        parts[0].provenance.iter().map(|provenance| provenance.view.as_str()).collect();
    assert_eq!(views.len(), 2);
    assert!(views.contains(&"per_kind") && views.contains(&"per_region"));

    let plan =
        fixture.rows("EXPLAIN SELECT * FROM per_region WHERE region = 'north'").await.join("\n");
    assert!(plan.contains("ViewScan: view=per_region") && plan.contains("keys=range"), "{plan}");
}

#[tokio::test]
async fn sql_values_of_every_type_travel_exactly() {
    let fixture = Fixture::start().await;
    let rows = fixture
        .rows(
            "SELECT true, CAST(7 AS TINYINT), CAST(-9223372036854775808 AS BIGINT), CAST(1.5 AS DOUBLE),
             CAST('12345678901234567890.123456789' AS DECIMAL(38,9)), 'ü', NULL, DATE '2020-02-29',
             TIMESTAMP '2020-01-01T00:02:00Z', CAST(18446744073709551615 AS BIGINT UNSIGNED), INTERVAL '1 day'",
        )
        .await;
    let expected = "true 7 -9223372036854775808 1.5 12345678901234567890.123456789 ü NULL 2020-02-29 +2 \
                    18446744073709551615";
    assert!(rows[0].starts_with(expected), "{rows:?}");
}

#[tokio::test]
async fn anything_but_one_select_is_refused() {
    let mut fixture = Fixture::start().await;
    fixture.create(PER_REGION).await;
    for (sql, reason) in [
        ("INSERT INTO per_region VALUES (1)", "INSERT"),
        ("DROP VIEW per_region", "DROP"),
        ("CREATE TABLE x AS SELECT 1", "CREATE"),
        ("COPY per_region TO 'x.csv'", "COPY"),
        ("SET datafusion.execution.batch_size = 1", "SET"),
        ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN ANALYZE"),
        ("SHOW TABLES", "SHOW"),
        ("SELECT 1; SELECT 2", "more than one statement"),
        ("SELECT * INTO y FROM per_region", ""),
        ("SELECT orders FROM '/etc/passwd'", "there are: per_region"),
        ("SELECT orders FROM a.b", "there are: per_region"),
        ("SELECT odrers FROM per_region", "orders"),
        ("SELECT", ""),
        ("WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT * FROM n", ""),
    ] {
        let error = fixture.sql(sql).await.expect_err(sql);
        assert!(matches!(error.code(), Code::InvalidArgument | Code::NotFound), "{sql}: {error:?}");
        assert!(error.message().contains(reason), "{sql}: {}", error.message());
    }
}

#[tokio::test]
async fn a_query_that_needs_too_much_memory_or_time_is_stopped() {
    let limited =
        Config { memory_limit: headwater_service::config::ByteSize::kib(4), ..Config::default() };
    let mut fixture = Fixture::start_with(limited).await;
    let generation = fixture.create(PER_REGION).await;
    for minute in 0..200 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(generation);
    let sorted = "SELECT * FROM per_region ORDER BY amount DESC";
    assert_eq!(fixture.sql(sorted).await.unwrap_err().code(), Code::ResourceExhausted);

    let hasty = Config { max_duration: Duration::from_millis(100), ..Config::default() };
    let mut fixture = Fixture::start_with(hasty).await;
    let generation = fixture.create(PER_REGION).await;
    for minute in 0..250 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(generation);
    // Four thousand million pairs: no machine counts them in time.
    let cross = "SELECT count(*) FROM per_region a, per_region b, per_region c, per_region d
        WHERE a.amount + b.amount + c.amount + d.amount = -1";
    assert_eq!(fixture.sql(cross).await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn an_arrow_answer_is_one_ipc_stream() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    for minute in 0..5 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(generation);
    let request = QueryRequest {
        sql: "SELECT region, price FROM per_region".into(),
        format: ResultFormat::Arrow as i32,
        freshness: None,
    };
    let parts = fixture.sql_with(request).await.unwrap();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.arrow.clone()).collect();
    let batches: Vec<_> =
        StreamReader::try_new(bytes.as_slice(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 5);
    assert_eq!(batches[0].num_columns(), 2);
    assert!(parts.iter().all(|part| part.rows.is_empty()));
}
