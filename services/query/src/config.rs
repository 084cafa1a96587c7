//! `[query]`: how fresh, how long and how much.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use anyhow::ensure;
use headwater_service::config::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[query]`: what answers may cost, and how old they may be.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// How long ago a shard may have been caught up with when an answer is read from it.
    ///
    /// * **Freshness**: a request without a token sees every commit that is at least this old when
    ///   the request arrives; a request with a token sees its events, whatever is set here.
    /// * **Cost**: catching up takes about as much processor time as the writes did, and a request
    ///   that has to wait for it takes that much longer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub max_staleness: Duration,

    /// How long a request waits for what it asked for, if it does not say so itself.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub default_timeout: Duration,

    /// The longest wait that a request may ask for.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub max_timeout: Duration,

    /// How long one SQL query or scan may run, reading by the client included. A client that
    /// stopped then no longer holds files of old state. At the limit the client gets an error; a
    /// thread that is computing stops at its next read.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub max_duration: Duration,

    /// Memory that all SQL queries together may hold for sorting, grouping and joining. A query
    /// that needs more is refused, not slowed down.
    pub memory_limit: ByteSize,

    /// Memory for blocks of state that were read, shared by all shards. Other blocks are read from
    /// the operating system's cache or from the disk.
    pub block_cache: ByteSize,

    /// Memory for a shard's writes that are not in a file yet. A reader holds as much as the
    /// shard's writer: give the processor's setting.
    pub write_buffer: ByteSize,

    /// SQL queries at a time; one more waits until its timeout.
    pub max_queries: NonZeroUsize,

    /// Scans at a time, those of SQL queries and watchers included. Each holds a thread.
    pub max_scans: NonZeroUsize,

    /// Scans that this instance reads for other instances at a time: of shards that are on its disk
    /// and not on theirs. Each holds a thread. One more is refused, and its asker tries another
    /// instance that shares the directory, or asks again until its deadline.
    pub max_forwarded: NonZeroUsize,

    /// The longest SQL text.
    pub max_sql: ByteSize,

    /// Rows that are read from the shards at a time.
    pub batch_rows: NonZeroUsize,

    /// How often a watcher looks for changes.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub watch_interval: Duration,

    /// A directory for the small log files that readers write beside the shards. Set it where the
    /// data directory, which belongs to a processor, cannot be written. Without this setting the
    /// files lie below the data directory.
    pub scratch: Option<PathBuf>,
}

const fn nonzero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("only called with constants above zero")
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_staleness: Duration::from_millis(20),
            default_timeout: Duration::from_secs(10),
            max_timeout: Duration::from_secs(300),
            max_duration: Duration::from_secs(300),
            memory_limit: ByteSize::mib(128),
            block_cache: ByteSize::mib(32),
            write_buffer: ByteSize::mib(16),
            max_queries: nonzero(16),
            max_scans: nonzero(64),
            max_forwarded: nonzero(128),
            max_sql: ByteSize::kib(64),
            batch_rows: nonzero(1024),
            watch_interval: Duration::from_millis(100),
            scratch: None,
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self {
            default_timeout, max_timeout, watch_interval, memory_limit, write_buffer, ..
        } = self;
        ensure!(
            default_timeout <= max_timeout,
            "query.default-timeout ({default_timeout:?}) is over query.max-timeout ({max_timeout:?}): raise the one \
             or lower the other"
        );
        ensure!(
            *watch_interval >= Duration::from_millis(1),
            "query.watch-interval is {watch_interval:?}: at least 1ms is needed"
        );
        ensure!(memory_limit.0 > 0, "query.memory-limit is 0 B: no SQL query could run");
        ensure!(
            *write_buffer >= ByteSize::mib(1),
            "query.write-buffer is {write_buffer}: at least 1 MiB is needed"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_states_every_default() {
        let shipped: toml::Table = include_str!("../query.toml").parse().unwrap();
        assert_eq!(headwater_service::config::defaults::<Config>().unwrap(), shipped);
    }

    #[test]
    fn the_defaults_pass_their_own_check_and_a_contradiction_names_its_keys() {
        Config::default().check().unwrap();
        let config = Config { max_timeout: Duration::from_secs(1), ..Config::default() };
        let refused = config.check().unwrap_err().to_string();
        assert!(
            refused.starts_with("query.default-timeout (10s) is over query.max-timeout (1s)"),
            "{refused}"
        );
    }
}
