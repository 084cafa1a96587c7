//! `Watch`.

use super::*;

#[tokio::test]
async fn watch_sends_what_changes_and_all_of_another_generation() {
    let mut fixture = Fixture::start_with(eager()).await;
    let old = fixture.create(PER_REGION).await;
    let new = fixture.replay(PER_REGION_TWICE, old).await;
    fixture.order("north", "book", 1, 0).await;
    fixture.order("south", "book", 1, 0).await;
    fixture.process(old);
    let request = WatchRequest { view: "per_region".into(), ..WatchRequest::default() };
    let mut watch = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
    let head = next(&mut watch).await;
    assert_eq!((head.columns.len(), head.rows.len()), (5, 0));

    fixture.order("south", "book", 5, 0).await;
    fixture.process(old);
    let change = next(&mut watch).await;
    assert_eq!(change.rows.iter().map(show).collect::<Vec<_>>(), ["south +0 2 6 6.50"]);
    assert_eq!(change.provenance.unwrap().generation, old.to_string());

    fixture.process(new);
    fixture.compare().await;
    fixture.swap(1, old, new, false).await;
    let head = next(&mut watch).await;
    assert_eq!(head.columns.len(), 5);
    assert_eq!(head.provenance.unwrap().generation, new.to_string());
    let mut rows: Vec<String> = Vec::new();
    while rows.len() < 2 {
        rows.extend(next(&mut watch).await.rows.iter().map(show));
    }
    assert_eq!(rows, ["north +0 2 1 1.25", "south +0 4 6 6.50"]);
}
