//! What one partition knows of the producers that write to it: which batches it has of them, so that a batch sent twice is
//! stored once; which of their transactions are open; which were aborted.
//!
//! The committer checks a batch before it gives it an offset ([`ProducerState::check`]), against what is durable and what
//! its group already holds. What is durable is applied by one function ([`Producers::apply`]), live and at recovery: the
//! batches themselves tell all that is to be known. A manifest keeps it for batches that replay does not see.
//!
//! # Source
//! KIP-98 (idempotence, markers, aborted index), KIP-360 (a producer that is not known may begin anywhere).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{committed::Aborted, partition::Partition, queue::Outcome, shared::Shared, transactions::ProducerStats};
use crate::{
    Error, Reason, Result,
    batch::{Batch, BatchHeader, Marker},
};

/// So many of a producer's newest batches are told from new ones, with their offsets: a client has no more on their way.
const KEPT_BATCHES: usize = 5;
/// Sequences count from 0 to `i32::MAX`, then from 0.
const SEQUENCES: u32 = 1 << 31;

/// A batch that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, i64, i64)", into = "(u32, u32, i64, i64)")]
struct Written {
    first_sequence: u32,
    last_sequence: u32,
    base_offset: i64,
    timestamp: i64,
}

impl From<(u32, u32, i64, i64)> for Written {
    fn from((first_sequence, last_sequence, base_offset, timestamp): (u32, u32, i64, i64)) -> Self {
        let (first_sequence, last_sequence) = (first_sequence % SEQUENCES, last_sequence % SEQUENCES);
        Self { first_sequence, last_sequence, base_offset, timestamp }
    }
}

impl From<Written> for (u32, u32, i64, i64) {
    fn from(of: Written) -> Self {
        (of.first_sequence, of.last_sequence, of.base_offset, of.timestamp)
    }
}

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is new.
    Append,
    /// It is there already, from this offset on.
    Duplicate { base_offset: i64, timestamp: i64 },
}

/// What a partition knows of one producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredState", into = "StoredState")]
pub(super) struct ProducerState {
    epoch: i16,
    /// Sequences that it wrote without a gap in this epoch, as far as is known; no more than half of all count.
    seen: u32,
    /// When it last wrote, by the log's clock.
    touched_ms: i64,
    /// First offset of its open transaction.
    open_since: Option<i64>,
    /// The newest batches of the epoch, oldest first.
    written: Vec<Written>,
}

/// As the manifest has it: there may be many.
type StoredState = (i16, u32, i64, Option<i64>, Vec<Written>);

impl From<StoredState> for ProducerState {
    fn from((epoch, seen, touched_ms, open_since, written): StoredState) -> Self {
        let seen = seen.min(SEQUENCES / 2);
        Self { epoch, seen, touched_ms, open_since, written }
    }
}

impl From<ProducerState> for StoredState {
    fn from(of: ProducerState) -> Self {
        (of.epoch, of.seen, of.touched_ms, of.open_since, of.written)
    }
}

