//! Tokens, staleness and waiting.

use super::*;

#[tokio::test]
async fn an_answer_without_a_token_has_what_was_committed_max_staleness_before() {
    let key = vec![text("north"), minute(0)];
    for (max_staleness, seen) in
        [(Duration::ZERO, "north +0 2 4 4.50"), (Duration::from_secs(3_600), "north +0 1 3 3.25")]
    {
        let mut fixture = Fixture::start_with(Config { max_staleness, ..Config::default() }).await;
        let generation = fixture.create(PER_REGION).await;
        fixture.order("north", "book", 3, 0).await;
        fixture.process(generation);
        fixture.get("per_region", key.clone(), patient()).await.unwrap();
        fixture.order("north", "book", 1, 0).await;
        fixture.process(generation);
        let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
        assert_eq!(show(&answer.row.unwrap()), seen, "{max_staleness:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_when_the_shard_gets_there_and_not_before() {
    let mut fixture = Fixture::start_with(Config {
        max_staleness: Duration::from_secs(3_600),
        ..Config::default()
    })
    .await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let key = vec![text("north"), minute(0)];
    assert!(fixture.get("per_region", key.clone(), patient()).await.unwrap().row.is_none());
    let token = fixture.order("north", "book", 3, 0).await;
    let request = GetRequest { view: "per_region".into(), key, freshness: Some(after(&token)) };

    let waiting = fixture.get_aside(request);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    fixture.process(generation);

    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(show(&answer.row.unwrap()), "north +0 1 3 3.25");
}

#[tokio::test]
async fn a_wait_that_is_too_long_says_what_was_wanted_and_what_is_there() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let token = fixture.order("north", "book", 3, 0).await;
    let (partition, position) = token.positions.first_key_value().unwrap();
    let wanted = format!(
        "the token asks for position {position} in partition {partition}, and its shard is at 0"
    );

    let error = refused(&wanted, async |timeout_ms| {
        let freshness = Freshness { timeout_ms, ..after(&token) };
        fixture.get("per_region", vec![text("north"), minute(0)], freshness).await
    })
    .await;

    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_token_of_another_stream_or_partition_is_refused() {
    let mut fixture = Fixture::start().await;
    fixture.create(PER_REGION).await;
    for (token, reason) in [
        (
            "visits@0:1",
            "the token visits@0:1 is for stream visits, but view per_region reads orders",
        ),
        ("orders@7:1", "names partition 7, but stream orders has 2 partitions"),
        ("orders", "is not a token"),
    ] {
        let freshness = Freshness { after: vec![token.into()], ..patient() };
        let error = fixture
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
        assert_eq!(
            fixture.sql_with(sql).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{token}"
        );
    }
}

#[tokio::test]
async fn a_shard_that_does_not_exist_yet_is_waited_for() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.declare(PER_REGION).await;
    let key = vec![text("north"), minute(0)];
    let error = refused("has no state here yet", async |timeout_ms| {
        fixture.get("per_region", key.clone(), within(timeout_ms)).await
    })
    .await;
    assert_eq!(error.code(), Code::Unavailable);

    let request = GetRequest { view: "per_region".into(), key, freshness: Some(patient()) };
    let waiting = fixture.get_aside(request);
    fixture.open_shards(PER_REGION, generation).await;
    fixture.process(generation);
    assert!(waiting.await.unwrap().is_ok());
}
