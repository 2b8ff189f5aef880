//! `tidemill sync`.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use axum::http::Method;
use futures::future::join_all;
use tidemill_connect::{
    command::shell_word,
    sync::{
        check::refused_beside,
        file::{SyncSpec, load, select},
        known::Known,
        recopy::resolve_recopy,
        release::release,
        remove::{remove, remove_capture},
        run::{Observer, RunOptions},
        turns::alone,
    },
};
use tidemill_core::{
    Error,
    log::{Caller, Log},
};

mod check;
mod over;
mod plans;
mod served;
mod status;
mod verify;

use self::over::{Over, cluster};
use super::{progress::Progress, reach_existing, stop_signal};
use crate::{
    cli::{DATA_DIR_DEFAULT, Owned, Sync, SyncFile, Target},
    exit::{self, ConfigFault},
    node::{Node, SERVER_COMMAND, has_log},
    typed::Typed,
};

pub async fn run(command: Sync) -> anyhow::Result<ExitCode> {
    let typed = typed(&command);
    run_command(command).await.map_err(|error| typed.error(error))
}

/// How the commands are typed that the errors of a command name.
fn typed(command: &Sync) -> Typed {
    let known = |data_dir: &Option<PathBuf>| {
        data_dir.clone().or_else(log_here).map_or_else(Typed::of_unknown, |data_dir| Typed::of_folder(&data_dir))
    };
    match command {
        Sync::Run { file, log, .. } => Typed::of(log).file(&file.path),
        Sync::Check { file, data_dir } | Sync::Verify { file, data_dir, .. } | Sync::Release { file, data_dir, .. } => {
            known(data_dir).file(&file.path)
        }
        Sync::Plan { file } => Typed::of_unknown().file(&file.path),
        Sync::Apply { file, log, .. }
        | Sync::Retry { file, log }
        | Sync::Skip { file, log, .. }
        | Sync::Rm { file, log, .. } => Typed::by(log).file(&file.path),
        Sync::Status { file, log, .. } => match file {
            Some(file) => Typed::by(log).file(file),
            None => Typed::by(log),
        },
    }
}

async fn run_command(mut command: Sync) -> anyhow::Result<ExitCode> {
    if let Sync::Check { data_dir, .. } | Sync::Verify { data_dir, .. } | Sync::Release { data_dir, .. } = &mut command
    {
        *data_dir = data_dir.take().or_else(log_here);
    }
    match command {
        Sync::Run { file, once, recopy, replace, log } => {
            follow(&file, RunOptions { once, recopy, replace }, &log).await
        }
        Sync::Check { file, data_dir } => check::run(&file, data_dir.as_deref()).await,
        Sync::Plan { file } => plans::show(&read_and_find_passwords(&file)?).await,
        Sync::Apply { file, recopy, replace, log } => served::apply(&file, recopy, replace, &log).await,
        Sync::Status { file, syncs, output, log } => status::run(file.as_deref(), &syncs, output, &log).await,
        Sync::Retry { file, log } => served::retry(&file, None, &log).await,
        Sync::Skip { file, key, log } => served::retry(&file, Some(&key), &log).await,
        Sync::Verify { file, wait, data_dir } => verify::run(&file, wait, data_dir.as_deref()).await,
        Sync::Release { file, table, data_dir } => {
            let typed = Told::of(data_dir.as_deref()).await?.typed(&file, data_dir.as_deref());
            let done = release(&read(&file)?, &table).await?;
            done.iter().for_each(|line| say!("{}", typed.text(line)));
            Ok(ExitCode::SUCCESS)
        }
        Sync::Rm { file, force, log } => forget(&file, force, &log).await,
    }
}

/// The log that other commands would take without `--data-dir`, if there is one.
fn log_here() -> Option<PathBuf> {
    let folder = PathBuf::from(DATA_DIR_DEFAULT);
    has_log(&folder).then_some(folder)
}

