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
//! catch up   with the control plane: what the former owner said rests on what it had read there
//! ```
//!
//! "Opened" says that it has not looked back yet, and from where that is to be done. So if the new owner ends
//! between the two, or cannot read the topic for a while, the former owner's word is not forgotten: whoever
//! claims next looks back from the same place.
//!
//! The topic compacts, and so the look back rests on a compaction that leaves alone what was just written. Kafka's
//! does: it never touches the segment that is written to. A log that compacts at once has one process.
//!
//! Whoever reads the topic ignores the former owner after "opened", for its epoch is older; what came before
//! is in ours.

use std::{sync::Arc, time::Duration};

use headwater_control::{CONTROL_TOPIC, StatusBoard};
use headwater_log::FencedWriter;
use headwater_proto::status::v1::{LookBack, ShardStatus};
use headwater_state::Identity;
use headwater_types::{Epoch, Offset, Remedy};
use prost::Message;

use crate::{
    assignment::lease::Lease,
    context::ProcessorContext,
    error::ShardError,
    publish::{status_reporter::ONLY, writer_id::writer_id},
};

/// Following a topic of the control plane that takes longer is not to be counted on.
const READ_DEADLINE: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 1 << 20;
const READ_WAIT: Duration = Duration::from_millis(100);

/// What a former owner has left that binds the next one.
pub(crate) struct FormerStatus<'a> {
    pub(crate) status: &'a ShardStatus,
    /// Where it had stopped with an error, which counts as mute from there on; `None` too as long as that may
    /// not be its last word.
    pub(crate) stopped_at: Option<Offset>,
}

/// Claims the shard and says so. `opened` makes the status, from the new epoch and what the former owner
/// said last. Returns the writer and the status that all agree on.
pub(crate) fn claim(
    context: &ProcessorContext,
    lease: &Arc<Lease>,
    mut opened: impl FnMut(Epoch, Option<FormerStatus<'_>>) -> Result<ShardStatus, ShardError>,
) -> Result<(Arc<dyn FencedWriter>, ShardStatus), ShardError> {
    let shard = lease.identity();
    lease.confirm()?;
    let writer = context.log.writer(&writer_id(shard))?;
    let epoch = writer.epoch();
    let end = context.log.ends(context.status_reporter.topic(), ONLY)?.end;
    let board = board_at(context, end)?;
    let former = board.get(shard.generation, shard.partition);
    superseded(former, epoch)?;
    let part = match former {
        // It ended before it had looked.
        Some(ShardStatus { look_back: Some(part), .. }) => *part,
        Some(status) => {
            LookBack { from: end.0, epoch: status.epoch, stopped_at: stopped_at(status) }
        }
        None => LookBack { from: end.0, ..LookBack::default() },
    };

    let heard = former.map(|status| FormerStatus { status, stopped_at: None });
    // Nobody must act upon an error yet, as they do when a shard has stopped.
    let first =
        ShardStatus { look_back: Some(part), error: String::new(), ..opened(epoch, heard)? };
    let appended = context.status_reporter.write(lease, Some(&first), None)?;
    let later = said_between(context, shard, part, appended.first())?;
    superseded(later.as_ref(), epoch)?;
    catch_up(context)?;

    let at = later.as_ref().map_or(part.stopped_at, stopped_at).map(Offset);
    let last = later.as_ref().or(former).map(|status| FormerStatus { status, stopped_at: at });
    let status = ShardStatus { look_back: None, ..opened(epoch, last)? };
    let bound = |status: &ShardStatus| (status.muted_for.clone(), status.muted_at);
    let end = if bound(&first) == bound(&status) && first.checkpoints == status.checkpoints {
        // That it has looked may be said in its own time: who looks again finds the same.
        context.status_reporter.send(lease, &status);
        appended.end()
    } else {
        tracing::info!(%shard, epoch = epoch.0, "bound by what the former owner said last");
        context.status_reporter.write(lease, Some(&status), None)?.end()
    };
    let board = board_at(context, end)?;
    superseded(board.get(shard.generation, shard.partition), epoch)?;
    Ok((writer, status))
}

fn stopped_at(status: &ShardStatus) -> Option<u64> {
    (!status.error.is_empty()).then_some(status.position)
}

/// [`Remedy::StandDown`] if this was said by somebody who claimed the shard after us.
pub(crate) fn superseded(said: Option<&ShardStatus>, epoch: Epoch) -> Result<(), ShardError> {
    match said {
        Some(status) if status.epoch > epoch.0 => Err(ShardError::new(
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
fn board_at(context: &ProcessorContext, end: Offset) -> Result<Arc<StatusBoard>, ShardError> {
    let board =
        async { tokio::time::timeout(READ_DEADLINE, context.control.wait_board(end)).await };
    let late = |_| {
        let reason = format!("{} is not read to {end} in time", context.status_reporter.topic());
        ShardError { away: true, ..ShardError::new(Remedy::Retry, reason) }
    };
    Ok(context.runtime.block_on(board).map_err(late)??)
}

/// Reads the control topic to its present end. A swap for which the former owner had stopped to publish would
/// else look as if it had been cancelled.
fn catch_up(context: &ProcessorContext) -> Result<(), ShardError> {
    let state = async { tokio::time::timeout(READ_DEADLINE, context.control.wait_current()).await };
    let late = |_| {
        let reason = format!("{CONTROL_TOPIC} is not read to its end in time");
        ShardError { away: true, ..ShardError::new(Remedy::Retry, reason) }
    };
    context.runtime.block_on(state).map_err(late)??;
    Ok(())
}

/// What was said last of the shard in this part of the topic, by somebody who knew what he said.
fn said_between(
    context: &ProcessorContext,
    shard: Identity,
    LookBack { from, mut epoch, .. }: LookBack,
    to: Offset,
) -> Result<Option<ShardStatus>, ShardError> {
    let mut said: Option<ShardStatus> = None;
    let from = Offset(from);
    if from >= to {
        return Ok(said);
    }
    let key = headwater_control::status_key(shard.generation, shard.partition);
    let topic = context.status_reporter.topic();
    let mut reader = context.log.reader(topic, ONLY, from)?;
    let mut position = from;
    while position < to {
        let Some(chunk) = reader.read(READ_BYTES, READ_WAIT)? else {
            if reader.position() > position {
                position = reader.position();
                continue;
            }
            let reason = format!("{topic} cannot be read at {position}");
            return Err(ShardError { away: true, ..ShardError::new(Remedy::Retry, reason) });
        };
        for record in chunk.records(position) {
            let record = record?;
            if record.offset >= to || record.key != Some(key.as_bytes()) {
                continue;
            }
            // One that cannot be decoded is derived, as all of them, and nobody else reads it either.
            let Some(Ok(status)) = record.value.map(ShardStatus::decode) else { continue };
            if status.epoch < epoch {
                continue;
            }
            epoch = status.epoch;
            // One who had not looked back only repeats.
            if status.look_back.is_none() {
                said = Some(status);
            }
        }
        position = chunk.end();
    }
    Ok(said)
}
