//! The calls of producers: identities, batches, transactions.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{
    SemaphorePermit, TryAcquireError,
    oneshot::{self, error::TryRecvError},
};

use super::{Answer, Change, Coordinate, Coordinator, ProducerIdentity, TransactionInfo, change::Added, info_of};
use crate::{
    Error, ErrorKind, Reason, Result,
    batch::{self, Marker},
    engine::{
        Engine,
        catalog::FIRST_USER_PARTITION,
        housekeeping::{Chore, Progress},
        producers::ProducerInfo,
        queue::{Outcome, Work},
        shared::{Shared, lock},
    },
    record::Timestamp,
    topic::PartitionId,
};

/// Producer ids are made durable in blocks of this size.
const ID_BLOCK: i64 = 1000;
/// Longest transactional id or name of a group.
const MAX_ID_BYTES: usize = 1024;

/// Where a produced batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// Offset of its first record; of a duplicate, that of the original.
    pub base_offset: i64,
    /// The log's own time, where the topic takes that.
    pub append_time: Option<Timestamp>,
}

/// What the log keeps of producers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProducerStats {
    /// Producers that partitions know, each counted once a partition.
    pub known: usize,
    /// Producers forgotten before their time, to make room for others.
    pub evicted: u64,
    /// Producers forgotten since they were idle for long.
    pub expired: u64,
}

impl Engine {
    /// Appends batches of a client, one for each partition, each for itself: the answers come in their order. A batch that
    /// its producer sent before is not written again, and gets the offset of the first.
    ///
    /// # Errors
    /// For each batch: `Invalid` for what [`batch::check_produced`] refuses or what is too large; `Denied` for the log's own
    /// topics; `Conflict` with a [`Reason`] for wrong sequences, epochs, transactions; as [`Engine::append`].
    ///
    /// # Durability
    /// As [`Engine::append`]; the answer to a duplicate comes when the original is durable.
    pub async fn produce(&self, batches: Vec<(PartitionId, Bytes)>) -> Vec<Result<Produced>> {
        let mut produced = Vec::with_capacity(batches.len());
        let mut waiting = VecDeque::new();
        for (id, bytes) in batches {
            let work = match self.check_produced(id, bytes) {
                Ok(work) => work,
                Err(error) => {
                    waiting.push_back(Waiting::Known(Err(error)));
                    continue;
                }
            };
            let permits = self.permits_of(&work);
            let permit = match self.permits.try_acquire_many(permits) {
                Err(TryAcquireError::NoPermits) => {
                    // What this call has in the queue gives its permits back first: nobody waits for itself.
                    while let Some(answer) = waiting.pop_front() {
                        produced.push(answer.outcome().await);
                    }
                    self.permits.acquire_many(permits).await.ok()
                }
                permit => permit.ok(),
            };
            waiting.push_back(match permit {
                Some(permit) => Waiting::For(self.shared.queue.push(work), permit),
                None => Waiting::Known(Err(Error::closed("the log was closed"))),
            });
        }
        for answer in waiting {
            produced.push(answer.outcome().await);
        }
        produced
    }

    fn check_produced(&self, id: PartitionId, bytes: Bytes) -> Result<Work> {
        check_users(id)?;
        // Before its content is looked at: what is too large is not worth it.
        let limit = self.shared.config.request_limit();
        if bytes.len() > limit {
            let error = Error::invalid(format!("batch of {} bytes exceeds {limit}", bytes.len()));
            return Err(error.with_reason(Reason::BatchTooLarge));
        }
        self.check_size(id, bytes.len())?;
        let bytes = batch::check_produced(&bytes)?;
        self.check_compacted(id, &batch::Batch::trusted(batch::BatchHeader::decode(&bytes)?, bytes.clone()))?;
        Ok(Work::Append { batches: vec![(id, bytes)], fence: None })
    }

    /// Gives a producer its identity. Without a transactional id it is a new one. With one, older producers of the id are
    /// fenced, and what they left open is aborted; `expected` is who asks to go on after an error.
    ///
    /// # Errors
    /// `Invalid` for the id or the time-out; `Conflict` where `expected` is fenced.
    pub async fn init_producer(
        &self,
        transactional_id: Option<&str>,
        timeout: Duration,
        expected: Option<ProducerIdentity>,
    ) -> Result<ProducerIdentity> {
        let Some(id) = transactional_id else {
            return Ok(ProducerIdentity { id: self.next_producer_id().await?, epoch: 0 });
        };
        check_id("transactional id", id)?;
        let (given, most) = (timeout.as_millis(), self.shared.config.producers.max_transaction_timeout_ms);
        if given == 0 || given > u128::from(most) {
            let text = format!("transaction time-out of {given} ms is not in 1..{most}");
            return Err(Error::invalid(text).with_reason(Reason::InvalidTransactionTimeout));
        }
        self.with_spare_id(id, |spare| {
            let id = id.to_owned();
            move |known: &Coordinator, now| known.init(&id, given as i64, expected, spare, now)
        })
        .await
    }

