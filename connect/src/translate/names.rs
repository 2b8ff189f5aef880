//! Names of target tables, and which of them cannot be.

use std::collections::BTreeMap;

use super::Translation;
use crate::{Error, Result, change::TableSchema, converter::TopicSchema, types::Dialect};

/// The schema of PostgreSQL that tables without another are in.
const PUBLIC: &str = "public";

/// The schema and the name that a target gives to a source's table.
///
/// What is in the source's default schema is in the target's. Tables of PostgreSQL's other schemas keep theirs in
/// PostgreSQL, and are called `schema_table` elsewhere. A MySQL source is one database, which counts as the default.
pub fn target_name(from: Dialect, table: &TableSchema, to: Dialect) -> (Option<String>, String) {
    let other = match from {
        Dialect::Postgres => table.schema.as_deref().filter(|schema| *schema != PUBLIC),
        Dialect::Sqlite | Dialect::Mysql => None,
    };
    match (to, other) {
        (Dialect::Postgres, schema) => (Some(schema.unwrap_or(PUBLIC).to_owned()), table.name.clone()),
        (_, None) => (None, table.name.clone()),
        (_, Some(schema)) => (None, format!("{schema}_{}", table.name)),
    }
}

/// Refuses tables that a target cannot keep apart, and names that it would cut or takes for equal.
///
/// # Errors
/// `Conflict` tells all of them.
pub fn check_names(schemas: &[TopicSchema], to: Dialect) -> Result<()> {
    let mut faults = Vec::new();
    let mut tables: BTreeMap<(Option<String>, String), Vec<String>> = BTreeMap::new();
    for schema in schemas {
        let translated = Translation::new(schema, to);
        let table = translated.table();
        let source = schema.table.full_name();
        let fold = |name: &str| if to == Dialect::Postgres { name.to_owned() } else { name.to_lowercase() };
        tables.entry((table.schema.clone(), fold(&table.name))).or_default().push(source.clone());
        if table.name == "_tidemill_sync" {
            faults.push(format!("table {source} has the name of the table that keeps the sync's positions"));
        }
        let mut columns: BTreeMap<String, &str> = BTreeMap::new();
        for column in &table.columns {
            if let Some(other) = columns.insert(fold(&column.name), &column.name) {
                faults.push(format!("{to} takes columns {other} and {} of table {source} for one", column.name));
            }
        }
        let names = table.columns.iter().map(|column| &column.name).chain([&table.name]).chain(&table.schema);
        for name in names.filter(|name| too_long(name, to)) {
            faults.push(format!("the name {name} (table {source}) is too long for {to}"));
        }
    }
    for ((_, name), sources) in tables.into_iter().filter(|(_, sources)| sources.len() > 1) {
        faults.push(format!("tables {} would all be {name} in the target", sources.join(", ")));
    }
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Error::conflict(format!("{}; name other tables in the sync", faults.join("; ")))),
    }
}

/// PostgreSQL would cut a longer name without a word.
fn too_long(name: &str, to: Dialect) -> bool {
    match to {
        Dialect::Sqlite => false,
        Dialect::Postgres => name.len() > 63,
        Dialect::Mysql => name.chars().count() > 64,
    }
}
