//! `sync check`: each preflight as ok, or as the statement that repairs it.

use super::{
    file::{Endpoint, SyncSpec},
    run::source_tables,
    topic_of,
};
use crate::{
    Result,
    change::TableSchema,
    command::{shell_word, with_file},
    converter::TopicSchema,
    sqlite::{self, Finding, Level},
};

/// Examines both sides of a sync and changes nothing. `schemas` are those of the sync's log, where one is named: then
/// columns that changed since are told.
///
/// # Errors
/// Where the source cannot be read at all.
pub fn check(spec: &SyncSpec, schemas: &[TopicSchema]) -> Result<Vec<Finding>> {
    let tables = source_tables(spec)?;
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    let mut findings = sqlite::preflight(&sqlite::open_source(from)?, &tables);
    findings.extend(tables.iter().filter_map(|table| changed_columns(spec, table, schemas)));
    findings.push(sqlite::preflight::check_target_is_not_source(from, to));
    for finding in &mut findings {
        finding.cure = finding.cure.take().map(|cure| with_file(&cure, &spec.file));
    }
    Ok(findings)
}

fn changed_columns(spec: &SyncSpec, table: &TableSchema, schemas: &[TopicSchema]) -> Option<Finding> {
    let topic = topic_of(&spec.name, &table.name);
    let stored = schemas.iter().filter(|schema| schema.topic == topic).max_by_key(|schema| schema.id)?;
    (stored.table != *table).then(|| Finding {
        subject: table.name.clone(),
        ok: false,
        level: Level::Refuse,
        message: format!("columns changed: {}", stored.table.changes_to(table)),
        cure: Some(format!("tidemill sync run FILE --recopy {}", shell_word(&table.name))),
    })
}
