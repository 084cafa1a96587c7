//! Streams and views are deleted, by statements and by the command line, and created again.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Output},
    time::Instant,
};

use anyhow::{Result, ensure};
use headwater_integration_tests::{
    dev::{self, Dev},
    patience::PATIENCE,
    platform::Platform as _,
    replays,
    views::{self, after},
};
use headwater_proto::{
    control::v1::{ChangeKind, GetCatalogRequest, GetCatalogResponse},
    ingest::v1::{AppendRequest, AppendResponse, ListDeadLettersRequest},
    query::v1::{Freshness, WatchRequest},
};
use headwater_state::layout;
use headwater_types::GenerationId;
use serde_json::Value as Json;
use tonic::Code;

const STREAM: &str = "CREATE STREAM orders (
    id BIGINT NOT NULL, user_id VARCHAR NOT NULL, amount DOUBLE, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 2);";
const VIEW: &str = "CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders GROUP BY user_id;";
/// Division by zero makes a dead letter of every order without an amount.
const OTHER: &str = "CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(1 / cast(amount AS BIGINT)) AS spend FROM orders GROUP BY user_id;";
const COUNT: &str = "SELECT sum(orders) FROM spend";

async fn append(dev: &Dev, ids: std::ops::Range<usize>) -> Result<AppendResponse> {
    let event = |id| {
        format!(
            r#"{{"id":{id},"user_id":"u{}","amount":{},"ts":"2024-05-01T10:00:00Z"}}"#,
            id % 7,
            id % 10
        )
    };
    let events = ids.map(|id| event(id).into_bytes().into()).collect();
    let request = AppendRequest { stream: "orders".into(), events };
    Ok(dev.ingest().append(request).await?.into_inner())
}

/// Runs the command line against the server.
fn cli(dev: &Dev, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(dev::binary());
    command.arg("--server").arg(format!("http://{}", dev.grpc_address()));
    Ok(command.args(arguments).output()?)
}

fn refused(output: &Output, code: i32, part: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "{:?}: {said}", output.status);
    ensure!(said.contains(part), "it should say {part:?}: {said}");
    Ok(())
}

fn json(output: &Output) -> Result<Json> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn catalog(dev: &Dev) -> Result<GetCatalogResponse> {
    Ok(dev.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner())
}

