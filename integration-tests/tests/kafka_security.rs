//! TLS and logins against a broker that wants them: every way that works, the message of each that
//! does not, and no secret in any message.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::executor::block_on;
use headwater_integration_tests::{
    cluster::{self, Cluster},
    dev,
    docker::{self, Kind, Options, Secured, Service, SharedSecured, shared_secured},
    flights::{self, punctuality},
    kafka_login::{blocking, connect, everything, log_as, one_record, token, user, wait_told},
    patience::PATIENCE,
    platform::Platform,
    tokens::{Grant, TokenEndpoint},
    views::{self, after},
};
use headwater_log::{Error, Log as _};
use headwater_log_kafka::KafkaLog;
use headwater_proto::ingest::v1::AppendRequest;
use headwater_types::{Name, Offset, PartitionId};

/// A part of every secret here, by which a secret in a message is found.
const MARK: &str = "open-sesame";
const SECRET: &str = "open-sesame-1";
const WRONG: &str = "open-sesame-2";

const TLS: &str = "/etc/headwater/tls";

async fn broker() -> Result<SharedSecured> {
    // `guest` may log in, and has no rights.
    let plain = [("alice", SECRET), ("guest", SECRET)];
    shared_secured(&plain, &["alice", "former", "future", "late", "scram", "issued"]).await
}

/// A service that logs in by SCRAM-SHA-512 over TLS.
fn secure(broker: &Secured, user: &str, password: &str) -> Options {
    let setting = |name: &str| format!("HEADWATER_KAFKA__SETTINGS__{name}");
    let options = cluster::quick(&[])
        .setting(&setting("SECURITY_PROTOCOL"), "SASL_SSL")
        .setting(&setting("SASL_MECHANISM"), "SCRAM-SHA-512")
        .setting(&setting("SASL_USERNAME"), user)
        .setting(&setting("SASL_PASSWORD"), password)
        .setting(&setting("SSL_CA_LOCATION"), &format!("{TLS}/ca.pem"));
    options.bootstrap(&broker.secure()).mount(broker.authorities(), TLS)
}

async fn keeps_its_secrets(service: &Service) -> Result<()> {
    let log = service.log().await?;
    let (_, ready) = service.get("/readyz").await.unwrap_or_default();
    for text in [&log, &ready] {
        ensure!(!text.contains(MARK), "{:?} tells a secret:\n{text}", service.kind());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_right_on_a_broker_that_wants_scram_and_tls() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        broker.user("headwater", SECRET).await?;
        // Exactly the rights that docs/kafka-security.md names.
        let topics = ["Read", "Write", "Describe", "DescribeConfigs", "Create"];
        for (what, pattern, operations) in [
            (["--topic", "headwater."], "prefixed", &topics[..]),
            (["--topic", "flights"], "prefixed", &topics[..]),
            (["--group", "headwater"], "prefixed", &["Read", "Describe", "Delete"]),
            (["--transactional-id", "headwater/"], "prefixed", &["Write", "Describe"]),
        ] {
            let what = [what[0], what[1], "--resource-pattern-type", pattern];
            broker.allow("headwater", &what, operations).await?;
        }
        let cluster =
            Cluster::start_as(&broker, 1, 1, secure(&broker, "headwater", SECRET)).await?;
        let [stream, view] = ["stream.sql", "punctuality_v1.sql"].map(flights::definition);
        cluster.apply("create", &[&stream?, &view?]).await?;
        let flights = &flights::read()?[..2_000];
        let mut tokens = Vec::new();
        for batch in flights.chunks(500) {
            let events = batch.iter().map(|flight| flight.json.clone().into()).collect();
            let request = AppendRequest { stream: "flights".into(), events };
            let answer = cluster.ingest().append(request).await?.into_inner();
            assert_eq!(answer.rejected, 0, "{answer:?}");
            tokens.push(answer.token);
        }
        let answer = views::punctuality(&cluster, after(&tokens)).await?;
        assert_eq!(answer.rows, punctuality(flights, 1));
        let pair = &cluster.pairs[0];
        for service in [
            Some(&cluster.ingest),
            Some(&cluster.coordinator),
            Some(&pair.processor),
            pair.query.as_ref(),
        ] {
            keeps_its_secrets(service.context("a query service")?).await?;
        }
        cluster.terminate().await
    })
    .await
}

