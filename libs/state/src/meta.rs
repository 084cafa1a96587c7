//! A shard's metadata: format, identity and progress.

use headwater_types::{EventTime, GenerationId, Offset, PartitionId, Tallies};

/// The version of the layout: which column families and key spaces exist. Each stored value has its
/// own version besides.
pub const FORMAT: u32 = 1;

pub(crate) const FORMAT_KEY: &[u8] = &[META, b'f'];
pub(crate) const IDENTITY_KEY: &[u8] = &[META, b'i'];
pub(crate) const PROGRESS_KEY: &[u8] = &[META, b'p'];
pub(crate) const CURSOR_KEY: &[u8] = &[META, b'c'];
/// The key under which every write stores the RocksDB sequence number of its last change.
///
/// A reader compares this number with the latest one that its database reports, and so knows
/// whether it sees that write. A secondary may miss it: rows that the secondary read from the
/// write-ahead log stay in its memory, in front of newer files, until it finds a record in a newer
/// write-ahead log.
pub(crate) const SEQUENCE_KEY: &[u8] = &[META, b's'];
const META: u8 = 0;
/// The first byte of every row's key.
pub(crate) const ROWS: u8 = 1;

/// The progress of a shard at one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Every record before this offset is counted in the tallies.
    pub position: Offset,
    /// The greatest event time seen; [`EventTime::MIN`] if none.
    pub max_event_time: EventTime,
    /// No earlier event time is expected; [`EventTime::MIN`] until the partition has delivered one.
    pub watermark: EventTime,
    /// Rows whose header's time is this or earlier have expired; [`EventTime::MIN`]: none has.
    pub rows_expired_before: EventTime,
    pub tallies: Tallies,
}

impl Default for Progress {
    /// The progress of a shard that has read nothing.
    fn default() -> Self {
        Self {
            position: Offset::ZERO,
            max_event_time: EventTime::MIN,
            watermark: EventTime::MIN,
            rows_expired_before: EventTime::MIN,
            tallies: Tallies::default(),
        }
    }
}

const PROGRESS_VERSION: u8 = 1;
const PROGRESS_LEN: usize = 1 + 9 * 8;

impl Progress {
    /// Whether a row with this time in its header has expired.
    pub fn expired(&self, time: EventTime) -> bool {
        expired(time, self.rows_expired_before)
    }

    pub(crate) fn encode(&self) -> [u8; PROGRESS_LEN] {
        let mut bytes = [0; PROGRESS_LEN];
        bytes[0] = PROGRESS_VERSION;
        let fields = [
            self.position.0,
            self.max_event_time.0.cast_unsigned(),
            self.watermark.0.cast_unsigned(),
            self.rows_expired_before.0.cast_unsigned(),
            self.tallies.applied,
            self.tallies.filtered,
            self.tallies.late,
            self.tallies.duplicate,
            self.tallies.dead_lettered,
        ];
        for (place, field) in bytes[1..].chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != PROGRESS_LEN || bytes[0] != PROGRESS_VERSION {
            return Err(format!(
                "progress of {} bytes and version {:?}",
                bytes.len(),
                bytes.first()
            ));
        }
        let mut fields = bytes[1..]
            .chunks_exact(8)
            .map(|field| u64::from_be_bytes(field.try_into().unwrap_or_default()));
        let mut next = || fields.next().unwrap_or_default();
        Ok(Self {
            position: Offset(next()),
            max_event_time: EventTime(next().cast_signed()),
            watermark: EventTime(next().cast_signed()),
            rows_expired_before: EventTime(next().cast_signed()),
            tallies: Tallies {
                applied: next(),
                filtered: next(),
                late: next(),
                duplicate: next(),
                dead_lettered: next(),
            },
        })
    }
}

/// Readers and compaction share this comparison.
pub(crate) fn expired(time: EventTime, horizon: EventTime) -> bool {
    horizon.known().is_some() && time <= horizon && time.0 != i64::MAX
}

/// Names the shard that a database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub generation: GenerationId,
    pub partition: PartitionId,
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "partition {} of generation {}", self.partition, self.generation)
    }
}

impl Identity {
    /// The encoding is text, so that a person can read it in a damaged directory.
    pub(crate) fn encode(&self) -> String {
        format!("{}/{}", self.generation, self.partition)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (generation, partition) = std::str::from_utf8(bytes).ok()?.split_once('/')?;
        Some(Self {
            generation: generation.parse().ok()?,
            partition: PartitionId(partition.parse().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            position: Offset(258),
            max_event_time: EventTime(5),
            watermark: EventTime(-2),
            rows_expired_before: EventTime::MIN,
            tallies: Tallies {
                applied: 1,
                filtered: 2,
                late: 3,
                duplicate: 4,
                dead_lettered: u64::MAX,
            },
        }
    }

    /// The first released form. Every later version must read it.
    const PROGRESS_V1: &str = "01\
        0000000000000102\
        0000000000000005\
        fffffffffffffffe\
        8000000000000000\
        0000000000000001\
        0000000000000002\
        0000000000000003\
        0000000000000004\
        ffffffffffffffff";

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn progress_of_version_1_is_read_for_ever() {
        assert_eq!(Progress::decode(&hex(PROGRESS_V1)), Ok(progress()));
        assert_eq!(
            progress().encode().as_slice(),
            hex(PROGRESS_V1),
            "a changed form needs a new version"
        );
    }

    #[test]
    fn progress_of_an_unknown_form_is_refused() {
        let mut newer = progress().encode();
        newer[0] = 2;
        assert!(Progress::decode(&newer).is_err());
        assert!(Progress::decode(&progress().encode()[..72]).is_err());
        assert!(Progress::decode(&[]).is_err());
    }

    #[test]
    fn an_identity_of_version_1_is_read_for_ever() {
        let identity = Identity {
            generation: "00ff00ff00ff00ff".parse().unwrap(),
            partition: PartitionId(12),
        };
        assert_eq!(Identity::decode(b"00ff00ff00ff00ff/12"), Some(identity));
        assert_eq!(identity.encode(), "00ff00ff00ff00ff/12");
        assert_eq!(Identity::decode(b"12"), None);
    }

    #[test]
    fn a_row_at_the_horizon_has_expired_and_one_after_it_has_not() {
        let at =
            |horizon| Progress { rows_expired_before: EventTime(horizon), ..Progress::default() };
        assert!(at(10).expired(EventTime(10)));
        assert!(!at(10).expired(EventTime(11)));
        assert!(!at(i64::MIN).expired(EventTime::MIN), "no horizon, nothing expires");
        assert!(!at(i64::MAX).expired(EventTime(i64::MAX)), "for ever is for ever");
    }
}
