use std::collections::{BTreeMap, BTreeSet};

use headwater_proto::control::v1::GetCatalogRequest;
use headwater_types::EventTime;
use serde_json::{Value as Json, json};

use crate::{
    cli::{GetArgs, Kind},
    client::Server,
    failure::{Failure, Result},
    output,
};

pub(super) async fn run(server: &Server, args: GetArgs) -> Result {
    let catalog = server.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
    let time = |millis: i64| match millis {
        0 => Json::Null,
        millis => json!(EventTime::from_millis(millis).to_string()),
    };
    let generations = catalog.generations.iter().filter_map(|info| info.generation.as_ref());
    let views: BTreeMap<_, _> = generations.map(|g| (g.id.as_str(), g.view.as_str())).collect();
    let view_of = |generation: &str| views.get(generation).copied();
    let (columns, key, rows): (&[&str], &str, Vec<Json>) = match args.kind {
        Kind::Streams => (
            &["name", "topic", "partitions", "records"],
            "name",
            catalog
                .streams
                .iter()
                .map(|s| {
                    json!({"name": s.name, "topic": s.topic, "partitions": s.partitions, "records": s.records, "sql": s.sql})
                })
                .collect(),
        ),
        Kind::Views => (
            &["name", "stream", "serving", "epoch", "replay"],
            "name",
            catalog
                .views
                .iter()
                .map(|v| {
                    let replay = (!v.replay_id.is_empty()).then_some(&v.replay_id);
                    json!({"name": v.name, "stream": v.stream, "serving": v.serving, "epoch": v.epoch, "replay": replay, "sql": v.sql})
                })
                .collect(),
        ),
        Kind::Generations => (
            &["generation", "view", "role", "created_at", "retain_until"],
            "generation",
            catalog
                .generations
                .iter()
                .filter_map(|info| info.generation.as_ref().map(|generation| (info, generation)))
                .map(|(info, g)| {
                    json!({"generation": g.id, "view": g.view, "role": info.role, "created_at": time(info.created_at_ms),
                        "retain_until": time(info.retain_until_ms), "stream": g.stream, "engine_version": g.engine_version, "sql": g.view_sql})
                })
                .collect(),
        ),
        Kind::Shards => (
            &["view", "generation", "partition", "position", "log_end", "watermark", "state_bytes", "processor"],
            "generation",
            catalog
                .shards
                .iter()
                .map(|s| {
                    let watermark = s.watermark_micros.map(|micros| EventTime(micros).to_string());
                    let view = view_of(&s.generation);
                    json!({"view": view, "generation": s.generation, "partition": s.partition, "position": s.position, "log_end": s.log_end,
                        "watermark": watermark, "state_bytes": s.state_bytes, "processor": s.processor, "error": s.error})
                })
                .collect(),
        ),
    };
    let rows: Vec<Json> = match &args.name {
        None => rows,
        Some(name) => {
            let named: Vec<_> = rows
                .iter()
                .filter(|row| [key, "view"].iter().any(|k| row[*k] == name.as_str()))
                .cloned()
                .collect();
            if named.is_empty() {
                let known: BTreeSet<_> = rows
                    .iter()
                    .flat_map(|row| [&row["view"], &row[key]])
                    .filter_map(Json::as_str)
                    .collect();
                let known: Vec<_> = known.into_iter().collect();
                return Err(Failure::usage(format!(
                    "there is no {name:?}; there is: {}",
                    known.join(", ")
                )));
            }
            named
        }
    };
    output::objects(args.output, columns, &rows)
}
