//! What each call makes of the present state of its transactional id. Nothing here writes: a change is computed, and the
//! committer makes it durable.

use std::collections::BTreeSet;

use super::{
    Change, Coordinator, End, ID_PREFIX, IDS_KEY, ProducerIdentity, Transaction, TransactionState, frame_bound,
};
use crate::{Error, Reason, Result, batch::Marker, record::Timestamp, topic::PartitionId};

/// Beyond this epoch a producer gets a new number: the last epoch is kept for a time-out.
const LAST_EPOCH: i16 = i16::MAX - 1;

/// What a transaction gets to hold.
#[derive(Debug, Default)]
pub(super) struct Added {
    pub(super) partitions: Vec<PartitionId>,
    pub(super) group: Option<String>,
}

fn refused(reason: Reason, text: String) -> Error {
    Error::conflict(text).with_reason(reason)
}

impl Coordinator {
    /// Gives away `count` producer ids, and tells the first.
    pub(super) fn take_ids(&self, count: i64) -> Result<(Change, i64)> {
        let first = self.next_producer_id;
        let next = first.checked_add(count).ok_or_else(|| Error::internal("all producer ids are given away"))?;
        let record = Some((IDS_KEY.to_owned(), Some(next.to_string())));
        Ok((Change { record, ..Change::default() }, first))
    }

    /// Opens a transactional id: older producers of it are fenced, what they left open is aborted. No identity is given
    /// where a new producer id is needed and `spare` has none.
    pub(super) fn init(
        &self,
        id: &str,
        timeout_ms: i64,
        expected: Option<ProducerIdentity>,
        spare: Option<i64>,
        now: Timestamp,
    ) -> Result<(Change, Option<ProducerIdentity>)> {
        let empty = |identity: ProducerIdentity, replaced| Transaction {
            producer_id: identity.id,
            epoch: identity.epoch,
            replaced,
            timeout_ms,
            state: TransactionState::Empty,
            started_ms: 0,
            updated_ms: now.0,
            partitions: BTreeSet::new(),
            groups: BTreeSet::new(),
            offsets: Default::default(),
        };
        let Some(present) = self.get(id) else {
            let Some(spare) = spare else { return Ok((Change::default(), None)) };
            let identity = ProducerIdentity { id: spare, epoch: 0 };
            return Ok((write(id, &empty(identity, None), None)?, Some(identity)));
        };
        let current = present.identity();
        if let Some(expected) = expected
            && expected != current
        {
            let missed = present.replaced == Some((expected.id, expected.epoch));
            if missed && !present.is_open() {
                return Ok((Change::default(), Some(current)));
            }
            return Err(fenced(id, expected, current));
        }
        let Some(next) = current.next(spare) else { return Ok((Change::default(), None)) };
        let replaced = expected.map(|expected| (expected.id, expected.epoch));
        let end = present.is_open().then(|| End {
            producer: ProducerIdentity { epoch: current.epoch.saturating_add(1), ..current },
            marker: Marker::Abort,
            partitions: present.partitions.clone(),
        });
        Ok((write(id, &empty(next, replaced), end)?, Some(next)))
    }

    /// The transaction of an id, if this is its producer.
    fn of_producer(&self, id: &str, producer: ProducerIdentity) -> Result<&Transaction> {
        let found = self.get(id).filter(|transaction| transaction.producer_id == producer.id);
        let Some(transaction) = found else {
            let text = format!("transactional id {id:?} does not belong to producer {}", producer.id);
            return Err(refused(Reason::InvalidProducerId, text));
        };
        match transaction.epoch == producer.epoch {
            true => Ok(transaction),
            false => Err(fenced(id, producer, transaction.identity())),
        }
    }

    /// Adds to the open transaction, or opens one.
    pub(super) fn add(
        &self,
        id: &str,
        producer: ProducerIdentity,
        added: &Added,
        limit: usize,
        now: Timestamp,
    ) -> Result<Change> {
        let mut next = self.of_producer(id, producer)?.clone();
        let known = next.is_open()
            && added.partitions.iter().all(|partition| next.partitions.contains(partition))
            && added.group.iter().all(|group| next.groups.contains(group));
        if known {
            return Ok(Change::default());
        }
        if !next.is_open() {
            next.end_with(TransactionState::Ongoing);
            next.started_ms = now.0;
        }
        next.partitions.extend(&added.partitions);
        next.groups.extend(added.group.clone());
        next.updated_ms = now.0;
        within(limit, id, write(id, &next, None)?, &next)
    }

