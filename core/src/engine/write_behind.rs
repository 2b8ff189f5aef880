//! The segment writer: moves batches from memory into segments in large runs, and makes checkpoints.
//!
//! Nothing waits for it but room: an append is durable in the commit log long before. A checkpoint makes the segments
//! durable, writes the manifest, moves the superblock, and so frees the files of the commit log before it.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{
    manifest::{self, Manifest, PartitionEntry},
    partition::{Damage, Partition},
    segment::Segment,
    shared::{Shared, lock},
    slots::Slot,
    superblock::{Superblock, SuperblockFile},
};
use crate::{Error, ErrorKind, Result, topic::PartitionId};

/// A partition with fewer unwritten bytes waits for more, or for its second to be over.
const RUN_BYTES: usize = 256 << 10;
/// No run is copied together that is larger, whatever a segment may hold.
const MAX_RUN_BYTES: usize = 8 << 20;

pub(super) struct SegmentWriter {
    pub(super) shared: Arc<Shared>,
    superblock: SuperblockFile,
    /// Segments written since the last checkpoint.
    unsynced: Vec<Arc<Segment>>,
    /// Folders with names that are not durable yet.
    new_folders: HashSet<std::path::PathBuf>,
}

impl SegmentWriter {
    pub(super) fn new(shared: Arc<Shared>, superblock: SuperblockFile) -> Self {
        Self { shared, superblock, unsynced: Vec::new(), new_folders: HashSet::new() }
    }

    /// Whether the commit log or the ring has filled so far that a checkpoint is due.
    pub(super) fn checkpoint_due(&self) -> bool {
        let used = self.shared.commit_log_used();
        let no_free = lock(&self.shared.slots).free.is_empty();
        used > self.shared.config.commit_log_bytes as u64 / 2 || (no_free && !self.may_add_slot())
    }

    fn may_add_slot(&self) -> bool {
        let config = &self.shared.config;
        lock(&self.shared.slots).count < config.commit_log_bytes / config.commit_file_bytes
    }

    /// Sees to it that the committer finds a free file when the present one is full.
    pub(super) fn prepare_slot(&mut self) -> Result<()> {
        if !lock(&self.shared.slots).free.is_empty() || !self.may_add_slot() {
            return Ok(());
        }
        let number = {
            let mut pool = lock(&self.shared.slots);
            pool.next_number += 1;
            pool.next_number
        };
        let folder = self.shared.data_dir.join("commitlog");
        let slot = Slot::create(&*self.shared.storage, &folder, number, self.shared.config.commit_file_bytes)?;
        let mut pool = lock(&self.shared.slots);
        pool.free.push(slot);
        pool.count += 1;
        drop(pool);
        self.shared.room.notify_all();
        Ok(())
    }

    /// Writes what is in memory only into segments; small amounts only if `all`.
    pub(super) fn write_behind(&mut self, all: bool) -> Result<()> {
        let dirty: Vec<PartitionId> = lock(&self.shared.writer).dirty.iter().copied().collect();
        for id in dirty {
            if let Ok(partition) = self.shared.partition(id) {
                self.write_partition(&partition, all)?;
            } else {
                lock(&self.shared.writer).dirty.remove(&id);
            }
        }
        self.shared.evict();
        self.shared.room.notify_all();
        Ok(())
    }

