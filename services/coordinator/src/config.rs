use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[coordinator]`: the catalog and the replays.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// How often the next step of a replay is considered when no shard reports anything.
    ///
    /// * **Promptness**: a retention that ends, or input that is trimmed, is seen this late.
    /// * **Cost**: each time asks the log for the ends of the streams that are replayed.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub decide_every: Duration,

    /// How long a replaced generation stays ready for undo when a replay does not say.
    ///
    /// * **Safety**: within it, undo is immediate and loses nothing.
    /// * **Cost**: the generation keeps reading, and keeps its disk.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retain: Duration,

    /// Differing rows that a diff shows in full.
    pub diff_samples: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            decide_every: Duration::from_millis(200),
            retain: Duration::from_secs(24 * 60 * 60),
            diff_samples: 20,
        }
    }
}
