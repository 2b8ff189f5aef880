//! The HTTP API. Every front of the binary, its own commands included, goes through it.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/info` | log id, version, pid and command of the owner |
//! | `GET /v1/topics`, `POST /v1/topics` | all topics with their bounds; makes one (`{"name", "partitions", "config"}`) |
//! | `GET /v1/topics/{name}`, `PATCH /v1/topics/{name}` | one, with its settings; changes it (`{"partitions", "config"}`) |
//! | `DELETE /v1/topics/{name}` | deletes one, unless a sync writes it |
//! | `GET /v1/schemas` | the tables behind the topics of syncs, as they were when they were copied |
//! | `GET /v1/known` | what the log knows of its syncs that decides whether another may run: schemas, ends, captures |
//! | `POST /v1/topics/{name}/records` | appends records, one JSON object a line: `{"key", "value", "partition"}` |
//! | `GET /v1/topics/{name}/records` | streams records, one JSON object a line: `?from=start&limit=10&follow=true` |
//! | `GET /v1/syncs` | how the syncs are |
//! | `POST /v1/syncs` | applies the syncs of a file (`{"file", "text", "syncs", "recopy", "replace"}`): the server keeps and runs them |
//! | `DELETE /v1/syncs/{name}` | stops one and removes what it made but the target's tables; `?force=true` |
//! | `POST /v1/syncs/{name}/retry`, `POST /v1/syncs/{name}/skip` | tries parked rows again; gives one up (`{"key"}`) |
//! | `GET /v1/groups`, `GET /v1/groups/{name}`, `DELETE /v1/groups/{name}` | groups; one with its offsets and how late it is; forgets one |
//! | `POST /v1/groups/{name}/reset` | sets its offsets of a topic (`{"topic", "partitions", "to", "dry_run"}`) |
//! | `POST /v1/backup` | copies the log, while it goes on, into a folder of the server's machine (`{"to"}`) |
//! | `POST /v1/sql` | runs `{"query", "format"}`, or a text/plain body, and streams the answer in that format, or `?format=` |
//!
//! For users it is told in docs/HTTP.md. An error is `{"error": {"kind", "message"}}`; one that comes when the answer has begun is in the trailers
//! `tidemill-error` and `tidemill-error-kind`.

mod backup;
mod groups;
mod moment;
mod records;
mod sql;
mod syncs;
mod topics;

use std::{
    pin::Pin,
    sync::{Arc, atomic::AtomicU32},
};

use axum::{
    Json, Router,
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::json;
use tidemill_core::{
    Error, ErrorKind,
    log::{Caller, Embedded, Log, Session},
};

use crate::syncs::Syncs;

/// Trailer that carries the message of an error met midway.
pub const ERROR_TRAILER: &str = "tidemill-error";
/// Trailer that carries its kind.
pub const ERROR_KIND_TRAILER: &str = "tidemill-error-kind";
/// Largest request body.
const MAX_BODY_BYTES: usize = 16 << 20;

/// What the handlers work on.
#[derive(Clone)]
pub struct State {
    pub log: Embedded,
    pub sql: Arc<tidemill_sql::Session>,
    pub command: String,
    pub syncs: Syncs,
    /// Counts requests with records that have no key: the partitions take turns.
    pub turns: Arc<AtomicU32>,
}

impl State {
    async fn session(&self) -> Result<Arc<dyn Session>, ApiError> {
        let caller = Caller { principal: "anonymous".into(), client_id: "http".into(), tenant: "default".into() };
        Ok(self.log.session(caller).await?)
    }
}

/// All routes.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/v1/info", get(info))
        .route("/v1/topics", get(topics::list).post(topics::create))
        .route("/v1/topics/{name}", get(topics::show).patch(topics::alter).delete(topics::remove))
        .route("/v1/topics/{name}/records", post(records::append).get(records::fetch))
        .route("/v1/schemas", get(topics::schemas))
        .route("/v1/known", get(syncs::known))
        .route("/v1/syncs", get(syncs::list).post(syncs::apply))
        .route("/v1/syncs/{name}", delete(syncs::remove))
        .route("/v1/syncs/{name}/retry", post(syncs::retry))
        .route("/v1/syncs/{name}/skip", post(syncs::skip))
        .route("/v1/groups", get(groups::list))
        .route("/v1/groups/{name}", get(groups::show).delete(groups::remove))
        .route("/v1/groups/{name}/reset", post(groups::reset))
        .route("/v1/backup", post(backup::make))
        .route("/v1/sql", post(sql::query))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(state)
}

async fn info(axum::extract::State(state): axum::extract::State<State>) -> Json<serde_json::Value> {
    Json(json!({
        "log_id": state.log.engine().log_id(),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "command": state.command,
    }))
}

async fn no_such_path(uri: axum::http::Uri) -> ApiError {
    Error::not_found(format!("no path {}; docs/HTTP.md lists all", uri.path())).into()
}

async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let error = ApiError(Error::invalid(format!("{method} is not for {}", uri.path())));
    (StatusCode::METHOD_NOT_ALLOWED, error).into_response()
}

/// A part of a request that could not be read, as our own error.
fn unread(rejection: impl std::fmt::Display) -> ApiError {
    Error::invalid(format!("the request cannot be read: {rejection}")).into()
}

/// An error as an answer.
pub struct ApiError(Error);

impl<E: Into<Error>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
            ErrorKind::Corrupt | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = json!({ "error": { "kind": self.0.kind().as_str(), "message": self.0.to_string() } });
        (status, Json(body)).into_response()
    }
}

/// A streamed answer; an error in the stream becomes its trailers.
fn streamed(content_type: &'static str, pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static) -> Response {
    let pieces: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(pieces);
    let frames = stream::unfold(Some(pieces), |state| async move {
        let mut pieces = state?;
        match pieces.next().await? {
            Ok(data) => Some((Ok::<_, std::convert::Infallible>(Frame::data(data)), Some(pieces))),
            Err(error) => Some((Ok(Frame::trailers(trailers(&error))), None)),
        }
    });
    let headers = [("content-type", content_type), ("trailer", "tidemill-error, tidemill-error-kind")];
    (headers, Body::new(StreamBody::new(frames))).into_response()
}

fn trailers(error: &Error) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let message: String = error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if let Ok(value) = HeaderValue::from_bytes(message.as_bytes()) {
        trailers.insert(ERROR_TRAILER, value);
    }
    trailers.insert(ERROR_KIND_TRAILER, HeaderValue::from_static(error.kind().as_str()));
    trailers
}
