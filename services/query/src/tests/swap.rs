//! Laws 1 and 4: generations change under the requests.

use super::*;

#[tokio::test]
async fn an_answer_reads_one_generation_however_the_view_is_swapped_meanwhile() {
    let mut fixture =
        Fixture::start_with(Config { batch_rows: 1.try_into().unwrap(), ..Config::default() })
            .await;
    let old = fixture.create(PER_REGION).await;
    for minute in 0..50 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(old);
    let new = fixture.replay(PER_REGION_TWICE, old).await;
    fixture.process(new);
    fixture.compare().await;
    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let mut parts = fixture.api.scan(Request::new(request.clone())).await.unwrap().into_inner();
    let first = parts.next().await.unwrap().unwrap();
    assert_eq!(first.provenance.unwrap().generation, old.to_string());

    fixture.swap(1, old, new, false).await;

    let after_swap = fixture.scan(request).await.unwrap();
    assert_eq!(after_swap[0].provenance.as_ref().unwrap().generation, new.to_string());
    assert_eq!(after_swap[0].provenance.as_ref().unwrap().epoch, 2);
    let counts = |parts: &[ScanResponse]| -> Vec<Value> {
        parts.iter().flat_map(|part| &part.rows).map(|row| row.values[2].clone()).collect()
    };
    let integer = |value| Value { kind: Some(Kind::Integer(value)) };
    assert_eq!(counts(&after_swap), vec![integer(2); 50]);
    let rest = collect(parts).await.unwrap();
    assert_eq!(counts(&rest), vec![integer(1); 50], "begun before the swap, finished after it");

    // The other one can still be asked for by its id.
    let freshness = Freshness { generation: old.to_string(), ..patient() };
    let answer =
        fixture.get("per_region", vec![text("north"), minute(0)], freshness).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 0);
    assert_eq!(answer.row.unwrap().values[2], integer(1));

    fixture.swap(2, new, old, true).await;
    let answer =
        fixture.get("per_region", vec![text("north"), minute(0)], patient()).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 3);
    assert_eq!(answer.row.unwrap().values[2], integer(1));
}

#[tokio::test]
async fn time_never_runs_backwards_over_a_swap() {
    let mut fixture = Fixture::start().await;
    let old = fixture.create(PER_REGION).await;
    let new = fixture.replay(PER_REGION_TWICE, old).await;
    fixture.order("north", "book", 1, 0).await;
    fixture.process(new);
    fixture.order("north", "book", 1, 0).await;
    fixture.process(old);
    fixture.compare().await;
    let key = vec![text("north"), minute(0)];
    let seen = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(offsets(&seen.provenance.unwrap()), [2]);

    fixture.swap(1, old, new, false).await;

    let shown = "an earlier answer had already shown position 2";
    let error = refused(shown, async |timeout_ms| {
        fixture.get("per_region", key.clone(), within(timeout_ms)).await
    })
    .await;
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let error = refused(shown, async |timeout_ms| {
        let sql = "SELECT 1 FROM per_region".into();
        let freshness = Some(within(timeout_ms));
        fixture.sql_with(QueryRequest { sql, freshness, ..QueryRequest::default() }).await
    })
    .await;
    assert_eq!(error.code(), Code::DeadlineExceeded);
    // A request that names a generation takes it as it is.
    let named = Freshness { generation: new.to_string(), ..patient() };
    assert!(fixture.get("per_region", key.clone(), named).await.is_ok());

    fixture.process(new);
    let answer = fixture.get("per_region", key, patient()).await.unwrap();
    assert_eq!(offsets(&answer.provenance.unwrap()), [2]);
    assert_eq!(show(&answer.row.unwrap()), "north +0 4 2 2.50");
}

#[tokio::test]
async fn a_retired_generation_is_closed_and_refused() {
    let mut fixture = Fixture::start().await;
    let old = fixture.create(PER_REGION).await;
    let new = fixture.replay(PER_REGION_TWICE, old).await;
    fixture.process(old);
    fixture.process(new);
    fixture.compare().await;
    fixture.get("per_region", vec![text("north"), minute(0)], patient()).await.unwrap();
    let scratch = layout::reader_dir(
        &fixture.node.data,
        "here",
        old,
        partition_for_key(b"north", PARTITIONS),
    );
    assert!(exists(&scratch));
    fixture.swap(1, old, new, false).await;

    let retired = GenerationRetired { generation: old.to_string(), reason: String::new() };
    fixture.record(Event::GenerationRetired(retired)).await;

    let named = Freshness { generation: old.to_string(), ..patient() };
    let error = fixture.get("per_region", vec![text("north"), minute(0)], named).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    until("its reader is closed", || !exists(&scratch)).await;
}
