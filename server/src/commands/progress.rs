//! How a sync's progress is shown: bars on a terminal, lines elsewhere. All of it goes to standard error.

use std::{
    io::IsTerminal,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tidemill_connect::sync::run::Observer;
use tidemill_core::Error;

/// The progress of all syncs of a command.
pub struct Progress {
    bars: MultiProgress,
    once: bool,
    all: Arc<Mutex<Vec<Arc<Shown>>>>,
}

struct Shown {
    bar: ProgressBar,
    sync: Mutex<String>,
    tables: Mutex<Vec<(String, u64)>>,
    unfinished: AtomicU64,
    rows: AtomicU64,
    started: Instant,
    following: AtomicBool,
    waiting: Mutex<String>,
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
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} rows {per_sec} {eta} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(sync.to_owned());
        let shown = Arc::new(Shown {
            bar,
            sync: Mutex::new(sync.to_owned()),
            tables: Mutex::default(),
            unfinished: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            started: Instant::now(),
            following: AtomicBool::new(false),
            waiting: Mutex::default(),
        });
        self.all.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&shown));
        SyncProgress { shown, once: self.once }
    }

    /// Ends the display; a copy that ended well is summed up.
    pub fn finish(&self, ok: bool) {
        for shown in self.all.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            shown.bar.finish_and_clear();
            if ok && self.once {
                let (rows, seconds) = (shown.rows.load(Ordering::Relaxed), shown.started.elapsed().as_secs_f64());
                let tables = shown.tables.lock().unwrap_or_else(PoisonError::into_inner).len();
                eprintln!("{}: {tables} tables, {rows} rows copied in {seconds:.1} s", shown.name());
            }
        }
    }
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
    fn started(&self, sync: &str, tables: &[(String, u64)]) {
        let shown = &self.shown;
        *shown.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables.to_vec();
        shown.unfinished.store(tables.len() as u64, Ordering::Relaxed);
        let rows: u64 = tables.iter().map(|(_, rows)| rows).sum();
        shown.bar.set_length(rows);
        shown.line(&format!("{sync}: {} tables, {rows} rows in the source", tables.len()));
    }

    fn copied(&self, table: usize, rows: u64) {
        let shown = &self.shown;
        let so_far = shown.rows.fetch_add(rows, Ordering::Relaxed) + rows;
        if so_far.is_multiple_of(64) {
            shown.bar.set_position(so_far);
            let tables = shown.tables.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((name, _)) = tables.get(table) {
                shown.bar.set_message(name.clone());
            }
        }
    }

    fn finished(&self, _table: usize) {
        let left = self.shown.unfinished.fetch_sub(1, Ordering::Relaxed);
        if left == 1 {
            self.shown.bar.set_position(self.shown.rows.load(Ordering::Relaxed));
            self.shown.bar.set_message("");
        }
    }

    fn applied(&self, _records: u64) {
        self.shown.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn caught_up(&self) {
        let shown = &self.shown;
        if self.once || shown.following.load(Ordering::Relaxed) {
            return;
        }
        if !shown.following.swap(true, Ordering::Relaxed) {
            shown.bar.finish_and_clear();
            let rows = shown.rows.load(Ordering::Relaxed);
            let copied = if rows > 0 { format!("{rows} rows copied; ") } else { String::new() };
            eprintln!("{}: {copied}in step, following", shown.name());
        }
    }

    fn waiting(&self, error: &Error) {
        let text = error.to_string();
        let mut last = self.shown.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // The same obstacle is told once, not at every try.
        if *last != text {
            last.clone_from(&text);
            drop(last);
            self.shown.line(&format!("{}: waiting: {text}", self.shown.name()));
        }
    }
}
