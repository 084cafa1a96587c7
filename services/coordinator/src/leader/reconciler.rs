//! The reconciler: carries out commands and takes the next steps of replays, for as long as this
//! coordinator leads. Nothing else appends to the control topic.

use std::{sync::Arc, time::Duration};

use headwater_control::{Action, Effect, STATUS_TOPIC, decide};
use headwater_proto::control::v1::control_record::Event;
use headwater_service::{Outage, failpoint, status};
use headwater_types::{Name, PartitionId, Remedy, error_chain};
use tonic::Status;

use crate::{
    commands::queue::{CommandOutcome, QueuedCommand},
    context::Context,
    leader::{
        candidate::{Candidate, StepDown},
        comparisons::Comparisons,
        control_log::{ControlLog, Error},
    },
    leadership::Leadership,
    log_reach::CachedReach,
    metrics::CoordinatorMetrics,
};

/// A bound on the records that one round writes, so that commands are not kept waiting.
const STEPS: usize = 256;

/// How long a swap waits for the board to have all that the shards have reported.
const BOARD_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Reconciler<'a> {
    context: Arc<Context>,
    candidate: &'a mut Candidate,
    metrics: &'a CoordinatorMetrics,
    control_log: ControlLog,
    comparisons: Comparisons,
    reach: CachedReach,
    /// A topic that is replayed cannot be asked for its ends: reported once.
    topics: Outage,
}

impl<'a> Reconciler<'a> {
    pub(super) fn new(
        context: Arc<Context>,
        candidate: &'a mut Candidate,
        metrics: &'a CoordinatorMetrics,
        control_log: ControlLog,
    ) -> Self {
        Self {
            candidate,
            metrics,
            control_log,
            comparisons: Comparisons::new(context.clone()),
            reach: CachedReach::new(context.config.decide_every),
            topics: Outage::new("a topic that is replayed"),
            context,
        }
    }

    /// Runs until something ends the lead. Comparisons that run then end, too.
    pub(super) async fn run(mut self) -> StepDown {
        let end = self.reconcile().await;
        self.comparisons.stop_all();
        end
    }

