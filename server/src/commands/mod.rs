//! What each command does.

/// As `println!`, for commands that go on when nobody reads.
macro_rules! say {
    ($($told:tt)*) => { $crate::commands::say_line(format_args!($($told)*)) };
}

mod bench;
mod consume;
mod demo;
mod disk;
mod doctor;
mod group;
mod log;
mod pattern;
mod produce;
mod progress;
mod sql;
mod start;
mod sync;
mod topic;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use tidemill_core::Error;
use tokio::sync::watch;

use crate::{
    cli::{Bench, Cli, Command, Target},
    client::Client,
    node::require_log,
};

/// Signals that come this soon after the first are the same wish: a terminal and a supervisor may both send one.
const SAME_WISH: Duration = Duration::from_secs(1);

pub async fn run(mut cli: Cli) -> anyhow::Result<ExitCode> {
    cli.command.place()?;
    match cli.command {
        Command::Sync(sync) => sync::run(sync).await,
        Command::Sql(sql) => sql::run(sql).await,
        Command::Topic(topic) => topic::run(topic).await,
        Command::Produce(produce) => produce::run(produce).await,
        Command::Consume(consume) => consume::run(consume).await,
        Command::Start(start) => start::run(start).await,
        Command::Demo(demo) => demo::run(demo).await,
        Command::Group(group) => group::run(group).await,
        Command::Log(log) => log::run(log).await,
        Command::Doctor(doctor) => doctor::run(&doctor),
        Command::Bench(Bench::Log { dir, partitions, seconds, record_bytes, batch_records }) => {
            bench::run(bench::Plan { dir, partitions, seconds, record_bytes, batch_records }).await
        }
    }
}

/// Turns true with the first SIGINT or SIGTERM; one that comes more than a second later ends the process at once.
fn stop_signal() -> anyhow::Result<watch::Receiver<bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (told, stop) = watch::channel(false);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            if first.is_some_and(|first| first.elapsed() >= SAME_WISH) {
                eprintln!("interrupted again: ended without waiting");
                std::process::exit(130);
            }
            first = first.or_else(|| Some(Instant::now()));
            let _ = told.send(true);
        }
    });
    Ok(stop)
}

/// Reaches a log for a command that writes: where there is none, it is made.
async fn reach(target: &Target, command: &str) -> anyhow::Result<Client> {
    if target.server.as_deref().is_some_and(|server| server.starts_with("https://")) {
        return Err(Error::invalid("https is not supported; write http://HOST:PORT").into());
    }
    Client::connect(target, command).await
}

/// Reaches a log that must be there already.
async fn reach_existing(target: &Target, command: &str) -> anyhow::Result<Client> {
    if target.server.is_none() {
        require_log(&target.data_dir)?;
    }
    reach(target, command).await
}

/// A number of things: `1 row`, `2 rows`.
fn count(number: u64, noun: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{end}")
}

/// Writes a line to standard output. A reader that went away keeps no command from its work.
fn say_line(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
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
