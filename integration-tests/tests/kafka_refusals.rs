//! Wrong settings, brokers that are away, topics that would lose what they are for, a second coordinator: clear
//! words, and nothing lost.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    dev::{self, PATIENCE},
    docker::{self, Broker, Kind, Options, Service},
    flights,
    platform::Platform,
};
use headwater_proto::ingest::v1::{AppendRequest, append_result::Outcome};
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
        // Long enough for a flood.
        tokio::time::sleep(Duration::from_secs(12)).await;
        for service in &services {
            let kind = service.kind();
            ensure!(
                service.exit_code().await?.is_none(),
                "{kind:?} ended:\n{}",
                service.log().await?
            );
            let (alive, _) = service.get("/healthz").await?;
            let (ready, why) = service.get("/readyz").await?;
            assert_eq!((alive, ready), (200, 503), "{kind:?}: {why}");
            let log = service.log().await?;
            let complaints = log.lines().filter(|line| line.contains("cannot be reached")).count();
            ensure!((1..=3).contains(&complaints), "{kind:?} complains {complaints} times:\n{log}");
            ensure!(log.contains(&address), "{kind:?} does not name {address}:\n{log}");
        }
        broker.start_again().await?;
        for service in &services {
            service.wait_ready().await?;
        }
        for service in &services {
            let code = service.stop(Duration::from_secs(30)).await?;
            ensure!(code == 0, "{:?} ended with {code}:\n{}", service.kind(), service.log().await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_topic_that_would_forget_is_refused() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        broker.create_topic("headwater.control", 1, &[("retention.ms", "86400000")]).await?;
        let coordinator =
            Service::launch(Kind::Coordinator, "coordinator", &broker, Options::new()).await?;
        let code = coordinator.ended().await?;
        let log = coordinator.log().await?;
        assert_eq!(code, 2, "{log}");
        ensure!(
            log.contains("headwater.control") && log.contains("deletes old records"),
            "it does not say what is wrong:\n{log}"
        );
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
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok((503, why)) = second.get("/readyz").await
                && why.contains("standing by")
            {
                break;
            }
            ensure!(Instant::now() < deadline, "{:?}", second.get("/readyz").await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
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
        // The first comes back, and stands by now.
        cluster.coordinator.start_again().await.ok();
        let (_, why) = cluster.coordinator.get("/readyz").await?;
        ensure!(why.contains("standing by"), "{why}");
        Ok(())
    })
    .await
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_over_the_brokers_limit_is_refused_alone() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 0, 0).await?;
        let stream = "CREATE STREAM notes (id VARCHAR, text VARCHAR, ts TIMESTAMP, \
             WATERMARK FOR ts AS ts - INTERVAL '5 seconds') \
             WITH (topic = 'notes', format = 'json', key = 'id', partitions = 2);";
        cluster.apply("notes", &[stream]).await?;
        let event = |length: usize| {
            format!(
                "{{\"id\":\"a\",\"text\":\"{}\",\"ts\":\"2024-01-01T00:00:00Z\"}}",
                "x".repeat(length)
            )
        };
        for (length, stored) in [(900_000, true), (1_020_000, false), (10, true)] {
            let request = AppendRequest {
                stream: "notes".into(),
                events: vec![event(length).into_bytes().into()],
            };
            let answer = cluster.ingest().append(request).await?.into_inner();
            match answer.results[0].outcome.clone() {
                Some(Outcome::Accepted(_)) => ensure!(stored, "{length} bytes were stored"),
                Some(Outcome::Rejected(rejected)) => {
                    ensure!(!stored, "{length} bytes: {}", rejected.reason);
                    ensure!(rejected.reason.contains("limit"), "{}", rejected.reason);
                    ensure!(!rejected.retryable, "it would be refused again");
                }
                None => anyhow::bail!("no outcome"),
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
