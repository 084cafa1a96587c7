//! The query service as a process of its own.

fn main() -> std::process::ExitCode {
    headwater_service::service_main::<headwater_query::Query>()
}
