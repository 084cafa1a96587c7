//! One value of one row, of any type.

use anyhow::{Context as _, bail};
use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{Decimal128Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType},
};
use headwater_proto::common::v1::{Value, value::Kind};
use headwater_state::key::OwnedKeyPart;
use headwater_types::DataType;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Boolean(bool),
    Integer(i64),
    Double(f64),
    /// Units and scale.
    Decimal(i128, u8),
    Text(&'a str),
    Timestamp(i64),
}

pub(super) fn is_numeric(data_type: DataType) -> bool {
    match data_type {
        DataType::Integer | DataType::BigInt | DataType::Double | DataType::Decimal { .. } => true,
        DataType::Boolean | DataType::Varchar | DataType::Timestamp => false,
    }
}

impl<'a> Cell<'a> {
    pub(super) fn of(
        column: &'a ArrayRef,
        row: usize,
        data_type: DataType,
    ) -> anyhow::Result<Self> {
        if column.is_null(row) {
            return Ok(Self::Null);
        }
        let wrong = || format!("a column of type {data_type} is held as {}", column.data_type());
        Ok(match data_type {
            DataType::Boolean => {
                Self::Boolean(column.as_boolean_opt().with_context(wrong)?.value(row))
            }
            DataType::Integer => Self::Integer(
                column.as_primitive_opt::<Int32Type>().with_context(wrong)?.value(row).into(),
            ),
            DataType::BigInt => Self::Integer(
                column.as_primitive_opt::<Int64Type>().with_context(wrong)?.value(row),
            ),
            DataType::Double => Self::Double(
                column.as_primitive_opt::<Float64Type>().with_context(wrong)?.value(row),
            ),
            DataType::Decimal { scale, .. } => Self::Decimal(
                column.as_primitive_opt::<Decimal128Type>().with_context(wrong)?.value(row),
                scale,
            ),
            DataType::Varchar => {
                Self::Text(column.as_string_opt::<i32>().with_context(wrong)?.value(row))
            }
            DataType::Timestamp => Self::Timestamp(
                column
                    .as_primitive_opt::<TimestampMicrosecondType>()
                    .with_context(wrong)?
                    .value(row),
            ),
        })
    }

    /// Compares by value, and doubles by their bits. Numbers of different types are equal if they
    /// are the same number.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Double(a), Self::Double(b)) => a.to_bits() == b.to_bits(),
            (Self::Decimal(..) | Self::Integer(_), Self::Decimal(..) | Self::Integer(_)) => {
                let ((a, a_scale), (b, b_scale)) = (self.units(), other.units());
                let scale = a_scale.max(b_scale);
                let at = |units: i128, from: u8| {
                    units.checked_mul(10_i128.checked_pow(u32::from(scale - from))?)
                };
                match (at(a, a_scale), at(b, b_scale)) {
                    (Some(a), Some(b)) => a == b,
                    // One is too large for the scale of the other: they are equal only if both
                    // units and scale are.
                    _ => (a, a_scale) == (b, b_scale),
                }
            }
            (Self::Double(_), Self::Integer(_) | Self::Decimal(..))
            | (Self::Integer(_) | Self::Decimal(..), Self::Double(_)) => {
                self.number() == other.number()
            }
            _ => self == other,
        }
    }

    fn units(&self) -> (i128, u8) {
        match self {
            Self::Integer(value) => (i128::from(*value), 0),
            Self::Decimal(units, scale) => (*units, *scale),
            Self::Null
            | Self::Boolean(_)
            | Self::Double(_)
            | Self::Text(_)
            | Self::Timestamp(_) => (0, 0),
        }
    }

    /// The value for sums and differences; `None` for NULL and for types that are not numeric.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Integer(value) => Some(*value as f64),
            Self::Double(value) => Some(*value),
            Self::Decimal(units, scale) => Some(*units as f64 / 10_f64.powi(i32::from(*scale))),
            Self::Null | Self::Boolean(_) | Self::Text(_) | Self::Timestamp(_) => None,
        }
    }

    pub(super) fn into_value(self) -> Value {
        let kind = match self {
            Self::Null => None,
            Self::Boolean(value) => Some(Kind::Boolean(value)),
            Self::Integer(value) => Some(Kind::Integer(value)),
            Self::Double(value) => Some(Kind::Double(value)),
            Self::Decimal(units, scale) => Some(Kind::Decimal(plain(units, scale))),
            Self::Text(text) => Some(Kind::Text(text.to_owned())),
            Self::Timestamp(micros) => Some(Kind::TimestampMicros(micros)),
        };
        Value { kind }
    }
}

/// The values of a stored key.
pub(super) fn key_values(mut key: &[u8], types: &[DataType]) -> anyhow::Result<Vec<Value>> {
    let mut values = Vec::with_capacity(types.len());
    for &data_type in types {
        let part = headwater_state::key::decode(&mut key, data_type)?;
        let kind = match part {
            OwnedKeyPart::Null => None,
            OwnedKeyPart::Boolean(value) => Some(Kind::Boolean(value)),
            OwnedKeyPart::Integer(value) => Some(Kind::Integer(value)),
            OwnedKeyPart::Double(value) => Some(Kind::Double(value)),
            OwnedKeyPart::Decimal(units) => {
                let DataType::Decimal { scale, .. } = data_type else {
                    bail!("a key of type {data_type} is a decimal")
                };
                Some(Kind::Decimal(plain(units, scale)))
            }
            OwnedKeyPart::Text(text) => Some(Kind::Text(text)),
            OwnedKeyPart::Timestamp(micros) => Some(Kind::TimestampMicros(micros)),
        };
        values.push(Value { kind });
    }
    Ok(values)
}

/// A decimal in plain notation: `-12.340`.
fn plain(units: i128, scale: u8) -> String {
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", units.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if units < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_the_same_by_value_and_doubles_by_bits() {
        let same = [
            (Cell::Null, Cell::Null),
            (Cell::Integer(5), Cell::Decimal(500, 2)),
            (Cell::Decimal(50, 1), Cell::Decimal(500, 2)),
            (Cell::Double(f64::NAN), Cell::Double(f64::NAN)),
            (Cell::Double(2.5), Cell::Decimal(25, 1)),
            (Cell::Text("a"), Cell::Text("a")),
        ];
        for (a, b) in &same {
            assert!(a.same(b) && b.same(a), "{a:?} {b:?}");
        }
        let differing = [
            (Cell::Null, Cell::Integer(0)),
            (Cell::Double(0.0), Cell::Double(-0.0)),
            (Cell::Decimal(i128::MAX, 0), Cell::Decimal(1, 38)),
            (Cell::Boolean(true), Cell::Integer(1)),
            (Cell::Text("a"), Cell::Text("b")),
        ];
        for (a, b) in &differing {
            assert!(!a.same(b) && !b.same(a), "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_decimal_is_told_in_plain_notation() {
        assert_eq!(plain(-12_340, 3), "-12.340");
        assert_eq!(plain(5, 2), "0.05");
        assert_eq!(plain(7, 0), "7");
        assert_eq!(plain(i128::MIN, 0), i128::MIN.to_string());
    }
}
