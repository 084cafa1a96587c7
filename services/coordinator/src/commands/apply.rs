//! `Apply`: what a set of definitions changes in the catalog. Everything is checked before anything
//! is done.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use headwater_control::{ControlState, Effect};
use headwater_log::{Log, TopicSpec};
use headwater_proto::control::v1::{
    ApplyResponse, ChangeKind, ReplayOptions, ReplayStarted, StreamDeclared, ViewCreated,
    control_record::Event,
};
use headwater_service::log_status;
use headwater_sql::ViewDefinition;
use headwater_types::{Name, StreamDefinition};
use tonic::Status;

use crate::{
    commands::delete::{self, Obstacle},
    context::Context,
    definitions::{CatalogObject, Definitions, Problems, extension, parse_view, planning_error},
    replay_plan,
};

/// The change of one object.
pub(crate) struct PlannedChange {
    object: CatalogObject,
    kind: ChangeKind,
    /// The definition's stream, for a view.
    stream: Option<Arc<StreamDefinition>>,
    view: Option<ViewDefinition>,
}

/// Finds out what the definitions change, or all reasons against them. Writes nothing.
pub(crate) async fn check(
    context: &Context,
    state: &ControlState,
    definitions: &Definitions,
) -> Result<Vec<PlannedChange>, Status> {
    let mut problems = Problems::default();
    let mut changes = HashMap::new();
    let mut streams: HashMap<Name, Arc<StreamDefinition>> = HashMap::new();
    let mut topics: HashMap<Name, Name> = HashMap::new();
    let dropped: HashSet<_> =
        definitions.drops.iter().map(|drop| CatalogObject::of(&drop.definition)).collect();
    for drop in &definitions.drops {
        let object = CatalogObject::of(&drop.definition);
        match delete::check(state, &object, drop.definition.if_exists, &dropped) {
            Ok(kind) => {
                let change =
                    PlannedChange { object: object.clone(), kind, stream: None, view: None };
                changes.insert(object, change);
            }
            Err(Obstacle::Missing(why)) => problems.wrong(format!("{}: {why}", drop.file)),
            Err(Obstacle::Needed(why)) => problems.untimely(format!("{}: {why}", drop.file)),
        }
    }
    for (name, entry) in state.streams() {
        if dropped.contains(&CatalogObject::Stream(name.clone())) {
            continue;
        }
        let declared = context.streams.parse(&entry.sql)?;
        topics.extend(topics_of(&declared).map(|topic| (topic, name.clone())));
    }
    for stream in &definitions.streams {
        let (file, new) = (&stream.file, &stream.definition);
        let name = &new.name;
        let old = context.streams.declared(state, name)?;
        let kind = match &old {
            None => ChangeKind::Created,
            Some(old) if old.sql == new.sql => ChangeKind::Unchanged,
            Some(old) => {
                if let Err(why) = extension(old, new) {
                    problems.wrong(format!(
                        "{file}: stream {name} exists, and {why}; a stream only takes further nullable columns at its \
                         end: keep the rest as it is, or declare another stream with a topic of its own"
                    ));
                }
                ChangeKind::Extended
            }
        };
        for topic in topics_of(new) {
            match topics.get(&topic) {
                Some(owner) if owner != name => problems.wrong(format!(
                    "{file}: stream {name} would share topic {topic} with stream {owner}; give it a topic of its own"
                )),
                Some(_) | None => {}
            }
            topics.insert(topic, name.clone());
        }
        if new.topic.as_str().starts_with("headwater.") {
            problems.wrong(format!(
                "{file}: topic {} of stream {name} is one of Headwater's own; choose another name",
                new.topic
            ));
        }
        // The topic may belong to others, who also decide how long its records stay.
        if let Some(TopicSpec { partitions, .. }) = topic(&*context.log, &new.topic).await?
            && partitions != new.partitions
        {
            problems.wrong(format!(
                "{file}: topic {} has {partitions} partitions, and stream {name} declares {}; declare \
                 partitions = {partitions}, or name another topic{}",
                new.topic,
                new.partitions,
                match &old {
                    Some(_) => ": rows would silently move between partitions if a view read them all",
                    None => "",
                }
            ));
        }
        let (dead_letters, spec) = dead_letters_of(new);
        if let Some(existing) = topic(&*context.log, &dead_letters).await?
            && existing != spec
        {
            problems.wrong(format!(
                "{file}: topic {dead_letters}, which keeps what stream {name} cannot use, exists with {existing}, not with \
                 {spec}; {}, or name another topic for the stream",
                repair(existing, spec)
            ));
        }
        let new = Arc::new(new.clone());
        streams.insert(name.clone(), new);
        changes.insert(
            CatalogObject::Stream(name.clone()),
            PlannedChange {
                object: CatalogObject::Stream(name.clone()),
                kind,
                stream: None,
                view: None,
            },
        );
    }
    for view in &definitions.views {
        let (file, new) = (&view.file, &view.definition);
        let name = &new.name;
        let stream = match streams.get(&new.stream) {
            Some(stream) => Some(stream.clone()),
            None if dropped.contains(&CatalogObject::Stream(new.stream.clone())) => None,
            None => context.streams.declared(state, &new.stream)?,
        };
        let Some(stream) = stream else {
            problems.wrong(format!(
                "{file}: view {name} reads stream {}, which does not exist; declare it with CREATE STREAM in one of \
                 the files",
                new.stream
            ));
            continue;
        };
        let kind = match state.serving(name.as_str()) {
            None => ChangeKind::Created,
            Some(serving) if serving.view_sql == new.sql => ChangeKind::Unchanged,
            Some(serving) if serving.stream != new.stream => {
                problems.wrong(format!(
                    "{file}: view {name} reads stream {}, and would read {}; create it as another view",
                    serving.stream, new.stream
                ));
                continue;
            }
            Some(_) => {
                let open = state.views().get(name).and_then(|view| view.open_replay.as_ref());
                let building =
                    open.and_then(|open| state.generations().get(&state.replays().get(open)?.new));
                match (open, building) {
                    (Some(_), Some(building)) if building.view_sql == new.sql => {
                        ChangeKind::Unchanged
                    }
                    (Some(open), _) => {
                        problems.untimely(format!(
                            "{file}: view {name} has an open replay, {open}, of another definition; end it first with \
                             `headwater replay promote {open}` or `headwater replay abort {open}`"
                        ));
                        continue;
                    }
                    (None, _) => ChangeKind::Replayed,
                }
            }
        };
        if kind != ChangeKind::Unchanged
            && let Some(diagnostic) = planning_error(new, &stream).await?
        {
            problems.wrong(format!("{file}: {diagnostic}"));
        }
        let object = CatalogObject::View(name.clone());
        changes.insert(
            object.clone(),
            PlannedChange { object, kind, stream: Some(stream), view: Some(new.clone()) },
        );
    }
    problems.refuse()?;
    Ok(definitions.order.iter().filter_map(|object| changes.remove(object)).collect())
}

