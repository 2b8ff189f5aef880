//! The table of positions in a target of MariaDB or MySQL.

use mysql_async::{Conn, prelude::Queryable};

use super::{
    sink::first,
    sink_write::{literal, refused, run},
};
use crate::{
    Result,
    target::{POSITIONS, existing::Writer, ledger::Stored},
};

/// All syncs that write to the target, with their topics that have tables.
pub(super) async fn writers(conn: &mut Conn) -> Result<Vec<Writer>> {
    let doing = "read the target's positions";
    let exists = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{POSITIONS}'"
    );
    let exists: Option<u8> = first(conn, doing, &exists).await?;
    if exists.is_none() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT sync, log_id, topic FROM {POSITIONS} WHERE `schema` IS NOT NULL");
    let rows: Vec<(String, String, String)> = conn.query(sql).await.map_err(|e| refused(doing, &e))?;
    Ok(rows.into_iter().map(|(sync, log_id, topic)| Writer { sync, log_id, topic }).collect())
}

/// The sync's rows of the table of positions, locked where asked; `None` without the table.
pub(super) async fn stored(conn: &mut Conn, sync: &str, lock: bool) -> Result<Option<Vec<Stored>>> {
    let doing = "read the target's positions";
    let exists = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{POSITIONS}'"
    );
    let exists: Option<u8> = first(conn, doing, &exists).await?;
    if exists.is_none() {
        return Ok(None);
    }
    read_stored(conn, sync, if lock { "FOR UPDATE" } else { "" }).await.map(Some)
}

/// The sync's rows once nobody writes them: a commit whose answer was lost, or a lane, may still be under way.
pub(super) async fn locked(conn: &mut Conn, sync: &str) -> Result<Option<Vec<Stored>>> {
    let doing = "read the target's positions";
    run(conn, doing, "START TRANSACTION").await?;
    let rows = stored(conn, sync, true).await?;
    run(conn, doing, "COMMIT").await?;
    Ok(rows)
}

/// Reads the sync's rows of the table of positions; `rest` says which, and their lock.
pub(super) async fn read_stored(conn: &mut Conn, sync: &str, rest: &str) -> Result<Vec<Stored>> {
    let sql = format!(
        "SELECT topic, log_id, next_offset, `schema`, `columns`, generation FROM {POSITIONS} WHERE sync = {} {rest}",
        literal(sync)
    );
    type Cells = (String, String, i64, Option<i64>, Option<i64>, i64);
    let rows: Vec<Cells> = conn.query(sql).await.map_err(|e| refused("read the target's positions", &e))?;
    let row = |(topic, log_id, next_offset, copy, schema, generation): Cells| Stored {
        topic,
        log_id,
        next_offset,
        copy,
        schema,
        generation,
    };
    Ok(rows.into_iter().map(row).collect())
}

pub(super) async fn make_positions(conn: &mut Conn) -> Result<()> {
    // A key of InnoDB has at most 3072 bytes, and a character counts as four of them.
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {POSITIONS} (sync varchar(128) NOT NULL, log_id varchar(128) NOT NULL, \
         topic varchar(512) NOT NULL, next_offset bigint NOT NULL, `schema` bigint, `columns` bigint, \
         generation bigint NOT NULL, PRIMARY KEY (sync, topic)) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 \
         COLLATE = utf8mb4_bin"
    );
    run(conn, "make the table of positions", sql).await
}
