//! How far the server's log is ahead, and what the slot keeps of it.

use sqlx::PgConnection;

use super::{endpoint::query, position::StreamPosition};
use crate::{Result, connector::SourceLag};

pub(super) async fn lag(side: &mut PgConnection, position: &StreamPosition) -> Result<SourceLag> {
    let sql = format!(
        "SELECT GREATEST(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '{at}'), 0)::bigint::text, \
         (SELECT GREATEST(pg_wal_lsn_diff(pg_current_wal_flush_lsn(), restart_lsn), 0)::bigint::text \
         FROM pg_catalog.pg_replication_slots WHERE slot_name = '{slot}')",
        at = position.lsn,
        slot = position.slot
    );
    let row = query(side, "measure the lag", sql).await?.into_iter().next().unwrap_or_default();
    let bytes = |at: usize| row.get(at)?.as_ref()?.parse().ok();
    Ok(SourceLag { position: Some(position.lsn.to_string()), behind_bytes: bytes(0), retained_bytes: bytes(1) })
}
