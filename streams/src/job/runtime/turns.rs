//! Runs a job in one of several processes: where its turn is. The others are hot standbys: one of them goes on from the
//! last epoch when the turn comes to it.

use std::{sync::Arc, time::Duration};

use tidemill_core::{
    clock::Clock,
    log::{Held, Session, Turn},
};
use tokio::sync::watch;

use super::{Control, Options, is_ended_within};
use crate::{Error, ErrorKind, Job, Result};

/// How long a job that was refused as a fenced one waits for the news that it lost its turn.
const FENCE_TIME: Duration = Duration::from_secs(5);

impl Job {
    /// Runs a job as [`Job::run`] does, whenever it is this process's turn, until `control` says otherwise: of all processes
    /// that do this with a job of the same name on one log, one runs it. When that goes, another one takes over: at once
    /// where it was told to stop, after the lease's session time of 10 s where it died.
    ///
    /// `make` makes the job anew for each turn; `stands_by` is called when it turns out that another process has it.
    /// [`Control::Stop`] also ends the waiting; [`Control::Drain`] is done in the turn. What `options` reset is reset in the
    /// first turn, and refused where another process runs the job.
    ///
    /// # Errors
    /// As [`Job::run`]; `Conflict` where another process runs a job whose state is to be reset; those of the log's leases.
    ///
    /// # Cancel safety
    /// As [`Job::run`]; the turn comes to another process after the session time, or sooner.
    pub async fn run_in_turn(
        mut make: impl FnMut() -> Job,
        session: Arc<dyn Session>,
        clock: Arc<dyn Clock>,
        options: Options,
        control: watch::Receiver<Control>,
        stands_by: impl FnMut(),
    ) -> Result<()> {
        let job = make();
        let name = job.name.clone();
        let named = |error: Error| error.context(format!("job {name}"));
        // A standby with a fault is to say so before it is needed.
        job.into_task().map_err(named)?;
        let mut turn = Turn::of(&*session, &format!("job.{name}")).await.map_err(named)?;
        let worker = Worker { name: name.clone(), make, session, clock, control, stands_by };
        let result = worker.take_turns(&mut turn, options).await;
        if let Err(error) = turn.release().await {
            tracing::warn!(job = name, %error, "the turn is free only after its session time");
        }
        result
    }
}

struct Worker<M, S> {
    name: String,
    make: M,
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    control: watch::Receiver<Control>,
    stands_by: S,
}

impl<M: FnMut() -> Job, S: FnMut()> Worker<M, S> {
    async fn take_turns(mut self, turn: &mut Turn, mut options: Options) -> Result<()> {
        let mut failures = 0u32;
        loop {
            if !self.await_turn(turn, &options).await? {
                return Ok(());
            }
            let held = self.run(turn, &options).await?;
            options = Options::default();
            match held {
                Held::Ended(Ok(())) => return Ok(()),
                Held::Ended(Err(error)) => {
                    let is_fenced = error.kind() == ErrorKind::Conflict && turn.is_over_within(FENCE_TIME).await?;
                    if !is_fenced && error.kind() != ErrorKind::Closed {
                        return Err(error);
                    }
                    tracing::warn!(job = self.name, %error, "job begins again");
                    let pause = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
                    failures += 1;
                    let _ = is_ended_within(pause, &mut self.control).await;
                }
                Held::LetGo(Some(Err(error))) => {
                    tracing::warn!(job = self.name, %error, "the job was let go after an error");
                }
                Held::LetGo(_) | Held::Lost => failures = 0,
            }
        }
    }

    /// Waits for the turn; false where the job is to stop.
    async fn await_turn(&mut self, turn: &mut Turn, options: &Options) -> Result<bool> {
        let mut is_told = false;
        loop {
            let stopped = async {
                if self.control.wait_for(|wanted| *wanted == Control::Stop).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let mine = tokio::select! {
                biased;
                () = stopped => return Ok(false),
                mine = turn.is_mine() => mine?,
            };
            if mine {
                return Ok(true);
            }
            if let Some(step) = options.reset.first() {
                return Err(Error::conflict(format!(
                    "job {} is run by another process, which keeps the state of step {step}: stop that first (one that was \
                     killed keeps the job for 10 s)",
                    self.name
                )));
            }
            if !std::mem::replace(&mut is_told, true) {
                (self.stands_by)();
            }
        }
    }

    /// Runs the job for one turn.
    async fn run(&mut self, turn: &mut Turn, options: &Options) -> Result<Held<Result<()>>> {
        let (tell, told) = watch::channel(*self.control.borrow_and_update());
        let (session, clock) = (Arc::clone(&self.session), Arc::clone(&self.clock));
        let mut work = Box::pin((self.make)().run(session, clock, options.clone(), told));
        let control = &mut self.control;
        let work = async {
            loop {
                tokio::select! {
                    ended = &mut work => return ended,
                    changed = control.changed() => {
                        if changed.is_err() {
                            return work.await;
                        }
                        let wanted = *control.borrow_and_update();
                        // What was told to let go does so, whatever else is wanted.
                        tell.send_if_modified(|now| {
                            let is_new = *now != Control::Stop && *now != wanted;
                            if is_new {
                                *now = wanted;
                            }
                            is_new
                        });
                    }
                }
            }
        };
        turn.hold(work, || _ = tell.send_replace(Control::Stop)).await
    }
}
