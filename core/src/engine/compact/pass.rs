//! One pass over one partition: what its newest records are, then its segments without the others.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    super::{
        committed::Aborted, config::Config, key_map::KeyMap, partition::Partition, segment::Segment, shared::Shared,
    },
    Compacted, Compaction,
    choice::{Extent, Section, millis},
    swap::Output,
};
use crate::{
    Error, Result,
    batch::{
        Batch, Marker,
        rewrite::{Left, Rewritten, emptied, gap, rewrite},
    },
    storage::Storage,
    topic::TopicConfig,
};

/// Bytes read in a step.
const STEP_BYTES: usize = 128 << 10;
/// No record takes less: so many keys, at most, are in a number of bytes.
const LEAST_RECORD_BYTES: u64 = 8;
/// A batch cannot span more offsets.
const MAX_SPAN: i64 = 1 << 31;

/// What a step of a pass did.
pub(super) enum Step {
    /// This many bytes were read and written.
    More(u64),
    /// All that could be compacted is too young for so long.
    Young(Duration),
    Done,
}

pub(super) struct Pass {
    partition: Arc<Partition>,
    config: Arc<TopicConfig>,
    segment_bytes: u64,
    /// Segments still to be read, the one being read first.
    segments: VecDeque<Arc<Segment>>,
    /// Where the next batch begins: offset, and position in the first of `segments`.
    place: (i64, u64),
    start: i64,
    end: i64,
    now: i64,
    expired: bool,
    generation: u32,
    map: KeyMap,
    /// Keys of all records below are in the map, or were looked at by an earlier pass.
    mapped: i64,
    /// The producers that the partition knows, each with its newest batch in what was mapped.
    producers: HashMap<i64, Option<i64>>,
    /// Aborted transactions by their producers.
    aborted: HashMap<i64, Vec<Aborted>>,
    /// All sources of the pass, while it maps.
    rewrite: Option<Rewrite>,
    sources: Vec<Arc<Segment>>,
    /// Bytes of segments that are replaced.
    replaced_bytes: u64,
    told: Compaction,
}

/// Segments on their way to one new one.
#[derive(Default)]
struct Rewrite {
    /// Segments read to their end whose records the output holds.
    read: Vec<Arc<Segment>>,
    output: Option<Output>,
    /// Whether the output differs from what it replaces.
    changed: bool,
    /// Offsets of batches without records, not yet written.
    gap: Option<(i64, i64)>,
    /// Whether there was a batch whose keys are not known.
    unknown: bool,
    tombstones_until: Option<i64>,
}

/// What becomes of a batch, by its header.
enum Fate {
    /// Each record is looked at.
    Read,
    /// It stays as it is, and nobody knows its keys.
    Unknown,
    /// It is a marker that must stay: readers pass over the records of an aborted transaction as far as that.
    Marker,
    /// It does not count: records of an aborted transaction, the marker of a committed one.
    Void,
}

impl Pass {
    pub(super) fn new(section: Section, now: i64, seed: u128, config: &Config) -> Self {
        let Section { partition, segments, extent: Extent { start, end, dirty_bytes, expired, .. } } = section;
        let settings = partition.config();
        let map = KeyMap::new(seed, config.compaction_map_bytes, dirty_bytes / LEAST_RECORD_BYTES);
        let told = Compaction { map_bytes: map.size_bytes(), ..Compaction::default() };
        let first = segments.partition_point(|segment| segment.base_offset() <= start).saturating_sub(1);
        let unseen: VecDeque<_> = segments[first..].iter().cloned().collect();
        let (generation, producers, aborted) = {
            let mut state = partition.state_mut();
            let listed = state.segments.iter().map(|segment| segment.generation()).max();
            state.generation = state.generation.max(listed.unwrap_or(0)) + 1;
            let mut aborted = HashMap::<_, Vec<_>>::new();
            for one in state.producers.aborted(segments[0].base_offset(), end) {
                aborted.entry(one.producer_id).or_default().push(one);
            }
            let producers = state.producers.list().into_iter().map(|producer| (producer.producer_id, None)).collect();
            (state.generation, producers, aborted)
        };
        let place = (unseen.front().map_or(end, |segment| segment.base_offset()), 0);
        Self {
            segment_bytes: settings.segment_bytes.unwrap_or(config.segment_bytes),
            config: settings,
            partition,
            segments: unseen,
            place,
            start,
            end,
            now,
            expired,
            generation,
            map,
            mapped: start,
            producers,
            aborted,
            rewrite: None,
            sources: segments,
            replaced_bytes: 0,
            told,
        }
    }

