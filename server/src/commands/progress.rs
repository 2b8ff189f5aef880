//! How a sync's progress is shown: bars on a terminal, lines elsewhere. All of it goes to standard error.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use tidemill_connect::sync::{
    away::{Side, Waits, spoken},
    parked::ParkedKey,
    run::{Observer, TableStart},
};
use tidemill_core::Error;

use super::count;

/// How long a copy runs before a guess of what is left means anything.
const ETA_AFTER: Duration = Duration::from_secs(3);

/// The progress of all syncs of a command.
pub struct Progress {
    bars: MultiProgress,
    once: bool,
    all: Arc<Mutex<Vec<Arc<Shown>>>>,
}

struct Shown {
    bar: ProgressBar,
    sync: Mutex<String>,
    tables: Mutex<Vec<String>>,
    unfinished: AtomicU64,
    /// Rows that earlier runs copied.
    before: AtomicU64,
    rows: AtomicU64,
    written: AtomicU64,
    started: Instant,
    following: AtomicBool,
    waits: Waits,
    parked: AtomicUsize,
}

/// The progress of one sync.
pub struct SyncProgress {
    shown: Arc<Shown>,
    once: bool,
}

impl Progress {
    pub fn new(once: bool) -> Self {
        Self { bars: MultiProgress::new(), once, all: Arc::default() }
    }

    pub fn of(&self, sync: &str) -> SyncProgress {
        let bar = self.bars.add(ProgressBar::new(0));
        // A bar of nothing would be drawn full: it comes with the number of rows.
        bar.set_style(style("{prefix} {msg}"));
        bar.set_prefix(sync.to_owned());
        let shown = Arc::new(Shown {
            bar,
            sync: Mutex::new(sync.to_owned()),
            tables: Mutex::default(),
            unfinished: AtomicU64::new(0),
            before: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            written: AtomicU64::new(0),
            started: Instant::now(),
            following: AtomicBool::new(false),
            waits: Waits::default(),
            parked: AtomicUsize::new(0),
        });
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&shown));
        SyncProgress { shown, once: self.once }
    }

    /// Ends the display.
    pub fn finish(&self) {
        for shown in self.all.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            shown.bar.finish_and_clear();
        }
    }
}

impl SyncProgress {
    /// Sums up a copy that ended well.
    pub fn sum_up(&self) {
        let shown = &self.shown;
        shown.bar.finish_and_clear();
        if self.once {
            let (rows, written) = (shown.rows.load(Ordering::Relaxed), shown.written.load(Ordering::Relaxed));
            let tables = shown.tables.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
            let (tables, rows) = (count(tables, "table"), count(rows, "row"));
            let seconds = shown.started.elapsed().as_secs_f64();
            shown.line(&format!("{}: {tables}, {rows} read, {written} changed in {seconds:.1} s", shown.name()));
        }
    }

    /// Tells an error of this sync.
    pub fn fail(&self, error: &anyhow::Error) {
        self.shown.bar.finish_and_clear();
        self.shown.line(&format!("error: {error:#}"));
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{:.0}/s", state.per_sec());
    };
    style.with_key("rate", rate).with_key("left", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let is_telling = state.pos() > 0 && state.elapsed() >= ETA_AFTER && Some(state.pos()) < state.len();
        if is_telling {
            let _ = write!(out, "{:#} left", HumanDuration(state.eta()));
        }
    })
}

