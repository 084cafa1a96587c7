//! Puts the events of a request into record batches, and decides the partition of each.

use headwater_log::{BatchBuilder, EncodedBatch, partition_for_key};
use headwater_proto::ingest::v1::Accepted;
use headwater_types::PartitionId;

/// A batch of this size is full, and the next event of its partition begins another one. It is far
/// below what any log takes, even with one more event of the largest size.
const BATCH_BYTES: usize = 4 << 20;

/// The bytes of a record besides its event and key.
const RECORD_OVERHEAD: usize = 16;

/// The batches of one request: one per partition, and further ones where a batch gets large.
pub(crate) struct RequestBatches {
    partitions: u32,
    /// By partition: the index of the batch that takes its next event.
    open: Vec<Option<usize>>,
    batches: Vec<(PartitionId, BatchBuilder)>,
    capacity: usize,
    /// The partition for events of a stream without a key, once it is chosen.
    keyless: Option<PartitionId>,
}

impl RequestBatches {
    pub(crate) fn new(partitions: u32, bytes: usize) -> Self {
        // A few partitions get somewhat more than their share; this guess saves most of the
        // growing.
        let capacity =
            (bytes / partitions.max(1) as usize * 5 / 4).min(BATCH_BYTES + (BATCH_BYTES >> 2));
        Self {
            partitions,
            open: vec![None; partitions.max(1) as usize],
            batches: Vec::new(),
            capacity,
            keyless: None,
        }
    }

    /// Adds an event. Returns the index of its batch as partition, and its index in that batch as
    /// offset: [`crate::append`] replaces both when the log has answered.
    pub(crate) fn push(
        &mut self,
        keyed: bool,
        now_ms: i64,
        key: Option<&[u8]>,
        event: &[u8],
    ) -> Accepted {
        let partition = match key {
            Some(key) => partition_for_key(key, self.partitions),
            // All rows of a key are in one shard, and NULL is a key as any other.
            None if keyed => partition_for_key(b"", self.partitions),
            // All events of a request go into one batch, as Kafka's sticky partitioner does. The
            // first event's content chooses the partition, so requests spread.
            None => *self.keyless.get_or_insert_with(|| partition_for_key(event, self.partitions)),
        };
        let open = &mut self.open[partition.0 as usize];
        let full = |index: usize, batches: &[(PartitionId, BatchBuilder)]| {
            batches[index].1.bytes() >= BATCH_BYTES
        };
        let index = match *open {
            Some(index) if !full(index, &self.batches) => index,
            Some(_) | None => {
                let capacity = self.capacity + headwater_log::HEADER_LEN + RECORD_OVERHEAD;
                self.batches.push((partition, BatchBuilder::with_capacity(capacity)));
                *open.insert(self.batches.len() - 1)
            }
        };
        let builder = &mut self.batches[index].1;
        let at = builder.len();
        builder.push(now_ms, key, Some(event), &[]);
        Accepted { partition: index as u32, offset: u64::from(at) }
    }

    pub(crate) fn build(self) -> Vec<(PartitionId, EncodedBatch)> {
        // Every batch was begun for an event, so none is empty and the indices stay valid.
        self.batches
            .into_iter()
            .filter_map(|(partition, builder)| Some((partition, builder.build()?)))
            .collect()
    }
}
