use headwater_proto::query::v1::{Freshness, Provenance, QueryRequest, ResultFormat};
use headwater_types::EventTime;

use crate::{cli::QueryArgs, client::Server, failure::Result, output::Rows};

pub(super) async fn run(server: &Server, args: QueryArgs) -> Result {
    let request = QueryRequest {
        sql: args.sql,
        format: ResultFormat::Rows.into(),
        freshness: Some(Freshness {
            after: args.after,
            timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
            generation: args.generation.unwrap_or_default(),
        }),
    };
    let mut answer = server.query().query(request).await?.into_inner();
    let mut rows: Option<Rows> = None;
    let mut provenance = Vec::new();
    while let Some(part) = answer.message().await? {
        if rows.is_none() {
            provenance = part.provenance;
            rows = Some(Rows::new(args.output, part.columns)?);
        }
        if let Some(rows) = &mut rows {
            for row in &part.rows {
                rows.push(&row.values)?;
            }
        }
    }
    if let Some(rows) = rows {
        let count = rows.finish()?;
        eprintln!("{count} row{}", if count == 1 { "" } else { "s" });
    }
    for one in &provenance {
        eprintln!("{}", describe(one));
    }
    Ok(())
}

/// Where an answer comes from, in one line.
pub(super) fn describe(provenance: &Provenance) -> String {
    let positions: u64 = provenance.partitions.iter().map(|p| p.offset).sum();
    let watermark = provenance.partitions.iter().filter_map(|p| p.watermark_micros).min();
    let watermark =
        watermark.map_or_else(|| "none yet".to_owned(), |micros| EventTime(micros).to_string());
    format!(
        "{} generation {} epoch {} · {positions} records in {} partition{} · watermark {watermark}",
        provenance.view,
        provenance.generation,
        provenance.epoch,
        provenance.partitions.len(),
        if provenance.partitions.len() == 1 { "" } else { "s" },
    )
}
