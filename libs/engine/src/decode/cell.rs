//! The value of a column in a record, read from JSON.

use headwater_types::DataType;

use super::{
    fault::FaultKind,
    json,
    number::{Number, Unfit, power_of_ten},
    timestamp,
};

/// The value of a wanted column in the current record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell {
    Null,
    Boolean(bool),
    /// INTEGER, BIGINT, and TIMESTAMP in microseconds.
    Integer(i64),
    Double(f64),
    /// The value in units of the column's scale.
    Decimal(i128),
    /// A range of the record's bytes.
    Text {
        start: usize,
        end: usize,
    },
    /// A range of [`Scanner::unescaped`](super::scan::Scanner::unescaped).
    Unescaped {
        start: usize,
        end: usize,
    },
}

#[inline]
pub(super) fn text_cell(
    unescaped: &mut String,
    text: &str,
    start: usize,
    found: json::Text,
) -> Cell {
    if !found.escaped {
        return Cell::Text { start, end: found.end };
    }
    let from = unescaped.len();
    json::unescape(&text[start..found.end], unescaped);
    Cell::Unescaped { start: from, end: unescaped.len() }
}

#[inline]
pub(super) fn number_cell(
    data_type: DataType,
    number: &Number,
    literal: &str,
) -> Result<Cell, FaultKind> {
    let scaled = |scale| {
        number.scaled(literal.as_bytes(), scale).map_err(|unfit| match unfit {
            Unfit::Fraction => FaultKind::Fraction,
            Unfit::TooLarge => FaultKind::Digits,
        })
    };
    let whole = || {
        scaled(0).map_err(|kind| if kind == FaultKind::Digits { FaultKind::Range } else { kind })
    };
    match data_type {
        DataType::BigInt => {
            Ok(Cell::Integer(i64::try_from(whole()?).map_err(|_| FaultKind::Range)?))
        }
        DataType::Integer => {
            Ok(Cell::Integer(i32::try_from(whole()?).map_err(|_| FaultKind::Range)?.into()))
        }
        DataType::Double => number.double(literal).map(Cell::Double).ok_or(FaultKind::Infinite),
        DataType::Decimal { precision, scale } => {
            let units = scaled(scale)?;
            if units.unsigned_abs() >= power_of_ten(u32::from(precision.min(38))).unsigned_abs() {
                return Err(FaultKind::Digits);
            }
            Ok(Cell::Decimal(units))
        }
        DataType::Timestamp => {
            let millis = whole().map_err(|kind| {
                if kind == FaultKind::Range { FaultKind::TimeRange } else { kind }
            })?;
            timestamp::in_range(millis.saturating_mul(1_000))
                .map(Cell::Integer)
                .ok_or(FaultKind::TimeRange)
        }
        DataType::Boolean | DataType::Varchar => Err(FaultKind::Type),
    }
}
