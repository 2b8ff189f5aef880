//! The target's tables: how they are made, and the statements that change their rows.

use rusqlite::Connection;

use super::catalog::inspect_one;
use super::value::{identifier, sqlite_error};
use crate::change::{Column, TableSchema};
use crate::target::{self, Existing, POSITIONS, existing::Writer};
use crate::types::Kind;
use crate::{Error, Result};

/// The statement that makes a target table.
///
/// Declared types are verbatim, so that the affinities, and with them the values, are the source's. One exception:
/// `ANY` means "as it comes" in a STRICT source but NUMERIC in an ordinary table, so it is left out. Keys compare
/// byte by byte: the source's collations are not copied.
pub(super) fn create_sql(schema: &TableSchema) -> String {
    let mut parts: Vec<String> = schema
        .columns
        .iter()
        .map(|column| {
            let declared = if column.declared_type.eq_ignore_ascii_case("ANY") { "" } else { &column.declared_type };
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            format!("{} {}{not_null}", identifier(&column.name), type_name(declared)).trim_end().to_owned()
        })
        .collect();
    let key: Vec<String> = schema.key_columns().iter().map(|&i| identifier(&schema.columns[i].name)).collect();
    parts.push(format!("PRIMARY KEY({})", key.join(", ")));
    format!("CREATE TABLE {}({})", identifier(&schema.name), parts.join(", "))
}

/// A declared type that can stand unquoted, or quoted if it holds what the grammar of a type does not.
fn type_name(declared: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_ (),.+-".contains(c);
    let keyword_free = declared.split([' ', '(']).all(|word| {
        ![
            "constraint",
            "primary",
            "not",
            "null",
            "unique",
            "check",
            "default",
            "collate",
            "references",
            "generated",
            "as",
        ]
        .iter()
        .any(|keyword| word.eq_ignore_ascii_case(keyword))
    });
    let starts_well = declared.chars().next().is_none_or(|c| c.is_ascii_alphabetic() || c == '_');
    if declared.chars().all(plain) && keyword_free && starts_well && well_formed(declared) {
        declared.to_owned()
    } else {
        identifier(declared)
    }
}

/// `name name (number)` or `name(number, number)`: at most one pair of brackets, at the end.
fn well_formed(declared: &str) -> bool {
    let Some((words, numbers)) = declared.split_once('(') else {
        return !declared.contains([')', ',', '.', '+', '-']);
    };
    let Some(numbers) = numbers.strip_suffix(')') else { return false };
    let number = |n: &str| !n.trim().is_empty() && n.trim().parse::<f64>().is_ok();
    !words.contains([')', ',', '.', '+', '-']) && numbers.split(',').count() <= 2 && numbers.split(',').all(number)
}

/// Inserts a row, or overwrites the row of its key in place.
pub(super) fn upsert_sql(schema: &TableSchema) -> String {
    let names: Vec<String> = schema.columns.iter().map(|c| identifier(&c.name)).collect();
    let key: Vec<String> = schema.key_columns().iter().map(|&i| names[i].clone()).collect();
    let places: Vec<String> = (1..=names.len()).map(|i| format!("?{i}")).collect();
    // Key columns too: 1 and 1.0 are one key to the index and two values to us.
    let set: Vec<String> = names.iter().map(|name| format!("{name} = excluded.{name}")).collect();
    format!(
        "INSERT INTO {}({}) VALUES ({}) ON CONFLICT({}) DO UPDATE SET {}",
        identifier(&schema.name),
        names.join(", "),
        places.join(", "),
        key.join(", "),
        set.join(", ")
    )
}

/// Updates some columns of the row of a key.
pub(super) fn update_sql(schema: &TableSchema, columns: &[usize]) -> String {
    let name = |i: &usize| identifier(&schema.columns[*i].name);
    let equal = |(place, i): (usize, &usize)| format!("{} = ?{}", name(i), place + 1);
    let set: Vec<String> = columns.iter().enumerate().map(equal).collect();
    let key = schema.key_columns();
    let condition: Vec<String> = key.iter().enumerate().map(|(place, i)| equal((place + columns.len(), i))).collect();
    format!("UPDATE {} SET {} WHERE {}", identifier(&schema.name), set.join(", "), condition.join(" AND "))
}

/// Adds a column to a table that has rows, so it may be NULL.
pub(super) fn add_column_sql(schema: &TableSchema, column: &Column) -> String {
    let declared = type_name(&column.declared_type);
    format!("ALTER TABLE {} ADD COLUMN {} {declared}", identifier(&schema.name), identifier(&column.name))
}

