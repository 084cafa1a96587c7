//! `[kafka]`: which brokers, and how librdkafka is told to reach them.

use std::{collections::BTreeMap, time::Duration};

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[kafka]`: the log that all services share.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// Brokers to begin with, `host:port` each, separated by commas. The others are learned from them.
    pub bootstrap_servers: String,

    /// How long the brokers may hear nothing of a process before its partitions go to others. Shorter
    /// means faster recovery from a crash, and more false alarms.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_timeout: Duration,

    /// How long an append may take, all retries included, before it is reported as perhaps not stored.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub delivery_timeout: Duration,

    /// How long any other question to the brokers may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,

    /// How many copies of Headwater's own topics are kept; 0 leaves it to the brokers' default.
    pub replication_factor: u16,

    /// How many bytes of records a process reads ahead in all.
    pub read_ahead_bytes: u64,

    /// On which cores the threads of one consumer run.
    pub placement: Placement,

    /// Settings of librdkafka by their own names, such as `security.protocol`, `sasl.mechanism`,
    /// `sasl.username`, `ssl.ca.location`; a hyphen may stand for a dot. What would break a promise of
    /// Headwater is refused.
    pub settings: BTreeMap<String, String>,
}

/// Where the threads that read run: librdkafka's own and ours take turns on every record, and pay for
/// it when they have to talk across cores (docs/performance.md has the figures).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// All threads of one consumer on one core; another consumer on another. Costs the least.
    #[default]
    OneCore,
    /// Wherever the operating system puts them: lower latency while cores are idle.
    AnyCore,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap_servers: "127.0.0.1:9092".into(),
            session_timeout: Duration::from_secs(6),
            delivery_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(10),
            replication_factor: 0,
            read_ahead_bytes: 64 << 20,
            placement: Placement::default(),
            settings: BTreeMap::new(),
        }
    }
}

/// What may not be set, and why. `None` as a value refuses every value but those allowed.
struct Rule {
    name: &'static str,
    allowed: &'static [&'static str],
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        name: "bootstrap.servers",
        allowed: &[],
        reason: "it has a place of its own: kafka.bootstrap-servers",
    },
    Rule {
        name: "metadata.broker.list",
        allowed: &[],
        reason: "it has a place of its own: kafka.bootstrap-servers",
    },
    Rule {
        name: "enable.auto.commit",
        allowed: &["false"],
        reason: "positions are committed with the state, or records would be lost or counted twice",
    },
    Rule {
        name: "auto.commit.enable",
        allowed: &["false"],
        reason: "positions are committed with the state, or records would be lost or counted twice",
    },
    Rule {
        name: "enable.auto.offset.store",
        allowed: &["false"],
        reason: "positions are committed with the state, or records would be lost or counted twice",
    },
    Rule {
        name: "isolation.level",
        allowed: &["read_committed"],
        reason: "records of aborted transactions would be counted",
    },
    Rule {
        name: "auto.offset.reset",
        allowed: &["error", "none"],
        reason: "records that are gone must be noticed, not passed over",
    },
    Rule {
        name: "enable.idempotence",
        allowed: &["true"],
        reason: "a retry could store an event twice, or in another order",
    },
    Rule {
        name: "acks",
        allowed: &["all", "-1"],
        reason: "an acknowledged event could be lost with one broker",
    },
    Rule {
        name: "request.required.acks",
        allowed: &["all", "-1"],
        reason: "an acknowledged event could be lost with one broker",
    },
    Rule {
        name: "enable.partition.eof",
        allowed: &["true"],
        reason: "the end of a partition could not be told from a pause",
    },
    Rule {
        name: "allow.auto.create.topics",
        allowed: &["false"],
        reason: "a misspelt topic would come into being with the wrong partitions",
    },
    Rule { name: "group.id", allowed: &[], reason: "each generation has a group of its own" },
    Rule {
        name: "group.instance.id",
        allowed: &[],
        reason: "a static member does not leave its group when it stops",
    },
    Rule {
        name: "group.protocol",
        allowed: &["classic"],
        reason: "handing partitions over relies on the classic protocol",
    },
    Rule {
        name: "partition.assignment.strategy",
        allowed: &["cooperative-sticky"],
        reason: "every rebalance would stop every shard",
    },
    Rule {
        name: "session.timeout.ms",
        allowed: &[],
        reason: "it has a place of its own: kafka.session-timeout",
    },
    Rule {
        name: "message.timeout.ms",
        allowed: &[],
        reason: "it has a place of its own: kafka.delivery-timeout",
    },
    Rule {
        name: "delivery.timeout.ms",
        allowed: &[],
        reason: "it has a place of its own: kafka.delivery-timeout",
    },
    Rule {
        name: "transactional.id",
        allowed: &[],
        reason: "it is what fences a former writer, and Headwater names it",
    },
    Rule {
        name: "queuing.strategy",
        allowed: &["fifo"],
        reason: "an older record could come after a newer one",
    },
];

impl KafkaConfig {
    /// Checks all that can be checked without a broker.
    ///
    /// # Errors
    ///
    /// Names the key and says what to do.
    pub fn check(&self) -> Result<(), String> {
        let servers = self.bootstrap_servers.split(',').map(str::trim);
        for server in servers {
            let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(format!(
                    "kafka.bootstrap-servers: {server:?} is not host:port; write for example kafka-1:9092,kafka-2:9092"
                ));
            }
        }
        for (key, time, least) in [
            ("session-timeout", self.session_timeout, Duration::from_secs(1)),
            ("delivery-timeout", self.delivery_timeout, Duration::from_secs(1)),
            ("request-timeout", self.request_timeout, Duration::from_millis(100)),
        ] {
            if time < least || time > Duration::from_secs(3600) {
                return Err(format!("kafka.{key}: choose between {least:?} and one hour"));
            }
        }
        if self.read_ahead_bytes < 1 << 20 {
            return Err("kafka.read-ahead-bytes: at least 1048576 bytes are needed".into());
        }
        for (name, value) in &self.settings {
            let property = property(name);
            if let Some(rule) = RULES.iter().find(|rule| rule.name == property)
                && !rule.allowed.contains(&value.as_str())
            {
                return Err(format!(
                    "kafka.settings.\"{property}\" = {value:?} is refused: {}; remove it",
                    rule.reason
                ));
            }
        }
        self.client("check").create_native_config().map(drop).map_err(|error| {
            let detail = match error {
                rdkafka::error::KafkaError::ClientConfig(_, detail, key, _) => {
                    format!("\"{key}\": {detail}")
                }
                other => format!(": {other}"),
            };
            format!("kafka.settings.{detail}; the names and values are those of librdkafka")
        })
    }

    /// How often a member tells its group that it is there.
    fn heartbeat(&self) -> Duration {
        (self.session_timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(3))
    }

    /// How long a process may stand still at any moment before its group may give its partitions to others: the
    /// last they heard of it may be a heartbeat old.
    pub fn silence(&self) -> Duration {
        self.session_timeout.saturating_sub(self.heartbeat())
    }

    /// What every client has.
    pub(crate) fn client(&self, client: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in &self.settings {
            config.set(property(name), value);
        }
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "5000");
        if !self.settings.keys().any(|name| property(name) == "client.id") {
            config.set("client.id", client);
        }
        config
    }

    /// A client that only asks.
    pub(crate) fn asker(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        config
            .set("allow.auto.create.topics", "false")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false");
        config
    }

    /// A client that reads partitions which it chooses itself.
    pub(crate) fn reader(&self, client: &str) -> ClientConfig {
        let mut config = self.asker(client);
        config
            // Without one librdkafka assigns no partitions; nothing is ever committed to it.
            .set("group.id", "headwater-readers")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            // Checked by the broker when they were written, and by TCP since; the batches that we hand on
            // have checksums of their own.
            .set("check.crcs", "false")
            .set("max.poll.interval.ms", "86400000")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "100")
            .set("fetch.queue.backoff.ms", "1")
            .set("fetch.message.max.bytes", "1048576")
            .set("queued.min.messages", "100000")
            .set("queued.max.messages.kbytes", "16384")
            // Taking many records at once passes by rdkafka, and with it by the context: what librdkafka says
            // would go to stderr as it is. The client that asks hears the same of the brokers.
            .set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    pub(crate) fn producer(&self, client: &str) -> ClientConfig {
        let mut config = self.client(client);
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", self.delivery_timeout.as_millis().to_string())
            .set("queue.buffering.max.kbytes", "65536")
            .set("queue.buffering.max.messages", "500000");
        for (name, value) in [("linger.ms", "2"), ("compression.type", "lz4")] {
            if !self.settings.keys().any(|own| property(own) == name) {
                config.set(name, value);
            }
        }
        config
    }

    pub(crate) fn member(&self, client: &str, group: &str) -> ClientConfig {
        let mut config = self.asker(client);
        let session = self.session_timeout.as_millis();
        config
            .set("group.id", group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", session.to_string())
            .set("heartbeat.interval.ms", self.heartbeat().as_millis().to_string())
            // A hand-over takes place inside a poll.
            .set("max.poll.interval.ms", (session.max(120_000)).to_string())
            .set("enable.auto.offset.store", "false");
        config
    }
}

/// The name that librdkafka knows.
fn property(name: &str) -> String {
    name.replace('-', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<(), String> {
        let settings = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        KafkaConfig { settings, ..KafkaConfig::default() }.check()
    }

    #[test]
    fn security_is_passed_through() {
        let settings = [
            ("security.protocol", "SASL_SSL"),
            ("sasl-mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "headwater"),
            ("sasl.password", "secret"),
            ("ssl.ca.location", "/etc/ssl/certs"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = KafkaConfig { settings: settings.into(), ..KafkaConfig::default() };
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.client("c").get("sasl.mechanism"), Some("SCRAM-SHA-512"));
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "OAUTHBEARER"] {
            assert_eq!(with("sasl.mechanism", mechanism), Ok(()));
        }
        assert_eq!(with("sasl.oauthbearer.method", "oidc"), Ok(()), "librdkafka was built with it");
    }

    #[test]
    fn what_would_break_a_law_is_refused_with_the_reason() {
        for (name, value, reason) in [
            ("enable.auto.commit", "true", "counted twice"),
            ("isolation.level", "read_uncommitted", "aborted transactions"),
            ("isolation-level", "read_uncommitted", "aborted transactions"),
            ("acks", "1", "could be lost"),
            ("enable.idempotence", "false", "twice"),
            ("group.id", "mine", "a group of its own"),
            ("bootstrap.servers", "a:1", "kafka.bootstrap-servers"),
        ] {
            let error = with(name, value).expect_err(name);
            assert!(error.contains(reason) && error.contains(&property(name)), "{error}");
        }
        assert_eq!(with("isolation.level", "read_committed"), Ok(()));
    }

    #[test]
    fn misspelt_settings_and_addresses_are_named() {
        let error = with("sasl.mechanizm", "PLAIN").unwrap_err();
        assert!(error.contains("sasl.mechanizm"), "{error}");
        let error = with("security.protocol", "TLS").unwrap_err();
        assert!(error.contains("security.protocol"), "{error}");
        for servers in ["", "kafka", "kafka:port", ":9092", "a:1,b"] {
            let config =
                KafkaConfig { bootstrap_servers: servers.into(), ..KafkaConfig::default() };
            assert!(config.check().unwrap_err().starts_with("kafka.bootstrap-servers"));
        }
    }
}
