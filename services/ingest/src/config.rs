use std::{num::NonZeroUsize, time::Duration};

use anyhow::ensure;
use headwater_service::config::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[ingest]`: the limits of requests.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// The largest request: a gRPC message, or an HTTP body before and after decompression.
    ///
    /// A larger request is refused before it is read. An accepted one is held in memory until it is
    /// durable.
    pub max_request: ByteSize,

    /// The largest event. A larger one is rejected, and the rest of its request goes on.
    pub max_event: ByteSize,

    /// The most events in one request. Each event costs memory for its result, however small it is.
    pub max_events: NonZeroUsize,

    /// Memory that all requests together may hold. Beyond it, requests are refused with
    /// `RESOURCE_EXHAUSTED` or 429, and `AppendStream` waits: a log that is slow for a moment must
    /// not let the process run out of memory.
    pub in_flight: ByteSize,

    /// Batches of one `AppendStream` that may wait for the log at a time. More batches hide a
    /// longer fsync; an error in one of them leaves more batches behind it unanswered.
    pub stream_window: NonZeroUsize,

    /// The value of `Retry-After` in HTTP answers when the log is away or ingest is full, in whole
    /// seconds.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retry_after: Duration,

    /// How often the service asks whether a topic still has the partitions that its stream
    /// declares. Until a change is noticed, events go to the declared partitions; afterwards they
    /// are refused.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub topic_interval: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_request: ByteSize::mib(16),
            max_event: ByteSize::mib(1),
            max_events: NonZeroUsize::new(250_000).expect("250,000 > 0"),
            in_flight: ByteSize::mib(256),
            stream_window: NonZeroUsize::new(16).expect("16 > 0"),
            retry_after: Duration::from_secs(1),
            topic_interval: Duration::from_secs(10),
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { max_request, max_event, in_flight, .. } = self;
        ensure!(max_event.0 > 0, "ingest.max-event is 0 B: no event could be accepted");
        // An event and its key must fit one record batch of the log.
        ensure!(
            *max_event <= ByteSize::mib(8),
            "ingest.max-event is {max_event}, and the log takes at most 8 MiB; lower it"
        );
        ensure!(
            max_event <= max_request,
            "ingest.max-event ({max_event}) is over ingest.max-request ({max_request}): raise the one or lower the other"
        );
        ensure!(
            *max_request <= ByteSize::gib(1),
            "ingest.max-request is {max_request}; at most 1 GiB is possible"
        );
        ensure!(
            max_request <= in_flight,
            "ingest.in-flight ({in_flight}) is below ingest.max-request ({max_request}): such a request could never \
             be taken; raise the one or lower the other"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_states_every_default() {
        let shipped: toml::Table = include_str!("../ingest.toml").parse().unwrap();
        assert_eq!(headwater_service::config::defaults::<Config>().unwrap(), shipped);
    }

    #[test]
    fn the_defaults_pass_their_own_check_and_a_contradiction_names_its_keys() {
        Config::default().check().unwrap();
        let config = Config { in_flight: ByteSize::mib(1), ..Config::default() };
        let refused = config.check().unwrap_err().to_string();
        assert!(
            refused.starts_with("ingest.in-flight (1 MiB) is below ingest.max-request (16 MiB)"),
            "{refused}"
        );
        let config = Config { max_event: ByteSize::mib(9), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().contains("ingest.max-event is 9 MiB"));
    }
}
