//! Which tables a SQLite file holds, and what the capture must know of each: key, collations, unique indexes.
//!
//! Ordinary tables only: no views, no virtual tables and their shadow tables, nothing of SQLite's or ours.
//! Generated columns are copied as plain columns: the target keeps their values, not their expressions.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::value::sqlite_error;
use tidemill_core::suggest::nearest;

use crate::change::{Column, TableSchema};
use crate::patterns::{self, glob, leave_out};
use crate::{Error, Result};

/// A unique index other than the key: its columns as places in the table, each with the index's collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unique {
    pub(super) columns: Vec<(usize, String)>,
}

/// A table as the triggers need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableInfo {
    pub(super) schema: TableSchema,
    /// The key is an `INTEGER PRIMARY KEY`, another name of the rowid: SQLite may choose its value.
    pub(super) rowid_alias: bool,
    /// The key columns in key order, each with the collation of the key's index.
    pub(super) key: Vec<(usize, String)>,
    pub(super) uniques: Vec<Unique>,
    /// Why the table cannot be captured, one line each.
    pub(super) refusals: Vec<Refusal>,
}

/// A reason why a table cannot be captured, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) cure: String,
}

/// Opens a source for looking at it. Nothing is ever written through this connection.
///
/// The file is opened for writing where that is allowed, because only then can SQLite roll back what a crashed
/// program left behind.
pub fn open_source(path: &Path) -> Result<Connection> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .or_else(|_| connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
    conn.pragma_update(None, "query_only", true).map_err(|e| sqlite_error("open the source", e))?;
    Ok(conn)
}

/// Opens an existing file and proves that it is a database.
pub(super) fn connect(path: &Path, mode: OpenFlags) -> Result<Connection> {
    if !path.exists() && !mode.contains(OpenFlags::SQLITE_OPEN_CREATE) {
        return Err(Error::not_found(format!("there is no file {}", path.display())));
    }
    let doing = || format!("open {}", path.display());
    let conn = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|e| sqlite_error(doing(), e))?;
    conn.busy_timeout(Duration::from_secs(5)).map_err(|e| sqlite_error(doing(), e))?;
    conn.set_prepared_statement_cache_capacity(4096);
    conn.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(|e| sqlite_error(doing(), e))?;
    Ok(conn)
}

/// The user's ordinary tables, in the order of their names.
///
/// Declared types are verbatim, with one exception: an `INTEGER` key that is *not* the rowid (WITHOUT ROWID, or
/// `PRIMARY KEY DESC`) is reported as `INT`, so that a target made from it does not become a rowid alias, which
/// would refuse values that the source accepts.
pub fn list_tables(conn: &Connection) -> Result<Vec<TableSchema>> {
    Ok(inspect_all(conn)?.into_iter().map(|info| info.schema).collect())
}

/// Everything about every user table.
pub(super) fn inspect_all(conn: &Connection) -> Result<Vec<TableInfo>> {
    let fail = |e| sqlite_error("list the tables", e);
    let mut statement = conn
        .prepare_cached("SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' ORDER BY name")
        .map_err(fail)?;
    let names = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<_>>>()
        .map_err(fail)?;
    names
        .into_iter()
        .filter(|(name, _)| !is_reserved(name))
        .map(|(name, without_rowid)| inspect(conn, &name, without_rowid))
        .collect()
}

/// One table, or nothing if there is no such table.
pub(super) fn inspect_one(conn: &Connection, table: &str) -> Result<Option<TableInfo>> {
    let fail = |e| sqlite_error(format!("look at table {table}"), e);
    let mut statement = conn
        .prepare_cached(
            "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name = ?1 COLLATE NOCASE",
        )
        .map_err(fail)?;
    let mut rows = statement.query([table]).map_err(fail)?;
    let Some(row) = rows.next().map_err(fail)? else { return Ok(None) };
    let name: String = row.get(0).map_err(fail)?;
    let without_rowid: bool = row.get(1).map_err(fail)?;
    inspect(conn, &name, without_rowid).map(Some)
}

/// Whether a table is SQLite's own or ours.
pub(super) fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["sqlite_", "_tm_", "_tidemill_"].iter().any(|prefix| name.starts_with(prefix))
}

