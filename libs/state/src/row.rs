//! Row headers, key ranges, and the keys of the outbox.

use headwater_types::{EventTime, Offset};

use crate::{Error, meta::ROWS};

/// The time of a row that never expires.
pub const NEVER_EXPIRES: EventTime = EventTime(i64::MAX);

/// The part of a row that this crate reads. The payload belongs to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowHeader {
    /// The time that expiry compares: a window's end, or the row's greatest event time.
    pub time: EventTime,
    /// The offset of the last record that changed the row.
    pub last_offset: Offset,
}

/// The length of the header before the engine's payload: version, time, last offset.
pub const ROW_HEADER_LEN: usize = 17;
pub(crate) const ROW_VERSION: u8 = 1;

/// Appends a row's header. The caller appends the payload.
pub fn encode_header(header: &RowHeader, out: &mut Vec<u8>) {
    let mut bytes = [0; ROW_HEADER_LEN];
    bytes[0] = ROW_VERSION;
    bytes[1..9].copy_from_slice(&header.time.0.to_be_bytes());
    bytes[9..17].copy_from_slice(&header.last_offset.0.to_be_bytes());
    out.extend_from_slice(&bytes);
}

/// Splits a stored row into header and payload.
pub fn decode_row(bytes: &[u8]) -> Result<(RowHeader, &[u8]), Error> {
    match split_row(bytes) {
        Some(row) => Ok(row),
        None => Err(Error::corrupt(
            "a row".as_ref(),
            format!("{} bytes, version {:?}", bytes.len(), bytes.first()),
        )),
    }
}

pub(crate) fn split_row(bytes: &[u8]) -> Option<(RowHeader, &[u8])> {
    let (header, payload) = bytes.split_first_chunk::<ROW_HEADER_LEN>()?;
    let [ROW_VERSION, rest @ ..] = header else { return None };
    let (time, offset) = rest.split_first_chunk::<8>()?;
    let header = RowHeader {
        time: EventTime(i64::from_be_bytes(*time)),
        last_offset: Offset(u64::from_be_bytes(offset.try_into().ok()?)),
    };
    Some((header, payload))
}

/// The rows whose keys are in `start..end`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Vec<u8>,
    /// The exclusive end; `None` if the range has no end.
    pub end: Option<Vec<u8>>,
}

impl KeyRange {
    pub fn all() -> Self {
        Self::default()
    }

    pub fn from(start: Vec<u8>) -> Self {
        Self { start, end: None }
    }

    /// All keys that begin with these bytes.
    pub fn prefix(prefix: &[u8]) -> Self {
        // The exclusive end is the shortest key after all keys with the prefix: increment the last
        // byte that is not 0xff, and cut off the rest.
        let grown = prefix.iter().rposition(|&byte| byte != u8::MAX);
        let end = grown.map(|at| {
            let mut end = prefix[..=at].to_vec();
            end[at] += 1;
            end
        });
        Self { start: prefix.to_vec(), end }
    }

    /// The same range, as keys of the database.
    pub(crate) fn stored(&self) -> (Vec<u8>, Vec<u8>) {
        let end = self.end.as_ref().map_or_else(|| vec![ROWS + 1], |end| stored_key(end));
        (stored_key(&self.start), end)
    }
}

pub(crate) fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(ROWS);
    stored.extend_from_slice(key);
    stored
}

/// The key of an outbox entry: the offset of the record that caused it, then the entry's index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxKey {
    /// The offset of the record that caused the entry.
    pub position: Offset,
    /// Counts the entries that one record caused.
    pub index: u32,
}

pub(crate) const OUTBOX_KEY_LEN: usize = 12;

impl OutboxKey {
    /// The first key of a position.
    pub const fn at(position: Offset) -> Self {
        Self { position, index: 0 }
    }

    /// The first key after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        match self.index.checked_add(1) {
            Some(index) => Self { position: self.position, index },
            None => Self { position: self.position.next(), index: 0 },
        }
    }

    pub fn encode(self) -> [u8; OUTBOX_KEY_LEN] {
        let mut bytes = [0; OUTBOX_KEY_LEN];
        bytes[..8].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, index) = bytes.split_first_chunk::<8>()?;
        Some(Self {
            position: Offset(u64::from_be_bytes(*position)),
            index: u32::from_be_bytes(index.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_of_version_1_is_read_for_ever() {
        let stored = b"\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x01\x00payload";
        let header = RowHeader { time: EventTime(7), last_offset: Offset(256) };
        assert_eq!(decode_row(stored).unwrap(), (header, b"payload".as_slice()));

        let mut written = Vec::new();
        encode_header(&header, &mut written);
        assert_eq!(written, stored[..ROW_HEADER_LEN]);
    }

    #[test]
    fn a_row_of_an_unknown_form_is_refused() {
        assert!(decode_row(&[]).is_err());
        assert!(decode_row(&[1; 16]).is_err());
        assert!(decode_row(&[2; 20]).is_err());
    }

    #[test]
    fn an_outbox_key_of_version_1_is_read_for_ever() {
        let stored = [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3];
        let key = OutboxKey { position: Offset(258), index: 3 };
        assert_eq!(OutboxKey::decode(&stored), Some(key));
        assert_eq!(key.encode(), stored);
        assert_eq!(OutboxKey::decode(&stored[1..]), None);
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_exactly_the_keys_that_begin_with_it(
            prefix in proptest::collection::vec(prop_oneof![Just(255), Just(0), any::<u8>()], 0..4),
            key in proptest::collection::vec(prop_oneof![Just(255), Just(0), any::<u8>()], 0..6),
        ) {
            let range = KeyRange::prefix(&prefix);
            let inside = key >= range.start && range.end.is_none_or(|end| key < end);
            prop_assert_eq!(inside, key.starts_with(&prefix));
        }

        #[test]
        fn outbox_keys_sort_as_their_bytes(a in any::<(u64, u32)>(), b in any::<(u64, u32)>()) {
            let key = |(position, index)| OutboxKey { position: Offset(position), index };
            prop_assert_eq!(key(a).cmp(&key(b)), key(a).encode().cmp(&key(b).encode()));
        }
    }
}
