//! Reads by time: which record is the first whose time is not before a given one.
//!
//! Offsets decide what is first, and times need not follow them. Segments and their indexes tell the latest time of each
//! stretch, so that only stretches are read that hold such a record.

use std::sync::Arc;

use super::{
    Engine,
    committed::AbortedBatches,
    partition::{Partition, State},
    segment::Segment,
};
use crate::{
    Result,
    batch::{Batch, BatchHeader},
    error::ErrorKind,
    storage::Storage,
    topic::PartitionId,
};

/// Batches in memory that are looked at before others may change the partition.
const BATCHES_AT_ONCE: usize = 4096;
/// Bytes of a segment that are read at a time.
const BYTES_AT_ONCE: usize = 1 << 20;

impl Engine {
    /// The first record, in the order of offsets, whose time is `timestamp` (milliseconds since 1970 UTC) or later: its
    /// offset and its time. `None` where there is no such record. Reads the disk where the records are no longer in
    /// memory. Of a batch that is compressed, the batch's beginning is told, which may be earlier.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where records that have to be asked are damaged.
    pub fn offset_at_time(&self, id: PartitionId, timestamp: i64) -> Result<Option<(i64, i64)>> {
        self.shared.partition(id)?.offset_at_time(&*self.shared.storage, 0, timestamp)
    }

    /// As [`Engine::offset_at_time`], of the records that a reader of committed ones is shown.
    ///
    /// # Errors
    /// As [`Engine::offset_at_time`].
    pub fn shown_offset_at_time(&self, id: PartitionId, timestamp: i64) -> Result<Option<(i64, i64)>> {
        let (partition, storage) = (self.shared.partition(id)?, &*self.shared.storage);
        let mut from = 0;
        while let Some((offset, time)) = partition.offset_at_time(storage, from, timestamp)? {
            if offset >= partition.state().last_stable_offset() {
                break;
            }
            let batches = match partition.read(storage, offset, 1, i64::MAX) {
                Ok((batches, _)) => batches,
                Err(_) if offset < partition.state().log_start_offset => continue,
                Err(error) => return Err(error),
            };
            let Some(header) = batches.first().map(|batch| *batch.header()) else { break };
            let aborted = partition.state().producers.aborted(header.base_offset, header.next_offset());
            if AbortedBatches::new(aborted).shows(&header) {
                return Ok(Some((offset, time)));
            }
            from = header.next_offset();
        }
        Ok(None)
    }

    /// The first of the records with the latest time of all: its offset and its time. `None` where there is no record.
    ///
    /// # Errors
    /// As [`Engine::offset_at_time`].
    pub fn offset_of_latest_time(&self, id: PartitionId) -> Result<Option<(i64, i64)>> {
        let partition = self.shared.partition(id)?;
        let Some(latest) = partition.max_timestamp(&*self.shared.storage)? else { return Ok(None) };
        partition.offset_at_time(&*self.shared.storage, 0, latest)
    }
}

/// Where a search goes on.
enum Place {
    End,
    /// Batches of the tail from the first that is looked at.
    Tail(Vec<Batch>),
    Segment(Arc<Segment>),
}

impl Partition {
    /// The first record at or after `from` whose time is `timestamp` or later.
    fn offset_at_time(&self, storage: &dyn Storage, mut from: i64, timestamp: i64) -> Result<Option<(i64, i64)>> {
        loop {
            let (place, after) = self.place_at(&mut from);
            let found = match &place {
                Place::End => return Ok(None),
                Place::Tail(batches) => {
                    let found = batches.iter().map(|batch| first_in(batch, from, timestamp));
                    found.filter_map(Result::transpose).next().transpose()
                }
                Place::Segment(segment) => match segment.times().max_timestamp {
                    Some(latest) if latest < timestamp => Ok(None),
                    _ => segment.find_time(storage, from, timestamp),
                },
            };
            match found {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => from = after.max(from + 1),
                // It went while it was read: what is left is looked at.
                Err(_) if from < self.state().log_start_offset || self.is_replaced(&place) => {}
                Err(error) => return Err(self.gone().unwrap_or(error)),
            }
        }
    }

    /// Whether compaction has put another segment in the place of this one.
    fn is_replaced(&self, place: &Place) -> bool {
        matches!(place, Place::Segment(segment) if !self.lists(segment)) && self.gone().is_none()
    }