    pub(super) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What it has done so far.
    pub(super) fn told(&self) -> &Compaction {
        &self.told
    }

    /// Bytes of the segments that it has replaced so far.
    pub(super) fn replaced_bytes(&self) -> u64 {
        self.replaced_bytes
    }

    /// Removes what it has begun.
    pub(super) fn abandon(&mut self, storage: &dyn Storage) {
        if let Some(output) = self.rewrite.take().and_then(|rewrite| rewrite.output) {
            output.remove(storage);
        }
    }

    /// Does a little of it.
    ///
    /// # Errors
    /// The pass is to be given up: `NotFound` where the partition is deleted, `Conflict` where its segments changed,
    /// `Corrupt` where a segment is damaged, others of the disk.
    pub(super) fn step(&mut self, shared: &Shared, buffer: &mut Vec<u8>) -> Result<Step> {
        if self.partition.state().deleted {
            return Err(Error::not_found(format!("{} was deleted", self.partition.name)));
        }
        if !self.partition.config().cleanup.compacts() {
            return Err(Error::conflict(format!("{} is no longer compacted", self.partition.name)));
        }
        let before = self.told.read_bytes + self.told.written_bytes;
        let done = self.forward(shared, buffer);
        let done = done.map_err(|e| e.context(format!("compact {}", self.partition.name)))?;
        Ok(done.unwrap_or(Step::More(self.told.read_bytes + self.told.written_bytes - before)))
    }

    /// As [`Pass::step`]; nothing where there is more to do.
    fn forward(&mut self, shared: &Shared, buffer: &mut Vec<u8>) -> Result<Option<Step>> {
        let Some(mut rewrite) = self.rewrite.take() else {
            let Some(wait) = self.map_step(&*shared.storage)? else { return Ok(None) };
            if self.mapped == self.start && !self.expired {
                return Ok(Some(Step::Young(wait.unwrap_or_default())));
            }
            self.begin_rewrite();
            return Ok(None);
        };
        let done = self.rewrite_step(shared, &mut rewrite, buffer);
        let tombstones_until = rewrite.tombstones_until;
        // Also after a fault: what it has begun must be found to be removed.
        self.rewrite = Some(rewrite);
        if !done? {
            return Ok(None);
        }
        let mut state = self.partition.state_mut();
        state.compacted = Compacted { below: self.mapped.max(state.compacted.below), tombstones_until };
        Ok(Some(Step::Done))
    }

    /// Reads a little into the map. The end: of what there is, of what the map holds, or of what is old enough; the last
    /// with the time after which it is.
    fn map_step(&mut self, storage: &dyn Storage) -> Result<Option<Option<Duration>>> {
        if self.mapped >= self.end {
            return Ok(Some(None));
        }
        for batch in self.read_on(storage)? {
            if let Some(end) = self.note(&batch) {
                return Ok(Some(end));
            }
        }
        Ok(self.segments.is_empty().then_some(None))
    }

    /// The next batches; none at the end of a segment, which is then taken off the list.
    fn read_on(&mut self, storage: &dyn Storage) -> Result<Vec<Batch>> {
        let Some(segment) = self.segments.front() else { return Ok(Vec::new()) };
        let before = self.place.1;
        let batches = segment.read_on(storage, &mut self.place, STEP_BYTES)?;
        self.told.read_bytes += self.place.1 - before;
        if batches.is_empty() {
            self.segments.pop_front();
            if let Some(next) = self.segments.front() {
                self.place = (next.base_offset(), 0);
            }
        }
        Ok(batches)
    }

