//! The error that a sync stopped with, kept with its state in the log: who looks later, when the process has gone, sees it.
//!
//! It is forgotten when the sync runs well again. Its writer is opened by each run, so that a run whose place another one
//! has taken can write nothing more here.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tidemill_core::{
    log::{Session, Table, Writer},
    record::Timestamp,
};

use super::{file::SyncSpec, status::State};
use crate::{Error, ErrorKind, Result};

/// The position's name.
const NAME: &str = "last-error";

/// The owner under which a sync's state is kept.
pub(super) fn owner_of(sync: &str) -> String {
    format!("sync/{sync}/state")
}

/// What a sync stopped with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// The error's text. Commands in it say `FILE` for the sync file.
    pub error: String,
    /// Its kind, by name.
    pub kind: String,
    /// The sync file, by its whole path.
    pub file: PathBuf,
    /// When it stopped, in milliseconds since 1970.
    pub at_ms: i64,
}

impl LastError {
    /// The state of a sync that stopped with it and that nobody runs.
    pub fn state(&self) -> State {
        match ErrorKind::from_name(&self.kind) {
            Some(kind) => state_after(kind),
            None => State::Failed,
        }
    }
}

/// What an error makes of a sync that it ended: where a side was not there, it is enough to start it again.
pub(super) fn state_after(kind: ErrorKind) -> State {
    match kind {
        ErrorKind::Unavailable => State::Stopped,
        _ => State::Failed,
    }
}

/// The last error of a sync at work.
pub(super) struct Health {
    session: Arc<dyn Session>,
    owner: String,
    writer: Box<dyn Writer>,
    kept: Option<LastError>,
}

impl Health {
    /// Reads what an earlier run stopped with.
    pub(super) async fn open(session: &Arc<dyn Session>, sync: &str) -> Result<Self> {
        let owner = owner_of(sync);
        let writer = session.writer(&owner).await?;
        let kept = decode(writer.positions())?;
        Ok(Self { session: Arc::clone(session), owner, writer, kept })
    }

    pub(super) fn error(&self) -> Option<String> {
        self.kept.as_ref().map(|kept| kept.error.clone())
    }

    /// The sync stopped. A sync that is started again and again meets the same obstacle each time: it is kept once.
    pub(super) async fn keep(&mut self, spec: &SyncSpec, error: &Error, now: Timestamp) -> Result<()> {
        let last = LastError {
            error: error.to_string(),
            kind: error.kind().as_str().to_owned(),
            file: std::path::absolute(&spec.file).unwrap_or_else(|_| spec.file.clone()),
            at_ms: now.0,
        };
        if self.kept.as_ref().is_some_and(|kept| kept.error == last.error && kept.file == last.file) {
            return Ok(());
        }
        let value = serde_json::to_string(&last).map_err(|e| Error::internal("encode an error").with_source(e))?;
        self.write(Some(value)).await?;
        self.kept = Some(last);
        Ok(())
    }

    /// The sync runs well.
    pub(super) async fn forget(&mut self) -> Result<()> {
        if self.kept.is_some() {
            self.write(None).await?;
            self.kept = None;
        }
        Ok(())
    }

    /// A commit that fails ends its writer. The next try has another, unless a newer run has taken the place.
    async fn write(&mut self, value: Option<String>) -> Result<()> {
        self.writer.set_position(NAME, value);
        let result = self.writer.commit().await;
        if result.as_ref().is_err_and(|error| error.kind() != ErrorKind::Conflict) {
            self.writer = self.session.writer(&self.owner).await?;
        }
        result
    }
}

fn decode(positions: &BTreeMap<String, String>) -> Result<Option<LastError>> {
    let kept = positions.get(NAME).map(|value| serde_json::from_str(value)).transpose();
    kept.map_err(|e| Error::corrupt("the last error of a sync is malformed").with_source(e))
}

/// The last errors of all syncs of a log, by sync.
///
/// # Errors
/// Of the log.
pub async fn last_errors(session: &dyn Session) -> Result<BTreeMap<String, LastError>> {
    let mut errors = BTreeMap::new();
    for key in session.table(Table::Positions).await?.keys() {
        let sync = key.split('\u{1f}').next().and_then(|owner| owner.strip_prefix("sync/")?.strip_suffix("/state"));
        let Some(sync) = sync.filter(|sync| !errors.contains_key(*sync)) else { continue };
        if let Some(last) = decode(&session.positions(&owner_of(sync)).await?)? {
            errors.insert(sync.to_owned(), last);
        }
    }
    Ok(errors)
}
