//! Wrong settings, brokers that are away, topics of ours that would delete records, a second
//! coordinator: each is refused in clear words, and nothing is lost.

use std::{
    collections::{BTreeMap, HashMap},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    dev,
    docker::{self, Broker, Kind, Options, Service},
    flights,
    patience::{PATIENCE, eventually, found},
    platform::Platform,
    topics,
};
use headwater_proto::ingest::v1::{AppendRequest, append_result::Outcome};
use tokio::task::JoinSet;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_waits_for_its_brokers_and_says_so_once() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let address = broker.bootstrap_network();
        broker.kill().await?;
        let mut services = Vec::new();
        for (kind, name) in [
            (Kind::Coordinator, "coordinator"),
            (Kind::Ingest, "ingest"),
            (Kind::Processor, "processor"),
            (Kind::Query, "query"),
        ] {
            services.push(Service::launch(kind, name, &broker, Options::new()).await?);
        }
        let complaints =
            |log: &str| log.lines().filter(|line| line.contains("cannot be reached")).count();
        for service in &services {
            let kind = service.kind();
            let what = format!("{kind:?} says that its brokers are away");
            let said = eventually(&what, async || {
                let said = (service.get("/healthz").await, service.get("/readyz").await);
                let log = service.log().await?;
                ensure!(service.exit_code().await?.is_none(), "{kind:?} ended:\n{log}");
                Ok(found((said, log), |((alive, ready), log)| {
                    matches!((alive, ready), (Ok((200, _)), Ok((503, _)))) && complaints(log) > 0
                }))
            });
            let (_, log) = said.await?;
            ensure!(log.contains(&address), "{kind:?} does not name {address}:\n{log}");
        }
        // A flood would come now.
        tokio::time::sleep(Duration::from_secs(12)).await;
        for service in &services {
            let (kind, log) = (service.kind(), service.log().await?);
            let complaints = complaints(&log);
            ensure!(complaints <= 3, "{kind:?} complains {complaints} times:\n{log}");
        }
        broker.start_again().await?;
        for service in &services {
            service.wait_ready().await?;
        }
        for service in &services {
            let code = service.stop(PATIENCE).await?;
            ensure!(code == 0, "{:?} ended with {code}:\n{}", service.kind(), service.log().await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_its_own_that_would_forget_is_refused() -> Result<()> {
    docker::test(async {
        for topic in ["headwater.control", "headwater.claims"] {
            let broker = Broker::start().await?;
            broker.create_topic(topic, 1, &[("retention.ms", "86400000")]).await?;
            let coordinator =
                Service::launch(Kind::Coordinator, "coordinator", &broker, Options::new()).await?;
            let code = coordinator.ended().await?;
            let log = coordinator.log().await?;
            assert_eq!(code, 2, "{log}");
            for part in [topic, "deletes old records", "retention.ms=-1"] {
                ensure!(log.contains(part), "it does not say what is wrong:\n{log}");
            }
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_coordinator_stands_by_and_takes_over() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        let second = cluster.another_coordinator(&broker).await?;
        stands_by(&second).await?;
        let stream = flights::definition("stream.sql")?;
        let refused =
            OnlyCoordinator(&second).apply("early", &[&stream]).await.expect_err("it stands by");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        cluster.apply("first", &[&stream]).await?;

        cluster.coordinator.kill().await?;
        second.wait_ready().await?;
        let v1 = flights::definition("punctuality_v1.sql")?;
        let applied = OnlyCoordinator(&second).apply("second", &[&stream, &v1]).await?;
        assert_eq!(applied.changes.len(), 2);
        // The first coordinator comes back, and stands by now.
        cluster.coordinator.launch_again().await?;
        stands_by(&cluster.coordinator).await
    })
    .await
}

/// Waits until a coordinator says that another one leads.
async fn stands_by(coordinator: &Service) -> Result<()> {
    let stands_by = async || {
        let said = coordinator.get("/readyz").await;
        Ok(found(said, |said| matches!(said, Ok((503, why)) if why.contains("standing by"))))
    };
    eventually("the coordinator stands by", stands_by).await?.map(drop)
}

struct OnlyCoordinator<'a>(&'a Service);

impl Platform for OnlyCoordinator<'_> {
    fn ingest_channel(&self) -> tonic::transport::Channel {
        self.0.channel()
    }
    fn coordinator_channel(&self) -> tonic::transport::Channel {
        self.0.channel()
    }
    fn query_channel(&self) -> tonic::transport::Channel {
        self.0.channel()
    }
}

const NOTES: &str = "CREATE STREAM notes (id VARCHAR, text VARCHAR, ts TIMESTAMP, \
     WATERMARK FOR ts AS ts - INTERVAL '5 seconds') \
     WITH (topic = 'notes', format = 'json', key = 'id', partitions = 2);";

/// A note with a text of this length that no compression makes much shorter.
fn note(id: &str, length: usize) -> Vec<u8> {
    let mut state = length as u64 + 1;
    let text: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'0' + (state >> 58) as u8)
    })
    .map(|letter| if letter == '\\' { '~' } else { letter })
    .take(length)
    .collect();
    format!("{{\"id\":\"{id}\",\"text\":\"{text}\",\"ts\":\"2024-01-01T00:00:00Z\"}}").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_over_the_brokers_limit_is_refused_alone() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 0, 0).await?;
        // The owner of this topic allows shorter records than the broker does.
        broker.create_topic("narrow", 2, &[("max.message.bytes", "100000")]).await?;
        let narrow = NOTES.replace("notes", "narrow");
        cluster.apply("both", &[NOTES, &narrow]).await?;
        for (stream, [good, bad, small], limit) in [
            ("notes", [900_000, 1_020_000, 10], "limit of 1000000"),
            ("narrow", [99_000, 101_000, 10], "limit of 100000"),
        ] {
            let mut events = vec![note("a", good), note("a", bad), note("a", small)];
            // All of them are far more than one batch may have.
            events.extend((0..2000).map(|n| note("a", 200 + n)));
            let request = AppendRequest {
                stream: stream.into(),
                events: events.iter().map(|event| event.clone().into()).collect(),
            };
            let answer = cluster.ingest().append(request).await?.into_inner();
            let mut accepted = Vec::new();
            for (index, result) in answer.results.into_iter().enumerate() {
                match result.outcome {
                    Some(Outcome::Accepted(place)) => {
                        accepted.push((place.partition, place.offset))
                    }
                    Some(Outcome::Rejected(rejected)) => {
                        ensure!(index == 1, "event {index} of {stream}: {}", rejected.reason);
                        ensure!(rejected.reason.contains(limit), "{}", rejected.reason);
                        ensure!(!rejected.retryable, "it would be refused again");
                    }
                    None => anyhow::bail!("no outcome"),
                }
            }
            events.remove(1);
            let stored = topics::read(&broker, stream).await?;
            let places: Vec<_> = stored.iter().map(|it| (it.partition, it.offset)).collect();
            ensure!(
                places == accepted,
                "{stream} is not stored once and in order, where it was said"
            );
            let stored: Vec<_> = stored.into_iter().filter_map(|record| record.value).collect();
            ensure!(stored == events, "{stream} has other events than were accepted");
        }
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingest_answers_while_its_broker_does_not_and_loses_nothing_that_it_acknowledged()
-> Result<()> {
    const CLIENTS: usize = 64;
    /// The outage is longer than an append is tried.
    const OUTAGE: Duration = Duration::from_secs(40);
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 0, 0).await?;
        cluster.apply("notes", &[NOTES]).await?;
        let over = Arc::new(AtomicBool::new(false));
        let (accepted, rejected) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (mut ingest, over) = (cluster.ingest(), over.clone());
            let (accepted, rejected) = (accepted.clone(), rejected.clone());
            clients.spawn(async move {
                let mut told = Vec::new();
                for request in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let event = |n| note(&format!("{client}/{request}/{n}"), 100);
                    let events: Vec<_> = (0..20).map(event).collect();
                    let asked = AppendRequest {
                        stream: "notes".into(),
                        events: events.iter().map(|event| event.clone().into()).collect(),
                    };
                    let answer = ingest.append(asked).await?.into_inner();
                    accepted.fetch_add(usize::try_from(answer.accepted)?, Ordering::Relaxed);
                    rejected.fetch_add(usize::try_from(answer.rejected)?, Ordering::Relaxed);
                    told.extend(events.into_iter().zip(answer.results));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                anyhow::Ok(told)
            });
        }
        let more_than = async |count: &AtomicUsize, known: usize, what: &str| {
            let counted = async || Ok(found(count.load(Ordering::Relaxed), |now| *now > known));
            eventually(what, counted).await
        };
        more_than(&accepted, 0, "events are accepted").await?;
        broker.freeze().await?;
        let (frozen, mut waits) = (Instant::now(), false);
        // The broker goes on only after these answers: an answer that waited for it would never
        // come.
        while frozen.elapsed() < OUTAGE || !waits || rejected.load(Ordering::Relaxed) == 0 {
            let at = frozen.elapsed();
            ensure!(at < PATIENCE, "ready {}, {rejected:?} rejected after {at:?}", !waits);
            for path in ["/healthz", "/readyz"] {
                let said = tokio::time::timeout(PATIENCE, cluster.ingest.get(path)).await;
                let said = said.with_context(|| format!("no answer of {path} without a broker"))?;
                match (path, said?) {
                    ("/readyz", (code, _)) => waits |= code == 503,
                    (_, (code, why)) => ensure!(code == 200, "{path}: {why}"),
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        broker.thaw().await?;
        cluster.ingest.wait_ready().await?;
        let before = accepted.load(Ordering::Relaxed);
        more_than(&accepted, before, "events are accepted again").await?;
        over.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        while let Some(told) = clients.join_next().await {
            answers.extend(told??);
        }
        let mut stored = BTreeMap::new();
        let mut times = HashMap::new();
        for record in topics::read(&broker, "notes").await? {
            let value = record.value.context("a note")?;
            *times.entry(value.clone()).or_insert(0) += 1;
            stored.insert((record.partition, record.offset), value);
        }
        for (event, result) in answers {
            let here = times.get(&event).copied().unwrap_or(0);
            ensure!(here <= 1, "an event was stored {here} times");
            match result.outcome.context("an outcome")? {
                Outcome::Accepted(place) => {
                    let found = stored.get(&(place.partition, place.offset));
                    ensure!(found == Some(&event), "an event that was acknowledged is not there");
                }
                Outcome::Rejected(why) => {
                    ensure!(why.retryable, "{}", why.reason);
                    let not_stored = why.reason.starts_with("not stored");
                    ensure!(!not_stored || here == 0, "stored nevertheless: {}", why.reason);
                }
            }
        }
        cluster.terminate().await
    })
    .await
}

