//! Which topics are which tables: read once for each statement, so that a statement sees one list.
//!
//! The topic of a sync is a table of the schema named after the sync; any other is a table of `public`.

use std::{collections::HashMap, sync::Arc};

use datafusion::sql::sqlparser::ast::Ident;
use tidemill_connect::{change::Column, converter::TopicSchema, types::Dialect};
use tidemill_core::{
    Error, Result,
    suggest::nearest,
    topic::{INTERNAL_PREFIX, TopicInfo},
};

use crate::topics::Topics;

/// The one catalog.
pub(crate) const CATALOG: &str = "tidemill";
/// The schema of topics that no sync fills.
pub(crate) const PUBLIC: &str = "public";

/// A topic as a table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) topic: TopicInfo,
    /// Absent for a topic of plain records.
    pub(crate) declared: Option<Declared>,
}

/// What is known of the rows of a sync's topic.
#[derive(Debug)]
pub(crate) struct Declared {
    /// The present schema.
    pub(crate) present: TopicSchema,
    /// Whether the column of this index may be NULL: it says so, or an older schema of the topic does or lacks it.
    pub(crate) nullable: Vec<bool>,
}

impl Table {
    /// Whether lists leave it out.
    pub(crate) fn is_internal(&self) -> bool {
        self.topic.name.starts_with(INTERNAL_PREFIX)
    }

    /// The name as it is written in SQL.
    pub(crate) fn sql_name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// All tables, by schema and name.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) tables: Vec<Arc<Table>>,
}

impl Catalog {
    /// Reads the lists. Blocks.
    pub(crate) fn load(topics: &dyn Topics) -> Result<Self> {
        let mut by_topic: HashMap<String, Vec<TopicSchema>> = HashMap::new();
        for schema in topics.schemas()? {
            by_topic.entry(schema.topic.clone()).or_default().push(schema);
        }
        let mut tables: Vec<Arc<Table>> = topics
            .topics()
            .into_iter()
            .map(|topic| {
                let declared = by_topic.remove(&topic.name).and_then(declare);
                let (schema, name) = match &declared {
                    Some(declared) => (declared.present.sync.clone(), table_name(&declared.present)),
                    None => (PUBLIC.to_owned(), topic.name.clone()),
                };
                Arc::new(Table { schema, name, topic, declared })
            })
            .collect();
        // Of two topics that claim one name the one whose schema is newer has it.
        let age = |table: &Table| table.declared.as_ref().map_or(u64::MAX, |d| u64::MAX - d.present.id);
        tables.sort_by(|a, b| (&a.schema, &a.name, age(a)).cmp(&(&b.schema, &b.name, age(b))));
        tables.dedup_by(|later, earlier| later.schema == earlier.schema && later.name == earlier.name);
        Ok(Self { tables })
    }

    /// The table that a name means.
    ///
    /// # Errors
    /// `NotFound` names the nearest table; `Invalid` names the candidates where several fit.
    pub(crate) fn find(&self, parts: &[Ident]) -> Result<&Arc<Table>> {
        let (schema, name) = match parts {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            [catalog, schema, name] if is_exactly(catalog, CATALOG) => (Some(schema), name),
            _ => return Err(self.missing(parts)),
        };
        let fitting = |fits: fn(&Ident, &str) -> bool| -> Vec<&Arc<Table>> {
            let schema_fits = |table: &Table| schema.is_none_or(|schema| fits(schema, &table.schema));
            self.tables.iter().filter(|table| schema_fits(table) && fits(name, &table.name)).collect()
        };
        let exact = fitting(is_exactly);
        if let Some(table) = exact.iter().find(|table| schema.is_none() && table.schema == PUBLIC) {
            return Ok(table);
        }
        let found = if exact.is_empty() { fitting(is_ignoring_case) } else { exact };
        match found.as_slice() {
            [] => Err(self.missing(parts)),
            [table] => Ok(table),
            several => {
                let names: Vec<String> = several.iter().map(|table| table.sql_name()).collect();
                Err(Error::invalid(format!(
                    "table {} may be {}; write one of them",
                    written(parts),
                    names.join(" or ")
                )))
            }
        }
    }

    fn missing(&self, parts: &[Ident]) -> Error {
        let values: Vec<&str> = parts.iter().map(|part| part.value.as_str()).collect();
        let text = values.join(".");
        let named = |table: &&Arc<Table>| !table.is_internal();
        let bare = self.tables.iter().filter(named).map(|table| (table.name.clone(), table));
        let full = self.tables.iter().filter(named).map(|table| (format!("{}.{}", table.schema, table.name), table));
        let candidates: Vec<(String, &Arc<Table>)> = bare.chain(full).collect();
        let hint = nearest(&text, candidates.iter().map(|(name, _)| name.as_str()))
            .and_then(|near| candidates.iter().find(|(name, _)| name == near))
            .map(|(_, table)| format!("; nearest is {}", table.sql_name()));
        Error::not_found(format!("no table {}{}{}", written(parts), hint.unwrap_or_default(), position(parts)))
    }
}

fn declare(mut schemas: Vec<TopicSchema>) -> Option<Declared> {
    schemas.sort_by_key(|schema| schema.id);
    let present = schemas.pop()?;
    let may_be_null = |schema: &TopicSchema, name: &str| {
        schema.table.columns.iter().find(|column| column.name == name).is_none_or(|column| !column.not_null)
    };
    let older_allows = |name: &str| schemas.iter().any(|schema| may_be_null(schema, name));
    let columns = &present.table.columns;
    // Servers do not tell all of a row that is gone.
    let untold = |column: &Column| present.connector != Dialect::Sqlite && column.key.is_none();
    let nullable = columns.iter().map(|c| !c.not_null || untold(c) || older_allows(&c.name)).collect();
    Some(Declared { nullable, present })
}

/// A sync's table in SQL: the sync is its schema, so another schema than PostgreSQL's default one stands in the name.
fn table_name(schema: &TopicSchema) -> String {
    match (schema.connector, schema.table.schema.as_deref()) {
        (Dialect::Postgres, Some(other)) if other != PUBLIC => format!("{other}_{}", schema.table.name),
        _ => schema.table.name.clone(),
    }
}

/// Whether an identifier means this name by PostgreSQL's rules: quoted as it stands, else folded to lower case.
pub(crate) fn is_exactly(ident: &Ident, name: &str) -> bool {
    match ident.quote_style {
        Some(_) => ident.value == name,
        None => folded(ident) == name,
    }
}

/// Whether an unquoted identifier is this name but for case.
pub(crate) fn is_ignoring_case(ident: &Ident, name: &str) -> bool {
    match ident.quote_style {
        Some(_) => ident.value == name,
        None => ident.value.eq_ignore_ascii_case(name),
    }
}

/// The name that an identifier stands for if it is not resolved further.
pub(crate) fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// Where a name stands in the statement's text.
fn position(parts: &[Ident]) -> String {
    let start = parts.first().map(|part| part.span.start).filter(|start| start.line > 0);
    start.map_or_else(String::new, |start| format!(" ({}:{})", start.line, start.column))
}

fn written(parts: &[Ident]) -> String {
    let parts: Vec<String> = parts.iter().map(Ident::to_string).collect();
    parts.join(".")
}

/// A name as SQL text, quoted where an unquoted one would be another.
pub(crate) fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
