//! Opening a log: what a crash left is read, judged, and made whole before the first reader comes.
//!
//! 1. The superblock names the checkpoint; its manifest gives segments and catalog.
//! 2. The files of the commit log are put in order by their opening notes. A later epoch's file ends all earlier ones
//!    at the LSN where it begins.
//! 3. `proven` is the highest `durable_lsn` that the superblock or any whole frame names.
//! 4. Frames are replayed from the checkpoint. A bad one below `proven` is damage: it costs the partitions it names, or
//!    those not shown continuous later. A bad one at or above `proven` ends the log: from there on it is cut.
//! 5. A new epoch is made durable. Frames accepted at or above `proven` may exist in the page cache only: they are
//!    written to the epoch's first file and synced, and only then does its opening note make that file count.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{
    commit::Committer,
    frame::{self, Descriptor, FrameHeader, GROUP_ALIGN, GroupBuffer, Kind, Note, NoteReason, Placed, StagedEntry},
    full_disk::{LEAST_FILE_BYTES, give_of_reserve},
    partition::Damage,
    shared::{Shared, lock},
    slots::Slot,
    superblock::{Superblock, SuperblockFile},
};
use crate::{
    Error, Result,
    batch::{Batch, BatchHeader, patch_base_offset},
    storage::{Open, StorageFile},
    topic::PartitionId,
};

/// Files beyond are not the log's: they are neither read nor counted.
const MAX_FILE_NUMBER: u32 = 1_000_000_000;
/// A file of the greatest size there is, made larger for a rewritten group that also holds what it had staged.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What opening a log found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Where replay began.
    pub checkpoint_lsn: u64,
    /// Where the log ended.
    pub end_lsn: u64,
    /// Everything below was proven durable before the crash.
    pub proven_lsn: u64,
    /// Batches replayed from the commit log.
    pub batches: u64,
    /// Where unproven, unreadable bytes were cut off, and how many there were at least.
    pub cut: Option<(u64, u64)>,
    /// Proven frames that cannot be read: LSN and what is wrong.
    pub damage: Vec<(u64, String)>,
}

/// A file of the commit log as found.
struct Found {
    file: Arc<dyn StorageFile>,
    path: PathBuf,
    capacity: u64,
    epoch: u64,
    base_lsn: u64,
    /// LSN at which a later file takes over.
    limit: u64,
    /// Whether its opening note was read, or its frames alone tell that it counts.
    opened: bool,
}

/// A frame accepted though nothing proves it durable: to be written again.
struct Unproven {
    kind: Kind,
    inline: Vec<(PartitionId, Bytes)>,
    staged: Vec<StagedEntry>,
}

struct Replay<'a> {
    shared: &'a Shared,
    proven: u64,
    report: RecoveryReport,
    staged: HashMap<u64, Vec<(PartitionId, Option<Bytes>)>>,
    unproven: Vec<Unproven>,
    /// Partitions that lost frame headers may have belonged to, until a later batch continues them.
    suspects: BTreeSet<PartitionId>,
    suspicion: String,
}

/// Opens the commit log: replays it into `shared`, which holds what the manifest said, and begins a new epoch.
pub(super) fn recover(shared: &Arc<Shared>, superblock: &mut SuperblockFile) -> Result<(Committer, RecoveryReport)> {
    let before = superblock.current();
    let folder = shared.data_dir.join("commitlog");
    let (found, unused) = find_files(shared, &folder, &before)?;
    let proven = prove(&found, &before)?;
    let mut replay = Replay {
        shared,
        proven,
        report: RecoveryReport { checkpoint_lsn: before.checkpoint_lsn, proven_lsn: proven, ..Default::default() },
        staged: HashMap::new(),
        unproven: Vec::new(),
        suspects: BTreeSet::new(),
        suspicion: String::new(),
    };
    let (end_lsn, proven_crc) = replay.run(&found, before.checkpoint_lsn)?;
    raise_ends(shared);
    replay.condemn_suspects();
    let Replay { mut report, unproven, .. } = replay;
    report.end_lsn = end_lsn;
    let epoch = found.iter().map(|file| file.epoch).fold(before.epoch, u64::max) + 1;
    superblock.write(Superblock { epoch, ..before })?;
    stow_files(shared, found, unused, before.checkpoint_lsn, proven);
    let committer = begin_epoch(shared, epoch, proven, proven_crc, &unproven)?;
    superblock.write(Superblock { epoch, durable_lsn: committer.next_lsn, ..before })?;
    shared.published.write().unwrap_or_else(std::sync::PoisonError::into_inner).lsn = committer.next_lsn;
    shared.checkpoint_lsn.store(before.checkpoint_lsn, Ordering::Release);
    Ok((committer, report))
}

