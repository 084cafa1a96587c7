//! `ReplayService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, stream};
use headwater_control::{ControlState, Effect, ReplayId};
use headwater_proto::control::v1::{
    AbortRequest, GetReplayRequest, ListReplaysRequest, ListReplaysResponse, Phase, PlanRequest,
    PromoteRequest, Replay, ReplayPlan, ReplayStarted, StartRequest, UndoRequest, Verdict,
    control_record::Event, replay_service_server::ReplayService,
};
use headwater_service::status;
use headwater_sql::ViewDefinition;
use headwater_types::{Name, Remedy, StreamDefinition};
use tonic::{Request, Response, Status};

use crate::{
    api::catalog_service::blocking,
    commands::replay_commands,
    context::{CommandOutcome, Context},
    definitions::parse_view,
    replay_plan,
};

/// The least time between two messages of a watch, so that it does not repeat every commit.
const WATCH_PACE: Duration = Duration::from_millis(100);

pub(crate) struct ReplayApi {
    context: Arc<Context>,
}

impl ReplayApi {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// The replay that a request was about: the one it names among its effects, else the one found now.
    async fn answer(
        &self,
        answer: CommandOutcome,
        wanted: impl Fn(&ControlState) -> Option<ReplayId>,
    ) -> Result<Response<Replay>, Status> {
        let named = answer.effects.iter().find_map(|effect| match effect {
            Effect::ReplayStarted { replay, .. }
            | Effect::SwapRequested { replay }
            | Effect::SwapCancelled { replay }
            | Effect::ReplayEnded { replay } => Some(replay.clone()),
            Effect::StreamDeclared { .. } | Effect::ViewCreated { .. } => None,
        });
        let replay = named.or_else(|| wanted(&answer.state)).ok_or_else(|| {
            status(
                Remedy::Correct,
                "this request id was used for something else: choose another one",
            )
        })?;
        self.context.replay_now(answer.state, replay).await.map(Response::new)
    }
}

/// A definition for a view that exists: the present one, or the text's.
fn definition(
    context: &Context,
    state: &ControlState,
    view: &str,
    view_sql: &str,
) -> Result<(ViewDefinition, Arc<StreamDefinition>), Status> {
    let wrong = |message: String| status(Remedy::Correct, message);
    let name = Name::new(view).map_err(|error| wrong(error.to_string()))?;
    let serving = replay_plan::serving(state, &name)?;
    let view = match view_sql.trim() {
        "" => parse_view(&serving.view_sql)?,
        text => headwater_sql::parse_view(text).map_err(|error| wrong(error.to_string()))?,
    };
    if view.name != name {
        return Err(wrong(format!(
            "the definition is one of view {}, not of {name}: correct its name",
            view.name
        )));
    }
    if view.stream != serving.stream {
        return Err(wrong(format!(
            "view {name} reads stream {}, and would read {}: create it as another view",
            serving.stream, view.stream
        )));
    }
    let stream = context.streams.declared(state, &view.stream)?;
    let stream = stream.ok_or_else(|| wrong(format!("there is no stream {}", view.stream)))?;
    headwater_sql::plan_view(&view, &stream).map_err(|error| wrong(error.to_string()))?;
    Ok((view, stream))
}

