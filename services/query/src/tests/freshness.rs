//! Tokens, staleness and waiting.

use super::*;

#[tokio::test]
async fn an_answer_without_a_token_has_what_was_committed_max_staleness_before() {
    let key = vec![text("north"), minute(0)];
    for (max_staleness, seen) in
        [(Duration::ZERO, "north +0 2 4 4.50"), (Duration::from_secs(3_600), "north +0 1 3 3.25")]
    {
        let mut bench = Bench::start_with(Config { max_staleness, ..Config::default() }).await;
        let generation = bench.create(PER_REGION).await;
        bench.order("north", "book", 3, 0).await;
        bench.process(generation);
        bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
        bench.order("north", "book", 1, 0).await;
        bench.process(generation);
        let answer = bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
        assert_eq!(show(&answer.row.unwrap()), seen, "{max_staleness:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_shard_gets_there_and_not_before() {
    let mut bench = Bench::start_with(Config {
        max_staleness: Duration::from_secs(3_600),
        ..Config::default()
    })
    .await;
    let generation = bench.create(PER_REGION).await;
    bench.process(generation);
    let key = vec![text("north"), minute(0)];
    assert!(bench.get("per_region", key.clone(), within(1_000)).await.unwrap().row.is_none());
    let token = bench.order("north", "book", 3, 0).await;
    let request = GetRequest { view: "per_region".into(), key, freshness: Some(after(&token)) };
    let service = bench.rpc.0.clone();

    let waiting = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(async move { service.get(&request).await })
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    bench.process(generation);

    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(show(&answer.row.unwrap()), "north +0 1 3 3.25");
}

#[tokio::test]
async fn a_wait_that_is_too_long_says_what_was_wanted_and_what_is_there() {
    let mut bench = Bench::start().await;
    let generation = bench.create(PER_REGION).await;
    bench.process(generation);
    let token = bench.order("north", "book", 3, 0).await;
    let (partition, position) = token.positions.first_key_value().unwrap();
    let freshness = Freshness { timeout_ms: 30, ..after(&token) };

    let error =
        bench.get("per_region", vec![text("north"), minute(0)], freshness).await.unwrap_err();

    assert_eq!(error.code(), Code::DeadlineExceeded);
    let wanted = format!(
        "the token asks for position {position} in partition {partition}, and its shard is at 0"
    );
    assert!(error.message().contains(&wanted), "{}", error.message());
}

#[tokio::test]
async fn a_token_of_another_stream_or_partition_is_refused() {
    let mut bench = Bench::start().await;
    bench.create(PER_REGION).await;
    for (token, reason) in [
        (
            "visits@0:1",
            "the token visits@0:1 is for stream visits, but view per_region reads orders",
        ),
        ("orders@7:1", "names partition 7, but stream orders has 2 partitions"),
        ("orders", "is not a token"),
    ] {
        let freshness = Freshness { after: vec![token.into()], ..within(1_000) };
        let error = bench
            .get("per_region", vec![text("n"), minute(0)], freshness.clone())
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(reason), "{}", error.message());
        let sql = QueryRequest {
            sql: "SELECT * FROM per_region".into(),
            freshness: Some(freshness),
            ..QueryRequest::default()
        };
        assert_eq!(bench.sql_with(sql).await.unwrap_err().code(), Code::InvalidArgument, "{token}");
    }
}

#[tokio::test]
async fn a_shard_that_does_not_exist_yet_is_waited_for() {
    let mut bench = Bench::start().await;
    let generation = bench.declare(PER_REGION).await;
    let key = vec![text("north"), minute(0)];
    let error = bench.get("per_region", key.clone(), within(30)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("has no state here yet"), "{}", error.message());

    let service = bench.rpc.0.clone();
    let request = GetRequest { view: "per_region".into(), key, freshness: Some(within(5_000)) };
    let waiting = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(async move { service.get(&request).await })
    });
    bench.open_shards(PER_REGION, generation).await;
    bench.process(generation);
    assert!(waiting.await.unwrap().is_ok());
}
