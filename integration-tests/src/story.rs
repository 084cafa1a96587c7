//! What Headwater is for, end to end: a view goes live, its definition is corrected while events flow,
//! history is replayed beside it, the two are compared, the new one is swapped in, and swapped back.
//! Every number is compared with a computation over the file that knows nothing of Headwater.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{
    control::v1::{GetCatalogRequest, Phase, PromoteRequest, UndoRequest, Verdict},
    ingest::v1::{AppendRequest, append_result::Outcome},
    query::v1::Freshness,
};
use headwater_types::Token;

use crate::{
    flights::{self, Flight, punctuality},
    platform::Platform,
    replays,
    views::{self, Reader, after},
};

const BATCH: usize = 100;

/// Appends all flights at a visible pace, and checks where each one went. Returns a token for all.
async fn feed(dev: &impl Platform, flights: &[Flight], sent: &AtomicUsize) -> Result<String> {
    let mut token: Option<Token> = None;
    let mut next = vec![0; flights::PARTITIONS as usize];
    for batch in flights.chunks(BATCH) {
        let events = batch.iter().map(|flight| flight.json.clone().into()).collect();
        let request = AppendRequest { stream: "flights".into(), events };
        let answer = dev.ingest().append(request).await?.into_inner();
        ensure!(answer.results.len() == batch.len() && answer.rejected == 0, "{answer:?}");
        for (flight, result) in batch.iter().zip(&answer.results) {
            let Some(Outcome::Accepted(place)) = &result.outcome else {
                anyhow::bail!("{result:?}")
            };
            let partition = flights::partition(flight);
            let expected = &mut next[partition as usize];
            ensure!(
                (place.partition, place.offset) == (partition, *expected),
                "{place:?}, expected {expected}"
            );
            *expected += 1;
        }
        let covered: Token = answer.token.parse()?;
        match &mut token {
            Some(token) => token.join(&covered),
            None => token = Some(covered),
        }
        sent.fetch_add(batch.len(), Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(token.context("no flights")?.to_string())
}

/// Reads the view over and over. Each answer must be, row by row, what the flights before exactly the
/// offsets that it names make, in the version of the one generation that it names.
async fn read(dev: &impl Platform, flights: &[Flight], stop: &AtomicBool) -> Result<Reader> {
    let mut reader = Reader::default();
    while !stop.load(Ordering::Relaxed) {
        let answer = views::punctuality(dev, Freshness::default()).await?;
        reader.take(&answer)?;
        let expected = punctuality(flights::before(flights, &answer.positions()), answer.version());
        ensure!(answer.rows == expected, "{:?} has other rows than the file", answer.provenance);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(reader)
}

async fn promote(dev: &impl Platform, request_id: &str) -> Result<()> {
    let request = PromoteRequest {
        replay: "punctuality".into(),
        request_id: request_id.into(),
        reason: "the story".into(),
        ..PromoteRequest::default()
    };
    let replay = dev.replays().promote(request).await?.into_inner().replay_id;
    replays::wait_for(dev, &replay, &[Phase::Retain]).await.map(drop)
}

async fn undo(dev: &impl Platform, request_id: &str) -> Result<()> {
    let request = UndoRequest {
        view: "punctuality".into(),
        request_id: request_id.into(),
        ..UndoRequest::default()
    };
    let replay = dev.replays().undo(request).await?.into_inner().replay_id;
    replays::wait_for(dev, &replay, &[Phase::Undone]).await.map(drop)
}

/// Tells it on an empty platform, and leaves the view with its second definition in force. Returns a token for
/// all events.
///
/// # Errors
///
/// Something is not as the file says.
pub async fn tell<P: Platform + Send + Sync + 'static>(dev: &Arc<P>) -> Result<String> {
    let flights = Arc::new(flights::read()?);
    let [stream, v1, v2] = ["stream.sql", "punctuality_v1.sql", "punctuality_v2.sql"]
        .map(|name| flights::definition(name).unwrap());
    dev.apply("create", &[&stream, &v1]).await?;
    let again = dev.apply("create again", &[&stream, &v1]).await?;
    ensure!(
        again.changes.iter().all(|change| change.replay_id.is_empty()),
        "the same again changes nothing"
    );

    let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let mut tasks = tokio::task::JoinSet::new();
    let feeder = {
        let (dev, flights, sent) = (dev.clone(), flights.clone(), sent.clone());
        tasks.spawn(async move { feed(&*dev, &flights, &sent).await.map(Some) })
    };
    let mut readers = tokio::task::JoinSet::new();
    {
        let (dev, flights, stop) = (dev.clone(), flights.clone(), stop.clone());
        readers.spawn(async move { read(&*dev, &flights, &stop).await });
    }
    while sent.load(Ordering::Relaxed) < flights.len() / 3 {
        ensure!(!feeder.is_finished(), "the feeder failed: {:?}", tasks.join_next().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // The corrected definition, while events flow.
    let applied = dev.apply("correct", &[&stream, &v2]).await?;
    let replay = applied
        .changes
        .iter()
        .find(|change| !change.replay_id.is_empty())
        .context("no replay was started")?;
    let held = replays::wait_for(&**dev, &replay.replay_id, &[Phase::Hold]).await?;
    ensure!(held.verdict() != Verdict::Pass, "rows changed, and nobody said that they may");

    // The diff against the same computed from the file at the same fence.
    let mut fence = vec![0; flights::PARTITIONS as usize];
    for position in &held.fence {
        fence[position.partition as usize] = position.offset;
    }
    let counted = flights::before(&flights, &fence);
    ensure!(!counted.is_empty(), "the fence {fence:?} is before every event");
    let (old, new) = (punctuality(counted.clone(), 1), punctuality(counted, 2));
    let differs = |hour| {
        let (old, new) = (&old[hour], &new[hour]);
        (old.departures, old.on_time, old.avg_delay, old.max_delay)
            != (new.departures, new.on_time, new.avg_delay, new.max_delay)
    };
    let changed = old.keys().filter(|hour| differs(*hour)).count() as u64;
    let diff = held.diff.context("no diff")?;
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

    promote(&**dev, "promote").await?;
    assert_eq!(
        views::punctuality(&**dev, Freshness::default()).await?.version(),
        2,
        "a promote that was answered is seen"
    );
    undo(&**dev, "undo").await?;
    assert_eq!(views::punctuality(&**dev, Freshness::default()).await?.version(), 1);
    promote(&**dev, "promote again").await?;

    let token = tasks.join_next().await.context("the feeder")???.context("a token")?;
    let all = views::punctuality(&**dev, after(std::slice::from_ref(&token))).await?;
    assert_eq!(all.rows, punctuality(flights.iter(), 2));
    assert_eq!(all.positions().iter().sum::<u64>(), flights.len() as u64);
    undo(&**dev, "undo at the end").await?;
    let all = views::punctuality(&**dev, after(std::slice::from_ref(&token))).await?;
    assert_eq!(
        all.rows,
        punctuality(flights.iter(), 1),
        "what arrived after the swap is not lost by undo"
    );
    promote(&**dev, "promote at the end").await?;

    // SQL over it, with the same numbers.
    let flown = flights.iter().filter(|flight| flight.departed).count() as i64;
    let total = "SELECT sum(departures) FROM punctuality";
    assert_eq!(views::count(&**dev, total, after(std::slice::from_ref(&token))).await?, flown);
    let pruned = "SELECT sum(cancelled) FROM punctuality WHERE origin = 'JFK'";
    let grounded =
        flights.iter().filter(|flight| !flight.departed && flight.origin == "JFK").count() as i64;
    assert_eq!(views::count(&**dev, pruned, after(std::slice::from_ref(&token))).await?, grounded);

    stop.store(true, Ordering::Relaxed);
    let reader = readers.join_next().await.context("the reader")???;
    assert!(reader.answers > 20, "only {} answers were read", reader.answers);
    assert!(reader.epochs().len() >= 3, "the reader saw the epochs {:?} only", reader.epochs());

    // Law 5: of each shard, the five tallies add up to what was read.
    let catalog = dev.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
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
    Ok(token)
}