    /// Notes the keys of a batch. The end, as [`Pass::map_step`] tells it, where it is in this batch or before.
    fn note(&mut self, batch: &Batch) -> Option<Option<Duration>> {
        let header = batch.header();
        if header.next_offset() <= self.mapped {
            return None;
        }
        let lag = millis(self.config.min_compaction_lag);
        let age = self.now.saturating_sub(header.max_timestamp);
        if lag > 0 && age < lag {
            return Some(Some(Duration::from_millis((lag - age) as u64)));
        }
        if let Some(newest) = self.producers.get_mut(&header.producer_id).filter(|_| !header.is_control()) {
            *newest = Some(header.base_offset);
        }
        let records = matches!(self.fate(batch), Fate::Read).then(|| batch.records());
        // Behind a malformed record nothing is known: such a batch is kept as a whole.
        for record in records.into_iter().flatten().map_while(Result::ok) {
            if record.offset >= self.end {
                break;
            }
            if let Some(key) = record.key
                && record.offset >= self.mapped
                && !self.map.put(key, record.offset)
            {
                self.mapped = record.offset;
                return Some(None);
            }
        }
        self.mapped = header.next_offset().min(self.end);
        (self.mapped == self.end).then_some(None)
    }

    fn begin_rewrite(&mut self) {
        let mut sources = std::mem::take(&mut self.sources);
        sources.retain(|segment| segment.base_offset() < self.mapped);
        self.segments = sources.into();
        self.place = (self.segments.front().map_or(self.end, |segment| segment.base_offset()), 0);
        self.rewrite = Some(Rewrite::default());
    }

    /// Writes a little anew; whether all is done.
    fn rewrite_step(&mut self, shared: &Shared, to: &mut Rewrite, buffer: &mut Vec<u8>) -> Result<bool> {
        let Some(segment) = self.segments.front().cloned() else { return Ok(true) };
        let end = self.place.0;
        let batches = self.read_on(&*shared.storage)?;
        let mut out = Vec::with_capacity(batches.len());
        batches.iter().for_each(|batch| self.keep(batch, to, &mut out));
        if !batches.is_empty() {
            self.write(shared, to, &segment, &out, buffer)?;
            return Ok(false);
        }
        to.read.push(segment);
        if self.joins(to, end) {
            return Ok(false);
        }
        let last: Vec<_> = to.gap.take().map(|(base, end)| gap(base, end)).into_iter().collect();
        let first = Arc::clone(&to.read[0]);
        self.write(shared, to, &first, &last, buffer)?;
        let (sources, output) = (std::mem::take(&mut to.read), to.output.take());
        let changed = std::mem::take(&mut to.changed) || sources.len() > 1;
        match output {
            Some(output) if changed => {
                let bytes: u64 = sources.iter().map(|source| source.length()).sum();
                output.replace(shared, &self.partition, sources)?;
                self.replaced_bytes += bytes;
            }
            Some(output) => output.remove(&*shared.storage),
            None => {}
        }
        Ok(self.segments.is_empty())
    }

    /// Whether the next segment's records go to the same new one, which ends at `end` so far.
    fn joins(&self, to: &Rewrite, end: i64) -> bool {
        let Some(next) = self.segments.front() else { return false };
        let length = to.output.as_ref().map_or(0, Output::length);
        let spans = |segment: &Segment| segment.base_offset() - to.read[0].base_offset() < MAX_SPAN;
        next.base_offset() == end && spans(next) && length + next.length() <= self.segment_bytes
    }

    fn write(
        &mut self,
        shared: &Shared,
        to: &mut Rewrite,
        source: &Segment,
        batches: &[Bytes],
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        let output = match to.output.take() {
            Some(output) => output,
            None => {
                let base_offset = to.read.first().map_or(source.base_offset(), |first| first.base_offset());
                Output::create(shared, &self.partition.folder, base_offset, self.generation)?
            }
        };
        self.told.written_bytes += batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        let written = output.append(shared, batches, buffer);
        to.output = Some(output);
        written
    }

