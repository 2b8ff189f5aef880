//! SQL over HTTP.

use axum::{Json, extract::State as Extract, response::Response};
use futures::StreamExt;
use serde::Deserialize;
use tidemill_core::Error;
use tidemill_sql::Format;

use super::{ApiError, State, streamed};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    query: String,
    #[serde(default)]
    format: Option<String>,
}

pub async fn query(Extract(state): Extract<State>, Json(question): Json<Question>) -> Result<Response, ApiError> {
    let (format, content_type) = match question.format.as_deref().unwrap_or("json") {
        "table" => (Format::Table, "text/plain; charset=utf-8"),
        "json" => (Format::Json, "application/json"),
        "jsonl" => (Format::Jsonl, "application/x-ndjson"),
        "csv" => (Format::Csv, "text/csv; charset=utf-8"),
        other => return Err(Error::invalid(format!("format {other:?} is none of table, json, jsonl, csv")).into()),
    };
    let result = state.sql.query(&question.query).await?;
    Ok(streamed(content_type, tidemill_sql::render(result, format).boxed()))
}
