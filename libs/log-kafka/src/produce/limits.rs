//! How large records and batches may be.

use headwater_log::RecordLimit;

use crate::config::KafkaConfig;

/// The bytes that librdkafka counts for a record beside its key, value and headers.
const RECORD_OVERHEAD: usize = 36;
/// The bytes of a batch beside its records.
const BATCH_OVERHEAD: usize = headwater_log::HEADER_LEN;

/// The largest record that librdkafka takes, whatever the topic.
pub(crate) fn own_limit(config: &KafkaConfig) -> RecordLimit {
    const DEFAULT: usize = 1_000_000;
    let set = config.setting("message.max.bytes").and_then(|value| value.parse().ok());
    RecordLimit {
        bytes: set.unwrap_or(DEFAULT),
        overhead: RECORD_OVERHEAD,
        set_by: "kafka.settings.message.max.bytes",
    }
}

/// How large librdkafka makes the batches that it sends, before compression.
pub(super) fn usual_batch(config: &KafkaConfig) -> usize {
    const DEFAULT: usize = 1_000_000;
    let set = config.setting("batch.size").and_then(|value| value.parse().ok());
    set.unwrap_or(DEFAULT).min(own_limit(config).bytes)
}

/// How large to make the batches for a topic that takes up to `max_batch` bytes. A power of two
/// below that, so that few producers are needed.
///
/// It counts before compression: whether a record is stored must not depend on the records beside
/// it.
pub(super) fn batch_for(max_batch: Option<usize>, usual: usize) -> usize {
    match max_batch {
        Some(max) if max < usual => 1 << max.max(1).ilog2(),
        Some(_) | None => usual,
    }
}

/// The smaller of librdkafka's own limit and the topic's.
pub(super) fn record_limit(own: RecordLimit, max_batch: Option<usize>) -> RecordLimit {
    let overhead = RECORD_OVERHEAD + BATCH_OVERHEAD;
    match max_batch {
        Some(bytes) if bytes.saturating_sub(overhead) < own.bytes.saturating_sub(own.overhead) => {
            RecordLimit { bytes, overhead, set_by: "the topic's max.message.bytes" }
        }
        Some(_) | None => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_take_small_batches_get_them() {
        assert_eq!(batch_for(None, 1_000_000), 1_000_000);
        assert_eq!(batch_for(Some(1_048_588), 1_000_000), 1_000_000);
        assert_eq!(batch_for(Some(100_000), 1_000_000), 65_536);
        assert_eq!(batch_for(Some(65_536), 1_000_000), 65_536);
        assert_eq!(batch_for(Some(0), 1_000_000), 1);
    }
}
