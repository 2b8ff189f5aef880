//! The sparse index of a segment: about one (offset, position) per 16 KiB, and its file beside a sealed segment.

use std::path::Path;

use crate::{Result, batch::crc32c, storage::Storage};

const INTERVAL_BYTES: usize = 16 << 10;
const MAGIC: &[u8; 8] = b"TMINDEX1";
const ENTRY_LEN: usize = 16;
const FILE_HEADER_LEN: usize = 24;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseIndex {
    entries: Vec<(i64, u64)>,
    since_last: usize,
}

impl SparseIndex {
    /// Notes a batch; only the first of each interval is kept.
    pub(super) fn add(&mut self, base_offset: i64, position: u64, size: usize) {
        if self.entries.is_empty() || self.since_last >= INTERVAL_BYTES {
            self.entries.push((base_offset, position));
            self.since_last = 0;
        }
        self.since_last += size;
    }

    /// Base offset and position of the last noted batch that does not begin after `offset`.
    pub(super) fn floor(&self, offset: i64) -> Option<(i64, u64)> {
        let after = self.entries.partition_point(|(base, _)| *base <= offset);
        after.checked_sub(1).map(|i| self.entries[i])
    }

    /// Offsets and positions, as far as they are noted.
    pub(super) fn entries(&self) -> &[(i64, u64)] {
        &self.entries
    }

    /// Writes the index file: magic, CRC, the segment's length, entries. Whole or not at all.
    pub(super) fn write(&self, storage: &dyn Storage, path: &Path, segment_length: u64) -> Result<()> {
        let mut bytes = vec![0; FILE_HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[16..24].copy_from_slice(&segment_length.to_le_bytes());
        for (offset, position) in &self.entries {
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&position.to_le_bytes());
        }
        let crc = crc32c(&bytes[16..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        Ok(storage.write_atomically(path, &bytes)?)
    }

    /// Reads an index file; `None` where it is absent, damaged, or of another length of the segment.
    pub(super) fn read(storage: &dyn Storage, path: &Path, segment_length: u64) -> Option<Self> {
        let bytes = storage.read(path).ok()?;
        let sound = bytes.len() >= FILE_HEADER_LEN
            && &bytes[..8] == MAGIC
            && bytes[8..12] == crc32c(&bytes[16..]).to_le_bytes()
            && bytes[16..24] == segment_length.to_le_bytes()
            && (bytes.len() - FILE_HEADER_LEN).is_multiple_of(ENTRY_LEN);
        sound.then(|| {
            let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
            let entries = bytes[FILE_HEADER_LEN..].chunks_exact(ENTRY_LEN);
            Self { entries: entries.map(|e| (number(&e[..8]) as i64, number(&e[8..]))).collect(), since_last: 0 }
        })
    }
}
