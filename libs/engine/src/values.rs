//! Typed access to columns.

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int32Array,
        Int64Array, StringArray, TimestampMicrosecondArray,
    },
    buffer::NullBuffer,
    datatypes::{
        DataType as ArrowType, Decimal128Type, Float64Type, Int32Type, Int64Type, TimeUnit,
        TimestampMicrosecondType,
    },
};
use headwater_state::key::{self, KeyPart};
use headwater_types::DataType;

/// A column whose type is known.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    Boolean(&'a BooleanArray),
    Int32(&'a Int32Array),
    Int64(&'a Int64Array),
    Double(&'a Float64Array),
    Decimal(&'a Decimal128Array),
    Text(&'a StringArray),
    Timestamp(&'a TimestampMicrosecondArray),
}

impl<'a> Values<'a> {
    /// `None` if the array has another type than [`arrow_type`](crate::arrow_type) gives.
    pub(crate) fn of(array: &'a ArrayRef, data_type: DataType) -> Option<Self> {
        match (data_type, array.data_type()) {
            (DataType::Boolean, ArrowType::Boolean) => Some(Self::Boolean(array.as_boolean())),
            (DataType::Integer, ArrowType::Int32) => {
                Some(Self::Int32(array.as_primitive::<Int32Type>()))
            }
            (DataType::BigInt, ArrowType::Int64) => {
                Some(Self::Int64(array.as_primitive::<Int64Type>()))
            }
            (DataType::Double, ArrowType::Float64) => {
                Some(Self::Double(array.as_primitive::<Float64Type>()))
            }
            (DataType::Decimal { scale, .. }, ArrowType::Decimal128(_, found))
                if *found == scale as i8 =>
            {
                Some(Self::Decimal(array.as_primitive::<Decimal128Type>()))
            }
            (DataType::Varchar, ArrowType::Utf8) => Some(Self::Text(array.as_string::<i32>())),
            (DataType::Timestamp, ArrowType::Timestamp(TimeUnit::Microsecond, _)) => {
                Some(Self::Timestamp(array.as_primitive::<TimestampMicrosecondType>()))
            }
            (_, _) => None,
        }
    }

    pub(crate) fn nulls(&self) -> Option<&'a NullBuffer> {
        match *self {
            Self::Boolean(values) => values.nulls(),
            Self::Int32(values) => values.nulls(),
            Self::Int64(values) => values.nulls(),
            Self::Double(values) => values.nulls(),
            Self::Decimal(values) => values.nulls(),
            Self::Text(values) => values.nulls(),
            Self::Timestamp(values) => values.nulls(),
        }
    }

    /// Appends one row's value as a part of a key.
    #[inline]
    pub(crate) fn encode_key(&self, row: usize, out: &mut Vec<u8>) {
        let null = self.nulls().is_some_and(|nulls| nulls.is_null(row));
        key::encode(if null { KeyPart::Null } else { self.key_part(row) }, out);
    }

    #[inline]
    fn key_part(&self, row: usize) -> KeyPart<'a> {
        match self {
            Self::Boolean(values) => KeyPart::Boolean(values.value(row)),
            Self::Int32(values) => KeyPart::Integer(i64::from(values.values()[row])),
            Self::Int64(values) => KeyPart::Integer(values.values()[row]),
            Self::Double(values) => KeyPart::Double(values.values()[row]),
            Self::Decimal(values) => KeyPart::Decimal(values.values()[row]),
            Self::Text(values) => KeyPart::Text(values.value(row)),
            Self::Timestamp(values) => KeyPart::Timestamp(values.values()[row]),
        }
    }
}
