//! Transactions of Kafka's protocol: who may write under a transactional id, which transaction is open, what it holds.
//!
//! Their records get offsets when they are produced; whether they count is told by a marker in each partition at the end.
//! The state of an id is a record of `_tidemill.producers`. Every change of it is computed by the committer from what is
//! durable, and an end is one frame: the markers of all partitions, the new state, and the group offsets that were held.
//! So there is nothing half done to complete after a crash, and no state "preparing".
//!
//! A batch of a transaction is taken only while its transaction is open and holds the partition: none is left without its
//! marker, and no transaction keeps readers waiting for longer than its time-out.
//!
//! | module | what it does |
//! |---|---|
//! | `change` | what a call makes of the present state |
//! | `calls` | the calls, as [`super::Engine`] has them |
//!
//! # Source
//! KIP-98; KIP-360 and KIP-588 (a producer goes on after an error); KIP-890 (batches are verified).

mod calls;
mod change;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(super) use calls::Expiry;
pub use calls::{Produced, ProducerStats};

use super::{
    catalog::{Catalog, Table},
    frame::{GroupBuffer, Kind},
    shared::lock,
};
use crate::{
    Error, Reason, Result,
    batch::{Batch, BatchBuilder, BatchHeader, Marker, control_batch},
    record::{Record, Timestamp},
    topic::PartitionId,
};

/// The key that tells up to which number producer ids were given away.
const IDS_KEY: &str = "ids";
/// Keys of transactional ids begin with this.
const ID_PREFIX: &str = "t/";
/// Upper bound of a control batch.
const MARKER_BYTES: usize = 96;
/// Upper bound of a record's bytes beside key and value, and of a batch's beside its records.
const RECORD_BYTES: usize = 64;
/// A character of a text takes at most so many bytes as JSON.
const ESCAPED: usize = 6;

/// A producer's number and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProducerIdentity {
    /// Its number, never given twice.
    pub id: i64,
    /// Its epoch: of two producers of one transactional id, the greater one may write.
    pub epoch: i16,
}

/// Where a transactional id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransactionState {
    /// No transaction was begun since it was opened.
    Empty,
    /// A transaction is open.
    Ongoing,
    /// The last transaction was committed.
    Committed,
    /// The last transaction was aborted.
    Aborted,
}

/// A transactional id, for who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionInfo {
    /// The id.
    pub transactional_id: String,
    /// Who may write under it.
    pub producer: ProducerIdentity,
    /// Where it is.
    pub state: TransactionState,
    /// How long a transaction may be open.
    pub timeout: Duration,
    /// When the open transaction began.
    pub started: Option<Timestamp>,
    /// Partitions of the open transaction.
    pub partitions: Vec<PartitionId>,
    /// Groups whose offsets the open transaction may hold.
    pub groups: Vec<String>,
}

/// The record of a transactional id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Transaction {
    producer_id: i64,
    epoch: i16,
    /// The identity that the present one replaced at its producer's own wish: who asks with it again has missed the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replaced: Option<(i64, i16)>,
    timeout_ms: i64,
    state: TransactionState,
    #[serde(default, skip_serializing_if = "is_zero")]
    started_ms: i64,
    updated_ms: i64,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    partitions: BTreeSet<PartitionId>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    groups: BTreeSet<String>,
    /// Records of `_tidemill.groups` that a commit writes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    offsets: BTreeMap<String, Option<String>>,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Transaction {
    fn identity(&self) -> ProducerIdentity {
        ProducerIdentity { id: self.producer_id, epoch: self.epoch }
    }

    fn is_open(&self) -> bool {
        self.state == TransactionState::Ongoing
    }
}

/// A transactional id in memory.
#[derive(Debug)]
struct Known {
    transaction: Transaction,
    /// Length of its record.
    stored_bytes: usize,
}

/// All transactional ids: what `_tidemill.producers` says, decoded.
#[derive(Debug, Default)]
pub(super) struct Coordinator {
    known: BTreeMap<String, Known>,
    by_producer: HashMap<i64, String>,
    /// Producer ids below were given away.
    next_producer_id: i64,
}

impl Coordinator {
    /// All that the table says.
    pub(super) fn of(catalog: &Catalog) -> Result<Self> {
        let mut this = Self::default();
        for (key, entry) in catalog.table(Table::Producers) {
            this.set(key, Some(&entry.value))?;
        }
        Ok(this)
    }

