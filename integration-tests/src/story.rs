//! The purpose of Headwater, end to end: a view goes live, its definition is corrected while events
//! flow, history is replayed beside it, the two are compared, the new one is swapped in, and
//! swapped back. Every number is compared with a computation over the file that knows nothing of
//! Headwater.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{
    control::v1::{GetCatalogRequest, Phase, Replay, Verdict},
    query::v1::Freshness,
};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    feed::{Feeder, Told},
    flights::{self, Flight, punctuality},
    patience::PATIENCE,
    platform::Platform,
    replays,
    views::{self, Reader, after},
};

/// Tells it on an empty platform, and leaves the view with its second definition in force. Returns
/// a token for all events.
///
/// # Errors
///
/// Something is not as the file says.
pub async fn tell<P: Platform + Send + Sync + 'static>(platform: &Arc<P>) -> Result<String> {
    let flights = Arc::new(flights::read()?);
    create(&**platform).await?;
    let mut feeder = Feeder::start(platform.ingest_channel(), flights.clone());
    let mut onlooker = Onlooker::start(platform.clone(), flights.clone());

    feeder.send(flights.len() / 3).await?;
    onlooker.sees_version(1).await?;
    // Events flow while the corrected definition is replayed, and between the swaps.
    feeder.allow(flights.len() / 2);
    let replay = correct(&**platform).await?;
    let held = replays::wait_for(&**platform, &replay, &[Phase::Hold]).await?;
    check_diff(&held, &flights)?;

    promote(&**platform, &replay, "promote").await?;
    expect_version(&**platform, 2).await?;
    onlooker.sees_version(2).await?;
    feeder.send(flights.len() * 2 / 3).await?;
    undo(&**platform, &replay, "undo").await?;
    expect_version(&**platform, 1).await?;
    onlooker.sees_version(1).await?;
    feeder.allow(flights.len());
    promote(&**platform, &replay, "promote again").await?;
    onlooker.sees_version(2).await?;

    feeder.send(flights.len()).await?;
    check_places(&flights, &feeder.told())?;
    let token = feeder.token()?;
    expect_all(&**platform, &flights, 2, &token).await?;
    // Undo loses no event that came after the swap.
    undo(&**platform, &replay, "undo at the end").await?;
    expect_all(&**platform, &flights, 1, &token).await?;
    promote(&**platform, &replay, "promote at the end").await?;

    expect_sql(&**platform, &flights, &token).await?;
    let reader = onlooker.stop().await?;
    ensure!(reader.epochs().len() >= 4, "the reader saw the epochs {:?} only", reader.epochs());
    check_tallies(&**platform).await?;
    Ok(token)
}

/// The stream and the first definition of the view. The same again changes nothing.
async fn create(platform: &impl Platform) -> Result<()> {
    let [stream, v1] =
        [flights::definition("stream.sql")?, flights::definition("punctuality_v1.sql")?];
    platform.apply("create", &[&stream, &v1]).await?;
    let again = platform.apply("create again", &[&stream, &v1]).await?;
    ensure!(
        again.changes.iter().all(|change| change.replay_id.is_empty()),
        "the same again started a replay"
    );
    Ok(())
}

/// Applies the second definition, and returns the replay that this starts.
async fn correct(platform: &impl Platform) -> Result<String> {
    let [stream, v2] =
        [flights::definition("stream.sql")?, flights::definition("punctuality_v2.sql")?];
    replays::start(platform, "correct", &[&stream, &v2]).await
}

/// The diff against the same computed from the file at the same fence.
fn check_diff(held: &Replay, flights: &[Flight]) -> Result<()> {
    ensure!(held.verdict() != Verdict::Pass, "rows changed, and nobody said that they may");
    let mut fence = vec![0; flights::PARTITIONS as usize];
    for position in &held.fence {
        fence[position.partition as usize] = position.offset;
    }
    let counted = flights::before(flights, &fence);
    ensure!(!counted.is_empty(), "the fence {fence:?} is before every event");
    let (old, new) = (punctuality(counted.clone(), 1), punctuality(counted, 2));
    let differs = |hour| {
        let (old, new) = (&old[hour], &new[hour]);
        (old.departures, old.on_time, old.avg_delay, old.max_delay)
            != (new.departures, new.on_time, new.avg_delay, new.max_delay)
    };
    let changed = old.keys().filter(|hour| differs(*hour)).count() as u64;
    let diff = held.diff.as_ref().context("no diff")?;
    assert_eq!((diff.changed, diff.same), (changed, old.len() as u64 - changed));
    assert_eq!((diff.only_old, diff.only_new), (0, 0));
    assert_eq!(diff.columns_only_new, ["cancelled"]);
    assert!(diff.columns_only_old.is_empty());
    let departures =
        diff.columns.iter().find(|column| column.column == "departures").context("departures")?;
    let sum = |view: &flights::View| view.values().map(|row| row.departures as f64).sum::<f64>();
    assert_eq!((departures.sum_old, departures.sum_new), (Some(sum(&old)), Some(sum(&new))));
    assert_eq!(
        departures.changed,
        old.keys().filter(|hour| old[*hour].departures != new[*hour].departures).count() as u64
    );
    Ok(())
}

