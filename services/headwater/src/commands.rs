//! One module per verb.

mod apply;
mod completions;
mod dead_letters;
mod get;
mod ingest;
mod query;
mod replay;
mod status;
mod watch;

use crate::{
    cli::{Cli, Command},
    client::Server,
    dev,
    failure::Result,
};

/// Does what was typed.
pub async fn run(cli: Cli) -> Result {
    let server = || Server::connect(&cli.server);
    match cli.command {
        Command::Dev(args) => dev::run(args).await,
        Command::Completions { shell } => completions::run(shell),
        Command::Apply(args) => apply::run(&server().await?, args).await,
        Command::Get(args) => get::run(&server().await?, args).await,
        Command::Ingest(args) => ingest::run(&server().await?, args).await,
        Command::Query(args) => query::run(&server().await?, args).await,
        Command::Watch(args) => watch::run(&server().await?, args).await,
        Command::Replay(command) => replay::run(&cli.server, command).await,
        Command::DeadLetters(command) => dead_letters::run(&server().await?, command).await,
        Command::Status(args) => status::run(&server().await?, args).await,
    }
}
