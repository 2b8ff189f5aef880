//! The superblock: the few numbers that recovery begins with, in two copies written in turn.

use std::{path::Path, sync::Arc};

use crate::{
    Error, Result,
    batch::crc32c,
    storage::{Open, Storage, StorageFile},
};

const MAGIC: &[u8; 8] = b"TMSUPER1";
const COPY_LEN: usize = 4096;
const USED: usize = 72;

/// What is known for sure about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Superblock {
    /// Counts the writes of the superblock; the copy with the larger one is the present.
    pub(super) generation: u64,
    /// Identity of this log, chosen at its creation.
    pub(super) log_id: u128,
    /// The newest open epoch.
    pub(super) epoch: u64,
    /// Everything below was durable when this was written.
    pub(super) durable_lsn: u64,
    /// Replay begins here: everything below is in segments, and in the manifest.
    pub(super) checkpoint_lsn: u64,
    /// Number of the manifest that belongs to the checkpoint; 0 for none.
    pub(super) manifest: u64,
}

impl Superblock {
    fn encode(&self) -> [u8; COPY_LEN] {
        let mut copy = [0; COPY_LEN];
        copy[..8].copy_from_slice(MAGIC);
        copy[16..24].copy_from_slice(&self.generation.to_le_bytes());
        copy[24..40].copy_from_slice(&self.log_id.to_le_bytes());
        copy[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        copy[48..56].copy_from_slice(&self.durable_lsn.to_le_bytes());
        copy[56..64].copy_from_slice(&self.checkpoint_lsn.to_le_bytes());
        copy[64..72].copy_from_slice(&self.manifest.to_le_bytes());
        let crc = crc32c(&copy[12..USED]);
        copy[8..12].copy_from_slice(&crc.to_le_bytes());
        copy
    }

    /// Both copies of a superblock's file; `None` for one that is not whole.
    pub(super) fn copies(file: &dyn StorageFile) -> Result<[Option<Self>; 2]> {
        let mut bytes = vec![0; 2 * COPY_LEN];
        let read = file.read_at(&mut bytes, 0)?;
        let copy = |i: usize| bytes[..read].chunks(COPY_LEN).nth(i).and_then(Self::decode);
        Ok([copy(0), copy(1)])
    }

    fn decode(copy: &[u8]) -> Option<Self> {
        let sound = copy.len() >= USED && &copy[..8] == MAGIC && copy[8..12] == crc32c(&copy[12..USED]).to_le_bytes();
        let number = |at: usize| u64::from_le_bytes(copy[at..at + 8].try_into().expect("eight bytes"));
        sound.then(|| Self {
            generation: number(16),
            log_id: u128::from_le_bytes(copy[24..40].try_into().expect("sixteen bytes")),
            epoch: number(40),
            durable_lsn: number(48),
            checkpoint_lsn: number(56),
            manifest: number(64),
        })
    }
}

/// The superblock's file, and what was last written to it.
pub(super) struct SuperblockFile {
    file: Arc<dyn StorageFile>,
    current: Superblock,
}

impl SuperblockFile {
    /// Makes the file of a new log and returns it durable (its name is made durable by the caller).
    pub(super) fn create(storage: &dyn Storage, path: &Path, log_id: u128) -> Result<()> {
        let file = storage.open(path, Open::Fresh)?;
        file.write_at(&[0; 2 * COPY_LEN], 0)?;
        let mut this = Self { file, current: Superblock { log_id, ..Superblock::default() } };
        this.write(this.current)
    }

    pub(super) fn open(storage: &dyn Storage, path: &Path) -> Result<Self> {
        // The caller knows that the log exists.
        let file = storage.open(path, Open::Existing).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corrupt(format!("{} is missing", path.display())),
            _ => Error::from(e).context("open superblock"),
        })?;
        let current = Superblock::copies(&*file)?.into_iter().flatten().max_by_key(|s| s.generation);
        let current = current.ok_or_else(|| Error::corrupt(format!("{}: neither copy is whole", path.display())))?;
        Ok(Self { file, current })
    }

    pub(super) fn current(&self) -> Superblock {
        self.current
    }

    /// Writes the next generation over the older copy and syncs. The other copy survives a torn write.
    pub(super) fn write(&mut self, next: Superblock) -> Result<()> {
        let next = Superblock { generation: self.current.generation + 1, ..next };
        self.file.write_at(&next.encode(), (next.generation % 2) * COPY_LEN as u64)?;
        self.file.sync()?;
        self.current = next;
        Ok(())
    }
}
