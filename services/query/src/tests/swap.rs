//! Laws 1 and 4: generations change under the requests.

use super::*;

#[tokio::test]
async fn an_answer_reads_one_generation_however_the_view_is_swapped_meanwhile() {
    let mut bench =
        Bench::start_with(Config { batch_rows: 1.try_into().unwrap(), ..Config::default() }).await;
    let old = bench.create(PER_REGION).await;
    for minute in 0..50 {
        bench.order("north", "book", minute, minute).await;
    }
    bench.process(old);
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.process(new);
    bench.compare().await;
    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let mut parts = bench.rpc.scan(Request::new(request.clone())).await.unwrap().into_inner();
    let first = parts.next().await.unwrap().unwrap();
    assert_eq!(first.provenance.unwrap().generation, old.to_string());

    bench.swap(1, old, new, false).await;

    let after_swap = bench.scan(request).await.unwrap();
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
    let freshness = Freshness { generation: old.to_string(), ..within(1_000) };
    let answer = bench.get("per_region", vec![text("north"), minute(0)], freshness).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 0);
    assert_eq!(answer.row.unwrap().values[2], integer(1));

    bench.swap(2, new, old, true).await;
    let answer =
        bench.get("per_region", vec![text("north"), minute(0)], within(1_000)).await.unwrap();
    assert_eq!(answer.provenance.unwrap().epoch, 3);
    assert_eq!(answer.row.unwrap().values[2], integer(1));
}

#[tokio::test]
async fn time_never_runs_backwards_over_a_swap() {
    let mut bench = Bench::start().await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.order("north", "book", 1, 0).await;
    bench.process(new);
    bench.order("north", "book", 1, 0).await;
    bench.process(old);
    bench.compare().await;
    let key = vec![text("north"), minute(0)];
    let seen = bench.get("per_region", key.clone(), within(1_000)).await.unwrap();
    assert_eq!(offsets(&seen.provenance.unwrap()), [2]);

    bench.swap(1, old, new, false).await;

    let error = bench.get("per_region", key.clone(), within(50)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(
        error.message().contains("an earlier answer had already shown position 2"),
        "{}",
        error.message()
    );
    let sql = QueryRequest {
        sql: "SELECT 1 FROM per_region".into(),
        freshness: Some(within(50)),
        ..QueryRequest::default()
    };
    assert_eq!(bench.sql_with(sql).await.unwrap_err().code(), Code::DeadlineExceeded);
    // Whoever asks for a generation by its id takes it as it is.
    let named = Freshness { generation: new.to_string(), ..within(50) };
    assert!(bench.get("per_region", key.clone(), named).await.is_ok());

    bench.process(new);
    let answer = bench.get("per_region", key, within(1_000)).await.unwrap();
    assert_eq!(offsets(&answer.provenance.unwrap()), [2]);
    assert_eq!(show(&answer.row.unwrap()), "north +0 4 2 2.50");
}

#[tokio::test]
async fn a_retired_generation_is_closed_and_refused() {
    let mut bench = Bench::start().await;
    let old = bench.create(PER_REGION).await;
    let new = bench.replay(PER_REGION_TWICE, old).await;
    bench.process(old);
    bench.process(new);
    bench.compare().await;
    bench.get("per_region", vec![text("north"), minute(0)], within(1_000)).await.unwrap();
    let scratch =
        layout::reader_dir(&bench.node.data, "here", old, partition_for_key(b"north", PARTITIONS));
    assert!(exists(&scratch));
    bench.swap(1, old, new, false).await;

    let retired = GenerationRetired { generation: old.to_string(), reason: String::new() };
    bench.record(Event::GenerationRetired(retired)).await;

    let named = Freshness { generation: old.to_string(), ..within(1_000) };
    let error = bench.get("per_region", vec![text("north"), minute(0)], named).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    tokio::time::timeout(Duration::from_secs(5), async {
        while exists(&scratch) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("its reader is closed");
}
