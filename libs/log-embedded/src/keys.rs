//! What lies where in RocksDB.
//!
//! The default column family is the catalog:
//!
//! | key | value |
//! | --- | --- |
//! | `t` topic name | version `1` u8, id u32, partitions u32, cleanup u8 (0 keep, 1 compact) |
//! | `s` topic id u32, partition u32 | first offset that is not trimmed, u64 |
//! | `w` writer id | epoch of its newest claim, u64 |
//!
//! Every topic has a column family `topic-ID` with one key per batch: partition u32, base offset
//! u64, number of offsets u32, bytes of the partition before this batch u64. Its value is the batch
//! as it was appended. The latter half of the key is an index: ends, gaps and sizes are found
//! without reading a batch. All numbers are big-endian.

use headwater_log::{Cleanup, TopicSpec};
use headwater_types::{Epoch, Name, Offset};

pub(crate) const TOPICS: u8 = b't';
pub(crate) const CLAIMS: u8 = b'w';
const STARTS: u8 = b's';

pub(crate) fn topic_key(name: &Name) -> Vec<u8> {
    [&[TOPICS], name.as_str().as_bytes()].concat()
}

pub(crate) fn claim_key(id: &str) -> Vec<u8> {
    [&[CLAIMS], id.as_bytes()].concat()
}

pub(crate) fn start_key(topic: u32, partition: u32) -> Vec<u8> {
    [&[STARTS][..], &topic.to_be_bytes(), &partition.to_be_bytes()].concat()
}

pub(crate) fn family(topic: u32) -> String {
    format!("topic-{topic}")
}

pub(crate) fn encode_topic(id: u32, spec: TopicSpec) -> [u8; 10] {
    let mut out = [0; 10];
    out[0] = 1;
    out[1..5].copy_from_slice(&id.to_be_bytes());
    out[5..9].copy_from_slice(&spec.partitions.to_be_bytes());
    out[9] = match spec.cleanup {
        Cleanup::Keep => 0,
        Cleanup::Compact => 1,
        Cleanup::Expire => 2,
    };
    out
}

pub(crate) fn decode_topic(bytes: &[u8]) -> Option<(u32, TopicSpec)> {
    let (&version, bytes) = bytes.split_first()?;
    let (id, bytes) = bytes.split_first_chunk()?;
    let (partitions, bytes) = bytes.split_first_chunk()?;
    let cleanup = match (version, bytes) {
        (1, [0]) => Cleanup::Keep,
        (1, [1]) => Cleanup::Compact,
        (1, [2]) => Cleanup::Expire,
        _ => return None,
    };
    Some((
        u32::from_be_bytes(*id),
        TopicSpec { partitions: u32::from_be_bytes(*partitions), cleanup },
    ))
}

pub(crate) fn decode_offset(bytes: &[u8]) -> Option<Offset> {
    bytes.try_into().ok().map(|bytes| Offset(u64::from_be_bytes(bytes)))
}

pub(crate) fn decode_epoch(bytes: &[u8]) -> Option<Epoch> {
    bytes.try_into().ok().map(|bytes| Epoch(u64::from_be_bytes(bytes)))
}

/// The key of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchKey {
    pub(crate) partition: u32,
    pub(crate) base: Offset,
    pub(crate) records: u32,
    /// The bytes of the batches before this one, whether or not they are still there.
    pub(crate) before: u64,
}

impl BatchKey {
    pub(crate) fn end(&self) -> Offset {
        Offset(self.base.0 + u64::from(self.records))
    }

    pub(crate) fn encode(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..12].copy_from_slice(&Self::lower(self.partition, self.base));
        out[12..16].copy_from_slice(&self.records.to_be_bytes());
        out[16..].copy_from_slice(&self.before.to_be_bytes());
        out
    }

    /// `None` for what [`encode`](Self::encode) never returns.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let (partition, rest) = bytes.split_first_chunk()?;
        let (base, rest) = rest.split_first_chunk()?;
        let (records, before) = rest.split_first_chunk()?;
        let key = Self {
            partition: u32::from_be_bytes(*partition),
            base: Offset(u64::from_be_bytes(*base)),
            records: u32::from_be_bytes(*records),
            before: u64::from_be_bytes(before.try_into().ok()?),
        };
        // Far from where adding to an offset or a size could overflow.
        let possible = key.base.0 < 1 << 62 && key.before < 1 << 62 && key.records > 0;
        possible.then_some(key)
    }

    /// Before every batch at `base` or later, behind every earlier one.
    pub(crate) fn lower(partition: u32, base: Offset) -> [u8; 12] {
        let mut out = [0; 12];
        out[..4].copy_from_slice(&partition.to_be_bytes());
        out[4..].copy_from_slice(&base.0.to_be_bytes());
        out
    }

    /// Behind every batch at `base` or earlier, before every later one.
    pub(crate) fn upper(partition: u32, base: Offset) -> [u8; 24] {
        let mut out = [0xff; 24];
        out[..12].copy_from_slice(&Self::lower(partition, base));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_partition_and_offset() {
        let key = |partition, base| {
            BatchKey { partition, base: Offset(base), records: 3, before: 9 }.encode()
        };
        let sorted = [key(0, 0), key(0, 1), key(0, 256), key(1, 0), key(256, 0)];
        assert!(sorted.is_sorted());
        assert!(
            BatchKey::lower(0, Offset(1))[..] < sorted[1][..]
                && sorted[0][..] < BatchKey::lower(0, Offset(1))[..]
        );
        assert!(
            BatchKey::upper(0, Offset(1)) > sorted[1] && BatchKey::upper(0, Offset(1)) < sorted[2]
        );
    }

    #[test]
    fn format_1_reads_back_for_ever() {
        let key = BatchKey { partition: 2, base: Offset(0x0102), records: 1000, before: 77 };
        let bytes = [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0, 0, 0, 77];
        assert_eq!((key.encode(), BatchKey::decode(&bytes)), (bytes, Some(key)));
        let topic = [1, 0, 0, 0, 7, 0, 0, 0, 8, 1];
        assert_eq!(encode_topic(7, TopicSpec::compact(8)), topic);
        assert_eq!(decode_topic(&topic), Some((7, TopicSpec::compact(8))));
        assert_eq!(start_key(1, 2), [b's', 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(claim_key("x"), b"wx");
        assert_eq!(topic_key(&Name::new("x").unwrap()), b"tx");
        assert_eq!(family(7), "topic-7");
    }

    #[test]
    fn foreign_bytes_are_no_keys() {
        for bytes in [&[][..], &[1; 23], &[0; 24], &[0xff; 24], &[1; 25]] {
            assert_eq!(BatchKey::decode(bytes), None);
        }
        for bytes in [&[][..], &[1; 9], &[2; 10], &[1; 11]] {
            assert_eq!(decode_topic(bytes), None, "{bytes:?}");
        }
    }
}
