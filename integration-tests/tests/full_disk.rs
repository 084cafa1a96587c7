//! A full disk: acknowledged events stay, ingest refuses with the reason, and when there is room
//! again the same process goes on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    dev::Dev,
    patience::PATIENCE,
    platform::Platform as _,
    views::{self, after},
};
use headwater_proto::{
    ingest::v1::{AppendRequest, AppendResponse, append_result::Outcome},
    query::v1::Freshness,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const STREAM: &str = "CREATE STREAM notes (id BIGINT NOT NULL, text VARCHAR NOT NULL, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds') WITH (topic = 'notes', format = 'json', partitions = 1);";
const VIEW: &str = "CREATE MATERIALIZED VIEW totals WITH (retention = 'forever') AS
    SELECT id % 10 AS bucket, count(*) AS notes, sum(id) AS ids FROM notes GROUP BY id % 10;";

/// A small file system; dropping it takes it away.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Returns `None` where this user may not mount.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).ok()?;
        let options = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "headwater-test"])
            .arg(path)
            .output();
        mount.ok()?.status.success().then(|| Self(path.into()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A lazy umount: a child that is being killed may still hold files.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// One batch of about a megabyte that no compression makes smaller by much.
fn batch(first: u64) -> AppendRequest {
    let mut random = StdRng::seed_from_u64(first);
    let mut event = |id| {
        let text: String =
            (0..1_000).map(|_| char::from(random.random_range(b'#'..=b'['))).collect();
        format!(r#"{{"id":{id},"text":"{text}","ts":"2024-05-01T10:00:00Z"}}"#).into_bytes().into()
    };
    AppendRequest {
        stream: "notes".into(),
        events: (first..first + 1_000).map(&mut event).collect(),
    }
}

/// Appends a batch, which is stored as a whole, or returns the reason why not.
async fn append(dev: &Dev, number: u64) -> Result<Result<AppendResponse, String>> {
    let mut client = dev.ingest();
    let append = tokio::time::timeout(PATIENCE, client.append(batch(number * 1_000)));
    let answer = match append.await.context("an append neither succeeds nor fails")? {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(Err(status.to_string())),
    };
    let Some(Outcome::Rejected(rejected)) =
        answer.results.first().and_then(|result| result.outcome.clone())
    else {
        ensure!(
            answer.rejected == 0,
            "half of a batch for one partition was stored: {}",
            answer.rejected
        );
        return Ok(Ok(answer));
    };
    ensure!(answer.accepted == 0 && rejected.retryable, "{rejected:?}");
    Ok(Err(rejected.reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_that_was_acknowledged_and_is_survived() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let Some(disk) = Tmpfs::mount(&directory.path().join("disk"), "192m") else {
        eprintln!("skipped: this user may not mount a tmpfs");
        return Ok(());
    };
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![7; 96 << 20])?;
    let mut dev = Dev::start(&disk.0.join("data")).await?;
    dev.apply("create", &[STREAM, VIEW]).await?;

    let (mut acknowledged, mut next) = (0_u64, 0_u64);
    let refusal = loop {
        ensure!(next < 200, "200 MB fit on a disk of 96");
        let stored = append(&dev, next).await?;
        next += 1;
        match stored {
            Ok(answer) => acknowledged += answer.accepted,
            Err(reason) => break reason,
        }
    };
    eprintln!("{acknowledged} events were acknowledged; then: {refusal}");
    assert!(refusal.contains("disk is full") && refusal.contains("retry"), "{refusal}");
    assert!(acknowledged > 0);
    assert!(!dev.has_ended(), "{}", dev.said());
    // Queries still work.
    views::count(&dev, "SELECT sum(notes) FROM totals", Freshness::default()).await?;

    fs::remove_file(&ballast)?;
    let deadline = Instant::now() + PATIENCE;
    let mut attempts = next;
    let last = loop {
        attempts += 1;
        match append(&dev, next).await? {
            Ok(answer) => break answer,
            Err(reason) => {
                ensure!(Instant::now() < deadline, "there is room again, but: {reason}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    acknowledged += last.accepted;
    let count = views::count(
        &dev,
        "SELECT sum(notes) FROM totals",
        after(std::slice::from_ref(&last.token)),
    )
    .await?;
    // A refused batch may be on the disk in the end; an acknowledged one must be.
    let stored = u64::try_from(count)?;
    assert!(stored >= acknowledged, "{stored} events in the view, {acknowledged} acknowledged");
    assert!(stored <= attempts * 1_000, "{stored}");
    assert_eq!(stored % 1_000, 0, "a batch is there as a whole or not at all");

    // The next process finds the same.
    dev.kill();
    let data = dev.data().to_owned();
    drop(dev);
    let dev = Dev::start(&data).await?;
    let again = views::count(&dev, "SELECT sum(notes) FROM totals", after(&[last.token])).await?;
    assert_eq!(again, count);
    drop(dev);
    drop(disk);
    Ok(())
}
