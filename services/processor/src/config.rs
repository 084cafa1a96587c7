use std::time::Duration;

use anyhow::ensure;
use headwater_service::config::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[processor]`: how often shards commit and how much memory they may use.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Longest time between two commits of a shard that has work.
    ///
    /// * **Freshness**: a query sees what was committed.
    /// * **Cost**: a commit writes each row that changed since the last one, once.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub commit_interval: Duration,

    /// A shard commits earlier when so much waits in its memory.
    pub commit_bytes: ByteSize,

    /// What a shard reads from the log at a time.
    pub read_bytes: ByteSize,

    /// Shortest time between two statuses of a shard, unless something happened that others wait for.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub report_interval: Duration,

    /// How often commits of a shard whose rows expire are made to survive a power cut. Compaction removes
    /// only what expired before that; without it, nothing is removed from the disk.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub sync_interval: Duration,

    /// Memory per shard for groups that were touched lately.
    pub groups: ByteSize,

    /// Memory per shard for rows that are not yet in a file of their own. Readers of the shard need as
    /// much again.
    pub write_buffer: ByteSize,

    /// Memory for blocks of state that were read, for all shards together.
    pub block_cache: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_millis(100),
            commit_bytes: ByteSize::mib(8),
            read_bytes: ByteSize::mib(1),
            report_interval: Duration::from_millis(200),
            sync_interval: Duration::from_secs(60),
            groups: ByteSize::mib(16),
            write_buffer: ByteSize::mib(16),
            block_cache: ByteSize::mib(16),
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.commit_interval <= Duration::from_secs(60),
            "processor.commit-interval is {:?}: queries would be that late; at most 60s is possible",
            self.commit_interval
        );
        ensure!(
            self.write_buffer >= ByteSize::mib(1),
            "processor.write-buffer is {}: at least 1 MiB is needed",
            self.write_buffer
        );
        ensure!(self.read_bytes.0 > 0, "processor.read-bytes is 0 B: nothing could be read");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_states_every_default() {
        let shipped: toml::Table = include_str!("../processor.toml").parse().unwrap();
        assert_eq!(headwater_service::config::defaults::<Config>().unwrap(), shipped);
    }

    #[test]
    fn the_defaults_pass_their_own_check_and_a_bad_value_names_its_key() {
        Config::default().check().unwrap();
        let config = Config { write_buffer: ByteSize(5), ..Config::default() };
        assert!(config.check().unwrap_err().to_string().starts_with("processor.write-buffer"));
    }
}
