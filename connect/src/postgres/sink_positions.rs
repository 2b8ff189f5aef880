//! The table of positions in a PostgreSQL target.

use sqlx::PgConnection;

use super::endpoint::{TextRow, execute, literal, query, query_one};
use crate::{
    Error, Result,
    target::{POSITIONS, existing::Writer, ledger::Stored},
};

/// All syncs that write to the target, with their topics that have tables.
pub(super) async fn writers(conn: &mut PgConnection) -> Result<Vec<Writer>> {
    let doing = "read the target's positions";
    let exists = format!("SELECT to_regclass('public.{POSITIONS}')::text");
    if query_one(conn, doing, exists).await?.is_none() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT sync, log_id, topic FROM public.{POSITIONS} WHERE schema IS NOT NULL");
    let writer = |row: TextRow| {
        let [sync, log_id, topic] = <[Option<String>; 3]>::try_from(row).ok()?;
        Some(Writer { sync: sync?, log_id: log_id?, topic: topic? })
    };
    Ok(query(conn, doing, sql).await?.into_iter().filter_map(writer).collect())
}

/// The sync's rows of the table of positions, locked where asked; `None` without the table.
pub(super) async fn stored(conn: &mut PgConnection, sync: &str, lock: bool) -> Result<Option<Vec<Stored>>> {
    let doing = "read the target's positions";
    let exists = format!("SELECT to_regclass('public.{POSITIONS}')::text");
    if query_one(conn, doing, exists).await?.is_none() {
        return Ok(None);
    }
    let lock = if lock { "FOR UPDATE" } else { "" };
    read_stored(query(conn, doing, stored_sql(sync, "", lock)).await?).map(Some)
}

/// Begins a transaction with the sync's lock, by this function. Rows are locked too, but before there are any, two workers
/// that start at once would both find none; and who waits for a row's lock does not see the rows that a lane added.
pub(super) fn begin_sql(sync: &str, lock: &str) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {lock}(hashtext({}))", literal(&format!("tidemill/{sync}")))
}

/// The rows of a statement that comes after the lock's, whose answer has one column.
pub(super) async fn read_locked(conn: &mut PgConnection, sql: String) -> Result<Vec<Stored>> {
    read_stored(query(conn, "begin", sql).await?.into_iter().filter(|row| row.len() > 1).collect())
}

/// Reads the sync's rows, `only` some, with a lock.
pub(super) fn stored_sql(sync: &str, only: &str, lock: &str) -> String {
    format!(
        "SELECT topic, log_id, next_offset::text, schema::text, columns::text, generation::text \
         FROM public.{POSITIONS} WHERE sync = {} {only} ORDER BY topic {lock}",
        literal(sync)
    )
}

fn read_stored(rows: Vec<TextRow>) -> Result<Vec<Stored>> {
    let row = |row: Vec<Option<String>>| -> Option<Stored> {
        let mut cells = row.into_iter();
        let mut next = || cells.next().flatten();
        let (topic, log_id) = (next()?, next()?);
        let mut number = || next().map(|text| text.parse::<i64>());
        let (next_offset, copy, schema) = (number()?.ok()?, number().transpose().ok()?, number().transpose().ok()?);
        Some(Stored { topic, log_id, next_offset, copy, schema, generation: number()?.ok()? })
    };
    let malformed = || Error::corrupt(format!("table {POSITIONS} of the target is malformed"));
    rows.into_iter().map(row).collect::<Option<Vec<_>>>().ok_or_else(malformed)
}

pub(super) async fn make_positions(conn: &mut PgConnection) -> Result<()> {
    let sql = format!(
        "CREATE TABLE public.{POSITIONS} (sync text NOT NULL, log_id text NOT NULL, topic text NOT NULL, \
         next_offset bigint NOT NULL, schema bigint, columns bigint, generation bigint NOT NULL, \
         PRIMARY KEY (sync, topic))"
    );
    execute(conn, "make the table of positions", sql).await
}
