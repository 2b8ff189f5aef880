//! Compares a table of two files in key order, type for type: as `quote(c), typeof(c)` of all columns would.

use std::cmp::Ordering;
use std::path::Path;

use rusqlite::{Connection, params_from_iter};

use super::catalog::{inspect_one, open_source};
use super::value::{Bound, compare_keys, identifier, read_row, same_row, sqlite_error};
use crate::Result;
use crate::change::{Row, TableSchema};
use crate::diff::{TableDiff, What};

/// Compares one table of two files. Each side is read in one transaction; a target without the table counts as empty.
///
/// # Errors
///
/// `NotFound` without a file, `Conflict` if a column is missing on a side.
pub fn compare_tables(source: &Path, target: &Path, schema: &TableSchema) -> Result<TableDiff> {
    let (source, target) = (open_source(source)?, open_source(target)?);
    let fail = |e| sqlite_error(format!("compare table {}", schema.name), e);
    let empty = super::sink_table::state(&target, &schema.name)? == crate::target::Existing::No;
    let sql = ordered(schema, false);
    let absent = ordered(schema, true);
    let mut left = source.prepare(&sql).map_err(fail)?;
    let mut right = if empty { source.prepare(&absent) } else { target.prepare(&sql) }.map_err(fail)?;
    let (mut left, mut right) = (left.query([]).map_err(fail)?, right.query([]).map_err(fail)?);
    let count = schema.columns.len();
    let next = |rows: &mut rusqlite::Rows<'_>| -> Result<Option<Row>> {
        rows.next().map_err(fail)?.map(|row| read_row(row, 0, count)).transpose()
    };
    let mut diff = TableDiff::default();
    let (mut a, mut b) = (next(&mut left)?, next(&mut right)?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(diff),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => compare_keys(&schema.key_of(a), &schema.key_of(b)),
        };
        diff.rows += 1;
        match (order, &a, &b) {
            (Ordering::Less, Some(row), _) => diff.note(What::Missing, schema.key_of(row)),
            (Ordering::Greater, _, Some(row)) => diff.note(What::Extra, schema.key_of(row)),
            (_, Some(row), Some(other)) if !same_row(row, other) => diff.note(What::Differing, schema.key_of(row)),
            _ => {}
        }
        if order.is_le() {
            a = next(&mut left)?;
        }
        if order.is_ge() {
            b = next(&mut right)?;
        }
    }
}

/// Of the listed keys, those whose rows still differ, and how. Use it after the target had time to catch up.
pub fn recheck(source: &Path, target: &Path, schema: &TableSchema, diff: &TableDiff) -> Result<TableDiff> {
    let (source, target) = (open_source(source)?, open_source(target)?);
    let mut still = TableDiff { rows: diff.rows, ..TableDiff::default() };
    for key in [&diff.missing, &diff.extra, &diff.differing].into_iter().flatten() {
        match (find(&source, schema, key)?, find(&target, schema, key)?) {
            (Some(a), Some(b)) if !same_row(&a, &b) => still.note(What::Differing, key.clone()),
            (Some(_), None) => still.note(What::Missing, key.clone()),
            (None, Some(_)) => still.note(What::Extra, key.clone()),
            _ => {}
        }
    }
    Ok(still)
}

/// The names of columns that only one side has: the source's, then the target's. `None` without a table in the target.
pub fn column_names(source: &TableSchema, target: &Path) -> Result<Option<[Vec<String>; 2]>> {
    let Some(found) = inspect_one(&open_source(target)?, &source.name)? else { return Ok(None) };
    let only = |a: &TableSchema, b: &TableSchema| -> Vec<String> {
        let other = |name: &str| b.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        a.columns.iter().map(|column| column.name.clone()).filter(|name| !other(name)).collect()
    };
    Ok(Some([only(source, &found.schema), only(&found.schema, source)]))
}

pub(super) fn find(conn: &Connection, schema: &TableSchema, key: &Row) -> Result<Option<Row>> {
    let fail = |e| sqlite_error(format!("look up a row of {}", schema.name), e);
    if super::sink_table::state(conn, &schema.name)? == crate::target::Existing::No {
        return Ok(None);
    }
    let condition: Vec<String> = schema
        .key_columns()
        .iter()
        .enumerate()
        .map(|(place, &i)| format!("{} COLLATE BINARY = ?{}", identifier(&schema.columns[i].name), place + 1))
        .collect();
    let sql = format!("SELECT {} FROM {} WHERE {}", names(schema), identifier(&schema.name), condition.join(" AND "));
    let mut statement = conn.prepare_cached(&sql).map_err(fail)?;
    let mut rows = statement.query(params_from_iter(key.iter().map(Bound))).map_err(fail)?;
    rows.next().map_err(fail)?.map(|row| read_row(row, 0, schema.columns.len())).transpose()
}

fn names(schema: &TableSchema) -> String {
    // Qualified: a bare quoted name that does not exist would be a string.
    let table = identifier(&schema.name);
    schema.columns.iter().map(|c| format!("{table}.{}", identifier(&c.name))).collect::<Vec<_>>().join(", ")
}

/// All rows in the order of the key's bytes: the two sides may have different collations.
fn ordered(schema: &TableSchema, none: bool) -> String {
    let table = identifier(&schema.name);
    let key: Vec<String> = schema
        .key_columns()
        .iter()
        .map(|&i| format!("{table}.{} COLLATE BINARY", identifier(&schema.columns[i].name)))
        .collect();
    let none = if none { " WHERE 0" } else { "" };
    format!("SELECT {} FROM {table}{none} ORDER BY {}", names(schema), key.join(", "))
}
