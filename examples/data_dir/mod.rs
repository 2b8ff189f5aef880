//! A log in a folder that this program owns, as `tidemill` owns it: nobody else opens it meanwhile.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::Context;
use tidemill_core::{
    Error, ErrorKind,
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Caller, Embedded, FetchOptions, Log, Session},
    storage::{OsLock, OsStorage},
    topic::TopicPartition,
};

/// An open log. To drop it is like a crash: nothing that was committed is lost.
pub struct Owned {
    /// What jobs and writers use.
    pub session: Arc<dyn Session>,
    engine: Arc<Engine>,
    _lock: OsLock,
}

impl Owned {
    /// Opens the log in `folder`, making it if it is not there. `program` is what others are told of its owner.
    ///
    /// # Errors
    /// `Conflict` names the owner, if another process has it open.
    pub async fn open(folder: &Path, program: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let holder = format!("pid {}, {program}, no socket", std::process::id());
        let lock = OsLock::take(&folder.join("LOCK"), &holder).map_err(|error| match error.kind() {
            ErrorKind::Conflict => {
                let owner = error.message();
                Error::conflict(format!("{} is owned by another process: {owner}", folder.display()))
            }
            _ => error.context(format!("lock {}", folder.display())),
        })?;
        let dir = folder.to_path_buf();
        let open = move || Engine::open(&dir, Config::default(), Arc::new(OsStorage), Arc::new(SystemClock::default()));
        let engine = Arc::new(tokio::task::spawn_blocking(open).await??);
        let session = Embedded::new(Arc::clone(&engine)).session(Caller::internal(program)).await?;
        Ok(Self { session, engine, _lock: lock })
    }

    /// The values of the last `count` records of a topic's first partition.
    pub async fn last(&self, topic: &str, count: usize) -> anyhow::Result<Vec<String>> {
        let from = TopicPartition::new(topic, 0);
        let Some(bounds) = self.session.bounds(std::slice::from_ref(&from)).await?.pop() else { return Ok(Vec::new()) };
        let (mut offset, mut last) = (bounds.log_start_offset, std::collections::VecDeque::new());
        while offset < bounds.durable_offset {
            let chunk = self.session.fetch(&from, offset, &FetchOptions::default()).await?;
            last.extend(chunk.records.into_iter().filter_map(|record| record.value));
            last.drain(..last.len().saturating_sub(count));
            offset = chunk.next_offset;
        }
        Ok(last.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect())
    }

    /// Closes the log in order.
    pub async fn close(self) -> anyhow::Result<()> {
        let engine = Arc::clone(&self.engine);
        Ok(tokio::task::spawn_blocking(move || engine.close()).await??)
    }
}

/// Prints an error and gives the exit code that `tidemill` has for it, of those that can come up here.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(ErrorKind::Conflict) => ExitCode::from(4),
        _ => ExitCode::FAILURE,
    }
}
