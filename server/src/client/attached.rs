//! A log that another process on this machine owns.
//!
//! Its owner may be a command that ends at any moment. A request that this costs nothing is asked again, of the next owner
//! or in this process: any request of which nothing was sent, and one that only reads if no answer began. An owner that
//! goes in the midst of an answer, or with a write that nobody knows the end of, is an error.

use std::{path::PathBuf, time::Instant};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, request},
};
use bytes::Bytes;
use tidemill_core::Error;
use tokio::{net::UnixStream, sync::Mutex};
use tower::ServiceExt;

use super::{LOOK_AGAIN, Lost, OWNER_PATIENCE, exchange};
use crate::{
    cli::Target,
    node::{Node, Owner, socket_path},
};

/// Where the log was found last.
pub(super) enum Place {
    /// In this process.
    Own(Box<Node>, Router),
    /// Behind its owner's socket.
    Socket {
        path: PathBuf,
        /// Keeps a short path to a long folder's socket alive.
        _folder: Option<std::fs::File>,
        holder: String,
    },
}

impl Place {
    /// Takes the log, or finds its owner. One that does not answer until `until` is returned all the same.
    pub(super) async fn find(target: &Target, command: &str, until: Instant) -> anyhow::Result<Self> {
        loop {
            let holder = match Node::open(&target.data_dir, command).await? {
                Ok(node) => {
                    let router = node.router();
                    return Ok(Self::Own(Box::new(node), router));
                }
                Err(Owner(holder)) => holder,
            };
            let (path, folder) = socket_path(&target.data_dir)?;
            // An owner that opens its log has the lock but no socket yet; one that closes it will leave the lock.
            if UnixStream::connect(&path).await.is_ok() || Instant::now() >= until {
                return Ok(Self::Socket { path, _folder: folder, holder });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// The way to a log of another owner, whoever that is at the moment.
pub struct Attached {
    target: Target,
    command: String,
    place: Mutex<Place>,
}

impl Attached {
    pub(super) fn new(target: &Target, command: &str, place: Place) -> Self {
        Self { target: target.clone(), command: command.to_owned(), place: Mutex::new(place) }
    }

    pub(super) async fn send(&self, head: request::Parts, body: Bytes) -> anyhow::Result<Response<Body>> {
        let until = Instant::now() + OWNER_PATIENCE;
        let only_reads = only_reads(&head.method, head.uri.path());
        loop {
            let request = Request::from_parts(head.clone(), Body::from(body.clone()));
            let lost = match self.send_once(request).await? {
                Ok(response) => return Ok(response),
                Err(lost) => lost,
            };
            if !(lost.unsent || only_reads) || Instant::now() >= until {
                return Err(lost.error.into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            let mut place = self.place.lock().await;
            if let Place::Socket { .. } = *place {
                *place = Place::find(&self.target, &self.command, until).await?;
            }
        }
    }

    async fn send_once(&self, request: Request<Body>) -> anyhow::Result<Result<Response<Body>, Lost>> {
        // The lock is not held while the owner answers: that may take as long as a reader follows.
        let (path, holder) = match &*self.place.lock().await {
            Place::Own(_, router) => return Ok(Ok(router.clone().oneshot(request).await?)),
            Place::Socket { path, holder, .. } => (path.clone(), holder.clone()),
        };
        Ok(match UnixStream::connect(&path).await {
            Ok(stream) => exchange(stream, request).await,
            Err(error) => {
                let text = format!("the owner of the data directory ({holder}) does not answer: {error}");
                Err(Lost { error: Error::unavailable(text), unsent: true })
            }
        })
    }

    /// Closes the log if this process owns it by now.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        match self.place.into_inner() {
            Place::Own(node, router) => {
                drop(router);
                node.close().await
            }
            Place::Socket { .. } => Ok(()),
        }
    }
}

/// Whether asking twice is as good as asking once. A statement of SQL only reads; a delete would not find its topic again.
fn only_reads(method: &Method, path: &str) -> bool {
    method == Method::GET || path == "/v1/sql"
}
