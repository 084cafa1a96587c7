//! The settings of a service's binary: the sections that all binaries have, and its own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use headwater_log_kafka::{KafkaConfig, is_secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::{Service, config, config::Layers, telemetry::TelemetryConfig};

/// The sections of the four services in a shared file, one per service.
pub const OWN_SECTIONS: [&str; 4] = ["coordinator", "ingest", "processor", "query"];

/// The sections that all binaries read and `headwater dev` skips: it has flags, and no broker.
pub const BINARY_SECTIONS: [&str; 3] = ["kafka", "server", "checkpoints"];

/// `[server]`: addresses, name and data directory of the process.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerConfig {
    /// Address of gRPC. In a container use `0.0.0.0`. Connections are not encrypted: outside a
    /// trusted network put a proxy before it.
    #[schemars(with = "String")]
    pub listen: SocketAddr,

    /// Address of HTTP: `/healthz`, `/readyz`, `/metrics`, and on ingest the route that takes
    /// events.
    #[schemars(with = "String")]
    pub http: SocketAddr,

    /// The URL at which other instances reach gRPC, such as `http://query-1:7400`. Without it,
    /// others use `listen`, with the host's name if `listen` is all addresses.
    pub advertise: Option<String>,

    /// The name of this instance in logs, metrics and statuses. Without it, the host's name is
    /// used: two instances of a service on one host need a name each.
    pub instance: Option<String>,

    /// Directory for state. The processor and the coordinator lock theirs. The query service reads
    /// the directory of a processor on the same machine. Ingest needs none.
    pub data: PathBuf,

    /// How long shutdown may take. Requests that were accepted are finished within it, or reported
    /// as not done.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stop_deadline: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            listen: local(7400),
            http: local(7401),
            advertise: None,
            instance: None,
            data: "headwater-data".into(),
            stop_deadline: Duration::from_secs(20),
        }
    }
}

impl ServerConfig {
    fn check(&self) -> Result<(), String> {
        if self.listen == self.http && self.listen.port() != 0 {
            return Err(format!(
                "server.listen and server.http are both {}: give them different ports",
                self.listen
            ));
        }
        if let Some(url) = &self.advertise
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            return Err(format!(
                "server.advertise {url:?} is no URL: write it such as http://{}",
                self.listen
            ));
        }
        if let Some(name) = &self.instance
            && !is_name(name)
        {
            return Err(format!(
                "server.instance {name:?} cannot be a file name: use 1 to 100 letters, digits, '-', '_' and '.', a letter or digit first"
            ));
        }
        if self.stop_deadline < Duration::from_secs(1) {
            return Err(format!(
                "server.stop-deadline is {:?}: nothing could be finished within it; set 1s or more",
                self.stop_deadline
            ));
        }
        Ok(())
    }

    /// The name of this instance: as set, or else the host's.
    pub(crate) fn instance(&self) -> String {
        self.instance.clone().unwrap_or_else(host_name)
    }

    /// The URL at which other instances reach gRPC.
    pub(crate) fn advertised(&self) -> String {
        match &self.advertise {
            Some(url) => url.clone(),
            None if self.listen.ip().is_unspecified() => {
                format!("http://{}:{}", host_name(), self.listen.port())
            }
            None => format!("http://{}", self.listen),
        }
    }
}

fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.len() <= 100
        && name.chars().all(legal)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if is_name(name) { name.to_owned() } else { "headwater".to_owned() }
}

/// `[checkpoints]`: the store that keeps checkpoints of shards for other machines.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CheckpointsConfig {
    /// URL of the store: `s3://bucket/prefix`, or `file:///directory` on a disk that all processors
    /// and the coordinator share. Credentials come from the usual variables (`AWS_ACCESS_KEY_ID`,
    /// …): [checkpoints.md](checkpoints.md).
    ///
    /// * **With a store**, a shard that moves to another machine goes on from its last checkpoint.
    /// * **Without one**, it begins again at the start of the stream, and a replay can only be
    ///   compared if all processors are on the coordinator's machine.
    pub url: Option<String>,
}

impl CheckpointsConfig {
    fn check(&self) -> Result<(), String> {
        let Some(url) = &self.url else { return Ok(()) };
        let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
        if authority.is_some_and(|authority| authority.contains('@')) {
            return Err(
                "checkpoints.url must not have credentials: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .into(),
            );
        }
        let good = match url.split_once("://") {
            Some(("file", path)) => path.starts_with('/'),
            Some(("s3", bucket)) => !bucket.is_empty() && !bucket.starts_with('/'),
            Some(_) | None => false,
        };
        if good {
            return Ok(());
        }
        Err(format!(
            "checkpoints.url {url:?} is no store: write file:///directory or s3://bucket/prefix"
        ))
    }
}

