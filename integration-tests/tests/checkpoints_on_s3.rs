//! The store of checkpoints on an S3-compatible server. Shards move by it and replays are compared
//! by it. When it is away, hangs, refuses or has no bucket, the processor says so once, with the
//! remedy, and no shard stops that can go on.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    docker::{self, Broker, KEY_ID, Kind, Network, ObjectStore, Options, SECRET, Service},
    flights::{self, Flight, punctuality},
    patience::{Found, PATIENCE, eventually, found},
    platform::Platform,
    replays,
    views::{self, after},
};
use headwater_proto::{
    control::v1::{Phase, PromoteRequest},
    ingest::v1::{AppendRequest, append_result::Outcome},
    status::v1::ShardStatus,
};
use headwater_state::{Error, Identity, Purpose, Store};
use headwater_types::{Name, Offset, PartitionId, Token};

const BUCKET: &str = "headwater";
const URL: &str = "s3://headwater/some/where";

type Settings = Vec<(&'static str, &'static str)>;

/// The settings with which a service uses the store, as for Amazon's S3.
fn settings(store: &ObjectStore, secret: &'static str) -> Settings {
    vec![
        ("HEADWATER_CHECKPOINTS__URL", URL),
        ("HEADWATER_PROCESSOR__HAND_OVER_TIMEOUT", "5s"),
        ("AWS_ENDPOINT_URL", store.endpoint_network().leak()),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", secret),
    ]
}

async fn definitions() -> Result<[String; 3]> {
    Ok([
        flights::definition("stream.sql")?,
        flights::definition("punctuality_v1.sql")?,
        flights::definition("punctuality_v2.sql")?,
    ])
}

/// Sends flights, and adds them to the token.
async fn append(platform: &impl Platform, flights: &[Flight], token: &mut Token) -> Result<()> {
    for batch in flights.chunks(500) {
        let events = batch.iter().map(|flight| flight.json.clone().into()).collect();
        let request = AppendRequest { stream: "flights".into(), events };
        for result in platform.ingest().append(request).await?.into_inner().results {
            match result.outcome.context("an outcome")? {
                Outcome::Accepted(at) => token.cover(PartitionId(at.partition), Offset(at.offset)),
                Outcome::Rejected(rejected) => anyhow::bail!("{}", rejected.reason),
            }
        }
    }
    Ok(())
}

/// Waits until the view has the rows that the file makes.
async fn expect_rows(
    platform: &impl Platform,
    flights: &[Flight],
    version: u32,
    token: &Token,
) -> Result<()> {
    let expected = punctuality(flights, version);
    eventually("the view has the rows of the file", async || {
        let answer = views::punctuality(platform, after(&[token.to_string()])).await;
        Ok(match answer {
            Ok(answer) if answer.rows == expected => Found::Yes(()),
            answer => Found::NotYet(format!("{:?}", answer.map(|answer| answer.provenance))),
        })
    })
    .await
}

/// Waits until all shards of all generations are as wanted.
async fn wait_for_shards(
    cluster: &Cluster,
    wanted: impl Fn(&ShardStatus) -> bool,
) -> Result<Vec<ShardStatus>> {
    let partitions = flights::PARTITIONS as usize;
    cluster
        .wait_shards("the shards are as they should be", |shards| {
            shards.len() >= partitions && shards.iter().all(&wanted)
        })
        .await
}

/// Positions of the hand-over checkpoints in the store, by generation and partition.
async fn stored(store: &ObjectStore) -> Result<BTreeMap<(String, u32), Vec<u64>>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for key in store.keys(BUCKET).await? {
        let inside = key.strip_prefix("some/where/").with_context(|| format!("{key} is there"))?;
        if let [generation, partition, "positions", name] =
            inside.split('/').collect::<Vec<_>>()[..]
        {
            let position = name.split('-').next().context("a position")?.parse()?;
            found.entry((generation.to_owned(), partition.parse()?)).or_default().push(position);
        }
    }
    Ok(found)
}

