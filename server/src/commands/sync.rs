//! `tidemill sync`.

use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

use futures::future::try_join_all;
use tidemill_connect::{
    sqlite::Level,
    sync::{
        check::check,
        file::{SyncSpec, load},
        remove::remove,
        run::{RunOptions, run as run_sync, shell_word},
        verify::verify,
    },
};
use tidemill_core::Error;

use super::{progress::Progress, stop_signal};
use crate::{
    cli::{Owned, Sync},
    exit::ConfigFault,
    node::Node,
};

pub async fn run(command: Sync) -> anyhow::Result<ExitCode> {
    match command {
        Sync::Run { file, once, recopy, log } => follow(&file, RunOptions { once, recopy }, &log).await,
        Sync::Check { file } => examine(&file),
        Sync::Verify { file, wait } => compare(&file, wait).await,
        Sync::Rm { file, force, log } => forget(&file, force, &log).await,
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<SyncSpec>> {
    load(file).map_err(|error| ConfigFault(error).into())
}

async fn follow(file: &Path, options: RunOptions, log: &Owned) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    let mut stop = stop_signal()?;
    let node = Node::own(&log.data_dir, &format!("sync run {}", file.display())).await?;
    let result = run_specs(&node, &specs, &options, &stop).await.map_err(|error| with_data_dir(error, file, log));
    let stopped = *stop.borrow_and_update();
    // Whatever happened, the log is closed in order first.
    node.close().await?;
    result?;
    if stopped && !options.once {
        eprintln!("stopped; start the same command again to go on");
    }
    Ok(ExitCode::SUCCESS)
}

/// The command that an error names works on the same log.
fn with_data_dir(error: anyhow::Error, file: &Path, log: &Owned) -> anyhow::Error {
    let Some(known) = error.downcast_ref::<Error>() else { return error };
    let command = format!("tidemill sync run {}", shell_word(&file.to_string_lossy()));
    let (text, folder) = (known.to_string(), shell_word(&log.data_dir.to_string_lossy()));
    match text.contains(&command) {
        true => Error::new(known.kind(), text.replace(&command, &format!("{command} --data-dir {folder}"))).into(),
        false => error,
    }
}

async fn run_specs(
    node: &Node,
    specs: &[SyncSpec],
    options: &RunOptions,
    stop: &tokio::sync::watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let progress = Progress::new(options.once);
    let runs = specs.iter().map(|spec| {
        let (observer, stop) = (Arc::new(progress.of(&spec.name)), stop.clone());
        async move {
            let session = node.session(&format!("sync/{}", spec.name)).await?;
            let clock = Arc::clone(node.engine().clock());
            run_sync(session, clock, spec, options, observer, stop).await?;
            anyhow::Ok(())
        }
    });
    let result = try_join_all(runs).await;
    progress.finish(result.is_ok());
    result.map(drop)
}

fn examine(file: &Path) -> anyhow::Result<ExitCode> {
    let mut refused = false;
    for spec in read(file)? {
        println!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        for finding in check(&spec)? {
            let mark = match finding.level {
                Level::Ok => "ok    ",
                Level::Warn => "warn  ",
                Level::Refuse => "refuse",
            };
            println!("  {mark} {}: {}", finding.subject, finding.message);
            if let Some(cure) = finding.cure {
                println!("         {cure}");
            }
            refused |= finding.level == Level::Refuse;
        }
    }
    Ok(if refused { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

async fn compare(file: &Path, wait: f64) -> anyhow::Result<ExitCode> {
    let mut equal = true;
    for spec in read(file)? {
        let name = spec.name.clone();
        let patience = Duration::try_from_secs_f64(wait).unwrap_or_default();
        for verdict in verify(spec, patience).await? {
            if verdict.is_equal() {
                println!("ok      {name}.{}: {} rows equal", verdict.table, verdict.diff.rows);
                continue;
            }
            equal = false;
            let diff = &verdict.diff;
            println!(
                "differs {name}.{}: {} rows looked at, {} missing, {} only in the target, {} differ",
                verdict.table, diff.rows, diff.missing_rows, diff.extra_rows, diff.differing_rows
            );
            for key in verdict.remaining.iter().take(10) {
                println!("        key {key}");
            }
        }
    }
    println!("{}; nothing was normalised", if equal { "equal" } else { "not equal" });
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn forget(file: &Path, force: bool, log: &Owned) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    let node = Node::own(&log.data_dir, &format!("sync rm {}", file.display())).await?;
    let result = async {
        for spec in &specs {
            let session = node.session("sync rm").await?;
            for line in remove(session, spec, force).await? {
                println!("{line}");
            }
        }
        anyhow::Ok(())
    };
    let result = result.await;
    node.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}
