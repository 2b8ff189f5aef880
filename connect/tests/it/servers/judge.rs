//! Are two tables equal? Asked of each database's own client, never of the code under test.
//!
//! Each side is read as its client prints it. What one database spells otherwise than the next is brought to one
//! spelling per class of column in [`normal`], the only place that forgives anything. Then both sides are bags of rows,
//! and what is not in both is told.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use super::client::{self, Literal};
use super::{MariaDb, Postgres};

/// A table and where it is. In PostgreSQL, of the schema `public` if no other is named.
#[derive(Clone, Copy)]
pub enum Side<'a> {
    Postgres(&'a Postgres, &'a str, &'a str),
    MariaDb(&'a MariaDb, &'a str, &'a str),
    Sqlite(&'a Path, &'a str),
}

/// What a column's values are. The order is the order of strength: of two sides the stronger one's rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Text,
    /// Fixed length, where databases disagree whether they give the padding back.
    Padded,
    Json,
    Uuid,
    Time,
    Timestamp,
    Double,
    Number,
    /// Of single precision: stronger than the others that hold numbers, as it has the fewest digits.
    Single,
    Bool,
    Bytes,
}

/// A value in its class's one spelling; `None` is NULL.
pub type Cell = Option<String>;

pub struct Column {
    /// In lower case and without underscores: naming styles do not make tables different.
    pub name: String,
    pub class: Class,
    pub key: bool,
}

/// A table as its own client tells it.
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<Cell>>,
}

/// One spelling for all values that mean the same. This is all the judge forgives.
pub fn normal(class: Class, text: &str) -> String {
    match class {
        Class::Text => text.to_owned(),
        Class::Padded => text.trim_end_matches(' ').to_owned(),
        Class::Json => serde_json::from_str(text).map_or_else(|_| text.to_owned(), |json| sorted(&json).to_string()),
        Class::Uuid => text.to_lowercase(),
        Class::Time => fraction(text),
        Class::Timestamp => timestamp(text),
        Class::Double => text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| number.to_string()),
        // By way of the double: some clients print a single as the double it is.
        Class::Single => text.parse::<f64>().map_or_else(|_| text.to_owned(), |number| (number as f32).to_string()),
        Class::Number => decimal(text).unwrap_or_else(|| text.to_owned()),
        Class::Bool => match text {
            "t" | "true" | "1" => "true".to_owned(),
            "f" | "false" | "0" => "false".to_owned(),
            other => other.to_owned(),
        },
        Class::Bytes => text.strip_prefix("\\x").unwrap_or(text).to_lowercase(),
    }
}

/// A decimal number without what does not change its value: `+1.50e1` is `15`.
fn decimal(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    let exponent: i64 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.bytes().any(|b| !b.is_ascii_digit()) || exponent.abs() > 100_000 {
        return None;
    }
    let mut point = whole.len() as i64 + exponent;
    if point < 0 {
        digits.insert_str(0, &"0".repeat(point.unsigned_abs() as usize));
        point = 0;
    }
    digits.extend(std::iter::repeat_n('0', (point as usize).saturating_sub(digits.len())));
    let (whole, fraction) = digits.split_at(point as usize);
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    Some(match (whole, fraction) {
        ("", "") => "0".to_owned(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{}.{fraction}", if whole.is_empty() { "0" } else { whole }),
    })
}

/// `2026-01-02 03:04:05.5`. Clients are asked in UTC, so a zone that they print is no other.
fn timestamp(text: &str) -> String {
    let zone = ["+00:00", "+00", "Z"].into_iter().find(|zone| text.ends_with(zone)).unwrap_or_default();
    let text = &text[..text.len() - zone.len()];
    if text.len() == 10 { format!("{text} 00:00:00") } else { fraction(&text.replacen('T', " ", 1)) }
}

/// A time without the zeros that end its fraction.
fn fraction(text: &str) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
}