    /// The latest time of all records that are kept.
    fn max_timestamp(&self, storage: &dyn Storage) -> Result<Option<i64>> {
        let (mut from, mut latest) = (0, None);
        loop {
            let (place, after) = self.place_at(&mut from);
            let found = match &place {
                Place::End => return Ok(latest),
                Place::Tail(batches) => batches
                    .iter()
                    .map(|batch| latest_of_rest(batch, from))
                    .try_fold(None, |latest, found| Ok(latest.max(found?))),
                Place::Segment(segment) if segment.base_offset() < from => latest_in_rest(segment, storage, from),
                Place::Segment(segment) => segment.max_timestamp(storage).map(Some),
            };
            match found {
                Ok(found) => {
                    latest = latest.max(found);
                    from = after.max(from + 1);
                }
                Err(_) if from < self.state().log_start_offset || self.is_replaced(&place) => {}
                Err(error) => return Err(self.gone().unwrap_or(error)),
            }
        }
    }

    /// What holds the records from `from` on, and the offset after it; moves `from` up to the first kept record.
    fn place_at(&self, from: &mut i64) -> (Place, i64) {
        let state: &State = &self.state();
        *from = (*from).max(state.log_start_offset);
        if *from >= state.durable_offset {
            return (Place::End, *from);
        }
        let in_tail = state.tail.front().is_some_and(|batch| batch.header().base_offset <= *from);
        if in_tail || state.written_offset <= *from {
            let first = state.tail.partition_point(|batch| batch.header().next_offset() <= *from);
            let batches: Vec<_> = state.tail.range(first..).take(BATCHES_AT_ONCE).cloned().collect();
            let after = batches.last().map_or(state.durable_offset, |batch| batch.header().next_offset());
            return (Place::Tail(batches), after);
        }
        let next = state.segments.partition_point(|segment| segment.base_offset() <= *from);
        let after = state.segments.get(next).map_or(state.written_offset, |segment| segment.base_offset());
        match next.checked_sub(1).map(|i| &state.segments[i]) {
            Some(segment) => (Place::Segment(Arc::clone(segment)), after),
            None => (Place::Tail(Vec::new()), after),
        }
    }
}

/// The latest time of a segment's records at or after `from`: those before are no longer kept.
fn latest_in_rest(segment: &Segment, storage: &dyn Storage, mut from: i64) -> Result<Option<i64>> {
    let mut latest = None;
    loop {
        let batches = segment.read(storage, from, BYTES_AT_ONCE)?;
        let Some(last) = batches.last() else { return Ok(latest) };
        for batch in &batches {
            latest = latest.max(latest_of_rest(batch, from)?);
        }
        from = last.header().next_offset();
    }
}

/// The latest time of a batch's records at or after `from`.
fn latest_of_rest(batch: &Batch, from: i64) -> Result<Option<i64>> {
    let header = batch.header();
    let whole = header.base_offset >= from || header.is_compressed() || header.has_append_time();
    if whole || latest_of(header).is_none() {
        return Ok(latest_of(header));
    }
    let kept = batch.records().filter(|record| record.as_ref().map_or(true, |record| record.offset >= from));
    kept.map(|record| record.map(|record| record.timestamp)).try_fold(None, |latest, time| Ok(latest.max(Some(time?))))
}

/// The first record of a batch at or after `offset` whose time is `timestamp` or later.
pub(super) fn first_in(batch: &Batch, offset: i64, timestamp: i64) -> Result<Option<(i64, i64)>> {
    let header = batch.header();
    if header.next_offset() <= offset || latest_of(header).is_none_or(|latest| latest < timestamp) {
        return Ok(None);
    }
    for record in batch.records() {
        match record {
            Ok(record) => {
                if record.offset >= offset && record.timestamp >= timestamp {
                    return Ok(Some((record.offset, record.timestamp)));
                }
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                return Ok(Some((header.base_offset.max(offset), header.max_timestamp)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The latest time in a batch; none where nobody can read a record of it.
fn latest_of(header: &BatchHeader) -> Option<i64> {
    (header.record_count > 0 && !header.is_control()).then_some(header.max_timestamp)
}
