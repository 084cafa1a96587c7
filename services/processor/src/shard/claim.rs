//! How a new owner takes a shard over, so that all agree on what the former owner said last.
//!
//! A former owner may have named the position from which on it publishes nothing, and the
//! coordinator may have made that position the fence of a swap. So a new owner decides nothing
//! about the shard before it knows the former owner's last status:
//!
//! ```text
//! confirm    the group counts this process in: one that slept must not fence the real owner
//! claim      a new epoch: from here on the former owner publishes nothing
//! opened     a status with the new epoch and what the former owner is known to have said
//! look back  if the former owner said something else before "opened", say that instead
//! catch up   with the control topic: the former owner may have acted on records that this
//!            process has not read
//! ```
//!
//! "Opened" says that its owner has not looked back yet, and from which offset it has to. So if the
//! new owner ends between the two, or cannot read the topic for a while, the next claim looks back
//! from the same offset.
//!
//! The topic compacts, and the look back relies on a compaction that leaves the newest records
//! alone. Kafka's does: it never touches the segment that is written to. A log that compacts at
//! once has one process.
//!
//! Readers of the topic ignore the former owner after "opened", for its epoch is older; what came
//! before is in the new owner's status.

use std::{sync::Arc, time::Duration};

use headwater_control::{CONTROL_TOPIC, StatusBoard};
use headwater_log::{FencedWriter, block_on};
use headwater_proto::status::v1::{LookBack, ShardStatus};
use headwater_state::Identity;
use headwater_types::{Epoch, Offset, PartitionId, Remedy};
use prost::Message;

use crate::{
    assignment::lease::Lease,
    blocking::{read_until, wait_within},
    context::ProcessorContext,
    error::ShardError,
    publish::writer_id::writer_id,
};

/// A log that takes longer to hand out the control plane's topics is away.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// The former owner's status, which binds the next owner.
pub(crate) struct FormerStatus<'a> {
    pub(crate) status: &'a ShardStatus,
    /// Where the former owner stopped with an error, which counts as muted from there on. `None`
    /// also while this may not be its last status.
    pub(crate) stopped_at: Option<Offset>,
}

/// Claims the shard and reports that. `opened` makes the status, from the new epoch and what the
/// former owner said last. Returns the writer and the status that all agree on.
pub(crate) fn claim(
    context: &ProcessorContext,
    lease: &Arc<Lease>,
    mut opened: impl FnMut(Epoch, Option<FormerStatus<'_>>) -> Result<ShardStatus, ShardError>,
) -> Result<(Arc<dyn FencedWriter>, ShardStatus), ShardError> {
    let (shard, reporter) = (lease.identity(), &context.status_reporter);
    lease.confirm()?;
    let writer = block_on(context.log.writer(&writer_id(shard)))?;
    let epoch = writer.epoch();
    let end = block_on(context.log.ends(reporter.topic(), PartitionId::ONLY))?.end;
    let board = board_at(context, end)?;
    let former = board.get(shard.generation, shard.partition);
    check_not_superseded(former, epoch)?;
    let look_back = match former {
        // The former owner had not looked back itself.
        Some(ShardStatus { look_back: Some(look_back), .. }) => *look_back,
        Some(status) => {
            LookBack { from: end.0, epoch: status.epoch, stopped_at: stopped_at(status) }
        }
        None => LookBack { from: end.0, ..LookBack::default() },
    };

    let known = former.map(|status| FormerStatus { status, stopped_at: None });
    let first = ShardStatus {
        look_back: Some(look_back),
        // Readers would act on an error as on a shard that has stopped.
        error: String::new(),
        ..opened(epoch, known)?
    };
    let appended = reporter.write_now(lease, Some(&first), None)?;
    let later = last_status_between(context, shard, look_back, appended.first())?;
    check_not_superseded(later.as_ref(), epoch)?;
    catch_up_control(context)?;

    let at = later.as_ref().map_or(look_back.stopped_at, stopped_at).map(Offset);
    let last = later.as_ref().or(former).map(|status| FormerStatus { status, stopped_at: at });
    let status = ShardStatus { look_back: None, ..opened(epoch, last)? };
    let mute = |status: &ShardStatus| (status.muted_for.clone(), status.muted_at);
    let end = if mute(&first) == mute(&status) && first.checkpoints == status.checkpoints {
        // This status may come later: until then another claim looks back and finds the same.
        reporter.enqueue(lease, &status);
        appended.end()
    } else {
        tracing::info!(%shard, epoch = epoch.0, "bound by what the former owner said last");
        reporter.write_now(lease, Some(&status), None)?.end()
    };
    let board = board_at(context, end)?;
    check_not_superseded(board.get(shard.generation, shard.partition), epoch)?;
    Ok((writer, status))
}

fn stopped_at(status: &ShardStatus) -> Option<u64> {
    (!status.error.is_empty()).then_some(status.position)
}

/// [`Remedy::StandDown`] if the status comes from a later claim of the shard.
pub(crate) fn check_not_superseded(
    status: Option<&ShardStatus>,
    epoch: Epoch,
) -> Result<(), ShardError> {
    match status {
        Some(status) if status.epoch > epoch.0 => Err(ShardError::new(
            Remedy::StandDown,
            format!(
                "{} has claimed the shard with epoch {}, and this process with {epoch}",
                status.processor, status.epoch
            ),
        )),
        Some(_) | None => Ok(()),
    }
}

/// The board with all that the topic has before `end`.
fn board_at(context: &ProcessorContext, end: Offset) -> Result<Arc<StatusBoard>, ShardError> {
    let board = context.control.wait_board(end);
    let topic = context.status_reporter.topic();
    let late = || format!("{topic} is not read to {end} in time");
    wait_within(&context.runtime, READ_DEADLINE, board, late)
}

/// Reads the control topic to its present end. Otherwise a swap that the former owner had muted for
/// would look as if it had been cancelled.
fn catch_up_control(context: &ProcessorContext) -> Result<(), ShardError> {
    let current = context.control.wait_current();
    let late = || format!("{CONTROL_TOPIC} is not read to its end in time");
    wait_within(&context.runtime, READ_DEADLINE, current, late).map(drop)
}

/// The last status of the shard in this part of the topic from an owner that had looked back.
fn last_status_between(
    context: &ProcessorContext,
    shard: Identity,
    LookBack { from, mut epoch, .. }: LookBack,
    to: Offset,
) -> Result<Option<ShardStatus>, ShardError> {
    let mut last: Option<ShardStatus> = None;
    let key = headwater_control::status_key(shard.generation, shard.partition);
    let topic = context.status_reporter.topic();
    let reached =
        read_until(&*context.log, topic, PartitionId::ONLY, Offset(from), to, |record| {
            if record.offset >= to || record.key != Some(key.as_bytes()) {
                return;
            }
            // A status that cannot be decoded binds nobody: no reader understands it.
            let Some(Ok(status)) = record.value.map(ShardStatus::decode) else { return };
            if status.epoch < epoch {
                return;
            }
            epoch = status.epoch;
            // An owner that had not looked back only repeats the one before.
            if status.look_back.is_none() {
                last = Some(status);
            }
        })?;
    if reached < to {
        return Err(ShardError::log_away(format!("{topic} cannot be read at {reached}")));
    }
    Ok(last)
}
