//! `tidemill start`: owns a log, serves its API over HTTP, runs the syncs that were applied to it.

use std::{io::ErrorKind, process::ExitCode};

use tidemill_core::Error;

use super::stop_signal;
use crate::{
    cli::{HTTP_DEFAULT, Start},
    node::{Node, SERVER_COMMAND},
};

pub async fn run(command: Start) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let node = Node::own(&command.log.data_dir, SERVER_COMMAND).await?;
    let asked = command.listen.as_deref();
    match node.listen(asked.unwrap_or(HTTP_DEFAULT)).await {
        Ok(address) => {
            if !address.ip().is_loopback() {
                eprintln!(
                    "warning: anybody who reaches {address} may read and write: there are no users and rights yet"
                );
            }
            eprintln!("serving {} on http://{address}", command.log.data_dir.display());
        }
        Err(error) if asked.is_none() && error.kind() == ErrorKind::AddrInUse => eprintln!(
            "port {HTTP_DEFAULT} is taken: no HTTP; commands with --data-dir {} work, and --listen HOST:PORT chooses another port",
            command.log.data_dir.display()
        ),
        Err(error) => {
            let address = asked.unwrap_or(HTTP_DEFAULT);
            node.close().await?;
            return Err(Error::unavailable(format!("cannot listen on {address}: {error}")).into());
        }
    }
    node.syncs().serve().await?;
    let _ = stop.wait_for(|stop| *stop).await;
    node.syncs().stop().await;
    node.close().await?;
    eprintln!("stopped");
    Ok(ExitCode::SUCCESS)
}
