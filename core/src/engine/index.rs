//! The sparse index of a segment: about one (offset, position, latest time until the next) per 16 KiB, and its file
//! beside a sealed segment.

use std::path::Path;

use crate::{
    batch::{BatchHeader, crc32c},
    storage::Storage,
};

const INTERVAL_BYTES: usize = 16 << 10;
/// With the latest time of each interval; those of older programs are without.
const MAGIC: &[u8; 8] = b"TMINDEX2";
const MAGIC_WITHOUT_TIMES: &[u8; 8] = b"TMINDEX1";
const FILE_HEADER_LEN: usize = 24;

/// Batches from one place up to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) base_offset: i64,
    pub(super) position: u64,
    /// The latest time that a record of it bears; the largest number where nobody knows.
    pub(super) max_timestamp: i64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseIndex {
    entries: Vec<Interval>,
    since_last: usize,
}

impl SparseIndex {
    /// Notes a batch; only the first of each interval is kept.
    pub(super) fn add(&mut self, batch: &BatchHeader, position: u64) {
        let max_timestamp = batch.max_timestamp;
        match self.entries.last_mut() {
            Some(last) if self.since_last < INTERVAL_BYTES => {
                last.max_timestamp = last.max_timestamp.max(max_timestamp)
            }
            _ => {
                self.entries.push(Interval { base_offset: batch.base_offset, position, max_timestamp });
                self.since_last = 0;
            }
        }
        self.since_last += batch.size_bytes;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Base offset and position of the last noted batch that does not begin after `offset`.
    pub(super) fn floor(&self, offset: i64) -> Option<(i64, u64)> {
        let after = self.entries.partition_point(|entry| entry.base_offset <= offset);
        after.checked_sub(1).map(|i| (self.entries[i].base_offset, self.entries[i].position))
    }

    /// The first interval that may hold a record at or after `offset` whose time is `timestamp` or later, and where the
    /// next one begins.
    pub(super) fn first_with_time(&self, offset: i64, timestamp: i64) -> Option<(Interval, Option<Interval>)> {
        let after = self.entries.partition_point(|entry| entry.base_offset <= offset);
        let mut rest =
            (after.saturating_sub(1)..self.entries.len()).map(|i| (self.entries[i], self.entries.get(i + 1)));
        rest.find(|(entry, _)| entry.max_timestamp >= timestamp).map(|(entry, next)| (entry, next.copied()))
    }

    /// The latest time of all; `None` where an interval's is not known.
    pub(super) fn max_timestamp(&self) -> Option<i64> {
        let latest = self.entries.iter().map(|entry| entry.max_timestamp).max().unwrap_or(-1);
        Some(latest).filter(|latest| *latest != i64::MAX)
    }

    /// Tells that nobody knows what follows the last place.
    pub(super) fn forget_last_time(&mut self) {
        if let Some(last) = self.entries.last_mut() {
            last.max_timestamp = i64::MAX;
        }
    }

    /// Places and times, as far as they are noted.
    pub(super) fn entries(&self) -> &[Interval] {
        &self.entries
    }

    /// The index file: magic, CRC, the segment's length, entries.
    pub(super) fn encode(&self, segment_length: u64) -> Vec<u8> {
        let mut bytes = vec![0; FILE_HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[16..24].copy_from_slice(&segment_length.to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.base_offset.to_le_bytes());
            bytes.extend_from_slice(&entry.position.to_le_bytes());
            bytes.extend_from_slice(&entry.max_timestamp.to_le_bytes());
        }
        let crc = crc32c(&bytes[16..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads an index file; `None` where it is absent, damaged, or of another length of the segment.
    pub(super) fn read(storage: &dyn Storage, path: &Path, segment_length: u64) -> Option<Self> {
        let bytes = storage.read(path).ok()?;
        let (header, entries) = bytes.split_at_checked(FILE_HEADER_LEN)?;
        let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        let entry_len = match &header[..8] {
            magic if magic == MAGIC => 24,
            magic if magic == MAGIC_WITHOUT_TIMES => 16,
            _ => return None,
        };
        let sound = header[8..12] == crc32c(&bytes[16..]).to_le_bytes()
            && number(&header[16..24]) == segment_length
            && entries.len().is_multiple_of(entry_len);
        let entry = |e: &[u8]| Interval {
            base_offset: number(&e[..8]) as i64,
            position: number(&e[8..16]),
            max_timestamp: e.get(16..24).map_or(i64::MAX, |time| number(time) as i64),
        };
        sound.then(|| Self { entries: entries.chunks_exact(entry_len).map(entry).collect(), since_last: 0 })
    }
}
