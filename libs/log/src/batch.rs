//! Record batches in the layout of Kafka's record batch v2, and the one walker over them.
//!
//! ```text
//! 0  base offset            i64      27 base timestamp    i64
//! 8  length of what follows i32      35 max timestamp     i64
//! 12 leader epoch           i32      43 producer id       i64
//! 16 magic = 2              i8       51 producer epoch    i16
//! 17 CRC32C from 21 on      u32      53 base sequence     i32
//! 21 attributes             i16      57 number of records i32
//! 23 last offset delta      i32      61 records
//! ```
//!
//! All big-endian; the lengths, deltas and counts inside a record are zigzag varints. The base
//! offset lies before what the checksum covers, so that the log assigns it without touching the
//! rest.

mod builder;
mod header;
mod relay;
mod varint;
mod walk;

#[cfg(test)]
mod tests;

pub use builder::BatchBuilder;
use bytes::Bytes;
pub use header::{BatchHeader, HEADER_LEN};
use headwater_types::{Name, Offset, PartitionId};
pub use relay::{RelayBuilder, Relayed};
pub use walk::{HeaderIter, Headers, Record, Records};

use crate::Error;
use header::Flaw;

/// One whole batch, built and checked, that waits for its offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedBatch {
    bytes: Vec<u8>,
    records: u32,
}

impl EncodedBatch {
    /// Takes bytes that another program built. They must be exactly one batch that a producer may
    /// send: intact, not compressed, with consecutive offsets.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, Error> {
        let header = BatchHeader::read(&bytes)?;
        let corrupt = |flaw: &'static str| Flaw::from(flaw).at(None, header.base_offset);
        if header.len != bytes.len() {
            return Err(corrupt("other bytes follow it"));
        }
        let batch = Self { bytes, records: header.records };
        let mut next = header.base_offset;
        for record in batch.walk() {
            if record?.offset != next {
                return Err(corrupt("its offsets are not consecutive"));
            }
            next = next.next();
        }
        if next != header.end() || header.records == 0 {
            return Err(corrupt("its last offset does not fit its records"));
        }
        Ok(batch)
    }

    /// How many records it holds, which is how many offsets it takes.
    pub fn records(&self) -> u32 {
        self.records
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Gives the first record this offset and the others the following ones.
    pub fn assign(&mut self, base: Offset) {
        // Offsets beyond i64::MAX cannot be reached by counting.
        self.bytes[..8].copy_from_slice(&base.0.to_be_bytes());
    }

    /// A topic that compacts takes only records with a key.
    pub fn require_keys(&self, topic: &Name) -> Result<(), Error> {
        for record in self.walk() {
            if record?.key.is_none() {
                let reason = "it keeps the latest record of each key, and a record has no key";
                return Err(Error::Refused { topic: topic.clone(), reason: reason.into() });
            }
        }
        Ok(())
    }

    /// Its records.
    pub fn walk(&self) -> Records<'_> {
        Records::new(&self.bytes, None, Offset::ZERO, false)
    }
}

/// One contiguous buffer of whole record batches of one partition, as stored.
#[derive(Clone, Debug)]
pub struct Chunk {
    bytes: Bytes,
    end: Offset,
    source: Option<(Name, PartitionId)>,
    verified: bool,
}

impl Chunk {
    /// `bytes` are whole batches in offset order and `end` is the position after the last one.
    pub fn new(bytes: impl Into<Bytes>, end: Offset) -> Self {
        Self { bytes: bytes.into(), end, source: None, verified: false }
    }

    /// Names where the bytes come from, for error messages.
    #[must_use]
    pub fn of(mut self, topic: Name, partition: PartitionId) -> Self {
        self.source = Some((topic, partition));
        self
    }

    /// Says that the checksums need not be looked at: they were, or there are none, because the
    /// batches were built in the memory of this process.
    #[must_use]
    pub fn verified(mut self) -> Self {
        self.verified = true;
        self
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The position after the last batch.
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The records from `from` on, in place. Every batch that it enters has its checksum verified,
    /// unless the chunk is [`Chunk::verified`]; batches that end before `from` are passed over
    /// unchecked. After an error it ends.
    pub fn records(&self, from: Offset) -> Records<'_> {
        Records::new(&self.bytes, self.source.as_ref(), from, self.verified)
    }
}
