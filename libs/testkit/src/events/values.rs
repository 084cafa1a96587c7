//! Generates single events.

use headwater_types::{Column, DataType, EventTime, StreamDefinition};

use super::{mix::Mix, random::Random};

pub(super) struct Values<'a> {
    stream: &'a StreamDefinition,
    mix: &'a Mix,
    pub(super) random: Random,
}

pub(super) struct Made {
    pub(super) timestamp_ms: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
}

const WORDS: &[&str] =
    &["JFK", "LGA", "EWR", "click", "purchase", "view", "NZ", "a longer piece of text", ""];

/// JSON strings in their encoded form.
const EXTREME_TEXTS: &[&str] = &[
    r#""\u0000""#,
    r#""\ud83d\ude00 \"quoted\" \\ \/ \b\f\n\r\t""#,
    "\"日本語, Zürich, ελληνικά, עברית\"",
    "\"\u{10ffff}\u{7f}\u{80}\"",
    r#""e\u0301""#,
    "\"é\"",
    "12345678901234567890.5",
    "\"null\"",
];

const EXTREME_DOUBLES: &[&str] = &[
    "1.7976931348623157e308",
    "-1.7976931348623157e308",
    "5e-324",
    "-0.0",
    "0.1",
    "1e16",
    "-1e16",
    "9007199254740993",
    "1e-400",
    "0.30000000000000004",
];

impl<'a> Values<'a> {
    pub(super) fn new(stream: &'a StreamDefinition, mix: &'a Mix, seed: u64) -> Self {
        Self { stream, mix, random: Random::new(seed) }
    }

    pub(super) fn next(&mut self, index: usize) -> Made {
        let mix = self.mix;
        let place = mix.start_micros + index as i64 * mix.step_micros;
        let timestamp_ms = place.div_euclid(1_000);
        if self.random.chance(mix.tombstones) {
            let key = self.random.chance(0.5).then(|| b"gone".to_vec());
            return Made { timestamp_ms, key, value: None };
        }
        let behind =
            if self.random.chance(mix.late) { mix.lateness_micros } else { mix.disorder_micros };
        let mut time = place - self.random.below(behind.unsigned_abs() + 1) as i64;
        if self.random.chance(mix.whole_seconds) {
            time -= time.rem_euclid(1_000_000);
        }
        if self.random.chance(mix.future) {
            time = place
                .saturating_add(self.stream.max_future_micros.saturating_add(1_000).min(1 << 52));
        }

        let key_number = self.random.below(mix.keys);
        let unfit = self
            .random
            .chance(mix.unfit)
            .then(|| self.random.below(self.stream.columns.len() as u64) as usize);
        let mut members = Vec::new();
        let mut key = None;
        for (index, column) in self.stream.columns.iter().enumerate() {
            let is_key = self.stream.key == Some(index);
            let is_time = self.stream.event_time == index;
            if column.nullable && !is_time && self.random.chance(mix.missing) {
                if self.random.chance(0.5) {
                    members.push((column.name.clone(), "null".to_owned()));
                }
                continue;
            }
            let json = if unfit == Some(index) {
                self.unfit(column.data_type)
            } else if is_time {
                self.time(time)
            } else if is_key {
                let json = key_json(column, key_number);
                key = Some(json.trim_matches('"').as_bytes().to_vec());
                json
            } else {
                self.json(column.data_type)
            };
            members.push((column.name.clone(), json));
        }
        let reordered = self.random.chance(mix.reordered);
        if reordered {
            self.stir(&mut members);
        }
        let mut value = self.object(&members, reordered).into_bytes();
        if self.random.chance(mix.malformed) {
            self.damage(&mut value);
        }
        Made { timestamp_ms, key, value: Some(value) }
    }

    /// Reorders the members and adds some that name no column.
    fn stir(&mut self, members: &mut Vec<(String, String)>) {
        for index in (1..members.len()).rev() {
            let other = self.random.below(index as u64 + 1) as usize;
            members.swap(index, other);
        }
        let extra = r#"{"nested":[1,{"deep":[[],{},"]}\""]}],"n":-0.5e+1}"#;
        for (name, json) in [("extra", extra), ("another", "[true,false,null]")] {
            let at = self.random.below(members.len() as u64 + 1) as usize;
            members.insert(at, (name.to_owned(), json.to_owned()));
        }
    }

    fn object(&mut self, members: &[(String, String)], spaced: bool) -> String {
        let space = if spaced { *self.random.pick(&["", " ", "\n\t"]) } else { "" };
        let member = |(name, json): &(String, String)| format!("{}:{space}{json}", quoted(name));
        let members: Vec<String> = members.iter().map(member).collect();
        format!("{{{space}{}{space}}}", members.join(&format!(",{space}")))
    }