    /// Computes a change that may need a new producer id. It is taken only where it does: what is not used is lost.
    async fn with_spare_id<F>(&self, id: &str, compute: impl Fn(Option<i64>) -> F) -> Result<ProducerIdentity>
    where
        F: FnOnce(&Coordinator, Timestamp) -> Result<(Change, Option<ProducerIdentity>)> + Send + 'static,
    {
        let mut spare = None;
        loop {
            if let Some(identity) = self.coordinate(Some(id), 0, compute(spare)).await? {
                return Ok(identity);
            }
            spare = Some(self.next_producer_id().await?);
        }
    }

    async fn next_producer_id(&self) -> Result<i64> {
        let mut block = self.producer_ids.lock().await;
        if block.is_empty() {
            let first = self.coordinate(None, 0, |known, _| known.take_ids(ID_BLOCK)).await?;
            *block = first..first + ID_BLOCK;
        }
        block.next().ok_or_else(|| Error::internal("an empty block of producer ids"))
    }

    /// Adds partitions to the open transaction of an id, or opens one with them. Batches are taken of these only.
    ///
    /// # Errors
    /// `NotFound` for a partition; `Conflict` with a [`Reason`]; `Invalid` where the transaction's end would be too large.
    pub async fn add_partitions_to_transaction(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        partitions: &[PartitionId],
    ) -> Result<()> {
        for id in partitions {
            check_users(*id)?;
            self.shared.partition(*id)?.check_writable()?;
        }
        let added = Added { partitions: partitions.to_vec(), group: None };
        self.add_to_transaction(transactional_id, producer, added, 12 * partitions.len()).await
    }

    /// Adds a group to the open transaction of an id, or opens one with it. Offsets are held for these only.
    ///
    /// # Errors
    /// `Conflict` with a [`Reason`], `Invalid`.
    pub async fn add_group_to_transaction(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        group: &str,
    ) -> Result<()> {
        check_id("group", group)?;
        let added = Added { partitions: Vec::new(), group: Some(group.to_owned()) };
        self.add_to_transaction(transactional_id, producer, added, group.len()).await
    }

    async fn add_to_transaction(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        added: Added,
        added_bytes: usize,
    ) -> Result<()> {
        let (id, limit) = (transactional_id.to_owned(), self.shared.config.request_limit());
        let add = move |known: &Coordinator, now| Ok((known.add(&id, producer, &added, limit, now)?, ()));
        self.coordinate(Some(transactional_id), added_bytes, add).await
    }

    /// Holds records of `_tidemill.groups` (key and value) that the transaction's commit writes; of a key, the last one.
    ///
    /// # Errors
    /// `Conflict` with a [`Reason`]; `Invalid` where the transaction's end would be too large.
    pub async fn hold_group_offsets(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        group: &str,
        offsets: Vec<(String, Option<String>)>,
    ) -> Result<()> {
        let bytes = |(key, value): &(String, Option<String>)| key.len() + value.as_ref().map_or(0, String::len) + 16;
        let added_bytes = offsets.iter().map(bytes).sum();
        let (id, group) = (transactional_id.to_owned(), group.to_owned());
        let limit = self.shared.config.request_limit();
        let hold = move |known: &Coordinator, now| Ok((known.hold(&id, producer, &group, offsets, limit, now)?, ()));
        self.coordinate(Some(transactional_id), added_bytes, hold).await
    }

    /// Whether an open transaction holds a new value of this record of `_tidemill.groups`: what the group has committed
    /// may change yet.
    pub fn is_group_offset_held(&self, key: &str) -> bool {
        self.shared.coordinator().holds_offset(key)
    }

    /// Ends the open transaction of an id: markers in all its partitions and the group offsets it held become durable and
    /// visible together. Asked again, it answers again.
    ///
    /// # Errors
    /// `Conflict` with a [`Reason`]: fenced, or there is none open.
    pub async fn end_transaction(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        marker: Marker,
    ) -> Result<()> {
        let id = transactional_id.to_owned();
        let end = move |known: &Coordinator, now| Ok((known.end(&id, producer, marker, now)?, ()));
        self.coordinate(Some(transactional_id), 0, end).await
    }

    /// As [`Engine::end_transaction`], and gives the producer the identity with which alone it goes on: what it sent with the
    /// present one and comes late cannot end up in a later transaction. An abort where none is open does the same.
    ///
    /// # Errors
    /// As [`Engine::end_transaction`].
    ///
    /// # Source
    /// KIP-890, the second version of the protocol.
    pub async fn end_transaction_with_next(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        marker: Marker,
    ) -> Result<ProducerIdentity> {
        self.with_spare_id(transactional_id, |spare| {
            let id = transactional_id.to_owned();
            move |known: &Coordinator, now| known.end_with_next(&id, producer, marker, spare, now)
        })
        .await
    }

