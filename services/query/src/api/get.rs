//! `Get`: one row.

use headwater_engine::read;
use headwater_proto::query::v1::{GetRequest, GetResponse};

use crate::{
    context::RequestContext,
    error::Error,
    read_plan::ReadPlan,
    row_values,
    snapshot::{freshness::FreshnessRequest, pin::Pin, shard_snapshot::ShardSnapshot},
};

pub(super) async fn get(
    context: &RequestContext,
    request: &GetRequest,
) -> Result<GetResponse, Error> {
    let freshness = FreshnessRequest::new(&context.config, request.freshness.as_ref())?;
    let pin = context.catalog.pin(&request.view, &freshness).await?;
    let plan = &pin.generation.plan;
    let parts = pin.generation.key.whole(&request.key)?;
    let key = read::encode_key(plan, &parts)?;
    // A row whose key names its partition is in one shard. The others need not even be fresh.
    let only = read::stream_key_partition(plan, &parts);
    let reads = ReadPlan { key: Some(key), ..ReadPlan::default() };
    let snapshots = pin.snapshot(only, &reads).await?;
    context.metrics.staleness(snapshots.iter().filter_map(ShardSnapshot::caught_up));
    merged_row(&pin, &reads.key.unwrap_or_default(), &snapshots)
}

/// Merges the parts of a row. It takes microseconds, so it runs on the calling thread.
fn merged_row(pin: &Pin, key: &[u8], snapshots: &[ShardSnapshot]) -> Result<GetResponse, Error> {
    let generation = &pin.generation;
    let mut payloads = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        let found = snapshot.row(generation.id, key)?;
        payloads.extend(found.map(|(header, payload)| (header.last_offset, payload)));
    }
    let row = if payloads.is_empty() {
        None
    } else {
        let payloads: Vec<_> =
            payloads.iter().map(|(offset, payload)| (*offset, payload.as_slice())).collect();
        let merged = read::merge_rows(&generation.plan, key, &payloads)
            .map_err(|source| Error::engine(&generation.view, source))?;
        row_values::rows(&merged.batch)?.pop()
    };
    let provenance = pin.provenance(snapshots);
    Ok(GetResponse { columns: generation.columns.clone(), row, provenance: Some(provenance) })
}
