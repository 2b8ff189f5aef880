//! `sync check`: each preflight as ok, or as the statement that repairs it.

use super::{file::SyncSpec, topic_of};
use crate::{
    Result,
    change::TableSchema,
    command::{shell_word, with_file},
    connector::{Finding, Level},
    converter::TopicSchema,
    endpoint::same_database,
};

/// Examines both sides of a sync and changes nothing. `schemas` are those of the sync's log, where one is named: then
/// columns that changed since are told. `log_id` is that log's identity, or empty.
///
/// # Errors
/// Where the source cannot be read at all.
pub async fn check(spec: &SyncSpec, schemas: &[TopicSchema], log_id: &str) -> Result<Vec<Finding>> {
    let from = spec.from.source()?;
    let tables = from.tables(&spec.tables).await?;
    let mut findings = from.preflight(&spec.name, log_id, &tables, false).await?;
    findings.extend(tables.iter().filter_map(|table| changed_columns(spec, table, schemas)));
    findings.push(match same_database(&spec.from, &spec.to) {
        Some(same) => Finding::new("target", Level::Refuse, same, Some("name another target".into())),
        None => Finding::new("target", Level::Ok, "is not the source", None),
    });
    let to = spec.sink()?;
    let drafts: Vec<_> = tables.iter().map(|table| TopicSchema::draft(&spec.name, from.dialect(), table)).collect();
    findings.extend(to.preflight(&spec.name, log_id, &drafts).await?);
    findings.extend(to.existing(&spec.name, log_id, &drafts).await?);
    for finding in &mut findings {
        finding.cure = finding.cure.take().map(|cure| with_file(&cure, &spec.file));
    }
    Ok(findings)
}

fn changed_columns(spec: &SyncSpec, table: &TableSchema, schemas: &[TopicSchema]) -> Option<Finding> {
    let (topic, name) = (topic_of(&spec.name, table), table.full_name());
    let stored = schemas.iter().filter(|schema| schema.topic == topic).max_by_key(|schema| schema.id)?;
    (stored.table != *table).then(|| {
        let message = format!("columns changed: {}", stored.table.changes_to(table));
        let cure = format!("tidemill sync run FILE --recopy {}", shell_word(&name));
        Finding::new(name, Level::Refuse, message, Some(cure))
    })
}
