use headwater_types::Offset;

use super::{
    HEADER_LEN,
    builder::{blob_len, fill},
    varint,
};

/// Builds stored batches out of records that come one by one with the offsets they have in their log,
/// which may leave gaps: for a log whose client library takes its batches apart.
///
/// One buffer holds one batch. Nothing is allocated per record. The batches have no checksum: a chunk of
/// them is [`Chunk::verified`](crate::Chunk::verified), for they never leave the memory of this process.
#[derive(Debug, Default)]
pub struct RelayBuilder {
    bytes: Vec<u8>,
    records: u32,
    base: u64,
    last: u64,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl RelayBuilder {
    /// Whether a record at this offset can still be added: offsets rise, and lie less than 2³¹ apart.
    #[inline]
    pub fn takes(&self, offset: Offset) -> bool {
        self.records == 0 || (offset.0 > self.last && offset.0 - self.base < 1 << 31)
    }

    /// Begins the next batch in this buffer. What is in it is thrown away; a batch that was begun keeps its own.
    pub fn reuse(&mut self, mut buffer: Vec<u8>) {
        if self.records == 0 {
            buffer.clear();
            self.bytes = buffer;
        }
    }

    /// Adds a record. Returns false, and adds nothing, for an offset that it does not take.
    #[inline]
    pub fn push<'h, H>(
        &mut self,
        offset: Offset,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
    ) -> bool
    where
        H: ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    {
        if !self.takes(offset) {
            return false;
        }
        if self.records == 0 {
            self.bytes.resize(HEADER_LEN, 0);
            self.base = offset.0;
            self.base_timestamp = timestamp_ms;
            self.max_timestamp = timestamp_ms;
        }
        self.last = offset.0;
        self.records += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let offset_delta = (offset.0 - self.base) as i64;

        let count = headers.len();
        let body = 1
            + varint::len_signed(timestamp_delta)
            + varint::len_signed(offset_delta)
            + blob_len(key)
            + blob_len(value)
            + varint::len_signed(count as i64)
            + if count == 0 { 0 } else { headers_len(headers.clone()) };
        let out = &mut self.bytes;
        out.reserve(body + 10);
        // Few large pieces rather than many small ones.
        let mut piece = Piece::default();
        piece.put(body as i64);
        piece.byte(0);
        piece.put(timestamp_delta);
        piece.put(offset_delta);
        piece.blob(key, out);
        piece.blob(value, out);
        piece.put(count as i64);
        if count > 0 {
            for (name, value) in headers {
                piece.blob(Some(name), out);
                piece.blob(value, out);
            }
        }
        piece.flush(out);
        true
    }

    /// The bytes of the batch so far.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The batch as it would be stored, and the position after its last record; then it is empty.
    pub fn take(&mut self) -> Option<(Vec<u8>, Offset)> {
        if self.records == 0 {
            return None;
        }
        let last_delta = (self.last - self.base) as u32;
        let mut bytes = std::mem::take(&mut self.bytes);
        fill(&mut bytes, self.records, last_delta, self.base_timestamp, self.max_timestamp);
        // Offsets beyond i64::MAX cannot be reached by counting.
        bytes[..8].copy_from_slice(&self.base.to_be_bytes());
        self.records = 0;
        Some((bytes, Offset(self.last + 1)))
    }
}

fn headers_len<'h>(headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>) -> usize {
    headers.map(|(name, value)| blob_len(Some(name)) + blob_len(value)).sum()
}

/// Numbers that wait to be written together.
struct Piece {
    bytes: [u8; 64],
    len: usize,
}

impl Default for Piece {
    #[inline(always)]
    fn default() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }
}

impl Piece {
    #[inline(always)]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.len & 63] = byte;
        self.len += 1;
    }

    /// At most four numbers of ten bytes come between two blobs.
    #[inline(always)]
    fn put(&mut self, value: i64) {
        let mut value = ((value << 1) ^ (value >> 63)) as u64;
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    #[inline(always)]
    fn blob(&mut self, blob: Option<&[u8]>, out: &mut Vec<u8>) {
        let Some(blob) = blob else { return self.put(-1) };
        self.put(blob.len() as i64);
        self.flush(out);
        out.extend_from_slice(blob);
    }

    #[inline(always)]
    fn flush(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.len & 63]);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chunk;

    #[test]
    fn records_keep_their_offsets_and_gaps() {
        let mut relay = RelayBuilder::default();
        assert!(relay.take().is_none());
        let none = || [].into_iter();
        assert!(relay.push(Offset(7), 5, Some(b"k"), None, none()));
        let headers = [(b"a".as_slice(), Some(b"1".as_slice())), (b"b".as_slice(), None)];
        assert!(relay.push(Offset(9), 3, None, Some(b"value"), headers.into_iter()));
        assert!(!relay.push(Offset(9), 3, None, Some(b"again"), none()));
        assert!(!relay.takes(Offset(7 + (1 << 31))));
        let (bytes, end) = relay.take().unwrap();
        assert_eq!(end, Offset(10));
        let chunk = Chunk::new(bytes, end).verified();
        let records: Vec<_> = chunk.records(Offset::ZERO).map(Result::unwrap).collect();
        assert_eq!(records.iter().map(|r| r.offset.0).collect::<Vec<_>>(), [7, 9]);
        assert_eq!((records[0].timestamp_ms, records[1].timestamp_ms), (5, 3));
        assert_eq!((records[0].key, records[0].value), (Some(b"k".as_slice()), None));
        assert_eq!((records[1].key, records[1].value), (None, Some(b"value".as_slice())));
        assert_eq!(
            records[1].headers.iter().collect::<Vec<_>>(),
            [("a", Some(b"1".as_slice())), ("b", None)]
        );
        assert_eq!(chunk.records(Offset(8)).count(), 1);

        assert!(relay.push(Offset(1), 0, None, None, none()), "it can be used again");
        assert_eq!(relay.take().unwrap().1, Offset(2));
    }
}
