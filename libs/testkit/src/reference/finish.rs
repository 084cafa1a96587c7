//! Computes aggregates from all their values at once.

use super::datum::{Datum, Evaluated, Function};
use crate::exact::{DoubleSum, Wide};

/// The number of digits that an average of decimals has in addition to its argument's scale.
const MORE_DIGITS: u8 = 4;
const MAX_DIGITS: u8 = 38;

pub(super) fn finish(function: Function, values: &[Datum]) -> Evaluated {
    let present: Vec<&Datum> = values.iter().filter(|value| !value.is_null()).collect();
    match function {
        Function::CountStar => Ok(Datum::Integer(values.len() as i64)),
        Function::Count => Ok(Datum::Integer(present.len() as i64)),
        Function::Min => Ok(present.into_iter().min().cloned().unwrap_or(Datum::Null)),
        Function::Max => Ok(present.into_iter().max().cloned().unwrap_or(Datum::Null)),
        Function::Sum | Function::Avg => match present.first() {
            None => Ok(Datum::Null),
            Some(Datum::Integer(_)) => whole(function, &present),
            Some(Datum::Double(_)) => double(function, &present),
            Some(Datum::Decimal { scale, .. }) => decimal(function, &present, *scale),
            Some(Datum::Null | Datum::Boolean(_) | Datum::Text(_) | Datum::Timestamp(_)) => {
                Err("these values have no sum".to_owned())
            }
        },
    }
}

fn whole(function: Function, values: &[&Datum]) -> Evaluated {
    let sum: i128 = values.iter().filter_map(|value| value.integer()).map(i128::from).sum();
    if function == Function::Avg {
        return Ok(Datum::Double(sum as f64 / values.len() as f64));
    }
    i64::try_from(sum).map(Datum::Integer).map_err(|_| format!("{sum} is out of range of BIGINT"))
}

fn double(function: Function, values: &[&Datum]) -> Evaluated {
    let mut sum = DoubleSum::default();
    values.iter().filter_map(|value| value.double()).for_each(|value| sum.add(value));
    let average = function == Function::Avg;
    Ok(Datum::Double(if average { sum.mean(values.len() as u64) } else { sum.value() }))
}

fn decimal(function: Function, values: &[&Datum], scale: u8) -> Evaluated {
    let mut sum = Wide::default();
    for value in values {
        if let Datum::Decimal { units, .. } = value {
            sum.add(&Wide::from(*units));
        }
    }
    let (result, scale) = match function {
        Function::Avg => {
            let wider = (scale + MORE_DIGITS).min(MAX_DIGITS);
            let factor = 10u64.pow(u32::from(wider - scale));
            (sum.times(factor).divided(values.len() as u64), wider)
        }
        Function::CountStar | Function::Count | Function::Sum | Function::Min | Function::Max => {
            (sum, scale)
        }
    };
    let fits = |units: &i128| units.unsigned_abs() < 10u128.pow(u32::from(MAX_DIGITS));
    match result.to_i128().filter(fits) {
        Some(units) => Ok(Datum::Decimal { units, scale }),
        None => Err("out of range of DECIMAL(38)".to_owned()),
    }
}
