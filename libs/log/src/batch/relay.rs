use headwater_types::Offset;

use super::{
    HEADER_LEN,
    builder::{blob_len, fill},
    varint,
};

/// Builds stored batches out of records that come one by one with the offsets they have in their
/// log, which may leave gaps: for a log whose client library takes its batches apart.
///
/// One buffer holds one batch. Nothing is allocated per record, and only keys and values are
/// copied: what lies between them is written in place. The batches have no checksum: a chunk of
/// them is [`Chunk::verified`](crate::Chunk::verified), for they never leave the memory of this
/// process.
#[derive(Debug, Default)]
pub struct RelayBuilder {
    /// The batch, and room for more of it that was filled with zeros once.
    bytes: Vec<u8>,
    used: usize,
    records: u32,
    base: u64,
    last: u64,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl RelayBuilder {
    /// Whether a record at this offset can still be added: offsets rise, and lie less than 2³¹
    /// apart.
    #[inline]
    pub fn takes(&self, offset: Offset) -> bool {
        self.records == 0 || (offset.0 > self.last && offset.0 - self.base < 1 << 31)
    }

    /// Begins the next batch in this buffer, which [`Relayed::into_buffer`] gave back. What is in
    /// it is thrown away; a batch that was begun keeps its own.
    pub fn reuse(&mut self, mut buffer: Vec<u8>) {
        if self.records == 0 {
            // Nothing to do for one that was used before.
            buffer.resize(buffer.capacity(), 0);
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
            if self.bytes.len() < HEADER_LEN {
                self.bytes.resize(HEADER_LEN, 0);
            }
            self.bytes[..HEADER_LEN].fill(0);
            self.used = HEADER_LEN;
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
        // The length itself has ten bytes at most.
        let needed = body + 10;
        if self.bytes.len() - self.used < needed {
            self.grow(needed);
        }
        let mut room = Room { bytes: &mut self.bytes[self.used..], at: 0 };
        room.put(body as i64);
        room.byte(0);
        room.put(timestamp_delta);
        room.put(offset_delta);
        room.blob(key);
        room.blob(value);
        room.put(count as i64);
        if count > 0 {
            for (name, value) in headers {
                room.blob(Some(name));
                room.blob(value);
            }
        }
        self.used += room.at;
        true
    }

    #[cold]
    fn grow(&mut self, by: usize) {
        let len = (self.used + by).max(2 * self.bytes.len());
        self.bytes.resize(len, 0);
    }

    /// The bytes of the batch so far.
    #[inline]
    pub fn bytes(&self) -> usize {
        if self.is_empty() { 0 } else { self.used }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The batch as it would be stored; then it is empty.
    pub fn take(&mut self) -> Option<Relayed> {
        if self.records == 0 {
            return None;
        }
        let last_delta = (self.last - self.base) as u32;
        let mut bytes = std::mem::take(&mut self.bytes);
        let batch = &mut bytes[..self.used];
        fill(batch, self.records, last_delta, self.base_timestamp, self.max_timestamp);
        // Offsets beyond i64::MAX cannot be reached by counting.
        batch[..8].copy_from_slice(&self.base.to_be_bytes());
        self.records = 0;
        Some(Relayed { bytes, len: self.used, end: Offset(self.last + 1) })
    }
}

/// A batch that a [`RelayBuilder`] has built.
#[derive(Debug)]
pub struct Relayed {
    bytes: Vec<u8>,
    len: usize,
    end: Offset,
}

impl Relayed {
    /// The position after its last record.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl AsRef<[u8]> for Relayed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn headers_len<'h>(headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>) -> usize {
    headers.map(|(name, value)| blob_len(Some(name)) + blob_len(value)).sum()
}

/// Where the next record goes.
struct Room<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Room<'_> {
    #[inline(always)]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }

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
    fn blob(&mut self, blob: Option<&[u8]>) {
        let Some(blob) = blob else { return self.put(-1) };
        self.put(blob.len() as i64);
        self.bytes[self.at..self.at + blob.len()].copy_from_slice(blob);
        self.at += blob.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Chunk;

    fn chunk(batch: &Relayed) -> Chunk {
        Chunk::new(batch.as_ref().to_vec(), batch.end()).verified()
    }

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
        let batch = relay.take().unwrap();
        assert_eq!(batch.end(), Offset(10));
        let chunk = chunk(&batch);
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

        let illegible = [(b"\xff".as_slice(), Some(b"2".as_slice()))];
        assert!(relay.push(Offset(1), 0, None, None, illegible.into_iter()));
        let illegible = relay.take().unwrap();
        let chunk = super::tests::chunk(&illegible);
        let record = chunk.records(Offset::ZERO).next().unwrap().unwrap();
        assert_eq!(
            record.headers.iter().collect::<Vec<_>>(),
            [("\u{fffd}", Some(b"2".as_slice()))],
            "a name in another encoding harms nobody"
        );

        // What a longer batch has left in the buffer is not seen.
        relay.reuse(batch.into_buffer());
        assert!(relay.push(Offset(1), 0, None, None, none()), "it can be used again");
        let again = relay.take().unwrap();
        assert_eq!(again.end(), Offset(2));
        let mut fresh = RelayBuilder::default();
        fresh.push(Offset(1), 0, None, None, none());
        assert_eq!(again.as_ref(), fresh.take().unwrap().as_ref());
    }
}
