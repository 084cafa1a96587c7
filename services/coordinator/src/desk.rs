//! The one task that writes: it carries out requests and takes the next steps of replays.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use headwater_control::{Action, CheckpointId, ReplayId, decide, is_open};
use headwater_proto::control::v1::{
    DiffRecorded, DiffReport, Phase, ReplayEnded, Verdict, control_record::Event,
};
use headwater_service::{Node, Shutdown, status};
use headwater_types::Remedy;
use tokio::sync::mpsc;

use crate::{
    Config,
    diff::{self, Comparison},
    ledger::{Error, Ledger},
    metrics::Gauges,
    office::{Answer, Office, Request},
};

/// A bound on the records that one look writes, so that requests are never kept waiting.
const STEPS: usize = 256;

pub(crate) struct Desk {
    office: Arc<Office>,
    ledger: Ledger,
    inbox: mpsc::Receiver<Request>,
    gauges: Gauges,
    tick: std::time::Duration,
    samples: usize,
    /// Comparisons that run now, by what they compare; the flag ends one early.
    running: HashMap<CheckpointId, (ReplayId, Arc<AtomicBool>)>,
    compared: mpsc::Sender<Compared>,
    comparisons: mpsc::Receiver<Compared>,
}

/// How a comparison ended.
struct Compared {
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    result: anyhow::Result<(DiffReport, Verdict)>,
}

impl Desk {
    pub(crate) fn new(
        config: &Config,
        node: &Node,
        office: Arc<Office>,
        ledger: Ledger,
        inbox: mpsc::Receiver<Request>,
    ) -> Self {
        let (compared, comparisons) = mpsc::channel(16);
        Self {
            office,
            ledger,
            inbox,
            gauges: Gauges::new(&node.metrics),
            tick: config.decide_every,
            samples: config.diff_samples as usize,
            running: HashMap::new(),
            compared,
            comparisons,
        }
    }