/// The syncs of a file that a command is about.
fn read(file: &SyncFile) -> anyhow::Result<Vec<SyncSpec>> {
    let specs = load(&file.path).map_err(ConfigFault)?;
    Ok(select(specs, &file.syncs)?)
}

/// Reads a file whose databases are connected to from here.
fn read_and_find_passwords(file: &SyncFile) -> anyhow::Result<Vec<SyncSpec>> {
    let specs = read(file)?;
    find_passwords(&specs)?;
    Ok(specs)
}

fn find_passwords(specs: &[SyncSpec]) -> anyhow::Result<()> {
    Ok(specs.iter().try_for_each(SyncSpec::check_passwords).map_err(ConfigFault)?)
}

async fn follow(file: &SyncFile, options: RunOptions, log: &Owned) -> anyhow::Result<ExitCode> {
    let (specs, replace) = (read_and_find_passwords(file)?, options.replace);
    let mut stop = stop_signal()?;
    if let Some(url) = &log.url {
        let result = run_specs(&Over::Cluster(&*cluster(url).await?), &specs, &options, &stop, log).await;
        return told_end(result?, *stop.borrow() && !options.once);
    }
    let node = match Node::open(&log.data_dir, &format!("sync run {}", file.path.display())).await? {
        Ok(node) => node,
        Err(owner) if owner.is_server() && !options.once => {
            let refusal = owner.refusal(&log.data_dir);
            let options = options.recopy.iter().map(|table| format!(" --recopy {}", shell_word(table)));
            let only = file.syncs.iter().map(|sync| format!(" --sync {}", shell_word(sync)));
            let options: String = only.chain(options).chain(replace.then(|| " --replace".to_owned())).collect();
            return Err(
                Error::conflict(format!("{refusal}; to let it run them: tidemill sync apply FILE{options}")).into()
            );
        }
        Err(owner) => return Err(owner.refusal(&log.data_dir).into()),
    };
    let result = run_specs(&Over::Node(&node), &specs, &options, &stop, log).await;
    let stopped = *stop.borrow_and_update();
    // Whatever happened, the log is closed in order first.
    node.close().await?;
    told_end(result?, stopped && !options.once)
}