/// All files in the order of the log, each with the LSN where the next takes over; and those with nothing in them.
fn find_files(shared: &Shared, folder: &Path, superblock: &Superblock) -> Result<(Vec<Found>, Vec<Found>)> {
    let (mut found, mut unused) = (Vec::new(), Vec::new());
    for name in shared.storage.list(folder)? {
        let number = name.strip_suffix(".log").and_then(|n| n.parse::<u32>().ok());
        let Some(number) = number.filter(|number| *number < MAX_FILE_NUMBER) else { continue };
        let mut pool = lock(&shared.slots);
        pool.count += 1;
        pool.next_number = pool.next_number.max(number);
        drop(pool);
        let path = folder.join(&name);
        let file = shared.storage.open(&path, Open::Existing)?;
        let capacity = file.len()?;
        if capacity > MAX_FILE_BYTES {
            return Err(Error::corrupt(format!("{} of {capacity} bytes is no file of a commit log", path.display())));
        }
        let mut this = Found { file, path, capacity, epoch: 0, base_lsn: 0, limit: u64::MAX, opened: false };
        match opening(&this, superblock)? {
            Some((header, opened)) => {
                (this.epoch, this.base_lsn, this.opened) = (header.epoch, header.lsn, opened);
                found.push(this);
            }
            None => unused.push(this),
        }
    }
    found.sort_by_key(|f| (f.epoch, f.base_lsn));
    // What a recovery wrote that did not come to its opening note ends nothing: the older files still count.
    let mut previous_epoch = None;
    for file in std::mem::take(&mut found) {
        if file.opened || previous_epoch == Some(file.epoch) {
            previous_epoch = Some(file.epoch);
            found.push(file);
        } else {
            unused.push(file);
        }
    }
    let mut limit = u64::MAX;
    for file in found.iter_mut().rev() {
        file.limit = limit;
        limit = limit.min(file.base_lsn);
    }
    Ok((found, unused))
}

/// The opening note of a file and whether it counts; where its sector is bad, one made up from the newest frame that
/// the file holds. Such a file counts by itself only if something proves that the note was durable once.
fn opening(found: &Found, superblock: &Superblock) -> Result<Option<(FrameHeader, bool)>> {
    let mut head = vec![0; GROUP_ALIGN];
    let read = found.file.read_at(&mut head, 0)?;
    if let Some(header) = FrameHeader::decode(&head[..read])
        && header.kind == Kind::Note
    {
        return Ok(Some((header, true)));
    }
    let bytes = read_all(found)?;
    let places = (0..bytes.len()).step_by(8);
    let frames: Vec<_> = places
        .filter_map(|at| {
            let header = FrameHeader::decode(&bytes[at..])?;
            Some(FrameHeader { lsn: header.lsn.checked_sub(at as u64)?, ..header })
        })
        .collect();
    let Some(newest) = frames.iter().max_by_key(|header| (header.epoch, header.lsn)) else { return Ok(None) };
    let own = frames.iter().filter(|header| (header.epoch, header.lsn) == (newest.epoch, newest.lsn));
    let proven = own.map(|header| header.durable_lsn).fold(superblock.durable_lsn, u64::max);
    Ok(Some((*newest, proven > newest.lsn)))
}

fn read_all(found: &Found) -> Result<Bytes> {
    let mut bytes = vec![0; found.capacity as usize];
    let read = found.file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Bytes::from(bytes))
}

impl Found {
    fn frames(&self, bytes: &[u8], from_lsn: u64) -> Vec<FrameHeader> {
        let from = from_lsn.saturating_sub(self.base_lsn) as usize;
        let mut frames = frame::find_frames(bytes, self.base_lsn, self.epoch, from);
        frames.retain(|frame| frame.lsn < self.limit);
        frames
    }

    fn holds(&self, lsn: u64) -> bool {
        self.base_lsn <= lsn && lsn < self.limit
    }
}

/// The highest LSN that anything proves durable.
fn prove(found: &[Found], superblock: &Superblock) -> Result<u64> {
    let mut proven = superblock.durable_lsn.max(superblock.checkpoint_lsn);
    for file in found.iter().filter(|f| f.limit > superblock.checkpoint_lsn) {
        let bytes = read_all(file)?;
        let frames = file.frames(&bytes, superblock.checkpoint_lsn);
        proven = frames.iter().map(|frame| frame.durable_lsn).fold(proven, u64::max);
    }
    Ok(proven)
}