/// Waits until the store has exactly one checkpoint of every shard with state, at its position.
async fn wait_stored(cluster: &Cluster, store: &ObjectStore) -> Result<Vec<ShardStatus>> {
    eventually("the store has a checkpoint of where every shard is, and no other", async || {
        let shards = cluster.shards().await?;
        let wanted: BTreeMap<_, _> = shards
            .iter()
            .filter(|shard| shard.position > 0)
            .map(|shard| ((shard.generation.clone(), shard.partition), vec![shard.position]))
            .collect();
        let stored = stored(store).await?;
        Ok(match !wanted.is_empty() && stored == wanted {
            true => Found::Yes(shards),
            false => {
                Found::NotYet(format!("the shards are at {wanted:?}, and stored is {stored:?}"))
            }
        })
    })
    .await
}

/// Removes records with Kafka's own tool.
async fn trim(broker: &Broker, before: &BTreeMap<u32, u64>) -> Result<()> {
    let partitions: Vec<_> = before
        .iter()
        .map(|(partition, offset)| {
            format!("{{\"topic\":\"flights\",\"partition\":{partition},\"offset\":{offset}}}")
        })
        .collect();
    let script = format!(
        "echo '{{\"partitions\":[{}],\"version\":1}}' > /tmp/trim.json; \
         kafka-delete-records.sh --bootstrap-server $BOOTSTRAP --offset-json-file /tmp/trim.json",
        partitions.join(",")
    );
    broker.shell(&script).await.map(drop)
}

const PROCESSORS: [&str; 2] = ["processor-1", "processor-2"];

/// The shard as processors name it in their logs.
fn name_of(shard: &ShardStatus) -> String {
    format!("partition {} of generation {} ", shard.partition, shard.generation)
}

fn lines<'a>(log: &'a str, text: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(text)).collect()
}

