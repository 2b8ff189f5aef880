//! A SQLite file feeds one sync: its triggers are that sync's. Whose they are, as far as a log knows.

use tokio::task::spawn_blocking;

use super::{file::SyncSpec, known::Known, rounds::goes_first};
use crate::{
    Error, Result,
    connector::{Finding, Level},
    endpoint::Endpoint,
    sqlite::guard::{CaptureFound, capture_in},
};

/// What a finding about the capture is about.
pub(super) const SUBJECT: &str = "capture";

/// The other sync of the log that the capture in a sync's source belongs to.
pub(super) async fn other_owner(spec: &SyncSpec, known: &Known) -> Result<Option<String>> {
    let Endpoint::Sqlite(_) = &spec.from else { return Ok(None) };
    let (from, found) = (spec.from.identity(), found_in(spec).await?);
    let id = match &found {
        CaptureFound::None => None,
        CaptureFound::Unconfirmed(id) | CaptureFound::Of(id) => Some(id),
    };
    let mut others = known.syncs.iter().filter(|(name, _)| **name != spec.name);
    let other = others.find(|(_, sync)| match (id, &sync.capture) {
        (Some(id), Some(own)) => id == own,
        _ => sync.capture.is_some() && sync.ends.as_ref().is_some_and(|ends| ends.from == from),
    });
    Ok(other.map(|(name, _)| name.clone()))
}

/// Whether a SQLite source is free for a sync, where its log is known; else only what its file asks for.
pub(super) async fn finding(spec: &SyncSpec, beside: &[SyncSpec], known: &Known) -> Result<Option<Finding>> {
    let Endpoint::Sqlite(path) = &spec.from else { return Ok(None) };
    let refused = |message: String, cure: &str| Some(Finding::new(SUBJECT, Level::Refuse, message, Some(cure.into())));
    let shown = path.display();
    if let Some(other) = other_owner(spec, known).await? {
        let message = format!("{shown} feeds sync {other}, and a SQLite file feeds one sync");
        let cure = format!("leave this sync out, or remove sync {other} first, with the file that names it");
        return Ok(refused(message, &cure));
    }
    if let Some((message, cure)) = self::beside(spec, beside, known) {
        return Ok(refused(message, cure));
    }
    if known.log_id.is_empty() {
        return Ok(None);
    }
    let own = known.syncs.get(&spec.name).and_then(|sync| sync.capture.as_ref());
    Ok(match found_in(spec).await? {
        CaptureFound::Of(id) if own == Some(&id) => {
            Some(Finding::new(SUBJECT, Level::Ok, "installed, and this sync's", None))
        }
        CaptureFound::Of(_) if own.is_none() => refused(
            format!("{shown} carries a capture of a sync of another log, or of one whose log is lost"),
            "if nothing follows it any more: tidemill sync rm FILE --force",
        ),
        _ => None,
    })
}

/// Why a sync of a file cannot be fed beside one that comes before it, and what to do.
pub(super) fn beside(spec: &SyncSpec, beside: &[SyncSpec], known: &Known) -> Option<(String, &'static str)> {
    let Endpoint::Sqlite(path) = &spec.from else { return None };
    let from = spec.from.identity();
    let other = goes_first(spec, beside, known).find(|other| other.from.identity() == from)?;
    let shown = path.display();
    let message = format!("{shown} is to feed sync {} of this file, too: a SQLite file feeds one sync", other.name);
    Some((message, "leave one of the two out"))
}

async fn found_in(spec: &SyncSpec) -> Result<CaptureFound> {
    let Endpoint::Sqlite(path) = &spec.from else { return Ok(CaptureFound::None) };
    let path = path.clone();
    let looked = spawn_blocking(move || capture_in(&path)).await;
    looked.map_err(|e| Error::internal("look for a capture").with_source(e))?
}
