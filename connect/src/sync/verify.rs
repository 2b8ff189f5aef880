//! `sync verify`: compares source and target row by row, and looks again at what differs while a sync catches up.

use std::time::{Duration, Instant};

use super::{compare::Sides, file::SyncSpec};
use crate::{
    Result,
    change::{Row, TableSchema},
    diff::{TableDiff, key_text},
};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long rows that differ may take to arrive.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Not longer than this.
    pub at_most: Duration,
    /// Nor longer than nothing of what differs changes for this long: then no sync is at work.
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
    let mut sides = Sides::open(&spec).await?;
    let mut verdicts = Vec::new();
    for schema in spec.from.source()?.tables(&spec.tables).await? {
        let columns = sides.only_columns(&schema).await?.and_then(|only| other_columns(&only));
        let mut diff = TableDiff::default();
        if columns.is_none() {
            diff = sides.compare(&schema).await?;
            let (until, mut quiet_until) = (Instant::now() + patience.at_most, Instant::now() + patience.quiet);
            while !diff.is_equal() && Instant::now() < until.min(quiet_until) {
                tokio::time::sleep(LOOK_AGAIN).await;
                // Where more rows differ than are listed, the whole table is compared again.
                let again = match diff.is_listed() {
                    true => sides.recheck(&schema, &diff).await?,
                    false => sides.compare(&schema).await?,
                };
                if again != diff {
                    quiet_until = Instant::now() + patience.quiet;
                }
                diff = again;
            }
        }
        verdicts.push(Verdict { table: schema.full_name(), diff, columns, schema });
    }
    Ok(verdicts)
}

fn other_columns([source, target]: &[Vec<String>; 2]) -> Option<String> {
    let told = [("only in the source", source), ("only in the target", target)];
    let told = told.into_iter().filter(|(_, names)| !names.is_empty());
    let told: Vec<_> = told.map(|(side, names)| format!("{side}: {}", names.join(", "))).collect();
    (!told.is_empty()).then(|| told.join("; "))
}
