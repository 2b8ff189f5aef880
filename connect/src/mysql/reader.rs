//! Reads tables without following them: a copy alone, and rows for comparing.

use std::collections::HashMap;

use async_trait::async_trait;
use mysql_async::{Conn, prelude::Queryable};

use super::{
    catalog::list,
    copy::{FIRST_ROWS, column_list, full_identifier, placeholder, read},
    endpoint::{connect, driver_error, identifier},
    stream::run,
    value::Reading,
};
use crate::{
    Error, Result,
    change::{Change, Op, Row, TableSchema},
    connector::{Polled, Source, TableReader, TableState},
    endpoint::Server,
    patterns::leave_out,
};

/// Rows of one poll.
const POLL_ROWS: usize = 2_000;
/// Keys that are looked up by one statement.
const FIND_KEYS: usize = 100;

/// Reads all tables in one snapshot and ends; installs nothing.
pub struct SnapshotReader {
    conn: Conn,
    tables: Vec<TableSchema>,
    table: usize,
    after: Option<Row>,
    limit: usize,
}

impl SnapshotReader {
    /// Opens a snapshot of the tables.
    ///
    /// # Errors
    /// `Unsupported` for a table without a key.
    pub async fn open(server: &Server, tables: Vec<TableSchema>) -> Result<Self> {
        if let Some(table) = tables.iter().find(|table| table.key_columns().is_empty()) {
            return Err(Error::unsupported(format!(
                "table {} has no primary key: {}",
                table.full_name(),
                leave_out(&table.name)
            )));
        }
        let mut conn = connect(server).await?;
        run(&mut conn, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
        Ok(Self { conn, tables, table: 0, after: None, limit: FIRST_ROWS })
    }
}

#[async_trait]
impl Source for SnapshotReader {
    fn tables(&self) -> Vec<TableSchema> {
        self.tables.clone()
    }

    fn position(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    fn rereads(&self) -> bool {
        true
    }

    fn states(&self) -> Vec<TableState> {
        Vec::new()
    }

    async fn restart_copies(&mut self, _: &[String]) -> Result<()> {
        Ok(())
    }

    async fn poll(&mut self) -> Result<Polled> {
        let Some(schema) = self.tables.get(self.table) else {
            return Ok(Polled { ended: true, ..Polled::default() });
        };
        let piece = Box::pin(read(&mut self.conn, schema, self.after.as_deref(), self.limit)).await;
        // The snapshot went with its connection: nothing can go on from here.
        let piece = piece.map_err(|e| Error::closed(format!("the copy's snapshot is gone: {e}")))?;
        self.limit = piece.next_limit(self.limit).min(POLL_ROWS);
        let mut polled = Polled { more: true, ..Polled::default() };
        if let Some(last) = piece.rows.last() {
            self.after = Some(schema.key_of(last));
        }
        let table = self.table;
        let change = |row: Row| {
            let (key, after) = (schema.key_of(&row), Some(row));
            Change { table, op: Op::Read, key, before: None, after, sequence: 0 }
        };
        polled.changes = piece.rows.into_iter().map(change).collect();
        if piece.last {
            polled.finished_tables.push(table);
            (self.table, self.after, self.limit) = (table + 1, None, FIRST_ROWS);
        }
        Ok(polled)
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Reads rows for comparing.
pub struct Comparer {
    server: Server,
    conn: Conn,
    /// So many rows are asked for, as far as is known of their size.
    limit: usize,
}

impl Comparer {
    /// Connects.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    pub async fn open(server: &Server) -> Result<Self> {
        Ok(Self { server: server.clone(), conn: connect(server).await?, limit: usize::MAX })
    }
}

#[async_trait]
impl TableReader for Comparer {
    async fn table(&mut self, schema: Option<&str>, name: &str) -> Result<Option<TableSchema>> {
        let database = schema.unwrap_or(&self.server.database).to_owned();
        let found = list(&mut self.conn, &database).await?;
        Ok(found.into_iter().map(|found| found.schema).find(|table| table.name == name))
    }

    async fn rows(&mut self, table: &TableSchema, after: Option<&Row>, limit: usize) -> Result<Vec<Row>> {
        let limit = limit.min(self.limit);
        let piece = Box::pin(read(&mut self.conn, table, after.map(Vec::as_slice), limit)).await?;
        self.limit = piece.next_limit(self.limit);
        Ok(piece.rows)
    }

    async fn find(&mut self, table: &TableSchema, keys: &[Row]) -> Result<Vec<Option<Row>>> {
        let readings: Vec<_> = table.columns.iter().map(|column| Reading::of(&column.declared_type)).collect();
        let columns: Vec<_> = table.key_columns().into_iter().map(|i| &table.columns[i]).collect();
        let mut found: HashMap<String, Row> = HashMap::new();
        for keys in keys.chunks(FIND_KEYS) {
            let (mut conditions, mut parameters) = (Vec::new(), Vec::new());
            for key in keys {
                let equal = columns.iter().zip(key).map(|(column, value)| {
                    let (mark, value) = placeholder(&column.declared_type, value);
                    parameters.push(value);
                    format!("{} = {mark}", identifier(&column.name))
                });
                conditions.push(format!("({})", equal.collect::<Vec<_>>().join(" AND ")));
            }
            let (list, from) = (column_list(table), full_identifier(table));
            let sql = format!("SELECT {list} FROM {from} WHERE {}", conditions.join(" OR "));
            let rows: Vec<mysql_async::Row> = self.conn.exec(sql, parameters).await.map_err(|e| driver_error(&e))?;
            for row in rows {
                let row: Result<Row> =
                    row.unwrap().into_iter().zip(&readings).map(|(value, reading)| reading.value(value)).collect();
                let row = row?;
                found.insert(format!("{:?}", table.key_of(&row)), row);
            }
        }
        Ok(keys.iter().map(|key| found.get(&format!("{key:?}")).cloned()).collect())
    }
}
