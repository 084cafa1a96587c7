//! Reads an HTTP body, and splits it into events that share its bytes.

use std::{cell::Cell, fmt, io::Read as _, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use headwater_service::config::ByteSize;
use http_body_util::BodyExt as _;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::{
    Config,
    budget::{MemoryBudget, Reservation},
    refusal::Refusal,
};

/// A body is given up, and its memory freed, when nothing of it arrives for this long.
const IDLE: Duration = Duration::from_secs(30);

const INFLATE_STEP: usize = 64 << 10;

/// Reads a body that is within the limit, both as sent and decompressed. A body that states a
/// larger length is refused before anything of it is read.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    config: &Config,
    budget: &MemoryBudget,
) -> Result<(Bytes, Reservation), Refusal> {
    let limit = config.max_request;
    let too_large = |what: &str| Refusal::TooLarge { what: what.to_owned(), limit };
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit.0) {
        return Err(too_large(&format!("a body of {} bytes", length.unwrap_or_default())));
    }
    let gzip =
        match headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?")) {
            None | Some("identity" | "") => false,
            Some("gzip" | "x-gzip") => true,
            Some(other) => {
                return Err(Refusal::Unsupported(format!(
                    "content-encoding {other:?} is not supported; use gzip or none"
                )));
            }
        };
    let mut reserved = budget.empty()?;
    let mut bytes = BytesMut::with_capacity(length.unwrap_or_default().min(1 << 20) as usize);
    loop {
        let frame = tokio::time::timeout(IDLE, body.frame()).await.map_err(|_| {
            Refusal::Malformed(format!("nothing of the body arrived for {} s", IDLE.as_secs()))
        })?;
        let Some(frame) = frame else { break };
        let frame = frame
            .map_err(|error| Refusal::Malformed(format!("the body cannot be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit.bytes() {
            return Err(too_large("the body"));
        }
        reserved.grow(data.len())?;
        bytes.extend_from_slice(&data);
    }
    let bytes = bytes.freeze();
    if !gzip {
        return Ok((bytes, reserved));
    }
    let inflated = tokio::task::spawn_blocking(move || inflate(&bytes, limit, reserved)).await;
    inflated.map_err(|_| Refusal::Stopping)?
}

/// Decompresses a body, and stops as soon as the result is over the limit.
fn inflate(
    bytes: &[u8],
    limit: ByteSize,
    mut reserved: Reservation,
) -> Result<(Bytes, Reservation), Refusal> {
    let mut decoder = MultiGzDecoder::new(bytes);
    let mut inflated = Vec::new();
    loop {
        let before = inflated.len();
        let step = INFLATE_STEP.min(limit.bytes() + 1 - before);
        inflated.resize(before + step, 0);
        let read = decoder.read(&mut inflated[before..]).map_err(|error| {
            Refusal::Malformed(format!(
                "the body is not gzip as its content-encoding says: {error}"
            ))
        })?;
        inflated.truncate(before + read);
        if inflated.len() > limit.bytes() {
            return Err(Refusal::TooLarge { what: "the decompressed body".into(), limit });
        }
        if read == 0 {
            return Ok((Bytes::from(inflated), reserved));
        }
        reserved.grow(read)?;
    }
}

/// How a body is split into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One event per line.
    Lines,
    /// One JSON array of events.
    Array,
}

impl Format {
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Self::Lines) };
        let value = value.to_str().unwrap_or("?");
        let media_type = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media_type.as_str() {
            ""
            | "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "text/plain" => Ok(Self::Lines),
            // curl sends this type by default.
            "application/x-www-form-urlencoded" => Ok(Self::Lines),
            "application/json" => Ok(Self::Array),
            _ => Err(Refusal::Unsupported(format!(
                "content-type {value:?} is not supported; use application/x-ndjson, or application/json for an array"
            ))),
        }
    }

    /// The events as slices of the body: their bytes are those that the client sent, and nothing is
    /// copied.
    pub(crate) fn split(self, body: &Bytes, max_events: usize) -> Result<Vec<Bytes>, Refusal> {
        match self {
            Self::Lines => lines(body, max_events),
            Self::Array => items(body, max_events),
        }
    }
}