impl Replay<'_> {
    /// Replays all files; returns the log's end and the CRC of the frame that ends at `proven`.
    fn run(&mut self, found: &[Found], checkpoint_lsn: u64) -> Result<(u64, u32)> {
        let mut expected = checkpoint_lsn;
        let mut chain: Option<u32> = None;
        let mut proven_crc = 0;
        for file in found {
            if !file.holds(expected) {
                if file.base_lsn > expected && file.limit > file.base_lsn && file.base_lsn <= self.proven {
                    // A whole file is missing or unreadable between here and there.
                    self.lost(expected, file.base_lsn, "commit log file missing or unreadable");
                    (expected, chain) = (file.base_lsn, None);
                } else {
                    continue;
                }
            }
            let bytes = read_all(file)?;
            let frames = file.frames(&bytes, expected);
            let mut frames = frames.iter().peekable();
            while expected < file.limit {
                let next = frames.next_if(|f| f.lsn == expected && chain.is_none_or(|crc| f.previous_crc == crc));
                let frame = next.and_then(|header| {
                    let at = (header.lsn - file.base_lsn) as usize;
                    let frame = bytes.slice(at..at + header.length as usize);
                    self.check(header, &frame).map(|checked| (header, checked))
                });
                match frame {
                    Some((header, checked)) => {
                        self.apply(header, checked)?;
                        (expected, chain) = (header.end_lsn(), Some(header.crc));
                        if expected <= self.proven {
                            proven_crc = header.crc;
                        }
                    }
                    None if expected >= self.proven => {
                        let beyond = frames.last().or(next).map_or(expected, FrameHeader::end_lsn);
                        // Files are made at their full length: one that ends here lost its end.
                        let short = file.capacity < self.shared.config.commit_file_bytes as u64
                            && file.capacity <= expected - file.base_lsn;
                        if beyond > expected || short || looks_written(&bytes, file.base_lsn, expected) {
                            self.report.cut = Some((expected, beyond - expected));
                        }
                        return Ok((expected, proven_crc));
                    }
                    None => {
                        let bad = next.copied();
                        if let Some(bad) = bad {
                            let at = (bad.lsn - file.base_lsn) as usize;
                            self.damaged(&bad, &bytes[at..at + bad.length as usize]);
                            expected = bad.end_lsn();
                        } else {
                            while frames.next_if(|f| f.lsn <= expected).is_some() {}
                            let resume = frames.peek().map_or(file.limit.min(self.proven), |f| f.lsn);
                            if expected == file.base_lsn && resume == expected + GROUP_ALIGN as u64 {
                                // A file begins with a note, alone in its sector: no records are lost with it.
                                self.report.damage.push((expected, "an opening note is damaged".to_owned()));
                            } else {
                                self.lost(expected, resume, "frame header unreadable");
                            }
                            expected = resume;
                        }
                        chain = None;
                    }
                }
            }
        }
        if expected < self.proven {
            self.lost(expected, self.proven, "end of the commit log missing");
            expected = self.proven;
        }
        Ok((expected, proven_crc))
    }

    /// Decodes a frame; `None` where its descriptor or a batch is not what was written.
    fn check(&self, header: &FrameHeader, frame: &Bytes) -> Option<(Descriptor, Vec<Bytes>)> {
        let descriptor = Descriptor::decode(header, frame)?;
        let payload = match &descriptor {
            Descriptor::Note(_) => Vec::new(),
            Descriptor::Batches { batches, .. } => frame::payload(header, batches, frame)?,
        };
        Some((descriptor, payload))
    }

    fn apply(&mut self, header: &FrameHeader, (descriptor, payload): (Descriptor, Vec<Bytes>)) -> Result<()> {
        let Descriptor::Batches { batches, staged } = descriptor else { return Ok(()) };
        let inline: Vec<_> = batches.iter().map(|entry| entry.partition).zip(payload).collect();
        if header.kind == Kind::Stage {
            let kept = inline.into_iter().map(|(partition, bytes)| (partition, Some(bytes)));
            self.staged.insert(header.lsn, kept.collect());
            return Ok(());
        }
        let mut again = Unproven { kind: header.kind, inline: Vec::new(), staged: Vec::new() };
        for entry in staged {
            let kept = self.staged.get_mut(&entry.stage_lsn).and_then(|frame| frame.get_mut(entry.index as usize));
            let Some(bytes) = kept.and_then(|(_, bytes)| bytes.take()) else {
                self.hole(entry.partition, entry.base_offset, entry.span, header.lsn, "its staged batch is unreadable");
                continue;
            };
            let mut bytes = bytes.to_vec();
            patch_base_offset(&mut bytes, entry.base_offset);
            let bytes = Bytes::from(bytes);
            self.place(entry.partition, bytes.clone())?;
            if entry.stage_lsn >= self.proven {
                again.inline.push((entry.partition, bytes));
            } else {
                again.staged.push(entry);
            }
        }
        for (partition, bytes) in inline {
            self.place(partition, bytes.clone())?;
            again.inline.push((partition, bytes));
        }
        if header.lsn >= self.proven {
            self.unproven.push(again);
        }
        Ok(())
    }

    fn place(&mut self, id: PartitionId, bytes: Bytes) -> Result<()> {
        let Ok(partition) = self.shared.partition(id) else { return Ok(()) };
        let header = BatchHeader::decode(&bytes)?;
        let next = partition.state().durable_offset;
        if header.base_offset < next {
            return Ok(());
        }
        let expected = next.max(partition.state().log_start_offset);
        if header.base_offset > expected {
            let cause = if self.suspicion.is_empty() { "offsets are missing" } else { &self.suspicion };
            partition.add_damage(Damage { from: expected, to: Some(header.base_offset), cause: cause.to_owned() });
        }
        self.suspects.remove(&id);
        self.report.batches += 1;
        self.shared.publish_batch(id, &Batch::trusted(header, bytes))?;
        lock(&self.shared.writer).dirty.insert(id);
        Ok(())
    }

    /// A proven frame whose descriptor may still tell whose records it held.
    fn damaged(&mut self, header: &FrameHeader, frame: &[u8]) {
        match Descriptor::decode(header, frame) {
            Some(Descriptor::Batches { batches, staged }) if header.kind != Kind::Stage => {
                self.report.damage.push((header.lsn, "a batch is damaged".to_owned()));
                for entry in batches {
                    self.hole(entry.partition, entry.base_offset, entry.span, header.lsn, "its frame is damaged");
                }
                for entry in staged {
                    self.hole(entry.partition, entry.base_offset, entry.span, header.lsn, "its frame is damaged");
                }
            }
            None if header.kind == Kind::Note => self.report.damage.push((header.lsn, "a note is damaged".to_owned())),
            // A staged batch costs somebody something only if its transaction was committed; that frame will tell.
            Some(_) => self.report.damage.push((header.lsn, "a staged batch or a note is damaged".to_owned())),
            None => self.lost(header.lsn, header.end_lsn(), "descriptor damaged"),
        }
    }

    fn hole(&mut self, id: PartitionId, base_offset: i64, span: u32, lsn: u64, what: &str) {
        let Ok(partition) = self.shared.partition(id) else { return };
        let from = partition.state().durable_offset;
        if base_offset < from {
            return;
        }
        let to = base_offset + i64::from(span);
        if to > partition.state().log_start_offset {
            partition.add_damage(Damage { from, to: Some(to), cause: format!("{what} (LSN {lsn})") });
        }
        partition.state_mut().durable_offset = to;
    }

    /// Proven bytes that nothing can be said about: every partition may have had records there.
    fn lost(&mut self, from: u64, to: u64, what: &str) {
        self.suspicion = format!("{what} (LSN {from}..{to})");
        self.report.damage.push((from, self.suspicion.clone()));
        let partitions = self.shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.suspects.extend(partitions.keys());
    }

    /// Partitions that no later batch continued are in doubt from their end on.
    fn condemn_suspects(&self) {
        for id in &self.suspects {
            if let Ok(partition) = self.shared.partition(*id) {
                let from = partition.state().durable_offset;
                partition.add_damage(Damage { from, to: None, cause: self.suspicion.clone() });
            }
        }
    }
}

