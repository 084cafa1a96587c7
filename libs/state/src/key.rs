//! Group keys as bytes that sort in the order of their values.
//!
//! A key is the concatenation of its parts. No part's encoding is a prefix of another's, so keys
//! compare part by part, and the first parts of a key are a prefix of its bytes:
//!
//! ```text
//! NULL       00
//! BOOLEAN    01 00 | 01 01
//! INTEGER    01, 8 bytes with the sign bit turned; BIGINT and TIMESTAMP alike
//! DOUBLE     01, 8 bytes of IEEE 754 with the sign bit turned, or all bits if it was set
//! DECIMAL    01, 16 bytes of the unscaled value with the sign bit turned
//! VARCHAR    01, UTF-8 with 00 as 00 ff, then 00 01
//! ```
//!
//! NULL sorts first, NaN last. There is one NaN and one zero: values that SQL calls equal are one
//! key.

use std::str;

use headwater_types::DataType;

/// A value of a group key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyPart<'a> {
    Null,
    Boolean(bool),
    /// INTEGER or BIGINT.
    Integer(i64),
    Double(f64),
    /// The unscaled value; the scale is the column's.
    Decimal(i128),
    Text(&'a str),
    /// Microseconds.
    Timestamp(i64),
}

/// A value of a group key that owns its text.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnedKeyPart {
    Null,
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Decimal(i128),
    Text(String),
    Timestamp(i64),
}

impl OwnedKeyPart {
    pub fn as_part(&self) -> KeyPart<'_> {
        match self {
            Self::Null => KeyPart::Null,
            Self::Boolean(value) => KeyPart::Boolean(*value),
            Self::Integer(value) => KeyPart::Integer(*value),
            Self::Double(value) => KeyPart::Double(*value),
            Self::Decimal(value) => KeyPart::Decimal(*value),
            Self::Text(value) => KeyPart::Text(value),
            Self::Timestamp(value) => KeyPart::Timestamp(*value),
        }
    }
}

const NULL: u8 = 0;
const VALUE: u8 = 1;
const SIGN: u64 = 1 << 63;

/// Appends the encoding of a part.
#[inline]
pub fn encode(part: KeyPart<'_>, out: &mut Vec<u8>) {
    match part {
        KeyPart::Null => out.push(NULL),
        KeyPart::Boolean(value) => out.extend_from_slice(&[VALUE, u8::from(value)]),
        KeyPart::Integer(value) | KeyPart::Timestamp(value) => {
            fixed(value.cast_unsigned() ^ SIGN, out)
        }
        KeyPart::Double(value) => fixed(double_to_bits(value), out),
        KeyPart::Decimal(value) => {
            let mut bytes = [VALUE; 17];
            bytes[1..].copy_from_slice(&(value.cast_unsigned() ^ (1 << 127)).to_be_bytes());
            out.extend_from_slice(&bytes);
        }
        KeyPart::Text(value) => text(value.as_bytes(), out),
    }
}

#[inline]
fn fixed(bits: u64, out: &mut Vec<u8>) {
    let mut bytes = [VALUE; 9];
    bytes[1..].copy_from_slice(&bits.to_be_bytes());
    out.extend_from_slice(&bytes);
}

#[inline]
fn text(mut rest: &[u8], out: &mut Vec<u8>) {
    out.reserve(rest.len() + 3);
    out.push(VALUE);
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        out.extend_from_slice(&rest[..=zero]);
        out.push(0xff);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 1]);
}

fn double_to_bits(value: f64) -> u64 {
    let bits = if value.is_nan() {
        f64::NAN.to_bits() & !SIGN
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    };
    if bits & SIGN == 0 { bits | SIGN } else { !bits }
}

fn double_from_bits(bits: u64) -> f64 {
    f64::from_bits(if bits & SIGN == 0 { !bits } else { bits & !SIGN })
}

/// The bytes are not a key of these types.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:02x?} is not a key part of type {data_type}")]
pub struct InvalidKey {
    data_type: DataType,
    /// The first bytes of the part.
    found: Vec<u8>,
}

/// Decodes one part and advances `bytes` past it.
pub fn decode(bytes: &mut &[u8], data_type: DataType) -> Result<OwnedKeyPart, InvalidKey> {
    let input = *bytes;
    let (part, rest) = take(input, data_type)
        .ok_or_else(|| InvalidKey { data_type, found: input[..input.len().min(24)].to_vec() })?;
    *bytes = rest;
    Ok(part)
}

fn take(input: &[u8], data_type: DataType) -> Option<(OwnedKeyPart, &[u8])> {
    let (&tag, rest) = input.split_first()?;
    match tag {
        NULL => return Some((OwnedKeyPart::Null, rest)),
        VALUE => {}
        _ => return None,
    }
    let (part, rest) = match data_type {
        DataType::Boolean => match rest.split_first()? {
            (0, rest) => (OwnedKeyPart::Boolean(false), rest),
            (1, rest) => (OwnedKeyPart::Boolean(true), rest),
            _ => return None,
        },
        DataType::Integer | DataType::BigInt | DataType::Timestamp | DataType::Double => {
            let (bits, rest) = rest.split_first_chunk()?;
            let bits = u64::from_be_bytes(*bits);
            let integer = (bits ^ SIGN).cast_signed();
            let part = match data_type {
                DataType::Double => OwnedKeyPart::Double(double_from_bits(bits)),
                DataType::Timestamp => OwnedKeyPart::Timestamp(integer),
                DataType::Boolean
                | DataType::Integer
                | DataType::BigInt
                | DataType::Decimal { .. }
                | DataType::Varchar => OwnedKeyPart::Integer(integer),
            };
            (part, rest)
        }
        DataType::Decimal { .. } => {
            let (bits, rest) = rest.split_first_chunk()?;
            (OwnedKeyPart::Decimal((u128::from_be_bytes(*bits) ^ (1 << 127)).cast_signed()), rest)
        }
        DataType::Varchar => {
            let (text, rest) = take_text(rest)?;
            (OwnedKeyPart::Text(text), rest)
        }
    };
    Some((part, rest))
}

fn take_text(mut rest: &[u8]) -> Option<(String, &[u8])> {
    let mut text = Vec::new();
    loop {
        let zero = rest.iter().position(|&byte| byte == 0)?;
        text.extend_from_slice(&rest[..zero]);
        let (&mark, after) = rest[zero + 1..].split_first()?;
        rest = after;
        match mark {
            1 => return Some((String::from_utf8(text).ok()?, rest)),
            0xff => text.push(0),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
