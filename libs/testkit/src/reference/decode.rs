//! Decodes events with serde_json, chrono and schoolbook arithmetic.

use std::fmt;

use headwater_types::{DataType, StreamDefinition};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::datum::Datum;

/// An event with its wanted columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    columns: Vec<(String, Datum)>,
    /// Event time, microseconds since 1970.
    pub time: i64,
}

/// Why a value is not an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The index of the wrong column; `None` if the record as a whole is wrong.
    pub column: Option<usize>,
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// The members of an object in order, repeated ones included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    strings_are_text(member.1.get()).map_err(A::Error::custom)?;
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Checks all strings: serde_json does not check the surrogates of strings that it ignores.
fn strings_are_text(json: &str) -> Result<(), serde_json::Error> {
    let mut rest = json;
    while let Some(start) = rest.find('"') {
        let mut strings = serde_json::Deserializer::from_str(&rest[start..]).into_iter::<String>();
        match strings.next() {
            Some(text) => text?,
            None => return Ok(()),
        };
        rest = &rest[start + strings.byte_offset()..];
    }
    Ok(())
}

/// The depth of nesting, where the outermost object is the first level.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

impl Event {
    /// Decodes the wanted columns, given as indices of the stream's columns, and the event time.
    pub fn decode(
        stream: &StreamDefinition,
        wanted: &[usize],
        value: &[u8],
    ) -> Result<Self, Fault> {
        let whole = |reason: String| Fault { column: None, reason };
        let text = std::str::from_utf8(value).map_err(|error| whole(error.to_string()))?;
        let Members(members) =
            serde_json::from_str(text).map_err(|error| whole(error.to_string()))?;
        if depth(text) > 64 {
            return Err(whole("nested more than 64 deep".to_owned()));
        }
        let mut event = Self { columns: Vec::new(), time: 0 };
        for (index, column) in stream.columns.iter().enumerate() {
            let fault = |reason: String| Fault {
                column: Some(index),
                reason: format!("{}: {reason}", column.name),
            };
            let values: Vec<&str> = members
                .iter()
                .filter(|(name, _)| *name == column.name)
                .map(|(_, value)| value.get())
                .collect();
            if values.len() > 1 {
                return Err(fault("twice".to_owned()));
            }
            if index != stream.event_time && !wanted.contains(&index) {
                continue;
            }
            let datum = match values.first() {
                None | Some(&"null") => Datum::Null,
                Some(json) => datum(column.data_type, json).map_err(fault)?,
            };
            if datum.is_null() && !column.nullable {
                return Err(fault("NULL in a NOT NULL column".to_owned()));
            }
            if index == stream.event_time {
                let Datum::Timestamp(time) = datum else { return Err(fault("no time".to_owned())) };
                event.time = time;
            }
            event.columns.push((column.name.clone(), datum));
        }
        Ok(event)
    }

    /// The value of a wanted column.
    pub fn get(&self, column: &str) -> Datum {
        match self.columns.iter().find(|(name, _)| name == column) {
            Some((_, datum)) => datum.clone(),
            None => panic!("the column {column} was not wanted: name it in View::wanting"),
        }
    }
}

fn datum(data_type: DataType, json: &str) -> Result<Datum, String> {
    let is_text = json.starts_with('"');
    let is_number = json.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let unfit = || format!("{json} is no {data_type}");
    match data_type {
        DataType::Boolean => match json {
            "true" => Ok(Datum::Boolean(true)),
            "false" => Ok(Datum::Boolean(false)),
            _ => Err(unfit()),
        },
        DataType::Varchar if is_text => {
            serde_json::from_str(json).map(Datum::Text).map_err(|_| unfit())
        }
        DataType::Varchar if is_number => Ok(Datum::Text(json.to_owned())),
        DataType::Timestamp if is_text => {
            let text: String = serde_json::from_str(json).map_err(|_| unfit())?;
            in_years(rfc_3339(&text).ok_or_else(unfit)?)
        }
        DataType::Timestamp if is_number => {
            in_years(units(json, 0)?.checked_mul(1000).ok_or_else(unfit)?)
        }
        DataType::Integer if is_number => i32::try_from(units(json, 0)?)
            .map(|value| Datum::Integer(value.into()))
            .map_err(|_| unfit()),
        DataType::BigInt if is_number => {
            i64::try_from(units(json, 0)?).map(Datum::Integer).map_err(|_| unfit())
        }
        DataType::Double if is_number => json
            .parse()
            .ok()
            .filter(|value: &f64| value.is_finite())
            .map(Datum::Double)
            .ok_or_else(unfit),
        DataType::Decimal { precision, scale } if is_number => {
            let units = units(json, i64::from(scale))?;
            let fits = units.unsigned_abs() < 10u128.pow(u32::from(precision));
            if fits { Ok(Datum::Decimal { units, scale }) } else { Err(unfit()) }
        }
        DataType::Varchar
        | DataType::Timestamp
        | DataType::Integer
        | DataType::BigInt
        | DataType::Double
        | DataType::Decimal { .. } => Err(unfit()),
    }
}

/// The number times `10^scale`, which must be whole, by moving the point through the digits.
fn units(json: &str, scale: i64) -> Result<i128, String> {
    let unfit =
        || format!("{json} has more than {scale} digits behind the point, or too many before it");
    let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or((1, mantissa), |rest| (-1, rest));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    if digits.bytes().all(|digit| digit == b'0') {
        return Ok(0);
    }
    // An exponent beyond i64 moves the point farther than any digits reach.
    let mut zeros = exponent.parse::<i64>().map_err(|_| unfit())?.clamp(-1 << 40, 1 << 40) + scale
        - fraction.len() as i64;
    while zeros < 0 && digits.ends_with('0') {
        digits.pop();
        zeros += 1;
    }
    let digits = digits.trim_start_matches('0');
    if zeros < 0 || digits.len() as i64 + zeros > 38 {
        return Err(unfit());
    }
    let units: i128 =
        format!("{digits}{}", "0".repeat(zeros as usize)).parse().map_err(|_| unfit())?;
    Ok(sign * units)
}

fn rfc_3339(text: &str) -> Option<i128> {
    // chrono requires upper case and `T`, and cuts at nanoseconds.
    let well_formed = text.len() >= 20 && text.is_ascii();
    let shape = |at: usize, any: &[u8]| any.contains(&text.as_bytes()[at]);
    if !well_formed || !shape(10, b"Tt ") || !shape(13, b":") || !shape(16, b":") {
        return None;
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    let mut micros = i128::from(time.timestamp_micros());
    if &text[17..19] == "60" {
        // chrono represents a leap second as 59.x plus a second. That instant is the start of the
        // next second.
        micros = micros.div_euclid(1_000_000) * 1_000_000;
        if micros.rem_euclid(86_400_000_000) != 0 {
            return None;
        }
    }
    Some(micros)
}

fn in_years(micros: i128) -> Result<Datum, String> {
    let years = -62_167_219_200_000_000..=253_402_300_799_999_999;
    if years.contains(&micros) {
        Ok(Datum::Timestamp(micros as i64))
    } else {
        Err("outside the years 0000 to 9999".to_owned())
    }
}
