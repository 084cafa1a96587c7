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
    Config,
    claim::superseded,
    handover::{self, Uploads},
    lease::{Closed, Lease},
    membership::Group,
    metrics::{ProcessorMetrics, ShardMetrics},
    outage::Outage,
    outbox::Permit,
    plans::Plans,
    rate::Rate,
    reports::Reports,
    restore,
    topics::Topics,
    trouble::Trouble,
    work::{Orders, Work},
};

mod ending;
mod opening;
mod telling;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often a shard that the store of checkpoints keeps from beginning looks whether somebody has put that right.
const RECHECK: Duration = Duration::from_secs(10);
/// How often a shard that waits and is in doubt asks whether it is still ours.
const CONFIRM: Duration = Duration::from_secs(1);
/// How often a shard that waits looks whether its duty has changed.
const LOOK: Duration = Duration::from_millis(50);

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) control: ControlView,
    pub(crate) reports: Reports,
    pub(crate) plans: Plans,
    pub(crate) options: Options,
    pub(crate) config: Config,
    pub(crate) metrics: ProcessorMetrics,
    pub(crate) health: Health,
    pub(crate) topics: Arc<Topics>,
    pub(crate) outage: Outage,
    /// `None`: there is no store of checkpoints.
    pub(crate) uploads: Option<Arc<Uploads>>,
    pub(crate) data: PathBuf,
    pub(crate) instance: String,
    pub(crate) directory: String,
    pub(crate) runtime: Handle,
    /// What was done at the end, in a few words.
    pub(crate) account: Arc<Mutex<Option<String>>>,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Shutdown, another owner, or nothing to do for now.
    Stopped,
    /// Nothing is left of the shard.
    Deleted,
}

/// One shard's thread, for one lease. What it holds outlives a panic and a new beginning.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    group: Arc<Group>,
    lease: Arc<Lease>,
    identity: Identity,
    /// Of our claim, once there is one.
    epoch: Option<Epoch>,
    /// For which swap it publishes nothing more, and from where on. It must not be decided twice: the
    /// coordinator may have made it the fence already.
    muted: Option<(SwapId, Offset)>,
    reported: ShardStatus,
    reported_at: Option<Instant>,
    sent_at: Option<Instant>,
    /// Where the partition ended, and when that was asked.
    ends: Option<(Instant, Ends)>,
    /// The state's size, and when it was measured.
    measured: Option<(Instant, u64)>,
    condition: Option<Condition>,
    /// Why it had to begin anew, as it was said last.
    interrupted_by: Option<String>,
    /// Says that the shard has stopped, while it has.
    halted: Option<ShardMetrics>,
}

