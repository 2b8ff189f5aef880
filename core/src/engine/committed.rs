//! Reading what is committed: bounded by the last stable offset, and told which transactions were aborted.
//!
//! Records of Kafka's transactions have their offsets before it is known whether they count. A reader of committed records
//! stops before the first open transaction, and passes over the aborted ones behind it.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Engine, partition::State};
use crate::{
    Result,
    batch::{Batch, BatchHeader},
    topic::PartitionId,
};

/// A transaction of which nothing counts, in one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(i64, i64, i64, i64)", into = "(i64, i64, i64, i64)")]
pub struct Aborted {
    /// Its producer.
    pub producer_id: i64,
    /// Offset of its first record.
    pub first_offset: i64,
    /// Offset of the marker that ended it.
    pub last_offset: i64,
    /// First offset of the oldest transaction that was still open then, or the offset after the marker.
    pub last_stable_offset: i64,
}

impl From<(i64, i64, i64, i64)> for Aborted {
    fn from((producer_id, first_offset, last_offset, last_stable_offset): (i64, i64, i64, i64)) -> Self {
        Self { producer_id, first_offset, last_offset, last_stable_offset }
    }
}

impl From<Aborted> for (i64, i64, i64, i64) {
    fn from(of: Aborted) -> Self {
        (of.producer_id, of.first_offset, of.last_offset, of.last_stable_offset)
    }
}

impl Aborted {
    /// Whether a batch is of this transaction.
    pub fn holds(&self, header: &BatchHeader) -> bool {
        header.is_transactional()
            && header.producer_id == self.producer_id
            && (self.first_offset..=self.last_offset).contains(&header.base_offset)
    }
}

/// What a reader of committed records gets: the batches as they are stored, and what of them does not count.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Whole batches below the last stable offset, markers and aborted ones included.
    pub batches: Vec<Batch>,
    /// The offset to go on from.
    pub next_offset: i64,
    /// Nothing at or beyond is told before the transaction that begins there has ended.
    pub last_stable_offset: i64,
    /// Aborted transactions with records among the batches.
    pub aborted: Vec<Aborted>,
}

impl Committed {
    /// The batches whose records count.
    pub fn into_shown(self) -> Vec<Batch> {
        let Self { mut batches, aborted, .. } = self;
        let aborted = AbortedBatches::new(aborted);
        batches.retain(|batch| aborted.shows(batch.header()));
        batches
    }
}

/// Tells batches that count from others, as far as a list of aborted transactions goes. For readers, and for compaction.
#[derive(Debug, Default)]
pub struct AbortedBatches {
    /// Of each producer, in the order of their offsets.
    by_producer: HashMap<i64, Vec<Aborted>>,
}

impl AbortedBatches {
    /// Of transactions as [`Engine::aborted`] lists them.
    pub fn new(aborted: Vec<Aborted>) -> Self {
        let mut by_producer = HashMap::<i64, Vec<Aborted>>::new();
        for transaction in aborted {
            by_producer.entry(transaction.producer_id).or_default().push(transaction);
        }
        Self { by_producer }
    }

    /// Whether a batch below the last stable offset has records that count: no marker, and of no aborted transaction.
    pub fn shows(&self, header: &BatchHeader) -> bool {
        if header.is_control() {
            return false;
        }
        let Some(own) = self.by_producer.get(&header.producer_id) else { return true };
        // A producer has one transaction after the other.
        let first = own.partition_point(|transaction| transaction.last_offset < header.base_offset);
        !own.get(first).is_some_and(|transaction| transaction.holds(header))
    }
}

impl State {
    /// First offset of the oldest open transaction, or the end: all below is decided. Compaction must not pass it.
    pub(super) fn last_stable_offset(&self) -> i64 {
        let first_open = self.producers.first_open().unwrap_or(self.durable_offset);
        first_open.clamp(self.log_start_offset.min(self.durable_offset), self.durable_offset)
    }
}

impl Engine {
    /// As [`Engine::read`], but nothing at or beyond the last stable offset, and with the aborted transactions.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub fn read_committed(&self, id: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<Committed> {
        let partition = self.shared.partition(id)?;
        let last_stable_offset = partition.state().last_stable_offset();
        let (batches, next_offset) =
            partition.read(&*self.shared.storage, offset, max_bytes, end.min(last_stable_offset))?;
        let first = batches.first().map_or(offset, |batch| batch.header().base_offset);
        // Asked for after the read: what is below the last stable offset is decided, and stays so.
        let aborted = partition.state().producers.aborted(first, next_offset);
        Ok(Committed { batches, next_offset, last_stable_offset, aborted })
    }

    /// The batches from `offset` on whose records count, and the offset to go on from; there may be none though that moved
    /// on. Nothing at or beyond the last stable offset.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub fn read_shown(&self, id: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<(Vec<Batch>, i64)> {
        let committed = self.read_committed(id, offset, max_bytes, end)?;
        let next_offset = committed.next_offset;
        Ok((committed.into_shown(), next_offset))
    }

    /// Aborted transactions of a partition that have records, or their end, in `from..to`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn aborted(&self, id: PartitionId, from: i64, to: i64) -> Result<Vec<Aborted>> {
        Ok(self.shared.partition(id)?.state().producers.aborted(from, to))
    }

    /// As [`Engine::wait_for`], until the last stable offset is beyond `offset`.
    ///
    /// # Errors
    /// As [`Engine::wait_for`].
    pub async fn wait_for_committed(&self, id: PartitionId, offset: i64, time: Duration) -> Result<()> {
        self.wait_until(id, time, |state| state.last_stable_offset() > offset).await
    }
}
