fn main() -> std::process::ExitCode {
    headwater_service::service_main::<headwater_coordinator::Config>(
        "coordinator",
        "Holds the catalog and runs replays",
    )
}
