//! Checkpoints: segments are made durable, a manifest names what they hold, and the commit log before it is free again.
//!
//! A checkpoint begins when half of the commit log's budget is used, and is taken in small steps as the rest fills: each
//! writes one partition, or syncs one. All at once, it would hold up the segment writer until the ring is full, and nobody
//! could append. Appends that are faster than the steps are slowed down by `Shared::allowed_lsn`, so that they do not
//! meet the end of the commit log.
//!
//! Segments grow between their step and the manifest. So the manifest lists what was synced, never what was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use super::{
    full_disk::Hindered,
    manifest::{self, Manifest},
    shared::{Doomed, lock, unwritten_of},
    superblock::Superblock,
    write_behind::SegmentWriter,
};
use crate::{Error, Result, topic::PartitionId};

/// What a sync counts beside the bytes written: one to four milliseconds, in which about as much could be written.
const SYNC_COST: u64 = 512 << 10;

/// With less room than this, a checkpoint is not spread out.
const LEAST_ROOM: u64 = 16 << 10;

/// Segments that are ended at housekeeping's wish before the segment writer looks at what else there is.
const ROLLS_AT_ONCE: usize = 16;

enum Step {
    Write(PartitionId),
    Sync(PartitionId),
    /// One of the folders with new names, which the segment writer lists.
    Folder,
    End,
}

/// The error of a sync: whatever it was, nobody knows what the disk holds, and nothing is tried again.
fn unknown(error: Error) -> Error {
    Error::new(error.kind(), error.to_string())
}

/// A checkpoint on its way.
pub(super) struct Checkpoint {
    /// Everything below is in segments once all is done.
    lsn: u64,
    /// Everything below was durable when it began.
    durable_lsn: u64,
    /// Bytes by which the commit log may grow meanwhile.
    room: u64,
    /// Partitions not yet written, with their bytes.
    to_write: BTreeMap<PartitionId, u64>,
    /// Partitions written, and not yet synced.
    to_sync: BTreeSet<PartitionId>,
    /// Folders not yet synced.
    folders: u64,
    /// Sum of what all of them cost, and of what is paid.
    total: u64,
    done: u64,
    ending: bool,
}

impl Checkpoint {
    fn new(lsn: u64, durable_lsn: u64, room: u64, to_write: BTreeMap<PartitionId, u64>, folders: u64) -> Self {
        let segments: u64 = to_write.values().map(|bytes| bytes + SYNC_COST).sum();
        let total = segments + folders * SYNC_COST;
        Self { lsn, durable_lsn, room, to_write, to_sync: BTreeSet::new(), folders, total, done: 0, ending: false }
    }

    /// Counts bytes written of a partition, by whatever occasion.
    pub(super) fn credit(&mut self, id: PartitionId, bytes: u64) {
        if let Some(left) = self.to_write.get_mut(&id) {
            let paid = bytes.min(*left);
            *left -= paid;
            self.done += paid;
        }
    }

    /// First all are written, then all are synced: the system writes the ones while we fill the others, and the file
    /// system's own journal makes the blocks of many files durable with one commit.
    fn next(&mut self) -> Step {
        if let Some((id, left)) = self.to_write.pop_first() {
            self.done += left;
            self.to_sync.insert(id);
            return Step::Write(id);
        }
        if let Some(id) = self.to_sync.pop_first() {
            self.done += SYNC_COST;
            return Step::Sync(id);
        }
        if self.folders == 0 {
            self.ending = true;
            return Step::End;
        }
        self.folders -= 1;
        self.done += SYNC_COST;
        Step::Folder
    }

    /// Whether it lags behind a commit log that ends at `end_lsn`: it is done when two thirds of its room are used.
    fn lags(&self, end_lsn: u64) -> bool {
        let grown = u128::from(end_lsn.saturating_sub(self.durable_lsn));
        let spread = u128::from(self.room / 3 * 2);
        grown >= spread
            || u128::from(self.done) * spread < u128::from(self.total) * grown
            // Where there is nothing to pay, the one step that is left; a roll's note may lie between.
            || end_lsn + 512 >= self.allowed_lsn()
    }

