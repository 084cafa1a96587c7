//! `kill -9` of `headwater dev`, twenty times, at random moments of ingest, replay and swap. Each
//! acknowledged event is in the view exactly once, and the view ends as in a run without kills.
//!
//! A kill comes while a request, a replay or a swap stands still at a failpoint, so that it
//! interrupts that on any machine; or some milliseconds after a batch was sent. Which point, which
//! batch and how long after is the seed's choice. `HEADWATER_KILLS` asks for more kills than
//! twenty.
//!
//! Events carry no id, so a client that gets no answer must find out what of its batch is in the
//! log before it sends the rest again. It has one batch on the way at a time, and the log keeps a
//! partition's order; so once everything in the log is processed, the view's position says it
//! exactly.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    dev::Dev,
    failpoints::point,
    flights::{self, Flight, PARTITIONS, View, punctuality},
    patience::{eventually, found},
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

/// Twenty, or what `HEADWATER_KILLS` says.
fn kills() -> usize {
    let kills = std::env::var("HEADWATER_KILLS").ok().and_then(|kills| kills.parse().ok());
    kills.unwrap_or(20).max(ROUND.len())
}

/// A shard reads and commits in small steps, so that a replay can stand still in its middle.
const SMALL_STEPS: &str = "[processor]\nread-bytes = \"8 KiB\"\ncommit-bytes = \"1 B\"\n";

const BATCH: usize = 50;

/// The work beside ingest when the kill comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    Nothing,
    /// A replay is started.
    Replay,
    /// The view is promoted or undone, whichever is its turn.
    Swap,
}

/// The share of each among the kills. The replays come before the swaps, of which there is an even
/// number.
const ROUND: [(Beside, usize); 3] = [(Beside::Nothing, 6), (Beside::Replay, 6), (Beside::Swap, 8)];

impl Beside {
    /// The points at which it can stand still.
    fn points(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[point::APPEND],
            Self::Replay => &[point::REPLAY, point::ALIGN, point::DIFF],
            Self::Swap => &[point::MUTE, point::SWAP],
        }
    }
}

/// The moment of a kill.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: At,
    delay: Duration,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// When this batch of the round is sent.
    Batch(usize),
    /// While something stands still at this point.
    Point(&'static str),
}

impl Moment {
    fn choose(random: &mut StdRng, beside: Beside, batches: usize) -> Self {
        let points = beside.points();
        let at = match random.random_range(0..=points.len()) {
            0 => At::Batch(random.random_range(0..batches)),
            place => At::Point(points[place - 1]),
        };
        Self { at, delay: Duration::from_micros(random.random_range(0..20_000)) }
    }
}

/// The client, and what it knows of the log.
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
    /// How many batches are sent before the one beside which the server is killed, and how long
    /// after its start.
    kill_in: Option<(usize, Duration)>,
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
            kill_in: None,
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
        let kill = match &mut self.kill_in {
            Some((0, delay)) => Some(*delay),
            Some((batches, _)) => {
                *batches -= 1;
                None
            }
            None => None,
        };
        let mut ingest = dev.ingest();
        let append = ingest.append(request);
        let answer = match kill {
            None => append.await,
            Some(delay) => {
                let kill = async {
                    tokio::time::sleep(delay).await;
                    dev.kill_beside()
                };
                let (answer, killed) = tokio::join!(append, kill);
                killed?;
                answer
            }
        };
        let answer = answer?.into_inner();
        ensure!(answer.rejected == 0, "{answer:?}");
        self.acknowledged += self.on_the_way.len();
        for place in std::mem::take(&mut self.on_the_way) {
            self.stored[flights::partition(&self.flights[place]) as usize] += 1;
        }
        Ok(())
    }

    /// Finds, after a crash, which events of the batch on the way are in the log, and sends the
    /// rest.
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
    let settled = async || {
        let positions = views::punctuality(dev, Freshness::default()).await?.positions();
        Ok(found(positions, |positions| positions.iter().sum::<u64>() == stream.records))
    };
    eventually(&format!("the view has all {} records", stream.records), settled).await
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