#[tonic::async_trait]
impl ReplayService for ReplayApi {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<ReplayPlan>, Status> {
        self.context.leads()?;
        let PlanRequest { view, view_sql } = request.into_inner();
        let context = self.context.clone();
        blocking(move || {
            let (state, board) = (context.state(), context.board());
            let (view, stream) = definition(&context, &state, &view, &view_sql)?;
            replay_plan::plan(
                &context,
                &state,
                &board,
                replay_plan::serving(&state, &view.name)?,
                &view,
                &stream,
            )
        })
        .await
        .map(Response::new)
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<Replay>, Status> {
        let StartRequest { view, view_sql, options, request_id } = request.into_inner();
        let retain_ms = u64::try_from(self.context.config.retain.as_millis()).unwrap_or(u64::MAX);
        let options = replay_commands::options(options, retain_ms)?;
        let context = self.context.clone();
        let answer = self
            .context
            .request(&request_id, move |state| {
                let (view, stream) = definition(&context, state, &view, &view_sql)?;
                let serving = replay_plan::serving(state, &view.name)?;
                if let Some(open) = state.views().get(&view.name).and_then(|view| view.open_replay.as_ref()) {
                    return Err(Status::failed_precondition(format!(
                        "view {} has an open replay, {open}; end it first with `headwater replay promote {open}` or \
                         `headwater replay abort {open}`",
                        view.name
                    )));
                }
                Ok(vec![Event::ReplayStarted(ReplayStarted {
                    replay_id: state.next_replay_id(&view.name).to_string(),
                    generation: Some(replay_plan::generation(&*context.log, &view, &stream, state.next_ordinal())?),
                    replaces: serving.id.to_string(),
                    options: Some(options),
                })])
            })
            .await?;
        self.answer(answer, |_| None).await
    }

    async fn get(&self, request: Request<GetReplayRequest>) -> Result<Response<Replay>, Status> {
        self.context.leads()?;
        let state = self.context.state();
        let replay = replay_commands::find(&state, &request.into_inner().replay)?.id.clone();
        self.context.replay_now(state, replay).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<ListReplaysRequest>,
    ) -> Result<Response<ListReplaysResponse>, Status> {
        self.context.leads()?;
        let view = request.into_inner().view;
        let state = self.context.state();
        if !view.is_empty() && !state.views().contains_key(view.as_str()) {
            return Err(Status::not_found(format!(
                "there is no view {view:?}: `headwater get views` lists those there are"
            )));
        }
        let list = move |context: &Arc<Context>| {
            let of_view = |name: &Name| view.is_empty() || name.as_str() == view;
            let mut replays: Vec<_> =
                state.replays().values().filter(|replay| of_view(&replay.view)).collect();
            replays.sort_by_key(|replay| std::cmp::Reverse(replay.started));
            replays.into_iter().map(|replay| context.replay(&state, replay)).collect::<Vec<_>>()
        };
        let replays = self.context.ask(list).await.into_iter().collect::<Result<_, Status>>()?;
        Ok(Response::new(ListReplaysResponse { replays }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Replay, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<GetReplayRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.context.leads()?;
        let context = self.context.clone();
        let id = replay_commands::find(&context.state(), &request.into_inner().replay)?.id.clone();
        Ok(Response::new(Box::pin(watch(context, id))))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<Replay>, Status> {
        let PromoteRequest { replay, accept_failed, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let command = move |state: &ControlState| {
            replay_commands::promote(state, &replay, accept_failed, reason)
        };
        let answer = self.context.request(&request_id, command).await?;
        self.answer(answer, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<Replay>, Status> {
        let AbortRequest { replay, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let command = move |state: &ControlState| replay_commands::abort(state, &replay, reason);
        let answer = self.context.request(&request_id, command).await?;
        self.answer(answer, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<Replay>, Status> {
        let UndoRequest { view, reason, request_id } = request.into_inner();
        let wanted = view.clone();
        let command = move |state: &ControlState| replay_commands::undo(state, &view, reason);
        let answer = self.context.request(&request_id, command).await?;
        // Nothing was written: the undo is under way already.
        self.answer(answer, |state| {
            state
                .views()
                .get(wanted.as_str())?
                .pending_swap
                .as_ref()
                .map(|swap| swap.replay_id.clone())
        })
        .await
    }
}

/// Whether nothing more happens to this replay unless a person acts.
fn settled(replay: &Replay) -> bool {
    match replay.phase() {
        Phase::Unspecified | Phase::Replay | Phase::Align | Phase::Diff | Phase::Commit => false,
        // It goes on by itself if it was told to and has not been swapped before.
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
            let found = match context.leads() {
                Ok(()) => context.replay_now(context.state(), id.clone()).await,
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
            // The ends of the log move without notice, so look from time to time.
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = view.changed() => {}
                _ = published.changed() => {}
                () = tokio::time::sleep(WATCH_PACE * 5) => {}
            }
        }
    })
}
