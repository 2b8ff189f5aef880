//! `sync rm`: removes what a sync made in the source, in the log and in the target's bookkeeping. The target's tables stay.

use std::{path::Path, sync::Arc};

use tidemill_core::log::{Session, Table};

use super::{
    file::{Endpoint, SyncSpec},
    owner_of,
};
use crate::{
    Error, Result,
    converter::TopicSchema,
    sqlite::{self, SqliteSink},
};

/// Removes a sync; tells what was done, a line each.
///
/// # Errors
/// `Unavailable` where the source is locked. What was removed before stays removed; calling it again goes on.
pub async fn remove(session: Arc<dyn Session>, spec: &SyncSpec) -> Result<Vec<String>> {
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    let mut done = Vec::new();
    let owner = owner_of(&spec.name);
    let mut writer = session.writer(&owner).await?;
    let prefix = format!("{}.", spec.name);
    let topics: Vec<_> = session.topics().await?.into_iter().filter(|topic| topic.name.starts_with(&prefix)).collect();
    // A log that knows nothing of the sync: its data directory was lost, and nobody else can remove the capture.
    let unknown = writer.positions().is_empty() && topics.is_empty();
    let captured = writer.positions().contains_key("capture") || (unknown && from.exists() && carries_capture(from)?);
    if captured && from.exists() {
        let path = from.clone();
        let removed = tokio::task::spawn_blocking(move || sqlite::uninstall(&path, None));
        removed.await.map_err(|e| Error::internal("remove the capture").with_source(e))??;
        done.push(format!("source {}: triggers and tables of the capture removed", from.display()));
    } else if captured {
        done.push(format!("source {} does not exist: nothing removed there", from.display()));
    }
    for name in writer.positions().keys().cloned().collect::<Vec<_>>() {
        writer.set_position(&name, None);
    }
    writer.commit().await?;
    for topic in topics {
        session.delete_topic(&topic.name).await?;
        done.push(format!("topic {} deleted", topic.name));
    }
    for (key, entry) in session.table(Table::Schemas).await? {
        if TopicSchema::decode(entry.value.as_bytes())?.sync == spec.name {
            session.put(Table::Schemas, &key, None, Some(entry.version)).await?;
        }
    }
    if to.exists() {
        let (path, sync, log_id) = (to.clone(), spec.name.clone(), session.log_id());
        let forgotten = tokio::task::spawn_blocking(move || SqliteSink::open(&path, &sync, &log_id)?.forget(&sync));
        forgotten.await.map_err(|e| Error::internal("forget the sync").with_source(e))??;
        done.push(format!("target {}: positions removed, its tables stay", to.display()));
    }
    Ok(done)
}

fn carries_capture(source: &Path) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 4) = '_tm_')";
    let found = sqlite::open_source(source)?.query_row(sql, [], |row| row.get(0));
    found.map_err(|e| Error::unavailable(format!("look into {}", source.display())).with_source(e))
}
