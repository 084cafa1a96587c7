//! How stored rows are encoded between query instances.
//!
//! ```text
//! key length (u32) | value length (u32) | key | value as it is stored: header, payload
//! ```

use headwater_state::{Row, RowHeader, decode_row, encode_header};
use prost::bytes::Bytes;

/// The lengths before each row.
const LENGTHS: usize = 8;

/// Appends a row.
pub(crate) fn encode_row(key: &[u8], header: &RowHeader, payload: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; LENGTHS]);
    out.extend_from_slice(key);
    let value = out.len();
    encode_header(header, out);
    out.extend_from_slice(payload);
    // RocksDB refuses longer keys and values. A row cut short would be refused by the decoder.
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let lengths = [length(key.len()), length(out.len() - value)].concat();
    out[at..at + LENGTHS].copy_from_slice(&lengths);
}

/// The bytes are no rows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DamagedRows;

/// Rows of a message, walked in place.
#[derive(Debug, Default)]
pub(crate) struct EncodedRows {
    bytes: Bytes,
    at: usize,
}

impl EncodedRows {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next row; `None` after the last.
    pub(crate) fn next(&mut self) -> Option<Result<Row<'_>, DamagedRows>> {
        if self.is_empty() {
            return None;
        }
        let rest = &self.bytes[self.at..];
        let Some((row, length)) = split(rest) else {
            self.at = self.bytes.len();
            return Some(Err(DamagedRows));
        };
        self.at += length;
        Some(Ok(row))
    }
}

/// The first row, and how many bytes it takes.
fn split(rest: &[u8]) -> Option<(Row<'_>, usize)> {
    let (lengths, rest) = rest.split_first_chunk::<LENGTHS>()?;
    let [a, b, c, d, e, f, g, h] = *lengths;
    let key_length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    let value_length = usize::try_from(u32::from_be_bytes([e, f, g, h])).ok()?;
    let (key, rest) = rest.split_at_checked(key_length)?;
    let (header, payload) = decode_row(rest.get(..value_length)?).ok()?;
    Some(((key, header, payload), LENGTHS + key_length + value_length))
}

#[cfg(test)]
mod tests {
    use headwater_types::{EventTime, Offset};

    use super::*;

    #[test]
    fn rows_arrive_as_they_were_sent_and_a_message_cut_anywhere_is_refused() {
        let rows: [(&[u8], i64, u64, &[u8]); 3] = [
            (b"", -7, 0, b"payload"),
            (b"k\x00ey", i64::MAX, u64::MAX, b""),
            (b"z", 0, 9, &[0; 300]),
        ];
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (key, time, offset, payload) in rows {
            let header = RowHeader { time: EventTime(time), last_offset: Offset(offset) };
            encode_row(key, &header, payload, &mut bytes);
            ends.push(bytes.len());
        }

        let mut walked = EncodedRows::new(bytes.clone().into());
        for (key, time, offset, payload) in rows {
            let header = RowHeader { time: EventTime(time), last_offset: Offset(offset) };
            assert_eq!(walked.next(), Some(Ok((key, header, payload))));
        }
        assert_eq!(walked.next(), None);

        for end in 0..bytes.len() {
            let mut cut = EncodedRows::new(Bytes::copy_from_slice(&bytes[..end]));
            let damaged = std::iter::from_fn(|| cut.next().map(|row| row.is_err())).any(|bad| bad);
            assert_eq!(damaged, !ends.contains(&end), "cut at {end}");
        }
    }
}
