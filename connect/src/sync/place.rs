//! Where a source is now, as its database says, and whether a sync has read that far.
//!
//! A place is text as [`SourceLag::position`](crate::connector::SourceLag::position) writes it, so that a process that
//! only hears of a sync can compare.

use tokio::task::spawn_blocking;

use crate::{Error, Result, endpoint::Endpoint, mysql, postgres, sqlite};

/// The source's present end; none where nothing of it is captured yet.
///
/// # Errors
/// `Unavailable`, `Denied`.
pub(super) async fn end_of(source: &Endpoint) -> Result<Option<String>> {
    match source {
        Endpoint::Postgres(server) => postgres::lag::end(server).await.map(Some),
        Endpoint::Mysql(server) => mysql::lag::end(server).await.map(Some),
        Endpoint::Sqlite(path) => {
            let path = path.clone();
            let read = spawn_blocking(move || sqlite::guard::captured_end(&path)).await;
            read.map_err(|e| Error::internal("look at the source's end").with_source(e))?
        }
    }
}

/// Whether a sync that is at `position` has read all that came before `place`.
pub(super) fn is_reached(source: &Endpoint, position: &str, place: &str) -> bool {
    match source {
        Endpoint::Postgres(_) => postgres::lag::is_reached(position, place),
        Endpoint::Mysql(_) => mysql::lag::is_reached(position, place),
        Endpoint::Sqlite(_) => sqlite::guard::is_reached(position, place),
    }
}
