//! The batches of a segment's file, one after the other, through whatever is wrong with them.

use bytes::Bytes;

use crate::{
    Result,
    batch::{Batch, BatchHeader, HEADER_LEN},
    storage::StorageFile,
};

/// No batch is larger than a request of the log may be.
const MAX_BATCH_BYTES: u64 = 64 << 20;
/// Bytes read at a time.
const READ_BYTES: u64 = 1 << 20;

/// What stands at a place of a segment.
pub(super) enum Found {
    /// A whole batch where it belongs.
    Sound(Batch),
    /// A batch that cannot be trusted; its header tells where the next one begins.
    Damaged(BatchHeader, String),
    /// No batch. Nothing behind it can be found.
    Unreadable(String),
}

/// Visits each place of the file's first `length` bytes. The first batch has the offset `base_offset`, and each one
/// continues the one before.
pub(super) fn walk(
    file: &dyn StorageFile,
    base_offset: i64,
    length: u64,
    mut visit: impl FnMut(u64, Found) -> Result<()>,
) -> Result<()> {
    // Where a batch is not at its offset, either its offset is wrong or those before it are: the next one tells.
    let (mut position, mut expected) = (0, [base_offset; 2]);
    let mut window = Window::default();
    while position < length {
        let left = length - position;
        let head = window.get(file, position, left.min(HEADER_LEN as u64), left)?;
        let header = match BatchHeader::decode(&head) {
            Ok(header) if header.size_bytes as u64 <= left.min(MAX_BATCH_BYTES) => header,
            Ok(header) => {
                return visit(
                    position,
                    Found::Unreadable(format!("a batch of {} bytes, {left} left", header.size_bytes)),
                );
            }
            Err(error) => return visit(position, Found::Unreadable(error.message().to_owned())),
        };
        let bytes = window.get(file, position, header.size_bytes as u64, left)?;
        let found = match Batch::parse(&bytes) {
            _ if !expected.contains(&header.base_offset) => {
                Found::Damaged(header, format!("offset {} where {} belongs", header.base_offset, expected[0]))
            }
            // Outside the batch's checksum, as its offset.
            _ if bytes[12..16] != [0; 4] => Found::Damaged(header, "a leader epoch that nobody wrote".to_owned()),
            Ok(batch) => Found::Sound(batch),
            Err(error) => Found::Damaged(header, error.message().to_owned()),
        };
        visit(position, found)?;
        let here = if expected.contains(&header.base_offset) { header.base_offset } else { expected[0] };
        expected = [here, header.base_offset].map(|base| base + i64::from(header.last_offset_delta) + 1);
        position += header.size_bytes as u64;
    }
    Ok(())
}

/// What was read of the file last.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Bytes,
}

impl Window {
    /// `len` bytes at `position`, of `left` that there are.
    fn get(&mut self, file: &dyn StorageFile, position: u64, len: u64, left: u64) -> Result<Bytes> {
        let inside = position >= self.start && position + len <= self.start + self.bytes.len() as u64;
        if !inside {
            let mut bytes = vec![0; len.max(READ_BYTES.min(left)) as usize];
            file.read_exact_at(&mut bytes, position)?;
            (self.start, self.bytes) = (position, Bytes::from(bytes));
        }
        let from = (position - self.start) as usize;
        Ok(self.bytes.slice(from..from + len as usize))
    }
}
