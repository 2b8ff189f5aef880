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

/// What of a partition can be compacted.
pub(super) struct Section {
    pub(super) partition: Arc<Partition>,
    /// Sealed and durable, from the first one on.
    pub(super) segments: Vec<Arc<Segment>>,
    /// First offset that no pass has seen.
    pub(super) start: i64,
    /// First offset that must stay as it is.
    pub(super) end: i64,
    /// Bytes of segments that no pass has seen to their end.
    pub(super) dirty_bytes: u64,
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
        let mut best: Option<(Turn, Section)> = None;
        for partition in compacted_partitions(shared) {
            if self.held.contains_key(&partition.id) {
                continue;
            }
            let Some(section) = section_of(&partition, now) else { continue };
            let turn = self.turn(shared, &section, now).map_err(|e| (partition.id, e))?;
            if turn.is_some_and(|turn| best.as_ref().is_none_or(|(best, _)| turn > *best)) {
                best = turn.map(|turn| (turn, section));
            }
        }
        let Some((_, section)) = best else { return Ok(None) };
        let id = section.partition.id;
        let seed = shared.storage.random().map_err(|e| (id, e.into()))?;
        Ok(Some(Pass::new(section, now, seed, &shared.config)))
    }

    fn turn(&mut self, shared: &Shared, section: &Section, now: i64) -> Result<Option<Turn>> {
        let config = section.partition.config();
        let dirty = section.dirty_bytes;
        if dirty > 0 {
            let total: u64 = section.segments.iter().map(|segment| segment.length()).sum();
            let percent = dirty.saturating_mul(100) / total.max(1);
            if let Some(most) = config.max_compaction_lag {
                let oldest = self.oldest(shared, section)?;
                if oldest.saturating_add(millis(most)) <= now {
                    return Ok(Some(Turn::Overdue));
                }
            }
            if percent >= u64::from(config.dirty_percent) {
                return Ok(Some(Turn::Worth(percent)));
            }
        }
        Ok(section.expired.then_some(Turn::Expired))
    }

    /// The time of the first batch that no pass has seen.
    fn oldest(&mut self, shared: &Shared, section: &Section) -> Result<i64> {
        let id = section.partition.id;
        if let Some((_, time)) = self.oldest.get(&id).filter(|(offset, _)| *offset == section.start) {
            return Ok(*time);
        }
        let after = section.segments.partition_point(|segment| segment.base_offset() <= section.start);
        let Some(segment) = section.segments.get(after.saturating_sub(1)) else { return Ok(i64::MAX) };
        let batches = segment.read(&*shared.storage, section.start, 1)?;
        let time = batches.first().map_or(i64::MAX, |batch| batch.header().max_timestamp);
        self.oldest.insert(id, (section.start, time));
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

/// What can be compacted of a partition; `None` where nothing can.
fn section_of(partition: &Arc<Partition>, now: i64) -> Option<Section> {
    let state = partition.state();
    if state.deleted || !state.damage.is_empty() {
        return None;
    }
    let end = compactable_end(&state);
    // The last segment may have ended, too: nothing is appended to it.
    let is_last = |i: usize| i + 1 == state.segments.len();
    let end_of = |i: usize| state.segments.get(i + 1).map_or(state.written_offset, |next| next.base_offset());
    let sealed = |i: &usize| {
        let segment = &state.segments[*i];
        segment.is_durable() && (!is_last(*i) || segment.ended()) && end_of(*i) <= end
    };
    let count = (0..state.segments.len()).take_while(sealed).count();
    let last = count.checked_sub(1)?;
    let below = state.compacted.below;
    let (start, end) = (below.max(state.segments[0].base_offset()), end.min(end_of(last)));
    let unseen = (0..count).filter(|i| start < end && end_of(*i) > start);
    Some(Section {
        partition: Arc::clone(partition),
        segments: state.segments[..count].to_vec(),
        start,
        end,
        dirty_bytes: unseen.map(|i| state.segments[i].length()).sum(),
        expired: state.compacted.tombstones_until.is_some_and(|until| until <= now),
    })
}
