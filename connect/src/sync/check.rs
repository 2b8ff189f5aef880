//! `sync check`: each preflight as ok, or as the statement that repairs it.

use std::collections::BTreeMap;

use super::{
    captures,
    file::SyncSpec,
    known::Known,
    rounds::{self, rounds},
    run::RunOptions,
    topic_of,
};
use crate::{
    Error, Result,
    change::TableSchema,
    command::shell_word,
    connector::{Finding, Level},
    converter::TopicSchema,
    endpoint::same_database,
    types::Dialect,
};

/// What a check found.
#[derive(Debug, Default)]
pub struct Checked {
    /// All that could be looked at.
    pub findings: Vec<Finding>,
    /// Why not all could: a side that is not there.
    pub fault: Option<Error>,
}

impl Checked {
    /// What stands in the way.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.level == Level::Refuse)
    }
}

/// Examines both sides of a sync and changes nothing. `beside` are the syncs of its file, `known` is what its log tells,
/// where one is named. What `options` would do at the start stands in nobody's way.
pub async fn check(spec: &SyncSpec, beside: &[SyncSpec], known: &Known, options: &RunOptions) -> Checked {
    let mut findings = Vec::new();
    let fault = examine(spec, beside, known, options, false, &mut findings).await.err();
    for finding in &mut findings {
        finding.cure = finding.cure.take().map(|cure| spec.typed(&cure));
    }
    Checked { findings, fault }
}

/// As [`check`], but only what a run would refuse: one that began before leaves new tables out that do not fit, and
/// follows a server's changes of columns. Commands in the findings say `FILE`.
pub async fn check_run(spec: &SyncSpec, beside: &[SyncSpec], known: &Known, options: &RunOptions) -> Checked {
    let mut findings = Vec::new();
    let begun = known.syncs.contains_key(&spec.name);
    let fault = examine(spec, beside, known, options, begun, &mut findings).await.err();
    for finding in &mut findings {
        finding.cure = finding.cure.take().map(|cure| spec.named(&cure));
    }
    Checked { findings, fault }
}

/// The syncs of a file that cannot run beside those before them, and why. A source that is not there is met by the run.
pub async fn refused_beside(specs: &[SyncSpec], known: &Known) -> BTreeMap<String, Error> {
    let mut refused = BTreeMap::new();
    for spec in specs {
        let looked = beside(spec, specs, known);
        if specs.len() > 1
            && let Ok(Some(why)) = looked.await
        {
            refused.insert(spec.name.clone(), Error::conflict(why).context(format!("sync {}", spec.name)));
        }
    }
    refused
}

async fn beside(spec: &SyncSpec, specs: &[SyncSpec], known: &Known) -> Result<Option<String>> {
    let tables = spec.from.source()?.tables(&spec.tables).await?;
    if let Some((table, other)) = rounds(spec, specs, known, &tables).await?.first() {
        return Ok(Some(format!("{}; {}", rounds::told(table, other), rounds::CURE)));
    }
    let capture = captures::beside(spec, specs, known);
    Ok(capture.map(|(message, cure)| format!("{message}; {cure}")))
}

async fn examine(
    spec: &SyncSpec,
    beside: &[SyncSpec],
    known: &Known,
    options: &RunOptions,
    begun: bool,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let from = spec.from.source()?;
    let mut tables = from.tables(&spec.tables).await?;
    let all = tables.clone();
    if begun {
        let follows = |table: &TableSchema| {
            let topic = topic_of(&spec.name, table);
            known.schemas.iter().any(|schema| schema.topic == topic)
        };
        tables.retain(follows);
    } else {
        findings.extend(from.preflight(&spec.name, &known.log_id, &tables, options.once).await?);
    }
    if !begun || from.dialect() == Dialect::Sqlite {
        findings.extend(tables.iter().filter_map(|table| changed_columns(spec, table, &known.schemas, options)));
    }
    if !options.once {
        if let Some(capture) = captures::finding(spec, beside, known).await? {
            findings.retain(|finding| finding.subject != captures::SUBJECT);
            findings.push(capture);
        }
        for (table, other) in rounds(spec, beside, known, &all).await? {
            let told = rounds::told(&table, &other);
            findings.push(Finding::new(table.full_name(), Level::Refuse, told, Some(rounds::CURE.into())));
            // What the other sync reads is not to be replaced.
            tables.retain(|known| *known != table);
        }
    }
    findings.push(match same_database(&spec.from, &spec.to) {
        Some(same) => Finding::new("target", Level::Refuse, same, Some("name another target".into())),
        None => Finding::new("target", Level::Ok, "is not the source", None),
    });
    if options.replace {
        return Ok(());
    }
    let to = spec.sink()?;
    let drafts: Vec<_> = tables.iter().map(|table| TopicSchema::draft(&spec.name, from.dialect(), table)).collect();
    findings.extend(to.preflight(&spec.name, &known.log_id, &drafts).await?);
    findings.extend(to.existing(&spec.name, &known.log_id, &drafts).await?);
    Ok(())
}

fn changed_columns(
    spec: &SyncSpec,
    table: &TableSchema,
    schemas: &[TopicSchema],
    options: &RunOptions,
) -> Option<Finding> {
    let (topic, name) = (topic_of(&spec.name, table), table.full_name());
    if options.recopy.iter().any(|recopied| recopied.eq_ignore_ascii_case(&name)) {
        return None;
    }
    let stored = schemas.iter().filter(|schema| schema.topic == topic).max_by_key(|schema| schema.id)?;
    (stored.table != *table).then(|| {
        let message = format!("columns changed: {}", stored.table.changes_to(table));
        let cure = format!("tidemill sync run FILE --recopy {}", shell_word(&name));
        Finding::new(name, Level::Refuse, message, Some(cure))
    })
}
