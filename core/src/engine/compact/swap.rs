//! A new segment, and how it takes the place of old ones.
//!
//! 1. It is written beside them under its generation's name, synced, its index written, its folder synced.
//! 2. The partition's list names it instead of them. Readers that hold an old one go on reading that.
//! 3. The next manifest lists it. Only then, with both copies of the superblock, are the old files removed (`Shared::doom`).
//!
//! A crash before 3 finds the old manifest and the old files; the new file is a leaving. A crash after it finds the new
//! manifest and the new file; old files are leavings.

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use super::super::{
    partition::Partition,
    segment::Segment,
    shared::{Doomed, Shared},
};
use crate::{Error, Result, storage::Storage};

/// A segment that nobody reads yet.
pub(super) struct Output {
    segment: Segment,
}

impl Output {
    pub(super) fn create(shared: &Shared, folder: &Path, base_offset: i64, generation: u32) -> Result<Self> {
        let now_ms = shared.clock.now().0;
        Ok(Self { segment: Segment::create(&*shared.storage, folder, base_offset, generation, now_ms)? })
    }

    pub(super) fn append(&self, shared: &Shared, batches: &[Bytes], buffer: &mut Vec<u8>) -> Result<()> {
        self.segment.append(&*shared.storage, batches, shared.clock.now().0, buffer)
    }

    pub(super) fn length(&self) -> u64 {
        self.segment.length()
    }

    /// Removes its file.
    pub(super) fn remove(self, storage: &dyn Storage) {
        remove(storage, &self.segment);
    }

    /// Makes it durable and puts it in the place of `sources`.
    ///
    /// # Errors
    /// `Conflict` where the partition's segments changed, `NotFound` where it was deleted, `Corrupt` where it is damaged;
    /// others of the disk. The sources stay, and the file is removed.
    pub(super) fn replace(self, shared: &Shared, partition: &Partition, sources: Vec<Arc<Segment>>) -> Result<()> {
        let storage = &*shared.storage;
        self.segment.take_age_of(&sources);
        let durable = self.make_durable(storage, &partition.folder);
        let segment = Arc::new(self.segment);
        let replaced = durable.and_then(|()| swap(partition, &segment, &sources));
        match replaced {
            Ok(()) => shared.doom(sources.iter().flat_map(|source| source.paths()).map(Doomed::File)),
            Err(_) => remove(storage, &segment),
        }
        replaced
    }

    fn make_durable(&self, storage: &dyn Storage, folder: &Path) -> Result<()> {
        self.segment.sync(storage)?;
        self.segment.seal(storage);
        self.segment.forget_index();
        Ok(storage.sync_dir(folder)?)
    }
}

/// Failing to remove it harms nothing: the next opening knows it as a leaving.
fn remove(storage: &dyn Storage, segment: &Segment) {
    let temporary = segment.path().with_extension("tmp");
    for path in segment.paths().iter().chain([&temporary]) {
        let _ = storage.remove(path);
    }
}

fn swap(partition: &Partition, segment: &Arc<Segment>, sources: &[Arc<Segment>]) -> Result<()> {
    let mut state = partition.state_mut();
    if state.deleted {
        return Err(Error::not_found(format!("{} was deleted", partition.name)));
    }
    if !state.damage.is_empty() {
        return Err(Error::corrupt(format!("{} is damaged", partition.name)));
    }
    let first = sources.first().and_then(|first| state.segments.iter().position(|s| Arc::ptr_eq(s, first)));
    let range = first.map(|first| first..first + sources.len());
    let same = |there: &[Arc<Segment>]| there.iter().zip(sources).all(|(a, b)| Arc::ptr_eq(a, b));
    match range.filter(|range| state.segments.get(range.clone()).is_some_and(same)) {
        Some(range) => {
            state.segments.splice(range, [Arc::clone(segment)]);
            Ok(())
        }
        None => Err(Error::conflict(format!("segments of {} changed meanwhile", partition.name))),
    }
}
