//! `kill -9` of `headwater dev`, twenty times, at random moments of ingest, replay and swap. What was
//! acknowledged is in the view exactly once, and the view ends as in a run that nobody disturbed.
//!
//! Events carry no id, so a client that gets no answer must find out what of its batch is in the log
//! before it sends the rest again. It has one batch on the way at a time, and the log keeps a partition's
//! order; so once everything in the log is processed, the view's position says it exactly.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    dev::{Dev, PATIENCE},
    flights::{self, Flight, PARTITIONS, View, punctuality},
    platform::Platform as _,
    replays,
    views::{self, Reader},
};
use headwater_proto::{
    control::v1::{
        AbortRequest, GetCatalogRequest, Phase, PromoteRequest, StartRequest, UndoRequest,
    },
    ingest::v1::AppendRequest,
    query::v1::Freshness,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

const KILLS: usize = 20;
const BATCH: usize = 50;

/// What goes on beside ingest when the kill comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    /// A replay is started.
    Replay,
    /// The view is promoted or undone, whichever is its turn.
    Swap,
}

/// What the client knows.
struct Client {
    flights: Vec<Flight>,
    /// The next flight that was never sent.
    next: usize,
    /// Records of ours in each partition, as far as we know.
    stored: Vec<u64>,
    /// The batch on the way, as places in `flights`.
    on_the_way: Vec<usize>,
    acknowledged: usize,
    replays: usize,
    swaps: usize,
    reader: Reader,
}

impl Client {
    fn new() -> Result<Self> {
        let stored = vec![0; PARTITIONS as usize];
        let flights = flights::read()?;
        let (on_the_way, reader) = (Vec::new(), Reader::default());
        Ok(Self {
            flights,
            next: 0,
            stored,
            on_the_way,
            acknowledged: 0,
            replays: 0,
            swaps: 0,
            reader,
        })
    }

    /// Sends flights up to `until`, one batch at a time. An error leaves the batch on the way.
    async fn send(&mut self, dev: &Dev, until: usize) -> Result<()> {
        while self.next < until {
            let end = (self.next + BATCH).min(until);
            let batch: Vec<usize> = (self.next..end).collect();
            self.next = end;
            self.append(dev, batch).await?;
        }
        Ok(())
    }

    async fn append(&mut self, dev: &Dev, batch: Vec<usize>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let events = batch.iter().map(|&place| self.flights[place].json.clone().into()).collect();
        self.on_the_way = batch;
        let request = AppendRequest { stream: "flights".into(), events };
        let answer = dev.ingest().append(request).await?.into_inner();
        ensure!(answer.rejected == 0, "{answer:?}");
        self.acknowledged += self.on_the_way.len();
        for place in std::mem::take(&mut self.on_the_way) {
            self.stored[flights::partition(&self.flights[place]) as usize] += 1;
        }
        Ok(())
    }

    /// After a crash: finds what of the batch on the way is in the log, and sends the rest.
    async fn recover(&mut self, dev: &Dev) -> Result<()> {
        let positions = settled(dev).await?;
        let mut found: Vec<u64> = Vec::new();
        for (partition, (stored, now)) in self.stored.iter().zip(&positions).enumerate() {
            let more = now.checked_sub(*stored);
            found.push(more.with_context(|| {
                format!("partition {partition} has {now} records, but {stored} were acknowledged: some are lost")
            })?);
        }
        let mut missing = Vec::new();
        for place in std::mem::take(&mut self.on_the_way) {
            let partition = flights::partition(&self.flights[place]) as usize;
            if found[partition] > 0 {
                found[partition] -= 1;
            } else {
                missing.push(place);
            }
        }
        ensure!(found.iter().all(|&more| more == 0), "records that nobody sent: {found:?}");
        self.stored = positions;
        self.append(dev, missing).await
    }

    /// Checks a whole answer against the file.
    async fn check(&mut self, dev: &Dev) -> Result<View> {
        let answer = views::punctuality(dev, Freshness::default()).await?;
        self.reader.take(&answer)?;
        let expected =
            punctuality(flights::before(&self.flights, &answer.positions()), answer.version());
        ensure!(answer.rows == expected, "{:?} has other rows than the file", answer.provenance);
        Ok(answer.rows)
    }
}