fn inspect(conn: &Connection, table: &str, without_rowid: bool) -> Result<TableInfo> {
    let (mut schema, details) = columns(conn, table)?;
    let indexes = unique_indexes(conn, table)?;
    let key_columns = schema.key_columns();
    let key_index = indexes.iter().find(|index| index.origin == "pk");
    let rowid_alias = !without_rowid && key_columns.len() == 1 && key_index.is_none();
    if !rowid_alias && let [only] = key_columns[..] {
        let declared = &mut schema.columns[only].declared_type;
        if declared.eq_ignore_ascii_case("INTEGER") {
            *declared = "INT".into();
        }
    }
    let collation = |column: usize| {
        key_index
            .and_then(|index| index.columns.iter().find(|(c, _)| *c == Some(column)))
            .map_or_else(|| "BINARY".into(), |(_, collation)| collation.clone())
    };
    let key = key_columns.iter().map(|&column| (column, collation(column))).collect();
    let mut info = TableInfo { schema, rowid_alias, key, uniques: Vec::new(), refusals: Vec::new() };
    judge_table(&mut info, &details);
    for index in &indexes {
        judge_index(&mut info, index, &details);
    }
    Ok(info)
}

/// What the schema type has no place for.
struct ColumnDetails {
    not_null: bool,
    has_default: bool,
    generated: bool,
}

fn columns(conn: &Connection, table: &str) -> Result<(TableSchema, Vec<ColumnDetails>)> {
    let fail = |e| sqlite_error(format!("list the columns of {table}"), e);
    let mut statement = conn
        .prepare_cached(
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?1, 'main') ORDER BY cid",
        )
        .map_err(fail)?;
    let rows = statement
        .query_map([table], |row| {
            let place: u32 = row.get(4)?;
            let not_null: bool = row.get(2)?;
            let column = Column {
                name: row.get(0)?,
                declared_type: row.get(1)?,
                not_null: not_null || place > 0,
                key: place.checked_sub(1),
            };
            let (has_default, generated) = (row.get(3)?, row.get::<_, i64>(5)? >= 2);
            Ok((column, ColumnDetails { not_null, has_default, generated }))
        })
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<_>>>()
        .map_err(fail)?;
    let (columns, details) = rows.into_iter().unzip();
    Ok((TableSchema { schema: None, name: table.to_owned(), columns }, details))
}

struct Index {
    name: String,
    origin: String,
    partial: bool,
    /// `None` stands for an expression.
    columns: Vec<(Option<usize>, String)>,
}

fn unique_indexes(conn: &Connection, table: &str) -> Result<Vec<Index>> {
    let fail = |e| sqlite_error(format!("list the indexes of {table}"), e);
    let mut statement = conn
        .prepare_cached(
            "SELECT name, origin, partial FROM pragma_index_list(?1, 'main') WHERE \"unique\" = 1 ORDER BY name",
        )
        .map_err(fail)?;
    let mut indexes = statement
        .query_map([table], |row| {
            Ok(Index { name: row.get(0)?, origin: row.get(1)?, partial: row.get(2)?, columns: Vec::new() })
        })
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<_>>>()
        .map_err(fail)?;
    let mut statement = conn
        .prepare_cached("SELECT cid, coll FROM pragma_index_xinfo(?1, 'main') WHERE key = 1 ORDER BY seqno")
        .map_err(fail)?;
    for index in &mut indexes {
        index.columns = statement
            .query_map(params![index.name], |row| {
                let cid: i64 = row.get(0)?;
                Ok((usize::try_from(cid).ok(), row.get::<_, String>(1)?.to_ascii_uppercase()))
            })
            .map_err(fail)?
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(fail)?;
    }
    Ok(indexes)
}

/// SQLite allows 2000 columns; the journal holds two images and three columns of its own.
const MAX_COLUMNS: usize = 990;

fn judge_table(info: &mut TableInfo, details: &[ColumnDetails]) {
    let table = &info.schema.name;
    let mut refuse = |message: String, cure: String| info.refusals.push(Refusal { message, cure });
    if info.key.is_empty() {
        refuse(format!("table {table} has no primary key"), no_key_cure(&info.schema));
    }
    if info.schema.columns.len() > MAX_COLUMNS {
        refuse(
            format!("table {table} has {} columns, the limit is {MAX_COLUMNS}", info.schema.columns.len()),
            "leave the table out of the sync".into(),
        );
    }
    if info.key.iter().any(|&(column, _)| details[column].generated) {
        refuse(format!("table {table} has a generated column in its key"), "leave the table out of the sync".into());
    }
    for (_, collation) in &info.key {
        if !is_builtin(collation) {
            refuse(
                format!("the key of table {table} uses collation {collation}, which only the application knows"),
                "leave the table out of the sync".into(),
            );
        }
    }
}

