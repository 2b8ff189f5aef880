//! A segment: a run of one partition's batches in Kafka's own file layout, written behind the commit log.
//!
//! The log trusts a segment only up to the length its manifest (or this process) says; bytes beyond are leftovers of a
//! crash. Within a segment each batch continues the one before it: a batch's offset lies outside its CRC, and this is
//! what guards it. The sparse offset index is derived from the batches, rebuilt wherever it is missing, and never
//! evidence.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{index::SparseIndex, shared::lock};
use crate::{
    Error, Result,
    batch::{Batch, BatchHeader, HEADER_LEN},
    storage::{Open, Storage, StorageFile},
};

/// Bytes read at a time when an index is rebuilt.
const SCAN_BYTES: usize = 1 << 20;
/// A run is copied together and written in pieces of this size.
const WRITE_BYTES: usize = 1 << 20;
/// Least bytes read at a time when records are fetched.
const READ_BYTES: usize = 64 << 10;

/// A segment as the manifest lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentEntry {
    pub(super) base_offset: i64,
    pub(super) length: u64,
}

pub(super) struct Segment {
    path: PathBuf,
    base_offset: i64,
    length: AtomicU64,
    /// Bytes of it that are durable; the manifest lists no more.
    synced: AtomicU64,
    /// Open from its first append to the checkpoint that syncs it: readers open it for themselves, so that no more
    /// files are open than are written.
    file: Mutex<Option<Arc<dyn StorageFile>>>,
    index: Mutex<Option<SparseIndex>>,
}

impl Segment {
    /// Makes an empty segment's file.
    pub(super) fn create(storage: &dyn Storage, folder: &Path, base_offset: i64) -> Result<Self> {
        let segment = Self::listed(folder, SegmentEntry { base_offset, length: 0 });
        let file = storage.open(&segment.path, Open::Fresh)?;
        *lock(&segment.file) = Some(file);
        *segment.index() = Some(SparseIndex::default());
        Ok(segment)
    }

