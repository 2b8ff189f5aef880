//! Reads tables without following them: all rows at one moment, for a copy alone, and rows by key, for comparing.

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{
    catalog::{DEFAULT_SCHEMA, find_table, from_item},
    endpoint::{connect, execute, quoted_table},
    lookup::{find_rows, page_query},
    text::{Beyond, copy_out, kinds},
};
use crate::{
    Error, Result,
    change::{Change, Op, Row, TableSchema, Value},
    connector::{Polled, Source, TableReader, TableState},
    endpoint::Server,
    patterns::leave_out,
};

/// Rows in one poll.
const ROWS: usize = 2_000;
/// Rows in the first poll of a table: nobody knows yet how large they are.
const FIRST_ROWS: usize = 100;
/// What a poll is to hold.
const BYTES: usize = 4 << 20;
/// What it holds at most, where rows are larger than those before.
const MAX_BYTES: usize = 64 << 20;

/// Reads all tables as they are at one moment, and ends. Installs nothing.
pub struct Reader {
    server: Server,
    conn: Option<PgConnection>,
    tables: Vec<TableSchema>,
    table: usize,
    after: Option<Row>,
    limit: usize,
}

impl Reader {
    /// Opens a database for reading its tables.
    ///
    /// # Errors
    /// `Unsupported` for a table without a key.
    pub(super) async fn open(server: Server, tables: Vec<TableSchema>) -> Result<Self> {
        if let Some(table) = tables.iter().find(|table| table.key_columns().is_empty()) {
            return Err(Error::unsupported(format!(
                "table {} has no key: {}",
                table.full_name(),
                leave_out(&table.full_name())
            )));
        }
        let conn = Some(snapshot(&server, &tables).await?);
        Ok(Self { server, conn, tables, table: 0, after: None, limit: FIRST_ROWS })
    }

    async fn rows(&mut self) -> Result<Vec<Row>> {
        if self.conn.is_none() {
            // The moment is gone with the connection: all is read again, as it is now.
            self.conn = Some(snapshot(&self.server, &self.tables).await?);
            (self.table, self.after, self.limit) = (0, None, FIRST_ROWS);
        }
        let (Some(conn), Some(table)) = (&mut self.conn, self.tables.get(self.table)) else { return Ok(Vec::new()) };
        let doing = format!("read table {}", table.full_name());
        let from = from_item(conn, table).await?;
        let sql = page_query(table, &from, self.after.as_deref(), self.limit);
        let (rows, size, _) = copy_out(conn, &doing, kinds(table), &sql, MAX_BYTES, Beyond::Forget).await?;
        if let Some(average) = size.checked_div(rows.len()) {
            self.limit = (BYTES / average.max(1)).clamp(1, ROWS).min(self.limit * 4);
        }
        Ok(rows)
    }
}

async fn snapshot(server: &Server, tables: &[TableSchema]) -> Result<PgConnection> {
    let mut conn = connect(server).await?;
    // The first query fixes the moment, not the transaction's begin. The locks come before it: a table that is rewritten
    // meanwhile looks empty to older snapshots.
    let name = |table: &TableSchema| quoted_table(table.schema.as_deref(), &table.name);
    let names: Vec<_> = tables.iter().map(name).collect();
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '10s'; \
         LOCK TABLE {} IN ACCESS SHARE MODE; SELECT 1",
        names.join(", ")
    );
    execute(&mut conn, "begin to read", sql).await?;
    Ok(conn)
}

#[async_trait]
impl Source for Reader {
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
        if self.table >= self.tables.len() {
            return Ok(Polled { ended: true, ..Polled::default() });
        }
        let rows = self.rows().await.inspect_err(|_| self.conn = None)?;
        let table = self.table;
        let schema = &self.tables[table];
        let mut finished_tables = Vec::new();
        match rows.last() {
            Some(last) => self.after = Some(schema.key_of(last)),
            None => {
                finished_tables.push(table);
                (self.table, self.after, self.limit) = (table + 1, None, FIRST_ROWS);
            }
        }
        let change = |row: Row| {
            let key = schema.key_of(&row);
            Change { table, op: Op::Read, key, before: None, after: Some(row), sequence: 0 }
        };
        let changes = rows.into_iter().map(change).collect();
        Ok(Polled { changes, finished_tables, more: true, ..Polled::default() })
    }

    async fn commit(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Rows by key, for comparing.
pub struct Rows {
    server: Server,
    conn: Option<PgConnection>,
    /// So many rows are asked for, as far as is known of their size.
    limit: usize,
}

impl Rows {
    pub(super) async fn open(server: Server) -> Result<Self> {
        let conn = Some(connect(&server).await?);
        Ok(Self { server, conn, limit: usize::MAX })
    }

    /// The connection; it is put back only where nothing failed.
    async fn conn(&mut self) -> Result<PgConnection> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => connect(&self.server).await,
        }
    }
}

#[async_trait]
impl TableReader for Rows {
    async fn table(&mut self, schema: Option<&str>, name: &str) -> Result<Option<TableSchema>> {
        let mut conn = self.conn().await?;
        let found = find_table(&mut conn, schema.unwrap_or(DEFAULT_SCHEMA), name).await?;
        self.conn = Some(conn);
        Ok(found)
    }

    async fn rows(&mut self, table: &TableSchema, after: Option<&Row>, limit: usize) -> Result<Vec<Row>> {
        let mut conn = self.conn().await?;
        let from = from_item(&mut conn, table).await?;
        let sql = page_query(table, &from, after.map(Vec::as_slice), limit.min(self.limit));
        let doing = format!("read table {}", table.full_name());
        let (rows, size, whole) = copy_out(&mut conn, &doing, kinds(table), &sql, MAX_BYTES, Beyond::Stop).await?;
        if let Some(average) = size.checked_div(rows.len()) {
            self.limit = (MAX_BYTES / average.max(1)).max(1).min(self.limit.saturating_mul(4));
        }
        self.conn = whole.then_some(conn);
        Ok(rows)
    }

    async fn find(&mut self, table: &TableSchema, keys: &[Row]) -> Result<Vec<Option<Row>>> {
        let mut conn = self.conn().await?;
        let columns: Vec<usize> = (0..table.columns.len()).collect();
        let keys: Vec<&[Value]> = keys.iter().map(Vec::as_slice).collect();
        let found = find_rows(&mut conn, table, &columns, &keys).await?;
        self.conn = Some(conn);
        Ok(found)
    }
}
