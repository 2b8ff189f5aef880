//! Records over HTTP, one JSON object a line.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json,
    extract::{
        Path, Query, State as Extract,
        rejection::{BytesRejection, QueryRejection},
    },
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value as JsonValue, json};
use tidemill_core::{
    Error, ErrorKind,
    log::{Bounds, FetchOptions, Session, Topic},
    record::{FetchedRecord, Record, Timestamp},
    suggest::nearest,
    topic::{INTERNAL_PREFIX, TopicPartition, partition_of},
};

use super::{ApiError, State, moment, streamed, unread};

/// How long one fetch waits for records before it looks whether its reader is still there.
const FOLLOW_WAIT: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Option<String>,
    value: Option<String>,
    partition: Option<u32>,
}

/// Appends the records of the body, each line's in its partition; answers when all are durable.
pub async fn append(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<JsonValue>, ApiError> {
    let body = body.map_err(|rejection| unread(rejection.body_text()))?;
    let session = state.session().await?;
    let topic = find(&*session, &name).await?;
    let turn = state.turns.fetch_add(1, Ordering::Relaxed);
    let mut partitions: Vec<Vec<Record>> = vec![Vec::new(); topic.partitions as usize];
    for (number, text) in body.split(|b| *b == b'\n').enumerate().filter(|(_, text)| !text.is_empty()) {
        let line: Line =
            serde_json::from_slice(text).map_err(|e| Error::invalid(format!("line {}: {e}", number + 1)))?;
        let chosen = match (&line.partition, &line.key) {
            (Some(partition), _) => *partition,
            (None, Some(key)) => partition_of(key.as_bytes(), topic.partitions),
            // Without a key one request stays together, and requests take turns.
            (None, None) => turn % topic.partitions.max(1),
        };
        let records = partitions.get_mut(chosen as usize);
        let records = records.ok_or_else(|| Error::invalid(format!("line {}: no partition {chosen}", number + 1)))?;
        records.push(Record::new(line.key.map(Bytes::from), line.value.map(Bytes::from)));
    }
    let mut appended = Vec::new();
    for (number, records) in partitions.into_iter().enumerate().filter(|(_, records)| !records.is_empty()) {
        let count = records.len();
        let place = session.append(&TopicPartition::new(&name, number as u32), records).await?;
        appended.push(json!({
            "partition": number, "records": count,
            "first_offset": place.first_offset, "last_offset": place.last_offset,
        }));
    }
    Ok(Json(json!({ "appended": appended })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    limit: Option<u64>,
    #[serde(default)]
    follow: bool,
}

/// Streams records: those there are, and with `follow` those that come.
pub async fn fetch(
    Extract(state): Extract<State>,
    Path(name): Path<String>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(wanted) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    let session = state.session().await?;
    let topic = find(&*session, &name).await?;
    let partitions: Vec<_> = (0..topic.partitions).map(|n| TopicPartition::new(&name, n)).collect();
    let bounds = session.bounds(&partitions).await?;
    let from = wanted.from.as_deref().unwrap_or("start");
    let now = state.log.engine().clock().now();
    let moment = moment::is_moment(from).then(|| moment::parse(from, now.0)).transpose()?.map(Timestamp);
    let mut lanes = Vec::new();
    for (partition, bounds) in partitions.into_iter().zip(bounds) {
        let next = match moment {
            None => begin(from, &bounds)?,
            Some(moment) => session.offset_at_time(&partition, moment).await?.unwrap_or(bounds.durable_offset),
        };
        lanes.push(Lane { partition, next, end: (!wanted.follow).then_some(bounds.durable_offset) });
    }
    let reader = Reader { session, lanes, turn: 0, left: wanted.limit.unwrap_or(u64::MAX) };
    let pieces = stream::unfold(Some(reader), |state| async {
        let mut reader = state?;
        match reader.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(streamed("application/x-ndjson", pieces))
}

/// The topic with this name; an error tells the nearest.
pub(super) async fn find(session: &dyn Session, name: &str) -> Result<Topic, Error> {
    let topic = if name.starts_with(INTERNAL_PREFIX) { None } else { session.topic(name).await? };
    if let Some(topic) = topic {
        return Ok(topic);
    }
    let topics = session.topics().await?;
    let hint = nearest(name, topics.iter().map(|topic| topic.name.as_str()));
    let hint = hint.map(|name| format!("; the nearest is {name}")).unwrap_or_default();
    Err(Error::not_found(format!("topic {name:?} does not exist{hint}")))
}

fn begin(from: &str, bounds: &Bounds) -> Result<i64, Error> {
    match from {
        "start" => Ok(bounds.log_start_offset),
        "end" => Ok(bounds.durable_offset),
        text => {
            let offset: i64 = text
                .parse()
                .map_err(|_| Error::invalid(format!("from={text:?} is not start, end, an offset or a time")))?;
            Ok(offset.clamp(bounds.log_start_offset, bounds.durable_offset))
        }
    }
}

/// One partition of a read, and how far it is.
struct Lane {
    partition: TopicPartition,
    next: i64,
    end: Option<i64>,
}

impl Lane {
    fn is_done(&self) -> bool {
        self.end.is_some_and(|end| self.next >= end)
    }
}

struct Reader {
    session: Arc<dyn Session>,
    lanes: Vec<Lane>,
    turn: usize,
    left: u64,
}

impl Reader {
    /// The next piece of the answer; `None` at its end. An empty piece keeps the connection honest while nothing comes.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let count = self.lanes.len();
        for idle in 0..count {
            if self.left == 0 {
                return Ok(None);
            }
            let lane = self.turn % count;
            self.turn += 1;
            if self.lanes[lane].is_done() {
                continue;
            }
            // Only the last look of a round waits, so that one quiet partition does not hold up the others.
            let wait = if idle + 1 == count { FOLLOW_WAIT / count as u32 } else { Duration::ZERO };
            let piece = self.take(lane, wait).await?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
        let over = self.lanes.iter().all(Lane::is_done);
        Ok((!over && self.left > 0).then(Bytes::new))
    }

    async fn take(&mut self, number: usize, max_wait: Duration) -> Result<Bytes, Error> {
        let lane = &mut self.lanes[number];
        let max_wait = if lane.end.is_none() { max_wait } else { Duration::ZERO };
        let options = FetchOptions { max_bytes: 256 << 10, max_wait, end: lane.end };
        let chunk = match self.session.fetch(&lane.partition, lane.next, &options).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(error.context(format!("{} is gone", lane.partition)));
            }
            other => other?,
        };
        lane.next = chunk.next_offset;
        let mut lines = Vec::new();
        for record in chunk.records {
            if self.left == 0 {
                break;
            }
            self.left -= 1;
            lines.extend_from_slice(line(&lane.partition, &record).to_string().as_bytes());
            lines.push(b'\n');
        }
        Ok(Bytes::from(lines))
    }
}

/// A record as JSON. Bytes that are no UTF-8 stand in base64 under another name.
fn line(partition: &TopicPartition, record: &FetchedRecord) -> JsonValue {
    let mut line = json!({
        "partition": partition.partition, "offset": record.offset, "timestamp": record.timestamp.0,
    });
    let mut put = |name: &str, bytes: &Option<Bytes>| match bytes {
        None => line[name] = JsonValue::Null,
        Some(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => line[name] = text.into(),
            Err(_) => line[format!("{name}_base64")] = BASE64_STANDARD.encode(bytes).into(),
        },
    };
    put("key", &record.key);
    put("value", &record.value);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let headers = record.headers.iter().map(|h| json!([text(&h.name), h.value.as_ref().map(text)]));
    line["headers"] = headers.collect::<Vec<_>>().into();
    line
}