    /// Holds records of `_tidemill.groups` until the transaction is committed.
    pub(super) fn hold(
        &self,
        id: &str,
        producer: ProducerIdentity,
        group: &str,
        offsets: Vec<(String, Option<String>)>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Change> {
        let mut next = self.of_producer(id, producer)?.clone();
        if !next.is_open() || !next.groups.contains(group) {
            let text = format!("transactional id {id:?} has no transaction open that holds group {group:?}");
            return Err(refused(Reason::InvalidTransactionState, text));
        }
        next.offsets.extend(offsets);
        next.updated_ms = now.0;
        within(limit, id, write(id, &next, None)?, &next)
    }

    /// Ends the open transaction; asked again, it has.
    pub(super) fn end(&self, id: &str, producer: ProducerIdentity, marker: Marker, now: Timestamp) -> Result<Change> {
        let present = self.of_producer(id, producer)?;
        if present.state == state_after(marker) {
            return Ok(Change::default());
        }
        if !present.is_open() {
            let text = format!("transactional id {id:?} has no transaction open");
            return Err(refused(Reason::InvalidTransactionState, text));
        }
        end_of(id, present, Ending { marker, marked: producer, identity: producer, replaced: None }, now)
    }

    /// As [`Coordinator::end`], and gives the producer its next identity, with which alone it goes on: what was sent with
    /// this one and comes late belongs to no later transaction. An abort of nothing is one, too.
    pub(super) fn end_with_next(
        &self,
        id: &str,
        producer: ProducerIdentity,
        marker: Marker,
        spare: Option<i64>,
        now: Timestamp,
    ) -> Result<(Change, Option<ProducerIdentity>)> {
        let ended = state_after(marker);
        let missed = |t: &&Transaction| t.replaced == Some((producer.id, producer.epoch)) && t.state == ended;
        if let Some(present) = self.get(id).filter(missed) {
            return Ok((Change::default(), Some(present.identity())));
        }
        let present = self.of_producer(id, producer)?;
        if !present.is_open() && marker == Marker::Commit {
            let text = format!("transactional id {id:?} has no transaction open");
            return Err(refused(Reason::InvalidTransactionState, text));
        }
        let Some(next) = producer.next(spare) else { return Ok((Change::default(), None)) };
        let fenced = ProducerIdentity { epoch: producer.epoch.saturating_add(1), ..producer };
        let replaced = Some((producer.id, producer.epoch));
        let ending = Ending { marker, marked: fenced, identity: next, replaced };
        Ok((end_of(id, present, ending, now)?, Some(next)))
    }

    /// Aborts a transaction that is open for longer than it may, and fences its producer.
    pub(super) fn time_out(&self, id: &str, now: Timestamp) -> Result<Change> {
        let Some(present) = self.get(id).filter(|transaction| transaction.is_overdue(now)) else {
            return Ok(Change::default());
        };
        let bumped = ProducerIdentity { epoch: present.epoch.saturating_add(1), ..present.identity() };
        let ending = Ending { marker: Marker::Abort, marked: bumped, identity: bumped, replaced: None };
        end_of(id, present, ending, now)
    }

    /// Forgets an id that was not used for `idle_ms`.
    pub(super) fn forget(&self, id: &str, idle_ms: i64, now: Timestamp) -> Result<Change> {
        let idle = |t: &&Transaction| !t.is_open() && now.0.saturating_sub(t.updated_ms) >= idle_ms;
        Ok(match self.get(id).filter(idle) {
            Some(_) => Change { record: Some((format!("{ID_PREFIX}{id}"), None)), ..Change::default() },
            None => Change::default(),
        })
    }

    /// Ids with a transaction that is open for longer than it may.
    pub(super) fn overdue(&self, now: Timestamp) -> Vec<String> {
        self.ids_of(|transaction| transaction.is_overdue(now))
    }

    /// Ids not used for `idle_ms`.
    pub(super) fn idle(&self, idle_ms: i64, now: Timestamp) -> Vec<String> {
        self.ids_of(|t| !t.is_open() && now.0.saturating_sub(t.updated_ms) >= idle_ms)
    }

    fn ids_of(&self, which: impl Fn(&Transaction) -> bool) -> Vec<String> {
        let found = self.known.iter().filter(|(_, known)| which(&known.transaction));
        found.map(|(id, _)| id.clone()).collect()
    }

    /// Whether an open transaction holds a new value of this record of `_tidemill.groups`.
    pub(super) fn holds_offset(&self, key: &str) -> bool {
        let mut open = self.known.values().filter(|known| known.transaction.is_open());
        open.any(|known| known.transaction.offsets.contains_key(key))
    }
}

impl ProducerIdentity {
    /// The identity after this one; none where that needs a new number and there is none.
    fn next(self, spare: Option<i64>) -> Option<Self> {
        match self.epoch < LAST_EPOCH {
            true => Some(Self { epoch: self.epoch + 1, ..self }),
            false => spare.map(|id| Self { id, epoch: 0 }),
        }
    }
}

impl Transaction {
    fn is_overdue(&self, now: Timestamp) -> bool {
        self.is_open() && now.0.saturating_sub(self.started_ms) >= self.timeout_ms
    }

