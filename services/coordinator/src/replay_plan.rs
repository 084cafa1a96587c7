//! The plan of a replay: what it reads, needs and changes.

use std::{collections::BTreeMap, sync::Arc};

use headwater_control::{ControlState, GenerationEntry, StatusBoard};
use headwater_log::{Cleanup, Ends, Log};
use headwater_proto::{
    control::v1::{Generation, ReplayPlan},
    convert::positions_to_proto,
};
use headwater_service::{log_status, status};
use headwater_sql::ViewDefinition;
use headwater_types::{
    ENGINE_VERSION, GenerationInputs, Name, Offset, PartitionId, Remedy, StreamDefinition,
};
use tonic::Status;

use crate::{
    context::Context,
    definitions::{parse_view, planning_error},
};

/// The ends of all partitions of a stream. A topic that does not exist yet is empty.
async fn ends(
    log: &dyn Log,
    stream: &StreamDefinition,
) -> Result<BTreeMap<PartitionId, Ends>, Status> {
    let refused = |error| log_status(&error);
    let exists = log.topic(&stream.topic).await.map_err(refused)?.is_some();
    let mut all = BTreeMap::new();
    for partition in (0..stream.partitions).map(PartitionId) {
        let ends = match exists {
            true => log.ends(&stream.topic, partition).await.map_err(refused)?,
            false => Ends::default(),
        };
        all.insert(partition, ends);
    }
    Ok(all)
}

/// A generation that begins with the oldest record there is.
pub(crate) async fn generation(
    log: &dyn Log,
    view: &ViewDefinition,
    stream: &StreamDefinition,
    ordinal: u64,
) -> Result<Generation, Status> {
    let floor: BTreeMap<_, _> = ends(log, stream)
        .await?
        .into_iter()
        .map(|(partition, ends)| (partition, ends.start))
        .collect();
    let offsets: Vec<Offset> = floor.values().copied().collect();
    let inputs =
        GenerationInputs { stream_sql: &stream.sql, view_sql: &view.sql, floor: &offsets, ordinal };
    Ok(Generation {
        id: inputs.digest().to_string(),
        view: view.name.to_string(),
        stream: stream.name.to_string(),
        view_sql: view.sql.clone(),
        stream_sql: stream.sql.clone(),
        floor: positions_to_proto(&floor),
        engine_version: ENGINE_VERSION,
    })
}

/// The definition to rebuild a view with: that of the text, or the present one if the text is
/// empty.
pub(crate) async fn definition(
    context: &Context,
    state: &ControlState,
    view: &str,
    view_sql: &str,
) -> Result<(ViewDefinition, Arc<StreamDefinition>), Status> {
    let wrong = |message: String| status(Remedy::Correct, message);
    let name = Name::new(view).map_err(|error| wrong(error.to_string()))?;
    let serving = serving(state, &name)?;
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
    match planning_error(&view, &stream).await? {
        Some(diagnostic) => Err(wrong(diagnostic.to_string())),
        None => Ok((view, stream)),
    }
}

/// The plan for rebuilding a view, which is served by `serving`, as `view`.
pub(crate) async fn plan(
    context: &Context,
    state: &ControlState,
    board: &StatusBoard,
    serving: &GenerationEntry,
    view: &ViewDefinition,
    stream: &StreamDefinition,
) -> Result<ReplayPlan, Status> {
    let ends = ends(&*context.log, stream).await?;
    let (mut records, mut bytes) = (0, 0);
    let mut warnings = Vec::new();
    for (&partition, reach) in &ends {
        records += reach.end.0 - reach.start.0;
        let size = context.log.size(&stream.topic, partition, reach.start, reach.end);
        bytes += size.await.map_err(|error| log_status(&error))?;
        if reach.start > Offset::ZERO {
            let read = serving.floor.get(&partition).filter(|floor| **floor < reach.start);
            let read =
                read.map(|floor| format!("; the serving one has read from offset {floor} on"));
            warnings.push(format!(
                "partition {partition} of topic {} begins at offset {}: what came before was trimmed and will be \
                 missing from the new generation{}",
                stream.topic,
                reach.start,
                read.unwrap_or_default()
            ));
        }
    }
    warnings.extend(losses(&*context.log, stream).await?);
    if let Some(open) = state.views().get(&view.name).and_then(|entry| entry.open_replay.as_ref()) {
        warnings.push(format!(
            "replay {open} of this view is open: promote or abort it before another is started"
        ));
    }
    let errors = board.of(serving.id).filter(|(_, status)| !status.error.is_empty());
    warnings.extend(errors.map(|(partition, status)| {
        format!("the serving generation has stopped in partition {partition}: {}", status.error)
    }));
    let disk_bytes = board.of(serving.id).map(|(_, status)| status.state_bytes).sum();
    let disk_free_bytes = context.disk_free(serving.id);
    if disk_free_bytes > 0 && disk_bytes > disk_free_bytes {
        warnings.push(format!(
            "the new generation will need about {disk_bytes} bytes of disk, and {disk_free_bytes} are free"
        ));
    }
    let old = parse_view(&serving.view_sql)?;
    let mut differences = headwater_sql::differences(&old, view);
    if serving.stream_sql != stream.sql {
        differences.push(format!(
            "stream {} has been extended since the serving generation was built",
            stream.name
        ));
    }
    let positions = |of: fn(&Ends) -> Offset| {
        positions_to_proto(&ends.iter().map(|(&partition, ends)| (partition, of(ends))).collect())
    };
    Ok(ReplayPlan {
        view: view.name.to_string(),
        replaces: serving.id.to_string(),
        records,
        bytes,
        floor: positions(|ends| ends.start),
        end: positions(|ends| ends.end),
        disk_bytes,
        disk_free_bytes,
        seconds: context.measured_rate(&view.name).map_or(0.0, |rate| records as f64 / rate),
        differences,
        warnings,
    })
}

/// A warning, if the topic does not keep all of its records for a replay.
pub(crate) async fn losses(
    log: &dyn Log,
    stream: &StreamDefinition,
) -> Result<Option<String>, Status> {
    let topic = &stream.topic;
    let found = log.topic(topic).await.map_err(|error| log_status(&error))?;
    Ok(match found.map(|spec| spec.cleanup) {
        Some(Cleanup::Expire) => Some(format!(
            "topic {topic} deletes old records by a retention of its own: a replay can only go back as far as that, \
             and one that is overtaken by it fails; set retention.ms=-1 and retention.bytes=-1 to keep them"
        )),
        Some(Cleanup::Compact) => Some(format!(
            "topic {topic} is compacted: a replay no longer finds the records that have been replaced, and so its \
             numbers may differ; set cleanup.policy=delete with retention.ms=-1 to keep them"
        )),
        Some(Cleanup::Keep) | None => None,
    })
}

/// The generation that serves a view.
pub(crate) fn serving<'a>(
    state: &'a ControlState,
    view: &Name,
) -> Result<&'a GenerationEntry, Status> {
    state.serving(view.as_str()).ok_or_else(|| {
        Status::not_found(match state.deleted_views().get(view) {
            Some(deleted) => format!("view {view} was deleted {deleted}"),
            None => format!("there is no view {view}: `headwater get views` lists those there are"),
        })
    })
}
