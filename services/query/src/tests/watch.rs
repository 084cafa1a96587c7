//! `Watch`.

use super::*;

#[tokio::test]
async fn watch_sends_what_changes_and_all_of_another_generation() {
    let mut bench = Bench::start_with(Config {
        max_staleness: Duration::ZERO,
        watch_interval: Duration::from_millis(5),
        ..Config::default()
    })
    .await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.order("north", "book", 1, 0).await;
    bench.order("south", "book", 1, 0).await;
    bench.process(old);
    let request = WatchRequest { view: "per_region".into(), initial: false };
    let mut watch = bench.rpc.watch(Request::new(request)).await.unwrap().into_inner();
    let mut next = async || -> WatchResponse {
        let part = tokio::time::timeout(Duration::from_secs(5), watch.next()).await;
        part.expect("something changed").unwrap().unwrap()
    };
    let head = next().await;
    assert_eq!((head.columns.len(), head.rows.len()), (5, 0));

    bench.order("south", "book", 5, 0).await;
    bench.process(old);
    let change = next().await;
    assert_eq!(change.rows.iter().map(show).collect::<Vec<_>>(), ["south +0 2 6 6.50"]);
    assert_eq!(change.provenance.unwrap().generation, old.to_string());

    bench.process(new);
    bench.compare().await;
    bench.swap(1, old, new, false).await;
    let head = next().await;
    assert_eq!(head.columns.len(), 5);
    assert_eq!(head.provenance.unwrap().generation, new.to_string());
    let mut rows: Vec<String> = Vec::new();
    while rows.len() < 2 {
        rows.extend(next().await.rows.iter().map(show));
    }
    assert_eq!(rows, ["north +0 2 1 1.25", "south +0 4 6 6.50"]);
}
