//! `CatalogService`.

use std::sync::Arc;

use headwater_proto::{
    control::v1::{
        ApplyRequest, ApplyResponse, Generation, GenerationInfo, GetCatalogRequest,
        GetCatalogResponse, StreamInfo, ViewInfo, catalog_service_server::CatalogService,
    },
    convert::positions_to_proto,
};
use tonic::{Request, Response, Status};

use crate::{
    commands::{apply, replay_commands},
    context::Context,
    definitions::Definitions,
};

pub(crate) struct CatalogApi {
    context: Arc<Context>,
}

impl CatalogApi {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl CatalogService for CatalogApi {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        self.context.leads()?;
        let ApplyRequest { files, dry_run, request_id, options } = request.into_inner();
        let retain_ms = u64::try_from(self.context.config.retain.as_millis()).unwrap_or(u64::MAX);
        let options = replay_commands::options(options, retain_ms)?;
        let context = self.context.clone();
        // Planning a definition computes.
        let (definitions, preview) = blocking(move || {
            let definitions = Definitions::read(&files)?;
            let preview = match dry_run {
                true => Some(apply::preview(&context, &context.state(), &definitions)?),
                false => None,
            };
            Ok((definitions, preview))
        })
        .await?;
        if let Some(preview) = preview {
            return Ok(Response::new(preview));
        }
        let (context, wanted) = (self.context.clone(), definitions.clone());
        let answer = self
            .context
            .request(&request_id, move |state| apply::events(&context, state, &wanted, &options))
            .await?;
        let context = self.context.clone();
        blocking(move || apply::report(&context, &answer.state, &definitions, &answer.effects))
            .await
            .map(Response::new)
    }

    async fn get_catalog(
        &self,
        _request: Request<GetCatalogRequest>,
    ) -> Result<Response<GetCatalogResponse>, Status> {
        self.context.leads()?;
        let context = self.context.clone();
        blocking(move || catalog(&context)).await.map(Response::new)
    }
}

/// Runs what computes or reads the log where it does not hold others up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Status::internal(format!("the request was not finished: {error}"))),
    }
}

fn catalog(context: &Context) -> Result<GetCatalogResponse, Status> {
    let (state, board) = (context.state(), context.board());
    let streams = state.streams().iter().map(|(name, entry)| {
        let stream = context.streams.parse(&entry.sql)?;
        Ok(StreamInfo {
            name: name.to_string(),
            topic: stream.topic.to_string(),
            partitions: stream.partitions,
            sql: entry.sql.clone(),
            records: context.records(&stream.topic, stream.partitions)?,
        })
    });
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
    let mut generations: Vec<_> = state.generations().values().collect();
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
    // What is deleted has no shards, whatever was last said of them.
    let lives = |generation| {
        state
            .generations()
            .get(&generation)
            .is_some_and(|entry| entry.role != headwater_control::Role::Retired)
    };
    Ok(GetCatalogResponse {
        streams: streams.collect::<Result<_, Status>>()?,
        views: views.collect(),
        generations: generations.collect(),
        shards: board
            .shards()
            .filter(|(id, _, _)| lives(*id))
            .map(|(_, _, status)| status.clone())
            .collect(),
    })
}