/// The sections that every binary reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Common {
    pub(crate) telemetry: TelemetryConfig,
    pub(crate) kafka: KafkaConfig,
    pub(crate) server: ServerConfig,
    pub(crate) checkpoints: CheckpointsConfig,
}

/// All settings of one binary.
#[derive(Clone)]
pub(crate) struct Settings<C> {
    pub(crate) common: Common,
    pub(crate) own: C,
}

/// Why the settings cannot be used. The remedy is always to correct them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Layers(#[from] config::Error),
    #[error(transparent)]
    Telemetry(#[from] crate::telemetry::Error),
    /// The message names the key and the remedy.
    #[error("{0}")]
    Refused(String),
}

impl<C: Serialize + DeserializeOwned + Default> Settings<C> {
    /// Reads the settings of a service and checks them.
    pub(crate) fn load<S: Service<Config = C>>(layers: &Layers) -> Result<Self, Error> {
        let common: Common =
            layers.clone().foreign(OWN_SECTIONS).flat("kafka", "settings").load()?;
        let others = OWN_SECTIONS.into_iter().filter(|&service| service != S::NAME);
        let own: S::Config = layers
            .clone()
            .foreign(others)
            .foreign(BINARY_SECTIONS)
            .foreign(["telemetry"])
            .load_section(S::NAME)?;
        let Common { telemetry, kafka, server, checkpoints } = &common;
        telemetry.check()?;
        server.check().and_then(|()| checkpoints.check()).map_err(Error::Refused)?;
        kafka.check().map_err(Error::Refused)?;
        S::check(&own)
            .and_then(|()| S::check_silence(&own, kafka.silence()))
            .map_err(|error| Error::Refused(format!("{error:#}")))?;
        Ok(Self { common, own })
    }

    /// The settings as TOML, with secrets replaced by `***`.
    pub(crate) fn print<S: Service<Config = C>>(&self) -> Result<String, config::Error> {
        let mut table = config::table_of(&self.common)?;
        table.insert(S::NAME.to_owned(), Value::Table(config::table_of(&self.own)?));
        if let Some(Value::Table(kafka)) = table.get_mut("kafka") {
            hide(kafka);
        }
        toml::to_string(&table).map_err(|error| config::Error::Defaults(error.to_string()))
    }
}

fn hide(table: &mut Table) {
    for (name, value) in table.iter_mut() {
        match value {
            Value::Table(inner) => hide(inner),
            Value::String(text) if is_secret(name) => {
                *text = "***".to_owned();
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_work_is_refused_with_its_key() {
        ServerConfig::default().check().unwrap();
        let same = ServerConfig { http: ServerConfig::default().listen, ..Default::default() };
        assert!(same.check().unwrap_err().starts_with("server.listen and server.http are both"));
        let bare = ServerConfig { advertise: Some("query-1:7400".into()), ..Default::default() };
        assert!(
            bare.check().unwrap_err().starts_with("server.advertise \"query-1:7400\" is no URL")
        );
        for bad in ["", "../up", ".hidden", "a/b", "ä"] {
            let config = ServerConfig { instance: Some(bad.into()), ..Default::default() };
            assert!(config.check().unwrap_err().starts_with("server.instance"), "{bad}");
        }
        for bad in ["s3://", "/tmp/store", "file://relative", "http://store"] {
            let config = CheckpointsConfig { url: Some(bad.into()) };
            assert!(config.check().unwrap_err().starts_with("checkpoints.url"), "{bad}");
        }
        let config = CheckpointsConfig { url: Some("s3://key:hush@bucket/prefix".into()) };
        let refused = config.check().unwrap_err();
        assert!(refused.contains("must not have credentials") && !refused.contains("hush"));
        for good in ["s3://bucket", "s3://bucket/some/prefix", "file:///srv/checkpoints"] {
            CheckpointsConfig { url: Some(good.into()) }.check().unwrap();
        }
    }

    #[test]
    fn what_is_advertised_can_be_reached_from_elsewhere() {
        let mut config = ServerConfig::default();
        assert_eq!(config.advertised(), "http://127.0.0.1:7400");
        config.listen = "0.0.0.0:7400".parse().unwrap();
        assert_eq!(config.advertised(), format!("http://{}:7400", host_name()));
        config.advertise = Some("https://query.example:443".into());
        assert_eq!(config.advertised(), "https://query.example:443");
    }
}