impl Shown {
    fn name(&self) -> String {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn line(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            self.bar.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

impl Observer for SyncProgress {
    fn started(&self, sync: &str, tables: &[TableStart]) {
        let shown = &self.shown;
        *shown.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables.iter().map(|t| t.name.clone()).collect();
        let unfinished = tables.iter().filter(|table| !table.complete).count();
        shown.unfinished.store(unfinished as u64, Ordering::Relaxed);
        let rows: u64 = tables.iter().map(|table| table.rows).sum();
        let copied = |table: &TableStart| if table.complete { table.rows } else { table.copied.min(table.rows) };
        let before: u64 = tables.iter().map(copied).sum();
        shown.before.store(before, Ordering::Relaxed);
        if rows > 0 {
            shown.bar.set_style(style("{prefix} {bar:30} {pos}/{len} rows {rate} {left} {msg}"));
        }
        shown.bar.set_length(rows);
        shown.bar.set_position(before);
        // The rate is this run's.
        shown.bar.reset_eta();
        let all = count(tables.len() as u64, "table");
        let copied: u64 = tables.iter().filter(|table| !table.complete).map(|table| table.copied).sum();
        let goes_on = if copied > 0 { format!("; {} copied before", count(copied, "row")) } else { String::new() };
        shown.line(&format!("{sync}: {all}, {} in the source{goes_on}", count(rows, "row")));
    }

    fn copied(&self, table: usize, rows: u64) {
        let shown = &self.shown;
        let so_far = shown.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        // Rows come by the batch, of any size.
        if so_far / 64 != (so_far - rows) / 64 {
            shown.bar.set_position(shown.before.load(Ordering::Relaxed) + so_far);
            let tables = shown.tables.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(name) = tables.get(table) {
                shown.bar.set_message(name.clone());
            }
        }
    }

    fn written(&self, rows: u64) {
        self.shown.written.fetch_add(rows, Ordering::Relaxed);
    }

    fn replaced(&self, tables: &[String]) {
        let said = match tables {
            [] => "nothing to drop in the target".to_owned(),
            names => format!("dropped in the target, to be copied anew: {}", names.join(", ")),
        };
        self.shown.line(&format!("{}: {said}", self.shown.name()));
    }

    fn finished(&self, _table: usize) {
        let left = self.shown.unfinished.fetch_sub(1, Ordering::Relaxed);
        if left == 1 {
            let before = self.shown.before.load(Ordering::Relaxed);
            self.shown.bar.set_position(before + self.shown.rows.load(Ordering::Relaxed));
            self.shown.bar.set_message("");
        }
    }

    fn applied(&self, _records: u64) {}

    fn caught_up(&self) {
        let shown = &self.shown;
        if self.once || shown.following.load(Ordering::Relaxed) {
            return;
        }
        if !shown.following.swap(true, Ordering::Relaxed) {
            shown.bar.finish_and_clear();
            let rows = shown.rows.load(Ordering::Relaxed);
            let copied = if rows > 0 { format!("{} copied; ", count(rows, "row")) } else { String::new() };
            eprintln!("{}: {copied}in step, following", shown.name());
        }
    }

    fn waiting(&self, side: Side, error: &Error) {
        // An obstacle is told once, not at every try.
        if self.shown.waits.begins(side) {
            self.shown.line(&format!("{}: waiting for the {}: {error}", self.shown.name(), side.as_str()));
        }
    }

    fn back(&self, side: Side, away: Duration) {
        if self.shown.waits.ends(side) {
            let (name, side) = (self.shown.name(), side.as_str());
            self.shown.line(&format!("{name}: the {side} is back after {}", spoken(away)));
        }
    }

    fn stands_by(&self) {
        let shown = &self.shown;
        shown.bar.finish_and_clear();
        // When it is taken up, that it is in step is news again.
        shown.following.store(false, Ordering::Relaxed);
        shown.line(&format!("{}: another process runs it, this one stands by", shown.name()));
    }

    fn begins_again(&self, error: &Error) {
        let shown = &self.shown;
        shown.following.store(false, Ordering::Relaxed);
        shown.line(&format!("{}: begins again: {error}", shown.name()));
    }

    fn parked(&self, keys: &[ParkedKey]) {
        let shown = &self.shown;
        let before = shown.parked.swap(keys.len(), Ordering::Relaxed);
        let newest = keys.iter().max_by_key(|key| key.since_ms);
        match newest.filter(|_| keys.len() > before) {
            Some(newest) => {
                let all = count(keys.len() as u64, "row");
                let ParkedKey { key, topic, cause, .. } = newest;
                shown.line(&format!("{}: {all} parked, the newest {key} of {topic}: {cause}", shown.name()));
            }
            None if keys.is_empty() && before > 0 => {
                shown.line(&format!("{}: no row is parked any more", shown.name()))
            }
            None => {}
        }
    }
}
