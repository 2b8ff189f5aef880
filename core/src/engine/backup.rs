//! A copy of a log that is at work: everything that was acknowledged before it began, and of what comes meanwhile a part
//! that is whole up to one moment.
//!
//! A checkpoint's manifest lists segments that never change up to the length that it gives, so these may be copied at
//! leisure, as long as nobody removes them ([`Pin`]). What came after is in the commit log, whose files are used again
//! after the next checkpoint: they are copied first, and once more where a checkpoint came between. The copy says that all
//! of it is durable, so that an opening would name a byte that is missing.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Engine, FORMAT_VERSION,
    catalog::Table,
    frame::{FrameHeader, Kind},
    manifest::{self, Manifest},
    segment,
    shared::{Shared, partition_folder},
    superblock::{Superblock, SuperblockFile},
};
use crate::{
    Error, Result,
    storage::{Open, Storage, StorageFile},
    topic::PartitionId,
};

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// How often a checkpoint may come between before it is given up.
const ATTEMPTS: usize = 20;

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupReport {
    /// Everything below was durable when it was copied, and is in it.
    pub lsn: u64,
    /// Segments copied.
    pub segments: usize,
    /// Bytes copied.
    pub bytes: u64,
}

/// While one is held, no file goes that a manifest has listed.
pub(super) struct Pin<'a>(&'a AtomicUsize);