impl ProducerState {
    /// Judges a batch of a producer, of which `known` is what there is.
    ///
    /// # Errors
    /// `Conflict` with a [`Reason`]: an older epoch, a gap in the sequences, or so old a duplicate that its offset is gone.
    pub(super) fn check(known: Option<&Self>, header: &BatchHeader) -> Result<Verdict> {
        crate::batch::check_producer(header)?;
        let Some(known) = known else { return Ok(Verdict::Append) };
        let id = header.producer_id;
        let refused = |reason: Reason, text: String| Err(Error::conflict(text).with_reason(reason));
        if header.producer_epoch < known.epoch {
            return refused(
                Reason::InvalidProducerEpoch,
                format!("producer {id} of epoch {} is fenced by epoch {}", header.producer_epoch, known.epoch),
            );
        }
        let first = header.base_sequence as u32;
        if header.producer_epoch > known.epoch {
            return match first {
                0 => Ok(Verdict::Append),
                _ => refused(
                    Reason::OutOfOrderSequence,
                    format!("epoch {} of producer {id} begins with sequence {first}, not 0", header.producer_epoch),
                ),
            };
        }
        if known.open_since.is_some() && !header.is_transactional() {
            let text = format!("producer {id} has a transaction open, of which the batch is none");
            return refused(Reason::InvalidTransactionState, text);
        }
        let last = last_sequence(header);
        let same = |w: &&Written| (w.first_sequence, w.last_sequence) == (first, last);
        if let Some(Written { base_offset, timestamp, .. }) = known.written.iter().find(same) {
            return Ok(Verdict::Duplicate { base_offset: *base_offset, timestamp: *timestamp });
        }
        let expected = known.next_sequence();
        if first == expected {
            return Ok(Verdict::Append);
        }
        // Behind, all of it among what was written: its place is not known any more, but nothing of it is missing.
        let behind = distance(first, expected);
        if behind <= known.seen && header.last_offset_delta < behind {
            return refused(
                Reason::DuplicateSequence,
                format!("sequence {first} of producer {id} was written before, expected is {expected}"),
            );
        }
        refused(
            Reason::OutOfOrderSequence,
            format!("sequence {first} of producer {id} is out of order, expected is {expected}"),
        )
    }

    fn next_sequence(&self) -> u32 {
        self.written.last().map_or(0, |newest| (newest.last_sequence + 1) % SEQUENCES)
    }

    /// Adds a batch that [`ProducerState::check`] took, or that the log holds.
    pub(super) fn add(known: Option<Self>, header: &BatchHeader, base_offset: i64, now_ms: i64) -> Self {
        let mut this = known.unwrap_or(Self {
            epoch: header.producer_epoch,
            seen: 0,
            touched_ms: now_ms,
            open_since: None,
            written: Vec::new(),
        });
        if this.epoch != header.producer_epoch {
            this.begin_epoch(header.producer_epoch);
        }
        if this.written.len() == KEPT_BATCHES {
            this.written.remove(0);
        }
        this.written.push(Written {
            first_sequence: header.base_sequence.max(0) as u32,
            last_sequence: last_sequence(header),
            base_offset,
            timestamp: header.max_timestamp,
        });
        this.seen = this.seen.saturating_add(header.last_offset_delta + 1).min(SEQUENCES / 2);
        this.touched_ms = this.touched_ms.max(now_ms);
        if header.is_transactional() {
            this.open_since.get_or_insert(base_offset);
        }
        this
    }

    fn begin_epoch(&mut self, epoch: i16) {
        self.epoch = epoch;
        self.seen = 0;
        self.written.clear();
    }
}

fn last_sequence(header: &BatchHeader) -> u32 {
    (header.base_sequence.max(0) as u32 + header.last_offset_delta) % SEQUENCES
}

/// Steps from `from` on to `to`.
fn distance(from: u32, to: u32) -> u32 {
    (to + SEQUENCES - from) % SEQUENCES
}

/// A producer of a partition, for who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Its number.
    pub producer_id: i64,
    /// Its newest epoch.
    pub epoch: i16,
    /// Sequence of its newest record; -1 where it has written none in this epoch.
    pub last_sequence: i32,
    /// When it last wrote, by the log's clock.
    pub last_write_ms: i64,
    /// First offset of its open transaction.
    pub open_since: Option<i64>,
}

/// All that a partition knows of producers.
#[derive(Debug, Default)]
pub(super) struct Producers {
    states: HashMap<i64, ProducerState>,
    /// First offsets of open transactions, with their producers.
    open: BTreeMap<i64, i64>,
    /// Transactions that ended with nothing, in the order of their ends.
    aborted: Vec<Aborted>,
    /// All that batches below this offset tell is in here already.
    as_of: i64,
}

