use std::borrow::Cow;

use headwater_types::{Name, Offset, PartitionId};

use crate::Error;

/// The length of a batch without its records.
pub const HEADER_LEN: usize = 61;

/// What comes before `length` counts, in the batch's own length field.
const UNCOUNTED: usize = 12;

/// The fixed part of a batch, checked to be possible but not against the checksum.
#[derive(Clone, Copy, Debug)]
pub struct BatchHeader {
    pub base_offset: Offset,
    /// The length of the whole batch in bytes, at least [`HEADER_LEN`].
    pub len: usize,
    pub records: u32,
    last_offset_delta: u32,
    pub(super) attributes: i16,
    pub(super) base_timestamp: i64,
    pub(super) max_timestamp: i64,
    checksum: u32,
}

/// Why bytes are no readable batch.
pub(super) enum Flaw {
    Corrupt(Cow<'static, str>),
    Compressed(&'static str),
}

impl From<&'static str> for Flaw {
    fn from(detail: &'static str) -> Self {
        Self::Corrupt(detail.into())
    }
}

impl Flaw {
    #[cold]
    pub(super) fn at(self, source: Option<&(Name, PartitionId)>, offset: Offset) -> Error {
        let topic = source.map(|(topic, _)| topic.clone());
        let partition = source.map(|(_, partition)| *partition);
        match self {
            Self::Corrupt(detail) => {
                Error::Corrupt { topic, partition, offset, detail: detail.into() }
            }
            Self::Compressed(codec) => Error::Compressed { topic, partition, offset, codec },
        }
    }
}

impl BatchHeader {
    /// Reads the header at the front of `bytes`, which must hold the whole batch.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse(bytes).map_err(|flaw| flaw.at(None, Self::claimed_offset(bytes)))
    }

    /// The position after the batch.
    pub fn end(&self) -> Offset {
        Offset(self.base_offset.0 + u64::from(self.last_offset_delta) + 1)
    }

    /// What the bytes say their offset is, for a message about bytes that cannot be trusted.
    pub(super) fn claimed_offset(bytes: &[u8]) -> Offset {
        Offset(bytes.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)))
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Flaw> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err("it ends within its header".into());
        };
        if header[16] != 2 {
            return Err(Flaw::Corrupt(format!("it has format {}, not 2", header[16]).into()));
        }
        let base_offset = i64::from_be_bytes(array(header, 0));
        // So far below i64::MAX that adding the offsets within a batch cannot overflow.
        let base_offset =
            u64::try_from(base_offset).ok().filter(|offset| *offset <= i64::MAX as u64 - (1 << 32));
        let base_offset = base_offset.ok_or("its offset is out of range")?;
        let len = usize::try_from(i32::from_be_bytes(array(header, 8))).unwrap_or(0) + UNCOUNTED;
        if len < HEADER_LEN || len > bytes.len() {
            return Err("its length is impossible".into());
        }
        let last_offset_delta = i32::from_be_bytes(array(header, 23));
        let records = i32::from_be_bytes(array(header, 57));
        let (Ok(last_offset_delta), Ok(records)) =
            (u32::try_from(last_offset_delta), u32::try_from(records))
        else {
            return Err("its number of records is impossible".into());
        };
        Ok(Self {
            base_offset: Offset(base_offset),
            len,
            records,
            last_offset_delta,
            attributes: i16::from_be_bytes(array(header, 21)),
            base_timestamp: i64::from_be_bytes(array(header, 27)),
            max_timestamp: i64::from_be_bytes(array(header, 35)),
            checksum: u32::from_be_bytes(array(header, 17)),
        })
    }

    /// Checks all of the batch, of which this is the header, up to its records.
    pub(super) fn verify(&self, batch: &[u8]) -> Result<(), Flaw> {
        if crc32c::crc32c(&batch[21..]) != self.checksum {
            return Err("its checksum differs from its bytes".into());
        }
        match self.attributes & 7 {
            0 => Ok(()),
            1 => Err(Flaw::Compressed("gzip")),
            2 => Err(Flaw::Compressed("snappy")),
            3 => Err(Flaw::Compressed("lz4")),
            4 => Err(Flaw::Compressed("zstd")),
            _ => Err(Flaw::Compressed("an unknown codec")),
        }
    }

    /// The log replaced the producer's timestamps by one of its own.
    pub(super) fn log_append_time(&self) -> bool {
        self.attributes & 8 != 0
    }

    /// It holds markers of transactions rather than records.
    pub(super) fn is_control(&self) -> bool {
        self.attributes & 32 != 0
    }
}

/// The bytes at a constant place of the header, which is long enough for every field.
#[inline(always)]
fn array<const N: usize>(header: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}
