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
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    index::{Interval, SparseIndex},
    shared::lock,
    times,
};
use crate::{
    Error, Result,
    batch::{Batch, BatchHeader, HEADER_LEN},
    storage::{Open, Storage, StorageFile},
};

/// Bytes read at a time when an index is rebuilt.
const SCAN_BYTES: usize = 1 << 20;
/// A run is copied together and written in pieces of this size.
const WRITE_BYTES: usize = 1 << 20;
/// The time of a segment without records.
const NO_TIMESTAMP: i64 = -1;
/// Least bytes read at a time when records are fetched.
const READ_BYTES: usize = 64 << 10;

/// A segment as the manifest lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SegmentEntry {
    pub(super) base_offset: i64,
    pub(super) length: u64,
    /// How often compaction has written it anew.
    #[serde(default, skip_serializing_if = "is_first")]
    pub(super) generation: u32,
    /// The latest time that a record of it bears; absent where nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_timestamp: Option<i64>,
    /// When its first and its last batch came, by the log's clock; absent in manifests of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) created_ms: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) appended_ms: Option<i64>,
}

fn is_first(generation: &u32) -> bool {
    *generation == 0
}

/// The name of a segment's file without its extension. Kafka reads the digits before the first dot.
pub(super) fn stem(base_offset: i64, generation: u32) -> String {
    match generation {
        0 => format!("{base_offset:020}"),
        _ => format!("{base_offset:020}.{generation}"),
    }
}

/// What is known of the age of a segment's records. Never evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// The latest time that a record bears; `None` where the batches have to be asked.
    pub(super) max_timestamp: Option<i64>,
    /// When its first and its last batch came, by the log's clock.
    pub(super) created_ms: i64,
    pub(super) appended_ms: i64,
}

pub(super) struct Segment {
    path: PathBuf,
    base_offset: i64,
    generation: u32,
    length: AtomicU64,
    /// Bytes of it that are durable; the manifest lists no more.
    synced: AtomicU64,
    /// Open from its first append to the checkpoint that syncs it: readers open it for themselves, so that no more
    /// files are open than are written.
    file: Mutex<Option<Arc<dyn StorageFile>>>,
    index: Mutex<Option<SparseIndex>>,
    times: Mutex<Times>,
    /// Nothing is appended any more. Only the segment writer sets it.
    ended: AtomicBool,
}

impl Segment {
    /// Makes an empty segment's file.
    pub(super) fn create(
        storage: &dyn Storage,
        folder: &Path,
        base_offset: i64,
        generation: u32,
        now_ms: i64,
    ) -> Result<Self> {
        let (created_ms, appended_ms, max_timestamp) = (Some(now_ms), Some(now_ms), Some(NO_TIMESTAMP));
        let entry = SegmentEntry { base_offset, length: 0, generation, max_timestamp, created_ms, appended_ms };
        let segment = Self::listed(folder, entry, now_ms);
        let file = storage.open(&segment.path, Open::Fresh)?;
        *lock(&segment.file) = Some(file);
        *segment.index() = Some(SparseIndex::default());
        Ok(segment)
    }

