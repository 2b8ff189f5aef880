//! `sync check`: each preflight as ok, or as the statement that repairs it.

use super::{
    file::{Endpoint, SyncSpec},
    run::source_tables,
};
use crate::{
    Result,
    sqlite::{self, Finding},
};

/// Examines both sides of a sync and changes nothing.
///
/// # Errors
/// Where the source cannot be read at all.
pub fn check(spec: &SyncSpec) -> Result<Vec<Finding>> {
    let tables = source_tables(spec)?;
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    let mut findings = sqlite::preflight(&sqlite::open_source(from)?, &tables);
    findings.push(sqlite::preflight::check_target_is_not_source(from, to));
    Ok(findings)
}
