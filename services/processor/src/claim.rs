//! How a new owner takes a shard over, so that all agree on the former owner's last word.
//!
//! A former owner may have named the position from which on it publishes nothing, and the coordinator may
//! have made that the fence of a swap. So nobody decides anything about the shard before it knows what the
//! former owner said last:
//!
//! ```text
//! confirm    the group counts us in, so that a process that slept does not fence the real owner
//! claim      a new epoch: the former owner publishes nothing from here on
//! opened     a status with the new epoch, with what the former owner was last heard to say
//! look back  did it say something else before our status came to the topic? then say that instead
//! ```
//!
//! The topic compacts, and so the look back rests on a compaction that leaves alone what was just written. Kafka's
//! does: it never touches the segment that is written to. A log that compacts at once has one process.
//!
//! Whoever reads the topic ignores the former owner after "opened", for its epoch is older; what came before
//! is in ours.

use std::{sync::Arc, time::Duration};

use headwater_control::StatusBoard;
use headwater_log::{FencedWriter, WriterId};
use headwater_proto::status::v1::ShardStatus;
use headwater_state::Identity;
use headwater_types::{Epoch, Offset, Remedy};
use prost::Message;

use crate::{lease::Lease, reports::ONLY, trouble::Trouble, worker::Shared};

/// Following the status topic that takes longer is not to be counted on.
const BOARD_DEADLINE: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 1 << 20;
const READ_WAIT: Duration = Duration::from_millis(100);

/// Under this name the owners of a shard succeed each other.
pub(crate) fn writer_id(shard: Identity) -> WriterId {
    WriterId(format!("shards/{}/{}", shard.generation, shard.partition))
}

/// Claims the shard and says so. `opened` makes the status, from the new epoch and what the former owner
/// said last. Returns the writer and the status that all agree on.
pub(crate) fn claim(
    shared: &Shared,
    lease: &Lease,
    mut opened: impl FnMut(Epoch, Option<&ShardStatus>) -> Result<ShardStatus, Trouble>,
) -> Result<(Arc<dyn FencedWriter>, ShardStatus), Trouble> {
    let shard = lease.identity();
    lease.confirm()?;
    let writer = shared.log.writer(&writer_id(shard))?;
    let epoch = writer.epoch();
    let from = shared.log.ends(shared.reports.topic(), ONLY)?.end;
    let board = board_at(shared, from)?;
    let mut former = board.get(shard.generation, shard.partition).cloned();
    superseded(former.as_ref(), epoch)?;

    let mut status = opened(epoch, former.as_ref())?;
    let mut appended = shared.reports.write(lease, Some(&status), None)?;
    if let Some(later) = said_between(shared, shard, from, appended.first())? {
        superseded(Some(&later), epoch)?;
        let outdated = former.as_ref().is_some_and(|former| former.epoch > later.epoch);
        let same = former.as_ref().is_some_and(|former| {
            (&former.muted_for, former.muted_at) == (&later.muted_for, later.muted_at)
                && former.checkpoints == later.checkpoints
        });
        if !outdated && !same {
            tracing::info!(%shard, epoch = epoch.0, "the former owner spoke until it was claimed");
            former = Some(later);
            status = opened(epoch, former.as_ref())?;
            appended = shared.reports.write(lease, Some(&status), None)?;
        }
    }
    let board = board_at(shared, appended.end())?;
    superseded(board.get(shard.generation, shard.partition), epoch)?;
    Ok((writer, status))
}

/// [`Remedy::StandDown`] if this was said by somebody who claimed the shard after us.
pub(crate) fn superseded(said: Option<&ShardStatus>, epoch: Epoch) -> Result<(), Trouble> {
    match said {
        Some(status) if status.epoch > epoch.0 => Err(Trouble::new(
            Remedy::StandDown,
            format!(
                "{} has claimed the shard with epoch {}, and ours is {epoch}",
                status.processor, status.epoch
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

/// The board with all that the topic has before `end`.
fn board_at(shared: &Shared, end: Offset) -> Result<Arc<StatusBoard>, Trouble> {
    let board =
        async { tokio::time::timeout(BOARD_DEADLINE, shared.control.wait_board(end)).await };
    let late = |_| {
        let reason = format!("{} is not read to {end} in time", shared.reports.topic());
        Trouble { away: true, ..Trouble::new(Remedy::Retry, reason) }
    };
    Ok(shared.runtime.block_on(board).map_err(late)??)
}

/// What was said last of the shard in this part of the topic.
fn said_between(
    shared: &Shared,
    shard: Identity,
    from: Offset,
    to: Offset,
) -> Result<Option<ShardStatus>, Trouble> {
    let mut said: Option<ShardStatus> = None;
    if from >= to {
        return Ok(said);
    }
    let key = headwater_control::status_key(shard.generation, shard.partition);
    let topic = shared.reports.topic();
    let mut reader = shared.log.reader(topic, ONLY, from)?;
    let mut position = from;
    while position < to {
        let Some(chunk) = reader.read(READ_BYTES, READ_WAIT)? else {
            if reader.position() > position {
                position = reader.position();
                continue;
            }
            let reason = format!("{topic} cannot be read at {position}");
            return Err(Trouble { away: true, ..Trouble::new(Remedy::Retry, reason) });
        };
        for record in chunk.records(position) {
            let record = record?;
            if record.offset >= to || record.key != Some(key.as_bytes()) {
                continue;
            }
            // One that cannot be decoded is derived, as all of them, and nobody else reads it either.
            let Some(Ok(status)) = record.value.map(ShardStatus::decode) else { continue };
            if said.as_ref().is_none_or(|said| said.epoch <= status.epoch) {
                said = Some(status);
            }
        }
        position = chunk.end();
    }
    Ok(said)
}
