//! Events from a seed.
//!
//! [`generate`] makes a stream's records partition by partition: mostly in order, some late, some
//! malformed, with Unicode, extreme numbers, missing, extra and reordered keys, as a [`Mix`] says. The
//! same seed gives the same bytes for ever, whatever becomes of other crates.

mod values;

use headwater_log::{BatchBuilder, Chunk, partition_for_key};
use headwater_types::{Offset, PartitionId, StreamDefinition};
use proptest::{prelude::any, strategy::Strategy};

use values::Values;

/// One record of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub offset: Offset,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// What a stream is made of. Shares are probabilities, each for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Records in all partitions together.
    pub records: usize,
    /// Distinct values of the key column.
    pub keys: u64,
    /// Event time of the first record.
    pub start_micros: i64,
    /// Event time from one record to the next.
    pub step_micros: i64,
    /// How far event times lie behind their place at most, as a rule.
    pub disorder_micros: i64,
    /// Event times on whole seconds, where windows and watermarks have their boundaries.
    pub whole_seconds: f64,
    /// How far a late record lies behind at most.
    pub lateness_micros: i64,
    pub late: f64,
    /// An event time far ahead of the record's own timestamp.
    pub future: f64,
    /// Not JSON, not UTF-8, cut off.
    pub malformed: f64,
    /// A value of the wrong type or beyond its range.
    pub unfit: f64,
    /// No value at all.
    pub tombstones: f64,
    /// A column left out or null.
    pub missing: f64,
    /// Keys in another order, and keys that are no columns.
    pub reordered: f64,
    /// Text with escapes and beyond ASCII; numbers at the edges of their range.
    pub extreme: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            records: 1_000,
            keys: 20,
            // 2024-02-29T23:00:00Z
            start_micros: 1_709_247_600_000_000,
            step_micros: 700_000,
            disorder_micros: 4_000_000,
            whole_seconds: 0.5,
            lateness_micros: 400_000_000,
            late: 0.05,
            future: 0.005,
            malformed: 0.01,
            unfit: 0.01,
            tombstones: 0.005,
            missing: 0.1,
            reordered: 0.1,
            extreme: 0.1,
        }
    }
}

impl Mix {
    /// Only good events, in order up to `disorder_micros`.
    #[must_use]
    pub fn clean() -> Self {
        Self {
            late: 0.0,
            future: 0.0,
            malformed: 0.0,
            unfit: 0.0,
            tombstones: 0.0,
            missing: 0.0,
            reordered: 0.0,
            extreme: 0.0,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn records(self, records: usize) -> Self {
        Self { records, ..self }
    }
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

/// The records as one batch of a log. They must have consecutive offsets; there must be at least one.
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

/// SplitMix64: small, and the same for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to `end - 1`; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        let unit = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        unit < probability
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests;