/// Waits until all that is in the log is in the view, and returns the positions.
async fn settled(dev: &Dev) -> Result<Vec<u64>> {
    let catalog = dev.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
    let stream =
        catalog.streams.iter().find(|stream| stream.name == "flights").context("the stream")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let positions = views::punctuality(dev, Freshness::default()).await?.positions();
        if positions.iter().sum::<u64>() == stream.records {
            return Ok(positions);
        }
        ensure!(
            Instant::now() < deadline,
            "the log has {} records, the view is at {positions:?}",
            stream.records
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn create(dev: &Dev) -> Result<()> {
    let [stream, v1] =
        ["stream.sql", "punctuality_v1.sql"].map(|name| flights::definition(name).unwrap());
    dev.apply("create", &[&stream, &v1]).await?;
    Ok(())
}

/// Starts the replay of this number, or finds it started.
async fn start(dev: &Dev, number: usize) -> Result<String> {
    let request = StartRequest {
        view: "punctuality".into(),
        view_sql: flights::definition("punctuality_v2.sql")?,
        request_id: format!("start {number}"),
        ..StartRequest::default()
    };
    Ok(dev.replays().start(request).await?.into_inner().replay_id)
}

async fn abort(dev: &Dev, number: usize) -> Result<()> {
    let request = AbortRequest {
        replay: "punctuality".into(),
        request_id: format!("abort {number}"),
        reason: "another one follows".into(),
    };
    dev.replays().abort(request).await?;
    Ok(())
}

/// The swap of this number: the even ones promote, the odd ones undo.
async fn swap(dev: &Dev, number: usize) -> Result<()> {
    let request_id = format!("swap {number}");
    let reason = String::new();
    let (replay, phase) = if number.is_multiple_of(2) {
        let request = PromoteRequest {
            replay: "punctuality".into(),
            request_id,
            reason,
            accept_failed: false,
        };
        (dev.replays().promote(request).await?.into_inner(), Phase::Retain)
    } else {
        let request = UndoRequest { view: "punctuality".into(), request_id, reason };
        (dev.replays().undo(request).await?.into_inner(), Phase::Undone)
    };
    replays::wait_unless_cut_off(dev, &replay.replay_id, &[phase]).await.map(drop)
}

/// One round: ingest and something beside it, until both are done or the server dies.
async fn work(client: &mut Client, dev: &Dev, beside: Beside, until: usize) -> Result<()> {
    let (replays, swaps) = (client.replays, client.swaps);
    let other = async {
        match beside {
            Beside::Nothing => Ok(()),
            Beside::Replay => {
                let replay = start(dev, replays).await?;
                replays::wait_unless_cut_off(dev, &replay, &[Phase::Hold]).await.map(drop)
            }
            Beside::Swap => swap(dev, swaps).await,
        }
    };
    let (sent, done) = tokio::join!(client.send(dev, until), other);
    sent.and(done)
}

fn rounds() -> Vec<Beside> {
    let mut rounds = vec![Beside::Nothing; 6];
    rounds.extend([Beside::Replay; 6]);
    rounds.extend([Beside::Swap; 8]);
    assert_eq!(rounds.len(), KILLS);
    rounds
}

async fn undisturbed(data: &Path) -> Result<View> {
    let dev = Dev::start(data).await?;
    create(&dev).await?;
    let mut client = Client::new()?;
    let all = client.flights.len();
    client.send(&dev, all).await?;
    work(&mut client, &dev, Beside::Replay, all).await?;
    swap(&dev, 0).await?;
    settled(&dev).await?;
    client.check(&dev).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_at_random_moments_lose_nothing_and_count_nothing_twice() -> Result<()> {
    let seed = std::env::var("HEADWATER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8) % 1_000_000
    });
    eprintln!("HEADWATER_SEED={seed} repeats the moments of this run");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");

    let mut client = Client::new()?;
    let all = client.flights.len();
    let mut dev = Dev::start(&data).await?;
    create(&dev).await?;
    let mut interrupted = 0;
    for (round, beside) in rounds().into_iter().enumerate() {
        let until = all * (round + 1) / KILLS;
        let delay = Duration::from_millis(random.random_range(1..170));
        let killer = dev.kill_after(delay);
        let outcome = work(&mut client, &dev, beside, until).await;
        let began = Instant::now();
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
        interrupted += usize::from(outcome.is_err());
        eprintln!(
            "kill {round} after {delay:?}, beside ingest: {beside:?}; {} of {all} acknowledged, {} on the way; {}",
            client.acknowledged,
            client.on_the_way.len(),
            if outcome.is_err() {
                "interrupted".into()
            } else {
                format!("idle for {:?}", began.elapsed())
            },
        );
        drop(dev);

        dev =
            Dev::start(&data).await.with_context(|| format!("seed {seed}, after kill {round}"))?;
        let context = || format!("seed {seed}, after kill {round} beside {beside:?}");
        client.recover(&dev).await.with_context(context)?;
        // What was asked for is done, by the same requests.
        work(&mut client, &dev, beside, until).await.with_context(context)?;
        client.check(&dev).await.with_context(context)?;
        match beside {
            Beside::Nothing => {}
            Beside::Replay => {
                client.replays += 1;
                if client.replays < 6 {
                    abort(&dev, client.replays).await.with_context(context)?;
                }
            }
            Beside::Swap => client.swaps += 1,
        }
    }
    eprintln!("{interrupted} of {KILLS} kills interrupted something");
    ensure!(interrupted >= KILLS / 5, "seed {seed}: the kills came too late to disturb anything");

    // The eighth swap undid; end with the second version.
    swap(&dev, client.swaps).await?;
    let positions = settled(&dev).await?;
    assert_eq!(positions.iter().sum::<u64>(), all as u64, "seed {seed}");
    let disturbed = client.check(&dev).await?;
    assert_eq!(disturbed, undisturbed(&directory.path().join("undisturbed")).await?, "seed {seed}");
    assert_eq!(disturbed, punctuality(client.flights.iter(), 2), "seed {seed}");
    Ok(())
}