fn lines(body: &Bytes, max_events: usize) -> Result<Vec<Bytes>, Refusal> {
    let mut events = Vec::new();
    // Some editors put a byte order mark before UTF-8.
    let mut start = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    for end in memchr::memchr_iter(b'\n', body).chain([body.len()]) {
        let line = body.get(start..end).unwrap_or_default();
        let len = line.strip_suffix(b"\r").unwrap_or(line).len();
        if !line.trim_ascii().is_empty() {
            if events.len() == max_events {
                return Err(Refusal::TooMany { limit: max_events });
            }
            events.push(body.slice(start..start + len));
        }
        start = end + 1;
    }
    Ok(events)
}

fn items(body: &Bytes, max_events: usize) -> Result<Vec<Bytes>, Refusal> {
    let overfull = Cell::new(false);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let seed = Items { body, max_events, overfull: &overfull };
    let items =
        seed.deserialize(&mut deserializer).and_then(|items| deserializer.end().map(|()| items));
    items.map_err(|error| match overfull.get() {
        true => Refusal::TooMany { limit: max_events },
        false => Refusal::Malformed(format!(
            "the body is not a JSON array of events: {error}; nothing of it was stored (application/x-ndjson takes \
             one event per line, and one bad line costs no other)"
        )),
    })
}

struct Items<'a> {
    body: &'a Bytes,
    max_events: usize,
    overfull: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Bytes>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Bytes>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Bytes>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Bytes>, A::Error> {
        let mut events = Vec::new();
        while let Some(item) = items.next_element::<&'de RawValue>()? {
            if events.len() == self.max_events {
                self.overfull.set(true);
                return Err(A::Error::custom("too many events"));
            }
            // The item is borrowed from the body, so it is a part of it.
            events.push(self.body.slice_ref(item.get().as_bytes()));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(format: Format, body: &'static [u8]) -> Result<Vec<Bytes>, Refusal> {
        format.split(&Bytes::from_static(body), 3)
    }

    #[test]
    fn lines_keep_their_bytes_and_blank_ones_are_no_events() {
        let body = b"\xef\xbb\xbf{\"a\": 1 }\r\n\n  \r\n {\"b\":\"\xff\"}\n{}";
        let events = split(Format::Lines, body).unwrap();
        assert_eq!(events, [&b"{\"a\": 1 }"[..], b" {\"b\":\"\xff\"}", b"{}"]);
        assert!(split(Format::Lines, b"").unwrap().is_empty());
        assert!(split(Format::Lines, b"\xef\xbb\xbf").unwrap().is_empty());
    }

    #[test]
    fn items_of_an_array_keep_their_bytes() {
        let body = br#" [ {"a" : 1.50, "b":[1,{"c":"]"}]} ,"x",{"d":"\u00e9"}] "#;
        let events = split(Format::Array, body).unwrap();
        assert_eq!(
            events,
            [&br#"{"a" : 1.50, "b":[1,{"c":"]"}]}"#[..], br#""x""#, br#"{"d":"\u00e9"}"#]
        );
    }

    #[test]
    fn an_array_that_cannot_be_told_apart_is_refused_as_a_whole() {
        for body in [&br#"{"a":1}"#[..], b"[1,2", b"[1] x", b"[\"\xff\"]", b"", b"[1 2]"] {
            let refused = split(Format::Array, body).unwrap_err();
            assert!(matches!(refused, Refusal::Malformed(_)), "{refused}");
        }
    }

    #[test]
    fn more_events_than_allowed_are_refused_however_small_they_are() {
        assert!(matches!(split(Format::Lines, b"1\n2\n3\n4"), Err(Refusal::TooMany { limit: 3 })));
        assert!(matches!(split(Format::Array, b"[1,2,3,4]"), Err(Refusal::TooMany { limit: 3 })));
        assert_eq!(split(Format::Lines, b"1\n2\n3\n").unwrap().len(), 3);
        assert_eq!(split(Format::Array, b"[1,2,3]").unwrap().len(), 3);
    }
}
