//! A view that is deleted under the requests.

use headwater_proto::control::v1::ViewDeleted;

use super::*;

impl Fixture {
    /// Deletes the view and, as its processors do afterwards, all of its shards.
    async fn delete(&mut self, generation: GenerationId) {
        let deleted = ViewDeleted { view: "per_region".into(), reason: "nobody reads it".into() };
        self.record(Event::ViewDeleted(deleted)).await;
        let retired =
            GenerationRetired { generation: generation.to_string(), reason: String::new() };
        self.record(Event::GenerationRetired(retired)).await;
        for partition in 0..PARTITIONS {
            drop(self.shards.remove(&(generation, partition)));
            let (instance, _) = self.owners[&(generation, partition)];
            let _ = std::fs::remove_dir_all(self.shard_dir(instance, generation, partition));
        }
    }
}

const WHY: &str = "view per_region was deleted at 1970-01-01T00:00:00Z (nobody reads it)";

#[tokio::test]
async fn a_deleted_view_is_unknown_with_the_reason() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    fixture.order("north", "book", 1, 0).await;
    fixture.process(generation);
    let key = vec![text("north"), minute(0)];
    fixture.get("per_region", key.clone(), patient()).await.unwrap();

    fixture.delete(generation).await;

    let scan = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let named = Freshness { generation: generation.to_string(), ..patient() };
    let errors = [
        fixture.get("per_region", key.clone(), patient()).await.unwrap_err(),
        fixture.get("per_region", key, named).await.unwrap_err(),
        fixture.scan(scan).await.unwrap_err(),
        fixture.sql("SELECT count(*) FROM per_region").await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), Code::NotFound, "{error:?}");
        assert!(error.message().contains(WHY), "{}", error.message());
    }
}

/// Laws 1 and 2 for what had begun.
#[tokio::test]
async fn a_scan_under_way_ends_at_its_commit_when_its_view_is_deleted() {
    let config = Config { batch_rows: 1.try_into().unwrap(), ..Config::default() };
    for instances in [1, 2] {
        let mut fixture = match instances {
            1 => Fixture::start_with(config.clone()).await,
            _ => Fixture::several(instances, config.clone()).await,
        };
        let generation = fixture.create(PER_REGION).await;
        for minute in 0..50 {
            fixture.order("north", "book", 1, minute).await;
            fixture.order("south", "book", 1, minute).await;
        }
        fixture.process(generation);
        let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
        let before = fixture.scanned(request.clone()).await;
        let mut parts = fixture.api.scan(Request::new(request)).await.unwrap().into_inner();
        let first = parts.next().await.unwrap().unwrap();

        fixture.delete(generation).await;

        match collect(parts).await {
            Ok(rest) => {
                let all = [vec![first], rest].concat();
                assert_eq!(shown(&all), before, "with {instances}");
            }
            Err(error) => assert!(error.message().contains(WHY), "with {instances}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_shard_ends_when_its_view_is_deleted() {
    for instances in [1, 2] {
        let mut fixture = match instances {
            1 => Fixture::start().await,
            _ => Fixture::several(instances, Config::default()).await,
        };
        let generation = fixture.create(PER_REGION).await;
        fixture.process(generation);
        // The shard never applies the order.
        let token = fixture.order("north", "book", 1, 0).await;
        let freshness = Freshness { timeout_ms: 60_000, ..after(&token) };
        let key = vec![text("north"), minute(0)];
        let request = GetRequest { view: "per_region".into(), key, freshness: Some(freshness) };
        let waiting = fixture.get_aside(request);
        fixture.delete(generation).await;
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "with {instances}: {error:?}");
        assert!(error.message().contains(WHY), "with {instances}: {}", error.message());
    }
}

#[tokio::test]
async fn a_watch_ends_when_its_view_is_deleted() {
    let config = Config { watch_interval: Duration::from_millis(5), ..Config::default() };
    let mut fixture = Fixture::start_with(config).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let request = WatchRequest { view: "per_region".into(), ..WatchRequest::default() };
    let mut watch = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
    watch.next().await.unwrap().unwrap();

    fixture.delete(generation).await;

    let error = collect(watch).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains(WHY), "{}", error.message());
}

/// Law 4 is about one view: another one with its name begins anew.
#[tokio::test]
async fn a_view_that_is_created_again_is_not_bound_by_the_answers_of_the_one_before() {
    let mut fixture = Fixture::start().await;
    let first = fixture.create(PER_REGION).await;
    for minute in 0..3 {
        fixture.order("north", "book", 1, minute).await;
    }
    fixture.process(first);
    let key = vec![text("north"), minute(0)];
    let seen = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(offsets(&seen.provenance.unwrap()), [3]);
    fixture.delete(first).await;

    let second = fixture.create(PER_REGION).await;
    assert_ne!(first, second);
    let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    let provenance = answer.provenance.unwrap();
    assert_eq!((offsets(&provenance), answer.row), (vec![0], None), "nothing is applied yet");
    assert_eq!((provenance.generation, provenance.epoch), (second.to_string(), 1));
    fixture.process(second);
    assert!(fixture.get("per_region", key.clone(), patient()).await.unwrap().row.is_some());

    let named = Freshness { generation: first.to_string(), ..patient() };
    let gone = fixture.get("per_region", key, named).await.unwrap_err();
    assert_eq!(gone.code(), Code::FailedPrecondition);
    assert!(gone.message().contains("is one of a view that was deleted"), "{}", gone.message());
}
