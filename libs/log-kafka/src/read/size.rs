//! How many bytes a range of offsets has, judged by samples.

use std::{sync::Arc, time::Duration};

use headwater_log::{Error, Reader as _};
use headwater_types::{Name, Offset, PartitionId};

use super::reader::{KafkaReader, ReadContext};

/// How many bytes one sample reads.
const SAMPLE_BYTES: u64 = 1 << 20;

/// The bytes of the records from `from` to `to` without their compression, as readers get them.
/// Reads a sample at the start of the range and one in the middle of the rest.
pub(crate) fn estimate_size(
    context: &Arc<ReadContext>,
    topic: &Name,
    partition: PartitionId,
    from: Offset,
    to: Offset,
) -> Result<u64, Error> {
    let ends = context.admin.ends(topic, partition)?;
    let (from, to) = (from.max(ends.start), to.min(ends.end));
    if from >= to {
        return Ok(0);
    }
    let (bytes, reached) = sample(context, topic, partition, from, to)?;
    if reached >= to {
        return Ok(bytes);
    }
    let middle = Offset(reached.0 + (to.0 - reached.0) / 2);
    let (more, until) = sample(context, topic, partition, middle, to)?;
    let sampled = (reached.0 - from.0) + (until.0 - middle.0);
    let whole = u128::from(bytes + more) * u128::from(to.0 - from.0);
    Ok(u64::try_from(whole / u128::from(sampled.max(1))).unwrap_or(u64::MAX))
}

/// Reads about [`SAMPLE_BYTES`] from `from` on, but not beyond `to`. Returns the bytes, and the
/// offset up to which they were counted.
fn sample(
    context: &Arc<ReadContext>,
    topic: &Name,
    partition: PartitionId,
    from: Offset,
    to: Offset,
) -> Result<(u64, Offset), Error> {
    let mut reader = KafkaReader::new(context.clone(), topic.clone(), partition, from);
    let mut bytes = 0;
    while bytes < SAMPLE_BYTES && reader.position() < to {
        let position = reader.position();
        match reader.read(1 << 20, Duration::ZERO)? {
            Some(chunk) if chunk.end() <= to => bytes += chunk.bytes().len() as u64,
            Some(chunk) => {
                let whole = (chunk.end().0 - position.0).max(1);
                bytes += chunk.bytes().len() as u64 * (to.0 - position.0) / whole;
            }
            None if reader.position() == position => break,
            None => {}
        }
    }
    Ok((bytes, reader.position().min(to)))
}
