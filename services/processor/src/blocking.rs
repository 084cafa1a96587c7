//! Waiting on a shard's thread for the log.

use std::time::Duration;

use headwater_log::{Log, Record, block_on};
use headwater_types::{Name, Offset, PartitionId};
use tokio::runtime::Handle;

use crate::error::ShardError;

const READ_BYTES: usize = 1 << 20;
/// Records that are in the log are handed out at once. This is for a log that is slow.
const READ_WAIT: Duration = Duration::from_millis(100);

/// Waits for the answer. A log that needs longer than `limit` is away, as `late` says.
pub(crate) fn wait_within<T, E: Into<ShardError>>(
    runtime: &Handle,
    limit: Duration,
    answer: impl Future<Output = Result<T, E>>,
    late: impl FnOnce() -> String,
) -> Result<T, ShardError> {
    match runtime.block_on(async { tokio::time::timeout(limit, answer).await }) {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(ShardError::log_away(late())),
    }
}

/// Hands out the records of a partition from `from` on, until everything before `to` was read.
///
/// Returns the position that was reached. It is before `to` only if the log hands out nothing
/// more. The last records may lie behind `to`.
pub(crate) fn read_until(
    log: &dyn Log,
    topic: &Name,
    partition: PartitionId,
    from: Offset,
    to: Offset,
    mut visit: impl FnMut(&Record<'_>),
) -> Result<Offset, ShardError> {
    let mut position = from;
    if position >= to {
        return Ok(position);
    }
    let mut reader = block_on(log.reader(topic, partition, position))?;
    while position < to {
        match reader.read(READ_BYTES, READ_WAIT)? {
            Some(chunk) => {
                for record in chunk.records(position) {
                    visit(&record?);
                }
                position = chunk.end();
            }
            // Some offsets hold no record.
            None if reader.position() > position => position = reader.position(),
            None => break,
        }
    }
    Ok(position)
}
