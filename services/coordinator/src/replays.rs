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
    catalog::blocking,
    definitions::parse_view,
    office::{Answer, Office},
    plan, verbs,
};

/// The least time between two messages of a watch, so that it does not repeat every commit.
const WATCH_PACE: Duration = Duration::from_millis(100);

pub(crate) struct Replays {
    office: Arc<Office>,
}

impl Replays {
    pub(crate) fn new(office: Arc<Office>) -> Self {
        Self { office }
    }

    /// The replay that a request was about: the one it names among its effects, else the one found now.
    async fn answer(
        &self,
        answer: Answer,
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
        self.office.replay_now(answer.state, replay).await.map(Response::new)
    }
}

/// A definition for a view that exists: the present one, or the text's.
fn definition(
    office: &Office,
    state: &ControlState,
    view: &str,
    view_sql: &str,
) -> Result<(ViewDefinition, Arc<StreamDefinition>), Status> {
    let wrong = |message: String| status(Remedy::Correct, message);
    let name = Name::new(view).map_err(|error| wrong(error.to_string()))?;
    let serving = plan::serving(state, &name)?;
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
    let stream = office.streams.declared(state, &view.stream)?;
    let stream = stream.ok_or_else(|| wrong(format!("there is no stream {}", view.stream)))?;
    headwater_sql::plan_view(&view, &stream).map_err(|error| wrong(error.to_string()))?;
    Ok((view, stream))
}

#[tonic::async_trait]
impl ReplayService for Replays {
    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<ReplayPlan>, Status> {
        self.office.leads()?;
        let PlanRequest { view, view_sql } = request.into_inner();
        let office = self.office.clone();
        blocking(move || {
            let (state, board) = (office.state(), office.board());
            let (view, stream) = definition(&office, &state, &view, &view_sql)?;
            plan::plan(&office, &state, &board, plan::serving(&state, &view.name)?, &view, &stream)
        })
        .await
        .map(Response::new)
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<Replay>, Status> {
        let StartRequest { view, view_sql, options, request_id } = request.into_inner();
        let retain_ms = u64::try_from(self.office.config.retain.as_millis()).unwrap_or(u64::MAX);
        let options = verbs::options(options, retain_ms)?;
        let office = self.office.clone();
        let answer = self
            .office
            .request(&request_id, move |state| {
                let (view, stream) = definition(&office, state, &view, &view_sql)?;
                let serving = plan::serving(state, &view.name)?;
                if let Some(open) = state.views().get(&view.name).and_then(|view| view.open_replay.as_ref()) {
                    return Err(Status::failed_precondition(format!(
                        "view {} has an open replay, {open}; end it first with `headwater replay promote {open}` or \
                         `headwater replay abort {open}`",
                        view.name
                    )));
                }
                Ok(vec![Event::ReplayStarted(ReplayStarted {
                    replay_id: state.next_replay_id(&view.name).to_string(),
                    generation: Some(plan::generation(&*office.log, &view, &stream, state.next_ordinal())?),
                    replaces: serving.id.to_string(),
                    options: Some(options),
                })])
            })
            .await?;
        self.answer(answer, |_| None).await
    }

    async fn get(&self, request: Request<GetReplayRequest>) -> Result<Response<Replay>, Status> {
        self.office.leads()?;
        let state = self.office.state();
        let replay = verbs::find(&state, &request.into_inner().replay)?.id.clone();
        self.office.replay_now(state, replay).await.map(Response::new)
    }

    async fn list(
        &self,
        request: Request<ListReplaysRequest>,
    ) -> Result<Response<ListReplaysResponse>, Status> {
        self.office.leads()?;
        let view = request.into_inner().view;
        let state = self.office.state();
        if !view.is_empty() && !state.views().contains_key(view.as_str()) {
            return Err(Status::not_found(format!(
                "there is no view {view:?}: `headwater get views` lists those there are"
            )));
        }
        let list = move |office: &Arc<Office>| {
            let of_view = |name: &Name| view.is_empty() || name.as_str() == view;
            let mut replays: Vec<_> =
                state.replays().values().filter(|replay| of_view(&replay.view)).collect();
            replays.sort_by_key(|replay| std::cmp::Reverse(replay.started));
            replays.into_iter().map(|replay| office.replay(&state, replay)).collect::<Vec<_>>()
        };
        let replays = self.office.ask(list).await.into_iter().collect::<Result<_, Status>>()?;
        Ok(Response::new(ListReplaysResponse { replays }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Replay, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<GetReplayRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.office.leads()?;
        let office = self.office.clone();
        let id = verbs::find(&office.state(), &request.into_inner().replay)?.id.clone();
        Ok(Response::new(Box::pin(watch(office, id))))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<Replay>, Status> {
        let PromoteRequest { replay, accept_failed, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let wish =
            move |state: &ControlState| verbs::promote(state, &replay, accept_failed, reason);
        let answer = self.office.request(&request_id, wish).await?;
        self.answer(answer, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<Replay>, Status> {
        let AbortRequest { replay, reason, request_id } = request.into_inner();
        let wanted = replay.clone();
        let wish = move |state: &ControlState| verbs::abort(state, &replay, reason);
        let answer = self.office.request(&request_id, wish).await?;
        self.answer(answer, |state| state.find_replay(&wanted).map(|replay| replay.id.clone()))
            .await
    }

    async fn undo(&self, request: Request<UndoRequest>) -> Result<Response<Replay>, Status> {
        let UndoRequest { view, reason, request_id } = request.into_inner();
        let wanted = view.clone();
        let wish = move |state: &ControlState| verbs::undo(state, &view, reason);
        let answer = self.office.request(&request_id, wish).await?;
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
fn watch(office: Arc<Office>, id: ReplayId) -> impl Stream<Item = Result<Replay, Status>> + Send {
    let (view, published) = (office.view.clone(), office.published());
    let start = (office, id, view, published, None::<Replay>, false);
    stream::unfold(start, |(office, id, mut view, mut published, last, over)| async move {
        if over {
            return None;
        }
        loop {
            let found = match office.leads() {
                Ok(()) => office.replay_now(office.state(), id.clone()).await,
                Err(refused) => Err(refused),
            };
            match found {
                Ok(replay) if last.as_ref() == Some(&replay) => {}
                Ok(replay) => {
                    let over = settled(&replay);
                    return Some((
                        Ok(replay.clone()),
                        (office, id, view, published, Some(replay), over),
                    ));
                }
                Err(error) => return Some((Err(error), (office, id, view, published, last, true))),
            }
            let shutdown = office.shutdown.clone();
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
