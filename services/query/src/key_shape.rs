//! The key of a view: which columns it has, and its values as shards store them.

use headwater_engine::plan::ViewPlan;
use headwater_proto::common::v1::{Value, value::Kind};
use headwater_state::key::KeyPart;
use headwater_types::DataType;

use crate::error::Error;

/// The key columns of a view, the window's start last.
#[derive(Debug)]
pub(crate) struct KeyShape {
    view: String,
    columns: Vec<(String, DataType)>,
    windowed: bool,
}

impl KeyShape {
    pub(crate) fn of(plan: &ViewPlan) -> Self {
        let columns = plan.key_names().into_iter().zip(plan.key_types()).collect();
        Self { view: plan.view.to_string(), columns, windowed: plan.window.is_some() }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|(name, _)| name.clone()).collect()
    }

    pub(crate) fn windowed(&self) -> bool {
        self.windowed
    }

    pub(crate) fn data_type(&self, index: usize) -> Option<DataType> {
        self.columns.get(index).map(|(_, data_type)| *data_type)
    }

    pub(crate) fn len(&self) -> usize {
        self.columns.len()
    }

    /// The types alone, as text: two generations with the same signature have comparable keys.
    pub(crate) fn signature(&self) -> String {
        let types: Vec<String> =
            self.columns.iter().map(|(_, data_type)| data_type.to_string()).collect();
        types.join(",")
    }

    /// One value per key column.
    pub(crate) fn whole<'a>(&self, values: &'a [Value]) -> Result<Vec<KeyPart<'a>>, Error> {
        if values.len() != self.columns.len() {
            return Err(self.error(format!("{} were given", values.len())));
        }
        self.prefix(values)
    }

    /// Values of the first key columns.
    pub(crate) fn prefix<'a>(&self, values: &'a [Value]) -> Result<Vec<KeyPart<'a>>, Error> {
        if values.len() > self.columns.len() {
            return Err(self.error(format!("{} were given", values.len())));
        }
        let parts = self.columns.iter().zip(values).enumerate();
        parts
            .map(|(index, ((name, data_type), value))| {
                key_part(value, *data_type)
                    .map_err(|found| self.error(format!("value {} ({name}) is {found}", index + 1)))
            })
            .collect()
    }

    fn error(&self, problem: String) -> Error {
        let columns: Vec<String> =
            self.columns.iter().map(|(name, data_type)| format!("{name} {data_type}")).collect();
        Error::Key { view: self.view.clone(), shape: columns.join(", "), problem }
    }
}

/// `Err` says what the value is instead.
fn key_part(value: &Value, data_type: DataType) -> Result<KeyPart<'_>, String> {
    let Some(kind) = &value.kind else { return Ok(KeyPart::Null) };
    match (data_type, kind) {
        (DataType::Boolean, Kind::Boolean(value)) => Ok(KeyPart::Boolean(*value)),
        (DataType::Integer, Kind::Integer(value)) if i32::try_from(*value).is_err() => {
            Err(format!("{value}, beyond the range of INTEGER"))
        }
        (DataType::Integer | DataType::BigInt, Kind::Integer(value)) => {
            Ok(KeyPart::Integer(*value))
        }
        (DataType::Double, Kind::Double(value)) => Ok(KeyPart::Double(*value)),
        // An integer below 2^53 names exactly one double.
        (DataType::Double, Kind::Integer(value)) if value.unsigned_abs() <= 1 << 53 => {
            Ok(KeyPart::Double(*value as f64))
        }
        (DataType::Decimal { precision, scale }, Kind::Decimal(text)) => {
            decimal(text, precision, scale).map(KeyPart::Decimal)
        }
        (DataType::Decimal { precision, scale }, Kind::Integer(value)) => {
            decimal(&value.to_string(), precision, scale).map(KeyPart::Decimal)
        }
        (DataType::Varchar, Kind::Text(text)) => Ok(KeyPart::Text(text)),
        (DataType::Timestamp, Kind::TimestampMicros(micros)) => Ok(KeyPart::Timestamp(*micros)),
        (
            DataType::Boolean
            | DataType::Integer
            | DataType::BigInt
            | DataType::Double
            | DataType::Decimal { .. }
            | DataType::Varchar
            | DataType::Timestamp,
            other,
        ) => Err(format!("{}, not {data_type}", kind_name(other))),
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Boolean(_) => "a boolean",
        Kind::Integer(_) => "an integer",
        Kind::Double(_) => "a double",
        Kind::Text(_) => "text",
        Kind::Decimal(_) => "a decimal",
        Kind::TimestampMicros(_) => "a timestamp",
    }
}

/// Plain notation to the unscaled number, exactly or not at all.
fn decimal(text: &str, precision: u8, scale: u8) -> Result<i128, String> {
    let wrong = || format!("{text:?}, not a DECIMAL({precision},{scale}) in plain notation");
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let point = digits.iter().position(|&byte| byte == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let kept = fraction.len() - fraction.iter().rev().take_while(|&&byte| byte == b'0').count();
    if whole.len() + fraction.len() == 0 || kept > usize::from(scale) {
        return Err(wrong());
    }
    let mut number: i128 = 0;
    let padding = std::iter::repeat_n(&b'0', usize::from(scale) - kept);
    for &byte in whole.iter().chain(&fraction[..kept]).chain(padding) {
        let digit = byte.is_ascii_digit().then(|| i128::from(byte - b'0')).ok_or_else(wrong)?;
        number = number.checked_mul(10).and_then(|n| n.checked_add(digit)).ok_or_else(wrong)?;
    }
    if number >= 10_i128.pow(u32::from(precision)) {
        return Err(wrong());
    }
    Ok(if negative { -number } else { number })
}

#[cfg(test)]
mod tests;
