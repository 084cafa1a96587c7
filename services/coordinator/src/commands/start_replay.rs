//! `Start`: a new generation of a view, built beside the one that serves.

use headwater_control::ControlState;
use headwater_proto::control::v1::{ReplayOptions, ReplayStarted, control_record::Event};
use tonic::Status;

use crate::{context::Context, replay_plan};

pub(crate) async fn events(
    context: &Context,
    state: &ControlState,
    view: &str,
    view_sql: &str,
    options: ReplayOptions,
) -> Result<Vec<Event>, Status> {
    let (view, stream) = replay_plan::definition(context, state, view, view_sql).await?;
    let serving = replay_plan::serving(state, &view.name)?;
    if let Some(open) = state.views().get(&view.name).and_then(|view| view.open_replay.as_ref()) {
        return Err(Status::failed_precondition(format!(
            "view {} has an open replay, {open}; end it first with `headwater replay promote {open}` or \
             `headwater replay abort {open}`",
            view.name
        )));
    }
    let ordinal = state.next_ordinal();
    let generation = replay_plan::generation(&*context.log, &view, &stream, ordinal).await?;
    Ok(vec![Event::ReplayStarted(ReplayStarted {
        replay_id: state.next_replay_id(&view.name).to_string(),
        generation: Some(generation),
        replaces: serving.id.to_string(),
        options: Some(options),
    })])
}
