//! Jobs: what their authors write, and what runs them.
//!
//! | module | what it is |
//! |---|---|
//! | `source` | topics as rows, with event time |
//! | `stream`, `windowed` | typed streams and what is done with them |
//! | `graph` | the job as nodes; one sweep carries rows and watermarks through |
//! | `input` | the partitions it reads, and the watermark they allow |
//! | `task` | a job between a log's reads and its transactions |
//! | `changelog` | state as records, and back |
//! | `runtime` | a task over a log |
//! | `view`, `status` | what one may look at while a job runs |

mod changelog;
pub(crate) mod driver;
mod graph;
mod input;
mod runtime;
mod source;
mod status;
mod stream;
mod task;
mod view;
mod windowed;

use std::sync::Arc;

pub use runtime::{Control, Options};
pub use source::{SourceBuilder, TopicSource};
pub use status::Status;
pub use stream::{KeyedStream, Stream};
pub use view::{View, WindowView};
pub use windowed::{Aggregated, Windowed, WindowedStream};

use self::{
    stream::{Shared, lock},
    task::Task,
};
use crate::Result;

/// A stream job: topics in, topics out, and what is done in between. Its name is its identity: a job of the same name goes
/// on where the last one stopped, and one that still runs can commit no more.
pub struct Job {
    name: String,
    graph: Shared,
}

impl Job {
    /// A job without steps. Its name follows the rules of topic names.
    pub fn new(name: impl Into<String>) -> Self {
        let job = Self { name: name.into(), graph: Shared::default() };
        if let Err(error) = tidemill_core::topic::validate_name(&job.name) {
            lock(&job.graph).faults.push(format!("job {:?}: {}", job.name, error.message()));
        }
        job
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads a topic.
    pub fn topic(&self, topic: impl Into<String>) -> TopicSource {
        TopicSource { graph: Arc::clone(&self.graph), topic: topic.into() }
    }

    /// How the job gets on, to be looked at while it runs.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&lock(&self.graph).status)
    }

    fn into_task(self) -> Result<Task> {
        let graph = std::mem::take(&mut *lock(&self.graph));
        Task::new(self.name, graph)
    }
}