/// Waits until it says that it is not ready because of all these.
async fn wait_says(service: &Service, parts: &[&str]) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = service.get("/readyz").await;
        if let Ok((503, text)) = &said
            && parts.iter().all(|part| text.contains(part))
        {
            return Ok(text.clone());
        }
        ensure!(
            service.exit_code().await?.is_none() && Instant::now() < deadline,
            "it does not say {parts:?}: {said:?}\n{}",
            service.log().await?
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_says_it_once_and_serves_once_it_is_put_right_at_the_broker() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        broker.user("former", WRONG).await?;
        let debug = |options: Options| {
            options
                .setting("HEADWATER_TELEMETRY__LOG", "info,librdkafka=trace")
                .setting("HEADWATER_KAFKA__SETTINGS__DEBUG", "security,protocol")
        };
        let wrong = secure(&broker, "former", SECRET);
        let wrong = Service::launch(Kind::Ingest, "wrong", &broker, debug(wrong)).await?;
        // A service of another kind, whose user does not exist yet.
        let unknown = secure(&broker, "future", SECRET);
        let unknown = Service::launch(Kind::Query, "unknown", &broker, unknown).await?;
        let services = [(&wrong, "former"), (&unknown, "future")];
        for (service, user) in services {
            let address = broker.secure();
            let quoted = format!("{user:?}");
            wait_says(service, &[&address, &quoted, "SCRAM-SHA-512", "sasl.password"]).await?;
        }
        // A flood would come now: librdkafka tries again all the time.
        tokio::time::sleep(Duration::from_secs(15)).await;
        for (service, user) in services {
            ensure!(service.exit_code().await?.is_none(), "{user} ended");
            assert_eq!(service.get("/healthz").await?.0, 200, "{user} is not alive");
            let log = service.log().await?;
            let complaints = log.lines().filter(|line| line.contains(" refuses user ")).count();
            assert_eq!(complaints, 1, "{log}");
        }
        ensure!(wrong.log().await?.contains("librdkafka"), "nothing of librdkafka was logged");

        broker.user("former", SECRET).await?;
        broker.user("future", SECRET).await?;
        for (service, user) in services {
            service.wait_ready().await.with_context(|| user.to_owned())?;
            keeps_its_secrets(service).await?;
            assert_eq!(service.stop(PATIENCE).await?, 0, "{}", service.log().await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_without_a_certificate_that_is_trusted_is_told_nothing() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        broker.user("late", SECRET).await?;
        let of_another = secure(&broker, "late", SECRET)
            .setting("HEADWATER_KAFKA__SETTINGS__SSL_CA_LOCATION", &format!("{TLS}/other.pem"));
        let elsewhere = broker.secure_by_another_name().await?;
        let by_another_name = secure(&broker, "late", SECRET).bootstrap(&elsewhere);
        let mut services = Vec::new();
        for (name, options, address) in
            [("authority", of_another, broker.secure()), ("name", by_another_name, elsewhere)]
        {
            services.push((Service::launch(Kind::Ingest, name, &broker, options).await?, address));
        }
        for (service, address) in &services {
            wait_says(service, &[address, "is not trusted", "ssl.ca.location", "host names"])
                .await?;
        }
        for (service, _) in &services {
            keeps_its_secrets(service).await?;
            assert_eq!(service.stop(PATIENCE).await?, 0, "{}", service.log().await?);
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_rights_ends_and_names_what_to_grant() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        broker.user("nobody", SECRET).await?;
        let options = secure(&broker, "nobody", SECRET);
        let service = Service::launch(Kind::Coordinator, "nobody", &broker, options).await?;
        let code = service.ended().await?;
        let log = service.log().await?;
        assert_eq!(code, 2, "{log}");
        for part in ["user \"nobody\"", "Describe", "headwater.control", "kafka-acls"] {
            ensure!(log.contains(part), "it does not say {part}:\n{log}");
        }
        keeps_its_secrets(&service).await
    })
    .await
}

fn grant(lifetime: Duration) -> Grant {
    let [client, secret, scope] = ["issued", SECRET, "kafka"].map(str::to_owned);
    Grant { client, secret, scope, lifetime }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_writing_and_membership_log_in_by_plain_scram_and_tokens() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        broker.user("scram", SECRET).await?;
        let endpoint = TokenEndpoint::start(grant(Duration::from_secs(8)))?;
        for (name, config) in [
            ("plain", user(&broker.login(), "PLAIN", "alice", SECRET)),
            ("scram", user(&broker.login(), "SCRAM-SHA-512", "scram", SECRET)),
            ("token", token(&broker.tokens(), endpoint.url(), "issued", SECRET)),
        ] {
            config.check().map_err(anyhow::Error::msg)?;
            blocking(move || {
                let log = KafkaLog::connect(&config, name)?;
                everything(&log, name).with_context(|| format!("by {name}"))
            })
            .await?;
        }

        // A token expires, and the broker then closes the connection: the log must fetch one in
        // time.
        let config = token(&broker.tokens(), endpoint.url(), "issued", SECRET);
        let before = endpoint.issued();
        ensure!(before > 0, "the tokens came from nowhere");
        blocking(move || {
            let log = KafkaLog::connect(&config, "token")?;
            let topic = Name::new("ways.token")?;
            // Each of three clients fetches a second token.
            let deadline = Instant::now() + PATIENCE;
            while endpoint.issued() < before + 6 {
                ensure!(Instant::now() < deadline, "tokens are not fetched anew");
                block_on(log.append(&topic, PartitionId(0), one_record("later")?))?;
                std::thread::sleep(Duration::from_millis(250));
            }
            Ok(())
        })
        .await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_names_address_user_and_remedy() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        let (login, tokens) = (broker.login(), broker.tokens());
        let mute = log_as(&login, &[("security.protocol", "PLAINTEXT")]);
        let whisper = log_as(
            &login,
            &[
                ("security.protocol", "SASL_SSL"),
                ("sasl.mechanism", "PLAIN"),
                ("sasl.username", "alice"),
                ("sasl.password", SECRET),
            ],
        );
        let good = TokenEndpoint::start(grant(Duration::from_secs(60)))?;
        let narrow = TokenEndpoint::start(Grant {
            scope: "nothing".into(),
            ..grant(Duration::from_secs(60))
        })?;
        let nowhere = "http://127.0.0.1:1/token";
        let cases = [
            (
                user(&login, "PLAIN", "alice", WRONG),
                vec!["\"alice\" with PLAIN", "sasl.username and sasl.password"],
            ),
            (user(&login, "PLAIN", "bob", SECRET), vec!["\"bob\" with PLAIN", "create that user"]),
            (
                user(&login, "SCRAM-SHA-256", "scram", SECRET),
                vec!["PLAIN,SCRAM-SHA-512", "now SCRAM-SHA-256", "sasl.enabled.mechanisms"],
            ),
            (mute, vec!["security.protocol in kafka.settings, now plaintext"]),
            (whisper, vec!["security.protocol in kafka.settings, now sasl_ssl"]),
            (
                token(&tokens, nowhere, "issued", SECRET),
                vec![nowhere, "\"issued\"", "correct sasl.oauthbearer.*"],
            ),
            (
                token(&tokens, narrow.url(), "issued", SECRET),
                vec!["\"issued\" with OAUTHBEARER", "insufficient_scope", "sasl.oauthbearer.*"],
            ),
            (
                token(&tokens, good.url(), "issued", WRONG),
                vec![good.url(), "wrong client or secret"],
            ),
        ];
        let mut waiting = Vec::new();
        for (config, parts) in cases {
            let address = config.bootstrap_servers.clone();
            let (log, told) = blocking(move || connect(&config)).await?;
            waiting.push((log, told, address, parts));
        }
        for (_, told, address, parts) in &waiting {
            let says = |text: &str| {
                text.contains(address.as_str()) && parts.iter().all(|part| text.contains(part))
            };
            wait_told(told, |news| news.as_ref().is_err_and(|text| says(text)))
                .await
                .with_context(|| format!("{address} {parts:?}"))?;
        }
        // A flood would come now, or a message that hides the earlier one.
        tokio::time::sleep(Duration::from_secs(12)).await;
        for (_, told, _, parts) in &waiting {
            let told = told.lock().unwrap().clone();
            ensure!(told.len() <= 2, "{parts:?} was said over and over: {told:#?}");
            ensure!(!format!("{told:?}").contains(MARK), "a secret: {told:#?}");
        }
        // A correction at the endpoint is enough: the log tries again.
        good.change(|grant| grant.secret = WRONG.into());
        let (_, told, ..) = waiting.last().context("the last case")?;
        wait_told(told, Result::is_ok).await?;
        let logs: Vec<_> = waiting.into_iter().map(|(log, ..)| log).collect();
        blocking(move || {
            drop(logs);
            Ok(())
        })
        .await
    })
    .await
}

