//! Kafka in a container.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    ops::Deref,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
};
use testcontainers::{
    GenericImage, ImageExt as _,
    core::{IntoContainerPort as _, Mount},
};

use super::{
    KAFKA,
    container::{Container, Network, Volume},
    keep_log, needs_image,
    ports::free_port,
    spawn, unique,
};
use crate::patience::PATIENCE;

/// The port of the listener for other containers; the one for the host has the same number on both
/// sides.
const INTERNAL: u16 = 19_092;
const HOST: u16 = 9_092;

/// The program that the image runs, and its directory of secrets.
const RUN: &str = "/etc/kafka/docker/run";
pub(super) const SECRETS: &str = "/etc/kafka/secrets";

/// Settings for tests: one broker is enough for everything, groups form at once, sessions end soon,
/// and segments end and are removed soon.
const SETTINGS: &[(&str, &str)] = &[
    ("KAFKA_PROCESS_ROLES", "broker,controller"),
    ("KAFKA_NODE_ID", "1"),
    ("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9093"),
    ("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER"),
    ("KAFKA_INTER_BROKER_LISTENER_NAME", "INTERNAL"),
    ("KAFKA_LOG_DIRS", "/var/lib/kafka/data"),
    ("KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "1"),
    ("KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS", "4"),
    ("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1"),
    ("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1"),
    ("KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS", "4"),
    ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR", "1"),
    ("KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR", "1"),
    ("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0"),
    ("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "1000"),
    ("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
    ("KAFKA_LOG_RETENTION_CHECK_INTERVAL_MS", "1000"),
    ("KAFKA_LOG_SEGMENT_DELETE_DELAY_MS", "1000"),
    ("KAFKA_LOG_CLEANER_BACKOFF_MS", "1000"),
    ("KAFKA_LOG_INITIAL_TASK_DELAY_MS", "1000"),
    ("KAFKA_HEAP_OPTS", "-Xms128m -Xmx512m"),
];

/// A listener beside those that every broker here has.
pub(super) struct Listener {
    pub(super) name: &'static str,
    /// `SASL_SSL` for example.
    pub(super) protocol: &'static str,
    /// The port inside the container.
    pub(super) port: u16,
    /// Whether its clients are on this machine; else they are on the broker's network.
    pub(super) on_host: bool,
}

/// Additions of one broker to what every broker has.
#[derive(Default)]
pub(super) struct Extras {
    pub(super) listeners: Vec<Listener>,
    /// Variables in the image's form.
    pub(super) settings: Vec<(String, String)>,
    /// A shell runs this before it starts the broker; `$NAME` is the broker's name on its network.
    pub(super) before: Option<String>,
    /// Mounted where the image has a directory for secrets that belongs to its user.
    pub(super) secrets: Option<Volume>,
}

/// A running Kafka, alone on its network. Its data lives as long as this value, through every stop
/// and start.
pub struct Broker {
    container: Container,
    network: Network,
    /// The key is the listener's name.
    addresses: BTreeMap<&'static str, String>,
}

impl Broker {
    /// Starts one and waits until it answers.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`Broker::start`], with further settings in the image's form:
    /// `("KAFKA_MESSAGE_MAX_BYTES", "1000")`.
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self> {
        let settings = settings.iter().map(|&(key, value)| (key.into(), value.into())).collect();
        Self::start_beside(&Extras { settings, ..Extras::default() }).await
    }

    pub(super) async fn start_beside(extras: &Extras) -> Result<Self> {
        needs_image(&format!("{}:{}", KAFKA.0, KAFKA.1)).await?;
        let network = Network::create("network").await?;
        // Another process may take a port first.
        let mut attempts = 0;
        let (container, addresses) = loop {
            match Self::create(&network, extras).await {
                Ok(created) => break created,
                Err(error) if attempts < 3 && is_port_taken(&error) => attempts += 1,
                Err(error) => return Err(error),
            }
        };
        let broker = Self { container, network, addresses };
        broker.wait_answering().await?;
        Ok(broker)
    }

    async fn create(
        network: &Network,
        extras: &Extras,
    ) -> Result<(Container, BTreeMap<&'static str, String>)> {
        let name = unique("kafka");
        let plain = |name, port, on_host| Listener { name, protocol: "PLAINTEXT", port, on_host };
        let own = [plain("INTERNAL", INTERNAL, false), plain("HOST", HOST, true)];
        let mut listeners = "CONTROLLER://localhost:9093".to_owned();
        let (mut advertised, mut protocols) = (Vec::new(), "CONTROLLER:PLAINTEXT".to_owned());
        let mut addresses = BTreeMap::new();
        let mut ports = Vec::new();
        for Listener { name: listener, protocol, port, on_host } in
            own.iter().chain(&extras.listeners)
        {
            let address = if *on_host {
                let host_port = free_port()?;
                ports.push((host_port, *port));
                format!("127.0.0.1:{host_port}")
            } else {
                format!("{name}:{port}")
            };
            write!(listeners, ",{listener}://0.0.0.0:{port}")?;
            write!(protocols, ",{listener}:{protocol}")?;
            advertised.push(format!("{listener}://{address}"));
            addresses.insert(*listener, address);
        }
        let mut request = GenericImage::new(KAFKA.0, KAFKA.1)
            .with_env_var("KAFKA_LISTENERS", listeners)
            .with_env_var("KAFKA_ADVERTISED_LISTENERS", advertised.join(","))
            .with_env_var("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", protocols);
        for (outside, inside) in ports {
            request = request.with_mapped_port(outside, inside.tcp());
        }
        for &(key, value) in SETTINGS {
            request = request.with_env_var(key, value);
        }
        for (key, value) in &extras.settings {
            request = request.with_env_var(key, value);
        }
        if let Some(secrets) = &extras.secrets {
            request = request.with_mount(Mount::volume_mount(secrets.name(), SECRETS));
        }
        if let Some(before) = &extras.before {
            let script = format!("set -euo pipefail; NAME={name}; {before}\nexec {RUN}");
            request = request.with_cmd(["bash", "-c", &script]);
        }
        Ok((Container::start(&name, network, request).await?, addresses))
    }

    /// The address for programs on this machine; the same after every start.
    pub fn bootstrap_host(&self) -> String {
        self.address("HOST")
    }

    /// The address for containers on [`Broker::network`].
    pub fn bootstrap_network(&self) -> String {
        self.address("INTERNAL")
    }

    pub(super) fn address(&self, listener: &str) -> String {
        self.addresses.get(listener).cloned().unwrap_or_default()
    }

    /// Its name for others on its network.
    pub(super) fn name(&self) -> &str {
        self.container.name()
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Ends it in good order: partitions are closed, clients are told.
    pub async fn stop(&self) -> Result<()> {
        self.container.stop(PATIENCE).await.map(drop)
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.container.kill().await
    }

    /// Starts it after [`Broker::stop`] or [`Broker::kill`], at the same addresses and with the
    /// same data, and waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        self.container.start_again().await?;
        self.wait_answering().await
    }

    /// Stops every process of it where it is, until [`Broker::thaw`]; connections stay open and
    /// nobody answers.
    pub async fn freeze(&self) -> Result<()> {
        self.container.freeze().await
    }

    pub async fn thaw(&self) -> Result<()> {
        self.container.thaw().await
    }

    /// Runs one of Kafka's own tools in the container, `kafka-topics` for example, against this
    /// broker, and returns its stdout.
    pub async fn exec(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        let mut command = vec![
            format!("/opt/kafka/bin/{tool}.sh"),
            "--bootstrap-server".to_owned(),
            self.bootstrap_network(),
        ];
        command.extend(arguments.iter().map(|&it| it.to_owned()));
        self.container.exec(command, TOOL).await
    }

    /// Runs a shell in the container and returns its stdout. `$BOOTSTRAP` is the broker's address,
    /// and Kafka's tools are in the path.
    pub async fn shell(&self, script: &str) -> Result<String> {
        let script = format!(
            "set -euo pipefail; export PATH=\"$PATH:/opt/kafka/bin\" BOOTSTRAP={}; {script}",
            self.bootstrap_network()
        );
        self.container.exec(vec!["bash".into(), "-c".into(), script], TOOL).await
    }

    /// Creates a topic with Kafka's own tool. `settings` as in `("cleanup.policy", "compact")`.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<()> {
        let partitions = partitions.to_string();
        let settings: Vec<_> =
            settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut arguments = vec!["--create", "--topic", topic, "--partitions", &partitions];
        for setting in &settings {
            arguments.extend(["--config", setting]);
        }
        self.exec("kafka-topics", &arguments).await.map(drop)
    }

    /// Its log, over all its runs.
    pub async fn log(&self) -> Result<String> {
        self.container.log().await
    }

    /// Waits until the metadata name a broker. The port alone answers while the container still
    /// starts; a broker is named once it may serve.
    async fn wait_answering(&self) -> Result<()> {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.bootstrap_host())
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "200")
            .create()?;
        let deadline = Instant::now() + PATIENCE;
        let told = spawn(move || {
            loop {
                match client.fetch_metadata(None, Duration::from_secs(1)) {
                    Ok(metadata) if !metadata.brokers().is_empty() => return Ok(None),
                    Ok(_) => std::thread::sleep(Duration::from_millis(50)),
                    Err(error) if Instant::now() >= deadline => return Ok(Some(error)),
                    Err(_) => {}
                }
            }
        });
        // Waiting for a broker that has ended would be in vain.
        let ended = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if let Ok(Some(code)) = self.container.exit_code().await {
                    return code;
                }
            }
        };
        let trouble = tokio::select! {
            told = told => match told? {
                None => return Ok(()),
                Some(error) => format!("does not answer within {PATIENCE:?}: {error}"),
            },
            code = ended => format!("ended with {code}"),
        };
        let log = self.container.log().await.unwrap_or_default();
        let tail: Vec<_> = log.lines().rev().take(30).collect();
        bail!(
            "{} {trouble}\n{}",
            self.container.name(),
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        )
    }
}

