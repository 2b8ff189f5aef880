//! How a sync is: what it does, how far it is behind, what went wrong.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    away::{Side, Waits},
    control::Control,
    parked::ParkedKey,
    run::{Observer, TableStart},
};
use crate::{Error, connector::SourceLag};

/// What a sync is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody runs it. Where a side was not there when it ended, `last_error` says so.
    #[default]
    Stopped,
    /// It looks at both sides.
    Starting,
    /// Tables are being copied.
    Copying,
    /// It follows the source.
    Following,
    /// It follows, and rows are parked.
    Degraded,
    /// A side is not there; it is tried again.
    Waiting,
    /// It ended with an error that needs a person.
    Failed,
}

/// How a sync is, as it was a moment ago.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The sync.
    pub sync: String,
    /// Where rows come from, without a password.
    pub from: String,
    /// Where rows go, without a password.
    pub to: String,
    /// What it does.
    pub state: State,
    /// Its tables.
    pub tables: Vec<TableStatus>,
    /// When the oldest change that the target lacks came into the log, in milliseconds since 1970.
    pub behind_since_ms: Option<i64>,
    /// For how long that is; 0 where the target has all. `None` where it is not known: the sync is not at work, or has not
    /// read all that the source had.
    pub lag_seconds: Option<f64>,
    /// Whether the target had all of the source when that was last looked at, and nothing went wrong since.
    #[serde(skip)]
    pub in_step: bool,
    /// The source's end, as far as it tells it.
    pub source: SourceLag,
    /// What went wrong last, and is tried again or needs a person.
    pub last_error: Option<String>,
    /// Rows that the target refused.
    pub parked: Vec<ParkedKey>,
}

/// How a table of a sync is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Its full name.
    pub table: String,
    /// About how many rows the source has.
    pub rows: u64,
    /// Rows that its copy has read, by this run and by those before it.
    pub copied: u64,
    /// Whether its copy is complete in the log.
    pub complete: bool,
    /// How long the copy takes yet, in seconds, at its present rate; only while it runs.
    pub eta_seconds: Option<f64>,
    /// Records of its topic that the target lacks.
    pub pending: u64,
    /// Since when this run copies it, and how many rows it has read.
    #[serde(skip)]
    pub here: Option<(Instant, u64)>,
}

/// An observer that keeps the status, and tells another one.
pub(super) struct Watched {
    pub(super) inner: Arc<dyn Observer>,
    pub(super) control: Arc<Control>,
    pub(super) waits: Waits,
}

impl Status {
    fn settle(&mut self, waits: &Waits) {
        if waits.any() {
            self.state = State::Waiting;
            return;
        }
        let copying = self.tables.iter().any(|table| !table.complete);
        self.state = match (copying, self.parked.is_empty()) {
            (true, _) => State::Copying,
            (false, true) => State::Following,
            (false, false) => State::Degraded,
        };
    }
}

impl Observer for Watched {
    fn started(&self, sync: &str, tables: &[TableStart]) {
        self.control.tell(|status| {
            let table = |start: &TableStart| TableStatus {
                table: start.name.clone(),
                rows: start.rows,
                copied: start.copied,
                complete: start.complete,
                ..TableStatus::default()
            };
            status.tables = tables.iter().map(table).collect();
            status.settle(&self.waits);
        });
        self.inner.started(sync, tables);
    }

    fn copied(&self, table: usize, rows: u64) {
        self.control.tell(|status| {
            let Some(table) = status.tables.get_mut(table) else { return };
            table.copied += rows;
            let left = table.rows.saturating_sub(table.copied) as f64;
            // An earlier run's rows tell nothing of this one's rate.
            let (since, here) = table.here.get_or_insert_with(|| (Instant::now(), 0));
            *here += rows;
            table.eta_seconds = Some(left * since.elapsed().as_secs_f64() / (*here).max(1) as f64);
        });
        self.inner.copied(table, rows);
    }

    fn written(&self, rows: u64) {
        self.inner.written(rows);
    }

    fn replaced(&self, tables: &[String]) {
        self.inner.replaced(tables);
    }

    fn finished(&self, table: usize) {
        self.control.tell(|status| {
            if let Some(table) = status.tables.get_mut(table) {
                (table.complete, table.eta_seconds) = (true, None);
            }
            status.settle(&self.waits);
        });
        self.inner.finished(table);
    }

    fn applied(&self, records: u64) {
        self.control.tell(|status| {
            if !self.waits.any() {
                status.last_error = None;
            }
            status.settle(&self.waits);
        });
        self.control.well.notify_one();
        self.inner.applied(records);
    }

    fn caught_up(&self) {
        self.control.tell(|status| {
            (status.behind_since_ms, status.in_step) = (None, true);
            status.tables.iter_mut().for_each(|table| table.pending = 0);
            status.last_error = None;
            status.settle(&self.waits);
        });
        self.control.well.notify_one();
        self.inner.caught_up();
    }

    fn waiting(&self, side: Side, error: &Error) {
        self.waits.begins(side);
        self.control.tell(|status| {
            status.last_error = Some(error.to_string());
            (status.state, status.in_step) = (State::Waiting, false);
        });
        self.inner.waiting(side, error);
    }

    fn back(&self, side: Side, away: Duration) {
        self.waits.ends(side);
        self.control.tell(|status| {
            if !self.waits.any() {
                status.last_error = None;
            }
            status.settle(&self.waits);
        });
        self.inner.back(side, away);
    }

    fn parked(&self, keys: &[ParkedKey]) {
        self.control.tell(|status| {
            status.parked = keys.to_vec();
            status.settle(&self.waits);
        });
        self.inner.parked(keys);
    }
}
