//! The one task that writes: it carries out requests and takes the next steps of replays, while it leads.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headwater_control::{Action, CheckpointId, ReplayId, STATUS_TOPIC, decide, is_open};
use headwater_proto::control::v1::{
    DiffRecorded, DiffReport, Phase, ReplayEnded, Verdict, control_record::Event,
};
use headwater_service::{Outage, Shutdown, status};
use headwater_types::{Name, PartitionId, Remedy};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;

use crate::{
    chain,
    config::Config,
    context::{CommandOutcome, Context, Leadership, QueuedCommand},
    diff::{self, Comparison},
    leader::{
        control_log::{ControlLog, Error},
        election::{Election, StepDown},
    },
    metrics::CoordinatorMetrics,
};

/// A bound on the records that one look writes, so that requests are never kept waiting.
const STEPS: usize = 256;

/// How long a decision that rests on what nobody said waits for what was said last.
const BOARD_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct Reconciler<'a> {
    context: Arc<Context>,
    election: &'a mut Election,
    metrics: &'a CoordinatorMetrics,
    control_log: ControlLog,
    shutdown: Shutdown,
    tick: Duration,
    samples: usize,
    /// Comparisons that run now, by what they compare.
    running: HashMap<CheckpointId, RunningComparison>,
    compared: mpsc::Sender<ComparisonResult>,
    comparisons: mpsc::Receiver<ComparisonResult>,
    /// Of the store of checkpoints, and of topics that are replayed.
    store: Outage,
    topics: Outage,
}

/// A comparison.
struct RunningComparison {
    replay: ReplayId,
    /// Ends it early.
    stop: Arc<AtomicBool>,
    /// It failed because the store is away, and begins again then.
    again: Option<Instant>,
}

/// How a comparison ended.
struct ComparisonResult {
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    result: anyhow::Result<(DiffReport, Verdict)>,
}

impl<'a> Reconciler<'a> {
    pub(crate) fn new(
        config: &Config,
        context: Arc<Context>,
        election: &'a mut Election,
        metrics: &'a CoordinatorMetrics,
        control_log: ControlLog,
    ) -> Self {
        let (compared, comparisons) = mpsc::channel(16);
        Self {
            shutdown: election.shutdown.clone(),
            context,
            election,
            metrics,
            control_log,
            tick: config.decide_every,
            samples: config.diff_samples as usize,
            running: HashMap::new(),
            compared,
            comparisons,
            store: Outage::new("the store of checkpoints"),
            topics: Outage::new("a topic that is replayed"),
        }
    }

    /// Decides until something ends it. A comparison that runs then ends, too.
    pub(crate) async fn run(&mut self) -> StepDown {
        let end = self.decide().await;
        self.running.values().for_each(|comparison| comparison.stop.store(true, Ordering::Relaxed));
        end
    }

