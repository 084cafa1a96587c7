//! Bad input, and a process that must not start: each is refused with an error that names the field
//! or the file and says what to do; nothing panics, and what was good in the same request goes on.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result};
use headwater_integration_tests::{
    dev::{self, Dev},
    patience::{Found, eventually},
    platform::Platform as _,
    views::{self, after},
};
use headwater_proto::{
    ingest::v1::{AppendRequest, AppendResponse, ListDeadLettersRequest, append_result::Outcome},
    query::v1::Freshness,
};
use tonic::Code;

const STREAM: &str = "CREATE STREAM orders (
    id BIGINT NOT NULL, user_id VARCHAR NOT NULL, amount DOUBLE, paid BOOLEAN, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 2);";
const VIEW: &str = "CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders GROUP BY user_id;";

async fn append(dev: &Dev, events: &[&[u8]]) -> Result<AppendResponse> {
    let events = events.iter().map(|event| event.to_vec().into()).collect();
    let request = AppendRequest { stream: "orders".into(), events };
    Ok(dev.ingest().append(request).await?.into_inner())
}

fn good(id: usize) -> Vec<u8> {
    format!(
        r#"{{"id":{id},"user_id":"u{}","amount":1.5,"paid":true,"ts":"2024-05-01T10:00:00Z"}}"#,
        id % 7
    )
    .into_bytes()
}

/// Runs `headwater dev` on a directory where it must not start.
fn refused(data: &Path) -> Result<Output> {
    Ok(Dev::command(data, dev::free_address()?, dev::free_address()?).output()?)
}

