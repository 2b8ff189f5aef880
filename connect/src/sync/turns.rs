//! Runs a sync in one of several processes: where its turn is.
//!
//! Each sync is in a line of its own, by its name. So workers need not have the same file, a sync that is added to a file
//! is taken up by the workers that know it, and when a worker goes its syncs are dealt to those that stand by.
//!
//! A sync runs only in its turn. When the turn is taken away it is stopped in order before another process gets it; when
//! the turn was lost it is dropped, and the fence of its writers, and of its target, keeps what is under way from doing harm.

use std::{sync::Arc, time::Duration};

use tidemill_core::{
    clock::Clock,
    log::{Held, Session, Turn},
};
use tokio::sync::watch;

use super::{
    control::Control,
    feed::pause,
    file::SyncSpec,
    health, owner_of, parked,
    run::{Observer, RunOptions, retry_pause, run},
};
use crate::{Error, ErrorKind, Result};

/// How long a sync that was refused as a fenced one waits for the news that it lost its turn.
const FENCE_TIME: Duration = Duration::from_secs(5);

/// Runs a sync as [`run`] does, whenever it is this process's turn, until `stop` turns true or it must stop. What
/// `options` asks for is done in the first turn, and refused where another process has that.
///
/// # Errors
/// As [`run`]; `Conflict` where something is asked for that only the process can do that runs the sync.
pub async fn run_in_turn(
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    spec: &SyncSpec,
    options: &RunOptions,
    observer: Arc<dyn Observer>,
    control: Arc<Control>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let named = |error: Error| error.context(format!("sync {}", spec.name));
    let mut turn = Turn::of(&*session, &line_of(&spec.name)).await.map_err(named)?;
    let worker = Worker { session, clock, spec, observer, control, stop };
    let result = worker.take_turns(&mut turn, options.clone()).await;
    let_go(turn, &spec.name).await;
    result
}

/// Does something to a sync that no process runs.
///
/// # Errors
/// `Conflict` where a process runs it; those of the work.
pub async fn alone<T>(session: &dyn Session, sync: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut turn = Turn::of(session, &line_of(sync)).await?;
    let done = async {
        if !turn.is_mine().await? {
            return Err(is_elsewhere(sync));
        }
        match turn.hold(work, || {}).await? {
            Held::Ended(done) | Held::LetGo(Some(done)) => done,
            Held::LetGo(None) | Held::Lost => Err(is_elsewhere(sync)),
        }
    };
    let done = done.await;
    let_go(turn, sync).await;
    done
}

/// The name under which workers take turns at a sync.
fn line_of(sync: &str) -> String {
    format!("sync.{sync}")
}

fn is_elsewhere(sync: &str) -> Error {
    Error::conflict(format!(
        "sync {sync} is run by another process: stop that first, and type this again (one that was killed keeps it for 10 s)"
    ))
}

async fn let_go(turn: Turn, sync: &str) {
    if let Err(error) = turn.release().await {
        tracing::warn!(sync, %error, "the turn is free only after its session time");
    }
}

struct Worker<'a> {
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    spec: &'a SyncSpec,
    observer: Arc<dyn Observer>,
    control: Arc<Control>,
    stop: watch::Receiver<bool>,
}

impl Worker<'_> {
    async fn take_turns(mut self, turn: &mut Turn, mut options: RunOptions) -> Result<()> {
        let asked = options.once || options.replace || !options.recopy.is_empty();
        let (mut failures, mut has_begun) = (0, false);
        loop {
            if !self.await_turn(turn, asked && !has_begun).await? {
                return Ok(());
            }
            let again = match self.run(turn, &options).await? {
                Held::Ended(Ok(())) => return Ok(()),
                Held::Ended(Err(error)) => Some(error),
                Held::LetGo(Some(Err(error))) => {
                    tracing::warn!(sync = self.spec.name, %error, "the sync was let go after an error");
                    None
                }
                Held::LetGo(_) | Held::Lost => None,
            };
            match again {
                None => failures = 0,
                Some(error) if error.kind() == ErrorKind::Conflict && turn.is_over_within(FENCE_TIME).await? => {}
                // The log, or its writer, is not there any more: nothing that a person has to decide.
                Some(error) if self.is_passing(&error, asked && !has_begun).await => {
                    failures += 1;
                    self.observer.begins_again(&error);
                    pause(&mut self.stop, retry_pause(failures)).await;
                }
                Some(error) => return Err(error),
            }
            (options, has_begun) = (RunOptions::default(), true);
        }
    }

    /// Waits for the turn; false where the sync is to stop.
    async fn await_turn(&mut self, turn: &mut Turn, asked: bool) -> Result<bool> {
        let mut is_told = false;
        loop {
            let mine = tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return Ok(false),
                mine = turn.is_mine() => mine?,
            };
            if mine {
                return Ok(true);
            }
            if asked {
                return Err(is_elsewhere(&self.spec.name));
            }
            if !std::mem::replace(&mut is_told, true) {
                self.observer.stands_by();
            }
        }
    }

    /// Runs the sync for one turn.
    async fn run(&mut self, turn: &mut Turn, options: &RunOptions) -> Result<Held<Result<()>>> {
        let (tell, told) = watch::channel(false);
        let Self { session, clock, spec, observer, control, stop } = self;
        let (session, clock) = (Arc::clone(session), Arc::clone(clock));
        let mut work = Box::pin(async {
            fence(&*session, &spec.name).await?;
            run(session, clock, spec, options, Arc::clone(observer), Arc::clone(control), told).await
        });
        let work = async {
            tokio::select! {
                ended = &mut work => return ended,
                () = stopped(stop) => {}
            }
            tell.send_replace(true);
            work.await
        };
        turn.hold(work, || _ = tell.send_replace(true)).await
    }

    /// Whether an error passes by itself. One of the first start may be a wrong name: then the databases are not there.
    async fn is_passing(&self, error: &Error, asked: bool) -> bool {
        match error.kind() {
            ErrorKind::Closed => !asked,
            ErrorKind::Unavailable if !asked => {
                let positions = self.session.positions(&owner_of(&self.spec.name)).await;
                positions.map_or(true, |positions| !positions.is_empty())
            }
            _ => false,
        }
    }
}

/// Ends what a worker that died left open: until then nobody can read the log's positions to their end, and a cluster would
/// wait for twice the time that a transaction may take.
async fn fence(session: &dyn Session, sync: &str) -> Result<()> {
    let owners = [owner_of(sync), health::owner_of(sync), parked::owner_of(sync)];
    for writer in futures::future::join_all(owners.iter().map(|owner| session.writer(owner))).await {
        writer?.close().await?;
    }
    Ok(())
}

/// Returns when `stop` turns true; never where nobody is left who could tell.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
