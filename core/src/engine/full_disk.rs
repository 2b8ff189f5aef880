//! What the segment writer does when the disk is full: it goes on trying, and the committer refuses records meanwhile.
//!
//! All that was acknowledged is in the commit log, whose files have their full size. So nothing is lost and nothing need
//! stop: the writer tries again every so often, and goes on where it was. Metadata is taken all the while, in the half of
//! the ring and the quarter of the commit log that records leave: topics and records can be deleted, retention gets on. The
//! manifest without them is written over a file that has its blocks already, [`RESERVE`], and then their files go.
//!
//! Only full disks that a write tells of are weathered. After a failed sync nobody knows what the disk holds.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use super::{
    queue::Work,
    shared::{Shared, lock},
    write_behind::SegmentWriter,
};
use crate::{
    Error, Reason, Result,
    storage::{Open, Storage},
};

/// The file of zeros that the next manifest may be written over.
const RESERVE: &str = "reserve";
/// Where the disk is full at an opening, a file of this size does for the first records: a part of the reserve gives way.
pub(super) const LEAST_FILE_BYTES: usize = 16 << 10;
const RESERVE_LEAST_BYTES: usize = 16 << 10;
/// After a full disk the writer rests for so long.
const REST: Duration = Duration::from_millis(500);

/// What a full disk hinders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hindered {
    Segments = 1,
    Manifest = 2,
    CommitLog = 4,
}

impl Shared {
    /// Whether the disk is so full that records are refused: beyond, metadata would find no room either.
    pub(super) fn refuses_records(&self, slot_half_used: bool) -> bool {
        if self.disk_full.load(Ordering::Acquire) == 0 {
            return false;
        }
        let ring = self.unwritten_bytes.load(Ordering::Relaxed);
        ring >= self.config.ring_bytes / 2
            || (slot_half_used && lock(&self.slots).free.is_empty())
            || self.commit_log_used() >= self.config.commit_log_bytes as u64 / 4 * 3
    }

    /// Answers the records that wait with an error. What changes metadata stays in the queue. Calls `ended` with each
    /// transaction that ends by it.
    pub(super) fn refuse_records(&self, mut ended: impl FnMut(u64)) {
        for request in self.queue.take_where(Work::is_record) {
            if let Work::Commit { transaction, .. } = request.work {
                ended(transaction);
            }
            let refused = Error::unavailable("disk full: records are taken again when there is room");
            let _ = request.reply.send(Err(refused.with_reason(Reason::DiskFull)));
        }
    }

    /// Answers all that waits with an error: what is kept for metadata is used up, too.
    pub(super) fn refuse_all(&self) {
        for request in self.queue.take_where(|_| true) {
            let refused = Error::unavailable("disk full: not even a change of metadata has room");
            let _ = request.reply.send(Err(refused.with_reason(Reason::DiskFull)));
        }
    }
}

impl SegmentWriter {
    /// Notes that the disk is full, and takes the fault out of it; other errors pass.
    pub(super) fn weather(&mut self, result: Result<()>) -> Result<()> {
        match self.interrupted(result) {
            Err(error) if error.is_disk_full() => Ok(()),
            other => other,
        }
    }

    /// As [`SegmentWriter::weather`], for who wants to hear of it. The steps of an open checkpoint may be half done.
    pub(super) fn interrupted(&mut self, result: Result<()>) -> Result<()> {
        if result.as_ref().is_err_and(Error::is_disk_full) {
            self.checkpoint = None;
            self.tell_progress();
        }
        result
    }

    /// Whether something is to be tried again.
    pub(super) fn is_hindered(&self) -> bool {
        self.shared.disk_full.load(Ordering::Acquire) & (Hindered::Segments as u32 | Hindered::Manifest as u32) != 0
    }

    /// Tells the others what is hindered, or no longer.
    pub(super) fn note_full(&self, what: Hindered, error: Option<&Error>) {
        let bit = what as u32;
        let before = match error {
            Some(_) => self.shared.disk_full.fetch_or(bit, Ordering::AcqRel),
            None => self.shared.disk_full.fetch_and(!bit, Ordering::AcqRel),
        };
        match error {
            Some(error) if before & bit == 0 => tracing::error!(?what, error = %error, "disk full"),
            None if before == bit => {
                tracing::info!("there is room on the disk again");
                self.shared.made_room();
            }
            _ => {}
        }
    }

    /// Waits a little after a full disk, unless the log closes.
    pub(super) fn rest(&self) {
        if self.is_hindered() {
            let state = lock(&self.shared.writer);
            drop(self.shared.writer_work.wait_timeout_while(state, REST, |state| !state.closing));
        }
    }

    /// Sees to it that there is a file to write the next manifest over. Where there is no room, it is made later.
    pub(super) fn keep_reserve(&mut self) {
        let manifest = RESERVE_LEAST_BYTES.max(self.shared.config.commit_file_bytes / 16).max(2 * self.manifest_bytes);
        let wanted = manifest + LEAST_FILE_BYTES;
        if self.reserve_bytes >= wanted {
            return;
        }
        let now = self.shared.clock.monotonic();
        if self.reserve_denied.is_some_and(|denied| now.saturating_sub(denied) < REST) {
            return;
        }
        let (storage, path) = (&*self.shared.storage, self.shared.data_dir.join(RESERVE));
        match make_reserve(storage, &path, wanted) {
            Ok(bytes) => (self.reserve_bytes, self.reserve_denied) = (bytes, (bytes < wanted).then_some(now)),
            Err(error) => {
                tracing::debug!(error = %error, "no room for the reserve");
                let _ = storage.remove(&path);
                (self.reserve_bytes, self.reserve_denied) = (0, Some(now));
            }
        }
    }

    /// Writes a file over the reserve, which gives it its blocks and its place in the folder.
    pub(super) fn write_over_reserve(&mut self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        if content.len() > self.reserve_bytes {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let (storage, reserve) = (&*self.shared.storage, self.shared.data_dir.join(RESERVE));
        self.reserve_bytes = 0;
        let file = storage.open(&reserve, Open::Existing)?;
        file.write_at(content, 0)?;
        file.set_len(content.len() as u64)?;
        file.sync()?;
        storage.rename(&reserve, path)?;
        storage.sync_dir(&self.shared.data_dir)
    }
}

/// Makes the file, or makes it larger. Where there is no room for that, what is there stays; returns its length.
fn make_reserve(storage: &dyn Storage, path: &Path, wanted: usize) -> std::io::Result<usize> {
    let file = storage.open(path, Open::Existing).or_else(|_| storage.open(path, Open::Fresh))?;
    let length = file.len()?;
    if length >= wanted as u64 {
        return Ok(wanted);
    }
    let zeros = vec![0; wanted - length as usize];
    if let Err(error) = file.write_at(&zeros, length).and_then(|()| file.sync()) {
        file.set_len(length)?;
        return if length == 0 { Err(error) } else { Ok(length as usize) };
    }
    Ok(wanted)
}

/// Cuts the reserve so that there is room for a file of `bytes`; what is left still does for a manifest.
pub(super) fn give_of_reserve(storage: &dyn Storage, data_dir: &Path, bytes: usize) -> std::io::Result<()> {
    let file = storage.open(&data_dir.join(RESERVE), Open::Existing)?;
    file.set_len(file.len()?.saturating_sub(bytes as u64))
}
