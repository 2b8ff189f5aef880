//! Reads a table in pieces, each at a known place of the binlog, without holding a lock or a snapshot for long.

use mysql_async::{Conn, Value as Wire, prelude::Queryable};

use super::{
    catalog::strings,
    endpoint::{connect, driver_error, identifier},
    stream::run,
    value::{Reading, parameter},
};
use crate::{
    Error, Result,
    change::{Row, TableSchema, Value},
    endpoint::Server,
    patterns::leave_out,
    types::{Dialect, Kind},
};

/// The first piece.
pub const FIRST_ROWS: usize = 1_000;
const MOST_ROWS: usize = 20_000;
const AIM_BYTES: usize = 4 << 20;
/// Rows beyond this are left to the next piece.
const MOST_BYTES: usize = 64 << 20;

/// Rows of a table in the order of its key.
#[derive(Debug)]
pub struct Piece {
    pub rows: Vec<Row>,
    /// Whether the table ends with them.
    pub last: bool,
    /// About how many bytes they have.
    pub bytes: usize,
}

impl Piece {
    /// How many rows to ask for next.
    pub fn next_limit(&self, limit: usize) -> usize {
        let each = (self.bytes / self.rows.len().max(1)).max(1);
        (AIM_BYTES / each).clamp(1, MOST_ROWS).min(limit.saturating_mul(2))
    }
}

/// Opens a snapshot and tells where in the binlog it is.
///
/// # Errors
/// `Unavailable`, `Denied`.
pub async fn begin(
    conn: &mut Conn,
    has_snapshot_status: bool,
    server: &Server,
    table: &TableSchema,
) -> Result<(String, u64)> {
    let begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
    // What an earlier call left open.
    run(conn, "ROLLBACK").await?;
    if has_snapshot_status {
        run(conn, begin).await?;
        let rows = strings(conn, "SHOW STATUS LIKE 'binlog_snapshot_%'", &[]).await?;
        let find = |what: &str| {
            let row = rows.iter().find(|row| row.first().is_some_and(|name| name.as_deref() == Some(what)));
            row.and_then(|row| row.get(1)).cloned().flatten().unwrap_or_default()
        };
        let position = find("Binlog_snapshot_position").parse();
        let position = position.map_err(|_| Error::internal("the server tells no place of its snapshot"))?;
        return Ok((find("Binlog_snapshot_file"), position));
    }
    // The table cannot change between the look at the binlog's end and the snapshot.
    let mut locker = connect(server).await?;
    run(&mut locker, "SET SESSION lock_wait_timeout = 1").await?;
    run(&mut locker, &format!("LOCK TABLES {} READ", full_identifier(table))).await?;
    let present = super::catalog::present(&mut locker).await?;
    run(conn, begin).await?;
    run(&mut locker, "UNLOCK TABLES").await?;
    Ok((present.file, present.position))
}

/// The table's name with its database's.
pub fn full_identifier(table: &TableSchema) -> String {
    let schema = table.schema.as_deref().map(|schema| format!("{}.", identifier(schema)));
    format!("{}{}", schema.unwrap_or_default(), identifier(&table.name))
}

/// Reads the rows whose keys come after one, at most `limit`.
///
/// # Errors
/// `Unavailable` where the connection broke or the table was changed; `Unsupported` for a table without a key.
pub async fn read(conn: &mut Conn, table: &TableSchema, after: Option<&[Value]>, limit: usize) -> Result<Piece> {
    let (sql, parameters) = statement(table, after, limit)?;
    let readings: Vec<_> = table.columns.iter().map(|column| Reading::of(&column.declared_type)).collect();
    let mut result = conn.exec_iter(sql, parameters).await.map_err(|e| driver_error(&e))?;
    let mut piece = Piece { rows: Vec::new(), last: true, bytes: 0 };
    let mut count = 0;
    while let Some(row) = result.next().await.map_err(|e| driver_error(&e))? {
        count += 1;
        if piece.bytes > MOST_BYTES {
            piece.last = false;
            continue;
        }
        let row: Result<Row> =
            row.unwrap().into_iter().zip(&readings).map(|(value, reading)| reading.value(value)).collect();
        let row = row.map_err(|e| e.context(format!("read table {}", table.full_name())))?;
        piece.bytes += row.iter().map(Value::size_bytes).sum::<usize>();
        piece.rows.push(row);
    }
    piece.last &= count < limit;
    Ok(piece)
}

/// The columns of a table, for a SELECT.
pub fn column_list(table: &TableSchema) -> String {
    table.columns.iter().map(|column| identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

/// What stands for a value of a column, and what is sent for it, so that it is compared as the column's type.
pub fn placeholder(declared_type: &str, value: &Value) -> (String, Wire) {
    let kind = Dialect::Mysql.kind(declared_type);
    match (kind, value) {
        (Kind::Decimal, _) => {
            let scale = super::declared::Declared::parse(declared_type).numbers.get(1).copied().unwrap_or(0);
            (format!("CAST(? AS DECIMAL(65,{scale}))"), parameter(value, kind))
        }
        (_, Value::Blob(bytes) | Value::InvalidText(bytes)) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            ("UNHEX(?)".into(), Wire::Bytes(hex.into_bytes()))
        }
        _ => ("?".into(), parameter(value, kind)),
    }
}

fn statement(table: &TableSchema, after: Option<&[Value]>, limit: usize) -> Result<(String, Vec<Wire>)> {
    let keys: Vec<_> = table.key_columns().into_iter().map(|i| &table.columns[i]).collect();
    if keys.is_empty() {
        return Err(Error::unsupported(format!(
            "table {} has no primary key: {}",
            table.full_name(),
            leave_out(&table.name)
        )));
    }
    let mut sql = format!("SELECT {} FROM {}", column_list(table), full_identifier(table));
    let mut parameters = Vec::new();
    if let Some(after) = after.filter(|after| after.len() == keys.len()) {
        // a >= ? AND (a > ? OR (a = ? AND (b > ?))): the first condition is what an index can use.
        let name = |n: usize| identifier(&keys[n].name);
        let mut bind = |n: usize| {
            let (mark, value) = placeholder(&keys[n].declared_type, &after[n]);
            parameters.push(value);
            mark
        };
        sql.push_str(&format!(" WHERE {} >= {} AND (", name(0), bind(0)));
        for n in 0..keys.len() {
            sql.push_str(&format!("{} > {}", name(n), bind(n)));
            if n + 1 < keys.len() {
                sql.push_str(&format!(" OR ({} = {} AND (", name(n), bind(n)));
            }
        }
        sql.push_str(&"))".repeat(keys.len() - 1));
        sql.push(')');
    }
    let order: Vec<_> = keys.iter().map(|column| identifier(&column.name)).collect();
    sql.push_str(&format!(" ORDER BY {} LIMIT {limit}", order.join(", ")));
    Ok((sql, parameters))
}