/// Offsets below the log's start are not given again, whatever became of their records.
fn raise_ends(shared: &Shared) {
    let partitions = shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    for partition in partitions.values() {
        let mut state = partition.state_mut();
        state.durable_offset = state.durable_offset.max(state.log_start_offset);
    }
}

/// Whether a frame was begun here: zeros and the leavings of a file's earlier use are not worth a word.
fn looks_written(bytes: &[u8], base_lsn: u64, lsn: u64) -> bool {
    let rest = bytes.get((lsn - base_lsn) as usize..).unwrap_or_default();
    let sector = &rest[..rest.len().min(GROUP_ALIGN)];
    sector.iter().any(|b| *b != 0) && FrameHeader::decode(sector).is_none_or(|header| header.lsn == lsn)
}

/// Sorts the files into those a checkpoint has yet to pass and those free for use.
fn stow_files(shared: &Shared, found: Vec<Found>, unused: Vec<Found>, checkpoint_lsn: u64, continues: u64) {
    let mut pool = lock(&shared.slots);
    let last = found.len().saturating_sub(1);
    for (i, file) in found.into_iter().enumerate() {
        let end_lsn = file.limit.min(continues);
        // The newest file stays out of use even if empty: its opening note may be what ends an older epoch.
        let done = i != last && (file.limit <= file.base_lsn || file.limit <= checkpoint_lsn);
        let slot = Slot { file: file.file, path: file.path, capacity: file.capacity, base_lsn: file.base_lsn, end_lsn };
        if done { pool.free.push(slot) } else { pool.used.push_back(slot) }
    }
    for file in unused {
        pool.free.push(Slot { file: file.file, path: file.path, capacity: file.capacity, base_lsn: 0, end_lsn: 0 });
    }
    let size = shared.config.commit_file_bytes as u64;
    let (keep, drop): (Vec<_>, Vec<_>) = pool.free.drain(..).partition(|slot| slot.capacity == size);
    pool.free = keep;
    for slot in drop {
        pool.count -= 1;
        let _ = shared.storage.remove(&slot.path);
    }
}

