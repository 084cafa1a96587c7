//! The comparisons that run now, each on a thread of its own. Live shards go on meanwhile.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use headwater_control::{CheckpointId, ControlState, ReplayId, StatusBoard, is_open};
use headwater_proto::control::v1::{
    DiffRecorded, DiffReport, Phase, ReplayEnded, Verdict, control_record::Event,
};
use headwater_service::Outage;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    context::Context,
    diff::{self, Comparison},
};

pub(super) struct Comparisons {
    context: Arc<Context>,
    running: HashMap<CheckpointId, RunningComparison>,
    results: mpsc::Sender<ComparisonResult>,
    finished: mpsc::Receiver<ComparisonResult>,
    /// The store of checkpoints is away: reported once.
    store: Outage,
}

struct RunningComparison {
    replay: ReplayId,
    /// Ends the comparison early.
    stop: Arc<AtomicBool>,
    /// The store was away, and the comparison begins again at this time.
    retry_at: Option<Instant>,
}

pub(super) struct ComparisonResult {
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    result: anyhow::Result<(DiffReport, Verdict)>,
}

impl Comparisons {
    pub(super) fn new(context: Arc<Context>) -> Self {
        let (results, finished) = mpsc::channel(16);
        let store = Outage::new("the store of checkpoints");
        Self { context, running: HashMap::new(), results, finished, store }
    }

    /// The next comparison that has ended.
    pub(super) async fn finished(&mut self) -> ComparisonResult {
        match self.finished.recv().await {
            Some(result) => result,
            // `results` keeps the channel open.
            None => std::future::pending().await,
        }
    }

    /// Compares what this replay has built with what serves, unless that runs already. Returns the
    /// record that ends the replay if the two cannot be compared.
    pub(super) fn start(
        &mut self,
        state: &ControlState,
        board: &StatusBoard,
        replay_id: ReplayId,
        checkpoint: CheckpointId,
    ) -> Option<Event> {
        let runs = |running: &RunningComparison| {
            running.retry_at.is_none_or(|retry_at| retry_at > Instant::now())
        };
        if self.running.get(&checkpoint).is_some_and(runs) {
            return None;
        }
        let replay = state.replays().get(&replay_id)?;
        match Comparison::prepare(&self.context, state, board, replay) {
            Ok(comparison) => {
                let stop = Arc::new(AtomicBool::new(false));
                let running = RunningComparison {
                    replay: replay_id.clone(),
                    stop: stop.clone(),
                    retry_at: None,
                };
                self.running.insert(checkpoint.clone(), running);
                compare(comparison, replay_id, checkpoint, stop, self.results.clone());
                None
            }
            Err(error) => Some(failed(&replay_id, &error)),
        }
    }

    /// Stops the comparisons that no replay waits for any longer.
    pub(super) fn stop_unwanted(&mut self, state: &ControlState) {
        self.running.retain(|checkpoint, running| {
            let wanted = waits_for(state, &running.replay, checkpoint);
            running.stop.fetch_or(!wanted, Ordering::Relaxed);
            wanted
        });
    }

    /// Whether none runs: those that are left wait for the store.
    #[cfg(test)]
    pub(super) fn are_idle(&self) -> bool {
        self.running.values().all(|running| running.retry_at.is_some())
    }

    pub(super) fn stop_all(&self) {
        self.running.values().for_each(|running| running.stop.store(true, Ordering::Relaxed));
    }

    /// The record that a comparison calls for. None if the replay has gone another way meanwhile,
    /// or if the store is away and the comparison begins again later.
    pub(super) fn event(&mut self, state: &ControlState, ended: ComparisonResult) -> Option<Event> {
        let ComparisonResult { replay_id, checkpoint, result } = ended;
        let running = self.running.get_mut(&checkpoint);
        let running = running.filter(|running| !running.stop.load(Ordering::Relaxed))?;
        let replay = state.replays().get(&replay_id)?;
        if !is_open(replay.phase) || !waits_for(state, &replay_id, &checkpoint) {
            return None;
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
                running.retry_at = Some(Instant::now() + self.store.wait());
                return None;
            }
            Err(error) => failed(&replay_id, &error),
        };
        // If the record cannot be written, the comparison is made again: the checkpoints are there.
        self.running.remove(&checkpoint);
        Some(event)
    }
}

/// Whether the next step of the replay is to compare at this checkpoint.
fn waits_for(state: &ControlState, replay: &ReplayId, checkpoint: &CheckpointId) -> bool {
    state
        .replays()
        .get(replay)
        .is_some_and(|replay| replay.phase == Phase::Align && replay.checkpoint_id() == *checkpoint)
}

fn compare(
    comparison: Comparison,
    replay_id: ReplayId,
    checkpoint: CheckpointId,
    stop: Arc<AtomicBool>,
    results: mpsc::Sender<ComparisonResult>,
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
        // The reconciler may have ended.
        let _ = results.blocking_send(ComparisonResult { replay_id, checkpoint, result });
    });
}

fn failed(replay_id: &ReplayId, error: &anyhow::Error) -> Event {
    tracing::warn!(replay = %replay_id, error = format!("{error:#}"), "the two generations cannot be compared");
    let reason = format!("the two generations cannot be compared: {error:#}");
    Event::ReplayEnded(ReplayEnded { replay_id: replay_id.to_string(), failed: true, reason })
}