fn no_key_cure(schema: &TableSchema) -> String {
    use super::value::identifier;
    let columns: Vec<String> = schema
        .columns
        .iter()
        .map(|c| format!("{} {}", identifier(&c.name), c.declared_type).trim_end().to_owned())
        .collect();
    let names: Vec<String> = schema.columns.iter().map(|c| identifier(&c.name)).collect();
    let (old, new) = (identifier(&schema.name), identifier(&format!("{}_new", schema.name)));
    format!(
        "rebuild it with a key: CREATE TABLE {new}(\"_id\" INTEGER PRIMARY KEY, {}); INSERT INTO {new}({n}) SELECT {n} FROM {old}; \
         DROP TABLE {old}; ALTER TABLE {new} RENAME TO {old}; or {}",
        columns.join(", "),
        leave_out(&schema.name),
        n = names.join(", ")
    )
}

/// Takes an index into the scheme, or says why it cannot be.
fn judge_index(info: &mut TableInfo, index: &Index, details: &[ColumnDetails]) {
    match index_columns(info, index, details) {
        Ok(_) if index.origin == "pk" => {}
        Ok(columns) => info.uniques.push(Unique { columns }),
        Err(refusal) => info.refusals.push(refusal),
    }
}

fn index_columns(
    info: &TableInfo,
    index: &Index,
    details: &[ColumnDetails],
) -> std::result::Result<Vec<(usize, String)>, Refusal> {
    let (table, name) = (&info.schema.name, &index.name);
    let refuse = |why: String| Refusal {
        message: format!("unique index {name} on {table} {why}"),
        cure: format!("make it an ordinary index: DROP INDEX {}", super::value::identifier(name)),
    };
    if index.partial {
        return Err(refuse("is partial: a row it displaces cannot be foreseen".into()));
    }
    let mut columns = Vec::new();
    for (column, collation) in &index.columns {
        let Some(column) = *column else {
            return Err(refuse("has an expression: a row it displaces cannot be foreseen".into()));
        };
        if !is_builtin(collation) {
            return Err(refuse(format!("uses collation {collation}, which only the application knows")));
        }
        let declared = &info.schema.columns[column].name;
        if details[column].generated {
            return Err(refuse(format!("holds the generated column {declared}")));
        }
        if !info.rowid_alias_column(column) && details[column].not_null && details[column].has_default {
            return Err(Refusal {
                message: format!(
                    "column {declared} of {table} is NOT NULL with a default and in unique index {name}: \
                     when NULL is replaced by the default, a trigger does not see it"
                ),
                cure: "rebuild the table without the default or without NOT NULL on this column".into(),
            });
        }
        columns.push((column, collation.clone()));
    }
    Ok(columns)
}

impl TableInfo {
    fn rowid_alias_column(&self, column: usize) -> bool {
        self.rowid_alias && self.key.iter().any(|(key, _)| *key == column)
    }
}

fn is_builtin(collation: &str) -> bool {
    ["BINARY", "NOCASE", "RTRIM"].iter().any(|known| known.eq_ignore_ascii_case(collation))
}

/// The tables that the patterns name, in the tables' order and each once: `*` in a pattern stands for any text,
/// the case of ASCII letters does not count, as in SQLite.
///
/// # Errors
///
/// `NotFound` for a pattern that matches nothing; the message names the nearest table.
pub fn match_tables(patterns: &[String], tables: &[TableSchema]) -> Result<Vec<TableSchema>> {
    patterns::select(patterns, tables.to_vec(), |pattern, table| glob(pattern, &table.name), no_match)
}

fn no_match(pattern: &str, tables: &[TableSchema]) -> String {
    match nearest(pattern, tables.iter().map(|table| table.name.as_str())) {
        Some(name) => format!("no table matches {pattern:?}; the nearest is {name:?}"),
        None if tables.is_empty() => format!("no table matches {pattern:?}: the source has no tables"),
        None => format!("no table matches {pattern:?}"),
    }
}
