//! Columns and rows of Arrow as messages carry them.

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
        // As of row_number(): small in practice, exact in any case.
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
                // is_null does not see the nulls of a Null array; logical_nulls would allocate.
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
