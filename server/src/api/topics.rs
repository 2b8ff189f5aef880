//! Topics over HTTP.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract, rejection::JsonRejection},
};
use serde::Deserialize;
use serde_json::{Map as JsonMap, Value as JsonValue, json};
use tidemill_connect::converter::TopicSchema;
use tidemill_core::{
    Error,
    log::{Session, Table, Topic, TopicChange},
    topic::{TopicConfig, TopicPartition, TopicSpec},
};

use super::{ApiError, State, records::find, unread};

pub async fn list(Extract(state): Extract<State>) -> Result<Json<JsonValue>, ApiError> {
    let session = state.session().await?;
    let mut list = Vec::new();
    for topic in session.topics().await? {
        list.push(shown(&*session, &topic).await?);
    }
    Ok(Json(list.into()))
}

/// A topic with the bounds of its partitions.
async fn shown(session: &dyn Session, topic: &Topic) -> Result<JsonValue, Error> {
    let partitions: Vec<_> = (0..topic.partitions).map(|n| TopicPartition::new(&topic.name, n)).collect();
    let bounds = session.bounds(&partitions).await?;
    let partitions: Vec<_> = bounds
        .iter()
        .map(|b| json!({ "log_start_offset": b.log_start_offset, "log_end_offset": b.durable_offset }))
        .collect();
    Ok(json!({ "name": topic.name, "id": topic.id, "partitions": partitions }))
}

/// One topic, with all settings in force.
pub async fn show(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    let session = state.session().await?;
    let topic = find(&*session, &name).await?;
    let mut told = shown(&*session, &topic).await?;
    let config = session.topic_config(&name).await?;
    let settings = TopicConfig::names().map(|name| (name, config.get(name)));
    told["config"] = settings.map(|(name, value)| (name.to_owned(), json!(value))).collect::<JsonMap<_, _>>().into();
    Ok(Json(told))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alter {
    partitions: Option<u32>,
    #[serde(default)]
    config: BTreeMap<String, Option<String>>,
}

/// Changes settings (`null` sets one back to its default) and adds partitions; answers as [`show`].
pub async fn alter(
    state: Extract<State>,
    name: Path<String>,
    wanted: Result<Json<Alter>, JsonRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    let session = state.0.session().await?;
    find(&*session, &name.0).await?;
    if let Some(schema) = newest_schemas(&*session).await?.remove(&name.0)
        && wanted.partitions.is_some()
    {
        let message = format!("topic {} is written by sync {}, which gives it its partitions", name.0, schema.sync);
        return Err(Error::conflict(message).into());
    }
    let change = TopicChange { partitions: wanted.partitions, settings: wanted.config };
    session.alter_topic(&name.0, &change).await?;
    show(state, name).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    #[serde(default = "one")]
    partitions: u32,
    #[serde(default)]
    config: BTreeMap<String, String>,
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
    let spec = TopicSpec { partitions: wanted.partitions, config: TopicConfig::try_from(wanted.config)? };
    let topic = session.create_topic(&wanted.name, &spec).await?;
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