/// What a shard at work goes by from round to round.
struct Course {
    state: Arc<ControlState>,
    orders: Option<Orders>,
    rate: Rate,
    looked: Instant,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, group: Arc<Group>, lease: Arc<Lease>) -> Self {
        Self {
            shared,
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
    pub(crate) fn run(&mut self, shutdown: &Shutdown) -> End {
        let mut backoff = FIRST_BACKOFF;
        let end = loop {
            if self.leaving(shutdown).is_some() || self.lease.is_over() {
                break End::Stopped;
            }
            let begun = Instant::now();
            let trouble = match self.live(shutdown) {
                Ok(end) => break end,
                Err(trouble) => trouble,
            };
            if begun.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            let wait = match self.after(&trouble) {
                After::Again => Some(backoff),
                After::Halt => trouble.store.then_some(RECHECK),
                After::End => break End::Stopped,
            };
            if !self.wait(shutdown, wait) {
                break End::Stopped;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        };
        self.shared.outage.over(self.identity);
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        end
    }

    /// What follows from an error that ended a life.
    fn after(&mut self, trouble: &Trouble) -> After {
        let (shard, reason) = (self.identity, &trouble.reason);
        match trouble.remedy {
            Remedy::Retry if trouble.away => {
                self.shared.outage.met(shard, reason);
                After::Again
            }
            Remedy::Retry => {
                // Once, however often it is tried.
                if self.interrupted_by.as_ref() != Some(reason) {
                    tracing::warn!(%shard, reason, "shard interrupted, going on from its last commit");
                    self.interrupted_by = Some(reason.clone());
                }
                After::Again
            }
            // Whether there is another owner is for the group to say.
            Remedy::StandDown => match self.lease.confirm() {
                Ok(()) => {
                    tracing::warn!(%shard, reason, "somebody claimed the shard, and the group says that it is ours: claiming it again");
                    After::Again
                }
                Err(trouble) if trouble.remedy == Remedy::StandDown => {
                    tracing::warn!(%shard, reason, "the shard is another processor's now; nothing more is written for it here");
                    After::End
                }
                Err(_) => After::Again,
            },
            Remedy::Correct | Remedy::Repair => match self.stopped(reason) {
                Ok(()) => {
                    if self.interrupted_by.as_ref() != Some(reason) {
                        tracing::error!(%shard, reason, remedy = ?trouble.remedy, "shard stopped");
                        self.interrupted_by = Some(reason.clone());
                    }
                    After::Halt
                }
                Err(trouble) => {
                    tracing::debug!(%shard, reason = trouble.reason, "cannot say yet that the shard has stopped");
                    After::Again
                }
            },
        }
    }

    /// Waits before a new beginning; without a time it waits for another duty. Returns whether to go on.
    fn wait(&self, shutdown: &Shutdown, wait: Option<Duration>) -> bool {
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        while self.leaving(shutdown).is_none() && !self.lease.is_over() {
            self.lease.beat();
            // What it has said last would be held back for as long as it waits. A loss ends the lease.
            if !self.lease.allows() && asked.is_none_or(|at| at.elapsed() >= CONFIRM) {
                asked = Some(Instant::now());
                if let Err(trouble) = self.lease.confirm() {
                    tracing::debug!(shard = %self.identity, reason = trouble.reason, "not confirmed yet");
                }
            }
            let over = match wait {
                Some(wait) => begun.elapsed() >= wait,
                None => !matches!(self.duty(&self.shared.control.current()), ShardDuty::Run { .. }),
            };
            if over {
                return true;
            }
            self.lease.pause(LOOK);
        }
        false
    }

    /// By when the shard shall be handed over, if it shall.
    fn leaving(&self, shutdown: &Shutdown) -> Option<Instant> {
        if shutdown.is_cancelled() {
            self.lease.leave(Instant::now() + self.shared.config.hand_over_timeout);
        }
        self.lease.leaving()
    }

    fn duty(&self, state: &ControlState) -> ShardDuty {
        state.shard_duty(self.identity.generation, self.identity.partition)
    }

    /// From opening the database to its end.
    fn live(&mut self, shutdown: &Shutdown) -> Result<End, Trouble> {
        let state = self.shared.control.current();
        let mut work = match self.duty(&state) {
            ShardDuty::Run { .. } => self.open(&state, shutdown)?,
            ShardDuty::Stop => return Ok(End::Stopped),
            ShardDuty::Delete => return self.delete(&state, shutdown),
        };
        let now = Instant::now();
        let rate = Rate::new(now, work.progress().tallies.read());
        let mut course = Course { state, orders: None, rate, looked: now };
        let mut backoff = FIRST_BACKOFF;
        loop {
            if self.lease.is_over() {
                return Ok(self.abandon(work));
            }
            if let Some(until) = self.leaving(shutdown) {
                return Ok(self.hand_over(work, until, shutdown));
            }
            match self.round(&mut work, &mut course) {
                Ok(Next::Round) => {
                    if backoff != FIRST_BACKOFF {
                        backoff = FIRST_BACKOFF;
                        self.shared.outage.over(self.identity);
                    }
                }
                Ok(Next::Stop) => {
                    work.close()?;
                    return Ok(End::Stopped);
                }
                Ok(Next::Delete) => {
                    work.close()?;
                    return self.delete(&self.shared.control.current(), shutdown);
                }
                // What is open stays open: all that is lacking is the log.
                Err(trouble) if trouble.away => {
                    self.shared.outage.met(self.identity, &trouble.reason);
                    work.commit()?;
                    self.lease.pause(backoff);
                    self.lease.beat();
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
                Err(trouble) => {
                    // All before an unreadable record counts. If this fails too, the log is read again.
                    let _ = work.commit();
                    if trouble.remedy != Remedy::StandDown {
                        let _ = self.report(&work, &mut course.rate, true);
                    }
                    return Err(trouble);
                }
            }
        }
    }

    /// One round of a shard at work.
    fn round(&mut self, work: &mut Work, course: &mut Course) -> Result<Next, Trouble> {
        // After a pause that was too long this asks the group, before anything else is written.
        self.lease.beat();
        self.lease.check()?;
        let state = self.shared.control.current();
        let unchanged = state.position() == course.state.position();
        course.state = state;
        if !unchanged || course.orders.is_none() {
            course.orders = match self.duty(&course.state) {
                ShardDuty::Run { hold_at, checkpoints, muted_for } => {
                    let permit = self.permit(&course.state, muted_for, work)?;
                    Some(Orders { hold_at, checkpoints, permit })
                }
                ShardDuty::Stop => return Ok(Next::Stop),
                ShardDuty::Delete => return Ok(Next::Delete),
            };
        }
        if course.looked.elapsed() >= self.shared.config.report_interval {
            course.looked = Instant::now();
            self.look_around(work)?;
        }
        let Some(orders) = &course.orders else { return Ok(Next::Round) };
        let happened = work.step(orders)?;
        self.group.committed(self.identity.partition, work.progress().position);
        self.report(work, &mut course.rate, happened || !unchanged)?;
        Ok(Next::Round)
    }

    /// Whether anything has changed around the shard that forbids it to go on.
    fn look_around(&self, work: &Work) -> Result<(), Trouble> {
        self.shared.topics.check(&*self.shared.log, work.stream())?;
        let Some(epoch) = work.epoch() else { return Ok(()) };
        let board = self.shared.control.board();
        superseded(board.get(self.identity.generation, self.identity.partition), epoch)
    }

    /// What may be published now. A shard that is asked to mute does so from what it has committed, or
    /// from what it has published if a power cut, or a new owner, took commits away since.
    fn permit(
        &mut self,
        state: &ControlState,
        muted_for: Option<SwapId>,
        work: &mut Work,
    ) -> Result<Permit, Trouble> {
        let windows = state.output_windows(self.identity.generation, self.identity.partition);
        match muted_for {
            Some(swap) if self.muted.as_ref().is_none_or(|(muted, _)| *muted != swap) => {
                let at = work.progress().position.max(work.frontier()?);
                self.muted = Some((swap, at));
            }
            Some(_) => {}
            None => self.muted = None,
        }
        Ok(Permit { windows, muted_at: self.muted.as_ref().map(|(_, at)| *at) })
    }
}

/// What follows an error.
enum After {
    Again,
    /// Nothing, until a person acts or the shard is somebody else's.
    Halt,
    End,
}

/// What follows a round.
enum Next {
    Round,
    Stop,
    Delete,
}

/// For which swap the shard publishes nothing more, by its status, and from where on.
fn muted(status: &ShardStatus) -> Option<(SwapId, Offset)> {
    let swap = Some(status.muted_for.as_str()).filter(|swap| !swap.is_empty())?;
    Some((SwapId::from(swap), Offset(status.muted_at)))
}

/// Removes what this disk has of the shard.
pub(crate) fn remove_local(data: &Path, shard: &Identity) -> Result<(), headwater_state::Error> {
    let Identity { generation, partition } = *shard;
    layout::remove(&layout::checkpoint_dir(data, generation, partition, ""))?;
    layout::remove(&handover::directory(data, shard))?;
    restore::remove_copies(&layout::shard_dir(data, generation, partition))?;
    // The last shard to go takes the generation's directories along; the others find them full.
    let _ = std::fs::remove_dir(layout::state_dir(data, generation));
    let _ = std::fs::remove_dir(layout::checkpoints_dir(data, generation));
    if let Some(uploads) = handover::directory(data, shard).parent() {
        let _ = std::fs::remove_dir(uploads);
    }
    Ok(())
}
