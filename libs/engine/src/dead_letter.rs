//! Dead letters: records that could not be processed or came too late, as a shard's outbox stores
//! them.
//!
//! The form is fixed and versioned. Integers are LEB128 varints. A text or byte string is its
//! length and its bytes. An optional one is its length plus one and its bytes, or 0 for none.
//!
//! ```text
//! version = 1 (1 byte) | stage (1 byte) | partition | offset | zigzag(timestamp_ms)
//! | topic | reason | key? | value?
//! ```

use std::{fmt, str::FromStr};

use headwater_types::{Offset, PartitionId};

use crate::varint;

const VERSION: u8 = 1;

/// The step that refused a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The record does not match the stream's schema.
    Decode,
    /// The event time is missing, out of range or too far in the future.
    Time,
    /// WHERE has no value for the record.
    Filter,
    /// A key, or an aggregate's argument or FILTER, has no value for the record.
    Expression,
    /// The record is valid but behind the watermark by more than the allowed lateness.
    Late,
}

impl Stage {
    pub const ALL: [Self; 5] =
        [Self::Decode, Self::Time, Self::Filter, Self::Expression, Self::Late];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Time => "time",
            Self::Filter => "filter",
            Self::Expression => "expression",
            Self::Late => "late",
        }
    }

    /// The terms in which Kafka Connect's headers of a dead letter say this.
    pub fn connect(self) -> ConnectStage {
        let (stage, class, exception) = match self {
            Self::Decode => ("VALUE_CONVERTER", "headwater.Decode", "headwater.DecodeError"),
            Self::Time => ("TRANSFORMATION", "headwater.Time", "headwater.TimeError"),
            Self::Filter => ("TRANSFORMATION", "headwater.Filter", "headwater.FilterError"),
            Self::Expression => {
                ("TRANSFORMATION", "headwater.Expression", "headwater.ExpressionError")
            }
            // Nothing is wrong with it: the view takes no record that comes so late.
            Self::Late => ("TASK_PUT", "headwater.Late", "headwater.LateRecord"),
        };
        ConnectStage { stage, class, exception }
    }

    fn code(self) -> u8 {
        match self {
            Self::Decode => 1,
            Self::Time => 2,
            Self::Filter => 3,
            Self::Expression => 4,
            Self::Late => 5,
        }
    }
}

/// A [`Stage`] in Kafka Connect's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectStage {
    /// A constant of Connect's own enum of stages.
    pub stage: &'static str,
    /// Stands where Connect names the Java class that failed.
    pub class: &'static str,
    /// Stands where Connect names the class of the exception.
    pub exception: &'static str,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text does not name a stage.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a stage: use decode, time, filter, expression or late")]
pub struct UnknownStage(String);

impl FromStr for Stage {
    type Err = UnknownStage;
    fn from_str(text: &str) -> Result<Self, UnknownStage> {
        let stage = Self::ALL.into_iter().find(|stage| stage.as_str() == text);
        stage.ok_or_else(|| UnknownStage(text.into()))
    }
}

/// One refused record, with its original bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter<'a> {
    pub stage: Stage,
    /// A message for a person that names the field.
    pub reason: &'a str,
    /// The topic of the refused record.
    pub topic: &'a str,
    pub partition: PartitionId,
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
}

/// The bytes do not encode a dead letter.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDeadLetter {
    #[error("a dead letter is damaged")]
    Damaged,
    #[error("a dead letter has format {0}, this program knows {VERSION}: use the newer program")]
    Newer(u8),
}

