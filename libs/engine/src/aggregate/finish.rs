//! Computes aggregate values from partial states.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array,
        StringBuilder, TimestampMicrosecondArray, UInt64Array,
    },
    datatypes::{Decimal128Type, DecimalType, i256},
};
use headwater_types::DataType;

use super::{StateCells, StateColumn, Sum};
use crate::{exact::ExactSum, plan::AggregateFunction};

impl StateColumn {
    /// The value of every group. The error is the first group whose value does not fit the type.
    pub(super) fn finish(&self) -> Result<ArrayRef, usize> {
        let avg = self.function == AggregateFunction::Avg;
        Ok(match &self.cells {
            StateCells::Count(cells) => {
                let counts = UInt64Array::from(cells.clone());
                let counts = counts.try_unary(i64::try_from);
                Arc::new(counts.map(|counts: Int64Array| counts).map_err(|_| 0_usize)?)
            }
            StateCells::Integer(cells) if avg => {
                let mean = |cell: &Sum<i128>| {
                    (cell.count > 0).then(|| cell.sum as f64 / cell.count as f64)
                };
                Arc::new(cells.iter().map(mean).collect::<Float64Array>())
            }
            StateCells::Integer(cells) => {
                let sum = |(group, cell): (usize, &Sum<i128>)| {
                    let sum = (cell.count > 0).then(|| i64::try_from(cell.sum));
                    sum.transpose().map_err(|_| group)
                };
                Arc::new(cells.iter().enumerate().map(sum).collect::<Result<Int64Array, usize>>()?)
            }
            StateCells::Double(cells) => {
                let value = |cell: &Sum<ExactSum>| match cell.count {
                    0 => None,
                    count if avg => Some(cell.sum.mean(count)),
                    _ => Some(cell.sum.value()),
                };
                Arc::new(cells.iter().map(value).collect::<Float64Array>())
            }
            StateCells::Decimal(cells) => {
                let (precision, scale) = digits(self.output);
                let more = if avg {
                    scale.saturating_sub(digits(self.input.unwrap_or(self.output)).1)
                } else {
                    0
                };
                let value = |(group, cell): (usize, &Sum<i256>)| match cell.count {
                    0 => Ok(None),
                    count => {
                        let value = decimal(cell.sum, more, if avg { count } else { 1 }, precision);
                        value.ok_or(group).map(Some)
                    }
                };
                let values = cells
                    .iter()
                    .enumerate()
                    .map(value)
                    .collect::<Result<Decimal128Array, usize>>()?;
                // The planner has checked precision and scale.
                Arc::new(
                    values.with_precision_and_scale(precision, scale as i8).map_err(|_| 0_usize)?,
                )
            }
            StateCells::Narrow(cells) => {
                let cells = cells.iter();
                match self.output {
                    DataType::Boolean => Arc::new(
                        cells.map(|cell| cell.map(|value| value != 0)).collect::<BooleanArray>(),
                    ),
                    DataType::Integer => Arc::new(
                        cells.map(|cell| cell.map(|value| value as i32)).collect::<Int32Array>(),
                    ),
                    DataType::Double => {
                        Arc::new(cells.map(|cell| cell.map(from_ordered)).collect::<Float64Array>())
                    }
                    DataType::Timestamp => {
                        let times = cells.copied().collect::<TimestampMicrosecondArray>();
                        Arc::new(times.with_timezone("UTC"))
                    }
                    DataType::BigInt | DataType::Varchar | DataType::Decimal { .. } => {
                        Arc::new(cells.copied().collect::<Int64Array>())
                    }
                }
            }
            StateCells::Wide(cells) => {
                let (precision, scale) = digits(self.output);
                let values = cells.iter().copied().collect::<Decimal128Array>();
                Arc::new(
                    values.with_precision_and_scale(precision, scale as i8).map_err(|_| 0_usize)?,
                )
            }
            StateCells::Text(cells) => {
                let mut builder = StringBuilder::with_capacity(cells.len(), 0);
                for cell in cells {
                    // The bytes came from a text, or `merge` has checked them.
                    builder.append_option(
                        cell.as_deref().and_then(|text| std::str::from_utf8(text).ok()),
                    );
                }
                Arc::new(builder.finish())
            }
        })
    }
}

pub(super) fn from_ordered(bits: i64) -> f64 {
    f64::from_bits((bits ^ ((bits >> 63) as u64 >> 1) as i64) as u64)
}

fn digits(data_type: DataType) -> (u8, u8) {
    match data_type {
        DataType::Decimal { precision, scale } => (precision, scale),
        DataType::Boolean
        | DataType::Integer
        | DataType::BigInt
        | DataType::Double
        | DataType::Varchar
        | DataType::Timestamp => (38, 0),
    }
}

/// `sum * 10^more / count`, truncated as DataFusion does; `None` if it has more than `precision`
/// digits.
pub(super) fn decimal(sum: i256, more: u8, count: u64, precision: u8) -> Option<i128> {
    let factor = i256::from_i128(10).checked_pow(u32::from(more))?;
    let value =
        sum.checked_mul(factor)?.checked_div(i256::from_i128(i128::from(count)))?.to_i128()?;
    Decimal128Type::validate_decimal_precision(value, precision, 0).ok().map(|()| value)
}
