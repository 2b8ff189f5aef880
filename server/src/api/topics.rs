//! Topics over HTTP.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract, rejection::JsonRejection},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_connect::converter::TopicSchema;
use tidemill_core::{
    Error,
    log::{Session, Table},
    topic::{TopicPartition, TopicSpec},
};

use super::{ApiError, State, records::find, unread};

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

pub async fn create(
    Extract(state): Extract<State>,
    wanted: Result<Json<Create>, JsonRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    let session = state.session().await?;
    let topic = session.create_topic(&wanted.name, &TopicSpec::partitions(wanted.partitions)).await?;
    Ok(Json(json!({ "name": topic.name, "id": topic.id, "partitions": topic.partitions })))
}

pub async fn remove(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    let session = state.session().await?;
    find(&*session, &name).await?;
    if let Some(schema) = newest_schemas(&*session).await?.remove(&name) {
        let message = format!(
            "topic {name} is written by sync {}; to remove the sync with its topics: tidemill sync rm FILE",
            schema.sync
        );
        return Err(Error::conflict(state.syncs.typed(&schema.sync).text(&message)).into());
    }
    session.delete_topic(&name).await?;
    Ok(Json(json!({ "deleted": name })))
}

/// The tables behind the topics of syncs.
pub async fn schemas(Extract(state): Extract<State>) -> Result<Json<Vec<TopicSchema>>, ApiError> {
    let session = state.session().await?;
    Ok(Json(newest_schemas(&*session).await?.into_values().collect()))
}

/// The present schema of each topic that a sync writes.
async fn newest_schemas(session: &dyn Session) -> Result<BTreeMap<String, TopicSchema>, Error> {
    let mut newest: BTreeMap<String, TopicSchema> = BTreeMap::new();
    for entry in session.table(Table::Schemas).await?.values() {
        let schema = TopicSchema::decode(entry.value.as_bytes())?;
        if newest.get(&schema.topic).is_none_or(|known| known.id < schema.id) {
            newest.insert(schema.topic.clone(), schema);
        }
    }
    Ok(newest)
}
