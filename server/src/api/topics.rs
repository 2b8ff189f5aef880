//! Topics over HTTP.

use axum::{
    Json,
    extract::{Path, State as Extract},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_core::topic::{TopicPartition, TopicSpec};

use super::{ApiError, State};

pub async fn list(Extract(state): Extract<State>) -> Result<Json<JsonValue>, ApiError> {
    let session = state.session().await?;
    let mut list = Vec::new();
    for topic in session.topics().await? {
        let partitions: Vec<_> = (0..topic.partitions).map(|n| TopicPartition::new(&topic.name, n)).collect();
        let bounds = session.bounds(&partitions).await?;
        let partitions: Vec<_> = bounds
            .iter()
            .map(|b| json!({ "log_start_offset": b.log_start_offset, "log_end_offset": b.durable_offset }))
            .collect();
        list.push(json!({ "name": topic.name, "id": topic.id, "partitions": partitions }));
    }
    Ok(Json(list.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    #[serde(default = "one")]
    partitions: u32,
}

fn one() -> u32 {
    1
}

pub async fn create(Extract(state): Extract<State>, Json(wanted): Json<Create>) -> Result<Json<JsonValue>, ApiError> {
    let session = state.session().await?;
    let topic = session.create_topic(&wanted.name, &TopicSpec { partitions: wanted.partitions }).await?;
    Ok(Json(json!({ "name": topic.name, "id": topic.id, "partitions": topic.partitions })))
}

pub async fn remove(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    state.session().await?.delete_topic(&name).await?;
    Ok(Json(json!({ "deleted": name })))
}
