//! Groups over HTTP.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State as Extract, rejection::JsonRejection},
};
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_core::{
    Error,
    group::{GroupDescription, Groups, Progress, ResetTo, State as GroupState},
    record::Timestamp,
    topic::{INTERNAL_PREFIX, TopicPartition},
};

use super::{ApiError, State, moment, records::find, unread};

fn groups(state: &State) -> Groups {
    Groups::of(state.log.engine())
}

fn state_name(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "empty",
        GroupState::Preparing => "preparing",
        GroupState::Completing => "completing",
        GroupState::Stable => "stable",
        GroupState::Dead => "dead",
    }
}

pub async fn list(Extract(state): Extract<State>) -> Result<Json<JsonValue>, ApiError> {
    // Those of leases are the log's own.
    let all = groups(&state).list().into_iter().filter(|group| !group.name.starts_with(INTERNAL_PREFIX));
    let shown = all.map(|g| json!({ "name": g.name, "state": state_name(g.state), "members": g.members }));
    Ok(Json(shown.collect::<Vec<_>>().into()))
}

pub async fn show(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    let groups = groups(&state);
    // How long a record waits may have to be read from the disk.
    let described = tokio::task::spawn_blocking(move || groups.describe(&name)).await;
    let described = described.map_err(|e| Error::internal("describe a group").with_source(e))??;
    Ok(Json(shown(&described)))
}

fn shown(group: &GroupDescription) -> JsonValue {
    let members = group.members.iter().map(|member| {
        json!({
            "id": member.id, "instance": member.instance, "client": member.client_id, "host": member.client_host,
        })
    });
    let offsets = group.offsets.iter().map(|(of, Progress { committed, bounds, lag, lag_time })| {
        json!({
            "topic": of.topic, "partition": of.partition,
            "offset": committed.as_ref().map(|c| c.offset),
            "metadata": committed.as_ref().map(|c| c.metadata.as_str()),
            "log_end_offset": bounds.durable_offset,
            "lag": lag, "lag_seconds": lag_time.map(|time| time.as_secs_f64()),
        })
    });
    json!({
        "name": group.name, "state": state_name(group.state), "generation": group.generation,
        "members": members.collect::<Vec<_>>(), "offsets": offsets.collect::<Vec<_>>(),
    })
}

pub async fn remove(Extract(state): Extract<State>, Path(name): Path<String>) -> Result<Json<JsonValue>, ApiError> {
    groups(&state).delete(&name).await.map_err(|refusal| refusal.of(&name))?;
    Ok(Json(json!({ "deleted": name })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    topic: String,
    #[serde(default)]
    partitions: Option<Vec<u32>>,
    /// `earliest`, `latest`, an offset, `+N` or `-N` from what is committed, or a time.
    to: String,
    #[serde(default)]
    dry_run: bool,
}

/// Sets a group's offsets of a topic; answers with what was, and what is then.
pub async fn reset(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    wanted: Result<Json<Wanted>, JsonRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let Json(wanted) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    let session = state.session().await?;
    let topic = find(&*session, &wanted.topic).await?;
    let to = target(&wanted.to, state.log.engine().clock().now())?;
    let numbers = wanted.partitions.unwrap_or_else(|| (0..topic.partitions).collect());
    let partitions: Vec<_> = numbers.into_iter().map(|n| TopicPartition::new(&wanted.topic, n)).collect();
    let resets: BTreeMap<_, _> = groups(&state).reset(&name, &partitions, to, wanted.dry_run).await?;
    let changes = resets
        .iter()
        .map(|(of, reset)| json!({ "topic": of.topic, "partition": of.partition, "from": reset.from, "to": reset.to }));
    Ok(Json(json!({ "group": name, "dry_run": wanted.dry_run, "offsets": changes.collect::<Vec<_>>() })))
}

fn target(text: &str, now: Timestamp) -> Result<ResetTo, Error> {
    let signed = text.strip_prefix(['+', '-']).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    match text {
        "earliest" => Ok(ResetTo::Earliest),
        "latest" => Ok(ResetTo::Latest),
        _ if moment::is_moment(text) && !signed => moment::parse(text, now.0).map(|ms| ResetTo::Time(Timestamp(ms))),
        _ => {
            let number = text.parse::<i64>().map_err(|_| {
                Error::invalid(format!("to={text:?} is not earliest, latest, an offset, +N, -N or a time such as -15m"))
            })?;
            Ok(if signed { ResetTo::Shift(number) } else { ResetTo::Offset(number) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let now = Timestamp(1_000_000);
        assert_eq!(target("earliest", now).unwrap(), ResetTo::Earliest);
        assert_eq!(target("17", now).unwrap(), ResetTo::Offset(17));
        assert_eq!(target("-17", now).unwrap(), ResetTo::Shift(-17));
        assert_eq!(target("+3", now).unwrap(), ResetTo::Shift(3));
        assert_eq!(target("-10s", now).unwrap(), ResetTo::Time(Timestamp(990_000)));
        assert_eq!(target("@5", now).unwrap(), ResetTo::Time(Timestamp(5)));
        assert!(target("middle", now).is_err() && target("-", now).is_err() && target("1x", now).is_err());
    }
}
