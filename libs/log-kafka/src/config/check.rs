//! Checks the settings without a broker.

use std::time::Duration;

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::KafkaError,
    producer::{BaseProducer, DeliveryResult, ProducerContext},
};

use super::{KafkaConfig, property};

/// A setting that people may not change, or only to the allowed values.
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
    /// Checks all that can be checked without a broker, the files that the settings name included.
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
        let mut seen = std::collections::BTreeSet::new();
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
            if !seen.insert(property.clone()) {
                return Err(format!("kafka.settings.\"{property}\" is set twice: remove one"));
            }
        }
        self.client("check").create_native_config().map(drop).map_err(|error| {
            let detail = if let KafkaError::ClientConfig(_, detail, key, _) = error {
                format!("\"{key}\": {detail}")
            } else {
                format!(": {error}")
            };
            format!("kafka.settings.{detail}; the names and values are those of librdkafka")
        })?;
        self.check_login()?;
        let refused = |error| {
            let detail = if let KafkaError::ClientCreation(detail) = error {
                detail
            } else {
                error.to_string()
            };
            format!("kafka.settings: {detail}")
        };
        self.trial(self.reader("check"))
            .create_with_context::<_, BaseConsumer<SilentContext>>(SilentContext)
            .map_err(refused)?;
        self.trial(self.producer("check"))
            .create_with_context::<_, BaseProducer<SilentContext>>(SilentContext)
            .map_err(refused)?;
        Ok(())
    }

    /// Checks the settings of the login as far as they can be wrong without a broker.
    fn check_login(&self) -> Result<(), String> {
        let (protocol, mechanism) = (self.protocol(), self.mechanism());
        if protocol.starts_with("sasl_") && mechanism.is_none() {
            return Err("kafka.settings: security.protocol is with SASL: set sasl.mechanism to \
                 PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
                .into());
        }
        let is = |name, wanted| self.setting(name).is_some_and(|value| value == wanted);
        if mechanism.is_some_and(|mechanism| mechanism.eq_ignore_ascii_case("OAUTHBEARER"))
            && !is("sasl.oauthbearer.method", "oidc")
            && !is("enable.sasl.oauthbearer.unsecure.jwt", "true")
        {
            return Err("kafka.settings: with sasl.mechanism=OAUTHBEARER nobody would fetch a \
                 token: set sasl.oauthbearer.method=oidc, and the endpoint that issues them as \
                 sasl.oauthbearer.token.endpoint.url"
                .into());
        }
        Ok(())
    }

    /// Settings for a client that is created and connects to nothing. Creating it reads the files
    /// that the settings name.
    fn trial(&self, mut config: ClientConfig) -> ClientConfig {
        config.remove("bootstrap.servers").set_log_level(RDKafkaLogLevel::Emerg);
        if self.setting("sasl.oauthbearer.method").is_some() {
            // With this method the client would fetch a token.
            let protocol = self.protocol();
            config.set("security.protocol", protocol.strip_prefix("sasl_").unwrap_or(&protocol));
        }
        config
    }
}

/// The callbacks of a client that is created for a check.
struct SilentContext;

impl ClientContext for SilentContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ConsumerContext for SilentContext {}

impl ProducerContext for SilentContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of<const N: usize>(settings: [(&str, &str); N]) -> KafkaConfig {
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        KafkaConfig { settings: BTreeMap::from(settings), ..KafkaConfig::default() }
    }

    fn with(name: &str, value: &str) -> Result<(), String> {
        of([(name, value)]).check()
    }

    const LOGIN: [(&str, &str); 3] = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.username", "headwater"),
        ("sasl.password", "open sesame"),
    ];

    #[test]
    fn security_is_passed_through() {
        for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let mut config = of(LOGIN);
            config.settings.insert("sasl-mechanism".into(), mechanism.into());
            assert_eq!(config.check(), Ok(()));
            assert_eq!(config.client("c").get("sasl.mechanism"), Some(mechanism));
        }
        let mut config = of(LOGIN);
        config.settings.insert("sasl.mechanism".into(), "OAUTHBEARER".into());
        let error = config.check().unwrap_err();
        assert!(error.contains("sasl.oauthbearer.method=oidc"), "{error}");
        for (name, value) in [
            ("method", "oidc"),
            ("client.id", "headwater"),
            ("client.secret", "open sesame"),
            ("token.endpoint.url", "https://127.0.0.1:1/token"),
        ] {
            assert!(config.check().is_err(), "it is not complete without {name}");
            config.settings.insert(format!("sasl.oauthbearer.{name}"), value.into());
        }
        assert_eq!(config.check(), Ok(()), "librdkafka was built with it");
    }

    #[test]
    fn what_a_login_lacks_and_files_that_are_not_there_are_named() {
        let error = with("security.protocol", "SASL_SSL").unwrap_err();
        assert!(error.contains("sasl.mechanism"), "{error}");
        let error =
            of([("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN")]).check();
        assert!(error.as_ref().is_err_and(|error| error.contains("sasl.password")), "{error:?}");
        let error =
            of([("security.protocol", "ssl"), ("ssl.ca.location", "/nowhere/ca.pem")]).check();
        assert!(error.as_ref().is_err_and(|error| error.contains("ssl.ca.location")), "{error:?}");
    }

    #[test]
    fn a_setting_under_two_spellings_is_refused() {
        let error = of([("sasl.username", "a"), ("sasl-username", "b")]).check().unwrap_err();
        assert!(error.contains("\"sasl.username\" is set twice"), "{error}");
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
