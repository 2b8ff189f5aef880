//! `tidemill`: server, client and shell in one binary.
//!
//! | module | what it does |
//! |---|---|
//! | `cli` | the command line |
//! | `node` | a log that this process owns, and its listeners |
//! | `client` | how every command reaches a log: in this process, over the owner's socket, or over HTTP |
//! | `api` | the HTTP API that all of these answer |
//! | `commands` | what each command does |
//! | `typed` | commands inside messages, as they are to be typed |
//! | `exit` | errors as exit codes |

mod api;
mod cli;
mod client;
mod commands;
mod exit;
mod node;
mod syncs;
mod topics;
mod typed;

use clap::Parser;

/// What is logged unless `TIDEMILL_LOG` says otherwise: our own warnings. What a driver has to say comes in our messages.
const OWN_LOG: &str = "tidemill=warn";

fn main() -> std::process::ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEMILL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(OWN_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into()),
    };
    let result = runtime.block_on(commands::run(cli));
    // A line reader may sit in a blocking read that nothing ends.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
