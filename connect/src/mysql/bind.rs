//! Binds the columns that the binlog tells before rows to those that a topic has.

use std::collections::HashMap;

use super::{
    binlog::{
        cell::Cell,
        rows::Binding,
        table_map::{MapColumn, TableMap},
    },
    catalog::Found,
    declared::{Declared, Family},
    stop::Stop,
    text::Charset,
};
use crate::{
    change::{Column, TableSchema, Value},
    types::{Dialect, Kind},
};

/// Whether the binlog has a column that neither the topic nor the catalog has: the catalog is to be read anew.
pub fn has_unknown(map: &TableMap, known: &TableSchema, found: &Found) -> bool {
    let in_topic = |name: &String| known.columns.iter().any(|column| column.name == *name);
    let in_catalog = |name: &String| found.columns.iter().any(|column| column.name == *name);
    map.columns.iter().filter_map(|column| column.name.as_ref()).any(|name| !in_topic(name) && !in_catalog(name))
}

/// How rows are read that follow a map.
///
/// # Errors
/// What does not fit.
pub fn bind(
    map: &TableMap,
    known: &TableSchema,
    found: &Found,
    collations: &HashMap<u32, Charset>,
) -> Result<Binding, Stop> {
    let table = known.full_name();
    let named = map.columns.iter().all(|column| column.name.is_some());
    // Without names the catalog tells which column is which, and it may be newer than the rows.
    if !named && (map.columns.len() != found.columns.len() || found.schema.columns != known.columns) {
        return Err(Stop::NoNames { table });
    }
    let mut cells = Vec::with_capacity(map.columns.len());
    let mut empty: Vec<Value> = known.columns.iter().map(filler).collect();
    for (i, column) in map.columns.iter().enumerate() {
        let name = column.name.as_ref().or_else(|| found.columns.get(i).map(|column| &column.name));
        let to = known.columns.iter().position(|own| Some(&own.name) == name);
        let physical = found.columns.iter().find(|physical| Some(&physical.name) == name);
        let catalogued = physical.and_then(|physical| physical.charset.as_deref()).and_then(Charset::named);
        let charset = match column.collation {
            Some(number) => collations.get(&number).copied(),
            None => catalogued,
        };
        let cell = match to {
            Some(to) => {
                let declared = Declared::parse(&known.columns[to].declared_type);
                empty[to] = Value::Null;
                Cell::new(column, &declared, charset).map_err(|why| match named {
                    true => {
                        let column = known.columns[to].name.clone();
                        Stop::Unreadable { table: table.clone(), column, why }
                    }
                    false => Stop::NoNames { table: table.clone() },
                })?
            }
            None => passed_over(column).map_err(|why| {
                let column = name.cloned().unwrap_or_default();
                Stop::Unreadable { table: table.clone(), column, why }
            })?,
        };
        cells.push((cell, to));
    }
    Ok(Binding { cells, empty })
}

/// What stands for a column that a row does not have yet: the event is older than the column. Its table's copy begins
/// again where the column has a default, and brings the true values.
fn filler(column: &Column) -> Value {
    if !column.not_null {
        return Value::Null;
    }
    match Dialect::Mysql.kind(&column.declared_type) {
        Kind::Integer | Kind::Unsigned | Kind::Boolean => Value::Integer(0),
        Kind::Real => Value::Real(0.0),
        Kind::Decimal => Value::Text("0".into()),
        Kind::Blob => Value::Blob(Vec::new()),
        Kind::Date => Value::Text("1970-01-01".into()),
        Kind::Time => Value::Text("00:00:00".into()),
        Kind::Timestamp => Value::Text("1970-01-01T00:00:00".into()),
        Kind::Instant => Value::Text("1970-01-01T00:00:01Z".into()),
        Kind::Json => Value::Text("null".into()),
        Kind::Uuid => Value::Text("00000000-0000-0000-0000-000000000000".into()),
        Kind::Text | Kind::Any => Value::Text(String::new()),
    }
}

/// How a column is read that nobody wants: by what the binlog says of it alone.
fn passed_over(column: &MapColumn) -> Result<Cell, String> {
    let mut column = column.clone();
    let base = match column.kind {
        1 | 2 | 3 | 8 | 9 => "bigint",
        4 | 5 => "double",
        246 => "decimal",
        16 => "bit",
        13 => "year",
        10 | 14 => "date",
        11 | 19 => "time",
        12 | 18 => "datetime",
        7 | 17 => "timestamp",
        // Lists as their bytes, as integers.
        247 | 248 => {
            let bytes = column.meta_number().clamp(1, 8);
            return Ok(Cell::Bit { size: bytes });
        }
        140 => {
            column.kind = 252;
            "blob"
        }
        141 => {
            column.kind = 15;
            "varbinary"
        }
        245 | 252 | 255 => {
            column.kind = 252;
            "blob"
        }
        _ => "varbinary",
    };
    Cell::new(&column, &Declared::parse(base), Some(Charset::Binary))
}

/// What became of a table's columns.
#[derive(Debug, PartialEq, Eq)]
pub enum Evolution {
    /// Nothing that concerns a topic.
    Same,
    /// Columns were added or widened; whether rows that are there changed by it, so that they must be copied again.
    Grown { again: bool },
    /// Something else; what, in words.
    Else(String),
}

/// What became of a table's columns between what a topic has and what the catalog has now.
pub fn evolution(known: &TableSchema, now: &Found) -> Evolution {
    if *known == now.schema {
        return Evolution::Same;
    }
    let refused = || Evolution::Else(known.changes_to(&now.schema));
    let mut again = false;
    for old in &known.columns {
        let Some(new) = now.schema.columns.iter().find(|new| new.name == old.name) else { return refused() };
        if new.key != old.key || (new.not_null && !old.not_null) {
            return refused();
        }
        if new.declared_type != old.declared_type {
            let (from, to) = (Declared::parse(&old.declared_type), Declared::parse(&new.declared_type));
            if !from.widens_to(&to) {
                return refused();
            }
            // The same numbers have other digits now.
            again |= matches!(from.family(), Some(Family::Real | Family::Decimal));
        }
    }
    for new in now.schema.columns.iter().filter(|new| !known.columns.iter().any(|old| old.name == new.name)) {
        if new.key.is_some() {
            return refused();
        }
        let physical = now.columns.iter().find(|physical| physical.name == new.name);
        again |= new.not_null || physical.is_some_and(|physical| physical.default.is_some());
    }
    Evolution::Grown { again }
}
