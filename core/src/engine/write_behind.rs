//! The segment writer: moves batches from memory into segments in large runs.
//!
//! Nothing waits for it but room: an append is durable in the commit log long before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{
    checkpoint::Checkpoint,
    full_disk::Hindered,
    partition::{Damage, Partition},
    segment::Segment,
    shared::{Shared, lock},
    slots::Slot,
    superblock::SuperblockFile,
};
use crate::{ErrorKind, Result, topic::PartitionId};

/// A partition with fewer unwritten bytes waits for more, or for its second to be over.
const RUN_BYTES: usize = 256 << 10;
/// No run is copied together that is larger, whatever a segment may hold.
const MAX_RUN_BYTES: usize = 8 << 20;
/// After a full disk, no file of the commit log is made for so long.
const SLOT_REST: std::time::Duration = std::time::Duration::from_secs(1);

pub(super) struct SegmentWriter {
    pub(super) shared: Arc<Shared>,
    pub(super) superblock: SuperblockFile,
    /// Segments written since they were last synced, by partition.
    pub(super) unsynced: BTreeMap<PartitionId, (Arc<Partition>, Vec<Arc<Segment>>)>,
    /// Folders with names that are not durable yet.
    pub(super) new_folders: BTreeSet<std::path::PathBuf>,
    pub(super) checkpoint: Option<Checkpoint>,
    /// Files of the commit log are not made until then: there was no room.
    slot_denied: Option<std::time::Duration>,
    /// Of the file that the next manifest may be written over, and of the last manifest.
    pub(super) reserve_bytes: usize,
    pub(super) manifest_bytes: usize,
    pub(super) reserve_denied: Option<std::time::Duration>,
    /// Runs are copied together here.
    buffer: Vec<u8>,
}

impl SegmentWriter {
    pub(super) fn new(shared: Arc<Shared>, superblock: SuperblockFile) -> Self {
        Self {
            shared,
            superblock,
            unsynced: BTreeMap::new(),
            new_folders: BTreeSet::new(),
            checkpoint: None,
            slot_denied: None,
            reserve_bytes: 0,
            manifest_bytes: 0,
            reserve_denied: None,
            buffer: Vec::new(),
        }
    }

    pub(super) fn may_add_slot(&self) -> bool {
        let config = &self.shared.config;
        let denied = self.slot_denied.is_some_and(|until| self.shared.clock.monotonic() < until);
        !denied && lock(&self.shared.slots).count < config.commit_log_bytes / config.commit_file_bytes
    }