/// Neither the log of a service nor its printed settings show the credentials of the store.
async fn expect_discretion(service: &Service, binary: &str) -> Result<()> {
    let settings = service.exec(&[binary, "--print-config"]).await?;
    ensure!(settings.contains(URL), "{settings}");
    for (what, text) in [("settings", settings), ("log", service.log().await?)] {
        ensure!(!text.contains(SECRET) && !text.contains(KEY_ID), "{binary}'s {what}:\n{text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_whose_processor_is_killed_goes_on_from_its_checkpoint_in_s3() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let store = ObjectStore::start(broker.network()).await?;
        store.create_bucket(BUCKET).await?;
        let cluster = Cluster::start_with(&broker, 2, 2, &settings(&store, SECRET)).await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = flights::read()?;
        let (first, second) = flights.split_at(flights.len() / 2);
        let mut token = Token::new(Name::new("flights")?);
        append(&cluster, first, &mut token).await?;
        cluster.wait_processed(&token.to_string()).await?;

        // The coordinator compares what it fetches from the store.
        let applied = cluster.apply("correct", &[&stream, &v2]).await?;
        let started = applied.changes.into_iter().find(|change| !change.replay_id.is_empty());
        let replay = started.context("no replay was started")?.replay_id;
        let held = replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        let (old, new) = (punctuality(first, 1), punctuality(first, 2));
        let differs = |hour: &&flights::Hour| {
            let (old, new) = (&old[*hour], &new[*hour]);
            (old.departures, old.on_time, old.avg_delay, old.max_delay)
                != (new.departures, new.on_time, new.avg_delay, new.max_delay)
        };
        let changed = old.keys().filter(differs).count() as u64;
        let diff = held.diff.context("no diff")?;
        assert_eq!((diff.changed, diff.same), (changed, old.len() as u64 - changed));
        let promote = PromoteRequest {
            replay: replay.clone(),
            request_id: "promote".into(),
            ..PromoteRequest::default()
        };
        cluster.replays().promote(promote).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;

        // The shards cannot be computed again: the log has only the records behind the checkpoints.
        let shards = wait_stored(&cluster, &store).await?;
        assert_eq!(shards.len(), 2 * flights::PARTITIONS as usize, "both generations");
        let trimmed: BTreeMap<_, _> =
            shards.iter().map(|shard| (shard.partition, shard.position)).collect();
        assert_eq!(trimmed.values().sum::<u64>(), first.len() as u64);
        trim(&broker, &trimmed).await?;

        // While the rest comes, a processor dies that has shards with state which the other one
        // never had. The processor that joins a group first may own all its shards for a moment.
        let (third, last) = second.split_at(second.len() / 2);
        append(&cluster, third, &mut token).await?;
        let mut victim = 0;
        let mut lost: Vec<&ShardStatus> = Vec::new();
        for (index, processor) in PROCESSORS.into_iter().enumerate() {
            let other = cluster.pairs[1 - index].processor.log().await?;
            let gave_up = lines(&other, "shard handed over");
            let fresh = shards.iter().filter(|shard| {
                let name = name_of(shard);
                shard.processor == processor
                    && shard.position > 0
                    && !gave_up
                        .iter()
                        .any(|line| line.contains(&name) && !line.contains("position=0 "))
            });
            let fresh: Vec<_> = fresh.collect();
            if fresh.len() > lost.len() {
                (victim, lost) = (index, fresh);
            }
        }
        ensure!(!lost.is_empty(), "each processor had the shards of the other: {shards:?}");
        cluster.pairs[victim].processor.kill().await?;
        append(&cluster, last, &mut token).await?;
        cluster.wait_processed(&token.to_string()).await?;
        expect_rows(&cluster, &flights, 2, &token).await?;
        let log = cluster.pairs[1 - victim].processor.log().await?;
        let restored = lines(&log, "shard restored from the store");
        for shard in lost {
            let name = name_of(shard);
            let place = format!("{URL}/{}/{}/positions/", shard.generation, shard.partition);
            ensure!(
                restored.iter().any(|line| line.contains(&name) && line.contains(&place)),
                "{name} was not restored:\n{}",
                restored.join("\n")
            );
        }

        // The processor comes back and gets shards. One checkpoint of each shard stays, at its
        // position.
        cluster.pairs[victim].processor.start_again().await?;
        let back = PROCESSORS[victim];
        cluster
            .wait_shards(&format!("{back} has a shard"), |shards| {
                shards.iter().any(|shard| shard.processor == back)
            })
            .await?;
        wait_stored(&cluster, &store).await?;
        expect_rows(&cluster, &flights, 2, &token).await?;

        for pair in &cluster.pairs {
            expect_discretion(&pair.processor, "headwater-processor").await?;
        }
        expect_discretion(&cluster.coordinator, "headwater-coordinator").await?;
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_missing_away_hung_or_closed_is_named_once_and_nothing_is_miscounted()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let store = ObjectStore::start(broker.network()).await?;
        let settings = settings(&store, SECRET);
        let cluster = Cluster::start_with(&broker, 1, 1, &settings).await?;
        let processor = &cluster.pairs[0].processor;
        let [stream, v1, _] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = flights::read()?;
        let quarters: Vec<_> = flights.chunks(flights.len().div_ceil(4)).collect();
        let upto = |quarter: usize| &flights[..quarters[..quarter].iter().map(|it| it.len()).sum()];
        let mut token = Token::new(Name::new("flights")?);

        // The bucket was forgotten. The processor finds out by itself when it is there.
        let forgotten = "the bucket of s3://headwater/";
        wait_for_shards(&cluster, |shard| shard.error.contains(forgotten)).await?;
        let (alive, _) = processor.get("/healthz").await?;
        let (ready, why) = processor.get("/readyz").await?;
        assert_eq!((alive, ready), (200, 503), "{why}");
        ensure!(why.contains(forgotten) && why.contains("create it"), "{why}");
        // It looks again meanwhile, and would say it again.
        tokio::time::sleep(Duration::from_secs(12)).await;
        store.create_bucket(BUCKET).await?;
        wait_for_shards(&cluster, |shard| shard.error.is_empty()).await?;
        processor.wait_ready().await?;
        let log = processor.log().await?;
        let stopped = lines(&log, "shard stopped");
        assert_eq!(stopped.len(), flights::PARTITIONS as usize, "{stopped:#?}");
        // The process says once for each shard why it is not ready.
        let said = lines(&log, forgotten);
        ensure!(said.len() <= 2 * flights::PARTITIONS as usize, "{said:#?}");
        append(&cluster, quarters[0], &mut token).await?;
        expect_rows(&cluster, upto(1), 1, &token).await?;
        wait_stored(&cluster, &store).await?;

        // The store is away: shards go on, and a shard that is opened goes on from the local disk.
        store.kill().await?;
        append(&cluster, quarters[1], &mut token).await?;
        expect_rows(&cluster, upto(2), 1, &token).await?;
        let said = async || {
            let log = processor.log().await?;
            Ok(found(log, |log| !lines(log, "not available, trying again").is_empty()))
        };
        eventually("the processor says that the store is away", said).await?;
        // A flood would come now.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let log = processor.log().await?;
        let complaints = lines(&log, "not available, trying again");
        ensure!(complaints.len() <= 3, "{complaints:#?}");
        ensure!(complaints.iter().all(|line| line.contains("the store of checkpoints")), "{log}");
        ensure!(complaints[0].contains(&store.endpoint_network()), "{complaints:#?}");
        ensure!(lines(&log, "object_store").is_empty(), "{log}");
        processor.kill().await?;
        processor.start_again().await?;
        append(&cluster, quarters[2], &mut token).await?;
        expect_rows(&cluster, upto(3), 1, &token).await?;
        let log = processor.log().await?;
        ensure!(!lines(&log, "using the copy on this disk").is_empty(), "{log}");

        // The store is back: checkpoints are stored again.
        store.start_again().await?;
        wait_stored(&cluster, &store).await?;
        let back = async || {
            let is_back = |log: &String| {
                lines(log, "is back").iter().any(|line| line.contains("checkpoints"))
            };
            Ok(found(processor.log().await?, is_back))
        };
        eventually("the processor says that the store is back", back).await?;

        // The store hangs: a processor still ends by itself, and its disk has everything.
        store.freeze().await?;
        append(&cluster, quarters[3], &mut token).await?;
        expect_rows(&cluster, upto(4), 1, &token).await?;
        let code = processor.stop(PATIENCE).await?;
        ensure!(code == 0, "it ended with {code}:\n{}", processor.log().await?);
        store.thaw().await?;
        processor.start_again().await?;
        expect_rows(&cluster, &flights, 1, &token).await?;
        wait_stored(&cluster, &store).await?;

        // The store refuses one of two processors. That one says what is wrong; when it is gone,
        // the other goes on with all shards.
        let wrong = "not-the-secret-and-not-shown-either";
        let with = |secret: &str| {
            let quick = [
                ("HEADWATER_KAFKA__SESSION_TIMEOUT", "2s"),
                ("HEADWATER_PROCESSOR__SESSION_GUARD", "1s"),
                ("AWS_SECRET_ACCESS_KEY", secret),
            ];
            let all = settings.iter().copied().chain(quick);
            all.fold(Options::new(), |options, (name, value)| options.setting(name, value))
        };
        let other = Service::launch(Kind::Processor, "processor-2", &broker, with(wrong)).await?;
        let shards = cluster
            .wait_shards("a shard says what is wrong", |shards| {
                shards.iter().any(|shard| !shard.error.is_empty())
            })
            .await?;
        let refused = shards.into_iter().find(|shard| !shard.error.is_empty());
        let refused = refused.context("a shard that says what is wrong")?;
        assert_eq!(refused.processor, "processor-2");
        let why = &refused.error;
        ensure!(why.contains("refuses access") && why.contains("check the credentials"), "{why}");
        ensure!(why.contains("SignatureDoesNotMatch"), "{why}");
        let log = other.log().await?;
        ensure!(!log.contains(wrong) && !log.contains(KEY_ID), "{log}");
        other.kill().await?;
        wait_for_shards(&cluster, |shard| {
            shard.error.is_empty() && shard.processor == "processor-1"
        })
        .await?;
        expect_rows(&cluster, &flights, 1, &token).await?;

        // A process that has only half of the credentials does not start.
        for (kind, name) in [(Kind::Processor, "processor-3"), (Kind::Coordinator, "coordinator-2")]
        {
            let half = Service::launch(kind, name, &broker, with("")).await?;
            let code = half.ended().await?;
            let log = half.log().await?;
            assert_eq!(code, 2, "{log}");
            ensure!(log.contains("AWS_SECRET_ACCESS_KEY is not") && !log.contains(KEY_ID), "{log}");
        }

        expect_discretion(processor, "headwater-processor").await?;
        cluster.terminate().await
    })
    .await
}

