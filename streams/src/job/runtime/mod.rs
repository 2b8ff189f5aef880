//! Runs a task over a log: reads its inputs, hands records to it on a thread that may block, and commits its epochs.
//!
//! | module | what it is |
//! |---|---|
//! | `open` | fences older jobs of the name, makes what is missing, restores what was |
//! | `epochs` | one epoch after the other, each committed while the next one is read |
//! | `reader` | the half that reads and processes |
//! | `turns` | the same in one of several processes, while the others stand by |
//!
//! Output, changelogs and positions of an epoch are one transaction of the job's fenced writer: after any crash the job
//! goes on from the last whole epoch, as if nothing had been.

mod epochs;
mod open;
mod reader;
mod turns;

use std::{sync::Arc, time::Duration};

use tidemill_core::{
    clock::Clock,
    log::{Session, Topic, Writer},
    topic::TopicPartition,
};
use tokio::sync::watch;

use self::reader::Reader;
use super::Job;
use crate::{ErrorKind, Result};

/// What a running job shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Control {
    /// Go on.
    #[default]
    Run,
    /// Stop after the epoch under way. Windows stay open, and a job of this name goes on with them.
    Stop,
    /// Read all that is in the inputs now, close all windows, and stop.
    Drain,
}

/// How a job is run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    reset: Vec<String>,
}

impl Options {
    /// Forgets the stored state of a step.
    #[must_use]
    pub fn reset_state(mut self, step: impl Into<String>) -> Self {
        self.reset.push(step.into());
        self
    }
}

impl Job {
    /// Runs the job until `control` says otherwise. While the log is not there it is tried again.
    ///
    /// # Errors
    /// `Invalid` for a job that is put together wrongly, or a record that does not fit; `NotFound` for an input topic;
    /// `Conflict` for stored state of other steps, or once a newer job of this name runs; `Internal` where the job's own
    /// code panics; the log's own.
    ///
    /// # Cancel safety
    /// A dropped future is a crash: the next start goes on from the last committed epoch.
    pub async fn run(
        self,
        session: Arc<dyn Session>,
        clock: Arc<dyn Clock>,
        mut options: Options,
        mut control: watch::Receiver<Control>,
    ) -> Result<()> {
        let name = self.name.clone();
        let mut task = self.into_task().map_err(|e| e.context(format!("job {name}")))?;
        let mut failures = 0u32;
        loop {
            let run = Run::open(Arc::clone(&session), Arc::clone(&clock), &options, task).await;
            let (returned, result) = match run {
                Ok(run) => {
                    // Forgotten once: what comes from here on is to stay.
                    options.reset.clear();
                    run.drive(&mut control, &mut failures).await
                }
                Err((task, error)) => (task, Err(error)),
            };
            match (returned, result) {
                (Some(mut returned), Err(error)) if error.kind() == ErrorKind::Unavailable => {
                    tracing::warn!(job = name, %error, "log is not there, job is tried again");
                    let pause = Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5));
                    failures += 1;
                    if is_ended_within(pause, &mut control).await {
                        return Err(error.context(format!("job {name}")));
                    }
                    returned.clear();
                    task = returned;
                }
                (_, result) => return result.map_err(|e| e.context(format!("job {name}"))),
            }
        }
    }
}

/// Whether the job is told to end before the time is over. Where nobody is left who could tell, it is not.
async fn is_ended_within(time: Duration, control: &mut watch::Receiver<Control>) -> bool {
    let told = async {
        if control.wait_for(|wanted| *wanted != Control::Run).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::time::timeout(time, told).await.is_ok()
}

/// A task with its place in a log.
struct Run {
    reader: Reader,
    writer: Box<dyn Writer>,
    /// The topics that are read.
    inputs: Vec<Topic>,
    /// Partitions of each output topic.
    outputs: Vec<u32>,
}

async fn end_of(session: &dyn Session, partition: &TopicPartition) -> Result<i64> {
    let bounds = session.bounds(std::slice::from_ref(partition)).await?;
    Ok(bounds.first().map_or(0, |bounds| bounds.durable_offset))
}