    /// What becomes of a batch below the last stable offset, where all transactions are decided.
    fn fate(&self, batch: &Batch) -> Fate {
        let header = batch.header();
        if header.is_control() {
            return if Marker::of(batch) == Some(Marker::Commit) { Fate::Void } else { Fate::Marker };
        }
        let aborted = self.aborted.get(&header.producer_id).filter(|_| header.is_transactional());
        if aborted.is_some_and(|all| all.iter().any(|aborted| aborted.holds(header))) {
            return Fate::Void;
        }
        if header.is_compressed() { Fate::Unknown } else { Fate::Read }
    }

    /// Decides over a batch, and adds what is left of it.
    fn keep(&mut self, batch: &Batch, to: &mut Rewrite, out: &mut Vec<Bytes>) {
        let header = batch.header();
        let fate = if header.next_offset() <= self.mapped || !header.is_transactional() {
            self.fate(batch)
        } else {
            Fate::Unknown // Beyond what was looked at: it may not be decided yet.
        };
        let done = match fate {
            Fate::Unknown | Fate::Marker => None,
            Fate::Void => {
                let removed = u64::from(header.record_count);
                Some(Rewritten { left: Left::Nothing, removed, horizon: None })
            }
            Fate::Read => self.look(batch, to.unknown),
        };
        let Some(done) = done else {
            to.unknown |= !matches!(fate, Fate::Marker);
            out.extend(to.gap.take().map(|(base, end)| gap(base, end)));
            out.push(batch.bytes().clone());
            return;
        };
        self.told.removed_records += done.removed;
        to.changed |= done.removed > 0;
        // What was due to go and had to stay must not bring the next pass at once.
        let until = done.horizon.filter(|until| *until > self.now || header.delete_horizon().is_none());
        to.tombstones_until = to.tombstones_until.max(until);
        let left = match done.left {
            Left::All => batch.bytes().clone(),
            Left::Some(bytes) => {
                to.changed = true;
                bytes
            }
            Left::Nothing if self.is_last_of_its_producer(batch) => emptied(batch),
            Left::Nothing => {
                let (base, end) = (header.base_offset, header.next_offset());
                match &mut to.gap {
                    Some(gap) if end - gap.0 <= MAX_SPAN => {
                        gap.1 = end;
                        to.changed = true;
                    }
                    other => out.extend(other.replace((base, end)).map(|(base, end)| gap(base, end))),
                }
                return;
            }
        };
        out.extend(to.gap.take().map(|(base, end)| gap(base, end)));
        out.push(left);
    }

    /// What is left of a batch; `None` where it cannot be read and is kept as it is.
    fn look(&self, batch: &Batch, unknown_before: bool) -> Option<Rewritten> {
        let header = batch.header();
        let may_go = !unknown_before && header.delete_horizon().is_some_and(|horizon| horizon <= self.now);
        let horizon = self.now.saturating_add(millis(self.config.tombstone_delay));
        let horizon = (header.next_offset() <= self.mapped).then_some(horizon);
        let keep = |record: &crate::batch::RecordRef<'_>| {
            let Some(key) = record.key.filter(|_| record.offset < self.mapped) else { return true };
            let is_newest = self.map.get(key).is_none_or(|newest| record.offset >= newest);
            is_newest && !(may_go && record.value.is_none())
        };
        rewrite(batch, horizon, keep).ok()
    }

    /// Whether it is the newest batch of a producer that may still go on: its last sequence stays with the offsets.
    fn is_last_of_its_producer(&self, batch: &Batch) -> bool {
        let header = batch.header();
        let newest = self.producers.get(&header.producer_id).filter(|_| !header.is_control());
        newest.is_some_and(|newest| newest.is_none_or(|newest| newest <= header.base_offset))
    }
}
