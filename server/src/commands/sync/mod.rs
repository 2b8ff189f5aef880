//! `tidemill sync`.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use axum::http::Method;
use futures::future::join_all;
use tidemill_connect::{
    command::shell_word,
    connector::Level,
    converter::TopicSchema,
    sync::{
        check::check,
        file::{SyncSpec, load},
        recopy::resolve_recopy,
        release::release,
        remove::{remove, remove_capture},
        run::{RunOptions, run as run_sync},
    },
};
use tidemill_core::Error;

mod plans;
mod served;
mod verify;

use super::{progress::Progress, reach_existing, stop_signal};
use crate::{
    cli::{DATA_DIR_DEFAULT, Owned, Sync, Target},
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
    let data_dir = |log: &Owned| Typed::of_folder(&log.data_dir);
    let known = |data_dir: &Option<PathBuf>| {
        data_dir.clone().or_else(log_here).map_or_else(Typed::of_unknown, |data_dir| Typed::of_folder(&data_dir))
    };
    match command {
        Sync::Run { file, log, .. } => data_dir(log).file(file),
        Sync::Check { file, data_dir } | Sync::Verify { file, data_dir, .. } | Sync::Release { file, data_dir, .. } => {
            known(data_dir).file(file)
        }
        Sync::Plan { file } => Typed::of_unknown().file(file),
        Sync::Apply { file, log, .. }
        | Sync::Retry { file, log }
        | Sync::Skip { file, log, .. }
        | Sync::Rm { file, log, .. } => Typed::by(log).file(file),
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
        Sync::Check { file, data_dir } => examine(&file, data_dir.as_deref()).await,
        Sync::Plan { file } => plans::show(&read_and_find_passwords(&file)?).await,
        Sync::Apply { file, recopy, replace, log } => served::apply(&file, recopy, replace, &log).await,
        Sync::Status { file, output, log } => served::status(file.as_deref(), output, &log).await,
        Sync::Retry { file, log } => served::retry(&file, None, &log).await,
        Sync::Skip { file, key, log } => served::retry(&file, Some(&key), &log).await,
        Sync::Verify { file, wait, data_dir } => verify::run(&file, wait, data_dir.as_deref()).await,
        Sync::Release { file, table, data_dir } => {
            let typed = Known::of(data_dir.as_deref()).await?.typed(&file, data_dir.as_deref());
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

fn read(file: &Path) -> anyhow::Result<Vec<SyncSpec>> {
    load(file).map_err(|error| ConfigFault(error).into())
}

/// Reads a file whose databases are connected to from here.
fn read_and_find_passwords(file: &Path) -> anyhow::Result<Vec<SyncSpec>> {
    let specs = read(file)?;
    find_passwords(&specs)?;
    Ok(specs)
}

fn find_passwords(specs: &[SyncSpec]) -> anyhow::Result<()> {
    Ok(specs.iter().try_for_each(SyncSpec::check_passwords).map_err(ConfigFault)?)
}

async fn follow(file: &Path, options: RunOptions, log: &Owned) -> anyhow::Result<ExitCode> {
    let (specs, replace) = (read_and_find_passwords(file)?, options.replace);
    let mut stop = stop_signal()?;
    let node = match Node::open(&log.data_dir, &format!("sync run {}", file.display())).await? {
        Ok(node) => node,
        Err(owner) if owner.is_server() && !options.once => {
            let refusal = owner.refusal(&log.data_dir);
            let options = options.recopy.iter().map(|table| format!(" --recopy {}", shell_word(table)));
            let options: String = options.chain(replace.then(|| " --replace".to_owned())).collect();
            return Err(
                Error::conflict(format!("{refusal}; to let it run them: tidemill sync apply FILE{options}")).into()
            );
        }
        Err(owner) => return Err(owner.refusal(&log.data_dir).into()),
    };
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

/// Runs all syncs of a file to their end. One that fails is told at once, and the others go on; the code of the first.
async fn run_specs(
    node: &Node,
    specs: &[SyncSpec],
    options: &RunOptions,
    stop: &tokio::sync::watch::Receiver<bool>,
    log: &Owned,
) -> anyhow::Result<Option<ExitCode>> {
    let recopy = resolve_recopy(&*node.session("sync run").await?, specs, &options.recopy).await?;
    let options = &RunOptions { recopy, ..options.clone() };
    let progress = Progress::new(options.once);
    let failed = RefCell::new(None);
    let runs = specs.iter().map(|spec| {
        let (shown, stop, failed) = (Arc::new(progress.of(&spec.name)), stop.clone(), &failed);
        async move {
            let run = async {
                let session = node.session(&format!("sync/{}", spec.name)).await?;
                let clock = Arc::clone(node.engine().clock());
                let (observer, control) = (Arc::clone(&shown), Arc::default());
                node.syncs().register(spec, &control);
                anyhow::Ok(run_sync(session, clock, spec, options, observer, control, stop).await?)
            };
            match run.await {
                Ok(()) => shown.sum_up(),
                Err(error) => {
                    let error = Typed::of_folder(&log.data_dir).file(&spec.file).error(error);
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
struct Known {
    /// The schemas of its topics, as far as syncs write them.
    schemas: Vec<TopicSchema>,
    /// Its identity; empty where none is named.
    log_id: String,
    /// Whether a server runs the syncs.
    served: bool,
}

impl Known {
    async fn of(data_dir: Option<&Path>) -> anyhow::Result<Self> {
        let Some(data_dir) = data_dir else { return Ok(Self::default()) };
        let target = Target { data_dir: data_dir.to_owned(), server: None };
        let client = reach_existing(&target, "sync check").await?;
        let asked = async {
            let schemas = serde_json::from_value(client.call(Method::GET, "/v1/schemas", None).await?)?;
            let info = client.call(Method::GET, "/v1/info", None).await?;
            let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
            anyhow::Ok(Self { schemas, log_id: text("log_id"), served: text("command") == SERVER_COMMAND })
        };
        let known = asked.await;
        client.close().await?;
        known
    }

    fn typed(&self, file: &Path, data_dir: Option<&Path>) -> Typed {
        data_dir.map_or_else(Typed::of_unknown, Typed::of_folder).file(file).served(self.served)
    }
}

async fn examine(file: &Path, data_dir: Option<&Path>) -> anyhow::Result<ExitCode> {
    let specs = read_and_find_passwords(file)?;
    let known = Known::of(data_dir).await?;
    let typed = known.typed(file, data_dir);
    let mut refused = false;
    for spec in specs {
        say!("sync {}: {} -> {}", spec.name, spec.from, spec.to);
        for finding in check(&spec, &known.schemas, &known.log_id).await? {
            let mark = match finding.level {
                Level::Ok => "ok    ",
                Level::Warn => "warn  ",
                Level::Refuse => "refuse",
            };
            say!("  {mark} {}: {}", finding.subject, finding.message);
            if let Some(cure) = finding.cure {
                say!("         {}", typed.text(&cure));
            }
            refused |= finding.level == Level::Refuse;
        }
    }
    Ok(if refused { ExitCode::from(4) } else { ExitCode::SUCCESS })
}

async fn forget(file: &Path, force: bool, log: &Target) -> anyhow::Result<ExitCode> {
    let specs = read(file)?;
    if log.server.is_some() {
        return served::remove(&specs, force, log).await;
    }
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