/// Kafka's tools run for a second: they need little memory and only the fast compiler.
const TOOL: &[(&str, &str)] = &[("KAFKA_HEAP_OPTS", "-Xmx256m -XX:TieredStopAtLevel=1")];

fn is_port_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("port is already allocated") || text.contains("address already in use")
}

/// The broker that the tests of one binary share. It is removed when the process ends.
///
/// A test that stops or overloads its broker starts one of its own instead.
pub struct SharedBroker {
    broker: &'static Broker,
    since: String,
}

/// Starts it for the first test that asks. Topics and groups of a test must have names that no
/// other test uses.
pub async fn shared_broker() -> Result<SharedBroker> {
    static SHARED: tokio::sync::OnceCell<Broker> = tokio::sync::OnceCell::const_new();
    shared(SHARED.get_or_try_init(Broker::start).await?).await
}

/// One use of a broker that others use too.
pub(super) async fn shared(broker: &'static Broker) -> Result<SharedBroker> {
    let since = super::docker(&["info", "--format", "{{.SystemTime}}"]).await;
    Ok(SharedBroker { broker, since: since.context("the engine's clock")? })
}

impl Deref for SharedBroker {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        self.broker
    }
}

impl Drop for SharedBroker {
    fn drop(&mut self) {
        keep_log(self.broker.container.name(), &self.since);
    }
}
