//! The thread of one shard: does its duty until it has none, whatever goes wrong meanwhile.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{ControlState, ShardDuty, StatusBoard, SwapId};
use headwater_log::Log;
use headwater_proto::status::v1::{Checkpoint, ShardStatus};
use headwater_service::{Condition, Health, Shutdown, follow::ControlView};
use headwater_state::{Identity, Options, layout};
use headwater_types::{ENGINE_VERSION, Offset, Remedy};
use tokio::runtime::Handle;

use crate::{
    Config,
    metrics::{ProcessorMetrics, ShardMetrics},
    outbox::Permit,
    plans::Plans,
    rate::Rate,
    reports::Reports,
    trouble::Trouble,
    work::{Orders, Setup, Work},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often a shard that waits looks whether its duty has changed.
const LOOK: Duration = Duration::from_millis(50);
/// How often the state's size is measured.
const MEASURE: Duration = Duration::from_secs(2);

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) control: ControlView,
    /// What the shards had said when this process started.
    pub(crate) last_words: StatusBoard,
    pub(crate) reports: Reports,
    pub(crate) plans: Plans,
    pub(crate) options: Options,
    pub(crate) config: Config,
    pub(crate) metrics: ProcessorMetrics,
    pub(crate) health: Health,
    pub(crate) data: PathBuf,
    pub(crate) instance: String,
    pub(crate) runtime: Handle,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Shutdown, or nothing to do for now.
    Stopped,
    /// Nothing is left of the shard.
    Deleted,
}

