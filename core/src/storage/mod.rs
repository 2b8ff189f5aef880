//! The disk seam: every byte the engine keeps passes these traits, so that a test can be the disk.
//!
//! Durability is named, never implied: bytes written are durable after [`StorageFile::sync`], names (files made,
//! renamed, removed) after [`Storage::sync_dir`] of their folder.

mod dry;
mod os;

use std::{io, path::Path, sync::Arc};

pub use dry::DryStorage;
pub use os::{OsLock, OsStorage};

/// An open file. All access is by position; there is no cursor.
#[expect(clippy::len_without_is_empty, reason = "a file's length is asked to be compared, never with zero")]
pub trait StorageFile: Send + Sync {
    /// Reads up to `buf.len()` bytes at `position`; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;
    /// Writes all of `buf` at `position`, growing the file where needed.
    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()>;
    /// Asks the system to begin writing a range to the disk, and does not wait: a later [`StorageFile::sync`] then has less
    /// to do. A hint: nothing is durable by it, and it may be ignored. What fails in it is told by that sync.
    fn start_writeback(&self, position: u64, len: u64);
    /// Makes the file's bytes and length durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reads exactly `buf.len()` bytes, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        match self.read_at(buf, position)? {
            n if n == buf.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must exist; for reading and writing.
    Existing,
    /// It is made, or emptied where it exists.
    Fresh,
}

/// A folder tree of files. Paths are those of the process (`data_dir/...`).
pub trait Storage: Send + Sync + 'static {
    /// Opens or makes a file.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn StorageFile>>;
    /// Makes a folder and its parents; existing ones are fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Renames a file over whatever bears the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and all in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// 128 random bits.
    fn random(&self) -> io::Result<u128>;

    /// The whole content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Open::Existing)?;
        let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut content = vec![0; len];
        file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }

    /// Replaces a file as a whole: a crash leaves the old content or the new, never a mixture.
    fn write_atomically(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temp = path.with_extension("tmp");
        let file = self.open(&temp, Open::Fresh)?;
        file.write_at(content, 0)?;
        file.sync()?;
        self.rename(&temp, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("")))
    }
}