async fn promote(platform: &impl Platform, replay: &str, request_id: &str) -> Result<()> {
    replays::promote(platform, replay, request_id).await?;
    replays::wait_for(platform, replay, &[Phase::Retain]).await.map(drop)
}

async fn undo(platform: &impl Platform, replay: &str, request_id: &str) -> Result<()> {
    replays::undo(platform, "punctuality", request_id).await?;
    replays::wait_for(platform, replay, &[Phase::Undone]).await.map(drop)
}

/// A swap that was answered is seen by the next query.
async fn expect_version(platform: &impl Platform, version: u32) -> Result<()> {
    let seen = views::punctuality(platform, Freshness::default()).await?.version();
    ensure!(seen == version, "a query after the swap still sees version {seen}");
    Ok(())
}

/// Every event was accepted, and lies where Kafka's partitioner puts it, in order.
fn check_places(flights: &[Flight], told: &[Told]) -> Result<()> {
    let mut next = vec![0; flights::PARTITIONS as usize];
    for (flight, told) in flights.iter().zip(told) {
        let partition = flights::partition(flight);
        let offset = &mut next[partition as usize];
        let expected = Told::Accepted { partition, offset: *offset };
        ensure!(*told == expected, "{told:?}, expected {expected:?}");
        *offset += 1;
    }
    Ok(())
}

/// The whole view of all flights.
async fn expect_all(
    platform: &impl Platform,
    flights: &[Flight],
    version: u32,
    token: &str,
) -> Result<()> {
    let all = views::punctuality(platform, after(&[token.to_owned()])).await?;
    assert_eq!(all.rows, punctuality(flights.iter(), version));
    assert_eq!(all.positions().iter().sum::<u64>(), flights.len() as u64);
    Ok(())
}

/// SQL over the second version, with the same numbers.
async fn expect_sql(platform: &impl Platform, flights: &[Flight], token: &str) -> Result<()> {
    let fresh = || after(&[token.to_owned()]);
    let flown = flights.iter().filter(|flight| flight.departed).count() as i64;
    let total = "SELECT sum(departures) FROM punctuality";
    assert_eq!(views::count(platform, total, fresh()).await?, flown);
    let pruned = "SELECT sum(cancelled) FROM punctuality WHERE origin = 'JFK'";
    let grounded =
        flights.iter().filter(|flight| !flight.departed && flight.origin == "JFK").count() as i64;
    assert_eq!(views::count(platform, pruned, fresh()).await?, grounded);
    Ok(())
}

/// Law 5: of each shard, the five tallies add up to what was read.
async fn check_tallies(platform: &impl Platform) -> Result<()> {
    let catalog = platform.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
    for shard in &catalog.shards {
        let tallies = shard.tallies.unwrap_or_default();
        let counted = tallies.applied
            + tallies.filtered
            + tallies.late
            + tallies.duplicate
            + tallies.dead_lettered;
        assert_eq!(counted, shard.position, "{shard:?}");
        assert_eq!(tallies.applied, shard.position, "{shard:?}");
    }
    Ok(())
}

/// A client that reads the view over and over. Each answer must be, row by row, what the flights
/// before exactly the offsets that it names make, in the version of the one generation that it
/// names.
struct Onlooker {
    stop: watch::Sender<bool>,
    version: watch::Receiver<u32>,
    task: JoinHandle<Result<Reader>>,
}

impl Onlooker {
    #[allow(clippy::disallowed_methods, reason = "a client of its own")]
    fn start(
        platform: Arc<impl Platform + Send + Sync + 'static>,
        flights: Arc<Vec<Flight>>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (see, version) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut reader = Reader::default();
            while !*stopped.borrow() {
                let answer = views::punctuality(&*platform, Freshness::default()).await?;
                reader.take(&answer)?;
                let before = flights::before(&flights, &answer.positions());
                ensure!(
                    answer.rows == punctuality(before, answer.version()),
                    "{:?} has other rows than the file",
                    answer.provenance
                );
                see.send_replace(answer.version());
            }
            Ok(reader)
        });
        Self { stop, version, task }
    }

    /// Waits until it has read this version of the view.
    async fn sees_version(&mut self, version: u32) -> Result<()> {
        let seen = self.version.wait_for(|seen| *seen == version);
        if tokio::time::timeout(PATIENCE, seen).await.context("it reads no more")?.is_err() {
            (&mut self.task).await??;
        }
        Ok(())
    }

    async fn stop(self) -> Result<Reader> {
        self.stop.send_replace(true);
        self.task.await?
    }
}
