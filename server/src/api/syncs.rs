//! Syncs over HTTP.

use axum::{
    Json,
    extract::{Path, Query, State as Extract, rejection::JsonRejection},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_connect::sync::{
    control::{Answer, Ask},
    known::Known,
    status::Status,
};

use super::{ApiError, State, unread};
use crate::syncs::{Applied, Names};

pub async fn list(Extract(state): Extract<State>) -> Result<Json<Vec<Status>>, ApiError> {
    Ok(Json(state.syncs.status().await?))
}

/// What `sync check` asks.
pub async fn known(Extract(state): Extract<State>) -> Result<Json<Known>, ApiError> {
    Ok(Json(Known::of(&*state.session().await?).await?))
}

pub async fn apply(
    Extract(state): Extract<State>,
    applied: Result<Json<Applied>, JsonRejection>,
) -> Result<Json<Names>, ApiError> {
    let Json(applied) = applied.map_err(|rejection| unread(rejection.body_text()))?;
    Ok(Json(state.syncs.apply(&applied).await?))
}

#[derive(Deserialize)]
pub struct Remove {
    #[serde(default)]
    force: bool,
}

pub async fn remove(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    Query(how): Query<Remove>,
) -> Result<Json<JsonValue>, ApiError> {
    Ok(Json(json!({ "done": state.syncs.remove(&name, how.force).await? })))
}

pub async fn retry(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    Ok(told(state.syncs.control(&name)?.ask(Ask::Retry).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Skip {
    key: String,
}

pub async fn skip(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    skip: Result<Json<Skip>, JsonRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let Json(skip) = skip.map_err(|rejection| unread(rejection.body_text()))?;
    Ok(told(state.syncs.control(&name)?.ask(Ask::Skip(skip.key)).await?))
}

fn told(answer: Answer) -> Json<JsonValue> {
    Json(json!({ "released": answer.released, "parked": answer.parked }))
}
