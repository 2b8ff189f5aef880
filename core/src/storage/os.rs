//! The operating system's files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use super::{Open, Storage, StorageFile};
use crate::{Error, Result};

/// The file system of this machine.
#[derive(Debug, Default)]
pub struct OsStorage;

impl StorageFile for File {
    fn read_at(&self, mut buf: &mut [u8], mut position: u64) -> io::Result<usize> {
        let mut total = 0;
        while !buf.is_empty() {
            match FileExt::read_at(self, buf, position) {
                Ok(0) => break,
                Ok(n) => {
                    buf = &mut buf[n..];
                    position += n as u64;
                    total += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn write_at(&self, buf: &[u8], position: u64) -> io::Result<()> {
        self.write_all_at(buf, position)
    }

    fn start_writeback(&self, position: u64, len: u64) {
        // Linux begins to write dirty pages that it is told nobody needs. It forgets the clean ones among them, which in a
        // range that was written just now are none.
        let _ = rustix::fs::fadvise(self, position, NonZeroU64::new(len), rustix::fs::Advice::DontNeed);
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

impl Storage for OsStorage {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn StorageFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if how == Open::Fresh {
            options.create(true).truncate(true);
        }
        Ok(Arc::new(options.open(path)?))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn random(&self) -> io::Result<u128> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u128::from_ne_bytes(bytes))
    }
}

/// The exclusive lock of a data directory, held while the value lives. Its file tells who holds it.
#[derive(Debug)]
pub struct OsLock {
    _file: File,
}

impl OsLock {
    /// Takes the lock, writing `holder` (a short text: pid, command, socket) into the file.
    ///
    /// # Errors
    /// `Conflict` carries, as its message, the text the present holder wrote.
    pub fn take(path: &Path, holder: &str) -> Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(holder.as_bytes())?;
                Ok(Self { _file: file })
            }
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                Err(Error::conflict(text))
            }
            Err(fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }
}
