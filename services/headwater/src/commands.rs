//! The commands, one module each. `plan` is shared by `apply` and `replay plan`.

mod apply;
mod completions;
mod dead_letters;
mod delete;
mod get;
mod ingest;
mod plan;
mod query;
mod replay;
mod status;
mod watch;

use crate::{
    cli::{Cli, Command, ServerArgs},
    client::{Server, Service},
    dev,
    failure::Result,
};

/// Runs the command that was typed.
pub async fn run(cli: Cli) -> Result {
    let servers = &cli.servers;
    match cli.command {
        Command::Dev(args) => dev::run(args).await,
        Command::Completions { shell } => completions::run(shell),
        Command::Apply(args) => {
            on(Service::Coordinator, servers, async |server| apply::run(server, args).await).await
        }
        Command::Delete(args) => {
            on(Service::Coordinator, servers, async |server| delete::run(server, args).await).await
        }
        Command::Get(args) => {
            on(Service::Coordinator, servers, async |server| get::run(server, args).await).await
        }
        Command::Ingest(args) => {
            on(Service::Ingest, servers, async |server| ingest::run(server, args).await).await
        }
        Command::Query(args) => {
            on(Service::Query, servers, async |server| query::run(server, args).await).await
        }
        Command::Watch(args) => {
            on(Service::Query, servers, async |server| watch::run(server, args).await).await
        }
        Command::Replay(command) => {
            replay::check(&command)?;
            on(Service::Coordinator, servers, async |server| replay::run(server, command).await)
                .await
        }
        Command::DeadLetters(command) => {
            on(Service::Ingest, servers, async |server| dead_letters::run(server, command).await)
                .await
        }
        Command::Status(args) => {
            on(Service::Coordinator, servers, async |server| status::run(server, args).await).await
        }
    }
}

/// Runs a command with a connection to this service.
async fn on(
    service: Service,
    servers: &ServerArgs,
    verb: impl AsyncFnOnce(&Server) -> Result,
) -> Result {
    let server = Server::connect(service, servers).await?;
    verb(&server).await.map_err(|failure| server.explain(failure))
}
