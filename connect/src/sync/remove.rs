//! `sync rm`: removes what a sync made in the source, in the log and in the target's bookkeeping. The target's tables stay.

use std::{collections::BTreeMap, sync::Arc};

use tidemill_core::log::{Session, Table};

use super::{captures, file::SyncSpec, health, known::Known, owner_of, parked, run::capture_parts};
use crate::{ErrorKind, Result, converter::TopicSchema};

/// Removes a sync; tells what was done, a line each.
///
/// `force` also removes a capture that this log knows nothing of, as after the data directory was lost, and leaves the
/// bookkeeping of a target alone that belongs to another log.
///
/// # Errors
/// `Conflict` where the source carries a capture that this log does not know, unless forced; `Unavailable` where the
/// source is locked. What was removed before stays removed; calling it again goes on.
pub async fn remove(session: Arc<dyn Session>, spec: &SyncSpec, force: bool) -> Result<Vec<String>> {
    let owner = owner_of(&spec.name);
    let mut writer = session.writer(&owner).await?;
    let prefix = format!("{}.", spec.name);
    let topics: Vec<_> = session.topics().await?.into_iter().filter(|topic| topic.name.starts_with(&prefix)).collect();
    let stored = capture_parts(writer.positions());
    let mut done = match captures::other_owner(spec, &Known::of(&*session).await?).await? {
        // Nobody takes the triggers of a sync that is alive, by whatever name.
        Some(other) => vec![format!("source {}: its capture is sync {other}'s and stays", spec.from)],
        None => {
            let removed = spec.from.source()?.remove(&spec.name, &session.log_id(), &stored, force).await;
            removed.map_err(|error| spec.typed_error(&error))?
        }
    };
    for name in writer.positions().keys().cloned().collect::<Vec<_>>() {
        writer.set_position(&name, None);
    }
    writer.commit().await?;
    for owner in [parked::owner_of(&spec.name), health::owner_of(&spec.name)] {
        let mut writer = session.writer(&owner).await?;
        for name in writer.positions().keys().cloned().collect::<Vec<_>>() {
            writer.set_position(&name, None);
        }
        writer.commit().await?;
    }
    for topic in topics {
        session.delete_topic(&topic.name).await?;
        done.push(format!("topic {} deleted", topic.name));
    }
    for (key, entry) in session.table(Table::Schemas).await? {
        if TopicSchema::decode(entry.value.as_bytes())?.sync == spec.name {
            session.put(Table::Schemas, &key, None, Some(entry.version)).await?;
        }
    }
    match spec.to.sink()?.forget(&spec.name, &session.log_id()).await {
        Ok(forgotten) => done.extend(forgotten),
        Err(error) if force && error.kind() == ErrorKind::Conflict => {
            done.push(format!("target {} belongs to another log and was left alone", spec.to));
        }
        Err(error) if force && error.kind() == ErrorKind::Unavailable => {
            done.push(format!(
                "target {} is not there: what it keeps of the sync's positions stays ({error})",
                spec.to
            ));
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            let removed =
                "the sync is removed from source and log; its positions in the target are not, for that is not there";
            let cure = spec.named("tidemill sync rm FILE --force");
            return Err(error.context(format!("{removed}; try again when it is, or leave them: {cure}")));
        }
        Err(error) => return Err(error),
    }
    Ok(done)
}

/// Removes the capture of a sync whose log is lost from its source; tells what was done, a line each. The target keeps
/// what it has.
///
/// # Errors
/// `Unavailable` where the source is locked.
pub async fn remove_capture(spec: &SyncSpec) -> Result<Vec<String>> {
    let removed = spec.from.source()?.remove(&spec.name, "", &BTreeMap::new(), true).await?;
    Ok(match removed.is_empty() {
        true => vec![format!("source {} carries no capture", spec.from)],
        false => removed,
    })
}
