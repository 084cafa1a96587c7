//! The departures of `examples/flights`, and the rows that views of them must have: computed from
//! the file by plain loops, without a line of Headwater.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
};

use anyhow::{Context as _, Result};
use flate2::read::GzDecoder;

use crate::dev::repository;

pub const PARTITIONS: u32 = 4;
const HOUR: i64 = 3_600_000_000;

/// One departure.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The line of the file.
    pub json: Vec<u8>,
    pub origin: String,
    /// Microseconds since 1970.
    pub scheduled: i64,
    pub departed: bool,
    pub delay: Option<i64>,
}

/// The file, in its order.
pub fn read() -> Result<Vec<Flight>> {
    let path = repository("examples/flights/flights-2013-01.ndjson.gz");
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    BufReader::new(GzDecoder::new(file)).split(b'\n').map(|line| parse(line?)).collect()
}

/// A definition of `examples/flights`.
pub fn definition(name: &str) -> Result<String> {
    let path = repository("examples/flights").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// One line of the file.
///
/// # Errors
///
/// It is not a departure.
pub fn parse(json: Vec<u8>) -> Result<Flight> {
    let value: serde_json::Value = serde_json::from_slice(&json)?;
    let origin = value["origin"].as_str().context("origin")?.to_owned();
    let scheduled =
        timestamp(value["scheduled"].as_str().context("scheduled")?).context("scheduled")?;
    let departed = !value["departed"].is_null();
    let delay = value["dep_delay"].as_i64();
    Ok(Flight { json, origin, scheduled, departed, delay })
}

/// `2013-01-01T10:15:00Z`, by counting days.
fn timestamp(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let mut days = (1970..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<i64>();
    let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    days += lengths.iter().take(usize::try_from(month).ok()? - 1).sum::<i64>() + day - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000)
}

/// The partition of a flight's record, by Kafka's default partitioner over its origin.
pub fn partition(flight: &Flight) -> u32 {
    (murmur2(flight.origin.as_bytes()) & 0x7fff_ffff) % PARTITIONS
}

/// As `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (place, byte) in rest.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The flights whose records lie before these positions, given in file order and all appended in
/// it.
pub fn before<'a>(flights: &'a [Flight], positions: &[u64]) -> Vec<&'a Flight> {
    let mut left = positions.to_vec();
    let mut taken = Vec::new();
    for flight in flights {
        let left = &mut left[partition(flight) as usize];
        if *left > 0 {
            *left -= 1;
            taken.push(flight);
        }
    }
    taken
}

/// Origin, and the start of the hour in microseconds.
pub type Hour = (String, i64);

/// One row of either version of the view.
#[derive(Clone, Debug, PartialEq)]
pub struct Punctuality {
    pub departures: i64,
    /// The second version only.
    pub cancelled: Option<i64>,
    pub on_time: i64,
    pub avg_delay: Option<f64>,
    pub max_delay: Option<i64>,
}

pub type View = BTreeMap<Hour, Punctuality>;

/// The rows that `punctuality_v1.sql` must have for these flights, or `punctuality_v2.sql`.
pub fn punctuality<'a>(flights: impl IntoIterator<Item = &'a Flight>, version: u32) -> View {
    let mut hours: BTreeMap<Hour, Vec<&Flight>> = BTreeMap::new();
    for flight in flights {
        let hour = flight.scheduled.div_euclid(HOUR) * HOUR;
        hours.entry((flight.origin.clone(), hour)).or_default().push(flight);
    }
    hours.into_iter().map(|(hour, flights)| (hour, row(&flights, version))).collect()
}

fn row(flights: &[&Flight], version: u32) -> Punctuality {
    let max_delay = flights.iter().filter_map(|flight| flight.delay).max();
    let average = |delays: Vec<i64>| {
        (!delays.is_empty()).then(|| delays.iter().sum::<i64>() as f64 / delays.len() as f64)
    };
    if version == 1 {
        let delays: Vec<i64> = flights.iter().map(|flight| flight.delay.unwrap_or(0)).collect();
        return Punctuality {
            departures: flights.len() as i64,
            cancelled: None,
            on_time: delays.iter().filter(|delay| **delay <= 15).count() as i64,
            avg_delay: average(delays),
            max_delay,
        };
    }
    let departed = flights.iter().filter(|flight| flight.departed).count() as i64;
    let on_time = flights
        .iter()
        .filter(|flight| flight.departed && flight.delay.is_some_and(|delay| delay <= 15));
    Punctuality {
        departures: departed,
        cancelled: Some(flights.len() as i64 - departed),
        on_time: on_time.count() as i64,
        avg_delay: average(flights.iter().filter_map(|flight| flight.delay).collect()),
        max_delay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_one_that_its_readme_describes() {
        let flights = read().unwrap();
        assert_eq!(flights.len(), 27_004);
        assert_eq!(flights.iter().filter(|flight| !flight.departed).count(), 521);
        assert_eq!(timestamp("1970-01-02T00:00:01Z"), Some(86_401_000_000));
        assert_eq!(timestamp("2013-01-01T10:15:00Z"), Some(1_357_035_300_000_000));
    }

    #[test]
    fn keys_are_spread_as_kafka_spreads_them() {
        // From Kafka's own UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }
}
