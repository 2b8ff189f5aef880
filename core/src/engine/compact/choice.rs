//! Which partition is compacted next: the one with the greatest part that no pass has seen, if that is worth it or overdue.

use std::sync::{Arc, PoisonError};

use super::{
    super::{
        partition::{Partition, State},
        segment::Segment,
        shared::Shared,
    },
    Compactor,
    pass::Pass,
};
use crate::{Error, Result, topic::PartitionId};

/// What of a partition a pass takes.
pub(super) struct Section {
    pub(super) partition: Arc<Partition>,
    /// Sealed and durable, from the first one on.
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) extent: Extent,
}

/// How much of a partition can be compacted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent {
    /// Segments from the first one on.
    count: usize,
    /// First offset that no pass has seen.
    pub(super) start: i64,
    /// First offset that must stay as it is.
    pub(super) end: i64,
    /// Bytes of segments that no pass has seen to their end.
    pub(super) dirty_bytes: u64,
    total_bytes: u64,
    /// Whether tombstones wait to go.
    pub(super) expired: bool,
}

/// No record at or beyond may be compacted: what is not durable in segments, and what a transaction may still decide.
pub(super) fn compactable_end(state: &State) -> i64 {
    state.synced_offset.min(state.last_stable_offset())
}

/// Why a partition's turn may come; the greater, the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Expired,
    Worth(u64),
    Overdue,
}

impl Compactor {
    /// The next pass, if there is something to do.
    pub(super) fn choose(&mut self, shared: &Shared) -> std::result::Result<Option<Pass>, (PartitionId, Error)> {
        let (now, passed) = (shared.clock.now().0, shared.clock.monotonic());
        self.held.retain(|_, until| *until > passed);
        let mut best: Option<(Turn, Arc<Partition>)> = None;
        for partition in compacted_partitions(shared) {
            if self.held.contains_key(&partition.id) {
                continue;
            }
            let Some(extent) = Extent::of(&partition.state(), now) else { continue };
            let turn = self.turn(shared, &partition, &extent, now).map_err(|e| (partition.id, e))?;
            if turn.is_some_and(|turn| best.as_ref().is_none_or(|(best, _)| turn > *best)) {
                best = turn.map(|turn| (turn, partition));
            }
        }
        let Some((_, partition)) = best else { return Ok(None) };
        let id = partition.id;
        let seed = shared.storage.random().map_err(|e| (id, e.into()))?;
        let section = {
            let state = partition.state();
            let Some(extent) = Extent::of(&state, now) else { return Ok(None) };
            Section { segments: state.segments[..extent.count].to_vec(), partition: Arc::clone(&partition), extent }
        };
        Ok(Some(Pass::new(section, now, seed, &shared.config)))
    }

    fn turn(&mut self, shared: &Shared, partition: &Partition, extent: &Extent, now: i64) -> Result<Option<Turn>> {
        let config = partition.config();
        if extent.dirty_bytes > 0 {
            if let Some(most) = config.max_compaction_lag {
                let oldest = self.oldest(shared, partition, extent.start)?;
                if oldest.saturating_add(millis(most)) <= now {
                    return Ok(Some(Turn::Overdue));
                }
            }
            let percent = extent.dirty_bytes.saturating_mul(100) / extent.total_bytes.max(1);
            if percent >= u64::from(config.dirty_percent) {
                return Ok(Some(Turn::Worth(percent)));
            }
        }
        Ok(extent.expired.then_some(Turn::Expired))
    }

    /// The time of the first batch that no pass has seen.
    fn oldest(&mut self, shared: &Shared, partition: &Partition, start: i64) -> Result<i64> {
        if let Some((_, time)) = self.oldest.get(&partition.id).filter(|(offset, _)| *offset == start) {
            return Ok(*time);
        }
        let segment = {
            let state = partition.state();
            let after = state.segments.partition_point(|segment| segment.base_offset() <= start);
            state.segments.get(after.saturating_sub(1)).cloned()
        };
        let Some(segment) = segment else { return Ok(i64::MAX) };
        let batches = segment.read(&*shared.storage, start, 1)?;
        let time = batches.first().map_or(i64::MAX, |batch| batch.header().max_timestamp);
        self.oldest.insert(partition.id, (start, time));
        Ok(time)
    }
}

/// Partitions whose topics are compacted at this moment.
pub(super) fn compacted_partitions(shared: &Shared) -> Vec<Arc<Partition>> {
    let partitions = shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
    partitions.values().filter(|partition| partition.config().cleanup.compacts()).cloned().collect()
}

pub(super) fn millis(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Extent {
    /// `None` where nothing can be compacted.
    fn of(state: &State, now: i64) -> Option<Self> {
        if state.deleted || !state.damage.is_empty() {
            return None;
        }
        let end = compactable_end(state);
        // The last segment may have ended, too: nothing is appended to it.
        let is_last = |i: usize| i + 1 == state.segments.len();
        let end_of = |i: usize| state.segments.get(i + 1).map_or(state.written_offset, |next| next.base_offset());
        let sealed = |i: &usize| {
            let segment = &state.segments[*i];
            segment.is_durable() && (!is_last(*i) || segment.ended()) && end_of(*i) <= end
        };
        let count = (0..state.segments.len()).take_while(sealed).count();
        let last = count.checked_sub(1)?;
        let start = state.compacted.below.max(state.segments[0].base_offset());
        let end = end.min(end_of(last));
        let length = |i: usize| state.segments[i].length();
        Some(Self {
            count,
            start,
            end,
            dirty_bytes: (0..count).filter(|i| start < end && end_of(*i) > start).map(length).sum(),
            total_bytes: (0..count).map(length).sum(),
            expired: state.compacted.tombstones_until.is_some_and(|until| until <= now),
        })
    }
}
