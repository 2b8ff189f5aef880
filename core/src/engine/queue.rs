//! What waits for the committer, and how its callers are answered.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    catalog::{Catalog, Table},
    shared::lock,
    transactions::{Coordinate, Produced},
};
use crate::{Error, Result, record::Timestamp, topic::PartitionId};

/// A fenced writer's identity: what it wrote is refused once somebody opened the owner anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    /// The owner's name.
    pub owner: String,
    /// The epoch that opening it gave.
    pub epoch: u64,
}

/// Computes the new value of a metadata record from the present catalog; `None` deletes the key.
pub(super) type Compute = Box<dyn FnOnce(&Catalog) -> Result<Option<String>> + Send>;

/// One request. A request is durable and visible as a whole, or not at all.
pub(super) enum Work {
    /// Batches that take offsets at once.
    Append { batches: Vec<(PartitionId, Bytes)>, fence: Option<Fence> },
    /// Batches of a transaction that is not yet committed.
    Stage { transaction: u64, batches: Vec<(PartitionId, Bytes)> },
    /// The end of a transaction: what was staged, then these batches.
    Commit { transaction: u64, staged: usize, batches: Vec<(PartitionId, Bytes)>, fence: Option<Fence> },
    /// Drops what was staged.
    Abort { transaction: u64 },
    /// One metadata record, computed when its turn comes.
    /// `size_hint` is at least the bytes of the value.
    Keyed { table: Table, key: String, size_hint: usize, compute: Compute },
    /// A change of a transactional id, computed when its turn comes, which adds at most `added_bytes` of text.
    Coordinate { id: Option<String>, added_bytes: usize, compute: Coordinate },
}

impl Work {
    pub(super) fn batches(&self) -> &[(PartitionId, Bytes)] {
        match self {
            Self::Append { batches, .. } | Self::Stage { batches, .. } | Self::Commit { batches, .. } => batches,
            Self::Abort { .. } | Self::Keyed { .. } | Self::Coordinate { .. } => &[],
        }
    }

    /// Whether it brings records, rather than a change of metadata that is computed.
    pub(super) fn is_record(&self) -> bool {
        matches!(self, Self::Append { .. } | Self::Stage { .. } | Self::Commit { .. })
    }

    /// Whether it is computed from what is visible: nothing that may change that precedes it in its group.
    pub(super) fn is_computed(&self) -> bool {
        matches!(self, Self::Keyed { .. } | Self::Coordinate { .. })
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.batches().iter().map(|(_, bytes)| bytes.len()).sum()
    }
}

/// What a durable request got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Base offset of each batch of the request, in its order.
    pub base_offsets: Vec<i64>,
    /// The log's own time of each batch, or -1; nothing where no batch has it.
    pub append_times: Vec<i64>,
    /// The value written by a metadata request.
    pub value: Option<String>,
}

impl Outcome {
    /// Of a request of one batch.
    pub(super) fn produced(&self) -> Result<Produced> {
        let base_offset = self.base_offsets.first().copied();
        let base_offset = base_offset.ok_or_else(|| Error::internal("an append without an offset"))?;
        let append_time = self.append_times.first().copied().filter(|time| *time >= 0).map(Timestamp);
        Ok(Produced { base_offset, append_time })
    }
}

pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Outcome>>,
}

#[derive(Default)]
struct State {
    requests: VecDeque<Request>,
    closed: Option<String>,
}

/// The committer's queue. Its bytes are bounded by the permits that callers hold.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

impl Queue {
    /// Adds a request; its answer comes through the receiver when it is durable.
    pub(super) fn push(&self, work: Work) -> oneshot::Receiver<Result<Outcome>> {
        let (reply, answer) = oneshot::channel();
        let mut state = lock(&self.state);
        match &state.closed {
            Some(text) => drop(reply.send(Err(Error::closed(text.clone())))),
            None => state.requests.push_back(Request { work, reply }),
        }
        drop(state);
        self.ready.notify_one();
        answer
    }

    /// Takes the first request if `fits` says so.
    pub(super) fn pop_if(&self, fits: impl FnOnce(&Work) -> bool) -> Option<Request> {
        let mut state = lock(&self.state);
        if fits(&state.requests.front()?.work) { state.requests.pop_front() } else { None }
    }

    /// Takes all requests that `wanted` says, and leaves the others in their order.
    pub(super) fn take_where(&self, wanted: impl Fn(&Work) -> bool) -> Vec<Request> {
        let mut state = lock(&self.state);
        let (taken, left) = state.requests.drain(..).partition::<Vec<_>, _>(|request| wanted(&request.work));
        state.requests = left.into();
        taken
    }

    /// Puts a request back to the front.
    pub(super) fn unpop(&self, request: Request) {
        lock(&self.state).requests.push_front(request);
    }

    /// Waits until there is a request, the queue is closed, or the time is over. Tells whether it is closed and empty.
    pub(super) fn wait(&self, time: Option<Duration>) -> bool {
        let state = lock(&self.state);
        let idle = |state: &mut State| state.requests.is_empty() && state.closed.is_none();
        let state = match time {
            Some(time) => {
                self.ready.wait_timeout_while(state, time, idle).unwrap_or_else(std::sync::PoisonError::into_inner).0
            }
            None => self.ready.wait_while(state, idle).unwrap_or_else(std::sync::PoisonError::into_inner),
        };
        state.requests.is_empty() && state.closed.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).requests.is_empty()
    }

    /// Refuses further requests; those queued are still served.
    pub(super) fn close(&self) {
        lock(&self.state).closed.get_or_insert_with(|| "the log was closed".to_owned());
        self.ready.notify_all();
    }

    /// Refuses further requests and answers the queued ones with an error.
    pub(super) fn fail(&self, text: &str) {
        let mut state = lock(&self.state);
        state.closed = Some(text.to_owned());
        for request in state.requests.drain(..) {
            let _ = request.reply.send(Err(Error::closed(text)));
        }
        drop(state);
        self.ready.notify_all();
    }
}
