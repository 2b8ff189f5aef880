//! A copy of the log while it is at work.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json,
    extract::{State as Extract, rejection::JsonRejection},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_core::Error;

use super::{ApiError, State, unread};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// A folder that is not there or empty, as a whole path.
    to: PathBuf,
}

pub async fn make(
    Extract(state): Extract<State>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let Json(Wanted { to }) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    if !to.is_absolute() {
        return Err(Error::invalid(format!("{} is not a whole path", to.display())).into());
    }
    let (engine, folder) = (Arc::clone(state.log.engine()), to.clone());
    let made = tokio::task::spawn_blocking(move || engine.backup(&folder)).await;
    let report = made.map_err(|e| Error::internal("a backup").with_source(e))??;
    Ok(Json(json!({ "to": to, "lsn": report.lsn, "segments": report.segments, "bytes": report.bytes })))
}