    async fn decide(&mut self) -> StepDown {
        let mut view = self.context.view.clone();
        let mut ticks = tokio::time::interval(self.tick.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let handed_over = self.election.handed_over();
        tokio::pin!(handed_over);
        loop {
            let done = tokio::select! {
                () = self.shutdown.cancelled() => Err(StepDown::Shutdown),
                () = &mut handed_over => Err(StepDown::HandedOver),
                request = self.election.inbox.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => Err(StepDown::Shutdown),
                },
                Some(compared) = self.comparisons.recv() => self.record(compared).await,
                () = view.changed() => Ok(()),
                _ = ticks.tick() => Ok(()),
            };
            let done = match done {
                Ok(()) => self.advance().await,
                Err(end) => Err(end),
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    async fn serve(&mut self, request: QueuedCommand) -> Result<(), StepDown> {
        let QueuedCommand { request_id, command, answer } = request;
        let request_id = match request_id.as_str() {
            // What it did is found under its id.
            "" => format!("at-{}", self.control_log.state().position()),
            _ => request_id,
        };
        let state = self.control_log.state().clone();
        if let Some(effects) = state.effects(&request_id) {
            let effects = effects.to_vec();
            let _ = answer.send(Ok(CommandOutcome { state, effects }));
            return Ok(());
        }
        // It may ask the log what there is, and have it create topics.
        let events = match self.context.ask(move |_| command(&state)).await {
            Ok(events) => events,
            Err(refused) => {
                let _ = answer.send(Err(refused));
                return Ok(());
            }
        };
        let (reply, end) = match self.write(&request_id, events).await {
            Ok(Ok(effects)) => {
                (Ok(CommandOutcome { state: self.control_log.state().clone(), effects }), None)
            }
            Ok(Err(error)) => (Err(refused(&error)), None),
            Err(StepDown::Fenced(error)) => (Err(refused(&error)), Some(StepDown::Fenced(error))),
            // Dropped without an answer, which says to try again.
            Err(end @ (StepDown::Shutdown | StepDown::HandedOver | StepDown::Failed(_))) => {
                return Err(end);
            }
        };
        let _ = answer.send(reply);
        end.map_or(Ok(()), Err)
    }

    /// Writes events and returns what they did, or why they were not written.
    async fn write(
        &mut self,
        request_id: &str,
        events: Vec<Event>,
    ) -> Result<Result<Vec<headwater_control::Effect>, Error>, StepDown> {
        let now = self.context.clock.now_millis();
        let handed_over = self.election.handed_over();
        let append = self.control_log.append(now, request_id, events);
        let error = tokio::select! {
            appended = append => match appended {
                Ok(effects) => return Ok(Ok(effects)),
                Err(error) => error,
            },
            // Whatever becomes of it, the successor's claim comes after it, and it reads it.
            () = handed_over => return Err(StepDown::HandedOver),
        };
        match &error {
            Error::Impossible(_) => {
                tracing::error!(
                    error = chain(&error),
                    "a control record was refused before it was written"
                );
                return Ok(Err(error));
            }
            Error::Fenced(_) => return Err(error.into()),
            Error::Log(_) | Error::Follow(_) => {}
        }
        self.recover(&error).await?;
        match self.control_log.state().effects(request_id) {
            Some(effects) if !request_id.is_empty() => Ok(Ok(effects.to_vec())),
            Some(_) | None => Ok(Err(error)),
        }
    }

    /// Nobody knows whether the last append was stored: claims the topic anew, which ends whatever was under
    /// way, and looks.
    async fn recover(&mut self, error: &Error) -> Result<(), StepDown> {
        self.election.tell(error);
        loop {
            // Never against the membership: the claim would fence the one that leads.
            let failure = match self.election.confirm().await {
                Ok(()) => match self.control_log.claim_anew().await {
                    Ok(()) => break,
                    Err(error) if error.remedy() == Remedy::Retry => error,
                    Err(error) => return Err(error.into()),
                },
                Err(error) if error.remedy() == Remedy::Retry => error.into(),
                Err(_) => return Err(StepDown::HandedOver),
            };
            self.election.undecided(&failure).await?;
        }
        self.election.outage.over();
        self.election.say(Leadership::Leads);
        Ok(())
    }

    /// Writes what was decided here. What could not be written is decided again.
    async fn append(&mut self, event: Event) -> Result<bool, StepDown> {
        match self.write("", vec![event]).await? {
            Ok(_) => Ok(true),
            Err(Error::Impossible(_)) => Ok(false),
            Err(error) => match error.remedy() {
                Remedy::Retry => Ok(false),
                Remedy::StandDown | Remedy::Repair | Remedy::Correct => Err(error.into()),
            },
        }
    }

    /// Takes all steps that can be taken now.
    async fn advance(&mut self) -> Result<(), StepDown> {
        let mut fresh = false;
        for _ in 0..STEPS {
            let Some(event) = self.next().await else { return Ok(()) };
            // A swap may rest on a shard's having stopped, which whoever has taken it over may have denied.
            if matches!(event, Event::Swapped(_)) && !fresh {
                if !self.board_is_current().await {
                    return Ok(());
                }
                fresh = true;
                continue;
            }
            fresh = false;
            if !self.append(event).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The record that is to be written next. Begins comparisons.
    async fn next(&mut self) -> Option<Event> {
        let (board, state) = (self.context.board(), self.control_log.state().clone());
        let ends = match self.context.replayed_ends(&state).await {
            Ok(ends) => ends,
            Err(error) => {
                self.topics.failed(error.message());
                return None;
            }
        };
        for error in &ends.unknown {
            // That the brokers are away was said already, once for the process.
            let said = matches!(error, headwater_log::Error::Unavailable(_));
            match said && self.context.log.is_remote() {
                true => self.topics.note(&chain(error)),
                false => self.topics.failed(&chain(error)),
            };
        }
        // A topic that is gone is the shards' to report; one that is away is waited for.
        if let Some(away) = ends.unknown.iter().find(|error| error.remedy() == Remedy::Retry) {
            self.election.trouble(&chain(away));
            return None;
        }
        if ends.unknown.is_empty() {
            self.topics.over();
        }
        self.election.say(Leadership::Leads);
        self.context.measure(&state, &board);
        self.metrics.show(&state, &board, &ends.known);
        self.running.retain(|checkpoint, running| {
            let wanted = state.replays().get(&running.replay).is_some_and(|replay| {
                replay.phase == Phase::Align && replay.checkpoint_id() == *checkpoint
            });
            running.stop.fetch_or(!wanted, Ordering::Relaxed);
            wanted
        });
        let mut append = None;
        for action in decide(&state, &board, &ends.known, self.context.clock.now_millis()) {
            match action {
                Action::Append(record) if append.is_none() => append = record.event,
                Action::Append(_) => {}
                Action::Diff { replay_id, checkpoint } => {
                    let waits = |running: &RunningComparison| {
                        running.again.is_none_or(|again| again > Instant::now())
                    };
                    if self.running.get(&checkpoint).is_some_and(waits) {
                        continue;
                    }
                    let Some(replay) = state.replays().get(&replay_id) else { continue };
                    match Comparison::prepare(&self.context, &state, &board, replay, self.samples) {
                        Ok(comparison) => {
                            let stop = Arc::new(AtomicBool::new(false));
                            let running = RunningComparison {
                                replay: replay_id.clone(),
                                stop: stop.clone(),
                                again: None,
                            };
                            self.running.insert(checkpoint.clone(), running);
                            compare(comparison, replay_id, checkpoint, stop, self.compared.clone());
                        }
                        Err(error) => append = append.or(Some(failed(&replay_id, &error))),
                    }
                }
            }
        }
        append
    }

    /// Waits until the board has all that was said until now.
    async fn board_is_current(&self) -> bool {
        let end = self.context.ask(|context| {
            let topic = Name::new(STATUS_TOPIC).ok()?;
            headwater_log::block_on(context.log.ends(&topic, PartitionId(0))).ok()
        });
        let Some(ends) = end.await else { return false };
        let seen =
            tokio::time::timeout(BOARD_TIMEOUT, self.context.view.wait_board(ends.end)).await;
        matches!(seen, Ok(Ok(_)))
    }

    /// Records a comparison, unless the replay has gone another way meanwhile.
    async fn record(&mut self, compared: ComparisonResult) -> Result<(), StepDown> {
        let ComparisonResult { replay_id, checkpoint, result } = compared;
        let running = self.running.get_mut(&checkpoint);
        let Some(running) = running.filter(|running| !running.stop.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        let current = self.control_log.state().replays().get(&replay_id).is_some_and(|replay| {
            is_open(replay.phase)
                && replay.phase == Phase::Align
                && replay.checkpoint_id() == checkpoint
        });
        if !current {
            return Ok(());
        }
        let event = match result {
            Ok((report, verdict)) => {
                self.store.over();
                Event::DiffRecorded(DiffRecorded {
                    replay_id: replay_id.to_string(),
                    report: Some(report),
                    verdict: verdict.into(),
                })
            }
            Err(error) if diff::may_succeed_later(&error) => {
                self.store.failed(&format!("{error:#}"));
                running.again = Some(Instant::now() + self.store.wait());
                return Ok(());
            }
            Err(error) => failed(&replay_id, &error),
        };
        // If it cannot be written, it is compared again: the checkpoints are there.
        self.running.remove(&checkpoint);
        self.append(event).await.map(|_| ())
    }
}

fn refused(error: &Error) -> Status {
    status(error.remedy(), chain(error))
}

/// Compares in the background: live shards go on meanwhile.
fn compare(
    comparison: Comparison,
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    stop: Arc<AtomicBool>,
    compared: mpsc::Sender<ComparisonResult>,
) {
    tokio::task::spawn_blocking(move || {
        let started = std::time::Instant::now();
        let result = diff::compare(&comparison, &stop);
        if let Ok((report, verdict)) = &result {
            tracing::info!(
                replay = %replay_id,
                same = report.same,
                changed = report.changed,
                only_old = report.only_old,
                only_new = report.only_new,
                verdict = verdict.as_str_name(),
                seconds = started.elapsed().as_secs_f64(),
                "generations compared"
            );
        }
        // Nobody is left to tell once the reconciler has closed.
        let _ = compared.blocking_send(ComparisonResult { replay_id, checkpoint, result });
    });
}

fn failed(replay_id: &ReplayId, error: &anyhow::Error) -> Event {
    tracing::warn!(replay = %replay_id, error = format!("{error:#}"), "the two generations cannot be compared");
    let reason = format!("the two generations cannot be compared: {error:#}");
    Event::ReplayEnded(ReplayEnded { replay_id: replay_id.to_string(), failed: true, reason })
}