impl<'a> DeadLetter<'a> {
    pub fn encode(&self) -> Vec<u8> {
        let bytes = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let size = 48 + self.topic.len() + self.reason.len() + bytes(self.key) + bytes(self.value);
        let mut out = Vec::with_capacity(size);
        out.extend([VERSION, self.stage.code()]);
        varint::put(u64::from(self.partition.0), &mut out);
        varint::put(self.offset.0, &mut out);
        varint::put(varint::zigzag(self.timestamp_ms), &mut out);
        for text in [self.topic, self.reason] {
            varint::put(text.len() as u64, &mut out);
            out.extend_from_slice(text.as_bytes());
        }
        for bytes in [self.key, self.value] {
            varint::put(bytes.map_or(0, |bytes| bytes.len() as u64 + 1), &mut out);
            out.extend_from_slice(bytes.unwrap_or_default());
        }
        out
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, InvalidDeadLetter> {
        match bytes.first() {
            Some(&VERSION) => Self::decode_fields(&bytes[1..]).ok_or(InvalidDeadLetter::Damaged),
            Some(&newer) if newer > VERSION => Err(InvalidDeadLetter::Newer(newer)),
            Some(_) | None => Err(InvalidDeadLetter::Damaged),
        }
    }

    fn decode_fields(mut rest: &'a [u8]) -> Option<Self> {
        let rest = &mut rest;
        let code = varint::take_byte(rest)?;
        let stage = Stage::ALL.into_iter().find(|stage| stage.code() == code)?;
        let partition = PartitionId(u32::try_from(varint::take(rest)?).ok()?);
        let offset = Offset(varint::take(rest)?);
        let timestamp_ms = varint::unzigzag(varint::take(rest)?);
        let topic = take_text(rest)?;
        let reason = take_text(rest)?;
        let key = take_optional(rest)?;
        let value = take_optional(rest)?;
        let letter = Self { stage, reason, topic, partition, offset, timestamp_ms, key, value };
        rest.is_empty().then_some(letter)
    }
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::try_from(varint::take(rest)?).ok()?;
    std::str::from_utf8(varint::take_bytes(rest, length)?).ok()
}

fn take_optional<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    match usize::try_from(varint::take(rest)?).ok()? {
        0 => Some(None),
        length => Some(Some(varint::take_bytes(rest, length - 1)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetter<'static> {
        DeadLetter {
            stage: Stage::Time,
            reason: "ts is null",
            topic: "orders",
            partition: PartitionId(3),
            offset: Offset(300),
            timestamp_ms: -2,
            key: None,
            value: Some(b"{\xff"),
        }
    }

    #[test]
    fn a_dead_letter_reads_back_with_its_bytes_intact() {
        let keyed = DeadLetter { key: Some(b""), value: None, stage: Stage::Late, ..letter() };
        for letter in [letter(), keyed] {
            assert_eq!(DeadLetter::decode(&letter.encode()), Ok(letter));
        }
    }

    #[test]
    fn the_stored_form_of_a_dead_letter_never_changes() {
        let expected = b"\x01\x02\x03\xac\x02\x03\x06orders\x0ats is null\x00\x03{\xff";
        assert_eq!(letter().encode(), expected);
    }

    #[test]
    fn damaged_and_newer_bytes_are_refused() {
        let bytes = letter().encode();
        for length in 0..bytes.len() {
            assert_eq!(DeadLetter::decode(&bytes[..length]), Err(InvalidDeadLetter::Damaged));
        }
        let longer = [&bytes[..], b"x"].concat();
        assert_eq!(DeadLetter::decode(&longer), Err(InvalidDeadLetter::Damaged));
        assert_eq!(DeadLetter::decode(b"\x02"), Err(InvalidDeadLetter::Newer(2)));
    }

    #[test]
    fn every_stage_has_a_name_of_its_own_among_connects_exceptions() {
        let names: std::collections::BTreeSet<_> =
            Stage::ALL.into_iter().map(|stage| stage.connect().exception).collect();
        assert_eq!(names.len(), Stage::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("headwater.")));
    }

    #[test]
    fn a_stage_reads_back_what_it_prints() {
        for stage in Stage::ALL {
            assert_eq!(stage.to_string().parse(), Ok(stage));
        }
        assert!("lost".parse::<Stage>().is_err());
    }
}
