use std::borrow::Cow;

use headwater_types::{BoxError, Epoch, Name, Offset, PartitionId, Remedy};

use crate::{GroupId, TopicSpec, WriterId};

/// Why the log refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has claimed the writer since. Nothing of the refused batch was stored.
    #[error("writer {writer} is fenced: its claim {ours} was superseded")]
    Fenced { writer: WriterId, ours: Epoch },

    /// The partitions that we owned belong to others.
    #[error("group {group} has gone on without this process")]
    NotMember { group: GroupId },

    /// The records were removed; what they said must come from a checkpoint instead.
    #[error(
        "offset {requested} of {topic}[{partition}] is trimmed: the partition starts at {start}"
    )]
    Trimmed { topic: Name, partition: PartitionId, requested: Offset, start: Offset },

    /// Nobody has written there yet.
    #[error(
        "offset {requested} of {topic}[{partition}] does not exist yet: the partition ends at {end}"
    )]
    OffsetOutOfRange { topic: Name, partition: PartitionId, requested: Offset, end: Offset },

    /// The bytes are not a record batch as it was written.
    #[error("{} cannot be read: {detail}", Place(.topic, .partition, .offset))]
    Corrupt { topic: Option<Name>, partition: Option<PartitionId>, offset: Offset, detail: String },

    /// The batch is intact but compressed.
    #[error(
        "{} is compressed with {codec}, which this version does not read: \
         set compression.type=none on its producer",
        Place(.topic, .partition, .offset)
    )]
    Compressed {
        topic: Option<Name>,
        partition: Option<PartitionId>,
        offset: Offset,
        codec: &'static str,
    },

    #[error("there is no topic {topic}")]
    UnknownTopic { topic: Name },

    #[error("topic {topic} has no partition {partition}: it has {partitions}, counted from 0")]
    UnknownPartition { topic: Name, partition: PartitionId, partitions: u32 },

    /// The topic exists, and not as asked for.
    #[error(
        "topic {topic} exists with {existing}, not with {requested}: keep it, or choose another name"
    )]
    TopicDiffers { topic: Name, existing: TopicSpec, requested: TopicSpec },

    /// The request could never work on this topic.
    #[error("topic {topic} refuses this: {reason}")]
    Refused { topic: Name, reason: Cow<'static, str> },

    #[error(
        "a batch of {bytes} bytes for topic {topic} is over the limit of {limit}: send fewer records at once"
    )]
    TooLarge { topic: Name, bytes: usize, limit: usize },

    /// Nothing of its batch was stored.
    #[error(
        "record {index} of a batch for topic {topic} counts {bytes} bytes, over the limit of {limit} ({set_by})"
    )]
    RecordTooLarge { topic: Name, index: u32, bytes: usize, limit: usize, set_by: &'static str },

    /// Nothing that was acknowledged is lost, and appends succeed again once there is room.
    #[error("the log's disk is full: free some space, then retry")]
    Full(#[source] BoxError),

    /// The log did not answer in time: the batch may be stored, and may be not.
    #[error("the log did not say whether it stored the batch")]
    Uncertain(#[source] BoxError),

    #[error("the log is unavailable")]
    Unavailable(#[source] BoxError),
}

impl Error {
    /// What the caller should do. Without a `_` arm, so that a new variant has to choose.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Fenced { .. } | Self::NotMember { .. } => Remedy::StandDown,
            Self::Corrupt { .. } => Remedy::Repair,
            Self::Trimmed { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::Compressed { .. }
            | Self::UnknownTopic { .. }
            | Self::UnknownPartition { .. }
            | Self::TopicDiffers { .. }
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::RecordTooLarge { .. } => Remedy::Correct,
            Self::Full(_) | Self::Uncertain(_) | Self::Unavailable(_) => Remedy::Retry,
        }
    }
}

/// "offset 7 of orders[3]", as far as it is known.
struct Place<'a>(&'a Option<Name>, &'a Option<PartitionId>, &'a Offset);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the record batch at offset {}", self.2)?;
        match (self.0, self.1) {
            (Some(topic), Some(partition)) => write!(f, " of {topic}[{partition}]"),
            (Some(topic), None) => write!(f, " of {topic}"),
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where_and_what_to_do() {
        let topic = Name::new("orders").unwrap();
        let corrupt = Error::Corrupt {
            topic: Some(topic.clone()),
            partition: Some(PartitionId(3)),
            offset: Offset(7),
            detail: "its checksum differs".into(),
        };
        assert_eq!(
            corrupt.to_string(),
            "the record batch at offset 7 of orders[3] cannot be read: its checksum differs"
        );
        assert_eq!(corrupt.remedy(), Remedy::Repair);
        let differs = Error::TopicDiffers {
            topic,
            existing: TopicSpec::keep(4),
            requested: TopicSpec::compact(1),
        };
        assert_eq!(
            differs.to_string(),
            "topic orders exists with 4 partitions that keep every record, \
             not with 1 partition that keeps the latest record of each key: keep it, or choose another name"
        );
    }
}
