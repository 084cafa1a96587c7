//! `[kafka]`: which brokers, and how librdkafka is told to reach them.

mod check;
mod clients;

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// `[kafka]`: the log that all services share.
#[derive(Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct KafkaConfig {
    /// Brokers to begin with, `host:port` each, separated by commas. The others are learned from
    /// them.
    pub bootstrap_servers: String,

    /// How long the brokers may hear nothing of a process before its partitions go to others.
    /// Shorter means faster recovery from a crash, and more false alarms.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_timeout: Duration,

    /// How long an append may take, all retries included, before it is reported as perhaps not
    /// stored.
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
    /// `sasl.username`, `ssl.ca.location`; a hyphen may stand for a dot. What would break a promise
    /// of Headwater is refused.
    #[serde(deserialize_with = "settings")]
    pub settings: BTreeMap<String, String>,
}

/// Where the threads that read run: librdkafka's own and ours take turns on every record, and pay
/// for it when they have to talk across cores (docs/performance.md has the figures).
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

/// Parts of the names of settings whose values are secret.
const SECRETS: [&str; 7] =
    ["password", "passphrase", "secret", "token", "jaas", "key.pem", "key-pem"];

/// Whether the value of this setting is secret, however its name is written.
pub fn is_secret(setting: &str) -> bool {
    let name = setting.to_lowercase();
    SECRETS.iter().any(|secret| name.contains(secret))
}

/// Hides the values of secret settings.
impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |(name, value): (&String, &String)| {
            let shown = if is_secret(name) { "***" } else { value.as_str() };
            (name.clone(), shown.to_owned())
        };
        let settings: BTreeMap<_, _> = self.settings.iter().map(hidden).collect();
        f.debug_struct("KafkaConfig")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("session_timeout", &self.session_timeout)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("replication_factor", &self.replication_factor)
            .field("read_ahead_bytes", &self.read_ahead_bytes)
            .field("placement", &self.placement)
            .field("settings", &settings)
            .finish()
    }
}

/// A value as people write it in TOML. Without quotes around the name, `sasl.password = "…"` is a
/// table `sasl` with a key `password`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a number, true or false")]
enum Setting {
    Text(String),
    Switch(bool),
    Whole(i64),
    Fraction(f64),
    More(BTreeMap<String, Setting>),
}

fn settings<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, String>, D::Error> {
    fn flatten(
        prefix: &str,
        from: BTreeMap<String, Setting>,
        into: &mut BTreeMap<String, String>,
    ) -> Result<(), String> {
        for (name, value) in from {
            let name = format!("{prefix}{name}");
            let text = match value {
                Setting::Text(text) => text,
                Setting::Switch(on) => on.to_string(),
                Setting::Whole(number) => number.to_string(),
                Setting::Fraction(number) => number.to_string(),
                Setting::More(more) => {
                    flatten(&format!("{name}."), more, into)?;
                    continue;
                }
            };
            if into.keys().any(|own| property(own) == property(&name)) {
                return Err(format!("{} is set twice: remove one", property(&name)));
            }
            into.insert(name, text);
        }
        Ok(())
    }
    let mut settings = BTreeMap::new();
    flatten("", BTreeMap::deserialize(d)?, &mut settings).map_err(D::Error::custom)?;
    Ok(settings)
}

impl KafkaConfig {
    /// The value of one of librdkafka's settings, by its own name.
    pub(crate) fn setting(&self, name: &str) -> Option<&str> {
        let (_, value) = self.settings.iter().find(|(own, _)| property(own) == name)?;
        Some(value)
    }

    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    pub(crate) fn protocol(&self) -> String {
        self.setting("security.protocol").unwrap_or("plaintext").to_lowercase()
    }

    /// The SASL mechanism, if one is set.
    pub(crate) fn mechanism(&self) -> Option<&str> {
        self.setting("sasl.mechanism").or_else(|| self.setting("sasl.mechanisms"))
    }

    /// The time between two heartbeats of a member.
    fn heartbeat(&self) -> Duration {
        (self.session_timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(3))
    }

    /// How long a process may pause before its group may give its partitions to others: when the
    /// pause begins, the last heartbeat may already be one interval old.
    pub fn silence(&self) -> Duration {
        self.session_timeout.saturating_sub(self.heartbeat())
    }
}

/// The setting's name as librdkafka writes it.
pub(crate) fn property(name: &str) -> String {
    name.replace('-', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_may_be_written_as_toml_likes_them() {
        let config: KafkaConfig = toml::from_str(
            r#"
            [settings]
            sasl.mechanism = "PLAIN"
            sasl.oauthbearer.method = "oidc"
            "ssl.ca.location" = "/ca.pem"
            sasl-username = "a"
            socket.timeout.ms = 6000
            "socket.nagle.disable" = true
            "#,
        )
        .unwrap();
        for (name, value) in [
            ("sasl.mechanism", "PLAIN"),
            ("sasl.oauthbearer.method", "oidc"),
            ("ssl.ca.location", "/ca.pem"),
            ("sasl.username", "a"),
            ("socket.timeout.ms", "6000"),
            ("socket.nagle.disable", "true"),
        ] {
            assert_eq!(config.setting(name), Some(value));
        }
        for twice in ["a.b = '1', 'a.b' = '2'", "a.b = '1', a-b = '2'"] {
            let twice = format!("settings = {{ {twice} }}");
            let error = toml::from_str::<KafkaConfig>(&twice).unwrap_err().to_string();
            assert!(error.contains("a.b is set twice"), "{error}");
        }
    }

    #[test]
    fn nobody_sees_a_secret_by_printing_the_settings() {
        let names = [
            "sasl.password",
            "sasl-password",
            "ssl.key.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
        ];
        let settings = names.map(|name| (name.to_owned(), "hunter2".to_owned())).into();
        let mut config = KafkaConfig { settings, ..KafkaConfig::default() };
        config.settings.insert("sasl.username".into(), "alice".into());
        let text = format!("{config:?} {config:#?}");
        assert!(!text.contains("hunter2") && text.contains("alice"), "{text}");
    }
}