    /// How far the commit log may grow now. Beyond what [`Checkpoint::lags`] wants: who is held up here has left work.
    fn allowed_lsn(&self) -> u64 {
        if self.room == 0 {
            // The files that are left are the bound.
            return u64::MAX;
        }
        if self.ending {
            return self.durable_lsn + self.room;
        }
        // A part of the room is kept for the last step, whose syncs are the longest.
        let (ahead, kept) = (self.room / 4, self.room / 12);
        let share = u128::from(self.room - ahead - kept) * u128::from(self.done) / u128::from(self.total.max(1));
        self.durable_lsn + ahead + share as u64
    }
}

impl SegmentWriter {
    /// Takes an open checkpoint as far as it should be, or begins one that is due.
    pub(super) fn keep_pace(&mut self) -> Result<()> {
        self.prepare_slot()?;
        if self.checkpoint.is_none() && self.checkpoint_due() {
            self.begin_checkpoint();
        }
        while let Some(open) = &self.checkpoint {
            if !open.lags(self.shared.published().lsn) && !self.out_of_files() {
                break;
            }
            self.prepare_slot()?;
            self.checkpoint_step()?;
        }
        Ok(())
    }

    /// Whether the commit log has filled so far that a checkpoint is due.
    fn checkpoint_due(&self) -> bool {
        self.shared.commit_log_used() > self.shared.config.commit_log_bytes as u64 / 2 || self.out_of_files()
    }

    fn out_of_files(&self) -> bool {
        lock(&self.shared.slots).free.is_empty() && !self.may_add_slot()
    }

    /// Notes where the log ends, and which partitions have something that is not durable in segments.
    fn begin_checkpoint(&mut self) {
        let published = *self.shared.published();
        let lsn = published.oldest_staged_lsn.map_or(published.lsn, |staged| staged.min(published.lsn));
        let before = self.superblock.current().checkpoint_lsn;
        if lsn <= before {
            return;
        }
        let mut ids: Vec<_> = lock(&self.shared.writer).dirty.iter().copied().collect();
        ids.extend(self.unsynced.keys());
        let cost = |id: PartitionId| {
            let unwritten = self.shared.partition(id).map_or(0, |partition| unwritten_of(&partition.state()));
            (id, unwritten as u64)
        };
        let to_write = ids.into_iter().map(cost).collect();
        // The file that is written and the one that the checkpoint lies in are not free before it ends.
        let config = &self.shared.config;
        let limit = before + (config.commit_log_bytes - 2 * config.commit_file_bytes) as u64;
        let room = Some(limit.saturating_sub(published.lsn)).filter(|room| *room >= LEAST_ROOM);
        let checkpoint =
            Checkpoint::new(lsn, published.lsn, room.unwrap_or(0), to_write, self.new_folders.len() as u64);
        self.shared.allowed_lsn.store(checkpoint.allowed_lsn(), Ordering::Release);
        self.checkpoint = Some(checkpoint);
    }

    /// Writes or syncs one partition of the open checkpoint, or ends it after the last. Begins one where none is open.
    pub(super) fn checkpoint_step(&mut self) -> Result<()> {
        let Some(open) = &mut self.checkpoint else {
            self.begin_checkpoint();
            return Ok(());
        };
        let step = open.next();
        // Before the step: who is held up goes on meanwhile.
        self.tell_progress();
        match step {
            Step::Write(id) => {
                if let Ok(partition) = self.shared.partition(id) {
                    self.write_partition(&partition, true)?;
                }
            }
            Step::Sync(id) => self.sync_partition(id)?,
            Step::Folder => self.sync_folder().map(drop)?,
            Step::End => {
                self.end_checkpoint()?;
                self.checkpoint = None;
            }
        }
        self.tell_progress();
        Ok(())
    }

    /// Lets the committer go on as far as the checkpoint has got.
    pub(super) fn tell_progress(&self) {
        let allowed_lsn = self.checkpoint.as_ref().map_or(u64::MAX, Checkpoint::allowed_lsn);
        self.shared.allowed_lsn.store(allowed_lsn, Ordering::Release);
        self.shared.evict();
        self.shared.made_room();
    }

