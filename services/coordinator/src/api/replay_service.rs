//! `ReplayService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use headwater_control::{ControlState, Effect, ReplayId};
use headwater_proto::control::v1::{
    AbortRequest, GetReplayRequest, HoldBefore, ListReplaysRequest, ListReplaysResponse, Phase,
    PlanRequest, PromoteRequest, Replay, ReplayPlan, ResumeRequest, StartRequest, UndoRequest,
    Verdict, replay_service_server::ReplayService,
};
use headwater_service::status;
use headwater_types::{Name, Remedy};
use tonic::{Request, Response, Status};

use crate::{
    commands::{
        Command,
        queue::{CommandOutcome, CommandQueue},
        replay_commands,
    },
    context::Context,
    replay_plan,
};

/// The least time between two messages of a watch: a message for every commit would be too many.
const WATCH_PACE: Duration = Duration::from_millis(100);

pub(crate) struct ReplayApi {
    context: Arc<Context>,
    commands: CommandQueue,
}

impl ReplayApi {
    pub(crate) fn new(context: Arc<Context>, commands: CommandQueue) -> Self {
        Self { context, commands }
    }

    /// The replay that a command was about: the one among its effects, or the one that `wanted`
    /// finds.
    async fn answer(
        &self,
        outcome: CommandOutcome,
        wanted: impl Fn(&ControlState) -> Option<ReplayId>,
    ) -> Result<Response<Replay>, Status> {
        let named = outcome.effects.iter().find_map(Effect::replay).cloned();
        let replay = named.or_else(|| wanted(&outcome.state)).ok_or_else(|| {
            status(
                Remedy::Correct,
                "this request id was used for something else: choose another one",
            )
        })?;
        self.context.replay_by_id(&outcome.state, &replay).await.map(Response::new)
    }
}

#[tonic::async_trait]
impl ReplayService for ReplayApi {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<ReplayPlan>, Status> {
        self.context.require_lead()?;
        let PlanRequest { view, view_sql } = request.into_inner();
        let (context, state) = (&*self.context, self.context.state());
        let (view, stream) = replay_plan::definition(context, &state, &view, &view_sql).await?;
        let serving = replay_plan::serving(&state, &view.name)?;
        replay_plan::plan(context, &state, &context.board(), serving, &view, &stream)
            .await
            .map(Response::new)
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<Replay>, Status> {
        let StartRequest { view, view_sql, options, request_id } = request.into_inner();
        let options = replay_commands::options(options, self.context.config.retain)?;
        let command = Command::StartReplay { view, view_sql, options };
        let outcome = self.commands.execute(&request_id, command).await?;
        self.answer(outcome, |_| None).await
    }

    async fn get(&self, request: Request<GetReplayRequest>) -> Result<Response<Replay>, Status> {
        self.context.require_lead()?;
        let state = self.context.state();
        let replay = replay_commands::find(&state, &request.into_inner().replay)?;
        self.context.replay(&state, replay).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<ListReplaysRequest>,
    ) -> Result<Response<ListReplaysResponse>, Status> {
        self.context.require_lead()?;
        let view = request.into_inner().view;
        let state = self.context.state();
        if !view.is_empty() && !state.views().contains_key(view.as_str()) {
            return Err(Status::not_found(format!(
                "there is no view {view:?}: `headwater get views` lists those there are"
            )));
        }
        let of_view = |name: &Name| view.is_empty() || name.as_str() == view;
        let mut listed: Vec<_> = state
            .replays()
            .values()
            .filter(|replay| of_view(&replay.view) && state.view_of(replay.new).is_some())
            .collect();
        listed.sort_by_key(|replay| std::cmp::Reverse(replay.started));
        let mut replays = Vec::with_capacity(listed.len());
        for replay in listed {
            replays.push(self.context.replay(&state, replay).await?);
        }
        Ok(Response::new(ListReplaysResponse { replays }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Replay, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<GetReplayRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.context.require_lead()?;
        let context = self.context.clone();
        let id = replay_commands::find(&context.state(), &request.into_inner().replay)?.id.clone();
        Ok(Response::new(Box::pin(watch(context, id))))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<Replay>, Status> {
        let PromoteRequest { replay, accept_failed, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let command = Command::Promote { replay, accept_failed, reason };
        let outcome = self.commands.execute(&request_id, command).await?;
        self.answer(outcome, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<Replay>, Status> {
        let ResumeRequest { replay, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let outcome =
            self.commands.execute(&request_id, Command::Resume { replay, reason }).await?;
        self.answer(outcome, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<Replay>, Status> {
        let AbortRequest { replay, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let outcome = self.commands.execute(&request_id, Command::Abort { replay, reason }).await?;
        self.answer(outcome, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<Replay>, Status> {
        let UndoRequest { view: wanted, reason, request_id } = request.into_inner();
        let command = Command::Undo { replay_or_view: wanted.clone(), reason };
        let outcome = self.commands.execute(&request_id, command).await?;
        // Nothing was written: the undo is under way already.
        self.answer(outcome, |state| {
            let (view, _) = replay_commands::undone(state, &wanted).ok()?;
            state.views().get(view)?.pending_swap.as_ref().map(|swap| swap.replay_id.clone())
        })
        .await
    }
}

/// Whether this replay stays as it is unless a person acts.
fn settled(replay: &Replay) -> bool {
    if replay.held_before() != HoldBefore::Unspecified {
        return true;
    }
    match replay.phase() {
        Phase::Unspecified | Phase::Replay | Phase::Align | Phase::Diff | Phase::Commit => false,
        // It goes on by itself if its options say so and it was not swapped before.
        Phase::Hold => {
            let promotes = replay.options.as_ref().is_some_and(|options| options.promote);
            !(promotes && replay.verdict() == Verdict::Pass && replay.swap_fence.is_empty())
        }
        Phase::Retain | Phase::Undone | Phase::Retired | Phase::Aborted | Phase::Failed => true,
    }
}

/// A replay's state whenever it changes, until it is settled.
fn watch(context: Arc<Context>, id: ReplayId) -> impl Stream<Item = Result<Replay, Status>> + Send {
    let (view, published) = (context.view.clone(), context.published());
    let start = (context, id, view, published, None::<Replay>, false);
    stream::unfold(start, |(context, id, mut view, mut published, last, over)| async move {
        if over {
            return None;
        }
        loop {
            let found = match context.require_lead() {
                Ok(()) => context.replay_by_id(&context.state(), &id).await,
                Err(refused) => Err(refused),
            };
            match found {
                Ok(replay) if last.as_ref() == Some(&replay) => {}
                Ok(replay) => {
                    let over = settled(&replay);
                    return Some((
                        Ok(replay.clone()),
                        (context, id, view, published, Some(replay), over),
                    ));
                }
                Err(error) => {
                    return Some((Err(error), (context, id, view, published, last, true)));
                }
            }
            let shutdown = context.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(WATCH_PACE) => {}
            }
            // The ends of the log move without notice, so the watch looks from time to time.
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = view.changed() => {}
                _ = published.changed() => {}
                () = tokio::time::sleep(WATCH_PACE * 5) => {}
            }
        }
    })
}
