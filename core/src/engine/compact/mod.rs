//! Compaction: of each key, the newest record stays. Sealed segments are written anew without the others.
//!
//! A *pass* takes one partition. It notes the newest offset of each key in what is not yet compacted, as far as its map has
//! room (`pass`), then writes the segments from the first one on anew and puts each new one in the place of those that
//! it replaces (`swap`). Which partition is next, and how far, says `choice`.
//!
//! What holds:
//! - the newest record of each key stays, and so does every record whose key is not known: without one, or compressed;
//! - records of aborted transactions go, and so do markers of committed ones. Those of aborted ones stay: a reader that was
//!   told of the transaction passes over its producer's batches until it meets the marker;
//! - offsets never change. What a batch, or a run of batches, leaves empty is one batch without records over the same
//!   offsets, so that within a segment each batch still continues the one before;
//! - a tombstone stays for `delete.retention.ms` after the pass that first kept it as the newest of its key; and as long as
//!   an older record that is not known may have its key;
//! - the old files go after a manifest that does not list them is durable. A pass that fails leaves all as it was;
//! - memory is the map's budget and a few buffers; nobody waits for it, and it holds no lock over I/O.

mod choice;
mod pass;
mod swap;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::pass::{Pass, Step};
use super::{
    housekeeping::{Chore, Progress},
    shared::{Shared, lock},
};
use crate::{ErrorKind, Result, topic::PartitionId};

/// A partition whose pass failed is left alone for so long.
const AFTER_FAULT: Duration = Duration::from_secs(5 * 60);
/// A rest is not shorter: the system's timers are no finer. Nor longer: other chores wait.
const LEAST_REST: Duration = Duration::from_millis(2);
const MOST_REST: Duration = Duration::from_millis(20);

/// How far a partition is compacted, as the manifest keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Compacted {
    /// Records below were looked at.
    pub(super) below: i64,
    /// When the last tombstone that a pass has kept may go, in milliseconds since 1970 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tombstones_until: Option<i64>,
}

impl Compacted {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// What compaction has done since the log was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Passes that came to their end.
    pub passes: u64,
    /// Passes given up: the disk was full, a segment was damaged, or the partition changed meanwhile.
    pub given_up: u64,
    /// Bytes of segments read.
    pub read_bytes: u64,
    /// Bytes of segments written.
    pub written_bytes: u64,
    /// Records that went.
    pub removed_records: u64,
    /// The most bytes that a pass's map took.
    pub map_bytes: usize,
    /// Bytes of segments that others have replaced; their files go with the next checkpoint.
    pub replaced_bytes: u64,
}

/// Compacts a log's partitions, one after the other, a step at a time.
#[derive(Default)]
pub(super) struct Compactor {
    pass: Option<Pass>,
    /// Partitions to leave alone until then, by the monotonic clock.
    held: HashMap<PartitionId, Duration>,
    /// Timestamp of the first batch not yet compacted, and its offset.
    oldest: HashMap<PartitionId, (i64, i64)>,
    pace: Pace,
    /// Runs are copied together here.
    buffer: Vec<u8>,
}

impl Chore for Compactor {
    fn name(&self) -> &'static str {
        "compaction"
    }

    /// Does a little: reads and writes some hundred kilobytes, makes one new segment durable, or looks what is next.
    ///
    /// # Errors
    /// Those of one pass, which is given up. All of its partition is as it was.
    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        if self.pace.rest(shared) {
            return Ok(Progress::More);
        }
        let Some(mut pass) = self.pass.take() else { return self.begin(shared) };
        match pass.step(shared, &mut self.buffer) {
            Ok(Step::More(bytes)) => {
                self.pace.add(bytes);
                self.pass = Some(pass);
                Ok(Progress::More)
            }
            Ok(Step::Young(time)) => {
                self.hold(shared, pass.partition().id, time);
                Ok(Progress::More)
            }
            Ok(Step::Done) => {
                self.note(shared, &pass);
                lock(&shared.compaction).passes += 1;
                Ok(Progress::More)
            }
            Err(error) => {
                pass.abandon(&*shared.storage);
                self.note(shared, &pass);
                lock(&shared.compaction).given_up += 1;
                match error.kind() {
                    // Deleted, or cut by retention meanwhile: nothing is wrong.
                    ErrorKind::NotFound | ErrorKind::Conflict => Ok(Progress::More),
                    _ => {
                        self.hold(shared, pass.partition().id, AFTER_FAULT);
                        Err(error)
                    }
                }
            }
        }
    }

    fn stop(&mut self, shared: &Arc<Shared>) {
        if let Some(mut pass) = self.pass.take() {
            pass.abandon(&*shared.storage);
        }
    }
}

impl Compactor {
    fn begin(&mut self, shared: &Shared) -> Result<Progress> {
        // On a full disk, what is left is for appends.
        if !shared.leftovers_known.load(Ordering::Acquire) || shared.disk_full.load(Ordering::Acquire) != 0 {
            return Ok(Progress::Done);
        }
        let chosen = self.choose(shared).map_err(|(id, error)| {
            self.hold(shared, id, AFTER_FAULT);
            error
        });
        self.pass = chosen?;
        if self.pass.is_some() {
            return Ok(Progress::More);
        }
        Ok(Progress::Done)
    }

    fn hold(&mut self, shared: &Shared, id: PartitionId, time: Duration) {
        self.held.insert(id, shared.clock.monotonic().saturating_add(time));
    }

    /// Counts what a pass did, whether it came to its end or not.
    fn note(&self, shared: &Shared, pass: &Pass) {
        let (done, replaced) = (pass.told(), pass.replaced_bytes());
        tracing::debug!(
            partition = pass.partition().name,
            read_bytes = done.read_bytes,
            written_bytes = done.written_bytes,
            removed_records = done.removed_records,
            "pass of compaction"
        );
        let mut told = lock(&shared.compaction);
        told.read_bytes += done.read_bytes;
        told.written_bytes += done.written_bytes;
        told.removed_records += done.removed_records;
        told.replaced_bytes += replaced;
        told.map_bytes = told.map_bytes.max(done.map_bytes);
    }
}

/// Holds compaction back to its bytes a second.
#[derive(Default)]
struct Pace {
    /// When the bytes began to count.
    since: Duration,
    bytes: u64,
}

impl Pace {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Rests for a moment if too much was done; whether it did.
    fn rest(&mut self, shared: &Shared) -> bool {
        let now = shared.clock.monotonic();
        let due = Duration::from_secs_f64(self.bytes as f64 / shared.config.compaction_bytes_per_second as f64);
        let early = (self.since + due).saturating_sub(now);
        if early < LEAST_REST {
            // Time in which nothing was done is not made up for.
            if self.since + due + LEAST_REST < now {
                *self = Self { since: now, bytes: 0 };
            }
            return false;
        }
        std::thread::sleep(early.min(MOST_REST));
        true
    }
}
