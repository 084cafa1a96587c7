use headwater_proto::query::v1::WatchRequest;

use super::query::describe;
use crate::{
    cli::{Output, WatchArgs},
    client::Server,
    failure::{Failure, Result},
    output::Rows,
};

pub(super) async fn run(server: &Server, args: WatchArgs) -> Result {
    if !matches!(args.output, Output::Ndjson | Output::Csv) {
        return Err(Failure::usage("a watch has no end: use -o ndjson or -o csv"));
    }
    let request = WatchRequest { view: args.view, initial: args.initial };
    let mut changes = server.query().watch(request).await?.into_inner();
    let mut rows: Option<Rows> = None;
    let mut generation = String::new();
    loop {
        let part = tokio::select! {
            part = changes.message() => part?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(part) = part else { return Ok(()) };
        if !part.columns.is_empty() {
            if let Some(rows) = rows.take() {
                rows.finish()?;
            }
            rows = Some(Rows::new(args.output, part.columns)?);
        }
        if let Some(provenance) =
            part.provenance.filter(|provenance| provenance.generation != generation)
        {
            eprintln!("{}", describe(&provenance));
            generation = provenance.generation;
        }
        if let Some(rows) = &mut rows {
            for row in &part.rows {
                rows.push(&row.values)?;
            }
            rows.flush()?;
        }
    }
}