    fn json(&mut self, data_type: DataType) -> String {
        if self.random.chance(self.mix.extreme) {
            return self.extreme(data_type);
        }
        match data_type {
            DataType::Boolean => self.random.chance(0.5).to_string(),
            DataType::Integer | DataType::BigInt => {
                (self.random.below(2_000) as i64 - 500).to_string()
            }
            DataType::Double => {
                let cents = self.random.below(2_000_000) as i64 - 500_000;
                format!("{}", cents as f64 / 100.0)
            }
            DataType::Decimal { precision, scale } => {
                let digits = u32::from(precision.min(12));
                let units = self.random.below(10u64.pow(digits)) as i64;
                format!("{}{units}e-{scale}", if self.random.chance(0.2) { "-" } else { "" })
            }
            DataType::Varchar => quoted(self.random.pick::<&str>(WORDS)),
            DataType::Timestamp => {
                let time = self.mix.start_micros + self.random.below(86_400_000_000) as i64;
                self.time(time)
            }
        }
    }

    fn extreme(&mut self, data_type: DataType) -> String {
        let picked = |random: &mut Random, from: &[&str]| (*random.pick(from)).to_owned();
        match data_type {
            DataType::Boolean => "true".to_owned(),
            DataType::Integer => {
                picked(&mut self.random, &["2147483647", "-2147483648", "-0", "1e3", "12.000"])
            }
            DataType::BigInt => picked(
                &mut self.random,
                &["9223372036854775807", "-9223372036854775808", "9007199254740993", "1E2"],
            ),
            DataType::Double => picked(&mut self.random, EXTREME_DOUBLES),
            DataType::Decimal { precision, scale } => {
                let nines = "9".repeat(usize::from(precision));
                let (whole, fraction) =
                    nines.split_at(usize::from(precision - scale.min(precision)));
                let sign = if self.random.chance(0.5) { "-" } else { "" };
                let whole = if whole.is_empty() { "0" } else { whole };
                if fraction.is_empty() {
                    format!("{sign}{whole}")
                } else {
                    format!("{sign}{whole}.{fraction}")
                }
            }
            DataType::Varchar => picked(&mut self.random, EXTREME_TEXTS),
            DataType::Timestamp => picked(
                &mut self.random,
                &[
                    "0",
                    "-1",
                    "\"9999-12-31T23:59:59.999999Z\"",
                    "\"2016-12-31T23:59:60Z\"",
                    "\"2024-02-29T12:00:00+13:45\"",
                ],
            ),
        }
    }

    /// Epoch milliseconds or text, with an offset or without.
    fn time(&mut self, micros: i64) -> String {
        match self.random.below(4) {
            0 => micros.div_euclid(1_000).to_string(),
            1 => format!(
                "\"{}+02:00\"",
                EventTime(micros + 7_200_000_000).to_string().trim_end_matches('Z')
            ),
            _ => format!("\"{}\"", EventTime(micros)),
        }
    }

    /// A value that the type does not accept.
    fn unfit(&mut self, data_type: DataType) -> String {
        let from: &[&str] = match data_type {
            DataType::Boolean => &["\"true\"", "1", "{}"],
            DataType::Integer => &["2147483648", "1.5", "\"12\"", "[]", "1e10"],
            DataType::BigInt => &["9223372036854775808", "0.1", "\"12\"", "true"],
            DataType::Double => &["1e999", "\"1.5\"", "false"],
            DataType::Decimal { .. } => {
                &["1e40", "0.0000000000000000000000000000000000000001", "\"1\"", "{}"]
            }
            DataType::Varchar => &["true", "{\"a\":1}", "[\"x\"]"],
            DataType::Timestamp => &[
                "\"yesterday\"",
                "\"2024-02-30T00:00:00Z\"",
                "\"2024-02-29T00:00:00\"",
                "1e300",
                "0.5",
            ],
        };
        (*self.random.pick(from)).to_owned()
    }

    /// Damages the bytes so that they are not a JSON object.
    fn damage(&mut self, value: &mut Vec<u8>) {
        let at = self.random.below(value.len() as u64) as usize;
        match self.random.below(6) {
            0 => value.truncate(at),
            1 => value.insert(at, 0xff),
            2 => value.extend_from_slice(b"}"),
            3 => *value = b"not JSON".to_vec(),
            4 => value.clear(),
            _ => value[at] = 0x01,
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A key value in one spelling, so that equal keys share a partition.
fn key_json(column: &Column, number: u64) -> String {
    match column.data_type {
        DataType::Boolean => number.is_multiple_of(2).to_string(),
        DataType::Integer | DataType::BigInt | DataType::Double => number.to_string(),
        DataType::Decimal { scale: 0, .. } => number.to_string(),
        DataType::Decimal { scale, .. } => format!("{number}.{}", "0".repeat(usize::from(scale))),
        DataType::Varchar => format!("\"key-{number}\""),
        DataType::Timestamp => format!("\"{}\"", EventTime(number as i64 * 1_000_000)),
    }
}
