//! `sync rm`: removes what a sync made in the source, in the log and in the target's bookkeeping. The target's tables stay.

use std::{path::Path, sync::Arc};

use tidemill_core::log::{Session, Table};

use super::{
    file::{Endpoint, SyncSpec},
    owner_of,
};
use crate::{
    Error, ErrorKind, Result,
    command::with_file,
    converter::TopicSchema,
    sqlite::{self, SqliteSink},
};

/// Removes a sync; tells what was done, a line each.
///
/// `force` also removes a capture that this log knows nothing of, as after the data directory was lost, and leaves the
/// bookkeeping of a target alone that belongs to another log.
///
/// # Errors
/// `Conflict` where the source carries a capture that this log does not know, unless forced; `Unavailable` where the
/// source is locked. What was removed before stays removed; calling it again goes on.
pub async fn remove(session: Arc<dyn Session>, spec: &SyncSpec, force: bool) -> Result<Vec<String>> {
    let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&spec.from, &spec.to);
    let mut done = Vec::new();
    let owner = owner_of(&spec.name);
    let mut writer = session.writer(&owner).await?;
    let prefix = format!("{}.", spec.name);
    let topics: Vec<_> = session.topics().await?.into_iter().filter(|topic| topic.name.starts_with(&prefix)).collect();
    let known = writer.positions().contains_key("capture");
    let foreign = !known && from.exists() && carries_capture(from)?;
    if foreign && !force {
        return Err(Error::conflict(format!(
            "source {} carries a capture that this log knows nothing of: name the right data directory, or, if that one is \
             lost: {}",
            from.display(),
            with_file("tidemill sync rm FILE --force", &spec.file)
        )));
    }
    let captured = known || foreign;
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
        match forgotten.await.map_err(|e| Error::internal("forget the sync").with_source(e))? {
            Ok(()) => done.push(format!("target {}: positions removed, its tables stay", to.display())),
            Err(error) if force && error.kind() == ErrorKind::Conflict => {
                done.push(format!("target {} belongs to another log and was left alone", to.display()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Removes the capture of a sync whose log is lost from its source; tells what was done, a line each. The target keeps
/// what it has.
///
/// # Errors
/// `Unavailable` where the source is locked.
pub async fn remove_capture(spec: &SyncSpec) -> Result<Vec<String>> {
    let Endpoint::Sqlite(from) = &spec.from;
    if !from.exists() || !carries_capture(from)? {
        return Ok(vec![format!("source {} carries no capture", from.display())]);
    }
    let path = from.clone();
    let removed = tokio::task::spawn_blocking(move || sqlite::uninstall(&path, None));
    removed.await.map_err(|e| Error::internal("remove the capture").with_source(e))??;
    Ok(vec![format!("source {}: triggers and tables of the capture removed", from.display())])
}

fn carries_capture(source: &Path) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 4) = '_tm_')";
    let found = sqlite::open_source(source)?.query_row(sql, [], |row| row.get(0));
    found.map_err(|e| Error::unavailable(format!("look into {}", source.display())).with_source(e))
}
