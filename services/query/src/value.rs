//! Arrow values as messages carry them, and key values as shards store them.

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{
        DataType as Arrow, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
        DecimalType, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use headwater_engine::plan::ViewPlan;
use headwater_proto::common::v1::{Column, DataType as Wire, Row, Value, value::Kind};
use headwater_state::key::KeyPart;
use headwater_types::DataType;

use crate::error::Error;

/// The columns of a view, in the words of its definition.
pub(crate) fn view_columns(plan: &ViewPlan) -> Vec<Column> {
    plan.output
        .iter()
        .map(|column| Column {
            name: column.name.clone(),
            r#type: Wire::from(column.data_type) as i32,
            sql_type: column.data_type.to_string(),
        })
        .collect()
}

/// The columns of a query's result. A type that no column of a view can have travels as text.
pub(crate) fn result_columns(schema: &Schema) -> Vec<Column> {
    schema
        .fields()
        .iter()
        .map(|field| {
            let (wire, sql_type) = wire_type(field.data_type());
            Column { name: field.name().clone(), r#type: wire as i32, sql_type }
        })
        .collect()
}

#[allow(clippy::wildcard_enum_match_arm, reason = "Arrow has many more types than we name")]
fn wire_type(arrow: &Arrow) -> (Wire, String) {
    let named = |wire, name: &str| (wire, name.to_owned());
    match arrow {
        Arrow::Boolean => named(Wire::Boolean, "BOOLEAN"),
        Arrow::Int8 | Arrow::Int16 | Arrow::Int32 | Arrow::UInt8 | Arrow::UInt16 => {
            named(Wire::Integer, "INTEGER")
        }
        Arrow::Int64 | Arrow::UInt32 => named(Wire::Bigint, "BIGINT"),
        // row_number() and its like: always small in practice, exact in any case.
        Arrow::UInt64 => named(Wire::Bigint, "BIGINT UNSIGNED"),
        Arrow::Float16 | Arrow::Float32 | Arrow::Float64 => named(Wire::Double, "DOUBLE"),
        Arrow::Decimal32(precision, scale)
        | Arrow::Decimal64(precision, scale)
        | Arrow::Decimal128(precision, scale)
        | Arrow::Decimal256(precision, scale) => {
            (Wire::Decimal, format!("DECIMAL({precision},{scale})"))
        }
        Arrow::Timestamp(..) => named(Wire::Timestamp, "TIMESTAMP"),
        Arrow::Utf8 | Arrow::LargeUtf8 | Arrow::Utf8View => named(Wire::Varchar, "VARCHAR"),
        Arrow::Date32 | Arrow::Date64 => named(Wire::Varchar, "DATE"),
        Arrow::Dictionary(_, value) => wire_type(value),
        Arrow::RunEndEncoded(_, value) => wire_type(value.data_type()),
        other => (Wire::Varchar, other.to_string().to_uppercase()),
    }
}

/// The rows of a batch, one value per column.
pub(crate) fn rows(batch: &RecordBatch) -> Result<Vec<Row>, ArrowError> {
    let width = batch.num_columns();
    let mut rows: Vec<Row> =
        (0..batch.num_rows()).map(|_| Row { values: Vec::with_capacity(width) }).collect();
    for column in batch.columns() {
        append(column, &mut rows)?;
    }
    Ok(rows)
}

macro_rules! each {
    ($array:expr, $rows:expr, |$value:ident| $kind:expr) => {{
        for (row, value) in $rows.iter_mut().zip($array.iter()) {
            row.values.push(Value { kind: value.map(|$value| $kind) });
        }
    }};
}

#[allow(clippy::wildcard_enum_match_arm, reason = "Arrow has many more types than we name")]
fn append(array: &ArrayRef, rows: &mut [Row]) -> Result<(), ArrowError> {
    macro_rules! integers {
        ($type:ty) => {
            each!(array.as_primitive::<$type>(), rows, |v| Kind::Integer(v.into()))
        };
    }
    macro_rules! decimals {
        ($type:ty, $precision:expr, $scale:expr) => {
            each!(array.as_primitive::<$type>(), rows, |v| Kind::Decimal(<$type>::format_decimal(
                v,
                *$precision,
                *$scale
            )))
        };
    }
    match array.data_type() {
        Arrow::Boolean => each!(array.as_boolean(), rows, |v| Kind::Boolean(v)),
        Arrow::Int8 => integers!(Int8Type),
        Arrow::Int16 => integers!(Int16Type),
        Arrow::Int32 => integers!(Int32Type),
        Arrow::Int64 => integers!(Int64Type),
        Arrow::UInt8 => integers!(UInt8Type),
        Arrow::UInt16 => integers!(UInt16Type),
        Arrow::UInt32 => integers!(UInt32Type),
        Arrow::UInt64 => {
            each!(array.as_primitive::<UInt64Type>(), rows, |v| match i64::try_from(v) {
                Ok(small) => Kind::Integer(small),
                Err(_) => Kind::Decimal(v.to_string()),
            })
        }
        Arrow::Float16 => {
            each!(array.as_primitive::<Float16Type>(), rows, |v| Kind::Double(v.to_f64()))
        }
        Arrow::Float32 => {
            each!(array.as_primitive::<Float32Type>(), rows, |v| Kind::Double(v.into()))
        }
        Arrow::Float64 => each!(array.as_primitive::<Float64Type>(), rows, |v| Kind::Double(v)),
        Arrow::Decimal32(precision, scale) => decimals!(Decimal32Type, precision, scale),
        Arrow::Decimal64(precision, scale) => decimals!(Decimal64Type, precision, scale),
        Arrow::Decimal128(precision, scale) => decimals!(Decimal128Type, precision, scale),
        Arrow::Decimal256(precision, scale) => decimals!(Decimal256Type, precision, scale),
        Arrow::Timestamp(TimeUnit::Second, _) => {
            each!(array.as_primitive::<TimestampSecondType>(), rows, |v| Kind::TimestampMicros(
                v.saturating_mul(1_000_000)
            ))
        }
        Arrow::Timestamp(TimeUnit::Millisecond, _) => {
            each!(
                array.as_primitive::<TimestampMillisecondType>(),
                rows,
                |v| Kind::TimestampMicros(v.saturating_mul(1_000))
            )
        }
        Arrow::Timestamp(TimeUnit::Microsecond, _) => {
            each!(
                array.as_primitive::<TimestampMicrosecondType>(),
                rows,
                |v| Kind::TimestampMicros(v)
            )
        }
        Arrow::Timestamp(TimeUnit::Nanosecond, _) => {
            each!(array.as_primitive::<TimestampNanosecondType>(), rows, |v| Kind::TimestampMicros(
                v.div_euclid(1_000)
            ))
        }
        Arrow::Utf8 => each!(array.as_string::<i32>(), rows, |v| Kind::Text(v.to_owned())),
        Arrow::LargeUtf8 => each!(array.as_string::<i64>(), rows, |v| Kind::Text(v.to_owned())),
        Arrow::Utf8View => each!(array.as_string_view(), rows, |v| Kind::Text(v.to_owned())),
        Arrow::Dictionary(_, value) => append(&cast(array, value)?, rows)?,
        Arrow::RunEndEncoded(_, value) => append(&cast(array, value.data_type())?, rows)?,
        _ => {
            let options = FormatOptions::default();
            let text = ArrayFormatter::try_new(array, &options)?;
            for (index, row) in rows.iter_mut().enumerate() {
                // is_null does not see the nulls of a Null array, logical_nulls would cost an array.
                let absent = array.is_null(index) || array.data_type() == &Arrow::Null;
                let kind = if absent {
                    None
                } else {
                    Some(Kind::Text(text.value(index).try_to_string()?))
                };
                row.values.push(Value { kind });
            }
        }
    }
    Ok(())
}

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