/// With the keys of each object in one order.
fn sorted(json: &serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Object(fields) => {
            let fields: BTreeMap<_, _> = fields.iter().map(|(name, value)| (name, sorted(value))).collect();
            serde_json::Value::Object(fields.into_iter().map(|(name, value)| (name.clone(), value)).collect())
        }
        serde_json::Value::Array(values) => serde_json::Value::Array(values.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// The class by the type's name in any of the three catalogs.
fn class_of(declared: &str) -> Class {
    let declared = declared.to_lowercase();
    let (word, length) = declared.split_once('(').unwrap_or((&declared, ""));
    match word.trim() {
        "tinyint" if length.starts_with("1)") => Class::Bool,
        "bool" | "boolean" => Class::Bool,
        "bytea" | "blob" | "tinyblob" | "mediumblob" | "longblob" | "binary" | "varbinary" => Class::Bytes,
        "float" | "float4" => Class::Single,
        // The word means single in PostgreSQL alone, whose catalog says `float4`.
        "real" | "double" | "double precision" | "float8" => Class::Double,
        "int2" | "int4" | "int8" | "oid" | "numeric" | "decimal" | "bit" | "year" => Class::Number,
        word if word.split(' ').next().is_some_and(|first| first.ends_with("int") || first == "integer") => {
            Class::Number
        }
        "timestamp" | "timestamptz" | "datetime" => Class::Timestamp,
        "time" | "timetz" => Class::Time,
        "json" | "jsonb" => Class::Json,
        "uuid" => Class::Uuid,
        "bpchar" | "char" => Class::Padded,
        _ => Class::Text,
    }
}

impl Side<'_> {
    /// The columns with their names as they are, their types and whether they are of the primary key.
    fn columns(&self) -> Vec<(String, String, bool)> {
        let rows: Vec<Vec<String>> = match *self {
            Side::Postgres(server, db, table) => strings(server.query(
                db,
                &format!(
                    "select a.attname, t.typname, coalesce(i.indexrelid is not null, false) from pg_attribute a \
                     join pg_type t on t.oid = a.atttypid \
                     left join pg_index i on i.indrelid = a.attrelid and i.indisprimary and a.attnum = any(i.indkey) \
                     where a.attrelid = '{}'::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum",
                    postgres_name(table).replace('\'', "''")
                ),
            )),
            Side::MariaDb(server, db, table) => strings(server.query(
                db,
                &format!(
                    "select column_name, column_type, column_key = 'PRI' from information_schema.columns \
                     where table_schema = database() and table_name = '{table}' order by ordinal_position"
                ),
            )),
            Side::Sqlite(path, table) => {
                let sql = format!("select name, type, pk > 0 from pragma_table_info('{table}') order by cid");
                let text = |literal| match literal {
                    Literal::Text(text) | Literal::Number(text) => text,
                    other => panic!("{other:?} in the catalog"),
                };
                sqlite(path, &sql).into_iter().map(|row| row.into_iter().map(text).collect()).collect()
            }
        };
        let yes = |text: &str| matches!(text, "t" | "1");
        rows.into_iter().map(|row| (row[0].clone(), row[1].clone(), yes(&row[2]))).collect()
    }

    /// Reads the table; each class of `stronger` holds instead of the column's own where it is the stronger one.
    fn read_with(&self, columns: &[(String, String, bool)], stronger: &BTreeMap<String, Class>) -> Table {
        let quoted = |sign: char| {
            let names = columns.iter().map(|(name, ..)| format!("{sign}{name}{sign}"));
            names.collect::<Vec<_>>().join(", ")
        };
        let rows: Vec<Vec<Cell>> = match *self {
            Side::Postgres(server, db, table) => {
                server.query(db, &format!("select {} from {}", quoted('"'), postgres_name(table)))
            }
            Side::MariaDb(server, db, table) => {
                let list: Vec<String> = columns.iter().map(|(name, kind, _)| mariadb_column(name, kind)).collect();
                server.query(db, &format!("select {} from `{table}`", list.join(", ")))
            }
            Side::Sqlite(path, table) => {
                let rows = sqlite(path, &format!("select {} from \"{table}\"", quoted('"')));
                rows.into_iter().map(|row| row.into_iter().map(sqlite_cell).collect()).collect()
            }
        };
        let columns: Vec<Column> = columns
            .iter()
            .map(|(name, kind, key)| {
                let (name, class) = (folded(name), class_of(kind));
                let class = stronger.get(&name).map_or(class, |other| class.max(*other));
                Column { name, class, key: *key }
            })
            .collect();
        let spell = |(cell, column): (Cell, &Column)| cell.map(|text| normal(column.class, &text));
        let rows = rows.into_iter().map(|row| row.into_iter().zip(&columns).map(spell).collect()).collect();
        Table { columns, rows }
    }
}

impl fmt::Display for Side<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Side::Postgres(_, db, table) => write!(f, "PostgreSQL {db}.{table}"),
            Side::MariaDb(_, db, table) => write!(f, "MariaDB {db}.{table}"),
            Side::Sqlite(_, table) => write!(f, "SQLite {table}"),
        }
    }
}

/// Reads a table by its own client, with its own classes.
pub fn read(side: Side<'_>) -> Table {
    side.read_with(&side.columns(), &BTreeMap::new())
}

/// What differs between two tables, a line for each; nothing if they are equal.
pub fn differences(left: Side<'_>, right: Side<'_>) -> Vec<String> {
    let (left_columns, right_columns) = (left.columns(), right.columns());
    let classes = |columns: &[(String, String, bool)]| -> BTreeMap<String, Class> {
        columns.iter().map(|(name, kind, _)| (folded(name), class_of(kind))).collect()
    };
    let (left_classes, right_classes) = (classes(&left_columns), classes(&right_columns));
    let mut found = Vec::new();
    for (side, has, other) in [(left, &left_classes, &right_classes), (right, &right_classes, &left_classes)] {
        let only = has.keys().filter(|name| !other.contains_key(*name));
        found.extend(only.map(|name| format!("column {name} is only in {side}")));
        if has.is_empty() {
            found.push(format!("{side} does not exist"));
        }
    }
    if !found.is_empty() {
        return found;
    }
    let left_table = left.read_with(&left_columns, &right_classes);
    let right_table = right.read_with(&right_columns, &left_classes);
    // By name: the sides may have their columns in different orders.
    let order: Vec<usize> = left_table
        .columns
        .iter()
        .map(|column| right_table.columns.iter().position(|other| other.name == column.name).unwrap())
        .collect();
    let right_rows = right_table.rows.into_iter().map(|row| order.iter().map(|i| row[*i].clone()).collect()).collect();
    tell(&left_table.columns, (left, left_table.rows), (right, right_rows))
}