/// An operation that takes a right.
type Step = fn(&KafkaLog, &Name) -> Result<(), Error>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_right_that_is_missing_is_named() -> Result<()> {
    docker::test(async {
        let broker = broker().await?;
        let topic = Name::new("rights")?;
        broker.create_topic("rights", 1, &[("retention.ms", "-1")]).await?;
        let config = user(&broker.login(), "PLAIN", "guest", SECRET);
        let (log, told) = blocking(move || connect(&config)).await?;
        wait_told(&told, Result::is_ok).await?;
        let steps: [(&str, Step); 4] = [
            ("Describe", |log, topic| {
                headwater_log::block_on(log.ends(topic, PartitionId(0))).map(drop)
            }),
            ("DescribeConfigs", |log, topic| headwater_log::block_on(log.topic(topic)).map(drop)),
            ("Write", |log, topic| {
                let batch = one_record("by a guest").expect("a batch");
                block_on(log.append(topic, PartitionId(0), batch)).map(drop)
            }),
            ("Read", |log, topic| {
                let mut reader =
                    headwater_log::block_on(log.reader(topic, PartitionId(0), Offset(0)))?;
                let until = Instant::now() + PATIENCE;
                while Instant::now() < until {
                    if reader.read(1 << 20, Duration::from_millis(200))?.is_some() {
                        return Ok(());
                    }
                }
                Err(Error::Unavailable("nothing was read".into()))
            }),
        ];
        for (operation, attempt) in steps {
            let attempt = |expected: fn(&Result<(), Error>) -> bool| {
                let (log, topic) = (log.clone(), topic.clone());
                blocking(move || {
                    let deadline = Instant::now() + PATIENCE;
                    loop {
                        // A change of rights takes a moment until the broker applies it.
                        let outcome = attempt(&log, &topic);
                        if expected(&outcome) {
                            return Ok(outcome);
                        }
                        if Instant::now() >= deadline {
                            bail!("{outcome:?}");
                        }
                        std::thread::sleep(Duration::from_millis(200));
                    }
                })
            };
            let refused = attempt(|outcome| matches!(outcome, Err(Error::Refused { .. })));
            let refused = refused.await.with_context(|| format!("{operation} is not refused"))?;
            let text = refused.map_or_else(|error| error.to_string(), |()| String::new());
            for part in ["topic rights", "user \"guest\"", &format!("--operation {operation} ")] {
                ensure!(text.contains(part), "{operation} without {part}: {text}");
            }
            broker.allow("guest", &["--topic", "rights"], &[operation]).await?;
            let granted = attempt(Result::is_ok).await;
            granted.with_context(|| format!("{operation} was granted"))??;
        }
        blocking(move || {
            drop(log);
            Ok(())
        })
        .await
    })
    .await
}

