//! The thread of one shard: runs the shard for as long as its duty and its lease last, whatever
//! fails in between.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{ControlState, Role, ShardDuty, SwapId};
use headwater_log::Ends;
use headwater_proto::status::v1::ShardStatus;
use headwater_service::{Condition, Shutdown, failpoint};
use headwater_state::Identity;
use headwater_types::{Epoch, Offset, Remedy};

use crate::{
    assignment::{group::ConsumerGroup, lease::Lease},
    context::ProcessorContext,
    error::ShardError,
    metrics::ShardMetrics,
    publish::outbox::Permit,
    shard::{
        claim::check_not_superseded,
        rate::Rate,
        state::ShardState,
        task::{Orders, ShardTask},
    },
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often a shard that the store of checkpoints has halted tries the store again.
const STORE_RETRY: Duration = Duration::from_secs(10);
/// How often a waiting shard whose lease is in doubt asks the group.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);
/// How often a waiting shard looks whether its duty has changed.
const DUTY_POLL: Duration = Duration::from_millis(50);

/// How a shard's thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadEnd {
    /// Shutdown, another owner, or no duty for now.
    Stopped,
    /// Nothing is left of the shard.
    Deleted,
}

/// One shard's thread, for one lease. Its fields survive a panic and a retry.
pub(crate) struct ShardThread {
    pub(super) context: Arc<ProcessorContext>,
    pub(super) group: Arc<ConsumerGroup>,
    pub(super) lease: Arc<Lease>,
    pub(super) identity: Identity,
    state: ShardState,
    /// The epoch of this thread's claim, once there is one.
    pub(super) epoch: Option<Epoch>,
    /// The swap for which the shard publishes nothing more, and from which position on. It is
    /// decided once: the coordinator may have made it the fence already.
    pub(super) muted: Option<(SwapId, Offset)>,
    /// The last status that was given to the status reporter or written, and when.
    pub(super) reported: ShardStatus,
    pub(super) reported_at: Option<Instant>,
    /// When a status was last made to compare it with the reported one.
    pub(super) status_made_at: Option<Instant>,
    /// The ends of the partition, and when the log was asked for them.
    pub(super) ends: Option<(Instant, Ends)>,
    /// The state's size, and when it was measured.
    pub(super) measured: Option<(Instant, u64)>,
    /// Makes the process not ready while the shard is restored or halted.
    pub(super) condition: Option<Condition>,
    /// The last logged reason for a retry or a halt.
    pub(super) logged_reason: Option<String>,
    /// Shows in the metrics that the shard is halted, while it is.
    pub(super) halted: Option<ShardMetrics>,
}

/// The state of a running shard between rounds.
struct RunState {
    control: Arc<ControlState>,
    /// `None`: to be made from the control state.
    orders: Option<Orders>,
    rate: Rate,
    preconditions_checked_at: Instant,
}

/// The reaction to an error.
enum Recovery {
    Retry,
    /// Nothing, until a person acts or another process owns the shard.
    Halt,
    End,
}