impl Producers {
    /// Takes what a durable batch tells. Tells how many more producers are known than before.
    pub(super) fn apply(&mut self, batch: &Batch, now_ms: i64) -> usize {
        let header = batch.header();
        if !header.has_producer() || header.base_offset < self.as_of {
            return 0;
        }
        if let Some(marker) = Marker::of(batch) {
            self.end_transaction(header, marker, now_ms);
            return 0;
        }
        if header.is_control() {
            return 0;
        }
        let known = self.states.remove(&header.producer_id);
        let added = usize::from(known.is_none());
        let state = ProducerState::add(known, header, header.base_offset, now_ms);
        if state.open_since == Some(header.base_offset) {
            self.open.insert(header.base_offset, header.producer_id);
        }
        self.states.insert(header.producer_id, state);
        added
    }

    /// A producer of which nothing is known stays so: a marker tells no sequence that the next batch could continue.
    fn end_transaction(&mut self, header: &BatchHeader, marker: Marker, now_ms: i64) {
        let Some(state) = self.states.get_mut(&header.producer_id) else { return };
        if header.producer_epoch > state.epoch {
            state.begin_epoch(header.producer_epoch);
        }
        state.touched_ms = state.touched_ms.max(now_ms);
        let Some(first_offset) = state.open_since.take() else { return };
        self.open.remove(&first_offset);
        if marker == Marker::Abort {
            let last_offset = header.base_offset;
            let last_stable_offset = self.open.keys().next().copied().unwrap_or(last_offset + 1);
            let producer_id = header.producer_id;
            self.aborted.push(Aborted { producer_id, first_offset, last_offset, last_stable_offset });
        }
    }

