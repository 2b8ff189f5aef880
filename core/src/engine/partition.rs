//! One partition in memory: its segments, its tail in the ring, its bounds.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{compact::Compacted, producers::Producers, segment::Segment};
use crate::{
    Error, Result,
    batch::Batch,
    storage::Storage,
    topic::{PartitionId, TopicConfig},
};

/// A range of offsets whose records are lost or in doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// First offset of the range.
    pub from: i64,
    /// Offset after the range; `None` where its extent is unknown.
    pub to: Option<i64>,
    /// What was found, and where.
    pub cause: String,
}

pub(super) struct Partition {
    pub(super) id: PartitionId,
    /// `topic[number]`, for messages.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    state: RwLock<State>,
    config: RwLock<Arc<TopicConfig>>,
    /// Told when records become visible.
    pub(super) appended: Notify,
}

/// Batches in memory, newest last: those that segments do not hold yet, and as many before as the ring has room for.
pub(super) struct State {
    pub(super) log_start_offset: i64,
    /// First offset not yet durable; all below is visible.
    pub(super) durable_offset: i64,
    /// Offset up to which segments hold everything.
    pub(super) written_offset: i64,
    /// Offset up to which segments hold everything durably: what a manifest may say.
    pub(super) synced_offset: i64,
    pub(super) tail: VecDeque<Batch>,
    pub(super) segments: Vec<Arc<Segment>>,
    pub(super) compacted: Compacted,
    /// The newest generation of a segment's file that there was.
    pub(super) generation: u32,
    pub(super) damage: Vec<Damage>,
    pub(super) producers: Producers,
    pub(super) deleted: bool,
}

impl Partition {
    pub(super) fn new(id: PartitionId, name: String, folder: PathBuf) -> Self {
        let state = State {
            log_start_offset: 0,
            durable_offset: 0,
            written_offset: 0,
            synced_offset: 0,
            tail: VecDeque::new(),
            segments: Vec::new(),
            compacted: Compacted::default(),
            generation: 0,
            damage: Vec::new(),
            producers: Producers::default(),
            deleted: false,
        };
        Self { id, name, folder, state: RwLock::new(state), config: RwLock::default(), appended: Notify::new() }
    }

