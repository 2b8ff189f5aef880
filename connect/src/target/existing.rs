//! What becomes of tables that a target has before a sync writes to them.

use crate::{
    Error, Result,
    change::{Column, TableSchema},
    connector::{Finding, Level},
    types::Dialect,
};

use super::{Existing, REPLACE, unfit};

/// What a sync does with tables of its target that exist and that it does not own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExisting {
    /// A table that holds rows is refused.
    #[default]
    Refuse,
    /// A table that fits is taken over with its rows.
    Merge,
    /// It is dropped and filled anew.
    Replace,
}

impl OnExisting {
    /// The words of a sync file.
    pub const WORDS: [&str; 3] = ["refuse", "merge", "replace"];

    /// What a word means.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "refuse" => Some(Self::Refuse),
            "merge" => Some(Self::Merge),
            "replace" => Some(Self::Replace),
            _ => None,
        }
    }

    /// Whether a table that exists has to fit: then it is not dropped.
    pub(crate) fn keeps(self, existing: Existing) -> bool {
        match existing {
            Existing::No => false,
            Existing::Empty => self != Self::Replace,
            Existing::WithRows => self == Self::Merge,
        }
    }

    /// Whether it stands in the way, fitting or not.
    pub(crate) fn refuses(self, existing: Existing) -> bool {
        self == Self::Refuse && existing == Existing::WithRows
    }
}

/// A sync that writes to a target, as the target's table of positions knows it, and one of its topics.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) sync: String,
    pub(crate) log_id: String,
    pub(crate) topic: String,
}

/// Refuses a table that another sync writes, where this one would take it over or drop it.
///
/// # Errors
/// `Conflict` names the other sync. One of another log may be replaced.
pub(crate) fn refuse_written(
    on_existing: OnExisting,
    log_id: &str,
    to: Dialect,
    own: (&str, &str),
    table: &TableSchema,
    writers: &[Writer],
) -> Result<()> {
    // Who only looks has no log.
    if on_existing == OnExisting::Refuse || log_id.is_empty() {
        return Ok(());
    }
    for other in same_table(to, own, writers) {
        let (name, other_sync) = (table.full_name(), &other.sync);
        if other.log_id == log_id {
            return Err(Error::conflict(format!(
                "target table {name} is written by sync {other_sync} of this log: remove that one first, or leave the table \
                 out"
            )));
        }
        if on_existing == OnExisting::Merge {
            return Err(Error::conflict(format!(
                "target table {name} is written by sync {other_sync} of another log ({}): remove that one first, or leave \
                 the table out, or drop it and copy it anew: {REPLACE}",
                other.log_id
            )));
        }
    }
    Ok(())
}

/// Those of other syncs that write the table of a sync's topic.
pub(crate) fn same_table<'a>(
    to: Dialect,
    (sync, topic): (&'a str, &str),
    writers: &'a [Writer],
) -> impl Iterator<Item = &'a Writer> {
    let own = table_of(to, sync, topic);
    writers.iter().filter(move |other| other.sync != sync && table_of(to, &other.sync, &other.topic) == own)
}

/// The table of a target that a topic goes to, as far as its name tells: good for comparing.
fn table_of(to: Dialect, sync: &str, topic: &str) -> String {
    let rest = topic.strip_prefix(sync).and_then(|rest| rest.strip_prefix('.')).unwrap_or(topic);
    let rest = rest.strip_prefix("public.").unwrap_or(rest);
    match to {
        Dialect::Postgres => rest.to_owned(),
        Dialect::Sqlite | Dialect::Mysql => rest.replace('.', "_").to_lowercase(),
    }
}

/// What keeps a merged table from taking a new copy: it is not made anew, and its rows are not rewritten. Columns that it
/// lacks are added.
///
/// # Errors
/// `Conflict` names the column, and the ways out.
pub(crate) fn check_kept(wanted: &TableSchema, found: &TableSchema, optional: impl Fn(&str) -> bool) -> Result<()> {
    let there = |column: &&Column| column.key.is_some() || found.columns.iter().any(|own| own.name == column.name);
    let columns = wanted.columns.iter().filter(there).cloned().collect();
    let Some(why) = unfit(&TableSchema { columns, ..wanted.clone() }, found, optional) else { return Ok(()) };
    Err(Error::conflict(format!(
        "target table {} keeps its rows (on_existing is \"merge\"), and does not fit the new copy: it {why}; change it by hand \
         and start again, or drop it and copy it anew: {REPLACE}",
        wanted.full_name()
    )))
}

/// What `sync check` and `sync plan` say of a table that exists.
pub(crate) fn finding(
    on_existing: OnExisting,
    existing: Existing,
    table: &TableSchema,
    unfit: Option<String>,
    written: Result<()>,
) -> Finding {
    let subject = table.full_name();
    let refuse = |message: String| Finding::new(&subject, Level::Refuse, message, Some(REPLACE.into()));
    if let Err(error) = written {
        return Finding::new(&subject, Level::Refuse, error.to_string(), None);
    }
    match (on_existing, existing, unfit) {
        (_, Existing::No, _) => Finding::new(subject, Level::Ok, "it will be made", None),
        (OnExisting::Replace, Existing::WithRows, _) => {
            let said = "it exists and holds rows: it will be dropped and filled anew (on_existing is \"replace\")";
            Finding::new(subject, Level::Warn, said, None)
        }
        (OnExisting::Replace, Existing::Empty, _) => {
            Finding::new(subject, Level::Ok, "it exists, is empty, and will be made anew", None)
        }
        (OnExisting::Refuse, Existing::WithRows, _) => {
            refuse("it exists and holds rows that this log did not write".into())
        }
        (_, Existing::Empty, Some(why)) => refuse(format!("it is empty but not as the source would have it: {why}")),
        (_, Existing::Empty, None) => Finding::new(subject, Level::Ok, "it exists, is empty and fits", None),
        (OnExisting::Merge, Existing::WithRows, Some(why)) => {
            refuse(format!("it exists and holds rows, and cannot be merged into: {why}"))
        }
        (OnExisting::Merge, Existing::WithRows, None) => {
            let said = "it exists and fits: the source's rows are written over those of the same key, all others stay \
                        (on_existing is \"merge\")";
            Finding::new(subject, Level::Warn, said, None)
        }
    }
}

/// What they say of a table that the sync wrote before.
pub(crate) fn own(table: &TableSchema) -> Finding {
    Finding::new(table.full_name(), Level::Ok, "it is this sync's own and stays as it is", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_of_one_target_table_are_found() {
        let of = |to, topic| table_of(to, "s", topic);
        assert_eq!(of(Dialect::Postgres, "s.t"), of(Dialect::Postgres, "s.public.t"));
        assert_ne!(of(Dialect::Postgres, "s.t"), of(Dialect::Postgres, "s.old.t"));
        assert_eq!(of(Dialect::Mysql, "s.old.T"), of(Dialect::Mysql, "s.old_t"));
        assert_ne!(of(Dialect::Postgres, "s.T"), of(Dialect::Postgres, "s.t"));
    }
}
