//! Deleting a stream or a view: `Delete`, and the DROP statements of `Apply`.
//!
//! A deletion is one control record. It is refused while something depends on the object. The
//! processors delete the state of a view afterwards, when each of its generations is retired;
//! topics are left alone.

use std::collections::HashSet;

use headwater_control::{ControlState, Effect};
use headwater_proto::control::v1::{
    ChangeKind, ObjectKind, StreamDeleted, ViewDeleted, control_record::Event,
};
use headwater_service::status;
use headwater_types::{Name, Remedy};
use tonic::Status;

use crate::{context::Context, definitions::CatalogObject};

/// The reason why an object cannot be deleted.
pub(crate) enum Obstacle {
    /// There is nothing of this name.
    Missing(String),
    /// Something depends on it.
    Needed(String),
}

impl From<Obstacle> for Status {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::Missing(why) => Self::not_found(why),
            Obstacle::Needed(why) => Self::failed_precondition(why),
        }
    }
}

/// `Deleted` if the object would be deleted, `Unchanged` if it is not there and need not be. The
/// same request deletes what is in `beside`.
pub(crate) fn check(
    state: &ControlState,
    object: &CatalogObject,
    if_exists: bool,
    beside: &HashSet<CatalogObject>,
) -> Result<ChangeKind, Obstacle> {
    let (exists, deleted) = match object {
        CatalogObject::Stream(name) => {
            (state.streams().contains_key(name), state.deleted_streams().get(name))
        }
        CatalogObject::View(name) => {
            (state.views().contains_key(name), state.deleted_views().get(name))
        }
    };
    if !exists && if_exists {
        return Ok(ChangeKind::Unchanged);
    }
    if !exists {
        return Err(Obstacle::Missing(match deleted {
            Some(deleted) => format!(
                "{object} was deleted {deleted}; `DROP … IF EXISTS` and `headwater delete --if-exists` pass over that"
            ),
            None => format!(
                "there is no {object}: `headwater get streams` and `headwater get views` list what there is"
            ),
        }));
    }
    match object {
        CatalogObject::Stream(name) => {
            let reads = state.views().iter().filter(|(_, view)| view.stream == *name);
            let views: Vec<_> = reads
                .map(|(view, _)| view)
                .filter(|view| !beside.contains(&CatalogObject::View((*view).clone())))
                .map(Name::as_str)
                .collect();
            match views.as_slice() {
                [] => Ok(ChangeKind::Deleted),
                [first, ..] => Err(Obstacle::Needed(format!(
                    "{object} cannot be deleted while a view reads it: {}; delete that first with `headwater delete \
                     view {first}`",
                    views.join(", ")
                ))),
            }
        }
        CatalogObject::View(name) => {
            match state.views().get(name).and_then(|view| view.open_replay.as_ref()) {
                None => Ok(ChangeKind::Deleted),
                Some(open) => Err(Obstacle::Needed(format!(
                    "{object} cannot be deleted while its replay {open} runs; end that first with `headwater replay abort \
                 {open}`"
                ))),
            }
        }
    }
}

/// The record of a deletion.
pub(crate) fn event(object: &CatalogObject, reason: &str) -> Event {
    let reason = reason.to_owned();
    match object {
        CatalogObject::Stream(name) => {
            Event::StreamDeleted(StreamDeleted { stream: name.to_string(), reason })
        }
        CatalogObject::View(name) => {
            Event::ViewDeleted(ViewDeleted { view: name.to_string(), reason })
        }
    }
}

/// Whether this effect is the deletion of this object.
pub(crate) fn is_of(effect: &Effect, object: &CatalogObject) -> bool {
    match (object, effect) {
        (CatalogObject::Stream(name), Effect::StreamDeleted { stream }) => stream == name,
        (CatalogObject::View(name), Effect::ViewDeleted { view }) => view == name,
        (CatalogObject::Stream(_) | CatalogObject::View(_), _) => false,
    }
}

/// Tells a person what a deletion leaves alone.
pub(crate) fn notes(
    context: &Context,
    state: &ControlState,
    object: &CatalogObject,
) -> Result<Vec<String>, Status> {
    let name = match object {
        CatalogObject::Stream(name) => name,
        CatalogObject::View(_) => {
            return Ok(vec![
                "the processors delete its state; events and dead letters stay in their topics"
                    .into(),
            ]);
        }
    };
    let present = state.streams().get(name).map(|entry| &entry.sql);
    let Some(sql) = present.or(state.deleted_streams().get(name).map(|deleted| &deleted.sql))
    else {
        return Ok(Vec::new());
    };
    let stream = context.streams.parse(sql)?;
    Ok(vec![format!(
        "topics {} and {} stay with all of their records",
        stream.topic,
        stream.dead_letter_topic()
    )])
}

/// The object that a request names.
pub(crate) fn object(kind: ObjectKind, name: &str) -> Result<CatalogObject, Status> {
    let wrong = |message: String| status(Remedy::Correct, message);
    let name = Name::new(name).map_err(|error| wrong(error.to_string()))?;
    match kind {
        ObjectKind::Stream => Ok(CatalogObject::Stream(name)),
        ObjectKind::View => Ok(CatalogObject::View(name)),
        ObjectKind::Unspecified => Err(wrong("kind must be a stream or a view".into())),
    }
}

/// The records that delete one object.
pub(crate) fn events(
    state: &ControlState,
    object: &CatalogObject,
    if_exists: bool,
    reason: &str,
) -> Result<Vec<Event>, Status> {
    let kind = check(state, object, if_exists, &HashSet::new())?;
    Ok((kind == ChangeKind::Deleted).then(|| event(object, reason)).into_iter().collect())
}

/// The change that a request made to the object, by the effects of the request.
pub(crate) fn outcome(effects: &[Effect], object: &CatalogObject) -> Result<ChangeKind, Status> {
    if effects.is_empty() {
        return Ok(ChangeKind::Unchanged);
    }
    match effects.iter().any(|effect| is_of(effect, object)) {
        true => Ok(ChangeKind::Deleted),
        false => Err(status(
            Remedy::Correct,
            "this request id was used for something else: choose another one",
        )),
    }
}
