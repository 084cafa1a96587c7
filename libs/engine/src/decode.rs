//! Decodes JSON events into columns, and validates events at ingest.
//!
//! [`JsonDecoder`] decodes the columns that a plan needs. [`Validator`] checks the whole schema
//! before an event enters the log. Both check every byte of the record: it must be one JSON object
//! (RFC 8259) in UTF-8, with nothing after it, at most 64 levels deep. The error names the first
//! fault of the record, what was found and what is expected.
//!
//! # Columns
//!
//! A key names a column if the two are exactly equal. The order of keys does not matter. Keys that
//! name no column are ignored, whatever their value. A column that comes twice is an error, because
//! neither value is more right than the other. A missing column is NULL. NULL in a NOT NULL column
//! is an error if the column is wanted.
//!
//! | type | accepted JSON |
//! | --- | --- |
//! | BOOLEAN | `true`, `false` |
//! | INTEGER, BIGINT | a whole number in range; `12`, `12.0` and `1.2e1` are one number |
//! | DOUBLE | a number; the nearest double, which must be finite |
//! | DECIMAL(p,s) | a number of at most `p` digits, at most `s` of them after the point |
//! | VARCHAR | text; a number as it is written |
//! | TIMESTAMP | RFC 3339 text with an offset, or milliseconds since 1970 as a whole number |
//!
//! A DECIMAL is never rounded; zeros at the end do not count. A TIMESTAMP has `T`, `t` or a space
//! between date and time, and a year from 0000 to 9999; digits beyond microseconds are dropped.
//! Text is never converted to a number, a boolean or null.
//!
//! # Speed
//!
//! `scan.rs` predicts the next key from the record before. A record takes one pass whether the
//! predictions are right or wrong.

mod cell;
mod columns;
mod describe;
mod fault;
mod json;
mod number;
mod scan;
mod slot;
mod timestamp;
mod validate;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatchOptions},
    datatypes::{Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use headwater_types::StreamDefinition;

use columns::ColumnBuilder;
pub use fault::DecodeError;
use scan::Scanner;
pub use validate::{Checked, PartitionKey, Validator};

use crate::plan::arrow_type;

/// Decodes the wanted columns of a stream's records into batches.
///
/// Arrow's text offsets limit the records between two calls of [`take`](Self::take) to 2 GiB.
#[derive(Debug)]
pub struct JsonDecoder {
    scanner: Scanner,
    wanted: Vec<usize>,
    schema: SchemaRef,
    builders: Vec<ColumnBuilder>,
    rows: usize,
}

impl JsonDecoder {
    /// `wanted` are indices of the stream's columns. Batches have the columns in this order.
    pub fn new(stream: &StreamDefinition, wanted: &[usize]) -> Self {
        let columns = || wanted.iter().map(|&index| &stream.columns[index]);
        let fields: Vec<Field> = columns()
            .map(|column| Field::new(&column.name, arrow_type(column.data_type), column.nullable))
            .collect();
        Self {
            scanner: Scanner::new(stream, wanted),
            wanted: wanted.to_vec(),
            schema: Arc::new(Schema::new(fields)),
            builders: columns().map(|column| ColumnBuilder::new(column.data_type, 0, 0)).collect(),
            rows: 0,
        }
    }

    /// Appends the record's row. After an error the rows are unchanged.
    #[inline]
    pub fn decode(&mut self, value: &[u8]) -> Result<(), DecodeError> {
        let text = self.scanner.scan(value)?;
        for (builder, &column) in self.builders.iter_mut().zip(&self.wanted) {
            builder.push(self.scanner.cell(column), text, self.scanner.unescaped());
        }
        self.rows += 1;
        Ok(())
    }

    /// Rows since the last [`take`](Self::take).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The columns of every batch.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The rows decoded so far, in the order of their records.
    pub fn take(&mut self) -> RecordBatch {
        let rows = std::mem::take(&mut self.rows);
        let columns: Vec<ArrayRef> =
            self.builders.iter_mut().map(|builder| builder.finish(rows)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).expect(
            "the builders were made from the schema, and NULL is checked when a record is scanned",
        )
    }
}
