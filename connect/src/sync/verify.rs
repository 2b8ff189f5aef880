//! `sync verify`: compares source and target row by row, and looks again at what differs while a sync catches up.

use std::time::{Duration, Instant};

use super::{
    file::{Endpoint, SyncSpec},
    run::source_tables,
};
use crate::{
    Error, Result,
    sqlite::{self, TableDiff, compare::recheck},
};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How one table came out.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The table.
    pub table: String,
    /// What differed at first.
    pub diff: TableDiff,
    /// Keys that still differ.
    pub remaining: Vec<String>,
}

impl Verdict {
    /// Whether both sides are the same, at the latest when they were looked at again.
    pub fn is_equal(&self) -> bool {
        self.remaining.is_empty()
    }
}

/// Compares all tables of a sync. Rows that differ are looked at again until `patience` is over, since a sync that
/// runs meanwhile may bring them.
///
/// # Errors
/// `Unavailable` where a side cannot be read.
pub async fn verify(spec: SyncSpec, patience: Duration) -> Result<Vec<Verdict>> {
    let work = tokio::task::spawn_blocking(move || verify_blocking(&spec, patience));
    work.await.map_err(|e| Error::internal("verify").with_source(e))?
}

fn verify_blocking(spec: &SyncSpec, patience: Duration) -> Result<Vec<Verdict>> {
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    if !to.exists() {
        return Err(Error::unavailable(format!("target {} does not exist", to.display())));
    }
    let until = Instant::now() + patience;
    let mut verdicts = Vec::new();
    for schema in source_tables(spec)? {
        let mut diff = sqlite::compare_tables(from, to, &schema)?;
        let first = diff.clone();
        // More rows differ than are listed: the whole table is compared again.
        let listed = |diff: &TableDiff| diff.keys().len() as u64;
        let total = |diff: &TableDiff| diff.missing_rows + diff.extra_rows + diff.differing_rows;
        while total(&diff) > listed(&diff) && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
            diff = sqlite::compare_tables(from, to, &schema)?;
        }
        let mut keys = diff.keys();
        while !keys.is_empty() && total(&diff) == listed(&diff) {
            keys = recheck(from, to, &schema, &keys)?;
            if keys.is_empty() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let remaining = keys.iter().map(|key| format!("{key:?}")).collect();
        verdicts.push(Verdict { table: schema.name, diff: first, remaining });
    }
    Ok(verdicts)
}