    /// Forgets what the last transaction held.
    fn end_with(&mut self, state: TransactionState) {
        self.state = state;
        self.started_ms = 0;
        self.partitions.clear();
        self.groups.clear();
        self.offsets.clear();
    }
}

fn fenced(id: &str, producer: ProducerIdentity, current: ProducerIdentity) -> Error {
    let (ProducerIdentity { id: a, epoch: b }, ProducerIdentity { id: c, epoch: d }) = (producer, current);
    let text = format!("producer {a} of epoch {b} is fenced: {id:?} belongs to producer {c} of epoch {d}");
    refused(Reason::ProducerFenced, text)
}

fn write(id: &str, transaction: &Transaction, end: Option<End>) -> Result<Change> {
    let value =
        serde_json::to_string(transaction).map_err(|e| Error::internal("encode a transaction").with_source(e))?;
    let record = Some((format!("{ID_PREFIX}{id}"), Some(value)));
    Ok(Change { record, end, ..Change::default() })
}

fn state_after(marker: Marker) -> TransactionState {
    match marker {
        Marker::Commit => TransactionState::Committed,
        Marker::Abort => TransactionState::Aborted,
    }
}

/// How a transaction ends.
struct Ending {
    marker: Marker,
    /// Whose the markers are.
    marked: ProducerIdentity,
    /// Who may write under the id from then on.
    identity: ProducerIdentity,
    /// Who is told that, and may miss the answer.
    replaced: Option<(i64, i16)>,
}

fn end_of(id: &str, present: &Transaction, ending: Ending, now: Timestamp) -> Result<Change> {
    let Ending { marker, marked, identity, replaced } = ending;
    let mut next = present.clone();
    let offsets = std::mem::take(&mut next.offsets);
    let partitions = std::mem::take(&mut next.partitions);
    next.end_with(state_after(marker));
    (next.producer_id, next.epoch) = (identity.id, identity.epoch);
    next.replaced = replaced;
    next.updated_ms = now.0;
    let change = write(id, &next, Some(End { producer: marked, marker, partitions }))?;
    Ok(Change { offsets: if marker == Marker::Commit { offsets } else { Default::default() }, ..change })
}

/// What is taken must have room in the one frame that ends it.
fn within(limit: usize, id: &str, change: Change, next: &Transaction) -> Result<Change> {
    let stored = change.record.as_ref().and_then(|(_, value)| value.as_ref()).map_or(0, String::len);
    let bound = frame_bound(stored + id.len(), next.partitions.len(), next.offsets.len());
    if bound <= limit {
        return Ok(change);
    }
    let (partitions, offsets) = (next.partitions.len(), next.offsets.len());
    Err(Error::invalid(format!(
        "a transaction of {partitions} partitions and {offsets} group offsets needs {bound} bytes to end, the limit is {limit}"
    )))
}