/// Deletes the row of a key.
pub(super) fn delete_sql(schema: &TableSchema) -> String {
    let key: Vec<String> = schema
        .key_columns()
        .iter()
        .enumerate()
        .map(|(place, &i)| format!("{} = ?{}", identifier(&schema.columns[i].name), place + 1))
        .collect();
    format!("DELETE FROM {} WHERE {}", identifier(&schema.name), key.join(" AND "))
}

/// Whether the table exists, and whether it holds rows.
pub(super) fn state(conn: &Connection, table: &str) -> Result<Existing> {
    let fail = |e| sqlite_error(format!("look at target table {table}"), e);
    let kind: Option<String> = conn
        .prepare_cached(
            "SELECT max(type) FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE AND type IN ('table', 'view')",
        )
        .and_then(|mut statement| statement.query_row([table], |row| row.get(0)))
        .map_err(fail)?;
    match kind.as_deref() {
        None => Ok(Existing::No),
        Some("view") => {
            Err(Error::conflict(format!("the target has a view named {table}; drop it or leave the table out")))
        }
        Some(_) => conn
            .query_row(&format!("SELECT EXISTS (SELECT 1 FROM {})", identifier(table)), [], |row| row.get(0))
            .map(|rows| if rows { Existing::WithRows } else { Existing::Empty })
            .map_err(fail),
    }
}

/// A table of the target in the spelling of the wanted one where SQLite sees no difference, and columns that need no value.
pub(super) struct Found {
    pub(super) table: TableSchema,
    pub(super) optional: Vec<String>,
    /// A column of the key that takes several keys for one.
    lax: Option<String>,
}

/// Looks at a table; `None` where there is none.
pub(super) fn found(conn: &Connection, wanted: &TableSchema) -> Result<Option<Found>> {
    let fail = |e| sqlite_error(format!("look at target table {}", wanted.name), e);
    let Some(info) = inspect_one(conn, &wanted.name)? else { return Ok(None) };
    let mut table = info.schema;
    let lax = info.key.iter().find(|(_, collation)| !collation.eq_ignore_ascii_case("BINARY"));
    let lax = lax.and_then(|(column, _)| table.columns.get(*column)).map(|column| column.name.clone());
    for own in &mut table.columns {
        let Some(column) = wanted.columns.iter().find(|c| c.name.eq_ignore_ascii_case(&own.name)) else { continue };
        own.name.clone_from(&column.name);
        if Kind::of_sqlite(&own.declared_type) == Kind::of_sqlite(&column.declared_type) {
            own.declared_type.clone_from(&column.declared_type);
        }
    }
    let sql = "SELECT name FROM pragma_table_xinfo(?1) WHERE \"notnull\" = 0 OR dflt_value IS NOT NULL OR hidden <> 0";
    let mut statement = conn.prepare_cached(sql).map_err(fail)?;
    let rows = statement.query_map([&wanted.name], |row| row.get(0)).map_err(fail)?;
    Ok(Some(Found { table, optional: rows.collect::<rusqlite::Result<_>>().map_err(fail)?, lax }))
}

/// What keeps a table from being merged into.
pub(super) fn unfit(conn: &Connection, wanted: &TableSchema) -> Result<Option<String>> {
    let Some(found) = found(conn, wanted)? else { return Ok(Some("is no ordinary table".into())) };
    if let Some(column) = found.lax {
        return Ok(Some(format!("key column {column} does not tell all keys apart: it needs the collation BINARY")));
    }
    Ok(target::unfit(wanted, &found.table, |name| found.optional.iter().any(|own| own.eq_ignore_ascii_case(name))))
}

/// All syncs that write to the target, with their topics that have tables.
pub(super) fn writers(conn: &Connection) -> Result<Vec<Writer>> {
    let fail = |e| sqlite_error("read the target's positions", e);
    if state(conn, POSITIONS)? == Existing::No {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT sync, log_id, topic FROM {POSITIONS} WHERE schema IS NOT NULL");
    let mut statement = conn.prepare_cached(&sql).map_err(fail)?;
    let writer = |row: &rusqlite::Row<'_>| Ok(Writer { sync: row.get(0)?, log_id: row.get(1)?, topic: row.get(2)? });
    let rows = statement.query_map([], writer).map_err(fail)?;
    rows.collect::<rusqlite::Result<_>>().map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_types_are_quoted_and_plain_ones_not() {
        for plain in ["", "INTEGER", "VARCHAR(10)", "DECIMAL(10,2)", "double precision", "NUMERIC (1, -2)"] {
            assert_eq!(type_name(plain), plain);
        }
        for odd in ["a;b", "not null", "x)", "T(a)", "9", "a(1)b"] {
            assert!(type_name(odd).starts_with('"'), "{odd}");
        }
    }
}