/// The examples of the page about security, by mechanism.
fn examples() -> Result<BTreeMap<String, String>> {
    let page = std::fs::read_to_string(dev::repository("docs/kafka-security.md"))?;
    let mut examples = BTreeMap::new();
    for block in page.split("```toml\n").skip(1) {
        let text = block.split("```").next().context("a block without an end")?;
        let mechanism =
            text.split("sasl.mechanism = \"").nth(1).and_then(|it| it.split('"').next());
        examples.insert(mechanism.unwrap_or("none").to_owned(), text.to_owned());
    }
    Ok(examples)
}

#[test]
fn the_examples_of_the_page_about_security_are_accepted_and_print_no_secret() -> Result<()> {
    let examples = examples()?;
    let mechanisms: Vec<_> = examples.keys().map(String::as_str).collect();
    assert_eq!(mechanisms, ["OAUTHBEARER", "PLAIN", "SCRAM-SHA-512"]);
    for (mechanism, text) in &examples {
        // The files that it names are on another machine.
        let text = text
            .lines()
            .map(|line| match line.starts_with("ssl.ca.location") {
                true => "ssl.ca.location = \"/etc/ssl/certs\"".to_owned(),
                false => line.replace("...", MARK),
            })
            .collect::<Vec<_>>()
            .join("\n");
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), &text)?;
        for (flag, expected) in [("--check-config", "fine"), ("--print-config", "kafka.settings")] {
            let output = run(file.path(), flag)?;
            let said = String::from_utf8_lossy(&output.stdout);
            let wrong = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{mechanism}: {wrong}\n{text}");
            ensure!(said.contains(expected) && !said.contains(MARK), "{mechanism}: {said}");
        }
    }
    Ok(())
}

fn run(config: &Path, flag: &str) -> Result<std::process::Output> {
    let mut command = Command::new(dev::binary().with_file_name("headwater-ingest"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEADWATER_") {
            command.env_remove(name);
        }
    }
    Ok(command.arg("--config").arg(config).arg(flag).output()?)
}