    /// Sees to it that the committer finds a free file when the present one is full.
    pub(super) fn prepare_slot(&mut self) -> Result<()> {
        self.keep_reserve();
        if !lock(&self.shared.slots).free.is_empty() {
            self.note_full(Hindered::CommitLog, None);
            return Ok(());
        }
        if !self.may_add_slot() {
            return Ok(());
        }
        let number = {
            let mut pool = lock(&self.shared.slots);
            pool.next_number += 1;
            pool.next_number
        };
        let folder = self.shared.data_dir.join("commitlog");
        let created = Slot::create(&*self.shared.storage, &folder, number, self.shared.config.commit_file_bytes);
        let slot = match created {
            Ok(slot) => slot,
            Err(error) if error.is_disk_full() => {
                // The log goes on with the files it has, and checkpoints come sooner.
                self.note_full(Hindered::CommitLog, Some(&error));
                self.slot_denied = Some(self.shared.clock.monotonic() + SLOT_REST);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.slot_denied = None;
        self.note_full(Hindered::CommitLog, None);
        let mut pool = lock(&self.shared.slots);
        pool.free.push(slot);
        pool.count += 1;
        drop(pool);
        self.shared.made_room();
        Ok(())
    }

    /// Writes what is in memory only into segments; small amounts only if `all`. An open checkpoint goes on meanwhile.
    pub(super) fn write_behind(&mut self, all: bool) -> Result<()> {
        let dirty: Vec<PartitionId> = lock(&self.shared.writer).dirty.iter().copied().collect();
        if dirty.is_empty() {
            self.note_full(Hindered::Segments, None);
        }
        for id in dirty {
            if let Ok(partition) = self.shared.partition(id) {
                self.write_partition(&partition, all)?;
                self.keep_pace()?;
            } else {
                lock(&self.shared.writer).dirty.remove(&id);
            }
        }
        self.shared.evict();
        self.keep_pace()
    }

    /// Writes what is visible of a partition now; what comes meanwhile is for another time, so that others get their turn.
    pub(super) fn write_partition(&mut self, partition: &Arc<Partition>, all: bool) -> Result<()> {
        let end = partition.state().durable_offset;
        while partition.state().written_offset < end {
            let segment_bytes = self.segment_bytes(partition);
            let (batches, bytes, next) = unwritten_run(partition, MAX_RUN_BYTES.min(segment_bytes as usize));
            if batches.is_empty() {
                break;
            }
            if !all && bytes < RUN_BYTES {
                return Ok(());
            }
            if let Err(error) = self.append_run(partition, &batches, bytes as u64) {
                if error.is_disk_full() {
                    self.note_full(Hindered::Segments, Some(&error));
                }
                return Err(error.context(format!("write {}", partition.name)));
            }
            self.note_full(Hindered::Segments, None);
            let mut state = partition.state_mut();
            if !state.deleted {
                state.written_offset = next;
                self.shared.unwritten_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            drop(state);
            if let Some(open) = &mut self.checkpoint {
                open.credit(partition.id, bytes as u64);
            }
            // After each run: who waits for room needs a little of it, not all.
            self.tell_progress();
        }
        self.mark_clean(partition);
        Ok(())
    }

    fn append_run(&mut self, partition: &Arc<Partition>, batches: &[Bytes], bytes: u64) -> Result<()> {
        let segment = self.segment_for(partition, bytes)?;
        segment.append(&*self.shared.storage, batches, self.shared.clock.now().0, &mut self.buffer)?;
        self.note_unsynced(partition, segment);
        Ok(())
    }

    /// Writes what there is of a partition and ends its last segment.
    pub(super) fn roll(&mut self, partition: &Arc<Partition>) -> Result<()> {
        self.write_partition(partition, true)?;
        let last = partition.state().segments.last().cloned();
        if let Some(last) = last.filter(|last| last.length() > 0) {
            last.seal(&*self.shared.storage);
        }
        Ok(())
    }

    fn note_unsynced(&mut self, partition: &Arc<Partition>, segment: Arc<Segment>) {
        let (_, segments) = self.unsynced.entry(partition.id).or_insert_with(|| (Arc::clone(partition), Vec::new()));
        if !segments.iter().any(|other| Arc::ptr_eq(other, &segment)) {
            segments.push(segment);
        }
    }

    /// Takes a partition off the list unless something came meanwhile.
    fn mark_clean(&self, partition: &Partition) {
        let mut writer = lock(&self.shared.writer);
        let state = partition.state();
        if state.tail.back().is_none_or(|batch| batch.header().next_offset() <= state.written_offset) {
            writer.dirty.remove(&partition.id);
        }
    }

    /// A segment of this partition is sealed at this size.
    fn segment_bytes(&self, partition: &Partition) -> u64 {
        partition.config().segment_bytes.unwrap_or(self.shared.config.segment_bytes)
    }

    /// The segment a run goes to: the last one, or a new one where that is full or there is none.
    fn segment_for(&mut self, partition: &Partition, bytes: u64) -> Result<Arc<Segment>> {
        let (last, next, written) = {
            let state = partition.state();
            (state.segments.last().cloned(), first_unwritten(&state), state.written_offset)
        };
        let segment_bytes = self.segment_bytes(partition);
        let storage = &*self.shared.storage;
        match last.as_ref().map(|last| (last, last.check(storage))) {
            // Lost records lie between: within a segment there are no gaps.
            Some((last, Ok(()))) if next != written || last.ended() => last.seal(storage),
            Some((last, Ok(()))) if last.length() == 0 || last.length() + bytes <= segment_bytes => {
                return Ok(Arc::clone(last));
            }
            Some((last, Ok(()))) => last.seal(storage),
            // Lost on the disk: that costs this partition its records, not the others their log.
            Some((last, Err(error))) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(partition = partition.name, error = %error, "segment is damaged");
                let cause = error.message().to_owned();
                partition.add_damage(Damage { from: last.base_offset(), to: Some(written), cause });
            }
            Some((_, Err(error))) => return Err(error),
            None => {}
        }
        storage.create_dir(&partition.folder)?;
        if last.is_none() {
            for folder in partition.folder.ancestors().skip(1).take(3) {
                self.new_folders.insert(folder.to_path_buf());
            }
        }
        self.new_folders.insert(partition.folder.clone());
        let now_ms = self.shared.clock.now().0;
        let segment = Arc::new(Segment::create(storage, &partition.folder, next, 0, now_ms)?);
        partition.state_mut().segments.push(Arc::clone(&segment));
        Ok(segment)
    }
}

fn first_unwritten(state: &super::partition::State) -> i64 {
    let first = state.tail.partition_point(|b| b.header().next_offset() <= state.written_offset);
    state.tail.get(first).map_or(state.written_offset, |b| b.header().base_offset)
}

/// The batches that come next into segments, at most about `limit` bytes, and the offset after them.
fn unwritten_run(partition: &Partition, limit: usize) -> (Vec<Bytes>, usize, i64) {
    let state = partition.state();
    let first = state.tail.partition_point(|b| b.header().next_offset() <= state.written_offset);
    let (mut batches, mut bytes, mut next) = (Vec::new(), 0, state.written_offset);
    for batch in state.tail.range(first..) {
        let continues = batch.header().base_offset == next;
        if !batches.is_empty() && (!continues || bytes + batch.bytes().len() > limit) {
            break;
        }
        bytes += batch.bytes().len();
        next = batch.header().next_offset();
        batches.push(batch.bytes().clone());
    }
    (batches, bytes, next)
}
