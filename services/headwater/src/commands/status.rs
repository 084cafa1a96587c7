use std::collections::BTreeMap;

use headwater_proto::control::v1::GetCatalogRequest;
use headwater_types::{EventTime, Tallies};
use serde_json::json;

use crate::{cli::StatusArgs, client::Server, failure::Result, output};

const COLUMNS: [&str; 14] = [
    "view",
    "generation",
    "role",
    "partition",
    "position",
    "lag",
    "watermark",
    "applied",
    "filtered",
    "late",
    "duplicate",
    "dead_lettered",
    "per_second",
    "error",
];

pub(super) async fn run(server: &Server, args: StatusArgs) -> Result {
    let catalog = server.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
    let generations: BTreeMap<_, _> = catalog
        .generations
        .iter()
        .filter_map(|info| {
            info.generation.as_ref().map(|generation| (generation.id.as_str(), (info, generation)))
        })
        .collect();
    let mut rows = Vec::new();
    let mut all = Tallies::default();
    let (mut lag, mut rate) = (0, 0.0);
    for shard in &catalog.shards {
        let Some((info, generation)) = generations.get(shard.generation.as_str()) else { continue };
        let tallies: Tallies = shard.tallies.unwrap_or_default().into();
        let behind = shard.log_end.saturating_sub(shard.position);
        if info.role == "serving" {
            all += tallies;
            lag += behind;
        }
        rate += shard.records_per_second;
        rows.push(json!({
            "view": generation.view,
            "generation": shard.generation,
            "role": info.role,
            "partition": shard.partition,
            "position": shard.position,
            "lag": behind,
            "watermark": shard.watermark_micros.map(|micros| EventTime(micros).to_string()),
            "applied": tallies.applied,
            "filtered": tallies.filtered,
            "late": tallies.late,
            "duplicate": tallies.duplicate,
            "dead_lettered": tallies.dead_lettered,
            "per_second": shard.records_per_second.round() as u64,
            "error": (!shard.error.is_empty()).then_some(&shard.error),
        }));
    }
    output::objects(args.output, &COLUMNS, &rows)?;
    eprintln!(
        "serving: lag {lag} · read {} = applied {} + filtered {} + late {} + duplicate {} + dead-lettered {} · all shards {rate:.0}/s",
        all.read(),
        all.applied,
        all.filtered,
        all.late,
        all.duplicate,
        all.dead_lettered,
    );
    Ok(())
}
