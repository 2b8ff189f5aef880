//! What each command does.

mod bench;
mod consume;
mod demo;
mod produce;
mod progress;
mod sql;
mod start;
mod sync;
mod topic;

use std::process::ExitCode;

use tokio::sync::watch;

use crate::cli::{Bench, Cli, Command};

pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Sync(sync) => sync::run(sync).await,
        Command::Sql(sql) => sql::run(sql).await,
        Command::Topic(topic) => topic::run(topic).await,
        Command::Produce(produce) => produce::run(produce).await,
        Command::Consume(consume) => consume::run(consume).await,
        Command::Start(start) => start::run(start).await,
        Command::Demo(demo) => demo::run(demo).await,
        Command::Bench(Bench::Log { dir, partitions, seconds, record_bytes, batch_records }) => {
            bench::run(bench::Plan { dir, partitions, seconds, record_bytes, batch_records }).await
        }
    }
}

/// Turns true with the first SIGINT or SIGTERM; the second ends the process at once.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (told, stop) = watch::channel(false);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if first {
                let _ = told.send(true);
            } else {
                std::process::exit(130);
            }
        }
    });
    Ok(stop)
}

/// Writes to standard output; a reader that went away ends the command quietly.
fn print_bytes(bytes: &[u8]) -> anyhow::Result<bool> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}
