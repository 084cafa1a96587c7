//! `CatalogService`.

use std::{collections::HashSet, sync::Arc};

use headwater_proto::{
    control::v1::{
        ApplyRequest, ApplyResponse, ChangeKind, DeleteRequest, DeleteResponse, Generation,
        GenerationInfo, GetCatalogRequest, GetCatalogResponse, StreamInfo, ViewInfo,
        catalog_service_server::CatalogService,
    },
    convert::positions_to_proto,
};
use tonic::{Request, Response, Status};

use crate::{
    commands::{Command, apply, delete, queue::CommandQueue, replay_commands},
    context::Context,
    definitions::Definitions,
};

pub(crate) struct CatalogApi {
    context: Arc<Context>,
    commands: CommandQueue,
}

impl CatalogApi {
    pub(crate) fn new(context: Arc<Context>, commands: CommandQueue) -> Self {
        Self { context, commands }
    }
}

#[tonic::async_trait]
impl CatalogService for CatalogApi {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        self.context.require_lead()?;
        let ApplyRequest { files, dry_run, request_id, options } = request.into_inner();
        let options = replay_commands::options(options, self.context.config.retain)?;
        let definitions = Definitions::read(files).await?;
        if dry_run {
            return apply::preview(&self.context, &self.context.state(), &definitions)
                .await
                .map(Response::new);
        }
        let command = Command::Apply { definitions: definitions.clone(), options };
        let outcome = self.commands.execute(&request_id, command).await?;
        apply::report(&self.context, &outcome.state, &definitions, &outcome.effects)
            .await
            .map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        self.context.require_lead()?;
        let request = request.into_inner();
        let object = delete::object(request.kind(), &request.name)?;
        let DeleteRequest { if_exists, dry_run, reason, request_id, .. } = request;
        let (state, kind) = if dry_run {
            let state = self.context.state();
            let kind = delete::check(&state, &object, if_exists, &HashSet::new())?;
            (state, kind)
        } else {
            let command = Command::Delete { object: object.clone(), if_exists, reason };
            let outcome = self.commands.execute(&request_id, command).await?;
            let kind = delete::outcome(&outcome.effects, &object)?;
            (outcome.state, kind)
        };
        let mut change = object.changed(&state, kind);
        if kind == ChangeKind::Deleted {
            change.notes = delete::notes(&self.context, &state, &object)?;
        }
        Ok(Response::new(DeleteResponse { change: Some(change) }))
    }

    async fn get_catalog(
        &self,
        _request: Request<GetCatalogRequest>,
    ) -> Result<Response<GetCatalogResponse>, Status> {
        self.context.require_lead()?;
        catalog(&self.context).await.map(Response::new)
    }
}

async fn catalog(context: &Context) -> Result<GetCatalogResponse, Status> {
    let (state, board) = (context.state(), context.board());
    let mut streams = Vec::new();
    for (name, entry) in state.streams() {
        let stream = context.streams.parse(&entry.sql)?;
        streams.push(StreamInfo {
            name: name.to_string(),
            topic: stream.topic.to_string(),
            partitions: stream.partitions,
            sql: entry.sql.clone(),
            records: context.records(&stream.topic, stream.partitions).await?,
        });
    }
    let views = state.views().iter().map(|(name, view)| ViewInfo {
        name: name.to_string(),
        stream: view.stream.to_string(),
        serving: view.serving.to_string(),
        epoch: view.epoch.0,
        replay_id: view.open_replay.as_ref().map(ToString::to_string).unwrap_or_default(),
        sql: state
            .generations()
            .get(&view.serving)
            .map(|entry| entry.view_sql.clone())
            .unwrap_or_default(),
    });
    let exists = |id| state.view_of(id).is_some();
    let mut generations: Vec<_> =
        state.generations().values().filter(|entry| exists(entry.id)).collect();
    generations.sort_by_key(|entry| entry.ordinal);
    let generations = generations.into_iter().map(|entry| GenerationInfo {
        generation: Some(Generation {
            id: entry.id.to_string(),
            view: entry.view.to_string(),
            stream: entry.stream.to_string(),
            view_sql: entry.view_sql.clone(),
            stream_sql: entry.stream_sql.clone(),
            floor: positions_to_proto(&entry.floor),
            engine_version: entry.engine_version,
        }),
        role: entry.role.as_str().into(),
        created_at_ms: entry.created_at_ms,
        retain_until_ms: entry.retain_until_ms.unwrap_or_default(),
    });
    // A retired generation has no shards, even if the board still has what they reported last.
    let lives = |generation| {
        state
            .generations()
            .get(&generation)
            .is_some_and(|entry| entry.role != headwater_control::Role::Retired)
            && exists(generation)
    };
    Ok(GetCatalogResponse {
        streams,
        views: views.collect(),
        generations: generations.collect(),
        shards: board
            .shards()
            .filter(|(id, _, _)| lives(*id))
            .map(|(_, _, status)| status.clone())
            .collect(),
    })
}