    /// All transactional ids.
    pub fn transactions(&self) -> Vec<TransactionInfo> {
        self.shared.coordinator().infos().collect()
    }

    /// One transactional id.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn transaction(&self, transactional_id: &str) -> Result<TransactionInfo> {
        let coordinator = self.shared.coordinator();
        let found = coordinator.get(transactional_id).map(|transaction| info_of(transactional_id, transaction));
        found.ok_or_else(|| Error::not_found(format!("transactional id {transactional_id:?} is not known")))
    }

    /// The producers that a partition knows.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn producers(&self, id: PartitionId) -> Result<Vec<ProducerInfo>> {
        Ok(self.shared.partition(id)?.state().producers.list())
    }

    /// How many producers are known, and how many were forgotten.
    pub fn producer_stats(&self) -> ProducerStats {
        self.shared.producers.stats()
    }

    /// Aborts transactions that are open for too long, forgets transactional ids and producers that were idle for long.
    /// Does not wait: what it asks for is done by the committer. To be called every few seconds.
    pub fn expire_producers(&self) {
        expire(&self.shared);
    }

    /// Has the committer compute a change and make it durable.
    async fn coordinate<T: Send + 'static>(
        &self,
        id: Option<&str>,
        added_bytes: usize,
        compute: impl FnOnce(&Coordinator, Timestamp) -> Result<(Change, T)> + Send + 'static,
    ) -> Result<T> {
        let limit = self.shared.config.request_limit();
        if super::frame_bound(super::ESCAPED * added_bytes, 0, 0) > limit {
            return Err(Error::invalid(format!("a transaction's record of {added_bytes} bytes more is too large")));
        }
        let answer = Answer::new();
        let told = answer.clone();
        let compute: Coordinate = Box::new(move |known, now| {
            let (change, value) = compute(known, now)?;
            told.set(value);
            Ok(change)
        });
        self.submit(Work::Coordinate { id: id.map(str::to_owned), added_bytes, compute }).await?;
        answer.take()
    }
}

/// A batch on its way.
enum Waiting<'a> {
    For(oneshot::Receiver<Result<Outcome>>, SemaphorePermit<'a>),
    Known(Result<Produced>),
}

impl Waiting<'_> {
    async fn outcome(self) -> Result<Produced> {
        match self {
            Self::For(answer, _permit) => {
                answer.await.map_err(|_| Error::closed("the log has stopped"))?.and_then(|outcome| outcome.produced())
            }
            Self::Known(outcome) => outcome,
        }
    }
}

fn check_users(id: PartitionId) -> Result<()> {
    match id.0 < FIRST_USER_PARTITION {
        true => Err(Error::new(ErrorKind::Denied, "the log's own topics are not produced to")),
        false => Ok(()),
    }
}

fn check_id(what: &str, id: &str) -> Result<()> {
    match (1..=MAX_ID_BYTES).contains(&id.len()) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{what} of {} bytes is not in 1..{MAX_ID_BYTES}", id.len()))),
    }
}

/// Has [`expire`] done every so often.
pub(in crate::engine) struct Expiry;

impl Chore for Expiry {
    fn name(&self) -> &'static str {
        "producers"
    }

    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        expire(shared);
        Ok(Progress::Done)
    }
}

/// What has to be done every few seconds.
fn expire(shared: &Shared) {
    let now = shared.clock.now();
    let limits = shared.config.producers;
    let idle_ms = limits.transactional_id_idle_ms.min(i64::MAX as u64) as i64;
    let (overdue, idle) = {
        let coordinator = shared.coordinator();
        (coordinator.overdue(now), coordinator.idle(idle_ms, now))
    };
    let mut asked = lock(&shared.producers.asked);
    asked.retain_mut(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
    // A committer that is held up is asked once.
    let (overdue, idle) = if asked.is_empty() { (overdue, idle) } else { Default::default() };
    let mut push = |id: String, compute: Coordinate| {
        asked.push(shared.queue.push(Work::Coordinate { id: Some(id), added_bytes: 0, compute }));
    };
    for id in overdue {
        tracing::warn!(transactional_id = id, "transaction aborted: it was open for longer than its time-out");
        let key = id.clone();
        push(id, Box::new(move |known, now| known.time_out(&key, now)));
    }
    for id in idle {
        let key = id.clone();
        push(id, Box::new(move |known, now| known.forget(&key, idle_ms, now)));
    }
    let before_ms = now.0.saturating_sub(limits.producer_idle_ms.min(i64::MAX as u64) as i64);
    shared.producers.expire(&shared.all_partitions(), before_ms);
}
