//! The thread of one shard: does its duty for as long as it has one and the shard is ours, whatever goes
//! wrong meanwhile.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{ControlState, ShardDuty, SwapId};
use headwater_log::{Ends, Log};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Condition, Health, Shutdown, follow::ControlView};
use headwater_state::{Identity, Options, layout};
use headwater_types::{Epoch, Offset, Remedy};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::{
    assignment::{group::ConsumerGroup, lease::Lease},
    context::ProcessorContext,
    error::ShardError,
    metrics::ShardMetrics,
    publish::outbox::Permit,
    shard::{
        claim::superseded,
        rate::Rate,
        task::{Orders, ShardTask},
    },
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often a shard that the store of checkpoints keeps from beginning looks whether somebody has put that right.
const RECHECK: Duration = Duration::from_secs(10);
/// How often a shard that waits and is in doubt asks whether it is still ours.
const CONFIRM: Duration = Duration::from_secs(1);
/// How often a shard that waits looks whether its duty has changed.
const LOOK: Duration = Duration::from_millis(50);

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadEnd {
    /// Shutdown, another owner, or nothing to do for now.
    Stopped,
    /// Nothing is left of the shard.
    Deleted,
}

/// One shard's thread, for one lease. What it holds outlives a panic and a new beginning.
pub(crate) struct ShardThread {
    pub(super) context: Arc<ProcessorContext>,
    pub(super) group: Arc<ConsumerGroup>,
    pub(super) lease: Arc<Lease>,
    pub(super) identity: Identity,
    /// Of our claim, once there is one.
    pub(super) epoch: Option<Epoch>,
    /// For which swap it publishes nothing more, and from where on. It must not be decided twice: the
    /// coordinator may have made it the fence already.
    pub(super) muted: Option<(SwapId, Offset)>,
    pub(super) reported: ShardStatus,
    pub(super) reported_at: Option<Instant>,
    pub(super) sent_at: Option<Instant>,
    /// Where the partition ended, and when that was asked.
    pub(super) ends: Option<(Instant, Ends)>,
    /// The state's size, and when it was measured.
    pub(super) measured: Option<(Instant, u64)>,
    pub(super) condition: Option<Condition>,
    /// Why it had to begin anew, as it was said last.
    pub(super) interrupted_by: Option<String>,
    /// Says that the shard has stopped, while it has.
    pub(super) halted: Option<ShardMetrics>,
}

/// What a shard at work goes by from round to round.
struct LoopState {
    state: Arc<ControlState>,
    orders: Option<Orders>,
    rate: Rate,
    looked: Instant,
}

impl ShardThread {
    pub(crate) fn new(
        context: Arc<ProcessorContext>,
        group: Arc<ConsumerGroup>,
        lease: Arc<Lease>,
    ) -> Self {
        Self {
            context,
            group,
            identity: lease.identity(),
            lease,
            epoch: None,
            muted: None,
            reported: ShardStatus::default(),
            reported_at: None,
            sent_at: None,
            ends: None,
            measured: None,
            condition: None,
            interrupted_by: None,
            halted: None,
        }
    }

    /// Works until the shard is not ours any more, or has no duty.
    pub(crate) fn run(&mut self, shutdown: &Shutdown) -> ThreadEnd {
        let mut backoff = FIRST_BACKOFF;
        let end = loop {
            if self.leaving(shutdown).is_some() || self.lease.is_over() {
                break ThreadEnd::Stopped;
            }
            let begun = Instant::now();
            let error = match self.live(shutdown) {
                Ok(end) => break end,
                Err(error) => error,
            };
            if begun.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            let wait = match self.after(&error) {
                Recovery::Again => Some(backoff),
                Recovery::Halt => error.store.then_some(RECHECK),
                Recovery::ThreadEnd => break ThreadEnd::Stopped,
            };
            if !self.wait(shutdown, wait) {
                break ThreadEnd::Stopped;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        };
        self.context.log_outage.over(self.identity);
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        end
    }

    /// What follows from an error that ended a life.
    fn after(&mut self, error: &ShardError) -> Recovery {
        let (shard, reason) = (self.identity, &error.reason);
        match error.remedy {
            Remedy::Retry if error.away => {
                self.context.log_outage.met(shard, reason);
                Recovery::Again
            }
            Remedy::Retry => {
                // Once, however often it is tried.
                if self.interrupted_by.as_ref() != Some(reason) {
                    tracing::warn!(%shard, reason, "shard interrupted, going on from its last commit");
                    self.interrupted_by = Some(reason.clone());
                }
                Recovery::Again
            }
            // Whether there is another owner is for the group to say.
            Remedy::StandDown => match self.lease.confirm() {
                Ok(()) => {
                    tracing::warn!(%shard, reason, "somebody claimed the shard, and the group says that it is ours: claiming it again");
                    Recovery::Again
                }
                Err(error) if error.remedy == Remedy::StandDown => {
                    tracing::warn!(%shard, reason, "the shard is another processor's now; nothing more is written for it here");
                    Recovery::ThreadEnd
                }
                Err(_) => Recovery::Again,
            },
            Remedy::Correct | Remedy::Repair => match self.stopped(reason) {
                Ok(()) => {
                    if self.interrupted_by.as_ref() != Some(reason) {
                        tracing::error!(%shard, reason, remedy = ?error.remedy, "shard stopped");
                        self.interrupted_by = Some(reason.clone());
                    }
                    Recovery::Halt
                }
                Err(error) => {
                    tracing::debug!(%shard, reason = error.reason, "cannot say yet that the shard has stopped");
                    Recovery::Again
                }
            },
        }
    }

    /// Waits before a new beginning; without a time it waits for another duty. Returns whether to go on.
    pub(super) fn wait(&self, shutdown: &Shutdown, wait: Option<Duration>) -> bool {
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        while self.leaving(shutdown).is_none() && !self.lease.is_over() {
            self.lease.beat();
            // What it has said last would be held back for as long as it waits. A loss ends the lease.
            if !self.lease.allows() && asked.is_none_or(|at| at.elapsed() >= CONFIRM) {
                asked = Some(Instant::now());
                if let Err(error) = self.lease.confirm() {
                    tracing::debug!(shard = %self.identity, reason = error.reason, "not confirmed yet");
                }
            }
            let over = match wait {
                Some(wait) => begun.elapsed() >= wait,
                None => {
                    !matches!(self.duty(&self.context.control.current()), ShardDuty::Run { .. })
                }
            };
            if over {
                return true;
            }
            self.lease.pause(LOOK);
        }
        false
    }

    /// By when the shard shall be handed over, if it shall.
    pub(super) fn leaving(&self, shutdown: &Shutdown) -> Option<Instant> {
        if shutdown.is_cancelled() {
            self.lease.leave(Instant::now() + self.context.config.hand_over_timeout);
        }
        self.lease.leaving()
    }

    pub(super) fn duty(&self, state: &ControlState) -> ShardDuty {
        state.shard_duty(self.identity.generation, self.identity.partition)
    }

    /// From opening the database to its end.
    fn live(&mut self, shutdown: &Shutdown) -> Result<ThreadEnd, ShardError> {
        let state = self.context.control.current();
        let mut task = match self.duty(&state) {
            ShardDuty::Run { .. } => self.open(&state, shutdown)?,
            ShardDuty::Stop => return Ok(ThreadEnd::Stopped),
            ShardDuty::Delete => return self.delete(&state, shutdown),
        };
        let now = Instant::now();
        let rate = Rate::new(now, task.progress().tallies.read());
        let mut loop_state = LoopState { state, orders: None, rate, looked: now };
        let mut backoff = FIRST_BACKOFF;
        loop {
            if self.lease.is_over() {
                return Ok(self.abandon(task));
            }
            if let Some(until) = self.leaving(shutdown) {
                return Ok(self.hand_over(task, until, shutdown));
            }
            match self.round(&mut task, &mut loop_state) {
                Ok(RoundOutcome::Round) => {
                    if backoff != FIRST_BACKOFF {
                        backoff = FIRST_BACKOFF;
                        self.context.log_outage.over(self.identity);
                    }
                }
                Ok(RoundOutcome::Stop) => {
                    task.close()?;
                    return Ok(ThreadEnd::Stopped);
                }
                Ok(RoundOutcome::Delete) => {
                    task.close()?;
                    return self.delete(&self.context.control.current(), shutdown);
                }
                // What is open stays open: all that is lacking is the log.
                Err(error) if error.away => {
                    self.context.log_outage.met(self.identity, &error.reason);
                    task.commit()?;
                    self.lease.pause(backoff);
                    self.lease.beat();
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                Err(error) => {
                    // All before an unreadable record counts. If this fails too, the log is read again.
                    let _ = task.commit();
                    if error.remedy != Remedy::StandDown {
                        let _ = self.report(&task, &mut loop_state.rate, true);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// One round of a shard at work.
    fn round(
        &mut self,
        task: &mut ShardTask,
        loop_state: &mut LoopState,
    ) -> Result<RoundOutcome, ShardError> {
        // After a pause that was too long this asks the group, before anything else is written.
        self.lease.beat();
        self.lease.check()?;
        let state = self.context.control.current();
        let unchanged = state.position() == loop_state.state.position();
        loop_state.state = state;
        if !unchanged || loop_state.orders.is_none() {
            loop_state.orders = match self.duty(&loop_state.state) {
                ShardDuty::Run { hold_at, checkpoints, muted_for } => {
                    let permit = self.permit(&loop_state.state, muted_for, task)?;
                    Some(Orders { hold_at, checkpoints, permit })
                }
                ShardDuty::Stop => return Ok(RoundOutcome::Stop),
                ShardDuty::Delete => return Ok(RoundOutcome::Delete),
            };
        }
        if loop_state.looked.elapsed() >= self.context.config.report_interval {
            loop_state.looked = Instant::now();
            self.look_around(task)?;
        }
        let Some(orders) = &loop_state.orders else { return Ok(RoundOutcome::Round) };
        let happened = task.step(orders)?;
        self.group.committed(self.identity.partition, task.progress().position);
        self.report(task, &mut loop_state.rate, happened || !unchanged)?;
        Ok(RoundOutcome::Round)
    }

    /// Whether anything has changed around the shard that forbids it to go on.
    fn look_around(&self, task: &ShardTask) -> Result<(), ShardError> {
        self.context.partition_check.check(&*self.context.log, task.stream())?;
        let Some(epoch) = task.epoch() else { return Ok(()) };
        let board = self.context.control.board();
        superseded(board.get(self.identity.generation, self.identity.partition), epoch)
    }

    /// What may be published now. A shard that is asked to mute does so from what it has committed, or
    /// from what it has published if a power cut, or a new owner, took commits away since.
    pub(super) fn permit(
        &mut self,
        state: &ControlState,
        muted_for: Option<SwapId>,
        task: &mut ShardTask,
    ) -> Result<Permit, ShardError> {
        let windows = state.output_windows(self.identity.generation, self.identity.partition);
        match muted_for {
            Some(swap) if self.muted.as_ref().is_none_or(|(muted, _)| *muted != swap) => {
                let at = task.progress().position.max(task.frontier()?);
                self.muted = Some((swap, at));
            }
            Some(_) => {}
            None => self.muted = None,
        }
        Ok(Permit { windows, muted_at: self.muted.as_ref().map(|(_, at)| *at) })
    }
}

/// What follows an error.
enum Recovery {
    Again,
    /// Nothing, until a person acts or the shard is somebody else's.
    Halt,
    ThreadEnd,
}

/// What follows a round.
enum RoundOutcome {
    Round,
    Stop,
    Delete,
}
