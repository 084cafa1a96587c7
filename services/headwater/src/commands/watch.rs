use std::io::{self, Write as _};

use headwater_proto::query::v1::{WatchRequest, WatchResponse};
use serde_json::json;

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
    if args.progress && args.output != Output::Ndjson {
        return Err(Failure::usage("--progress prints lines of JSON: use it with -o ndjson"));
    }
    let WatchArgs { view, initial, from, progress, output } = args;
    let request = WatchRequest {
        view: view.clone(),
        initial,
        resume_token: from.clone().unwrap_or_default(),
    };
    let mut changes = server.query().watch(request).await?.into_inner();
    let mut printer = Printer {
        output,
        progress,
        rows: None,
        generation: String::new(),
        token: from.unwrap_or_default(),
    };
    let outcome = loop {
        let part = tokio::select! {
            part = changes.message() => part,
            _ = tokio::signal::ctrl_c() => Ok(None),
        };
        match part {
            Ok(Some(part)) => {
                if let Err(failure) = printer.print(part) {
                    break Err(failure);
                }
            }
            Ok(None) => break Ok(()),
            Err(status) => break Err(status.into()),
        }
    };
    match printer.token.as_str() {
        "" => eprintln!(
            "not all rows were printed; begin again with: headwater watch {view} --initial"
        ),
        token => eprintln!("go on from here with: headwater watch {view} --from {token}"),
    }
    outcome
}

/// Prints the parts of a watch.
struct Printer {
    output: Output,
    progress: bool,
    rows: Option<Rows>,
    generation: String,
    /// Covers all rows that are printed. Empty while all rows of a generation are printed.
    token: String,
}

impl Printer {
    fn print(&mut self, part: WatchResponse) -> Result {
        let WatchResponse { columns, rows: values, provenance, reset, resume_token } = part;
        if !columns.is_empty() {
            if let Some(rows) = self.rows.take() {
                rows.finish()?;
            }
            self.rows = Some(Rows::new(self.output, columns)?);
        }
        if let Some(provenance) = &provenance
            && provenance.generation != self.generation
        {
            eprintln!("{}", describe(provenance));
            if reset {
                eprintln!("all rows of this generation follow");
            }
            self.generation.clone_from(&provenance.generation);
        }
        if reset && self.progress {
            self.line(&json!({ "$reset": self.generation }))?;
        }
        if let Some(rows) = &mut self.rows {
            for row in &values {
                rows.push(&row.values)?;
            }
            rows.flush()?;
        }
        if self.token != resume_token {
            if self.progress && !resume_token.is_empty() {
                self.line(&json!({ "$resume_token": resume_token }))?;
            }
            self.token = resume_token;
        }
        Ok(())
    }

    /// Prints a line between rows, which are flushed.
    fn line(&self, line: &serde_json::Value) -> Result {
        writeln!(io::stdout(), "{line}")?;
        Ok(io::stdout().flush()?)
    }
}