/// Starts the epoch's first file: unproven frames first, then, once these are durable, the note that makes it count.
fn begin_epoch(
    shared: &Arc<Shared>,
    epoch: u64,
    continues_lsn: u64,
    continues_crc: u32,
    unproven: &[Unproven],
) -> Result<Committer> {
    let note = Note { reason: NoteReason::Open, continues_lsn, continues_crc };
    let mut opening = GroupBuffer::new(continues_lsn, epoch, continues_lsn, continues_crc);
    opening.push_note(note);
    let (first, first_crc) = opening.finish();
    let content_lsn = continues_lsn + first.len() as u64;
    let mut group = GroupBuffer::new(content_lsn, epoch, continues_lsn, first_crc);
    for frame in unproven {
        let placed = |(partition, bytes): &(PartitionId, Bytes)| -> Result<Placed> {
            Ok(Placed {
                partition: *partition,
                base_offset: BatchHeader::decode(bytes)?.base_offset,
                bytes: bytes.clone(),
            })
        };
        let placed: Vec<_> = frame.inline.iter().map(placed).collect::<Result<_>>()?;
        group.push_batches(frame.kind, &placed, &frame.staged);
    }
    let (content, content_crc) = group.finish();
    let slot = take_slot(shared, continues_lsn, first.len() + content.len())?;
    let durable = |what: &str, e: std::io::Error| Error::from(e).context(what.to_owned());
    slot.end_with_zeros((first.len() + content.len()) as u64).map_err(|e| durable("open the epoch", e))?;
    if !content.is_empty() {
        slot.file.write_at(&content, first.len() as u64).map_err(|e| durable("rewrite the last group", e))?;
        slot.file.sync().map_err(|e| durable("sync the last group", e))?;
    }
    slot.file.write_at(&first, 0).map_err(|e| durable("open the epoch", e))?;
    slot.file.sync().map_err(|e| durable("open the epoch", e))?;
    let crc = if content.is_empty() { first_crc } else { content_crc };
    Ok(Committer::new(Arc::clone(shared), epoch, slot, content_lsn + content.len() as u64, crc))
}

fn take_slot(shared: &Shared, base_lsn: u64, needed: usize) -> Result<Slot> {
    let size = shared.config.commit_file_bytes.max((needed + GROUP_ALIGN).next_multiple_of(4096));
    let mut pool = lock(&shared.slots);
    let fitting = pool.free.iter().position(|slot| slot.capacity >= size as u64);
    let mut slot = match fitting {
        Some(i) => pool.free.swap_remove(i),
        None => {
            pool.count += 1;
            pool.next_number += 1;
            let (storage, folder) = (&*shared.storage, shared.data_dir.join("commitlog"));
            match Slot::create(storage, &folder, pool.next_number, size) {
                // With a small file, and what the next manifest would have taken, one can still delete.
                Err(error) if error.is_disk_full() => {
                    let least = LEAST_FILE_BYTES.max((needed + GROUP_ALIGN).next_multiple_of(4096));
                    let _ = give_of_reserve(storage, &shared.data_dir, least);
                    Slot::create(storage, &folder, pool.next_number, least)?
                }
                created => created?,
            }
        }
    };
    slot.base_lsn = base_lsn;
    Ok(slot)
}
