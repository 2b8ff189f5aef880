//! `sync verify`: compares source and target row by row, and looks again at what differs while a sync catches up.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    file::{Endpoint, SyncSpec},
    run::source_tables,
};
use crate::{
    Error, Result,
    change::{Row, TableSchema},
    sqlite::{
        self, TableDiff,
        compare::{column_names, key_text, recheck},
        value::sqlite_error,
    },
};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long rows that differ may take to arrive.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Not longer than this.
    pub at_most: Duration,
    /// Nor longer than the target stays as it is for this long: then no sync is at work.
    pub quiet: Duration,
}

/// How one table came out.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The table.
    pub table: String,
    /// What differs; after the time was over.
    pub diff: TableDiff,
    /// Which columns only one side has; the rows were not compared then.
    pub columns: Option<String>,
    schema: TableSchema,
}

impl Verdict {
    /// Whether both sides are the same, at the latest when they were looked at again.
    pub fn is_equal(&self) -> bool {
        self.columns.is_none() && self.diff.is_equal()
    }

    /// The keys of rows that differ, a line each: at most `most`, then how many more there are.
    pub fn lines(&self, most: usize) -> Vec<String> {
        let diff = &self.diff;
        let named = |what: &'static str, keys: &[Row]| -> Vec<String> {
            keys.iter().map(|key| format!("{what}: {}", key_text(&self.schema, key))).collect()
        };
        let (missing, extra) = (named("missing", &diff.missing), named("only in the target", &diff.extra));
        let mut lines = [missing, extra, named("differs", &diff.differing)].concat();
        lines.truncate(most);
        let more = diff.total() - lines.len() as u64;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}

/// Compares all tables of a sync. Rows that differ are looked at again until `patience` is over, since a sync that
/// runs meanwhile may bring them.
///
/// # Errors
/// `Unavailable` where a side cannot be read.
pub async fn verify(spec: SyncSpec, patience: Duration) -> Result<Vec<Verdict>> {
    verify_patiently(spec, Patience { at_most: patience, quiet: patience }).await
}

/// As [`verify`], but gives up early where nothing happens.
///
/// # Errors
/// As [`verify`].
pub async fn verify_patiently(spec: SyncSpec, patience: Patience) -> Result<Vec<Verdict>> {
    let work = tokio::task::spawn_blocking(move || verify_blocking(&spec, patience));
    work.await.map_err(|e| Error::internal("verify").with_source(e))?
}

fn verify_blocking(spec: &SyncSpec, patience: Patience) -> Result<Vec<Verdict>> {
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    if !to.exists() {
        return Err(Error::unavailable(format!("target {} does not exist", to.display())));
    }
    let mut watch = Watch::new(to, patience)?;
    let mut verdicts = Vec::new();
    for schema in source_tables(spec)? {
        let columns = column_names(&schema, to)?.and_then(|only| other_columns(&only));
        let mut diff = TableDiff::default();
        if columns.is_none() {
            diff = sqlite::compare_tables(from, to, &schema)?;
            while !diff.is_equal() && watch.goes_on()? {
                std::thread::sleep(LOOK_AGAIN);
                // Where more rows differ than are listed, the whole table is compared again.
                diff = match diff.is_listed() {
                    true => recheck(from, to, &schema, &diff)?,
                    false => sqlite::compare_tables(from, to, &schema)?,
                };
            }
        }
        verdicts.push(Verdict { table: schema.name.clone(), diff, columns, schema });
    }
    Ok(verdicts)
}

fn other_columns([source, target]: &[Vec<String>; 2]) -> Option<String> {
    let told = [("only in the source", source), ("only in the target", target)];
    let told = told.into_iter().filter(|(_, names)| !names.is_empty());
    let told: Vec<_> = told.map(|(side, names)| format!("{side}: {}", names.join(", "))).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Knows whether it is worth looking again.
struct Watch {
    target: rusqlite::Connection,
    version: i64,
    changed: Instant,
    until: Instant,
    quiet: Duration,
}

impl Watch {
    fn new(target: &Path, patience: Patience) -> Result<Self> {
        let now = Instant::now();
        let target = sqlite::open_source(target)?;
        let version = data_version(&target)?;
        Ok(Self { target, version, changed: now, until: now + patience.at_most, quiet: patience.quiet })
    }

    fn goes_on(&mut self) -> Result<bool> {
        let now = Instant::now();
        let version = data_version(&self.target)?;
        if version != self.version {
            (self.version, self.changed) = (version, now);
        }
        Ok(now < self.until && now - self.changed < self.quiet)
    }
}

/// Another number after each commit of another connection.
fn data_version(conn: &rusqlite::Connection) -> Result<i64> {
    conn.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(|e| sqlite_error("look at the target", e))
}