/// One shard's thread. What it holds outlives a panic and a new beginning.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    identity: Identity,
    /// For which swap it publishes nothing more, and from where on. It must not be decided twice: the
    /// coordinator may have made it the fence already.
    muted: Option<(SwapId, Offset)>,
    reported: ShardStatus,
    reported_at: Option<Instant>,
    condition: Option<Condition>,
    /// Says that the shard has stopped, while it has.
    halted: Option<ShardMetrics>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, identity: Identity) -> Self {
        let last = shared.last_words.get(identity.generation, identity.partition);
        let muted = last
            .filter(|status| !status.muted_for.is_empty())
            .map(|status| (SwapId::from(status.muted_for.as_str()), Offset(status.muted_at)));
        Self {
            shared,
            identity,
            muted,
            reported: ShardStatus::default(),
            reported_at: None,
            condition: None,
            halted: None,
        }
    }

    /// Works until shutdown, or until the shard has no duty any more.
    pub(crate) fn run(&mut self, shutdown: &Shutdown) -> End {
        let mut backoff = FIRST_BACKOFF;
        let end = loop {
            let begun = Instant::now();
            let trouble = match self.live(shutdown) {
                Ok(end) => break end,
                Err(trouble) => trouble,
            };
            if begun.elapsed() > LONGEST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            let Trouble { remedy, reason } = trouble;
            let wait = if remedy == Remedy::Retry {
                tracing::warn!(shard = %self.identity, reason, "shard interrupted, going on from its last commit");
                Some(backoff)
            } else {
                tracing::error!(shard = %self.identity, reason, ?remedy, "shard stopped");
                self.stopped(&reason);
                None
            };
            if !self.wait(shutdown, wait) {
                break End::Stopped;
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        };
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        end
    }

    /// Waits before a new beginning; without a time it waits for another duty. Returns whether to go on.
    fn wait(&self, shutdown: &Shutdown, wait: Option<Duration>) -> bool {
        let begun = Instant::now();
        while !shutdown.is_cancelled() {
            let over = match wait {
                Some(wait) => begun.elapsed() >= wait,
                None => !matches!(self.duty(&self.shared.control.current()), ShardDuty::Run { .. }),
            };
            if over {
                return true;
            }
            std::thread::sleep(LOOK);
        }
        false
    }

    fn duty(&self, state: &ControlState) -> ShardDuty {
        state.shard_duty(self.identity.generation, self.identity.partition)
    }

    /// From opening the database to its end.
    fn live(&mut self, shutdown: &Shutdown) -> Result<End, Trouble> {
        let mut state = self.shared.control.current();
        let mut work = match self.duty(&state) {
            ShardDuty::Run { .. } => self.open(&state)?,
            ShardDuty::Stop => return Ok(End::Stopped),
            ShardDuty::Delete => return self.delete(&state, shutdown),
        };
        let mut rate = Rate::new(Instant::now(), work.progress().tallies.read());
        let mut measured = None;
        let mut orders = None;
        loop {
            if shutdown.is_cancelled() {
                work.close()?;
                return Ok(End::Stopped);
            }
            let current = self.shared.control.current();
            let unchanged = current.position() == state.position();
            state = current;
            if !unchanged || orders.is_none() {
                orders = match self.duty(&state) {
                    ShardDuty::Run { hold_at, checkpoints, muted_for } => {
                        let permit = self.permit(&state, muted_for, &mut work)?;
                        Some(Orders { hold_at, checkpoints, permit })
                    }
                    ShardDuty::Stop => {
                        work.close()?;
                        return Ok(End::Stopped);
                    }
                    ShardDuty::Delete => {
                        work.close()?;
                        return self.delete(&state, shutdown);
                    }
                };
            }
            let Some(orders) = &orders else { continue };
            let happened = match work.step(orders) {
                Ok(happened) => happened,
                Err(trouble) => {
                    // All before an unreadable record counts. If this fails too, the log is read again.
                    let _ = work.commit();
                    let _ = self.report(&work, &mut rate, &mut measured, true);
                    return Err(trouble);
                }
            };
            self.report(&work, &mut rate, &mut measured, happened || !unchanged)?;
        }
    }

    fn open(&mut self, state: &ControlState) -> Result<Work, Trouble> {
        let shared = &self.shared;
        let Identity { generation, partition } = self.identity;
        let entry = state.generations().get(&generation).ok_or_else(|| {
            Trouble::new(Remedy::Retry, format!("generation {generation} is not known yet"))
        })?;
        if entry.engine_version != ENGINE_VERSION {
            let reason = format!(
                "generation {generation} belongs to engine version {}, and this is version {ENGINE_VERSION}: run the \
                 Headwater that began it, or start a replay of view {}",
                entry.engine_version, entry.view
            );
            return Err(Trouble::new(Remedy::Correct, reason));
        }
        let setup = Setup {
            identity: self.identity,
            view: entry.view.clone(),
            plan: shared.plans.get(entry)?,
            floor: entry.floor.get(&partition).copied().unwrap_or_default(),
            data: shared.data.clone(),
            log: shared.log.clone(),
            runtime: shared.runtime.clone(),
            options: shared.options.clone(),
            config: shared.config.clone(),
        };
        // Before the shard's new metrics: it takes its own away.
        self.halted = None;
        let work = Work::open(setup, shared.metrics.shard(&entry.view, &self.identity))?;
        if let Some(condition) = self.condition.take() {
            condition.remove();
        }
        self.reported.error.clear();
        work.metrics().stopped(false);
        let position = work.progress().position.0;
        tracing::info!(shard = %self.identity, view = %entry.view, position, "shard opened");
        Ok(work)
    }

    /// What may be published now. A shard that is asked to mute does so from what it has committed, or
    /// from what it has published if a power cut took commits away since.
    fn permit(
        &mut self,
        state: &ControlState,
        muted_for: Option<SwapId>,
        work: &mut Work,
    ) -> Result<Permit, Trouble> {
        self.muted = match (muted_for, self.muted.take()) {
            (Some(swap), Some((same, at))) if same == swap => Some((same, at)),
            (Some(swap), _) => Some((swap, work.progress().position.max(work.frontier()?))),
            (None, _) => None,
        };
        Ok(Permit {
            windows: state.output_windows(self.identity.generation, self.identity.partition),
            muted_at: self.muted.as_ref().map(|(_, at)| *at),
        })
    }

    /// Tells the others, at once if they wait for it, and else now and then if something is new.
    fn report(
        &mut self,
        work: &Work,
        rate: &mut Rate,
        measured: &mut Option<(Instant, u64)>,
        at_once: bool,
    ) -> Result<(), Trouble> {
        let early =
            self.reported_at.is_some_and(|at| at.elapsed() < self.shared.config.report_interval);
        if early && !at_once {
            return Ok(());
        }
        let now = Instant::now();
        let state_bytes = match *measured {
            Some((at, bytes)) if now - at < MEASURE => bytes,
            Some(_) | None => {
                let bytes = work.state_bytes();
                *measured = Some((now, bytes));
                bytes
            }
        };
        let progress = work.progress();
        let ends = work.ends()?;
        let records_per_second = rate.at(now, progress.tallies.read());
        work.metrics().lag(ends.end.0.saturating_sub(progress.position.0));
        work.metrics().measured(state_bytes, records_per_second);
        let checkpoint = |(id, position): (&String, &Offset)| Checkpoint {
            replay_id: id.clone(),
            position: position.0,
            location: format!("file://{}", work.checkpoint_dir(id).display()),
        };
        let (muted_for, muted_at) = match &self.muted {
            Some((swap, at)) => (swap.to_string(), at.0),
            None => (String::new(), 0),
        };
        let status = ShardStatus {
            generation: self.identity.generation.to_string(),
            partition: self.identity.partition.0,
            position: progress.position.0,
            log_end: ends.end.0,
            log_start: ends.start.0,
            watermark_micros: progress.watermark.known().map(|time| time.0),
            tallies: Some(progress.tallies.into()),
            records_per_second,
            state_bytes,
            checkpoints: work.checkpoints().iter().map(checkpoint).collect(),
            muted_for,
            muted_at,
            error: String::new(),
            processor: self.shared.instance.clone(),
            published: work.published()?.0,
            commits: work.commits(),
        };
        self.reported_at = Some(now);
        if status != self.reported {
            self.shared.reports.send(&status);
            self.reported = status;
        }
        Ok(())
    }

    /// Says why it goes on no more.
    fn stopped(&mut self, reason: &str) {
        let Identity { generation, partition } = self.identity;
        let shared = &self.shared;
        let status = &mut self.reported;
        if status.generation.is_empty() {
            let last = shared.last_words.get(generation, partition);
            *status = last.cloned().unwrap_or_default();
            status.generation = generation.to_string();
            status.partition = partition.0;
            status.processor.clone_from(&shared.instance);
        }
        status.records_per_second = 0.0;
        status.error = reason.to_owned();
        let name = format!("shard-{generation}-{partition}");
        let state = shared.control.current();
        if let Some(entry) = state.generations().get(&generation) {
            let metrics = shared.metrics.shard(&entry.view, &self.identity);
            metrics.stopped(true);
            self.halted = Some(metrics);
        }
        let condition = self.condition.get_or_insert_with(|| shared.health.condition(name));
        condition.not_ready(format!("{} has stopped: {reason}", self.identity));
        shared.reports.send(status);
    }

    /// Publishes what this generation owns and has not published: nobody else ever will.
    fn drain(&mut self, state: &ControlState, shutdown: &Shutdown) -> Result<(), Trouble> {
        let Identity { generation, partition } = self.identity;
        let windows = state.output_windows(generation, partition);
        let until = windows.last().and_then(|window| window.until);
        let Some(until) =
            until.filter(|_| layout::shard_dir(&self.shared.data, generation, partition).exists())
        else {
            return Ok(());
        };
        let mut work = self.open(state)?;
        let permit = Permit { windows, muted_at: None };
        let orders = Orders { hold_at: Some(until), checkpoints: Vec::new(), permit };
        while !shutdown.is_cancelled() && work.published()? < until {
            work.step(&orders)?;
        }
        work.close()
    }

    fn delete(&mut self, state: &ControlState, shutdown: &Shutdown) -> Result<End, Trouble> {
        match self.drain(state, shutdown) {
            Err(trouble) if trouble.remedy == Remedy::Retry => return Err(trouble),
            // It will not get better, and the shard is to go.
            Err(trouble) => {
                tracing::error!(shard = %self.identity, reason = trouble.reason, "shard deleted before all of its outputs were published");
            }
            Ok(()) if shutdown.is_cancelled() => return Ok(End::Stopped),
            Ok(()) => {}
        }
        let (data, Identity { generation, partition }) = (&self.shared.data, self.identity);
        layout::remove(&layout::checkpoint_dir(data, generation, partition, ""))?;
        layout::remove(&layout::shard_dir(data, generation, partition))?;
        // The last shard to go takes the generation's directories along; the others find them full.
        let _ = std::fs::remove_dir(layout::state_dir(data, generation));
        let _ = std::fs::remove_dir(layout::checkpoints_dir(data, generation));
        self.shared.reports.forget(generation, partition);
        tracing::info!(shard = %self.identity, "shard deleted");
        Ok(End::Deleted)
    }
}

/// Whether there is anything of the shard to be deleted.
pub(crate) fn exists(data: &std::path::Path, identity: &Identity) -> bool {
    let Identity { generation, partition } = *identity;
    layout::shard_dir(data, generation, partition).exists()
        || layout::checkpoint_dir(data, generation, partition, "").exists()
}