    /// The topic's settings at this moment.
    pub(super) fn config(&self) -> Arc<TopicConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn set_config(&self, config: Arc<TopicConfig>) {
        *self.config.write().unwrap_or_else(std::sync::PoisonError::into_inner) = config;
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes a durable batch visible; `now_ms` counts where it tells of a producer. Tells how many more producers are
    /// known than before.
    pub(super) fn publish(&self, batch: Batch, now_ms: i64) -> usize {
        let mut state = self.state_mut();
        debug_assert!(batch.header().base_offset >= state.durable_offset, "offsets only grow");
        state.durable_offset = batch.header().next_offset();
        let added = state.producers.apply(&batch, now_ms);
        state.tail.push_back(batch);
        added
    }

    /// Notes lost records once; finding them again at a later recovery adds nothing.
    pub(super) fn add_damage(&self, damage: Damage) {
        let mut state = self.state_mut();
        if !state.damage.iter().any(|known| (known.from, known.to) == (damage.from, damage.to)) {
            state.damage.push(damage);
        }
    }

    /// Whether it may be appended to.
    pub(super) fn check_writable(&self) -> Result<()> {
        let state = self.state();
        if state.deleted {
            return Err(Error::not_found(format!("{} was deleted", self.name)));
        }
        match state.damage.first() {
            None => Ok(()),
            Some(damage) => Err(Error::corrupt(format!(
                "{} is read-only: damaged from offset {}: {}",
                self.name, damage.from, damage.cause
            ))),
        }
    }

    /// Whole batches from the one that holds `offset` on, nothing at or beyond `end`.
    pub(super) fn read(
        &self,
        storage: &dyn Storage,
        offset: i64,
        max_bytes: usize,
        end: i64,
    ) -> Result<(Vec<Batch>, i64)> {
        let state = self.state();
        if offset < state.log_start_offset || offset > state.durable_offset {
            return Err(self.out_of_range(&state, offset));
        }
        let end = self.readable_end(&state, offset, end.min(state.durable_offset))?;
        if offset >= end {
            return Ok((Vec::new(), offset));
        }
        let from_tail = state.tail.front().is_some_and(|batch| batch.header().base_offset <= offset);
        let batches = if from_tail || state.written_offset <= offset {
            read_tail(&state, offset, max_bytes)
        } else {
            let after = state.segments.partition_point(|s| s.base_offset() <= offset);
            let segments: Vec<_> = state.segments[after.saturating_sub(1)..].iter().take(2).cloned().collect();
            drop(state);
            let read = self.read_segments(storage, &segments, offset, max_bytes);
            // Its file may have gone while it was read.
            match read {
                Ok(batches) => batches,
                Err(_) if !segments.iter().all(|segment| self.lists(segment)) && self.gone_below(offset).is_none() => {
                    // Others have taken its place.
                    return self.read(storage, offset, max_bytes, end);
                }
                Err(error) => return Err(self.gone_below(offset).unwrap_or(error)),
            }
        };
        // A batch may span `end` only where a reader's own bound lies inside it.
        let batches: Vec<_> = batches.into_iter().take_while(|b| b.header().base_offset < end).collect();
        let next = batches.last().map_or(end, |b| b.header().next_offset().min(end));
        Ok((batches, next))
    }

    pub(super) fn out_of_range(&self, state: &State, offset: i64) -> Error {
        let State { log_start_offset, durable_offset, .. } = state;
        Error::invalid(format!("offset {offset} of {} is out of range {log_start_offset}..{durable_offset}", self.name))
    }

    /// Whether a segment still is the partition's: retention may have taken it away, compaction replaced it.
    pub(super) fn lists(&self, segment: &Arc<Segment>) -> bool {
        self.state().segments.iter().any(|other| Arc::ptr_eq(other, segment))
    }

    /// Why a read failed, if its topic was deleted meanwhile.
    pub(super) fn gone(&self) -> Option<Error> {
        self.state().deleted.then(|| Error::not_found(format!("{} was deleted", self.name)))
    }

    /// Why a read at `offset` failed, if that is no longer kept.
    fn gone_below(&self, offset: i64) -> Option<Error> {
        let state = self.state();
        let below = (offset < state.log_start_offset).then(|| self.out_of_range(&state, offset));
        drop(state);
        self.gone().or(below)
    }

    /// A gap of offsets may lie between two segments: then the second one has the records.
    fn read_segments(
        &self,
        storage: &dyn Storage,
        segments: &[Arc<Segment>],
        offset: i64,
        max_bytes: usize,
    ) -> Result<Vec<Batch>> {
        for segment in segments {
            let batches =
                segment.read(storage, offset, max_bytes).map_err(|e| e.context(format!("read {}", self.name)))?;
            if !batches.is_empty() {
                return Ok(batches);
            }
        }
        let state = self.state();
        Ok(read_tail(&state, offset, max_bytes))
    }

    /// Reads stop before damage, and fail inside it: nobody passes lost records unknowingly.
    fn readable_end(&self, state: &State, offset: i64, end: i64) -> Result<i64> {
        for damage in &state.damage {
            let inside = offset >= damage.from && damage.to.is_none_or(|to| offset < to);
            if inside && offset < end {
                return Err(Error::corrupt(format!(
                    "{} offsets {}..{} are lost: {}",
                    self.name,
                    damage.from,
                    damage.to.map_or("?".to_owned(), |to| to.to_string()),
                    damage.cause
                )));
            }
        }
        let next = state.damage.iter().map(|d| d.from).filter(|from| *from > offset).min();
        Ok(next.map_or(end, |from| from.min(end)))
    }
}

fn read_tail(state: &State, offset: i64, max_bytes: usize) -> Vec<Batch> {
    let first = state.tail.partition_point(|batch| batch.header().next_offset() <= offset);
    let mut taken = 0;
    let batches = state.tail.range(first..).take_while(|batch| {
        let go_on = taken == 0 || taken < max_bytes;
        taken += batch.bytes().len();
        go_on
    });
    batches.cloned().collect()
}