    fn write_partition(&mut self, partition: &Partition, all: bool) -> Result<()> {
        loop {
            let (batches, bytes, next) =
                unwritten_run(partition, MAX_RUN_BYTES.min(self.shared.config.segment_bytes as usize));
            if batches.is_empty() {
                self.mark_clean(partition);
                return Ok(());
            }
            if !all && bytes < RUN_BYTES {
                return Ok(());
            }
            let segment = self.segment_for(partition, bytes as u64)?;
            segment
                .append(&*self.shared.storage, &batches)
                .map_err(|e| e.context(format!("write {}", partition.name)))?;
            if !self.unsynced.iter().any(|other| Arc::ptr_eq(other, &segment)) {
                self.unsynced.push(segment);
            }
            let mut state = partition.state_mut();
            if !state.deleted {
                state.written_offset = next;
                self.shared.unwritten_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
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

    /// The segment a run goes to: the last one, or a new one where that is full or there is none.
    fn segment_for(&mut self, partition: &Partition, bytes: u64) -> Result<Arc<Segment>> {
        let (last, next, written) = {
            let state = partition.state();
            (state.segments.last().cloned(), first_unwritten(&state), state.written_offset)
        };
        let storage = &*self.shared.storage;
        match last.as_ref().map(|last| (last, last.check(storage))) {
            // Lost records lie between: within a segment there are no gaps.
            Some((last, Ok(()))) if next != written => last.seal(storage)?,
            Some((last, Ok(()))) if last.length() == 0 || last.length() + bytes <= self.shared.config.segment_bytes => {
                return Ok(Arc::clone(last));
            }
            Some((last, Ok(()))) => last.seal(storage)?,
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
        let segment = Arc::new(Segment::create(storage, &partition.folder, next)?);
        partition.state_mut().segments.push(Arc::clone(&segment));
        Ok(segment)
    }

    /// Makes everything visible so far durable in segments, so that replay may begin after it.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        self.shared.check_alive()?;
        let published = *self.shared.published();
        let checkpoint_lsn = published.oldest_staged_lsn.map_or(published.lsn, |staged| staged.min(published.lsn));
        if checkpoint_lsn <= self.superblock.current().checkpoint_lsn {
            return Ok(());
        }
        self.write_behind(true)?;
        let storage = Arc::clone(&self.shared.storage);
        for segment in std::mem::take(&mut self.unsynced) {
            segment.sync(&*storage).map_err(|e| e.context("sync a segment"))?;
        }
        for folder in std::mem::take(&mut self.new_folders) {
            // A folder may be gone with its topic.
            if let Err(error) = storage.sync_dir(&folder)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                return Err(Error::from(error).context(format!("sync folder {}", folder.display())));
            }
        }
        let old = self.superblock.current();
        let number = old.manifest + 1;
        self.manifest().write(&*storage, &manifest::path(&self.shared.data_dir, number))?;
        // Twice: what the other copy needs is about to go, and either copy alone must do.
        for _ in 0..2 {
            let current = self.superblock.current();
            self.superblock.write(Superblock {
                checkpoint_lsn,
                durable_lsn: published.lsn,
                manifest: number,
                ..current
            })?;
        }
        self.shared.checkpoint_lsn.store(checkpoint_lsn, Ordering::Release);
        lock(&self.shared.slots).release(checkpoint_lsn);
        self.remove_leftovers(old.manifest);
        self.shared.room.notify_all();
        Ok(())
    }

    /// What an earlier checkpoint needed and this one does not. Failing to remove it harms nothing.
    fn remove_leftovers(&self, old_manifest: u64) {
        let storage = &*self.shared.storage;
        if old_manifest > 0 {
            let _ = storage.remove(&manifest::path(&self.shared.data_dir, old_manifest));
        }
        for folder in std::mem::take(&mut *lock(&self.shared.doomed)) {
            let _ = storage.remove_dir(&folder);
        }
    }

    fn manifest(&self) -> Manifest {
        let _cut = self.shared.published();
        let partitions = self.shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut partitions: Vec<_> = partitions.values().map(|partition| entry_of(partition)).collect();
        partitions.sort_unstable_by_key(|entry| entry.id);
        Manifest { catalog: self.shared.catalog().clone(), partitions }
    }

    /// Records the end of the log after a clean stop.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.checkpoint()?;
        let lsn = self.shared.published().lsn;
        let current = self.superblock.current();
        if current.durable_lsn < lsn {
            self.superblock.write(Superblock { durable_lsn: lsn, ..current })?;
        }
        Ok(())
    }
}

fn entry_of(partition: &Partition) -> PartitionEntry {
    let state = partition.state();
    PartitionEntry {
        id: partition.id,
        log_start_offset: state.log_start_offset,
        written_offset: state.written_offset,
        segments: state.segments.iter().map(|s| s.entry()).collect(),
        damage: state.damage.clone(),
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
