//! What `sync run` and `sync rm` work over: a log that this process owns, or a cluster, where each sync is run by the one
//! of all workers whose turn it is.

use std::sync::Arc;

use tidemill_connect::sync::{
    control::Control,
    file::SyncSpec,
    run::{Observer, RunOptions, run},
    turns::run_in_turn,
};
use tidemill_core::{
    clock::{Clock, SystemClock},
    log::{Caller, Log, Session},
};
use tokio::sync::watch;

use crate::node::Node;

/// Where syncs run.
pub enum Over<'a> {
    Node(&'a Node),
    Cluster(&'a dyn Log),
}

impl Over<'_> {
    pub async fn session(&self, client: &str) -> anyhow::Result<Arc<dyn Session>> {
        match self {
            Self::Node(node) => node.session(client).await,
            Self::Cluster(log) => Ok(log.session(Caller::internal(client)).await?),
        }
    }

    /// Runs a sync until it ends.
    pub async fn run(
        &self,
        spec: &SyncSpec,
        options: &RunOptions,
        observer: Arc<dyn Observer>,
        stop: watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let session = self.session(&format!("sync/{}", spec.name)).await?;
        let control: Arc<Control> = Arc::default();
        match self {
            Self::Node(node) => {
                let clock = Arc::clone(node.engine().clock());
                node.syncs().register(spec, &control);
                run(session, clock, spec, options, observer, control, stop).await?;
            }
            Self::Cluster(_) => {
                let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
                run_in_turn(session, clock, spec, options, observer, control, stop).await?;
            }
        }
        Ok(())
    }
}

/// Finds the cluster that a URL names.
#[cfg(feature = "kafka")]
pub async fn cluster(url: &str) -> anyhow::Result<Arc<dyn Log>> {
    Ok(Arc::new(tidemill_core::log::Kafka::connect(url).await?))
}

/// Finds the cluster that a URL names.
#[cfg(not(feature = "kafka"))]
pub async fn cluster(_: &str) -> anyhow::Result<Arc<dyn Log>> {
    let message = "this tidemill is built without the log over Kafka; to build it: cargo build --features kafka";
    Err(tidemill_core::Error::new(tidemill_core::ErrorKind::Unsupported, message).into())
}