fn told_end(failed: Option<ExitCode>, stopped: bool) -> anyhow::Result<ExitCode> {
    if stopped && failed.is_none() {
        eprintln!("stopped; start the same command again to go on");
    }
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// Runs all syncs of a file to their end. One that fails is told at once, and the others go on; the code of the first.
async fn run_specs(
    over: &Over<'_>,
    specs: &[SyncSpec],
    options: &RunOptions,
    stop: &tokio::sync::watch::Receiver<bool>,
    log: &Owned,
) -> anyhow::Result<Option<ExitCode>> {
    let recopy = resolve_recopy(&*over.session("sync run").await?, specs, &options.recopy).await?;
    let options = &RunOptions { recopy, ..options.clone() };
    // Syncs that begin at one moment do not see each other in the log.
    let refused = match options.once {
        true => BTreeMap::new(),
        false => refused_beside(specs, &Known::of(&*over.session("sync run").await?).await?).await,
    };
    let refused = RefCell::new(refused);
    let progress = Progress::new(options.once);
    let failed = RefCell::new(None);
    let runs = specs.iter().map(|spec| {
        let (shown, stop, failed) = (Arc::new(progress.of(&spec.name)), stop.clone(), &failed);
        let refused = refused.borrow_mut().remove(&spec.name);
        async move {
            let run = async {
                if let Some(refused) = refused {
                    return Err(refused.into());
                }
                over.run(spec, options, Arc::clone(&shown) as Arc<dyn Observer>, stop).await
            };
            match run.await {
                Ok(()) => shown.sum_up(),
                Err(error) => {
                    let error = Typed::of(log).file(&spec.file).error(error);
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

/// What a log says to who examines its syncs.
#[derive(Default)]
struct Told {
    known: Known,
    /// Whether a server runs the syncs.
    served: bool,
}

impl Told {
    async fn of(data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let Some(data_dir) = data_dir else { return Ok(Self::default()) };
        let target = Target { data_dir: data_dir.to_owned(), server: None, url: None };
        let client = reach_existing(&target, "sync check").await?;
        let asked = async {
            let known = serde_json::from_value(client.call(Method::GET, "/v1/known", None).await?)?;
            let info = client.call(Method::GET, "/v1/info", None).await?;
            anyhow::Ok(Self { known, served: info["command"] == SERVER_COMMAND })
        };
        let told = asked.await;
        client.close().await?;
        told
    }

    fn typed(&self, file: &SyncFile, data_dir: Option<&Path>) -> Typed {
        data_dir.map_or_else(Typed::of_unknown, Typed::of_folder).file(&file.path).served(self.served)
    }
}

async fn forget(file: &SyncFile, force: bool, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    if log.server.is_some() {
        return served::remove(&specs, force, log).await;
    }
    if let Some(url) = &log.url {
        return forget_over_cluster(&*cluster(url).await?, &specs, force, log).await;
    }
    if !has_log(&log.data_dir) {
        return forget_without_log(&specs, force, log).await;
    }
    let node = match Node::open(&log.data_dir, &format!("sync rm {}", file.path.display())).await? {
        Ok(node) => node,
        // A server that runs the syncs removes them itself.
        Err(owner) if owner.is_server() => return served::remove(&specs, force, log).await,
        Err(owner) => return Err(owner.refusal(&log.data_dir).into()),
    };
    let result = async {
        find_passwords(&specs)?;
        let mut failed = None;
        for spec in &specs {
            let removed = async {
                let done = remove(node.session("sync rm").await?, spec, force).await?;
                // A server that starts later must not begin it anew.
                node.syncs().forget(&spec.name).await?;
                Ok(done)
            };
            told(spec, removed.await, log, &mut failed);
        }
        anyhow::Ok(failed)
    };
    let result = result.await;
    node.close().await?;
    Ok(result?.unwrap_or(ExitCode::SUCCESS))
}

/// A sync that a process runs is not removed.
async fn forget_over_cluster(
    cluster: &dyn Log,
    specs: &[SyncSpec],
    force: bool,
    log: &Target,
) -> anyhow::Result<ExitCode> {
    find_passwords(specs)?;
    let session = cluster.session(Caller::internal("sync rm")).await?;
    let mut failed = None;
    for spec in specs {
        let removed = alone(&*session, &spec.name, remove(Arc::clone(&session), spec, force)).await;
        told(spec, removed.map_err(anyhow::Error::from), log, &mut failed);
    }
    Ok(failed.unwrap_or(ExitCode::SUCCESS))
}

/// Tells what was removed of one sync of a file, or why it was not: the others are removed all the same.
fn told(spec: &SyncSpec, removed: anyhow::Result<Vec<String>>, log: &Target, failed: &mut Option<ExitCode>) {
    match removed {
        Ok(done) if done.is_empty() => say!("sync {}: nothing to remove", spec.name),
        Ok(done) => done.iter().for_each(|line| say!("{line}")),
        Err(error) => {
            let error = Typed::by(log).file(&spec.file).error(error);
            eprintln!("error: sync {}: {error:#}", spec.name);
            failed.get_or_insert(ExitCode::from(exit::code(&error)));
        }
    }
}

/// Without its log only the capture can be removed; that is asked for, since the log may lie elsewhere.
async fn forget_without_log(specs: &[SyncSpec], force: bool, log: &Target) -> anyhow::Result<ExitCode> {
    let folder = log.data_dir.display();
    if !force {
        return Err(Error::not_found(format!(
            "no log in {folder}; --data-dir DIR names the folder of one; if it is lost, --force removes the capture from the source"
        ))
        .into());
    }
    find_passwords(specs)?;
    for spec in specs {
        remove_capture(spec).await?.iter().for_each(|line| say!("{line}"));
    }
    say!("no log in {folder}: nothing removed there, nor in the target");
    Ok(ExitCode::SUCCESS)
}
