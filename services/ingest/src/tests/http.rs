use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::StreamExt as _;
use headwater_types::PartitionId;
use serde_json::json;

use super::fixture::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn lines_and_arrays_are_stored_byte_for_byte_and_answered_alike() {
    let fixture = Fixture::new().await;
    let odd = r#"{"user_id":1 , "note":"caf\u00e9 é","amount":1.500,  "ts":0}"#;
    let lines = fixture
        .post(&[("content-type", "application/x-ndjson")], format!("{odd}\r\n\n{odd}\n"))
        .await;
    let array = fixture
        .post(&[("content-type", "application/json; charset=utf-8")], format!("[ {odd},\n{odd}]"))
        .await;
    let zipped = fixture.post(&[("content-encoding", "gzip")], gzip(odd.as_bytes())).await;

    let partition = partition_of(1);
    let place =
        |offset: u64| json!({"status": "accepted", "partition": partition, "offset": offset});
    let expected = |offsets: &[u64]| {
        json!({
            "accepted": offsets.len(), "rejected": 0,
            "token": format!("orders@{partition}:{}", offsets.last().unwrap() + 1),
            "results": offsets.iter().map(|&offset| place(offset)).collect::<Vec<_>>(),
        })
    };
    assert_eq!((lines.status.as_u16(), lines.json), (200, expected(&[0, 1])));
    assert_eq!((array.status.as_u16(), array.json), (200, expected(&[2, 3])));
    assert_eq!((zipped.status.as_u16(), zipped.json), (200, expected(&[4])));
    for (_, _, value) in fixture.stored().await.concat() {
        assert_eq!(value, odd.as_bytes());
    }
}

#[tokio::test]
async fn the_status_says_whether_all_some_or_none_were_accepted() {
    let fixture = Fixture::new().await;
    let good = String::from_utf8(event(1).to_vec()).unwrap();

    let some = fixture.post(&[], format!("{good}\nnonsense\n")).await;
    assert_eq!(some.status, 207);
    assert_eq!(
        (some.json["accepted"].as_u64(), some.json["rejected"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(some.json["results"][1]["status"], "rejected");

    let none = fixture.post(&[], r#"{"user_id":"x","ts":0}"#).await;
    assert_eq!((none.status.as_u16(), none.retry_after.as_deref()), (422, None));
    assert_eq!(none.json["results"][0]["field"], "user_id");
    assert_eq!(none.json["token"], "orders@");

    assert_eq!(fixture.post(&[], "").await.status, 200);

    *fixture.log.failing.lock() = (0..4).map(PartitionId).collect();
    let away = fixture.post(&[], good).await;
    assert_eq!((away.status.as_u16(), away.retry_after.as_deref()), (503, Some("1")));
    assert_eq!(away.json["results"][0]["retryable"], true);
}

#[tokio::test]
async fn what_cannot_be_understood_is_refused_with_what_would_be() {
    let fixture = Fixture::new().await;
    let unknown = fixture.post_to("refunds", &[], "{}").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.error(), r#"there is no stream "refunds"; known streams: orders"#);

    let array =
        fixture.post(&[("content-type", "application/json")], r#"{"user_id":1,"ts":0}"#).await;
    assert_eq!(array.status, 400);
    assert!(array.error().contains("expected an array at line 1 column 0"), "{}", array.error());

    let xml = fixture.post(&[("content-type", "text/xml")], "<a/>").await;
    assert_eq!(xml.status, 415);
    let zstd = fixture.post(&[("content-encoding", "zstd")], "x").await;
    assert_eq!(
        (zstd.status.as_u16(), zstd.error()),
        (415, r#"content-encoding "zstd" is not supported; use gzip or none"#)
    );
    let broken = fixture.post(&[("content-encoding", "gzip")], "x").await;
    assert_eq!(broken.status, 400);
    assert_eq!(fixture.stored().await.concat().len(), 0);
}

/// A body that counts how much of it was taken.
fn counted(chunks: usize) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let chunk = Bytes::from(vec![b'x'; 1 << 20]);
    let stream = futures::stream::iter(0..chunks).map(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok::<_, std::io::Error>(chunk.clone())
    });
    (Body::from_stream(stream), taken)
}

#[tokio::test]
async fn a_line_of_100_mib_is_refused_before_it_is_buffered() {
    let fixture = Fixture::new().await;
    let (body, taken) = counted(100);
    let stated = fixture.post(&[("content-length", "104857600")], body).await;
    assert_eq!((stated.status.as_u16(), taken.load(Ordering::SeqCst)), (413, 0));
    assert_eq!(
        stated.error(),
        "a body of 104857600 bytes is over the limit of 16 MiB (ingest.max-request): send fewer events at once"
    );

    let (body, taken) = counted(100);
    let unstated = fixture.post(&[], body).await;
    assert_eq!(unstated.status, 413);
    assert!(taken.load(Ordering::SeqCst) <= 17, "it stops reading where the limit is passed");

    let (body, taken) = counted(100);
    let lying = fixture.post(&[("content-length", "10")], body).await;
    assert_eq!(lying.status, 413);
    assert!(taken.load(Ordering::SeqCst) <= 17);
}

#[tokio::test]
async fn a_gzip_bomb_is_refused_when_it_passes_the_limit() {
    let fixture = Fixture::new().await;
    let bomb = gzip(&vec![b' '; 200 << 20]);
    assert!(bomb.len() < 1 << 20);
    let refused = fixture.post(&[("content-encoding", "gzip")], bomb).await;
    assert_eq!(refused.status, 413);
    assert!(
        refused.error().starts_with("the decompressed body is over the limit of 16 MiB"),
        "{}",
        refused.error()
    );
    let held = fixture.node.metrics.encode();
    assert!(held.contains("\nheadwater_ingest_in_flight_bytes 0\n"), "{held}");

    // Several members that are small each are one body all the same.
    let bomb = gzip(&vec![b' '; 1 << 20]).repeat(20);
    assert_eq!(fixture.post(&[("content-encoding", "gzip")], bomb).await.status, 413);
}