/// As [`work`], with a server that is killed at this moment of it.
async fn interrupt(
    client: &mut Client,
    dev: &Dev,
    beside: Beside,
    until: usize,
    moment: Moment,
) -> Result<()> {
    let point = match moment.at {
        At::Point(point) => point,
        At::Batch(number) => {
            client.kill_in = Some((number, moment.delay));
            let outcome = work(client, dev, beside, until).await;
            client.kill_in = None;
            return outcome;
        }
    };
    dev.failpoints().set(point)?;
    let kill = async {
        dev.failpoints().reached(point).await?;
        tokio::time::sleep(moment.delay).await;
        dev.kill_beside()
    };
    let (outcome, killed) = tokio::join!(work(client, dev, beside, until), kill);
    killed?;
    outcome
}

/// The work beside each kill, in order.
fn rounds() -> Vec<Beside> {
    let kills = kills();
    let of = |(beside, share): (Beside, usize)| {
        // Swaps come in pairs, so that the last of them undid.
        vec![beside; (share * kills / 20).max(2).next_multiple_of(2)]
    };
    ROUND.into_iter().flat_map(of).collect()
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

fn seed() -> u64 {
    let seed = std::env::var("HEADWATER_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8) % 1_000_000
    });
    eprintln!("HEADWATER_SEED={seed} repeats the moments of this run");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_at_random_moments_lose_nothing_and_count_nothing_twice() -> Result<()> {
    let seed = seed();
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");

    let mut client = Client::new()?;
    let (all, rounds) = (client.flights.len(), rounds());
    let kills = rounds.len();
    let replays = rounds.iter().filter(|beside| **beside == Beside::Replay).count();
    let mut dev = Dev::start_with(&data, SMALL_STEPS).await?;
    create(&dev).await?;
    for (round, beside) in rounds.into_iter().enumerate() {
        let until = all * (round + 1) / kills;
        let batches = (until - client.next).div_ceil(BATCH);
        let moment = Moment::choose(&mut random, beside, batches);
        let outcome = interrupt(&mut client, &dev, beside, until, moment).await;
        eprintln!(
            "kill {round} at {moment:?}, beside ingest: {beside:?}; {} of {all} acknowledged, {} on the way",
            client.acknowledged,
            client.on_the_way.len(),
        );
        let stands = matches!(moment.at, At::Point(_));
        ensure!(
            outcome.is_err() || !stands,
            "seed {seed}: kill {round} at {moment:?} interrupted nothing"
        );
        drop(dev);

        dev = Dev::start_with(&data, SMALL_STEPS)
            .await
            .with_context(|| format!("seed {seed}, after kill {round}"))?;
        let context = || format!("seed {seed}, after kill {round} beside {beside:?}");
        client.recover(&dev).await.with_context(context)?;
        // The same requests again finish what was asked for.
        work(&mut client, &dev, beside, until).await.with_context(context)?;
        client.check(&dev).await.with_context(context)?;
        match beside {
            Beside::Nothing => {}
            Beside::Replay => {
                client.replays += 1;
                if client.replays < replays {
                    abort(&dev, client.replays).await.with_context(context)?;
                }
            }
            Beside::Swap => client.swaps += 1,
        }
    }

    // The last swap was an undo: promote once more, to end with the second version.
    swap(&dev, client.swaps).await?;
    let positions = settled(&dev).await?;
    assert_eq!(positions.iter().sum::<u64>(), all as u64, "seed {seed}");
    let disturbed = client.check(&dev).await?;
    assert_eq!(disturbed, undisturbed(&directory.path().join("undisturbed")).await?, "seed {seed}");
    assert_eq!(disturbed, punctuality(client.flights.iter(), 2), "seed {seed}");
    Ok(())
}