    pub(super) fn get(&self, producer_id: i64) -> Option<&ProducerState> {
        self.states.get(&producer_id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty() && self.aborted.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// First offset of the oldest open transaction.
    pub(super) fn first_open(&self) -> Option<i64> {
        self.open.keys().next().copied()
    }

    /// Aborted transactions with records or their end in `from..to`.
    pub(super) fn aborted(&self, from: i64, to: i64) -> Vec<Aborted> {
        let first = self.aborted.partition_point(|a| a.last_offset < from);
        let mut found = Vec::new();
        for aborted in &self.aborted[first..] {
            if aborted.first_offset < to {
                found.push(*aborted);
            }
            // All that ended later began at or beyond.
            if aborted.last_stable_offset >= to {
                break;
            }
        }
        found
    }

    pub(super) fn list(&self) -> Vec<ProducerInfo> {
        let info = |(id, state): (&i64, &ProducerState)| ProducerInfo {
            producer_id: *id,
            epoch: state.epoch,
            last_sequence: state.written.last().map_or(-1, |newest| newest.last_sequence as i32),
            last_write_ms: state.touched_ms,
            open_since: state.open_since,
        };
        let mut all: Vec<_> = self.states.iter().map(info).collect();
        all.sort_unstable_by_key(|info| info.producer_id);
        all
    }

    /// Forgets producers that last wrote before `before_ms` and have no transaction open; tells how many.
    pub(super) fn forget_idle(&mut self, before_ms: i64) -> usize {
        let known = self.states.len();
        self.states.retain(|_, state| state.open_since.is_some() || state.touched_ms >= before_ms);
        known - self.states.len()
    }

    /// Forgets aborted transactions of which nothing is kept any more.
    pub(super) fn forget_aborted(&mut self, log_start_offset: i64) {
        let gone = self.aborted.partition_point(|a| a.last_offset < log_start_offset);
        self.aborted.drain(..gone);
    }

    /// When the producers without an open transaction last wrote.
    pub(super) fn idle_since(&self) -> impl Iterator<Item = i64> {
        self.states.values().filter(|state| state.open_since.is_none()).map(|state| state.touched_ms)
    }

    /// Forgets the `count` producers that have been idle longest; fewer where the rest has transactions open.
    pub(super) fn forget_oldest(&mut self, count: usize) -> usize {
        let idle = self.states.iter().filter(|(_, state)| state.open_since.is_none());
        let mut idle: Vec<_> = idle.map(|(id, state)| (state.touched_ms, *id)).collect();
        if count < idle.len() {
            idle.select_nth_unstable(count);
            idle.truncate(count);
        }
        for (_, id) in &idle {
            self.states.remove(id);
        }
        idle.len()
    }

    /// What a manifest keeps, as of `durable_offset`; nothing where there is nothing to keep. Aborted transactions whose
    /// records are all below `log_start_offset` are left out.
    pub(super) fn snapshot(&self, log_start_offset: i64, durable_offset: i64) -> Option<Snapshot> {
        let gone = self.aborted.partition_point(|a| a.last_offset < log_start_offset);
        let aborted = self.aborted[gone..].to_vec();
        if self.states.is_empty() && aborted.is_empty() {
            return None;
        }
        let states = self.states.iter().map(|(id, state)| (*id, state.clone())).collect();
        Some(Snapshot { as_of: durable_offset, states, aborted })
    }

    pub(super) fn restore(snapshot: Snapshot) -> Self {
        let Snapshot { as_of, states, aborted } = snapshot;
        let open = states.iter().filter_map(|(id, state)| Some((state.open_since?, *id))).collect();
        Self { states: states.into_iter().collect(), open, aborted, as_of }
    }
}

/// How many producers all partitions know together, and how many were forgotten.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) known: AtomicUsize,
    evicted: AtomicU64,
    expired: AtomicU64,
    /// What the last expiry asked of the committer.
    pub(super) asked: Mutex<Vec<oneshot::Receiver<Result<Outcome>>>>,
}

impl Census {
    /// Counts producers that a partition has got to know. Where there are too many, an eighth of them goes, those that
    /// were idle for longest first: so the order is looked for but seldom.
    pub(super) fn add(&self, shared: &Shared, partition: &Partition, added: usize) {
        let all = self.known.fetch_add(added, Ordering::Relaxed) + added;
        let limits = &shared.config.producers;
        let mut state = partition.state_mut();
        if state.producers.len() > limits.per_partition {
            let evicted = state.producers.forget_oldest(limits.per_partition / 8 + 1);
            self.evicted(evicted);
        }
        drop(state);
        if all <= limits.in_all {
            return;
        }
        let partitions = shared.all_partitions();
        let mut idle: Vec<i64> = Vec::with_capacity(all);
        partitions.iter().for_each(|partition| idle.extend(partition.state().producers.idle_since()));
        let count = limits.in_all / 8 + 1;
        if count >= idle.len() {
            return;
        }
        let (_, before_ms, _) = idle.select_nth_unstable(count);
        let before_ms = *before_ms;
        let forgotten = partitions.iter().map(|partition| partition.state_mut().producers.forget_idle(before_ms));
        let mut evicted = forgotten.sum::<usize>();
        if evicted == 0 {
            // All are of the same moment: who is asked first gives way.
            for partition in &partitions {
                evicted += partition.state_mut().producers.forget_oldest(count - evicted);
                if evicted >= count {
                    break;
                }
            }
        }
        self.evicted(evicted);
    }

