//! The ingest service as a process of its own.

fn main() -> std::process::ExitCode {
    headwater_service::service_main::<headwater_ingest::Ingest>()
}
