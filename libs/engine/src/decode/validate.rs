//! Validates an event at ingest, and returns its partition key and its event time.

use std::io::Write as _;

use headwater_types::{DataType, EventTime, StreamDefinition};

use super::{cell::Cell, fault::DecodeError, scan::Scanner};

/// Checks events against all columns of a stream's schema, without building columns.
///
/// [`JsonDecoder`](super::JsonDecoder) accepts every event that this accepts, for any wanted
/// columns.
#[derive(Debug)]
pub struct Validator {
    scanner: Scanner,
    event_time: usize,
    key: Option<(usize, DataType)>,
    key_text: Vec<u8>,
}

/// The result of [`Validator::check`] for a valid event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked<'a> {
    /// The partition key; `None` if the stream has no key or the event's is NULL.
    pub key: Option<&'a [u8]>,
    pub event_time: EventTime,
}

impl Validator {
    pub fn new(stream: &StreamDefinition) -> Self {
        let all: Vec<usize> = (0..stream.columns.len()).collect();
        Self {
            scanner: Scanner::new(stream, &all),
            event_time: stream.event_time,
            key: stream.key.map(|index| (index, stream.columns[index].data_type)),
            key_text: Vec::new(),
        }
    }

    /// Checks one event.
    pub fn check<'a>(&'a mut self, value: &[u8]) -> Result<Checked<'a>, DecodeError> {
        let text = self.scanner.scan(value)?;
        let event_time = match self.scanner.cell(self.event_time) {
            Cell::Integer(micros) => EventTime(micros),
            // The event time is a NOT NULL TIMESTAMP, so the scan has already refused such an
            // event.
            Cell::Null
            | Cell::Boolean(_)
            | Cell::Double(_)
            | Cell::Decimal(_)
            | Cell::Text { .. }
            | Cell::Unescaped { .. } => {
                return Err(DecodeError {
                    column: None,
                    reason: "the event has no event time".to_owned(),
                });
            }
        };
        self.key_text.clear();
        let keyed = self.key.and_then(|(index, data_type)| {
            let part = match self.scanner.cell(index) {
                Cell::Null => return None,
                Cell::Boolean(value) => PartitionKey::Boolean(value),
                Cell::Integer(value) if data_type == DataType::Timestamp => {
                    PartitionKey::Timestamp(value)
                }
                Cell::Integer(value) => PartitionKey::Integer(value),
                Cell::Double(value) => PartitionKey::Double(value),
                Cell::Decimal(units) => PartitionKey::Decimal(units, scale(data_type)),
                Cell::Text { start, end } => PartitionKey::Text(&text[start..end]),
                Cell::Unescaped { start, end } => {
                    PartitionKey::Text(&self.scanner.unescaped()[start..end])
                }
            };
            part.write(&mut self.key_text);
            Some(())
        });
        Ok(Checked { key: keyed.map(|()| self.key_text.as_slice()), event_time })
    }
}

fn scale(data_type: DataType) -> u8 {
    match data_type {
        DataType::Decimal { scale, .. } => scale,
        DataType::Boolean
        | DataType::Integer
        | DataType::BigInt
        | DataType::Double
        | DataType::Varchar
        | DataType::Timestamp => 0,
    }
}

/// A key's value, and its bytes, by which the record is partitioned. Equal values give equal bytes,
/// however the producer writes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PartitionKey<'a> {
    Boolean(bool),
    /// INTEGER and BIGINT.
    Integer(i64),
    Double(f64),
    /// Units and scale.
    Decimal(i128, u8),
    Text(&'a str),
    /// Microseconds since 1970.
    Timestamp(i64),
}

impl PartitionKey<'_> {
    /// Appends the bytes: text unchanged, numbers in decimal digits (a DECIMAL with all digits of
    /// its scale), `true` or `false`, a time as RFC 3339 in UTC.
    pub fn write(self, out: &mut Vec<u8>) {
        // Writing to a vector cannot fail.
        let _ = match self {
            Self::Boolean(value) => write!(out, "{value}"),
            Self::Integer(value) => write!(out, "{value}"),
            Self::Double(value) => write!(out, "{}", if value == 0.0 { 0.0 } else { value }),
            Self::Decimal(units, 0) => write!(out, "{units}"),
            Self::Decimal(units, scale) => {
                let digits =
                    format!("{:0width$}", units.unsigned_abs(), width = usize::from(scale) + 1);
                let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
                write!(out, "{}{whole}.{fraction}", if units < 0 { "-" } else { "" })
            }
            Self::Text(text) => out.write_all(text.as_bytes()),
            Self::Timestamp(micros) => write!(out, "{}", EventTime(micros)),
        };
    }
}