impl<'a> Pin<'a> {
    fn new(pins: &'a AtomicUsize) -> Self {
        pins.fetch_add(1, Ordering::AcqRel);
        Self(pins)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Engine {
    /// Copies the log into the folder `to` of the same storage, which must not exist or be empty, while it goes on. It can be
    /// opened there as any log can; it has the same identity. Reads and writes the disk: not for a runtime's threads.
    ///
    /// # Errors
    /// `Conflict` where the folder holds something; `Unavailable` for the disk, and where checkpoints follow each other too
    /// fast; `Closed`. What was copied then has no `VERSION`, and no program takes it for a log.
    pub fn backup(&self, to: &Path) -> Result<BackupReport> {
        let shared = &self.shared;
        shared.check_alive()?;
        let storage = &*shared.storage;
        if storage.list(to).is_ok_and(|names| !names.is_empty()) {
            return Err(Error::conflict(format!("{} is not empty", to.display())));
        }
        let _pin = Pin::new(&shared.pins);
        let named = |e: Error| e.context(format!("back up into {}", to.display()));
        copy(shared, to).map_err(named)
    }
}

fn copy(shared: &Shared, to: &Path) -> Result<BackupReport> {
    let storage = &*shared.storage;
    storage.create_dir(&to.join("commitlog"))?;
    storage.create_dir(&to.join("topics"))?;
    let mut report = BackupReport { lsn: 0, segments: 0, bytes: 0 };
    let (superblock, manifest) = copy_commit_log(shared, to, &mut report)?;
    if let Some(manifest) = &manifest {
        copy_segments(shared, manifest, to, &mut report)?;
        write_synced(storage, &manifest::path(to, superblock.manifest), &manifest.encode()?)?;
    }
    let path = to.join("superblock");
    SuperblockFile::create(storage, &path, superblock.log_id)?;
    let mut file = SuperblockFile::open(storage, &path)?;
    for _ in 0..2 {
        file.write(Superblock { durable_lsn: report.lsn, ..superblock })?;
    }
    for folder in [&to.join("commitlog"), &to.join("topics"), to, to.parent().unwrap_or(to)] {
        storage.sync_dir(folder)?;
    }
    // As at a log's creation: a folder without it is no log.
    storage.write_atomically(&to.join("VERSION"), format!("tidemill {FORMAT_VERSION}\n").as_bytes())?;
    Ok(report)
}

/// Copies what the commit log has beyond the last checkpoint; returns that one's superblock and manifest.
fn copy_commit_log(shared: &Shared, to: &Path, report: &mut BackupReport) -> Result<(Superblock, Option<Manifest>)> {
    let storage = &*shared.storage;
    for _ in 0..ATTEMPTS {
        shared.check_alive()?;
        let before = present(shared)?;
        let manifest = match before.manifest {
            0 => None,
            number => match Manifest::read(storage, &manifest::path(&shared.data_dir, number)) {
                Ok(manifest) => Some(manifest),
                Err(_) if present(shared)?.manifest != number => continue,
                Err(error) => return Err(error),
            },
        };
        let lsn = shared.published().lsn;
        let files = read_commit_log(shared, before.checkpoint_lsn, lsn)?;
        // A file is used again only after a checkpoint.
        if present(shared)?.checkpoint_lsn != before.checkpoint_lsn {
            continue;
        }
        for (name, (bytes, capacity)) in files {
            let file = storage.open(&to.join("commitlog").join(name), Open::Fresh)?;
            file.write_at(&bytes, 0)?;
            fill_with_zeros(&*file, bytes.len() as u64, capacity)?;
            file.sync()?;
            report.bytes += capacity;
        }
        report.lsn = lsn;
        return Ok((before, manifest));
    }
    Err(Error::unavailable("checkpoints follow each other too fast; back up while less is written"))
}

/// The superblock in force. It may be written at this moment: then its other copy is.
fn present(shared: &Shared) -> Result<Superblock> {
    Ok(SuperblockFile::open(&*shared.storage, &shared.data_dir.join("superblock"))?.current())
}

/// The files that hold something from `from_lsn` on, each with its bytes below `to_lsn` and its length. What stands beyond is
/// being written, or is of an earlier use.
fn read_commit_log(shared: &Shared, from_lsn: u64, to_lsn: u64) -> Result<BTreeMap<String, (Vec<u8>, u64)>> {
    let folder = shared.data_dir.join("commitlog");
    let (mut files, mut places) = (BTreeMap::new(), BTreeMap::new());
    for name in shared.storage.list(&folder)?.into_iter().filter(|name| name.ends_with(".log")) {
        let file = shared.storage.open(&folder.join(&name), Open::Existing)?;
        let capacity = file.len()?;
        let mut head = [0; 64];
        let read = file.read_at(&mut head, 0)?;
        let Some(header) = FrameHeader::decode(&head[..read]).filter(|header| header.kind == Kind::Note) else {
            continue;
        };
        if header.lsn >= to_lsn || header.lsn + capacity <= from_lsn {
            continue;
        }
        let mut bytes = vec![0; capacity.min(to_lsn - header.lsn) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        places.insert(header.lsn, header.lsn + capacity);
        files.insert(name, (bytes, capacity));
    }
    // Each file begins where the one before ended, or would have.
    let mut covered = from_lsn;
    for (base, end) in places {
        if base <= covered {
            covered = covered.max(end);
        }
    }
    match covered >= to_lsn {
        true => Ok(files),
        false => Err(Error::corrupt(format!("the commit log has no file that holds LSN {covered}"))),
    }
}

fn fill_with_zeros(file: &dyn StorageFile, from: u64, to: u64) -> Result<()> {
    let zeros = vec![0; COPY_BYTES];
    let mut at = from;
    while at < to {
        let n = (to - at).min(COPY_BYTES as u64);
        file.write_at(&zeros[..n as usize], at)?;
        at += n;
    }
    Ok(())
}

fn copy_segments(shared: &Shared, manifest: &Manifest, to: &Path, report: &mut BackupReport) -> Result<()> {
    let storage = &*shared.storage;
    let names = names_of(manifest);
    for entry in manifest.partitions.iter().filter(|entry| !entry.segments.is_empty()) {
        let Some((topic, number)) = names.get(&entry.id) else { continue };
        let [from, into] = [&shared.data_dir, to].map(|dir: &Path| partition_folder(dir, entry.id, topic, *number));
        storage.create_dir(&into)?;
        for segment in &entry.segments {
            shared.check_alive()?;
            let name = segment::stem(segment.base_offset, segment.generation) + ".log";
            let source = storage.open(&from.join(&name), Open::Existing);
            let source = source.map_err(|e| Error::from(e).context(format!("segment {name} of {topic}")))?;
            copy_file(storage, &*source, &into.join(&name), segment.length)?;
            report.segments += 1;
            report.bytes += segment.length;
        }
        let folders: Vec<PathBuf> = into.ancestors().take(2).map(PathBuf::from).collect();
        folders.iter().try_for_each(|folder| storage.sync_dir(folder))?;
    }
    Ok(())
}

/// Topic and number of all partitions, the log's own included.
fn names_of(manifest: &Manifest) -> BTreeMap<PartitionId, (String, usize)> {
    let own = Table::ALL.into_iter().map(|table| (table.partition(), (table.topic(), 0)));
    let topics = manifest.catalog.topics().into_iter();
    let users = topics.flat_map(|info| {
        let name = info.name;
        info.partitions.into_iter().enumerate().map(move |(number, id)| (id, (name.clone(), number)))
    });
    own.chain(users).collect()
}

fn copy_file(storage: &dyn Storage, from: &dyn StorageFile, to: &Path, length: u64) -> Result<()> {
    let file = storage.open(to, Open::Fresh)?;
    let mut buffer = vec![0; COPY_BYTES.min(length as usize)];
    let mut at = 0;
    while at < length {
        let n = (length - at).min(COPY_BYTES as u64) as usize;
        from.read_exact_at(&mut buffer[..n], at)?;
        file.write_at(&buffer[..n], at)?;
        file.start_writeback(at, n as u64);
        at += n as u64;
    }
    Ok(file.sync()?)
}

fn write_synced(storage: &dyn Storage, path: &Path, content: &[u8]) -> Result<()> {
    let file: Arc<dyn StorageFile> = storage.open(path, Open::Fresh)?;
    file.write_at(content, 0)?;
    Ok(file.sync()?)
}
