//! Reads a table in key order, a chunk at a time.

use std::time::Instant;

use rusqlite::{Connection, params_from_iter};

use super::catalog::TableInfo;
use super::value::{Bound, identifier, read_row, sqlite_error};
use crate::Result;
use crate::change::{Row, Value};

/// A chunk ends when its rows have so many bytes.
const MAX_BYTES: usize = 64 << 20;

/// Some rows of a table, and whether they are the last.
pub(super) struct Chunk {
    pub(super) rows: Vec<Row>,
    pub(super) done: bool,
}

/// Rows after the key `after` in the key's own order, until the deadline, `max_rows` or too many bytes; at least one if
/// there is one.
pub(super) fn chunk(
    conn: &Connection,
    info: &TableInfo,
    after: Option<&Row>,
    deadline: Instant,
    max_rows: usize,
) -> Result<Chunk> {
    let fail = |e| sqlite_error(format!("copy table {}", info.schema.name), e);
    let mut statement = conn.prepare_cached(&select(info, after.is_some())).map_err(fail)?;
    let parameters = after.into_iter().flatten().map(Bound);
    let mut rows = statement.query(params_from_iter(parameters)).map_err(fail)?;
    let mut chunk = Chunk { rows: Vec::new(), done: false };
    let count = info.schema.columns.len();
    let mut bytes = 0;
    loop {
        if chunk.rows.len() >= max_rows || bytes > MAX_BYTES || (!chunk.rows.is_empty() && Instant::now() >= deadline) {
            return Ok(chunk);
        }
        match rows.next().map_err(fail)? {
            Some(row) => {
                let row = read_row(row, 0, count)?;
                bytes += row.iter().map(Value::size_bytes).sum::<usize>();
                chunk.rows.push(row);
            }
            None => {
                chunk.done = true;
                return Ok(chunk);
            }
        }
    }
}

fn select(info: &TableInfo, resume: bool) -> String {
    let name = |i: usize| format!("t.{}", identifier(&info.schema.columns[i].name));
    let columns: Vec<String> = (0..info.schema.columns.len()).map(name).collect();
    let key: Vec<String> = info.key.iter().map(|(i, collation)| format!("{} COLLATE {collation}", name(*i))).collect();
    let places: Vec<String> = (1..=key.len()).map(|i| format!("?{i}")).collect();
    let after = if resume { format!(" WHERE ({}) > ({})", key.join(", "), places.join(", ")) } else { String::new() };
    format!("SELECT {} FROM {} t{after} ORDER BY {}", columns.join(", "), identifier(&info.schema.name), key.join(", "))
}