async fn letters(dev: &Dev) -> Result<usize> {
    let request = ListDeadLettersRequest {
        stream: "orders".into(),
        stage: "expression".into(),
        ..ListDeadLettersRequest::default()
    };
    let mut list = dev.dead_letters().list(request).await?.into_inner();
    let mut count = 0;
    while list.message().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

fn metrics(dev: &Dev) -> Result<String> {
    let mut stream = TcpStream::connect(dev.http_address())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: headwater\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

/// Waits until nothing of the generation is left on the disk and among the metrics.
async fn until_deleted(dev: &Dev, generation: &str) -> Result<()> {
    let id: GenerationId = generation.parse()?;
    let directory = layout::state_dir(dev.data(), id);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = metrics(dev)?;
        if !directory.exists() && !metrics.contains(generation) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{} is still there:\n{metrics}", directory.display());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_and_its_stream_are_deleted_through_a_kill_and_created_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let mut dev = Dev::start(&data).await?;
    let created = dev.apply("create", &[STREAM, VIEW]).await?;
    let first = created.changes[1].generation.clone();
    let token = append(&dev, 0..500).await?.token;
    assert_eq!(views::count(&dev, COUNT, after(std::slice::from_ref(&token))).await?, 500);

    // Something depends on each.
    let stream = cli(&dev, &["delete", "stream", "orders"])?;
    refused(&stream, 1, "a view reads it: spend")?;
    let replay = replays::start(&dev, "change", &[OTHER]).await?;
    refused(&cli(&dev, &["delete", "view", "spend"])?, 1, &format!("replay abort {replay}"))?;
    refused(&cli(&dev, &["delete", "view", "nothing"])?, 2, "there is no view nothing")?;
    ensure!(cli(&dev, &["replay", "abort", &replay])?.status.success());

    let request = WatchRequest { view: "spend".into(), initial: true, ..WatchRequest::default() };
    let mut watch = dev.query().watch(request).await?.into_inner();
    ensure!(watch.message().await?.is_some());
    let dry = cli(&dev, &["delete", "view", "spend", "--dry-run", "-o", "json"])?;
    assert_eq!(json(&dry)?[0]["change"], "deleted");
    assert_eq!(catalog(&dev).await?.views.len(), 1, "it was a dry run");

    let deleted =
        cli(&dev, &["delete", "view", "spend", "--reason", "nobody reads it", "-o", "json"])?;
    assert_eq!(json(&deleted)?[0]["change"], "deleted");
    let ended = loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => anyhow::bail!("the watch ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::NotFound, "{ended:?}");
    for status in
        [ended, views::count(&dev, COUNT, Freshness::default()).await.unwrap_err().downcast()?]
    {
        ensure!(status.message().contains("view spend was deleted"), "{status:?}");
        ensure!(status.message().contains("nobody reads it"), "{status:?}");
    }

    // The process dies in the middle of it.
    dev.kill();
    drop(dev);
    let dev = Dev::start(&data).await?;
    until_deleted(&dev, &first).await?;
    let now = catalog(&dev).await?;
    assert_eq!((now.streams.len(), now.views.len()), (1, 0));
    assert_eq!((now.generations.len(), now.shards.len()), (0, 0), "{now:?}");

    // The same file again: another generation over the same records.
    let again = dev.apply("again", &[STREAM, OTHER]).await?;
    let kinds: Vec<_> = again.changes.iter().map(|change| change.kind()).collect();
    assert_eq!(kinds, [ChangeKind::Unchanged, ChangeKind::Created]);
    assert_eq!(views::count(&dev, COUNT, after(std::slice::from_ref(&token))).await?, 450);
    dev.apply("drop", &["DROP VIEW spend; DROP VIEW IF EXISTS nothing;"]).await?;
    until_deleted(&dev, &again.changes[1].generation).await?;
    assert_eq!(letters(&dev).await?, 50, "what it had read is accounted for");

    let third = dev.apply("third", &[VIEW]).await?;
    let third = third.changes[0].generation.clone();
    assert_ne!(first, third, "the same text over the same records");
    let more = append(&dev, 500..600).await?.token;
    assert_eq!(views::count(&dev, COUNT, after(std::slice::from_ref(&more))).await?, 600);
    let replay = replays::start(&dev, "next", &[OTHER]).await?;
    assert_eq!(replay, "spend-2", "the id of a replay is never used again");
    ensure!(cli(&dev, &["replay", "abort", "spend"])?.status.success());

    let dropped = dev.apply("all", &["DROP STREAM orders;", "DROP VIEW spend;"]).await?;
    assert!(dropped.changes.iter().all(|change| change.kind() == ChangeKind::Deleted));
    ensure!(dropped.changes[0].notes[0].contains("orders.dead-letters"), "{dropped:?}");
    let refused = append(&dev, 600..601).await.unwrap_err().downcast::<tonic::Status>()?;
    assert_eq!(refused.code(), Code::NotFound);
    ensure!(refused.message().contains("stream orders was deleted"), "{refused:?}");
    until_deleted(&dev, &third).await?;
    let now = catalog(&dev).await?;
    assert_eq!((now.streams.len(), now.views.len(), now.generations.len()), (0, 0, 0));

    // The topics have everything.
    dev.apply("last", &[STREAM, VIEW]).await?;
    assert_eq!(views::count(&dev, COUNT, after(&[more])).await?, 600);
    assert_eq!(letters(&dev).await?, 50);
    dev.terminate().await
}
