//! `tidemill sync`.

use std::{cell::RefCell, path::Path, process::ExitCode, sync::Arc, time::Duration};

use axum::http::Method;
use futures::future::join_all;
use tidemill_connect::{
    command::{shell_word, with_file},
    connector::Level,
    converter::TopicSchema,
    sync::{
        check::check,
        file::{SyncSpec, load},
        release::release,
        remove::{remove, remove_capture},
        run::{RunOptions, check_recopy, run as run_sync},
        verify::{Patience, Verdict, verify_patiently},
    },
};
use tidemill_core::Error;

mod plans;
mod served;

use super::{count, progress::Progress, reach_existing, stop_signal};
use crate::{
    cli::{Owned, Sync, Target},
    exit::{self, ConfigFault},
    node::{Node, has_log},
};

/// How long rows that differ may take to arrive, and how long nothing may arrive, unless the user says otherwise.
const PATIENCE: Patience = Patience { at_most: Duration::from_secs(10), quiet: Duration::from_secs(3) };
/// So many keys of each table that differs are printed.
const PRINTED_KEYS: usize = 10;

pub async fn run(command: Sync) -> anyhow::Result<ExitCode> {
    match command {
        Sync::Run { file, once, recopy, replace, log } => {
            follow(&file, RunOptions { once, recopy, replace }, &log).await
        }
        Sync::Check { file, data_dir } => examine(&file, data_dir.as_deref()).await,
        Sync::Plan { file } => plans::show(&read(&file)?).await,
        Sync::Apply { file, log } => served::apply(&file, &log).await,
        Sync::Status { file, output, log } => served::status(file.as_deref(), output, &log).await,
        Sync::Retry { file, log } => served::retry(&file, None, &log).await,
        Sync::Skip { file, key, log } => served::retry(&file, Some(&key), &log).await,
        Sync::Verify { file, wait } => compare(&file, wait).await,
        Sync::Release { file, table } => {
            let done = release(&read(&file)?, &table).await?;
            done.iter().for_each(|line| println!("{line}"));
            Ok(ExitCode::SUCCESS)
        }
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
    let result = run_specs(&node, &specs, &options, &stop, log).await;
    let stopped = *stop.borrow_and_update();
    // Whatever happened, the log is closed in order first.
    node.close().await?;
    let failed = result?;
    if stopped && !options.once && failed.is_none() {
        eprintln!("stopped; start the same command again to go on");
    }
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// The commands that an error names work on the same log.
fn with_data_dir(error: anyhow::Error, file: &Path, log: &Owned) -> anyhow::Error {
    let Some(known) = error.downcast_ref::<Error>() else { return error };
    let folder = shell_word(&log.data_dir.to_string_lossy());
    Error::new(known.kind(), on_log(&known.to_string(), file, &folder)).into()
}

/// Puts the log's folder into the commands of a message. `DIR` where it is not known: what a command would take by
/// itself may be another log.
fn on_log(text: &str, file: &Path, folder: &str) -> String {
    let file = shell_word(&file.to_string_lossy());
    ["run", "rm"].iter().fold(text.to_owned(), |text, verb| {
        let command = format!("tidemill sync {verb} {file}");
        text.replace(&command, &format!("{command} --data-dir {folder}"))
    })
}

/// Runs all syncs of a file to their end. One that fails is told at once, and the others go on; the code of the first.
async fn run_specs(
    node: &Node,
    specs: &[SyncSpec],
    options: &RunOptions,
    stop: &tokio::sync::watch::Receiver<bool>,
    log: &Owned,
) -> anyhow::Result<Option<ExitCode>> {
    check_recopy(&*node.session("sync run").await?, specs, &options.recopy).await?;
    let progress = Progress::new(options.once);
    let failed = RefCell::new(None);
    let runs = specs.iter().map(|spec| {
        let (shown, stop, failed) = (Arc::new(progress.of(&spec.name)), stop.clone(), &failed);
        async move {
            let run = async {
                let session = node.session(&format!("sync/{}", spec.name)).await?;
                let clock = Arc::clone(node.engine().clock());
                let (observer, control) = (Arc::clone(&shown), Arc::default());
                node.syncs().register(&spec.name, &control);
                anyhow::Ok(run_sync(session, clock, spec, options, observer, control, stop).await?)
            };
            match run.await {
                Ok(()) => shown.sum_up(),
                Err(error) => {
                    let error = with_data_dir(error, &spec.file, log);
                    shown.fail(&error);
                    failed.borrow_mut().get_or_insert(exit::code(&error));
                }
            }
        }
    });
    join_all(runs).await;
    progress.finish();
    Ok(failed.into_inner().map(ExitCode::from))
}

/// The schemas of a log's topics, as far as syncs write them.
async fn schemas(data_dir: &Path) -> anyhow::Result<Vec<TopicSchema>> {
    let target = Target { data_dir: data_dir.to_owned(), server: None };
    let client = reach_existing(&target, "sync check").await?;
    let answer = client.call(Method::GET, "/v1/schemas", None).await;
    client.close().await?;
    Ok(serde_json::from_value(answer?)?)
}

async fn examine(file: &Path, data_dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    let (schemas, log) = match data_dir {
        Some(data_dir) => (schemas(data_dir).await?, Some(Owned { data_dir: data_dir.to_owned() })),
        None => (Vec::new(), None),
    };
    let mut refused = false;
    for spec in specs {
        println!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        for finding in check(&spec, &schemas).await? {
            let mark = match finding.level {
                Level::Ok => "ok    ",
                Level::Warn => "warn  ",
                Level::Refuse => "refuse",
            };
            println!("  {mark} {}: {}", finding.subject, finding.message);
            if let Some(cure) = finding.cure {
                let cure = match &log {
                    Some(log) => with_data_dir(Error::conflict(cure).into(), &spec.file, log).to_string(),
                    None => on_log(&cure, &spec.file, "DIR"),
                };
                println!("         {cure}");
            }
            refused |= finding.level == Level::Refuse;
        }
    }
    Ok(if refused { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

async fn compare(file: &Path, wait: Option<f64>) -> anyhow::Result<ExitCode> {
    let patience = wait.map_or(PATIENCE, |seconds| {
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Patience { at_most: wait, quiet: wait }
    });
    let mut equal = true;
    for spec in read(file)? {
        let (name, file) = (spec.name.clone(), spec.file.clone());
        for verdict in verify_patiently(spec, patience).await? {
            equal &= verdict.is_equal();
            print_verdict(&name, &verdict);
            if !verdict.is_equal() {
                let cure = format!("tidemill sync run FILE --recopy {}", shell_word(&verdict.table));
                println!("        to copy the table anew: {}", on_log(&with_file(&cure, &file), &file, "DIR"));
            }
        }
    }
    println!("{}", if equal { "equal" } else { "not equal" });
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_verdict(sync: &str, verdict: &Verdict) {
    let (table, diff) = (&verdict.table, &verdict.diff);
    if let Some(columns) = &verdict.columns {
        println!("differs {sync}.{table}: other columns, rows not compared: {columns}");
    } else if verdict.is_equal() {
        println!("ok      {sync}.{table}: {} equal", count(diff.rows, "row"));
    } else {
        println!(
            "differs {sync}.{table}: {} looked at, {} missing, {} only in the target, {} differ",
            count(diff.rows, "row"),
            diff.missing_rows,
            diff.extra_rows,
            diff.differing_rows
        );
    }
    verdict.lines(PRINTED_KEYS).iter().for_each(|line| println!("        {line}"));
}

async fn forget(file: &Path, force: bool, log: &Owned) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    if !has_log(&log.data_dir) {
        return forget_without_log(&specs, force, log).await;
    }
    let node = match Node::open(&log.data_dir, &format!("sync rm {}", file.display())).await? {
        Ok(node) => node,
        // A server that runs the syncs removes them itself.
        Err(owner) if owner.is_server() => return served::remove(&specs, force, log).await,
        Err(owner) => return Err(owner.refusal(&log.data_dir).into()),
    };
    let result = async {
        for spec in &specs {
            let session = node.session("sync rm").await?;
            for line in remove(session, spec, force).await? {
                println!("{line}");
            }
        }
        anyhow::Ok(())
    };
    let result = result.await.map_err(|error| with_data_dir(error, file, log));
    node.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

/// Without its log only the capture can be removed; that is asked for, since the log may lie elsewhere.
async fn forget_without_log(specs: &[SyncSpec], force: bool, log: &Owned) -> anyhow::Result<ExitCode> {
    let folder = log.data_dir.display();
    if !force {
        return Err(Error::not_found(format!(
            "no log in {folder}; --data-dir DIR names the folder of one; if it is lost, --force removes the capture from the source"
        ))
        .into());
    }
    for spec in specs {
        remove_capture(spec).await?.iter().for_each(|line| println!("{line}"));
    }
    println!("no log in {folder}: nothing removed there, nor in the target");
    Ok(ExitCode::SUCCESS)
}