    /// Runs until shutdown. Fails when another coordinator took over, or when the topic is damaged.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut view = self.office.view.clone();
        let mut ticks = tokio::time::interval(self.tick.max(std::time::Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                request = self.inbox.recv() => match request {
                    Some(request) => self.serve(request).await?,
                    None => break,
                },
                Some(compared) = self.comparisons.recv() => self.record(compared).await?,
                () = view.changed() => {}
                _ = ticks.tick() => {}
            }
            self.advance().await?;
        }
        self.running.values().for_each(|(_, stop)| stop.store(true, Ordering::Relaxed));
        Ok(())
    }

    async fn serve(&mut self, request: Request) -> anyhow::Result<()> {
        let Request { request_id, wish, answer } = request;
        let request_id = match request_id.as_str() {
            // What it did is found under its id.
            "" => format!("at-{}", self.ledger.state().position()),
            _ => request_id,
        };
        if let Err(error) = self.ledger.catch_up() {
            let refused = status(error.remedy(), chain(&error));
            let _ = answer.send(Err(refused));
            return survive(error);
        }
        if let Some(effects) = self.ledger.state().effects(&request_id) {
            let (state, effects) = (Arc::new(self.ledger.state().clone()), effects.to_vec());
            let _ = answer.send(Ok(Answer { state, effects }));
            return Ok(());
        }
        let events = match wish(self.ledger.state()) {
            Ok(events) => events,
            Err(refused) => {
                let _ = answer.send(Err(refused));
                return Ok(());
            }
        };
        match self.ledger.append(self.office.clock.now_millis(), &request_id, events).await {
            Ok(effects) => {
                let state = Arc::new(self.ledger.state().clone());
                let _ = answer.send(Ok(Answer { state, effects }));
                Ok(())
            }
            Err(error) => {
                let _ = answer.send(Err(status(error.remedy(), chain(&error))));
                survive(error)
            }
        }
    }

    /// Takes all steps that can be taken now.
    async fn advance(&mut self) -> anyhow::Result<()> {
        for _ in 0..STEPS {
            let board = self.office.board();
            let state = self.ledger.state();
            let ends = match self.office.replayed_ends(state) {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::warn!(
                        error = error.message(),
                        "the ends of a replayed stream are not known"
                    );
                    return Ok(());
                }
            };
            self.office.measure(state, &board);
            self.gauges.show(state, &board, &ends);
            self.running.retain(|checkpoint, (replay, stop)| {
                let wanted = state.replays().get(replay).is_some_and(|replay| {
                    replay.phase == Phase::Align && replay.checkpoint_id() == *checkpoint
                });
                stop.fetch_or(!wanted, Ordering::Relaxed);
                wanted
            });
            let mut append = None;
            for action in decide(state, &board, &ends, self.office.clock.now_millis()) {
                match action {
                    Action::Append(record) if append.is_none() => append = record.event,
                    Action::Append(_) => {}
                    Action::Diff { replay_id, checkpoint } => {
                        if self.running.contains_key(&checkpoint) {
                            continue;
                        }
                        let Some(replay) = state.replays().get(&replay_id) else { continue };
                        match Comparison::prepare(state, &board, replay, self.samples) {
                            Ok(comparison) => {
                                let stop = Arc::new(AtomicBool::new(false));
                                self.running
                                    .insert(checkpoint.clone(), (replay_id.clone(), stop.clone()));
                                compare(
                                    comparison,
                                    replay_id,
                                    checkpoint,
                                    stop,
                                    self.compared.clone(),
                                );
                            }
                            Err(error) => append = append.or(Some(failed(&replay_id, &error))),
                        }
                    }
                }
            }
            let Some(event) = append else { return Ok(()) };
            if let Err(error) =
                self.ledger.append(self.office.clock.now_millis(), "", vec![event]).await
            {
                return survive(error);
            }
        }
        Ok(())
    }

    /// Records a comparison, unless the replay has gone another way meanwhile.
    async fn record(&mut self, compared: Compared) -> anyhow::Result<()> {
        let Compared { replay_id, checkpoint, result } = compared;
        let wanted =
            self.running.get(&checkpoint).is_some_and(|(_, stop)| !stop.load(Ordering::Relaxed));
        let current = self.ledger.state().replays().get(&replay_id).is_some_and(|replay| {
            is_open(replay.phase)
                && replay.phase == Phase::Align
                && replay.checkpoint_id() == checkpoint
        });
        if !(wanted && current) {
            return Ok(());
        }
        let event = match result {
            Ok((report, verdict)) => Event::DiffRecorded(DiffRecorded {
                replay_id: replay_id.to_string(),
                report: Some(report),
                verdict: verdict.into(),
            }),
            Err(error) => failed(&replay_id, &error),
        };
        let appended = self.ledger.append(self.office.clock.now_millis(), "", vec![event]).await;
        // If it could not be written, it is compared again: the checkpoints are there.
        self.running.remove(&checkpoint);
        appended.map(|_| ()).or_else(survive)
    }
}

/// Compares in the background: live shards go on meanwhile.
fn compare(
    comparison: Comparison,
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    stop: Arc<AtomicBool>,
    compared: mpsc::Sender<Compared>,
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
        // Nobody is left to tell once the desk has closed.
        let _ = compared.blocking_send(Compared { replay_id, checkpoint, result });
    });
}

fn failed(replay_id: &ReplayId, error: &anyhow::Error) -> Event {
    tracing::warn!(replay = %replay_id, error = format!("{error:#}"), "the two generations cannot be compared");
    let reason = format!("the two generations cannot be compared: {error:#}");
    Event::ReplayEnded(ReplayEnded { replay_id: replay_id.to_string(), failed: true, reason })
}

/// What ends the desk, and what only this one attempt.
fn survive(error: Error) -> anyhow::Result<()> {
    match (&error, error.remedy()) {
        (Error::Impossible(_), _) => {
            tracing::error!(
                error = chain(&error),
                "a control record was refused before it was written"
            );
            Ok(())
        }
        (_, Remedy::Retry) => {
            tracing::warn!(error = chain(&error), "a control record was not written, trying again");
            Ok(())
        }
        (_, Remedy::StandDown | Remedy::Repair | Remedy::Correct) => Err(error.into()),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
