//! Reads tables once, in key order and short read transactions, and installs nothing in the source.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::catalog::{TableInfo, inspect_one, open_source};
use super::copy;
use super::value::sqlite_error;
use crate::change::{Row, TableSchema};
use crate::patterns::leave_out;
use crate::{Error, ErrorKind, Result};

/// Reads the tables of one file.
///
/// Between two chunks other programs may write. Compare [`Snapshot::data_version`] before the first and after the last
/// chunk; if it changed, either accept a copy that mixes states, or read again inside `begin_held` and `end_held`.
#[derive(Debug)]
pub struct Snapshot {
    conn: Connection,
    tables: Vec<TableInfo>,
    held: bool,
}

impl Snapshot {
    /// Opens a file for reading `tables`.
    ///
    /// # Errors
    ///
    /// `Conflict` if a table's columns are not those given, `Unsupported` if it has no key.
    pub fn open(path: &Path, tables: Vec<TableSchema>) -> Result<Self> {
        let conn = open_source(path)?;
        let mut infos = Vec::with_capacity(tables.len());
        for table in tables {
            let name = &table.name;
            let info = inspect_one(&conn, name)?
                .ok_or_else(|| Error::not_found(format!("{} has no table {name}", path.display())))?;
            if info.schema != table {
                return Err(Error::conflict(format!("the columns of table {name} changed while it was being opened")));
            }
            if info.key.is_empty() {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("table {name} has no primary key: {}", leave_out(name)),
                ));
            }
            infos.push(info);
        }
        Ok(Self { conn, tables: infos, held: false })
    }

    /// The rows of table number `table` after `after_key`, for at most `budget`. Empty means that the table ends there.
    pub fn next_chunk(&self, table: usize, after_key: Option<&Row>, budget: Duration) -> Result<Vec<Row>> {
        let info = self.tables.get(table).ok_or_else(|| Error::invalid(format!("there is no table number {table}")))?;
        copy::chunk(&self.conn, info, after_key, Instant::now() + budget, usize::MAX).map(|chunk| chunk.rows)
    }

    /// At most `limit` rows of table number `table` after `after_key`.
    pub fn rows(&self, table: usize, after_key: Option<&Row>, limit: usize) -> Result<Vec<Row>> {
        let info = self.tables.get(table).ok_or_else(|| Error::invalid(format!("there is no table number {table}")))?;
        let never = Instant::now() + Duration::from_secs(3600);
        copy::chunk(&self.conn, info, after_key, never, limit).map(|chunk| chunk.rows)
    }

    /// A number that changes when another program has written to the file. Constant inside a held transaction.
    pub fn data_version(&self) -> Result<i64> {
        self.conn
            .query_row("PRAGMA data_version", [], |row| row.get(0))
            .map_err(|e| sqlite_error("read the data version", e))
    }

    /// Begins one read transaction over all that follows. In rollback-journal mode no writer can commit meanwhile.
    pub fn begin_held(&mut self) -> Result<()> {
        if !self.held {
            self.conn
                .execute_batch("BEGIN; SELECT 1 FROM sqlite_schema")
                .map_err(|e| sqlite_error("hold a read transaction", e))?;
            self.held = true;
        }
        Ok(())
    }

    /// Ends the held read transaction, if there is one.
    pub fn end_held(&mut self) -> Result<()> {
        if std::mem::take(&mut self.held) {
            self.conn.execute_batch("COMMIT").map_err(|e| sqlite_error("end the read transaction", e))?;
        }
        Ok(())
    }
}
