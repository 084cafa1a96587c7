//! The columns and types of a stream.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Name;

/// The type of a column, as SQL spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DataType {
    Boolean,
    /// 32 bits, signed.
    Integer,
    /// 64 bits, signed.
    BigInt,
    Double,
    /// `DECIMAL(precision, scale)`: at most 38 digits, `scale` of them behind the point.
    Decimal {
        precision: u8,
        scale: u8,
    },
    Varchar,
    /// UTC, in microseconds. In JSON it is RFC 3339 text or epoch milliseconds.
    Timestamp,
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean => f.write_str("BOOLEAN"),
            Self::Integer => f.write_str("INTEGER"),
            Self::BigInt => f.write_str("BIGINT"),
            Self::Double => f.write_str("DOUBLE"),
            Self::Decimal { precision, scale } => write!(f, "DECIMAL({precision},{scale})"),
            Self::Varchar => f.write_str("VARCHAR"),
            Self::Timestamp => f.write_str("TIMESTAMP"),
        }
    }
}

/// One column of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub data_type: DataType,
    pub nullable: bool,
}

/// A topic with a declared schema, as `CREATE STREAM` defines it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamDefinition {
    pub name: Name,
    /// The normal form of the statement: equal text means equal meaning.
    pub sql: String,
    pub columns: Vec<Column>,
    /// The index of the event-time column, always a NOT NULL `TIMESTAMP`.
    pub event_time: usize,
    /// The distance of the watermark behind the greatest event time, in microseconds.
    pub watermark_delay_micros: i64,
    pub topic: Name,
    pub partitions: u32,
    /// The index of the column by which records are partitioned.
    pub key: Option<usize>,
    /// The limit of how far an event time may lie ahead of its record's timestamp, in microseconds.
    pub max_future_micros: i64,
}

impl StreamDefinition {
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The topic of the records that a view of this stream could not use.
    pub fn dead_letter_topic(&self) -> Name {
        // The parser limits the length of a stream's name, so the name with the suffix is legal
        // too.
        Name::new(format!("{}.dead-letters", self.name)).unwrap_or_else(|_| self.name.clone())
    }
}
