//! How a command reaches a log: by the same HTTP requests, whether the log is in this process, behind its owner's
//! socket, or behind a server's port. So a command behaves the same in all three.

mod attached;

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use axum::{
    Router,
    body::Body,
    http::{self, Method, Request, Response, Uri},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value as Json;
use tidemill_core::{Error, ErrorKind};
use tokio::net::TcpStream;
use tower::ServiceExt;

use self::attached::{Attached, Place};
use crate::{
    api::{ERROR_KIND_TRAILER, ERROR_TRAILER},
    cli::Target,
    node::Node,
};

/// How long an owner may hold the lock without answering.
const OWNER_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A log, wherever it is.
pub enum Client {
    /// This process owns it.
    Own(Box<Node>, Router),
    /// Another process on this machine owns it, or did when this command began.
    Attached(Box<Attached>),
    /// A server, by host and port.
    Server(String),
}

impl Client {
    /// Reaches the log that the command line names.
    pub async fn connect(target: &Target, command: &str) -> anyhow::Result<Self> {
        if let Some(server) = &target.server {
            return Ok(Self::Server(authority(server)?));
        }
        Ok(match Place::find(target, command, Instant::now() + OWNER_PATIENCE).await? {
            Place::Own(node, router) => Self::Own(node, router),
            place => Self::Attached(Box::new(Attached::new(target, command, place))),
        })
    }

    /// Closes the log if this process owns it.
    pub async fn close(self) -> anyhow::Result<()> {
        match self {
            Self::Own(node, router) => {
                drop(router);
                node.close().await
            }
            Self::Attached(attached) => attached.close().await,
            Self::Server(_) => Ok(()),
        }
    }

    /// Sends a request and returns the answer, or the error it carries.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> anyhow::Result<Response<Body>> {
        self.request(Request::builder().method(method).uri(path.parse::<Uri>()?), body.into()).await
    }

    /// As [`Client::send`], with a JSON body.
    pub async fn send_json(&self, method: Method, path: &str, body: String) -> anyhow::Result<Response<Body>> {
        let request = Request::builder().method(method).uri(path.parse::<Uri>()?);
        self.request(request.header("content-type", "application/json"), body.into()).await
    }

    async fn request(&self, request: http::request::Builder, body: Bytes) -> anyhow::Result<Response<Body>> {
        let request = request.header("te", "trailers");
        let (head, ()) = request.header("host", "tidemill").body(())?.into_parts();
        let whole = |head, body| Request::from_parts(head, Body::from(body));
        let response = match self {
            Self::Own(_, router) => router.clone().oneshot(whole(head, body)).await?,
            Self::Attached(attached) => attached.send(head, body).await?,
            Self::Server(authority) => {
                let stream = TcpStream::connect(authority)
                    .await
                    .map_err(|e| Error::unavailable(format!("server {authority} does not answer: {e}")))?;
                exchange(stream, whole(head, body)).await.map_err(|lost| lost.error)?
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        Err(error_of(response).await)
    }

    /// Sends a JSON request and returns the JSON answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<Json>) -> anyhow::Result<Json> {
        let answer = match body {
            Some(body) => self.send_json(method, path, body.to_string()).await?,
            None => self.send(method, path, "").await?,
        };
        json_of(answer).await
    }

    /// Sends any body and returns the JSON answer.
    pub async fn call_raw(&self, method: Method, path: &str, body: String) -> anyhow::Result<Json> {
        json_of(self.send(method, path, body).await?).await
    }
}

async fn json_of(answer: Response<Body>) -> anyhow::Result<Json> {
    let bytes = answer.into_body().collect().await.map_err(gone)?.to_bytes();
    serde_json::from_slice(&bytes).context("the answer is not JSON")
}

/// Copies a streamed answer piece by piece; an error that the log met midway ends it.
pub async fn copy_body(
    response: Response<Body>,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(gone)?;
        if let Some(data) = frame.data_ref() {
            if !each(data)? {
                return Ok(());
            }
        } else if let Some(trailers) = frame.trailers_ref()
            && let Some(message) = trailers.get(ERROR_TRAILER)
        {
            let kind = trailers.get(ERROR_KIND_TRAILER).and_then(|kind| ErrorKind::from_name(kind.to_str().ok()?));
            let message = String::from_utf8_lossy(message.as_bytes()).into_owned();
            return Err(Error::new(kind.unwrap_or(ErrorKind::Internal), message).into());
        }
    }
    Ok(())
}

fn gone(error: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("the connection to the log ended: {error}"))
}

/// A request that got no answer.
struct Lost {
    error: Error,
    /// Whether nothing of it was sent: then it did not happen.
    unsent: bool,
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<Body>, Lost>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| Lost { error: gone(e), unsent: true })?;
    tokio::spawn(connection);
    match sender.try_send_request(request).await {
        Ok(response) => Ok(response.map(Body::new)),
        Err(mut failed) => {
            let unsent = failed.take_message().is_some();
            Err(Lost { error: gone(failed.into_error()), unsent })
        }
    }
}

async fn error_of(response: Response<Body>) -> anyhow::Error {
    let status = response.status();
    let Ok(body) = response.into_body().collect().await else { return gone("no answer").into() };
    let parsed: Option<Json> = serde_json::from_slice(&body.to_bytes()).ok();
    let field = |name: &str| parsed.as_ref()?.get("error")?.get(name)?.as_str().map(str::to_owned);
    match (field("kind").and_then(|kind| ErrorKind::from_name(&kind)), field("message")) {
        (Some(kind), Some(message)) => Error::new(kind, message).into(),
        _ => anyhow!("the server answered {status}"),
    }
}

/// `http://host:port` as `host:port`.
fn authority(server: &str) -> anyhow::Result<String> {
    let text = server.strip_prefix("http://").unwrap_or(server).trim_end_matches('/');
    let fault = || Error::invalid(format!("{server:?} is not a server's address; http://127.0.0.1:7600 is one"));
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        None if !text.is_empty() && !text.contains('/') => Ok(format!("{text}:7600")),
        _ => Err(fault().into()),
    }
}

/// Text as one segment of a path, or one value of a query: whatever a user types stays in its place.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
