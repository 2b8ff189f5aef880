//! Two syncs that write back to each other would hand a change round for ever: the second is refused.

use super::{
    file::SyncSpec,
    known::{Ends, Known},
};
use crate::{Error, Result, change::TableSchema, converter::TopicSchema, translate::Translation, types::Dialect};

/// Position part that says between which databases a sync runs.
pub(super) const ENDS: &str = "ends";

pub(super) fn ends_of(spec: &SyncSpec) -> Ends {
    Ends { from: spec.from.identity(), to: spec.to.identity() }
}

/// The part of a sync.
pub(super) fn ends(spec: &SyncSpec) -> Result<String> {
    serde_json::to_string(&ends_of(spec)).map_err(|e| Error::internal("encode the ends of a sync").with_source(e))
}

/// The tables of a sync that another one writes from the database that they are to go to: a sync of the log, or one that
/// comes before it in its file. Each with that sync's name.
///
/// # Errors
/// Of the databases of the syncs beside it, but for those that are not there.
pub(super) async fn rounds(
    spec: &SyncSpec,
    beside: &[SyncSpec],
    known: &Known,
    tables: &[TableSchema],
) -> Result<Vec<(TableSchema, String)>> {
    let from = spec.from.dialect();
    let back = Ends { from: spec.to.identity(), to: spec.from.identity() };
    let mut written: Vec<(String, TableSchema)> = Vec::new();
    for schema in known.schemas.iter().filter(|schema| schema.sync != spec.name) {
        let ends = known.syncs.get(&schema.sync).and_then(|sync| sync.ends.as_ref());
        if ends == Some(&back) {
            written.push((schema.sync.clone(), target_of(schema, from)));
        }
    }
    for other in goes_first(spec, beside, known).filter(|other| ends_of(other) == back) {
        let source = other.from.source()?;
        let Ok(tables) = source.tables(&other.tables).await else { continue };
        let draft = |table| target_of(&TopicSchema::draft(&other.name, source.dialect(), table), from);
        written.extend(tables.iter().map(|table| (other.name.clone(), draft(table))));
    }
    let round = |table: &TableSchema| {
        let other = written.iter().find(|(_, target)| target.name.eq_ignore_ascii_case(&table.name));
        other.map(|(sync, _)| (table.clone(), sync.clone()))
    };
    Ok(tables.iter().filter_map(round).collect())
}

/// The syncs of a file that have their way where one of two must give in: a sync that has begun does not, and of two
/// that have not the first one does. Those that the log knows are not among them.
pub(super) fn goes_first<'a>(
    spec: &'a SyncSpec,
    beside: &'a [SyncSpec],
    known: &'a Known,
) -> impl Iterator<Item = &'a SyncSpec> {
    let begun = known.syncs.get(&spec.name).is_some_and(|sync| sync.ends.is_some());
    let before = beside.iter().take_while(|other| other.name != spec.name);
    before.filter(move |other| !begun && !known.syncs.contains_key(&other.name))
}

fn target_of(schema: &TopicSchema, to: Dialect) -> TableSchema {
    Translation::new(schema, to).table().clone()
}

/// Why a table cannot be followed that another sync writes.
pub(super) fn told(table: &TableSchema, other: &str) -> String {
    format!(
        "table {} is written by sync {other}, from the database that it is to go to: a change would go round for ever",
        table.full_name()
    )
}

/// What to do then.
pub(super) const CURE: &str = "leave the table out of one of the two syncs";