/// # Panics
/// With the first differences, if there are any.
pub fn assert_equal(left: Side<'_>, right: Side<'_>) {
    let found = differences(left, right);
    let first = found.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{left} and {right} differ in {} places:\n{first}", found.len());
}

type Rows = Vec<Vec<Cell>>;

/// Takes equal rows out of both bags and tells what is left, by key where there is one.
fn tell(columns: &[Column], (left, left_rows): (Side<'_>, Rows), (right, right_rows): (Side<'_>, Rows)) -> Vec<String> {
    let mut bag: BTreeMap<Vec<Cell>, i64> = BTreeMap::new();
    for row in left_rows {
        *bag.entry(row).or_default() += 1;
    }
    for row in right_rows {
        *bag.entry(row).or_default() -= 1;
    }
    let keyed = columns.iter().any(|column| column.key);
    let key_of = |row: &[Cell]| -> Vec<Cell> {
        row.iter().zip(columns).filter(|(_, column)| column.key || !keyed).map(|(cell, _)| cell.clone()).collect()
    };
    let mut by_key: BTreeMap<Vec<Cell>, [Vec<Vec<Cell>>; 2]> = BTreeMap::new();
    for (row, surplus) in bag {
        let side = usize::from(surplus < 0);
        for _ in 0..surplus.abs() {
            by_key.entry(key_of(&row)).or_default()[side].push(row.clone());
        }
    }
    let mut found = Vec::new();
    for (key, rows) in by_key {
        if let [[a], [b]] = [&rows[0][..], &rows[1][..]] {
            let cells = columns.iter().zip(a.iter().zip(b)).filter(|(_, (a, b))| a != b);
            let cells = cells.map(|(column, (a, b))| format!("{}: {} | {}", column.name, shown(a), shown(b)));
            found.push(format!("row {}: {}", shown_all(&key), cells.collect::<Vec<_>>().join(", ")));
            continue;
        }
        for (side, rows) in [left, right].iter().zip(rows) {
            found.extend(rows.iter().map(|row| format!("row {} is only in {side}", shown_all(row))));
        }
    }
    found
}

fn shown_all(cells: &[Cell]) -> String {
    format!("({})", cells.iter().map(shown).collect::<Vec<_>>().join(", "))
}

fn shown(cell: &Cell) -> String {
    match cell {
        None => "NULL".to_owned(),
        Some(text) if text.chars().count() <= 60 => format!("{text:?}"),
        Some(text) => format!("{:?}.. of {} bytes", text.chars().take(60).collect::<String>(), text.len()),
    }
}

fn folded(name: &str) -> String {
    name.to_lowercase().replace('_', "")
}

fn postgres_name(table: &str) -> String {
    let (schema, table) = table.split_once('.').unwrap_or(("public", table));
    format!("\"{schema}\".\"{table}\"")
}

/// As the client is asked for it, so that it prints all of the value.
fn mariadb_column(name: &str, kind: &str) -> String {
    let word = kind.split(['(', ' ']).next().unwrap_or_default();
    match word {
        "bit" => format!("`{name}` + 0"),
        "float" => format!("cast(`{name}` as double)"),
        _ if class_of(kind) == Class::Bytes => format!("hex(`{name}`)"),
        _ => format!("`{name}`"),
    }
}

/// A text that holds bytes, or bytes in a column of text, must not pass for each other.
fn sqlite_cell(literal: Literal) -> Cell {
    match literal {
        Literal::Null => None,
        Literal::Text(text) => Some(text),
        Literal::Bytes(digits) => Some(format!("\\x{digits}")),
        // It prints twenty digits of a real; the shortest that mean it are the ones that were written.
        Literal::Number(number) if number.contains(['.', 'e']) => {
            Some(number.parse::<f64>().map_or(number, |n| n.to_string()))
        }
        Literal::Number(number) => Some(number),
    }
}

fn strings(rows: Vec<client::Row>) -> Vec<Vec<String>> {
    rows.into_iter().map(|row| row.into_iter().map(|cell| cell.expect("the catalog says")).collect()).collect()
}

/// Rows of the SQLite client.
pub fn sqlite(path: &Path, sql: &str) -> Vec<Vec<Literal>> {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-bail", "-readonly", "-cmd", ".mode quote", "-cmd", ".timeout 10000"]).arg(path);
    let output = client::run(&mut command, sql.as_bytes()).unwrap_or_else(|e| panic!("sqlite3: {e}: {sql:.300}"));
    client::sqlite_rows(&output)
}
