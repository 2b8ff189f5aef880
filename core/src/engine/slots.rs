//! The files of the commit log: zero-filled when made, used in turn, recycled once a checkpoint has passed them.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::frame::GROUP_ALIGN;
use crate::{
    Result,
    storage::{Open, Storage, StorageFile},
};

const ZERO_CHUNK: usize = 1 << 20;

/// One file of the commit log.
pub(super) struct Slot {
    pub(super) file: Arc<dyn StorageFile>,
    pub(super) path: PathBuf,
    pub(super) capacity: u64,
    /// LSN of the file's first byte.
    pub(super) base_lsn: u64,
    /// LSN after its last frame, once it is full.
    pub(super) end_lsn: u64,
}

impl Slot {
    /// Makes a file, writes zeros over all of it and makes it durable, name included: later syncs then write data
    /// alone, never block maps or sizes.
    pub(super) fn create(storage: &dyn Storage, folder: &Path, number: u32, capacity: usize) -> Result<Self> {
        let path = folder.join(format!("{number:04}.log"));
        let made = Self::write_zeros(storage, folder, &path, capacity);
        // A part of a file is none: it would only keep others from their room.
        let file = made.inspect_err(|_| drop(storage.remove(&path)))?;
        Ok(Self { file, path, capacity: capacity as u64, base_lsn: 0, end_lsn: 0 })
    }

    fn write_zeros(
        storage: &dyn Storage,
        folder: &Path,
        path: &Path,
        capacity: usize,
    ) -> std::io::Result<Arc<dyn StorageFile>> {
        let file = storage.open(path, Open::Fresh)?;
        let zeros = vec![0; ZERO_CHUNK.min(capacity)];
        let mut at = 0;
        while at < capacity {
            let n = zeros.len().min(capacity - at);
            file.write_at(&zeros[..n], at as u64)?;
            at += n;
        }
        file.sync()?;
        storage.sync_dir(folder)?;
        Ok(file)
    }
}

impl Slot {
    /// Clears the sector after the last group, where there is one: what stands there at recovery was begun by a group that
    /// did not come to its end, and is no leaving of the file's earlier use.
    pub(super) fn end_with_zeros(&self, position: u64) -> std::io::Result<()> {
        if position + GROUP_ALIGN as u64 > self.capacity {
            return Ok(());
        }
        self.file.write_at(&[0; GROUP_ALIGN], position)
    }
}

/// All files but the one being written.
pub(super) struct SlotPool {
    /// Full files a checkpoint has not passed, oldest first.
    pub(super) used: VecDeque<Slot>,
    pub(super) free: Vec<Slot>,
    /// Files that exist, the current one included.
    pub(super) count: usize,
    pub(super) next_number: u32,
}

impl SlotPool {
    /// Moves files that end at or before `checkpoint_lsn` to the free ones.
    pub(super) fn release(&mut self, checkpoint_lsn: u64) {
        while self.used.front().is_some_and(|slot| slot.end_lsn <= checkpoint_lsn) {
            self.free.extend(self.used.pop_front());
        }
    }
}
