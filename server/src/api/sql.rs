//! SQL over HTTP.

use axum::{
    extract::{
        Query, State as Extract,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, header::CONTENT_TYPE},
    response::Response,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use tidemill_core::Error;
use tidemill_sql::Format;

use super::{ApiError, State, streamed, unread};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    query: String,
    #[serde(default)]
    format: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    format: Option<String>,
}

/// Runs one statement. A JSON body names statement and format; a text body is the statement.
pub async fn query(
    Extract(state): Extract<State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Query(wanted) = wanted.map_err(|rejection| unread(rejection.body_text()))?;
    let body = body.map_err(|rejection| unread(rejection.body_text()))?;
    let question = read(&headers, &body)?;
    let format = wanted.format.or(question.format);
    let (format, content_type) = match format.as_deref().unwrap_or("json") {
        "table" => (Format::Table, "text/plain; charset=utf-8"),
        "json" => (Format::Json, "application/json"),
        "jsonl" => (Format::Jsonl, "application/x-ndjson"),
        "csv" => (Format::Csv, "text/csv; charset=utf-8"),
        other => return Err(Error::invalid(format!("format {other:?} is none of table, json, jsonl, csv")).into()),
    };
    let result = state.sql.query(&question.query).await?;
    Ok(streamed(content_type, tidemill_sql::render(result, format).boxed()))
}

fn read(headers: &HeaderMap, body: &Bytes) -> Result<Question, Error> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" => serde_json::from_slice(body).map_err(|e| Error::invalid(format!("the body: {e}"))),
        "text/plain" => {
            let query = std::str::from_utf8(body).map_err(|_| Error::invalid("the query is not valid UTF-8"))?;
            Ok(Question { query: query.to_owned(), format: Some("csv".into()) })
        }
        other => Err(Error::invalid(format!(
            "content-type {other:?} is neither text/plain (the query) nor application/json ({{\"query\", \"format\"}})"
        ))),
    }
}