/// A server does what a store in memory does not: it lists in pages, removes a thousand at a
/// time, refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_files_than_a_page_and_files_of_many_parts_come_back_are_taken_over_and_go()
-> Result<()> {
    const FILES: u32 = 1_150;
    docker::test(async {
        let network = Network::create("network").await?;
        let server = ObjectStore::start(&network).await?;
        server.create_bucket(BUCKET).await?;
        let open = |url: &str, secret: &str| {
            let endpoint = server.endpoint_host();
            let variables = [
                ("AWS_ENDPOINT_URL", endpoint.as_str()),
                ("AWS_ACCESS_KEY_ID", KEY_ID),
                ("AWS_SECRET_ACCESS_KEY", secret),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Store::open_with(url, variables)
        };
        let store = open(URL, SECRET)?;
        let identity =
            Identity { generation: "00ff00ff00ff00ff".parse()?, partition: PartitionId(3) };
        let dir = tempfile::tempdir()?;
        let checkpoint = dir.path().join("checkpoint");
        std::fs::create_dir(&checkpoint)?;
        std::fs::write(checkpoint.join("CURRENT"), "MANIFEST-000004\n")?;
        for number in 0..FILES {
            std::fs::write(checkpoint.join(format!("{number:06}.sst")), number.to_le_bytes())?;
        }
        let large: Vec<u8> =
            (0..20_000_003u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(checkpoint.join("999999.sst"), &large)?;
        let files = u64::from(FILES) + 2;

        let upload = async |owner: &str, known| {
            let purpose = Purpose::HandOver;
            store.upload(&checkpoint, &identity, Offset(7), owner, purpose, known).await
        };
        let first = upload("1-a", None).await?;
        assert_eq!(first.sent().uploaded, files);
        assert_eq!(server.keys(BUCKET).await?.len() as u64, files + 1, "and the manifest");
        assert_eq!(
            upload("1-a", None).await?.sent().uploaded,
            0,
            "all of them are seen to be there"
        );
        let second = upload("2-b", Some(&first)).await?;
        assert_eq!((second.sent().uploaded, second.sent().copied), (0, files));
        store.prune(&identity, &second, &[]).await?;
        let left = server.keys(BUCKET).await?;
        assert_eq!(left.len() as u64, files + 1);
        ensure!(left.iter().all(|key| key.contains("2-b")), "{left:?}");

        let into = dir.path().join("into");
        let newest = store.newest(&identity).await?.context("nothing is there")?;
        store.fetch(&newest, &into).await?;
        ensure!(std::fs::read(into.join("999999.sst"))? == large, "the large file is another one");
        for number in 0..FILES {
            let read = std::fs::read(into.join(format!("{number:06}.sst")))?;
            assert_eq!(read, number.to_le_bytes());
        }
        let gone = store.manifest(first.url()).await;
        ensure!(matches!(gone, Err(Error::Gone { .. })), "{gone:?}");

        let refused = open(URL, "another")?.newest(&identity).await;
        ensure!(matches!(refused, Err(Error::StoreRefused { .. })), "{refused:?}");
        for bucketless in [
            open("s3://nowhere", SECRET)?.newest(&identity).await.map(drop),
            open("s3://nowhere", SECRET)?
                .upload(&checkpoint, &identity, Offset(7), "1-a", Purpose::HandOver, None)
                .await
                .map(drop),
        ] {
            ensure!(matches!(bucketless, Err(Error::NoBucket { .. })), "{bucketless:?}");
        }

        store.remove(&identity).await?;
        assert_eq!(server.keys(BUCKET).await?, [""; 0]);
        Ok(())
    })
    .await
}