    /// Follows the table after a batch of it was applied.
    pub(super) fn follow(&mut self, catalog: &Catalog, batch: &Batch) -> Result<()> {
        for record in batch.records() {
            let key = String::from_utf8_lossy(record?.key.unwrap_or_default()).into_owned();
            let value = catalog.table(Table::Producers).get(&key).map(|entry| entry.value.as_str());
            self.set(&key, value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        let malformed = || Error::corrupt(format!("record {key:?} of {} is malformed", Table::Producers.topic()));
        if key == IDS_KEY {
            self.next_producer_id = value.unwrap_or("0").parse().map_err(|_| malformed())?;
            return Ok(());
        }
        let id = key.strip_prefix(ID_PREFIX).ok_or_else(malformed)?;
        if let Some(Known { transaction, .. }) = self.known.remove(id) {
            self.by_producer.remove(&transaction.producer_id);
        }
        let Some(value) = value else { return Ok(()) };
        let transaction: Transaction = serde_json::from_str(value).map_err(|e| malformed().with_source(e))?;
        self.by_producer.insert(transaction.producer_id, id.to_owned());
        self.known.insert(id.to_owned(), Known { transaction, stored_bytes: value.len() });
        Ok(())
    }

    fn get(&self, id: &str) -> Option<&Transaction> {
        self.known.get(id).map(|known| &known.transaction)
    }

    /// Whether a batch of a transaction may be written now.
    ///
    /// # Errors
    /// `Conflict` with the [`Reason`].
    pub(super) fn check_batch(&self, partition: PartitionId, header: &BatchHeader) -> Result<()> {
        let id = header.producer_id;
        let transaction = self.by_producer.get(&id).and_then(|id| self.get(id));
        let Some(transaction) = transaction else {
            let text = format!("producer {id} has no transactional id");
            return Err(Error::conflict(text).with_reason(Reason::InvalidTransactionState));
        };
        if header.producer_epoch != transaction.epoch {
            let (epoch, current) = (header.producer_epoch, transaction.epoch);
            let text = format!("producer {id} of epoch {epoch} is fenced by epoch {current}");
            return Err(Error::conflict(text).with_reason(Reason::InvalidProducerEpoch));
        }
        if !transaction.is_open() || !transaction.partitions.contains(&partition) {
            let text = format!("producer {id} has no transaction open that holds partition {}", partition.0);
            return Err(Error::conflict(text).with_reason(Reason::InvalidTransactionState));
        }
        Ok(())
    }

    /// Upper bound of the frame that a call makes, which adds `added_bytes` of text to what is known of the id.
    pub(super) fn frame_bound(&self, id: Option<&str>, added_bytes: usize) -> usize {
        let known = id.and_then(|id| self.known.get(id));
        let (stored, markers, offsets) = known.map_or((0, 0, 0), |known| {
            let Transaction { partitions, offsets, .. } = &known.transaction;
            (known.stored_bytes, partitions.len(), offsets.len())
        });
        let id_bytes = id.map_or(0, str::len);
        frame_bound(stored + ESCAPED * added_bytes + id_bytes, markers, offsets)
    }

    fn infos(&self) -> impl Iterator<Item = TransactionInfo> {
        self.known.iter().map(|(id, known)| info_of(id, &known.transaction))
    }
}

/// What a frame takes that ends a transaction whose record has `stored` bytes.
fn frame_bound(stored: usize, markers: usize, offsets: usize) -> usize {
    let payload = markers * MARKER_BYTES + 2 * (stored + 512) + (offsets + 4) * RECORD_BYTES;
    GroupBuffer::frame_bound(markers + 2, 0, payload)
}

fn info_of(id: &str, of: &Transaction) -> TransactionInfo {
    TransactionInfo {
        transactional_id: id.to_owned(),
        producer: of.identity(),
        state: of.state,
        timeout: Duration::from_millis(of.timeout_ms.max(0) as u64),
        started: of.is_open().then_some(Timestamp(of.started_ms)),
        partitions: if of.is_open() { of.partitions.iter().copied().collect() } else { Vec::new() },
        groups: if of.is_open() { of.groups.iter().cloned().collect() } else { Vec::new() },
    }
}

/// The markers that end a transaction.
#[derive(Debug, PartialEq, Eq)]
struct End {
    producer: ProducerIdentity,
    marker: Marker,
    partitions: BTreeSet<PartitionId>,
}

/// What a call writes: nothing, or one frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// The record of `_tidemill.producers`.
    record: Option<(String, Option<String>)>,
    end: Option<End>,
    /// Records of `_tidemill.groups`.
    offsets: BTreeMap<String, Option<String>>,
}

/// Computes a change from what is durable when its turn comes.
pub(super) type Coordinate = Box<dyn FnOnce(&Coordinator, Timestamp) -> Result<Change> + Send>;

impl Change {
    pub(super) fn kind(&self) -> Kind {
        if self.end.is_some() { Kind::Marker } else { Kind::Append }
    }

    /// The batches of its frame; no marker where `takes_marker` says so.
    pub(super) fn into_batches(
        self,
        now: Timestamp,
        takes_marker: impl Fn(PartitionId) -> bool,
    ) -> Result<Vec<(PartitionId, Bytes)>> {
        let mut batches = Vec::new();
        if let Some(End { producer, marker, partitions }) = self.end {
            for id in partitions.into_iter().filter(|id| takes_marker(*id)) {
                batches.push((id, control_batch(producer.id, producer.epoch, marker, now)?));
            }
        }
        let tables = [(Table::Groups, self.offsets), (Table::Producers, self.record.into_iter().collect())];
        for (table, records) in tables.into_iter().filter(|(_, records)| !records.is_empty()) {
            let mut builder = BatchBuilder::default();
            for (key, value) in records {
                builder.push(&Record::new(Bytes::from(key), value.map(Bytes::from)), now)?;
            }
            batches.push((table.partition(), builder.finish()));
        }
        Ok(batches)
    }
}

/// Carries what a computation gives back to who asked for it.
struct Answer<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Answer<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn set(&self, value: T) {
        *lock(&self.0) = Some(value);
    }

    fn take(&self) -> Result<T> {
        lock(&self.0).take().ok_or_else(|| Error::internal("a call without an answer"))
    }
}