/// The topics that a stream needs: for its records, and for those that become dead letters.
fn topics_of(stream: &StreamDefinition) -> [Name; 2] {
    [stream.topic.clone(), stream.dead_letter_topic()]
}

/// The topic of dead letters. It is Headwater's own, so it must have exactly this specification.
fn dead_letters_of(stream: &StreamDefinition) -> (Name, TopicSpec) {
    (stream.dead_letter_topic(), TopicSpec::keep(stream.partitions))
}

/// How a person makes a topic what it must be.
fn repair(existing: TopicSpec, wanted: TopicSpec) -> &'static str {
    match existing.partitions == wanted.partitions {
        true => "set cleanup.policy=delete, retention.ms=-1 and retention.bytes=-1 on it",
        false => "delete it if nothing needs it",
    }
}

async fn topic(log: &dyn Log, topic: &Name) -> Result<Option<TopicSpec>, Status> {
    log.topic(topic).await.map_err(|error| log_status(&error))
}

/// Creates the topics of a stream unless they exist. If the command is refused later, they stay:
/// an empty topic does no harm.
async fn create_topics(log: &dyn Log, stream: &StreamDefinition) -> Result<(), Status> {
    let refused = |error| log_status(&error);
    let spec = TopicSpec::keep(stream.partitions);
    match log.create_topic(&stream.topic, spec).await {
        // A topic of others, which `check` has accepted.
        Err(headwater_log::Error::TopicDiffers { existing, .. })
            if existing.partitions == spec.partitions => {}
        created => created.map_err(refused)?,
    }
    let (topic, spec) = dead_letters_of(stream);
    log.create_topic(&topic, spec).await.map_err(refused)
}

/// The records that make the catalog equal to the definitions, streams before views.
pub(crate) async fn events(
    context: &Context,
    state: &ControlState,
    definitions: &Definitions,
    options: &ReplayOptions,
) -> Result<Vec<Event>, Status> {
    let changes = check(context, state, definitions).await?;
    // Views go before the streams that they read, and both before streams that may take their
    // topics.
    let deleted = |change: &&PlannedChange| change.kind == ChangeKind::Deleted;
    let (views, streams): (Vec<_>, Vec<_>) = changes
        .iter()
        .filter(deleted)
        .partition(|change| matches!(change.object, CatalogObject::View(_)));
    let reason = &options.reason;
    let mut events: Vec<_> = views
        .into_iter()
        .chain(streams)
        .map(|change| delete::event(&change.object, reason))
        .collect();
    let changed: HashSet<_> = changes
        .iter()
        .filter(|change| change.kind != ChangeKind::Unchanged)
        .map(|change| &change.object)
        .collect();
    for stream in &definitions.streams {
        let stream = &stream.definition;
        create_topics(&*context.log, stream).await?;
        if changed.contains(&CatalogObject::Stream(stream.name.clone())) {
            let (name, sql) = (stream.name.to_string(), stream.sql.clone());
            events.push(Event::StreamDeclared(StreamDeclared { name, sql }));
        }
    }
    let mut ordinal = state.next_ordinal();
    for change in &changes {
        let (Some(view), Some(stream)) = (&change.view, &change.stream) else { continue };
        if change.kind == ChangeKind::Unchanged {
            continue;
        }
        let generation = Some(replay_plan::generation(&*context.log, view, stream, ordinal).await?);
        ordinal += 1;
        events.push(match state.serving(view.name.as_str()) {
            None => Event::ViewCreated(ViewCreated { generation }),
            Some(serving) => Event::ReplayStarted(ReplayStarted {
                replay_id: state.next_replay_id(&view.name).to_string(),
                generation,
                replaces: serving.id.to_string(),
                options: Some(options.clone()),
            }),
        });
    }
    Ok(events)
}