    /// Makes everything visible so far durable in segments, so that replay may begin after it.
    pub(super) fn checkpoint(&mut self) -> Result<()> {
        self.shared.check_alive()?;
        // What an open one has synced stays so; the new one has the rest to do.
        self.checkpoint = None;
        self.begin_checkpoint();
        while self.checkpoint.is_some() {
            self.checkpoint_step()?;
        }
        if !lock(&self.shared.doomed).is_empty() {
            self.shared.want_checkpoint();
        }
        self.serve_requests()?;
        self.tell_progress();
        Ok(())
    }

    /// Syncs the segments of a partition that were written since they were last synced.
    fn sync_partition(&mut self, id: PartitionId) -> Result<()> {
        let Some((partition, segments)) = self.unsynced.remove(&id) else { return Ok(()) };
        let (written, deleted) = {
            let state = partition.state();
            (state.written_offset, state.deleted)
        };
        if deleted {
            return Ok(());
        }
        for segment in segments {
            let synced = segment.sync(&*self.shared.storage);
            synced.map_err(|e| unknown(e).context(format!("sync {}", partition.name)))?;
        }
        partition.state_mut().synced_offset = written;
        Ok(())
    }

    /// Makes the names in one folder durable, if there is one with new names.
    fn sync_folder(&mut self) -> Result<bool> {
        let Some(folder) = self.new_folders.pop_first() else { return Ok(false) };
        match self.shared.storage.sync_dir(&folder) {
            // A folder may be gone with its topic.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(unknown(error.into()).context(format!("sync folder {}", folder.display())))
            }
            _ => Ok(true),
        }
    }

    /// Names, manifest, superblock, in this order: each is durable before the next tells of it.
    fn end_checkpoint(&mut self) -> Result<()> {
        let Some(&Checkpoint { lsn, durable_lsn, .. }) = self.checkpoint.as_ref() else { return Ok(()) };
        self.write_manifest(lsn, durable_lsn)
    }

    fn write_manifest(&mut self, lsn: u64, durable_lsn: u64) -> Result<()> {
        while self.sync_folder()? {}
        let old = self.superblock.current();
        let number = old.manifest + 1;
        lock(&self.shared.writer).checkpoint_wanted = false;
        // What is named from now on may still be listed by this manifest.
        let doomed = std::mem::take(&mut *lock(&self.shared.doomed));
        let content = Manifest::of(&self.shared).encode()?;
        self.manifest_bytes = content.len();
        if let Err(error) = self.place_manifest(&manifest::path(&self.shared.data_dir, number), &content, &doomed) {
            if error.is_disk_full() {
                self.note_full(Hindered::Manifest, Some(&error));
            }
            lock(&self.shared.writer).checkpoint_wanted |= !doomed.is_empty();
            self.shared.doom(doomed);
            return Err(error.context("write the manifest"));
        }
        self.note_full(Hindered::Manifest, None);
        // Twice: what the other copy needs is about to go, and either copy alone must do.
        for _ in 0..2 {
            let current = self.superblock.current();
            let next = Superblock { checkpoint_lsn: lsn, durable_lsn, manifest: number, ..current };
            self.superblock.write(next).map_err(unknown)?;
        }
        self.shared.checkpoint_lsn.store(lsn, Ordering::Release);
        lock(&self.shared.slots).release(lsn);
        self.remove_leftovers(old.manifest, doomed);
        Ok(())
    }

    /// Writes the manifest; over the reserve where the disk is full and it frees something.
    fn place_manifest(&mut self, path: &Path, content: &[u8], doomed: &[Doomed]) -> Result<()> {
        let storage = Arc::clone(&self.shared.storage);
        let Err(error) = storage.write_atomically(path, content).map_err(Error::from) else { return Ok(()) };
        let _ = storage.remove(&path.with_extension("tmp"));
        if !error.is_disk_full() || doomed.is_empty() {
            return Err(error);
        }
        tracing::warn!("the manifest takes the reserve: the disk is full");
        Ok(self.write_over_reserve(path, content)?)
    }

    /// What an earlier checkpoint needed and this one does not. Failing to remove it harms nothing.
    fn remove_leftovers(&self, old_manifest: u64, doomed: Vec<Doomed>) {
        if old_manifest > 0 {
            let _ = self.shared.storage.remove(&manifest::path(&self.shared.data_dir, old_manifest));
        }
        if !doomed.is_empty() {
            lock(&self.shared.removable).extend(doomed);
            self.shared.bell.ring();
        }
    }

    /// Does what housekeeping asked for: ends segments, writes a manifest without what files wait for.
    pub(super) fn serve_requests(&mut self) -> Result<()> {
        let rolls = {
            let mut writer = lock(&self.shared.writer);
            let mut rolls = std::mem::take(&mut writer.rolls);
            if let Some(next) = rolls.iter().nth(ROLLS_AT_ONCE).copied() {
                writer.rolls = rolls.split_off(&next);
            }
            rolls
        };
        for id in &rolls {
            if let Ok(partition) = self.shared.partition(*id) {
                self.roll(&partition)?;
            }
        }
        if !rolls.is_empty() {
            self.shared.bell.ring();
        }
        if lock(&self.shared.writer).checkpoint_wanted {
            // No record need be synced for it: replay goes on to begin where it does.
            let lsn = self.superblock.current().checkpoint_lsn;
            let durable_lsn = self.shared.published().lsn;
            self.write_manifest(lsn, durable_lsn)?;
        }
        Ok(())
    }

    /// Records the end of the log after a clean stop.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.checkpoint()?;
        // The housekeeper has ended.
        for leftover in std::mem::take(&mut *lock(&self.shared.removable)) {
            let _ = leftover.remove(&*self.shared.storage);
        }
        let lsn = self.shared.published().lsn;
        let current = self.superblock.current();
        if current.durable_lsn < lsn {
            self.superblock.write(Superblock { durable_lsn: lsn, ..current })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(room: u64, sizes: &[u64], folders: u64) -> Checkpoint {
        let to_write = sizes.iter().enumerate().map(|(i, size)| (PartitionId(i as u32), *size)).collect();
        Checkpoint::new(1000, 5000, room, to_write, folders)
    }

    /// Whoever is held up finds a checkpoint that has work to do: otherwise both would wait for ever.
    #[test]
    fn who_is_held_up_has_left_work() {
        for room in [0, LEAST_ROOM, 100_000, 96 << 20] {
            for sizes in [&[][..], &[0], &[10 << 20], &[0, 5 << 20, 100, 100, 30 << 20]] {
                let mut open = checkpoint(room, sizes, if sizes.is_empty() { 0 } else { 3 });
                loop {
                    let held_up = open.allowed_lsn();
                    // A roll's note may lie between what is visible and what is written.
                    assert!(open.lags(held_up.saturating_sub(512)), "room {room}, {sizes:?}, {} done", open.done);
                    open.credit(PartitionId(1), 1 << 20);
                    if matches!(open.next(), Step::End) {
                        break;
                    }
                    assert!(open.allowed_lsn() >= held_up, "what was allowed stays so");
                }
                assert_eq!(open.done, open.total, "all is paid at the end, room {room}, {sizes:?}");
            }
        }
    }

    #[test]
    fn it_is_spread_over_two_thirds_of_its_room() {
        let mut open = checkpoint(90 << 20, &[1 << 20; 40], 0);
        assert!(!open.lags(5000), "nothing came, nothing is due");
        let mut steps = 0;
        for grown in (0..=60u64).map(|n| n << 20) {
            while open.lags(5000 + grown) && !matches!(open.next(), Step::End) {
                steps += 1;
                assert!(steps <= 80);
            }
            if grown == 30 << 20 {
                assert!((45..=55).contains(&(open.done * 100 / open.total)), "{} of {}", open.done, open.total);
            }
            if steps == 80 {
                break;
            }
        }
        assert_eq!(steps, 80);
    }
}