#[tokio::test]
async fn a_bad_event_is_rejected_with_its_field_and_the_rest_of_its_batch_is_accepted() -> Result<()>
{
    let directory = tempfile::tempdir()?;
    let dev = Dev::start(&directory.path().join("data")).await?;
    dev.apply("create", &[STREAM, VIEW]).await?;
    let long =
        format!(r#"{{"id":1,"user_id":"{}","ts":"2024-05-01T10:00:00Z"}}"#, "x".repeat(2 << 20));
    let bad: [(&[u8], &str); 11] = [
        (b"{\"id\":1,\"user_id\":", ""),
        (b"not json", ""),
        (b"[1,2]", ""),
        (b"", ""),
        (br#"{"id":"one","user_id":"u","ts":"2024-05-01T10:00:00Z"}"#, "id"),
        (br#"{"id":1.5,"user_id":"u","ts":"2024-05-01T10:00:00Z"}"#, "id"),
        (br#"{"id":99999999999999999999,"user_id":"u","ts":"2024-05-01T10:00:00Z"}"#, "id"),
        (br#"{"id":1,"ts":"2024-05-01T10:00:00Z"}"#, "user_id"),
        (br#"{"id":1,"user_id":"u"}"#, "ts"),
        (br#"{"id":1,"user_id":"u","ts":"yesterday"}"#, "ts"),
        (b"{\"id\":1,\"user_id\":\"\xff\xfe\",\"ts\":\"2024-05-01T10:00:00Z\"}", "user_id"),
    ];
    for (event, field) in bad.iter().copied().chain([(long.as_bytes(), "")]) {
        let shown = String::from_utf8_lossy(&event[..event.len().min(80)]).into_owned();
        let mut events: Vec<Vec<u8>> = (0..500).map(good).collect();
        events[250] = event.to_vec();
        let events: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
        let answer = append(&dev, &events).await.with_context(|| shown.clone())?;
        assert_eq!((answer.accepted, answer.rejected), (499, 1), "{shown}");
        let Some(Outcome::Rejected(rejected)) = &answer.results[250].outcome else {
            panic!("{shown}: accepted")
        };
        // Bytes that are no UTF-8 may be a fault of the column or of the whole event.
        if event.is_ascii() {
            assert_eq!(rejected.field, field, "{shown}: {}", rejected.reason);
        }
        assert!(!rejected.reason.is_empty() && !rejected.retryable, "{shown}: {rejected:?}");
        let count =
            views::count(&dev, "SELECT count(*) FROM spend", after(&[answer.token])).await?;
        assert_eq!(count, 7, "{shown}");
    }
    let total = views::count(&dev, "SELECT sum(orders) FROM spend", Freshness::default()).await?;
    assert_eq!(total, 499 * 12);
    Ok(())
}

#[tokio::test]
async fn an_event_from_the_far_future_is_a_dead_letter_with_its_bytes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let dev = Dev::start(&directory.path().join("data")).await?;
    dev.apply("create", &[STREAM, VIEW]).await?;
    let future = br#"{"id":7,"user_id":"u","amount":1.0,"paid":true,"ts":"9000-01-01T00:00:00Z"}"#;
    let answer = append(&dev, &[&good(1), future, &good(2)]).await?;
    if answer.rejected == 1 {
        let Some(Outcome::Rejected(rejected)) = &answer.results[1].outcome else {
            panic!("{answer:?}")
        };
        assert_eq!(rejected.field, "ts");
        return Ok(());
    }
    let total = views::count(&dev, "SELECT sum(orders) FROM spend", after(&[answer.token])).await?;
    assert_eq!(total, 2);
    let request = ListDeadLettersRequest {
        stream: "orders".into(),
        limit: 1,
        ..ListDeadLettersRequest::default()
    };
    let letter = eventually("there is a dead letter", async || {
        let mut letters = dev.dead_letters().list(request.clone()).await?.into_inner();
        Ok(match letters.message().await? {
            Some(letter) => Found::Yes(letter),
            None => Found::NotYet("there is none".into()),
        })
    })
    .await?;
    assert_eq!((letter.stage.as_str(), letter.value.as_ref()), ("time", future.as_slice()));
    assert!(letter.reason.contains("ts"), "{}", letter.reason);
    Ok(())
}

#[tokio::test]
async fn requests_that_cannot_be_taken_say_why() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let dev = Dev::start(&directory.path().join("data")).await?;
    dev.apply("create", &[STREAM, VIEW]).await?;

    let unknown = AppendRequest { stream: "odrers".into(), events: vec![good(1).into()] };
    let error = dev.ingest().append(unknown).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(
        error.message().contains("odrers") && error.message().contains("orders"),
        "{}",
        error.message()
    );

    let (status, body) = dev.post("/v1/streams/odrers/events", &[], &good(1))?;
    assert_eq!(status, 404, "{body}");
    assert!(body.contains("orders"), "{body}");

    let (status, body) = dev.post(
        "/v1/streams/orders/events",
        &[("Content-Type", "application/x-ndjson")],
        b"{\"id\":\n",
    )?;
    assert_eq!(status, 422, "{body}");
    assert!(body.contains("not valid JSON at byte 6"), "{body}");

    // 100 MiB in one line: refused by its length, before it is read.
    let length = (100 << 20).to_string();
    let headers = [("Content-Type", "application/x-ndjson"), ("Content-Length", length.as_str())];
    let (status, body) = dev.post("/v1/streams/orders/events", &headers, b"{\"id\":")?;
    assert_eq!(status, 413, "{body}");
    assert!(body.contains("ingest.max-request"), "{body}");

    // gRPC's library refuses it, too.
    let huge =
        AppendRequest { stream: "orders".into(), events: vec![vec![b' '; 100 << 20].into()] };
    let error = dev.ingest().append(huge).await.unwrap_err();
    assert!(
        matches!(
            error.code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::Unknown | Code::Internal
        ),
        "{error:?}"
    );

    // It still serves.
    assert_eq!(append(&dev, &[&good(1)]).await?.accepted, 1);
    assert!(!dev.said().contains("panicked"), "{}", dev.said());
    Ok(())
}

#[tokio::test]
async fn definitions_that_cannot_be_are_refused_with_place_and_reason() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let dev = Dev::start(&directory.path().join("data")).await?;
    dev.apply("create", &[STREAM]).await?;
    let view = |select: &str| {
        format!("CREATE MATERIALIZED VIEW v WITH (retention = 'forever') AS\n{select};")
    };
    let cases = [
        ("CREATE MATERIALIZED VIEW".to_owned(), "line 1"),
        (view("SELECT user_id, count(*) AS n FORM orders GROUP BY user_id"), "line 2"),
        (view("SELECT usr_id, count(*) AS n FROM orders GROUP BY usr_id"), "user_id"),
        (view("SELECT user_id, count(*) AS n FROM visits GROUP BY user_id"), "visits"),
        (view("SELECT user_id, count(DISTINCT id) AS n FROM orders GROUP BY user_id"), "line 2"),
        (view("SELECT user_id, max(now()) AS n FROM orders GROUP BY user_id"), "now"),
        (view("SELECT user_id, sum(random()) AS n FROM orders GROUP BY user_id"), "random"),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT user_id, count(*) AS n FROM orders GROUP BY user_id;".into(),
            "retention",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (retention = 'forever', output = 'x') AS \
             SELECT user_id, count(*) AS n FROM orders GROUP BY user_id;"
                .into(),
            "output",
        ),
    ];
    for (number, (sql, reason)) in cases.iter().enumerate() {
        let error = dev.apply(&format!("bad {number}"), &[sql]).await.expect_err(sql);
        assert_eq!(error.code(), Code::InvalidArgument, "{sql}: {error:?}");
        assert!(error.message().contains(reason), "{sql}: {}", error.message());
        assert!(error.message().contains("0.sql"), "{sql}: {}", error.message());
    }
    let error =
        views::count(&dev, "SELECT count(*) FROM v", Freshness::default()).await.unwrap_err();
    assert!(format!("{error:#}").contains("there is no view"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_refused_and_the_first_goes_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let dev = Dev::start(&data).await?;
    dev.apply("create", &[STREAM, VIEW]).await?;

    let output = refused(&data)?;

    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("is in use by process") && said.contains("another directory"), "{said}");
    let answer = append(&dev, &[&good(1)]).await?;
    assert_eq!(views::count(&dev, "SELECT count(*) FROM spend", after(&[answer.token])).await?, 1);

    // After an orderly end the next process has all that was acknowledged.
    dev.terminate().await?;
    let dev = Dev::start(&data).await?;
    assert_eq!(views::count(&dev, "SELECT sum(orders) FROM spend", Freshness::default()).await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_directory_of_a_newer_version_or_of_something_else_is_left_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let dev = Dev::start(&data).await?;
    dev.terminate().await?;
    fs::write(data.join("FORMAT"), "headwater 999\n")?;
    let output = refused(&data)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("999") && said.contains("data") && said.contains("version"), "{said}");

    let other = directory.path().join("photos");
    fs::create_dir(&other)?;
    fs::write(other.join("cat.jpg"), "meow")?;
    let output = refused(&other)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cat.jpg") && said.contains("choose another one"), "{said}");
    assert_eq!(fs::read_dir(&other)?.count(), 1, "nothing was added");

    let occupied = std::net::TcpListener::bind("127.0.0.1:0")?;
    let output =
        Dev::command(&directory.path().join("new"), occupied.local_addr()?, dev::free_address()?)
            .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--listen"), "{said}");
    Ok(())
}
