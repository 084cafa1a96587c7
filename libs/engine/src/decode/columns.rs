//! Builds Arrow arrays from decoded cells.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Decimal128Builder, Float64Builder, Int32Builder, Int64Builder,
        StringBuilder, TimestampMicrosecondBuilder,
    },
    datatypes::DataType as ArrowType,
};
use headwater_types::DataType;

use super::cell::Cell;
use crate::plan::arrow_type;

/// The greatest number of rows for which capacity is kept between batches.
const KEPT_ROWS: usize = 1 << 16;

/// One column of the batch that is being built.
#[derive(Debug)]
pub(super) enum ColumnBuilder {
    Boolean(BooleanBuilder),
    Integer(Int32Builder),
    BigInt(Int64Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder, ArrowType),
    Varchar(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder, ArrowType),
}

impl ColumnBuilder {
    /// A builder with capacity for `rows` rows and, for VARCHAR, `text` bytes.
    pub(super) fn new(data_type: DataType, rows: usize, text: usize) -> Self {
        let arrow = arrow_type(data_type);
        match data_type {
            DataType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            DataType::Integer => Self::Integer(Int32Builder::with_capacity(rows)),
            DataType::BigInt => Self::BigInt(Int64Builder::with_capacity(rows)),
            DataType::Double => Self::Double(Float64Builder::with_capacity(rows)),
            DataType::Decimal { .. } => Self::Decimal(
                Decimal128Builder::with_capacity(rows).with_data_type(arrow.clone()),
                arrow,
            ),
            DataType::Varchar => Self::Varchar(StringBuilder::with_capacity(rows, text)),
            DataType::Timestamp => Self::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(arrow.clone()),
                arrow,
            ),
        }
    }

    /// `text` is the record and `unescaped` its unescaped text. The scanner produces only cells of
    /// the column's type; any other cell would become NULL.
    #[inline]
    pub(super) fn push(&mut self, cell: Cell, text: &str, unescaped: &str) {
        match (self, cell) {
            (Self::Boolean(column), Cell::Boolean(value)) => column.append_value(value),
            (Self::Integer(column), Cell::Integer(value)) => column.append_value(value as i32),
            (Self::BigInt(column), Cell::Integer(value)) => column.append_value(value),
            (Self::Double(column), Cell::Double(value)) => column.append_value(value),
            (Self::Decimal(column, _), Cell::Decimal(value)) => column.append_value(value),
            (Self::Varchar(column), Cell::Text { start, end }) => {
                column.append_value(&text[start..end])
            }
            (Self::Varchar(column), Cell::Unescaped { start, end }) => {
                column.append_value(&unescaped[start..end])
            }
            (Self::Timestamp(column, _), Cell::Integer(value)) => column.append_value(value),
            (column, _) => column.push_null(),
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Boolean(column) => column.append_null(),
            Self::Integer(column) => column.append_null(),
            Self::BigInt(column) => column.append_null(),
            Self::Double(column) => column.append_null(),
            Self::Decimal(column, _) => column.append_null(),
            Self::Varchar(column) => column.append_null(),
            Self::Timestamp(column, _) => column.append_null(),
        }
    }

    /// Returns the array of all rows. The next array starts with the same capacity.
    pub(super) fn finish(&mut self, rows: usize) -> ArrayRef {
        let room = rows.min(KEPT_ROWS);
        match self {
            Self::Boolean(column) => {
                Arc::new(std::mem::replace(column, BooleanBuilder::with_capacity(room)).finish())
            }
            Self::Integer(column) => {
                Arc::new(std::mem::replace(column, Int32Builder::with_capacity(room)).finish())
            }
            Self::BigInt(column) => {
                Arc::new(std::mem::replace(column, Int64Builder::with_capacity(room)).finish())
            }
            Self::Double(column) => {
                Arc::new(std::mem::replace(column, Float64Builder::with_capacity(room)).finish())
            }
            Self::Decimal(column, arrow) => {
                let next = Decimal128Builder::with_capacity(room).with_data_type(arrow.clone());
                Arc::new(std::mem::replace(column, next).finish())
            }
            Self::Varchar(column) => {
                let text = column.values_slice().len().min(KEPT_ROWS * 64);
                Arc::new(
                    std::mem::replace(column, StringBuilder::with_capacity(room, text)).finish(),
                )
            }
            Self::Timestamp(column, arrow) => {
                let next =
                    TimestampMicrosecondBuilder::with_capacity(room).with_data_type(arrow.clone());
                Arc::new(std::mem::replace(column, next).finish())
            }
        }
    }
}