/// The answer to a dry run.
pub(crate) async fn preview(
    context: &Context,
    state: &ControlState,
    definitions: &Definitions,
) -> Result<ApplyResponse, Status> {
    let board = context.board();
    let mut changes = Vec::new();
    for change in check(context, state, definitions).await? {
        let mut answer = change.object.changed(state, change.kind);
        answer.warnings = warnings(context, definitions, &change.object).await?;
        if change.kind == ChangeKind::Deleted {
            answer.notes = delete::notes(context, state, &change.object)?;
        }
        if change.kind == ChangeKind::Replayed
            && let (Some(view), Some(stream)) = (&change.view, &change.stream)
            && let Some(serving) = state.serving(view.name.as_str())
        {
            let plan = replay_plan::plan(context, state, &board, serving, view, stream).await?;
            answer.plan = Some(plan);
        }
        changes.push(answer);
    }
    Ok(ApplyResponse { changes })
}

/// The answer to a request that was carried out, from the effects that the state remembers: a
/// repeated request gets the same answer.
pub(crate) async fn report(
    context: &Context,
    state: &ControlState,
    definitions: &Definitions,
    effects: &[Effect],
) -> Result<ApplyResponse, Status> {
    let board = context.board();
    let mut changes = Vec::new();
    for object in &definitions.order {
        let found = effects.iter().find_map(|effect| match (object, effect) {
            (CatalogObject::Stream(name), Effect::StreamDeclared { stream, extended })
                if stream == name =>
            {
                Some(if *extended {
                    (ChangeKind::Extended, None, None)
                } else {
                    (ChangeKind::Created, None, None)
                })
            }
            (CatalogObject::View(name), Effect::ViewCreated { view, generation })
                if view == name =>
            {
                Some((ChangeKind::Created, Some(*generation), None))
            }
            (CatalogObject::View(name), Effect::ReplayStarted { replay, generation })
                if state.replays().get(replay).is_some_and(|replay| replay.view == *name) =>
            {
                Some((ChangeKind::Replayed, Some(*generation), state.replays().get(replay)))
            }
            (object, effect) if delete::is_of(effect, object) => {
                Some((ChangeKind::Deleted, None, None))
            }
            _ => None,
        });
        let (kind, generation, replay) = found.unwrap_or((ChangeKind::Unchanged, None, None));
        let mut change = object.changed(state, kind);
        change.warnings = warnings(context, definitions, object).await?;
        if kind == ChangeKind::Deleted {
            change.notes = delete::notes(context, state, object)?;
        }
        change.generation = generation.map(|id| id.to_string()).unwrap_or_default();
        if let Some(replay) = replay
            && let (Some(old), Some(new)) =
                (state.generations().get(&replay.old), state.generations().get(&replay.new))
        {
            change.replay_id = replay.id.to_string();
            let view = parse_view(&new.view_sql)?;
            let stream = context.streams.parse(&new.stream_sql)?;
            let mut plan = replay_plan::plan(context, state, &board, old, &view, &stream).await?;
            // The plan is of the replay that is open, so it does not warn of it.
            plan.warnings.retain(|warning| !warning.starts_with(&format!("replay {} ", replay.id)));
            change.plan = Some(plan);
        }
        changes.push(change);
    }
    Ok(ApplyResponse { changes })
}

/// Warnings about an object, whether or not it changes.
async fn warnings(
    context: &Context,
    definitions: &Definitions,
    object: &CatalogObject,
) -> Result<Vec<String>, Status> {
    let CatalogObject::Stream(name) = object else { return Ok(Vec::new()) };
    let mut streams = definitions.streams.iter().map(|stream| &stream.definition);
    let Some(stream) = streams.find(|stream| stream.name == *name) else { return Ok(Vec::new()) };
    Ok(replay_plan::losses(&*context.log, stream).await?.into_iter().collect())
}
