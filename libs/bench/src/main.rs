//! Prints the figures as rows of a Markdown table. Run it with `scripts/bench`.

use std::{env, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use headwater_bench::{
    engine, events,
    figures::{Figure, HEAD},
    ingest, reads,
    server::{self, Dev},
    start,
};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("cannot start threads: {error}");
                return ExitCode::FAILURE;
            }
        };
    match runtime.block_on(run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether every required bound holds.
async fn run(arguments: &[&str]) -> anyhow::Result<bool> {
    match arguments {
        ["echo", port] => {
            reads::serve_echo(port.parse().context("the port is not a number")?).await?;
            Ok(true)
        }
        ["head"] => {
            println!("{HEAD}");
            Ok(true)
        }
        ["engine"] => Ok(show(&engine::measure()?)),
        ["serve"] => serve().await,
        _ => bail!("run scripts/bench"),
    }
}

/// Runs all measurements that need a server, on one data directory.
async fn serve() -> anyhow::Result<bool> {
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("data");
    let dev = Dev::start(&data)?;
    server::apply(&dev, directory.path(), "stream.sql", events::STREAM)?;
    let (figures, sent) = ingest::measure(&dev).await?;
    let mut good = show(&figures);

    // The view is created after the ingest measurement, and reads the events that are then in the
    // log.
    server::apply(&dev, directory.path(), "view.sql", events::VIEW)?;
    caught_up(&dev, sent).await?;
    good &= show(&reads::measure(&dev).await?);
    if let Some(peak) = dev.peak_memory() {
        eprintln!("headwater dev used {peak:.0} MiB at most in these measurements");
    }
    dev.stop()?;
    Ok(good & show(&start::measure(&data)?))
}

/// Waits until the view has counted all events but the filtered ones.
async fn caught_up(dev: &Dev, sent: u64) -> anyhow::Result<()> {
    let expected = (sent / 100 * 99).to_string();
    let mut last = String::new();
    for _ in 0..600 {
        let answer =
            dev.run(&["query", "SELECT sum(orders) AS n FROM spend_per_minute", "-o", "csv"]);
        last = answer.unwrap_or_else(|error| error.to_string());
        if last.lines().nth(1) == Some(expected.as_str()) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("the view has not caught up with {sent} events; it says:\n{last}")
}

fn show(figures: &[Figure]) -> bool {
    figures.iter().for_each(|figure| println!("{figure}"));
    figures.iter().all(Figure::is_good)
}