    /// A segment that a manifest lists; its file is opened when it is first used. One whose age is not told begins it now.
    pub(super) fn listed(folder: &Path, entry: SegmentEntry, now_ms: i64) -> Self {
        let times = Times {
            max_timestamp: entry.max_timestamp,
            created_ms: entry.created_ms.unwrap_or(now_ms),
            appended_ms: entry.appended_ms.unwrap_or(now_ms),
        };
        Self {
            path: folder.join(stem(entry.base_offset, entry.generation) + ".log"),
            base_offset: entry.base_offset,
            generation: entry.generation,
            length: AtomicU64::new(entry.length),
            synced: AtomicU64::new(entry.length),
            file: Mutex::new(None),
            index: Mutex::new(None),
            times: Mutex::new(times),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn base_offset(&self) -> i64 {
        self.base_offset
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// What of it is durable; none where nothing is.
    pub(super) fn durable_entry(&self) -> Option<SegmentEntry> {
        let length = self.synced.load(Ordering::Acquire);
        let Times { max_timestamp, created_ms, appended_ms } = self.times();
        (length > 0).then_some(SegmentEntry {
            base_offset: self.base_offset,
            length,
            generation: self.generation,
            max_timestamp,
            created_ms: Some(created_ms),
            appended_ms: Some(appended_ms),
        })
    }

    /// Whether all of it is durable.
    pub(super) fn is_durable(&self) -> bool {
        let length = self.length();
        length > 0 && self.synced.load(Ordering::Acquire) == length
    }

    /// The files that go with it.
    pub(super) fn paths(&self) -> [PathBuf; 2] {
        [self.path.clone(), self.path.with_extension("index")]
    }

    pub(super) fn times(&self) -> Times {
        *lock(&self.times)
    }

    /// Takes over the age of those whose records it has.
    pub(super) fn take_age_of(&self, others: &[Arc<Self>]) {
        let mut times = lock(&self.times);
        for other in others.iter().map(|other| other.times()) {
            times.created_ms = times.created_ms.min(other.created_ms);
        }
        let appended = others.iter().map(|other| other.times().appended_ms).max();
        times.appended_ms = appended.unwrap_or(times.appended_ms);
    }

    /// Whether nothing is appended to it any more.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
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
    pub(super) fn append(
        &self,
        storage: &dyn Storage,
        batches: &[Bytes],
        now_ms: i64,
        buffer: &mut Vec<u8>,
    ) -> Result<()> {
        let file = self.file(storage)?;
        *lock(&self.file) = Some(Arc::clone(&file));
        let start = self.length();
        let end = write_run(&*file, start, batches, buffer)?;
        let headers: Vec<_> = batches.iter().map(|batch| BatchHeader::decode(batch)).collect::<Result<_>>()?;
        {
            let mut times = lock(&self.times);
            let newest = headers.iter().map(|header| header.max_timestamp).max();
            times.max_timestamp = times.max_timestamp.zip(newest).map(|(known, new)| known.max(new));
            times.appended_ms = now_ms;
        }
        file.start_writeback(start, end - start);
        // Whoever makes an index finds all batches below the length in it, or none that are beyond.
        let mut index = self.index();
        if let Some(index) = index.as_mut() {
            let mut position = start;
            for header in &headers {
                index.add(header, position);
                position += header.size_bytes as u64;
            }
        }
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

    /// Ends the segment and writes the index beside it, so that a later open need not scan for it. An index that cannot
    /// be written is made again when it is needed.
    pub(super) fn seal(&self, storage: &dyn Storage) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let encoded = self.index().as_ref().map(|index| index.encode(self.length()));
        if let Some(bytes) = encoded
            && let Err(error) = storage.write_atomically(&self.path.with_extension("index"), &bytes)
        {
            tracing::debug!(segment = %self.path.display(), error = %error, "index not written");
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

    /// The batches that follow from a place in it (offset, position), for who reads all of it; moves the place.
    pub(super) fn read_on(
        &self,
        storage: &dyn Storage,
        place: &mut (i64, u64),
        max_bytes: usize,
    ) -> Result<Vec<Batch>> {
        let batches = self.read_from(storage, *place, self.length(), place.0, max_bytes)?;
        for header in batches.iter().map(Batch::header) {
            *place = (header.next_offset(), place.1 + header.size_bytes as u64);
        }
        Ok(batches)
    }

    /// Forgets what it knows of its index, which is read again where it is needed.
    pub(super) fn forget_index(&self) {
        *self.index() = None;
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
        let index = self.loaded_index(storage)?;
        Ok(index.as_ref().and_then(|index| index.floor(offset)).filter(|(_, position)| *position < length))
    }

    /// The index, from its file or from the batches where it is not in memory.
    fn loaded_index(&self, storage: &dyn Storage) -> Result<MutexGuard<'_, Option<SparseIndex>>> {
        let mut index = self.index();
        let length = self.length();
        if index.is_none() {
            *index = match SparseIndex::read(storage, &self.path.with_extension("index"), length) {
                Some(index) => Some(index),
                None => Some(self.scan(storage, length)?),
            };
        }
        Ok(index)
    }

    /// The latest time that a record of it bears, asking the batches where nobody knows.
    pub(super) fn max_timestamp(&self, storage: &dyn Storage) -> Result<i64> {
        if let Some(known) = self.times().max_timestamp {
            return Ok(known);
        }
        let mut index = self.loaded_index(storage)?;
        if index.as_ref().is_some_and(|index| index.max_timestamp().is_none()) {
            *index = Some(self.scan(storage, self.length())?);
        }
        // What is damaged bears no time.
        let latest = index.as_ref().and_then(SparseIndex::max_timestamp).unwrap_or(NO_TIMESTAMP);
        lock(&self.times).max_timestamp = Some(latest);
        Ok(latest)
    }

    /// The first record at or after `offset` whose time is `timestamp` or later: its offset and its time.
    pub(super) fn find_time(&self, storage: &dyn Storage, offset: i64, timestamp: i64) -> Result<Option<(i64, i64)>> {
        let length = self.length();
        let beginning = Interval { base_offset: self.base_offset, position: 0, max_timestamp: i64::MAX };
        let mut from = offset;
        loop {
            let next = match &*self.loaded_index(storage)? {
                Some(index) if !index.is_empty() => index.first_with_time(from, timestamp),
                _ => Some((beginning, None)),
            };
            let Some((interval, after)) = next.filter(|(interval, _)| interval.position < length) else {
                return Ok(None);
            };
            let start = (interval.base_offset, interval.position);
            let end = after.map_or(length, |after| after.position.min(length));
            let found = self.find_time_in(storage, start, end, offset, timestamp);
            if found.is_err() && start.1 != 0 {
                // Where the index leads astray, the batches themselves still tell.
                return self.find_time_in(storage, (self.base_offset, 0), length, offset, timestamp);
            }
            match (found?, after) {
                (None, Some(after)) => from = after.base_offset,
                (found, _) => return Ok(found),
            }
        }
    }

    fn find_time_in(
        &self,
        storage: &dyn Storage,
        mut start: (i64, u64),
        end: u64,
        offset: i64,
        timestamp: i64,
    ) -> Result<Option<(i64, i64)>> {
        while start.1 < end {
            let piece = SCAN_BYTES.min((end - start.1) as usize);
            let batches = self.read_from(storage, start, self.length(), start.0, piece)?;
            if batches.is_empty() {
                break;
            }
            for batch in &batches {
                if let Some(found) = times::first_in(batch, offset, timestamp)? {
                    return Ok(Some(found));
                }
                start = (batch.header().next_offset(), start.1 + batch.bytes().len() as u64);
            }
        }
        Ok(None)
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
            let header = BatchHeader::decode(&buf[(position - start) as usize..filled]);
            let Some(header) = header.ok().filter(|header| header.base_offset == expected) else {
                index.forget_last_time();
                break;
            };
            expected = header.next_offset();
            index.add(&header, position);
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