    fn evicted(&self, count: usize) {
        self.known.fetch_sub(count, Ordering::Relaxed);
        self.evicted.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Producers that went with their partition.
    pub(super) fn remove(&self, count: usize) {
        self.known.fetch_sub(count, Ordering::Relaxed);
    }

    /// Forgets producers that last wrote before `before_ms`, and aborted transactions that retention has passed.
    pub(super) fn expire(&self, partitions: &[Arc<Partition>], before_ms: i64) {
        for partition in partitions.iter().filter(|partition| !partition.state().producers.is_empty()) {
            let mut state = partition.state_mut();
            let log_start_offset = state.log_start_offset;
            state.producers.forget_aborted(log_start_offset);
            let expired = state.producers.forget_idle(before_ms);
            drop(state);
            self.known.fetch_sub(expired, Ordering::Relaxed);
            self.expired.fetch_add(expired as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn stats(&self) -> ProducerStats {
        ProducerStats {
            known: self.known.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
        }
    }
}

/// What a manifest says of a partition's producers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// All batches below are taken into account.
    as_of: i64,
    states: BTreeMap<i64, ProducerState>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aborted: Vec<Aborted>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(epoch: i16, first: u32, count: u32) -> BatchHeader {
        BatchHeader {
            base_offset: 0,
            size_bytes: 100,
            crc: 0,
            attributes: 0,
            last_offset_delta: count - 1,
            base_timestamp: 0,
            max_timestamp: 5,
            producer_id: 9,
            producer_epoch: epoch,
            base_sequence: first as i32,
            record_count: count,
        }
    }

    fn reason(known: &ProducerState, header: &BatchHeader) -> Option<Reason> {
        ProducerState::check(Some(known), header).expect_err("refused").reason()
    }

    #[test]
    fn five_batches_are_told_from_new_ones() {
        let mut state = None;
        for i in 0..8 {
            let next = header(0, i * 10, 10);
            assert_eq!(ProducerState::check(state.as_ref(), &next).expect("new"), Verdict::Append);
            state = Some(ProducerState::add(state, &next, 100 + i64::from(i), 0));
        }
        let state = state.expect("known");
        for i in 3..8 {
            let verdict = ProducerState::check(Some(&state), &header(0, i * 10, 10)).expect("known");
            assert_eq!(verdict, Verdict::Duplicate { base_offset: 100 + i64::from(i), timestamp: 5 });
        }
        assert_eq!(reason(&state, &header(0, 20, 10)), Some(Reason::DuplicateSequence), "older than five");
        assert_eq!(reason(&state, &header(0, 90, 10)), Some(Reason::OutOfOrderSequence), "ahead");
        assert_eq!(reason(&state, &header(0, 75, 10)), Some(Reason::OutOfOrderSequence), "half of it is new");
        assert_eq!(reason(&state, &header(1, 5, 1)), Some(Reason::OutOfOrderSequence), "an epoch begins with 0");
        let bumped = ProducerState::add(Some(state), &header(1, 0, 1), 200, 0);
        assert_eq!(reason(&bumped, &header(0, 80, 10)), Some(Reason::InvalidProducerEpoch));
        assert_eq!(ProducerState::check(Some(&bumped), &header(1, 1, 1)).expect("next"), Verdict::Append);
    }

    #[test]
    fn sequences_go_on_at_0() {
        let top = i32::MAX as u32;
        let state = ProducerState::add(None, &header(0, top - 1, 4), 0, 0);
        assert_eq!(ProducerState::check(Some(&state), &header(0, 2, 1)).expect("next"), Verdict::Append);
        let again = ProducerState::check(Some(&state), &header(0, top - 1, 4)).expect("known");
        assert!(matches!(again, Verdict::Duplicate { base_offset: 0, .. }));
        assert_eq!(reason(&state, &header(0, top, 1)), Some(Reason::DuplicateSequence));
    }

    /// What was forgotten is not known to be written: calling it a duplicate would lose it.
    #[test]
    fn what_may_be_missing_is_no_duplicate() {
        let state = ProducerState::add(None, &header(0, 50, 10), 0, 0);
        assert_eq!(reason(&state, &header(0, 40, 10)), Some(Reason::OutOfOrderSequence));
        assert_eq!(reason(&state, &header(0, 52, 3)), Some(Reason::DuplicateSequence));
    }

    #[test]
    fn aborted_transactions_are_found_by_range() {
        let aborted = |producer_id, first_offset, last_offset, last_stable_offset| Aborted {
            producer_id,
            first_offset,
            last_offset,
            last_stable_offset,
        };
        let all = vec![aborted(1, 5, 10, 2), aborted(2, 2, 12, 13), aborted(3, 20, 25, 26)];
        let producers = Producers { aborted: all.clone(), ..Producers::default() };
        assert_eq!(producers.aborted(0, 3), [all[1]]);
        assert_eq!(producers.aborted(0, 6), all[..2]);
        assert_eq!(producers.aborted(11, 30), all[1..]);
        assert_eq!(producers.aborted(13, 20), []);
        assert_eq!(producers.aborted(26, 90), []);
    }
}
