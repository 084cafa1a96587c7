//! A full disk: what was acknowledged stays, what is refused says so, and when there is room again the
//! same process goes on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    dev::{Dev, PATIENCE},
    views::{self, after},
};
use headwater_proto::ingest::v1::AppendRequest;
use headwater_types::Token;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tonic::Code;

const STREAM: &str = "CREATE STREAM notes (id BIGINT NOT NULL, text VARCHAR NOT NULL, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds') WITH (topic = 'notes', format = 'json', partitions = 1);";
const VIEW: &str = "CREATE MATERIALIZED VIEW totals WITH (retention = 'forever') AS
    SELECT id % 10 AS bucket, count(*) AS notes, sum(id) AS ids FROM notes GROUP BY id % 10;";

/// A small file system; dropping it takes it away.
struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None` where this user may not mount.
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
        // Lazily: a child that is being killed may still hold files.
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

    let (mut acknowledged, mut token) = (0_u64, None::<Token>);
    let mut next = 0;
    let refusal = loop {
        ensure!(next < 300, "300 MB fit on a disk of 192");
        let mut client = dev.ingest();
        let append = tokio::time::timeout(PATIENCE, client.append(batch(next * 1_000)));
        next += 1;
        match append.await.context("an append neither succeeds nor fails")? {
            Ok(answer) => {
                let answer = answer.into_inner();
                acknowledged += answer.accepted;
                let covered: Token = answer.token.parse()?;
                token.get_or_insert_with(|| Token::new(covered.stream.clone())).join(&covered);
            }
            Err(status) => break status,
        }
    };
    eprintln!("{acknowledged} events were acknowledged; then: {refusal}");
    assert!(matches!(refusal.code(), Code::Unavailable | Code::ResourceExhausted), "{refusal:?}");
    assert!(acknowledged > 0);
    assert!(!dev.has_ended(), "{}", dev.said());

    fs::remove_file(&ballast)?;
    let deadline = Instant::now() + PATIENCE;
    let mut attempts = next;
    let last = loop {
        attempts += 1;
        match dev.ingest().append(batch(next * 1_000)).await {
            Ok(answer) => break answer.into_inner(),
            Err(status) => {
                ensure!(Instant::now() < deadline, "there is room again, but: {status}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    acknowledged += last.accepted;
    let count =
        views::count(&dev, "SELECT sum(notes) FROM totals", after(&[last.token.clone()])).await?;
    // What was refused may have reached the disk in the end; what was acknowledged must have.
    let stored = u64::try_from(count)?;
    assert!(stored >= acknowledged, "{stored} events in the view, {acknowledged} acknowledged");
    assert!(stored <= attempts * 1_000, "{stored}");
    assert_eq!(stored % 1_000, 0, "a batch is there as a whole or not at all");

    // And the next process finds the same.
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
