//! The ingest service as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    headwater_service::service_main::<headwater_ingest::Config>(
        "ingest",
        "Accepts events into the log",
    )
}