    async fn reconcile(&mut self) -> StepDown {
        let mut view = self.context.view.clone();
        let every = self.context.config.decide_every.max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let shutdown = self.candidate.shutdown.clone();
        let handed_over = self.candidate.election.handed_over();
        tokio::pin!(handed_over);
        loop {
            let done = tokio::select! {
                () = shutdown.cancelled() => Err(StepDown::Shutdown),
                () = &mut handed_over => Err(StepDown::HandedOver),
                command = self.candidate.inbox.recv() => match command {
                    Some(command) => self.execute(command).await,
                    None => Err(StepDown::Shutdown),
                },
                ended = self.comparisons.finished() => {
                    match self.comparisons.event(self.control_log.state(), ended) {
                        Some(event) => self.append(event).await.map(|_| ()),
                        None => Ok(()),
                    }
                }
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
            #[cfg(test)]
            if self.comparisons.are_idle() {
                self.context.idle_rounds.send_modify(|rounds| *rounds += 1);
            }
        }
    }

    /// Carries a command out: asks it for its records, appends them, and replies.
    async fn execute(&mut self, queued: QueuedCommand) -> Result<(), StepDown> {
        let QueuedCommand { request_id, command, reply } = queued;
        let request_id = match request_id.as_str() {
            // The effects of a command are found under its id.
            "" => format!("at-{}", self.control_log.state().position()),
            _ => request_id,
        };
        let state = self.control_log.state().clone();
        if let Some(effects) = state.effects(&request_id) {
            let effects = effects.to_vec();
            let _ = reply.send(Ok(CommandOutcome { state, effects }));
            return Ok(());
        }
        let events = match command.events(&self.context, &state).await {
            Ok(events) => events,
            Err(refused) => {
                let _ = reply.send(Err(refused));
                return Ok(());
            }
        };
        let (outcome, end) = match self.write(&request_id, events).await {
            Ok(Ok(effects)) => {
                (Ok(CommandOutcome { state: self.control_log.state().clone(), effects }), None)
            }
            Ok(Err(error)) => (Err(refused(&error)), None),
            Err(StepDown::Fenced(error)) => (Err(refused(&error)), Some(StepDown::Fenced(error))),
            // The reply is dropped, which tells the client to try again.
            Err(end @ (StepDown::Shutdown | StepDown::HandedOver | StepDown::Failed(_))) => {
                return Err(end);
            }
        };
        let _ = reply.send(outcome);
        end.map_or(Ok(()), Err)
    }

    /// Appends events and returns what they did, or why they were not written.
    async fn write(
        &mut self,
        request_id: &str,
        events: Vec<Event>,
    ) -> Result<Result<Vec<Effect>, Error>, StepDown> {
        let now = self.context.clock.now_millis();
        let handed_over = self.candidate.election.handed_over();
        let append = self.control_log.append(now, request_id, events);
        let error = tokio::select! {
            appended = append => match appended {
                Ok(effects) => return Ok(Ok(effects)),
                Err(error) => error,
            },
            // The successor's claim ends this append, and the successor then reads whether it was
            // stored.
            () = handed_over => return Err(StepDown::HandedOver),
        };
        match &error {
            Error::Impossible(_) => {
                tracing::error!(
                    error = error_chain(&error),
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

    /// After an append whose outcome is unknown: claims the topic anew, which ends that append, and
    /// reads whether it was stored.
    async fn recover(&mut self, error: &Error) -> Result<(), StepDown> {
        self.candidate.report(error);
        loop {
            // Never against the group: the claim would fence the coordinator that leads now.
            let failure = match self.candidate.election.confirm().await {
                Ok(()) => match self.control_log.claim_anew().await {
                    Ok(()) => break,
                    Err(error) if error.remedy() == Remedy::Retry => error,
                    Err(error) => return Err(error.into()),
                },
                Err(error) if error.remedy() == Remedy::Retry => error.into(),
                Err(_) => return Err(StepDown::HandedOver),
            };
            self.candidate.wait_after(&failure, Leadership::Recovering).await?;
        }
        self.candidate.outage.over();
        self.candidate.leadership.publish(Leadership::Leading);
        Ok(())
    }

    /// Appends a decision of the reconciler itself. Returns whether it was written; if not, it is
    /// decided again.
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
            // A swap may rest on the error of a shard. Another processor may have taken that shard
            // over since, and have reported that it runs.
            if matches!(event, Event::Swapped(_)) && !fresh {
                if !self.board_is_current().await {
                    return Ok(());
                }
                fresh = true;
                continue;
            }
            fresh = false;
            if matches!(event, Event::Swapped(_)) && failpoint::stands("coordinator.swap", || true)
            {
                return Ok(());
            }
            if !self.append(event).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The record that is to be written next. Starts comparisons.
    async fn next(&mut self) -> Option<Event> {
        let (board, state) = (self.context.board(), self.control_log.state().clone());
        let reach = match self.reach.get(&*self.context.log, &self.context.streams, &state).await {
            Ok(reach) => reach,
            Err(error) => {
                self.topics.failed(error.message());
                return None;
            }
        };
        for error in &reach.unknown {
            // The process has reported a log that is away as a whole.
            let away = matches!(error, headwater_log::Error::Unavailable(_));
            match away && self.candidate.health.log_is_away() {
                true => self.topics.note(&error_chain(error)),
                false => self.topics.failed(&error_chain(error)),
            };
        }
        // A topic that is away is waited for. One that is gone is for its shards to report.
        if let Some(away) = reach.unknown.iter().find(|error| error.remedy() == Remedy::Retry) {
            self.candidate.leadership.lacks(&error_chain(away));
            return None;
        }
        if reach.unknown.is_empty() {
            self.topics.over();
        }
        self.candidate.leadership.publish(Leadership::Leading);
        self.context.measure(&state, &board);
        self.metrics.show(&state, &board, &reach.known);
        self.comparisons.stop_unwanted(&state);
        let mut append = None;
        for action in decide(&state, &board, &reach.known, self.context.clock.now_millis()) {
            match action {
                Action::Append(record) if append.is_none() => append = record.event,
                Action::Append(_) => {}
                Action::Diff { replay_id, checkpoint } => {
                    let failed = self.comparisons.start(&state, &board, replay_id, checkpoint);
                    append = append.or(failed);
                }
            }
        }
        append
    }

    /// Waits until the board has all that the shards have reported until now.
    async fn board_is_current(&self) -> bool {
        let Ok(topic) = Name::new(STATUS_TOPIC) else { return false };
        let Ok(ends) = self.context.log.ends(&topic, PartitionId::ONLY).await else { return false };
        let board = self.context.view.wait_board(ends.end);
        matches!(tokio::time::timeout(BOARD_TIMEOUT, board).await, Ok(Ok(_)))
    }
}

fn refused(error: &Error) -> Status {
    status(error.remedy(), error_chain(error))
}
