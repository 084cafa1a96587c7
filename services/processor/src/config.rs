use std::{num::NonZeroU16, time::Duration};

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

    /// A shard commits earlier when this much waits in its memory.
    pub commit_bytes: ByteSize,

    /// How much a shard reads from the log at a time.
    pub read_bytes: ByteSize,

    /// Shortest time between two statuses of a shard, unless something happened that others wait
    /// for. The log is asked once per interval how far the shard lags.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub report_interval: Duration,

    /// How often a shard whose rows expire makes its commits survive a power cut. Compaction
    /// removes only rows that had expired by then; without it nothing is removed from the disk.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub sync_interval: Duration,

    /// How long a shard may take to commit, to store a checkpoint and to close when it goes to
    /// another processor or this process ends. The group waits for that long. Afterwards nothing is
    /// written for the shard here, even if something is not done.
    ///
    /// * **Handing over**: the next owner reads less of the log when the checkpoint is whole.
    /// * **Rebalances**: a processor that hangs holds all the others up for this long.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub hand_over_timeout: Duration,

    /// After a pause of the whole process that was longer than this, the groups have to confirm its
    /// shards before it writes anything that others see. Must be below `kafka.session-timeout`
    /// minus one heartbeat (a quarter of the timeout, at most 3s): the last heartbeat may already
    /// be that old when a pause starts.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_guard: Duration,

    /// How often a running shard stores a checkpoint, if there is a store.
    ///
    /// * **Recovery**: after a crash the next owner reads at most this much of the log again.
    /// * **Cost**: every checkpoint uploads the files that are new since the last.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub checkpoint_interval: Duration,

    /// Checkpoints that are uploaded at the same time.
    pub uploads: NonZeroU16,

    /// How often the log is asked whether a topic still has the partitions that its stream
    /// declares. Records that come to other partitions until then are in the wrong shards.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub topic_interval: Duration,

    /// Memory per shard for groups that were touched lately.
    pub groups: ByteSize,

    /// Memory per shard for rows that are not yet in a file of their own. Readers of the shard need
    /// as much again.
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
            hand_over_timeout: Duration::from_secs(20),
            session_guard: Duration::from_secs(4),
            checkpoint_interval: Duration::from_secs(60),
            uploads: const { NonZeroU16::new(4).expect("4 > 0") },
            topic_interval: Duration::from_secs(10),
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
        ensure!(
            self.hand_over_timeout >= Duration::from_secs(1),
            "processor.hand-over-timeout is {:?}: no shard is closed that fast; at least 1s is needed",
            self.hand_over_timeout
        );
        ensure!(
            self.session_guard >= Duration::from_millis(100),
            "processor.session-guard is {:?}: the group would be asked all the time; at least 100ms is needed",
            self.session_guard
        );
        Ok(())
    }

    /// `silence` is how long a group may hear nothing of a process before it gives the process's
    /// shards away. A pause must be noticed here before that.
    pub(crate) fn check_silence(&self, silence: Duration) -> anyhow::Result<()> {
        ensure!(
            self.session_guard < silence,
            "processor.session-guard is {:?}, but a process that stood still for {silence:?} may have lost its shards, \
             and would write for them: make it shorter, or kafka.session-timeout longer",
            self.session_guard
        );
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

    #[test]
    fn a_guard_that_would_notice_a_pause_too_late_is_refused() {
        let config = Config { session_guard: Duration::from_secs(3), ..Config::default() };
        config.check_silence(Duration::from_millis(3001)).unwrap();
        let error = config.check_silence(Duration::from_secs(3)).unwrap_err().to_string();
        assert!(
            error.starts_with("processor.session-guard is 3s")
                && error.contains("kafka.session-timeout"),
            "{error}"
        );
    }
}
