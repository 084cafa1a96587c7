use std::time::Duration;

use bytes::Bytes;
use headwater_proto::ingest::v1::AppendRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::fixture::*;
use crate::Config;

#[tokio::test]
async fn batches_of_a_stream_are_stored_and_answered_in_order_while_several_wait_for_the_log() {
    let fixture = Fixture::new().await;
    fixture.log.let_through.send_replace(0);
    let (sender, receiver) = mpsc::channel(64);
    for number in 0..40 {
        // All of one user, so that they share a partition and their order can be seen.
        let events = (0..=number % 3).map(|_| event(7)).collect();
        sender.send(request(events)).await.unwrap();
    }
    drop(sender);
    let mut answers =
        fixture.client().append_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();

    let window = Config::default().stream_window.get();
    until(|| fixture.log.appends() >= window).await;
    let early = tokio::time::timeout(Duration::from_millis(50), answers.message()).await;
    assert!(early.is_err(), "nothing is answered before it is durable");
    assert_eq!(fixture.log.appends(), window, "no more than the window is on its way");

    fixture.log.let_through.send_replace(usize::MAX);
    let mut next = 0;
    for number in 0..40 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.accepted, number % 3 + 1);
        for result in &answer.results {
            assert_eq!(accepted(result).unwrap().1, next);
            next += 1;
        }
    }
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test]
async fn an_error_in_a_stream_comes_after_the_answers_before_it_and_ends_the_stream() {
    let fixture = Fixture::new().await;
    let unknown = AppendRequest { stream: "refunds".into(), events: vec![event(1)] };
    let bad = request(vec![Bytes::from_static(b"nonsense")]);
    let requests = vec![
        request(vec![event(1)]),
        bad,
        request(vec![event(2)]),
        unknown,
        request(vec![event(3)]),
    ];

    let requests = tokio_stream::iter(requests);
    let mut answers = fixture.client().append_stream(requests).await.unwrap().into_inner();

    for expected in [1, 0, 1] {
        assert_eq!(answers.message().await.unwrap().unwrap().accepted, expected);
    }
    assert_eq!(answers.message().await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        fixture.stored().await.iter().map(Vec::len).sum::<usize>(),
        2,
        "what follows the error is not taken"
    );
}

#[tokio::test]
async fn a_stream_ends_when_the_process_does_and_its_last_answers_are_delivered() {
    let fixture = Fixture::new().await;
    let (sender, receiver) = mpsc::channel(4);
    let mut answers =
        fixture.client().append_stream(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    sender.send(request(vec![event(1)])).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().accepted, 1);

    fixture.node.tasks.shutdown().begin();

    let ended = soon(answers.message()).await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    drop((sender, answers));
    assert!(fixture.node.tasks.stop(Duration::from_secs(60)).await.is_clean());
}
