use std::io;

use clap::CommandFactory;

use crate::{cli::Cli, failure::Result};

pub(super) fn run(shell: clap_complete::Shell) -> Result {
    clap_complete::generate(shell, &mut Cli::command(), "headwater", &mut io::stdout());
    Ok(())
}
