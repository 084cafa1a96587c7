//! Generates events from a seed.
//!
//! [`generate`] makes the records of each partition of a stream: mostly in order, some late, some
//! malformed, with Unicode, extreme numbers, missing, extra and reordered keys, as a [`Mix`] says.
//! A seed gives the same bytes for ever, whatever changes in other crates.

mod mix;
mod random;
mod values;

use headwater_log::{BatchBuilder, Chunk, partition_for_key};
use headwater_types::{Offset, PartitionId, StreamDefinition};
use proptest::{prelude::any, strategy::Strategy};

pub use mix::Mix;
pub use random::Random;
use values::Values;

/// One record of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// The records of each partition of the stream.
pub fn generate(stream: &StreamDefinition, mix: &Mix, seed: u64) -> Vec<Vec<Record>> {
    let mut partitions = vec![Vec::new(); stream.partitions as usize];
    let mut values = Values::new(stream, mix, seed);
    for index in 0..mix.records {
        let made = values.next(index);
        let partition = match &made.key {
            Some(key) => partition_for_key(key, stream.partitions),
            None => PartitionId(values.random.below(u64::from(stream.partitions)) as u32),
        };
        let records = &mut partitions[partition.0 as usize];
        let offset = Offset(records.len() as u64);
        records.push(Record {
            offset,
            timestamp_ms: made.timestamp_ms,
            key: made.key,
            value: made.value,
        });
    }
    partitions
}

/// Streams of up to `mix.records` records for property tests; shrinks to fewer.
pub fn streams(stream: StreamDefinition, mix: Mix) -> impl Strategy<Value = Vec<Vec<Record>>> {
    (1..=mix.records, any::<u64>())
        .prop_map(move |(records, seed)| generate(&stream, &Mix { records, ..mix.clone() }, seed))
}

/// The records as one batch of a log. They must have consecutive offsets; there must be at least
/// one.
pub fn chunk(records: &[Record]) -> Chunk {
    let mut builder = BatchBuilder::new();
    for record in records {
        builder.push(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &[]);
    }
    let (Some(first), Some(mut batch)) = (records.first(), builder.build()) else {
        panic!("a batch needs a record");
    };
    batch.assign(first.offset);
    Chunk::new(batch.into_bytes(), Offset(first.offset.0 + records.len() as u64))
}

#[cfg(test)]
mod tests;