    /// A segment that a manifest lists; its file is opened when it is first used.
    pub(super) fn listed(folder: &Path, entry: SegmentEntry) -> Self {
        Self {
            path: folder.join(format!("{:020}.log", entry.base_offset)),
            base_offset: entry.base_offset,
            length: AtomicU64::new(entry.length),
            synced: AtomicU64::new(entry.length),
            file: Mutex::new(None),
            index: Mutex::new(None),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn base_offset(&self) -> i64 {
        self.base_offset
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// What of it is durable; none where nothing is.
    pub(super) fn durable_entry(&self) -> Option<SegmentEntry> {
        let length = self.synced.load(Ordering::Acquire);
        (length > 0).then_some(SegmentEntry { base_offset: self.base_offset, length })
    }

    fn index(&self) -> MutexGuard<'_, Option<SparseIndex>> {
        lock(&self.index)
    }

    pub(super) fn file(&self, storage: &dyn Storage) -> Result<Arc<dyn StorageFile>> {
        if let Some(file) = &*lock(&self.file) {
            return Ok(Arc::clone(file));
        }
        let named = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(format!("segment {} is missing", self.path.display())),
            _ => Error::from(e).context(format!("segment {}", self.path.display())),
        };
        let file = storage.open(&self.path, Open::Existing).map_err(named)?;
        let (found, listed) = (file.len().map_err(named)?, self.length());
        if found < listed {
            return Err(Error::corrupt(format!(
                "segment {} has {found} bytes, the manifest says {listed}",
                self.path.display()
            )));
        }
        Ok(file)
    }

    /// Whether the file is there, as long as it should be.
    ///
    /// # Errors
    /// `Corrupt` where it is not.
    pub(super) fn check(&self, storage: &dyn Storage) -> Result<()> {
        self.file(storage).map(drop)
    }

    /// Appends whole batches. They become readable here with the return of this call, durable with [`Segment::sync`].
    pub(super) fn append(&self, storage: &dyn Storage, batches: &[Bytes], buffer: &mut Vec<u8>) -> Result<()> {
        let file = self.file(storage)?;
        *lock(&self.file) = Some(Arc::clone(&file));
        let start = self.length();
        let end = write_run(&*file, start, batches, buffer)?;
        if let Some(index) = self.index().as_mut() {
            let mut position = start;
            for batch in batches {
                index.add(BatchHeader::decode(batch)?.base_offset, position, batch.len());
                position += batch.len() as u64;
            }
        }
        file.start_writeback(start, end - start);
        self.length.store(end, Ordering::Release);
        Ok(())
    }

    /// Makes what was appended durable, and closes the file. Only the segment writer calls this, which also appends.
    pub(super) fn sync(&self, storage: &dyn Storage) -> Result<()> {
        let length = self.length();
        self.file(storage)?.sync()?;
        self.synced.store(length, Ordering::Release);
        *lock(&self.file) = None;
        Ok(())
    }

    /// Writes the index beside the sealed segment, so that a later open need not scan for it.
    pub(super) fn seal(&self, storage: &dyn Storage) -> Result<()> {
        match self.index().as_ref() {
            Some(index) => index.write(storage, &self.path.with_extension("index"), self.length()),
            None => Ok(()),
        }
    }

    /// Whole batches from the one that holds `offset` on, up to about `max_bytes` but at least one; none at the end.
    pub(super) fn read(&self, storage: &dyn Storage, offset: i64, max_bytes: usize) -> Result<Vec<Batch>> {
        let length = self.length();
        let beginning = (self.base_offset, 0);
        let start = self.start_before(storage, offset, length)?.unwrap_or(beginning);
        let found = self.read_from(storage, start, length, offset, max_bytes);
        if found.is_err() && start != beginning {
            // Where the index leads astray, the batches themselves still tell.
            return self.read_from(storage, beginning, length, offset, max_bytes);
        }
        found
    }

    /// As [`Segment::read`], from a position where the batch of offset `expected` begins.
    fn read_from(
        &self,
        storage: &dyn Storage,
        (mut expected, mut position): (i64, u64),
        length: u64,
        offset: i64,
        max_bytes: usize,
    ) -> Result<Vec<Batch>> {
        let file = self.file(storage)?;
        let mut want = max_bytes.max(READ_BYTES);
        let mut batches = Vec::new();
        let mut taken = 0;
        while position < length && taken < max_bytes.max(1) {
            let mut chunk = vec![0; want.min((length - position) as usize)];
            file.read_exact_at(&mut chunk, position).map_err(|e| self.fault(position, &e.into()))?;
            let chunk = Bytes::from(chunk);
            let mut at = 0;
            while taken < max_bytes.max(1) {
                let here = position + at as u64;
                let rest = chunk.slice(at..);
                if rest.len() < HEADER_LEN {
                    break;
                }
                let header = BatchHeader::decode(&rest).map_err(|e| self.fault(here, &e))?;
                if header.base_offset != expected || rest[12..16] != [0; 4] {
                    let fault = format!("batch of offset {} where {expected} belongs", header.base_offset);
                    return Err(self.fault(here, &Error::corrupt(fault)));
                }
                if header.size_bytes as u64 > length - here {
                    return Err(self.fault(here, &Error::corrupt("batch reaches beyond the segment's end")));
                }
                if header.size_bytes > rest.len() {
                    want = want.max(header.size_bytes);
                    break;
                }
                at += header.size_bytes;
                expected = header.next_offset();
                if header.next_offset() > offset {
                    batches.push(Batch::parse(&rest).map_err(|e| self.fault(here, &e))?);
                    taken += header.size_bytes;
                }
            }
            if at == 0 && chunk.len() as u64 == length - position {
                return Err(self.fault(position, &Error::corrupt("batch cut by the segment's end")));
            }
            position += at as u64;
        }
        Ok(batches)
    }

    fn fault(&self, position: u64, error: &Error) -> Error {
        Error::corrupt(format!("segment {} at byte {position}: {}", self.path.display(), error.message()))
    }

    /// A batch at or before the one that holds `offset`: its offset and its position, as the index says.
    fn start_before(&self, storage: &dyn Storage, offset: i64, length: u64) -> Result<Option<(i64, u64)>> {
        let mut index = self.index();
        if index.is_none() {
            *index = match SparseIndex::read(storage, &self.path.with_extension("index"), length) {
                Some(index) => Some(index),
                None => Some(self.scan(storage, length)?),
            };
        }
        Ok(index.as_ref().and_then(|index| index.floor(offset)).filter(|(_, position)| *position < length))
    }

    /// Rebuilds the index from the batches' headers. Damage ends the index, not the scan: reads will name it.
    fn scan(&self, storage: &dyn Storage, length: u64) -> Result<SparseIndex> {
        let file = self.file(storage)?;
        let mut index = SparseIndex::default();
        let mut buf = vec![0; SCAN_BYTES];
        let (mut start, mut filled) = (0, 0);
        let (mut position, mut expected) = (0, self.base_offset);
        while position + HEADER_LEN as u64 <= length {
            if position < start || position + HEADER_LEN as u64 > start + filled as u64 {
                let want = SCAN_BYTES.min((length - position) as usize);
                filled = file.read_at(&mut buf[..want], position)?;
                start = position;
            }
            let Ok(header) = BatchHeader::decode(&buf[(position - start) as usize..filled]) else { break };
            if header.base_offset != expected {
                break;
            }
            expected = header.next_offset();
            index.add(header.base_offset, position, header.size_bytes);
            position += header.size_bytes as u64;
        }
        Ok(index)
    }
}

/// Writes batches one after the other from `start` on and returns where they end. The caller's buffer is used again and
/// again: fresh memory for every run costs more than the copy.
fn write_run(file: &dyn StorageFile, start: u64, batches: &[Bytes], buffer: &mut Vec<u8>) -> Result<u64> {
    let mut position = start;
    buffer.clear();
    for batch in batches {
        if !buffer.is_empty() && buffer.len() + batch.len() > WRITE_BYTES {
            file.write_at(buffer, position)?;
            position += buffer.len() as u64;
            buffer.clear();
        }
        if batch.len() >= WRITE_BYTES {
            file.write_at(batch, position)?;
            position += batch.len() as u64;
        } else {
            buffer.extend_from_slice(batch);
        }
    }
    if !buffer.is_empty() {
        file.write_at(buffer, position)?;
    }
    Ok(position + buffer.len() as u64)
}
