//! How far the server's log is ahead, and what the slot keeps of it.

use sqlx::PgConnection;

use super::{
    endpoint::{connect, query},
    position::{Lsn, StreamPosition},
    source::log_end,
};
use crate::{Result, connector::SourceLag, endpoint::Server};

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

/// Where the server's log ends now, as [`SourceLag::position`] writes it.
pub(crate) async fn end(server: &Server) -> Result<String> {
    Ok(log_end(&mut connect(server).await?).await?.to_string())
}

/// Whether a position is at a place of the log or behind it.
pub(crate) fn is_reached(position: &str, place: &str) -> bool {
    let lsn = |text: &str| Lsn::try_from(text.to_owned()).ok();
    lsn(position).zip(lsn(place)).is_some_and(|(position, place)| position >= place)
}
