//! The processor as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    headwater_service::service_main::<headwater_processor::Config>(
        "processor",
        "Runs the shards of every generation",
    )
}
