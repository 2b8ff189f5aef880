//! What the committer's present group has planned: offsets, and what producers have sent. Nobody else knows of it before
//! it is durable; a request that is refused leaves nothing behind in it.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    frame::Placed,
    partition::Partition,
    producers::{ProducerState, Verdict},
    shared::Shared,
};
use crate::{
    Result,
    batch::{BatchHeader, stamp_append_time},
    record::Timestamp,
    topic::{PartitionId, TimestampType},
};

/// A partition that the group writes to.
struct Lane {
    partition: Arc<Partition>,
    next_offset: i64,
    append_time: bool,
}

/// What becomes of a batch of a request.
pub(super) enum Place {
    /// It is written; the log's own time, or -1.
    New { placed: Placed, append_time: i64 },
    /// It is there already, or before it in this group.
    Known { base_offset: i64, append_time: i64 },
}

enum Undo {
    Offset(PartitionId, i64),
    Producer(PartitionId, i64, Option<ProducerState>),
}

pub(super) struct Staging {
    pub(super) now: Timestamp,
    lanes: HashMap<PartitionId, Lane>,
    producers: HashMap<(PartitionId, i64), ProducerState>,
    /// What the present request has changed, newest last.
    undo: Vec<Undo>,
}

impl Staging {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { now, lanes: HashMap::new(), producers: HashMap::new(), undo: Vec::new() }
    }

    /// A new request begins: what was planned before stays.
    pub(super) fn begin_request(&mut self) {
        self.undo.clear();
    }

    /// Takes back all that the present request has planned.
    pub(super) fn roll_back(&mut self) {
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Offset(id, next_offset) => {
                    if let Some(lane) = self.lanes.get_mut(&id) {
                        lane.next_offset = next_offset;
                    }
                }
                Undo::Producer(id, producer, Some(state)) => {
                    self.producers.insert((id, producer), state);
                }
                Undo::Producer(id, producer, None) => {
                    self.producers.remove(&(id, producer));
                }
            }
        }
    }

    /// Gives each batch its offset, or finds it as one that is known.
    ///
    /// # Errors
    /// Those of [`ProducerState::check`]; `Conflict` for a batch of no open transaction; `NotFound`.
    pub(super) fn place(&mut self, shared: &Shared, batches: Vec<(PartitionId, Bytes)>) -> Result<Vec<Place>> {
        batches.into_iter().map(|(id, bytes)| self.place_one(shared, id, bytes)).collect()
    }

    /// As [`Staging::place`], for batches of which none can be known.
    pub(super) fn place_new(&mut self, shared: &Shared, batches: Vec<(PartitionId, Bytes)>) -> Result<Vec<Placed>> {
        let places = self.place(shared, batches)?.into_iter();
        Ok(places
            .filter_map(|place| match place {
                Place::New { placed, .. } => Some(placed),
                Place::Known { .. } => None,
            })
            .collect())
    }

    /// Writes the log's own time into batches of topics that take it.
    pub(super) fn stamp(
        &mut self,
        shared: &Shared,
        batches: Vec<(PartitionId, Bytes)>,
    ) -> Result<Vec<(PartitionId, Bytes)>> {
        let stamp = |(id, bytes): (PartitionId, Bytes)| {
            let append_time = lane(&mut self.lanes, shared, id)?.append_time;
            Ok((id, if append_time { stamp_append_time(&bytes, self.now) } else { bytes }))
        };
        batches.into_iter().map(stamp).collect()
    }

    fn place_one(&mut self, shared: &Shared, id: PartitionId, bytes: Bytes) -> Result<Place> {
        let header = BatchHeader::decode(&bytes)?;
        let lane = lane(&mut self.lanes, shared, id)?;
        let append_time = lane.append_time && !header.is_control();
        let base_offset = lane.next_offset;
        if header.has_producer() && !header.is_control() {
            let producer = header.producer_id;
            let known = match self.producers.get(&(id, producer)) {
                Some(state) => Some(state.clone()),
                None => lane.partition.state().producers.get(producer).cloned(),
            };
            if let Verdict::Duplicate { base_offset, timestamp } = ProducerState::check(known.as_ref(), &header)? {
                return Ok(Place::Known { base_offset, append_time: if append_time { timestamp } else { -1 } });
            }
            if header.is_transactional() {
                shared.coordinator().check_batch(id, &header)?;
            }
            let max_timestamp = if append_time { self.now.0 } else { header.max_timestamp };
            let state = ProducerState::add(known, &BatchHeader { max_timestamp, ..header }, base_offset, self.now.0);
            let before = self.producers.insert((id, producer), state);
            self.undo.push(Undo::Producer(id, producer, before));
        }
        self.undo.push(Undo::Offset(id, base_offset));
        lane.next_offset += i64::from(header.last_offset_delta) + 1;
        // What was staged bears its time already: its bytes lie in the commit log.
        let stamps = append_time && !header.has_append_time();
        let bytes = if stamps { stamp_append_time(&bytes, self.now) } else { bytes };
        let append_time = if append_time { self.now.0 } else { -1 };
        Ok(Place::New { placed: Placed { partition: id, base_offset, bytes }, append_time })
    }
}

fn lane<'a>(lanes: &'a mut HashMap<PartitionId, Lane>, shared: &Shared, id: PartitionId) -> Result<&'a mut Lane> {
    Ok(match lanes.entry(id) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Lane::of(shared.partition(id)?)),
    })
}

impl Lane {
    fn of(partition: Arc<Partition>) -> Self {
        let append_time = partition.config().timestamp_type == TimestampType::LogAppendTime;
        let next_offset = partition.state().durable_offset;
        Self { partition, next_offset, append_time }
    }
}