/// The result of a round.
enum RoundOutcome {
    Continue,
    Stop,
    Delete,
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
            state: ShardState::Created,
            epoch: None,
            muted: None,
            reported: ShardStatus::default(),
            reported_at: None,
            status_made_at: None,
            ends: None,
            measured: None,
            condition: None,
            logged_reason: None,
            halted: None,
        }
    }

    /// Runs the shard until its lease or its duty ends.
    pub(crate) fn run(&mut self, shutdown: &Shutdown) -> ThreadEnd {
        // A panic of this thread may have left any other state.
        self.state = ShardState::Created;
        let mut backoff = FIRST_BACKOFF;
        let end = loop {
            if self.release_deadline(shutdown).is_some() || self.lease.is_over() {
                break ThreadEnd::Stopped;
            }
            let begun = Instant::now();
            let error = match self.run_once(shutdown) {
                Ok(end) => break end,
                Err(error) => error,
            };
            if begun.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            let wait = match self.recovery(&error) {
                Recovery::Retry => {
                    self.set_state(ShardState::BackingOff);
                    Some(backoff)
                }
                Recovery::Halt => {
                    self.set_state(ShardState::Halted);
                    error.from_store.then_some(STORE_RETRY)
                }
                Recovery::End => break ThreadEnd::Stopped,
            };
            if !self.wait(shutdown, wait) {
                break ThreadEnd::Stopped;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        };
        self.set_state(ShardState::Closed);
        self.context.log_outage.end(self.identity);
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        end
    }

    pub(super) fn set_state(&mut self, next: ShardState) {
        if self.state != next {
            debug_assert!(self.state.can_become(next), "{:?} to {next:?}", self.state);
            tracing::debug!(shard = %self.identity, from = ?self.state, to = ?next, "shard state");
            self.state = next;
        }
    }

    /// Opens the shard and runs it until it is closed or fails.
    fn run_once(&mut self, shutdown: &Shutdown) -> Result<ThreadEnd, ShardError> {
        let control = self.context.control.current();
        let mut task = match self.duty(&control) {
            ShardDuty::Run { .. } => {
                self.set_state(ShardState::Opening);
                self.open(&control, shutdown)?
            }
            ShardDuty::Stop => return Ok(ThreadEnd::Stopped),
            ShardDuty::Delete => return self.delete(&control, shutdown),
        };
        self.set_state(ShardState::Running);
        let now = Instant::now();
        let rate = Rate::new(now, task.progress().tallies.read());
        let mut run = RunState { control, orders: None, rate, preconditions_checked_at: now };
        let mut backoff = FIRST_BACKOFF;
        loop {
            if self.lease.is_over() {
                return Ok(self.abandon(task));
            }
            if let Some(until) = self.release_deadline(shutdown) {
                return Ok(self.hand_over(task, until, shutdown));
            }
            match self.run_round(&mut task, &mut run) {
                Ok(RoundOutcome::Continue) => {
                    if backoff != FIRST_BACKOFF {
                        backoff = FIRST_BACKOFF;
                        self.set_state(ShardState::Running);
                        self.context.log_outage.end(self.identity);
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
                // The database stays open: only the log is missing.
                Err(error) if error.log_away => {
                    self.set_state(ShardState::LogAway);
                    self.context.log_outage.begin(self.identity, &error.reason);
                    task.commit()?;
                    self.lease.wait_for_change(backoff);
                    self.lease.heartbeat();
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                Err(error) => {
                    // The records before an unreadable one count. If this commit fails too, they
                    // are read again.
                    let _ = task.commit();
                    if error.remedy != Remedy::StandDown {
                        let _ = self.report_status(&task, &mut run.rate, true);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// One round of a running shard.
    fn run_round(
        &mut self,
        task: &mut ShardTask,
        run: &mut RunState,
    ) -> Result<RoundOutcome, ShardError> {
        // After a pause that was too long this asks the group, before anything is written.
        self.lease.heartbeat();
        self.lease.check()?;
        let control = self.context.control.current();
        if self.stands_still(&control, task) {
            std::thread::sleep(failpoint::PAUSE);
            self.report_status(task, &mut run.rate, false)?;
            return Ok(RoundOutcome::Continue);
        }
        let control_changed = control.position() != run.control.position();
        run.control = control;
        if control_changed {
            // The former orders must not stay in force if the new ones cannot be made yet.
            run.orders = None;
        }
        let orders = match run.orders.take() {
            Some(orders) => orders,
            None => match self.duty(&run.control) {
                ShardDuty::Run { hold_at, checkpoints, muted_for } => {
                    let permit = self.permit(&run.control, muted_for, task)?;
                    Orders { hold_at, checkpoints, permit }
                }
                ShardDuty::Stop => return Ok(RoundOutcome::Stop),
                ShardDuty::Delete => return Ok(RoundOutcome::Delete),
            },
        };
        let orders = run.orders.insert(orders);
        if run.preconditions_checked_at.elapsed() >= self.context.config.report_interval {
            run.preconditions_checked_at = Instant::now();
            self.check_preconditions(task)?;
        }
        let happened = task.step(orders)?;
        self.group.note_committed(self.identity.partition, task.progress().position);
        self.report_status(task, &mut run.rate, happened || control_changed)?;
        Ok(RoundOutcome::Continue)
    }

    /// Whether a test wants the shard to do nothing for now but to report and to keep its lease.
    fn stands_still(&self, control: &ControlState, task: &ShardTask) -> bool {
        let Identity { generation, partition } = self.identity;
        let replays = || {
            let entry = control.generations().get(&generation);
            let position = task.progress().position;
            entry.is_some_and(|entry| {
                let floor = entry.floor.get(&partition);
                entry.role == Role::Replaying && floor.is_some_and(|floor| position > *floor)
            })
        };
        let owes_checkpoint = || match self.duty(control) {
            ShardDuty::Run { checkpoints, .. } => {
                let taken = task.visible_checkpoints();
                let is_there = |id: &str| taken.iter().any(|it| it.replay_id == id);
                checkpoints.iter().any(|duty| !is_there(duty.id.as_str()))
            }
            ShardDuty::Stop | ShardDuty::Delete => false,
        };
        let owes_mute = || match self.duty(control) {
            ShardDuty::Run { muted_for: Some(swap), .. } => {
                self.muted.as_ref().is_none_or(|(muted, _)| *muted != swap)
            }
            ShardDuty::Run { .. } | ShardDuty::Stop | ShardDuty::Delete => false,
        };
        failpoint::stands("processor.replay", replays)
            || failpoint::stands("processor.align", owes_checkpoint)
            || failpoint::stands("processor.mute", owes_mute)
    }

    /// An error if the topic's partitions or the shard's owner have changed.
    fn check_preconditions(&self, task: &ShardTask) -> Result<(), ShardError> {
        self.context.partition_check.check(&*self.context.log, task.stream())?;
        let Some(epoch) = task.epoch() else { return Ok(()) };
        let board = self.context.control.board();
        check_not_superseded(board.get(self.identity.generation, self.identity.partition), epoch)
    }

    /// Makes the permit to publish. A shard that is asked to mute does so from its committed
    /// position, or from its published one if a power cut or a new owner took commits away since.
    fn permit(
        &mut self,
        control: &ControlState,
        muted_for: Option<SwapId>,
        task: &mut ShardTask,
    ) -> Result<Permit, ShardError> {
        let windows = control.output_windows(self.identity.generation, self.identity.partition);
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

    /// Decides whether to retry, halt or end after [`Self::run_once`] failed.
    fn recovery(&mut self, error: &ShardError) -> Recovery {
        let (shard, reason) = (self.identity, &error.reason);
        match error.remedy {
            Remedy::Retry if error.log_away => {
                self.context.log_outage.begin(shard, reason);
                Recovery::Retry
            }
            Remedy::Retry => {
                // Logged once, however often it is tried.
                if self.logged_reason.as_ref() != Some(reason) {
                    tracing::warn!(%shard, reason, "shard interrupted, going on from its last commit");
                    self.logged_reason = Some(reason.clone());
                }
                Recovery::Retry
            }
            // The group decides whether there is another owner.
            Remedy::StandDown => match self.lease.confirm() {
                Ok(()) => {
                    tracing::warn!(%shard, reason, "another process claimed the shard, but the group assigns it to this one: claiming it again");
                    Recovery::Retry
                }
                Err(error) if error.remedy == Remedy::StandDown => {
                    tracing::warn!(%shard, reason, "the shard belongs to another processor now; nothing more is written for it here");
                    Recovery::End
                }
                Err(_) => Recovery::Retry,
            },
            Remedy::Correct | Remedy::Repair => match self.report_halt(reason) {
                Ok(()) => {
                    if self.logged_reason.as_ref() != Some(reason) {
                        tracing::error!(%shard, reason, remedy = ?error.remedy, "shard stopped");
                        self.logged_reason = Some(reason.clone());
                    }
                    Recovery::Halt
                }
                Err(error) => {
                    tracing::debug!(%shard, reason = error.reason, "cannot report yet that the shard has stopped");
                    Recovery::Retry
                }
            },
        }
    }

    /// Waits before the shard is opened again; without a time it waits until the duty is no longer
    /// to run. Returns whether to go on.
    fn wait(&self, shutdown: &Shutdown, time: Option<Duration>) -> bool {
        let begun = Instant::now();
        let mut asked_at: Option<Instant> = None;
        while self.release_deadline(shutdown).is_none() && !self.lease.is_over() {
            self.lease.heartbeat();
            // Without this the reporter would hold the last status back while the shard waits. If
            // the shard is lost, that ends the lease.
            if !self.lease.may_write() && asked_at.is_none_or(|at| at.elapsed() >= CONFIRM_INTERVAL)
            {
                asked_at = Some(Instant::now());
                if let Err(error) = self.lease.confirm() {
                    tracing::debug!(shard = %self.identity, reason = error.reason, "lease not confirmed yet");
                }
            }
            let over = match time {
                Some(time) => begun.elapsed() >= time,
                None => {
                    !matches!(self.duty(&self.context.control.current()), ShardDuty::Run { .. })
                }
            };
            if over {
                return true;
            }
            self.lease.wait_for_change(DUTY_POLL);
        }
        false
    }

    /// The time by which the shard has to be handed over, if it has to be.
    pub(super) fn release_deadline(&self, shutdown: &Shutdown) -> Option<Instant> {
        if shutdown.is_cancelled() {
            self.lease.release_by(Instant::now() + self.context.config.hand_over_timeout);
        }
        self.lease.release_deadline()
    }

    pub(super) fn duty(&self, control: &ControlState) -> ShardDuty {
        control.shard_duty(self.identity.generation, self.identity.partition)
    }
}