/// A service's binary beside the command under test.
fn service(name: &str) -> Command {
    let mut command = Command::new(dev::binary().with_file_name(format!("headwater-{name}")));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEADWATER_") {
            command.env_remove(name);
        }
    }
    command
}

#[test]
fn settings_that_would_break_a_promise_are_refused_before_anything_starts() {
    for (variable, value, said) in [
        ("HEADWATER_KAFKA__SETTINGS__ENABLE_AUTO_COMMIT", "true", "enable.auto.commit"),
        ("HEADWATER_KAFKA__SETTINGS__ISOLATION_LEVEL", "read_uncommitted", "aborted transactions"),
        ("HEADWATER_KAFKA__SETTINGS__SASL_MECHANIZM", "PLAIN", "sasl.mechanizm"),
        ("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "kafka", "bootstrap-servers"),
        ("HEADWATER_CHECKPOINTS__URL", "ftp://host/x", "checkpoints"),
        ("HEADWATER_SERVER__LISTN", "0.0.0.0:1", "listn"),
    ] {
        for name in ["ingest", "processor", "coordinator", "query"] {
            let output = service(name)
                .arg("--check-config")
                .env(variable, value)
                .output()
                .expect("it starts");
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name} {variable}: {text}");
            assert!(text.contains(said), "{name} {variable}: {text}");
        }
    }
    for name in ["ingest", "processor", "coordinator", "query"] {
        let output = service(name).arg("--check-config").output().expect("it starts");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = service("ingest")
        .arg("--print-config")
        .env("HEADWATER_KAFKA__SETTINGS__SASL_PASSWORD", "open sesame")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("sasl") && !text.contains("sesame"), "{text}");
}
