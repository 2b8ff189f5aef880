//! The committer: takes what is queued, writes it as one group, syncs once, makes it visible, answers.
//!
//! It alone assigns offsets and LSNs. Nothing it plans is visible before the sync returned; when a write or the sync
//! fails, the log stops for good, because what the disk holds is then unknown.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;

use super::{
    catalog::Table,
    frame::{FramePlace, GROUP_ALIGN, GroupBuffer, Kind, Note, NoteReason, Placed, StagedEntry},
    queue::{Compute, Fence, Outcome, Request, Work},
    shared::{Shared, lock},
    slots::Slot,
    staging::{Place, Staging},
    transactions::Coordinate,
};
use crate::{
    Error, Result,
    batch::{Batch, BatchBuilder, BatchHeader, patch_base_offset},
    record::Record,
    topic::{Durability, PartitionId},
};

/// A transaction that neither ended nor staged anything for this long is aborted.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What one turn of the committer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing was queued.
    Idle,
    /// This many requests were made durable.
    Committed(usize),
    /// There is no room; a checkpoint or a write-behind must come first.
    Blocked,
}

/// What a transaction has staged, kept in memory until it ends.
struct Transaction {
    frames: Vec<StagedFrame>,
    bytes: usize,
    touched: Duration,
}

struct StagedFrame {
    lsn: u64,
    batches: Vec<(PartitionId, Bytes)>,
}

/// A request that is part of the present group, and the batches it makes visible.
struct Planned {
    request: Request,
    outcome: Outcome,
    visible: Vec<Visible>,
    /// Answered when it is written, not when it is durable.
    early: bool,
}

enum Visible {
    /// At this range of the group's buffer.
    InGroup(PartitionId, std::ops::Range<usize>),
    /// Staged before; offset already patched.
    Staged(PartitionId, Bytes),
}

pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) epoch: u64,
    pub(super) slot: Slot,
    pub(super) next_lsn: u64,
    /// Everything below was synced; a roll's note beyond it shares the sync of the group that follows.
    durable_lsn: u64,
    pub(super) previous_crc: u32,
    /// Whether a note already proves all groups.
    pub(super) noted: bool,
    transactions: BTreeMap<u64, Transaction>,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, epoch: u64, slot: Slot, next_lsn: u64, previous_crc: u32) -> Self {
        let transactions = BTreeMap::new();
        Self { shared, epoch, slot, next_lsn, durable_lsn: next_lsn, previous_crc, noted: true, transactions }
    }

    /// Commits one group of what is queued.
    pub(super) fn turn(&mut self) -> Result<Turn> {
        self.shared.check_alive()?;
        self.expire_transactions();
        self.release_staged();
        let half_used = 2 * (self.next_lsn - self.slot.base_lsn) > self.slot.capacity;
        let refuses = self.shared.refuses_records(half_used);
        if refuses {
            let shared = Arc::clone(&self.shared);
            shared.refuse_records(|transaction| drop(self.transactions.remove(&transaction)));
            // It may rest though a checkpoint would make room in the commit log.
            shared.wake_writer(true);
        }
        if self.shared.queue.is_empty() {
            return Ok(Turn::Idle);
        }
        let ring = self.shared.unwritten_bytes.load(Ordering::Relaxed);
        let held_up = self.next_lsn >= self.shared.allowed_lsn.load(Ordering::Acquire);
        if (ring >= self.shared.config.ring_bytes && !refuses) || held_up {
            return Ok(Turn::Blocked);
        }
        if !self.make_room()? {
            // Not even metadata has room: who asks is told, and does not wait for a disk that somebody must see to.
            if refuses {
                self.shared.refuse_all();
            }
            return Ok(Turn::Blocked);
        }
        let mut group = self.begin_group();
        let mut planned = self.plan(&mut group);
        if planned.is_empty() {
            return Ok(Turn::Committed(0));
        }
        let (bytes, previous_crc) = group.finish();
        // Where all that was asked for is there already, nothing is written.
        let written = match bytes.is_empty() {
            true => Ok(()),
            false => self
                .write_only(&bytes)
                .inspect(|()| answer_early(&mut planned))
                .and_then(|()| self.sync_group(bytes.len())),
        };
        if let Err(error) = written {
            self.shared.fail(&error);
            for plan in planned {
                let _ = plan.request.reply.send(self.shared.check_alive().map(|()| Outcome::default()));
            }
            return Err(error);
        }
        self.previous_crc = previous_crc;
        self.noted &= bytes.is_empty();
        let count = planned.len();
        // What is durable and cannot be shown is a defect; going on would hide it.
        self.publish(&bytes, planned).inspect_err(|error| self.shared.fail(error))?;
        Ok(Turn::Committed(count))
    }

    fn begin_group(&self) -> GroupBuffer {
        GroupBuffer::new(self.next_lsn, self.epoch, self.durable_lsn, self.previous_crc)
    }

    /// Sees to it that a whole group fits into the current file, rolling to a free one if needed.
    fn make_room(&mut self) -> Result<bool> {
        let used = self.next_lsn - self.slot.base_lsn;
        let Some(first) = self.shared.queue.pop_if(|_| true) else { return Ok(true) };
        let bound = frame_bound(&first.work, self);
        let largest = self.shared.config.commit_file_bytes.max(self.slot.capacity as usize);
        if bound + GROUP_ALIGN > largest {
            let limit = self.shared.config.request_limit();
            if let Work::Commit { transaction, .. } = first.work {
                self.transactions.remove(&transaction);
            }
            let _ = first.reply.send(Err(Error::invalid(format!("request of {bound} bytes exceeds {limit}"))));
            return Ok(true);
        }
        let last_file = lock(&self.shared.slots).free.is_empty();
        let kept = if last_file { self.kept_for_metadata(&first.work, bound) } else { 0 };
        self.shared.queue.unpop(first);
        if used + (bound + kept) as u64 <= self.slot.capacity {
            return Ok(true);
        }
        let mut pool = lock(&self.shared.slots);
        let Some(mut next) = pool.free.pop() else {
            drop(pool);
            self.abort_blocking_transaction();
            return Ok(false);
        };
        next.base_lsn = self.next_lsn;
        let mut full = std::mem::replace(&mut self.slot, next);
        full.end_lsn = self.next_lsn;
        pool.used.push_back(full);
        drop(pool);
        self.shared.wake_writer(true);
        // The note alone is written here; it shares the first group's sync, and proves nothing by itself.
        let mut group = self.begin_group();
        group.push_note(Note {
            reason: NoteReason::Roll,
            continues_lsn: self.next_lsn,
            continues_crc: self.previous_crc,
        });
        let (bytes, previous_crc) = group.finish();
        // What stands behind it in a recycled file begins with a whole header of another place: known as a leaving.
        if let Err(error) = self.slot.file.write_at(&bytes, 0) {
            let error = Error::from(error).context("write the commit log");
            self.shared.fail(&error);
            return Err(error);
        }
        self.next_lsn += bytes.len() as u64;
        self.previous_crc = previous_crc;
        Ok(true)
    }

    /// What records leave of the last file that there is: where the disk is full, topics can still be deleted. Requests so
    /// large that nothing can be kept beside them go into a file of their own.
    fn kept_for_metadata(&self, work: &Work, bound: usize) -> usize {
        let (capacity, kept) = (self.slot.capacity as usize, self.slot.capacity as usize / 8);
        if work.is_record() && bound + kept + 2 * GROUP_ALIGN <= capacity { kept } else { 0 }
    }

    /// Adds requests to the group while they fit. Requests that are refused are answered here.
    fn plan(&mut self, group: &mut GroupBuffer) -> Vec<Planned> {
        let room = (self.slot.capacity - (self.next_lsn - self.slot.base_lsn)) as usize;
        let limit = room.min(self.shared.config.group_limit());
        let last_file = lock(&self.shared.slots).free.is_empty();
        let mut staging = Staging::new(self.shared.clock.now());
        let mut planned = Vec::new();
        let mut size = 0;
        loop {
            let queue = &self.shared.queue;
            // A metadata record is computed from what is visible: nothing that may change it precedes it in its group.
            let fits = |work: &Work| {
                let first = size == 0;
                let alone = work.is_computed();
                let bound = frame_bound(work, self);
                let kept = if last_file { self.kept_for_metadata(work, bound) } else { 0 };
                size + bound <= if first { room } else { limit.min(room.saturating_sub(kept)) } && (first || !alone)
            };
            let Some(request) = queue.pop_if(fits) else { break };
            size += frame_bound(&request.work, self);
            let ends_group = request.work.is_computed();
            self.plan_one(group, request, &mut staging, &mut planned);
            if ends_group {
                break;
            }
        }
        planned
    }

    fn plan_one(
        &mut self,
        group: &mut GroupBuffer,
        mut request: Request,
        staging: &mut Staging,
        planned: &mut Vec<Planned>,
    ) {
        let early = self.is_answered_early(&request.work);
        let work = std::mem::replace(&mut request.work, Work::Abort { transaction: 0 });
        staging.begin_request();
        let result = match work {
            Work::Append { batches, fence } => self.plan_append(group, batches, fence.as_ref(), staging),
            Work::Stage { transaction, batches } => self.plan_stage(group, transaction, batches, staging),
            Work::Commit { transaction, staged, batches, fence } => {
                self.plan_commit(group, transaction, staged, batches, fence.as_ref(), staging)
            }
            Work::Abort { transaction } => {
                self.transactions.remove(&transaction);
                let _ = request.reply.send(Ok(Outcome::default()));
                return;
            }
            Work::Coordinate { compute, .. } => self.plan_coordinate(group, compute, staging),
            Work::Keyed { table, key, compute, .. } => self.plan_keyed(group, table, key, compute, staging),
        };
        match result {
            Ok((outcome, visible)) => planned.push(Planned { request, outcome, visible, early }),
            Err(error) => {
                staging.roll_back();
                drop(request.reply.send(Err(error)));
            }
        }
    }

    fn plan_append(
        &self,
        group: &mut GroupBuffer,
        batches: Vec<(PartitionId, Bytes)>,
        fence: Option<&Fence>,
        staging: &mut Staging,
    ) -> Result<(Outcome, Vec<Visible>)> {
        self.check_fence(fence)?;
        self.check_batches(&batches)?;
        let places = staging.place(&self.shared, batches)?;
        let (mut outcome, mut placed) = (Outcome::default(), Vec::new());
        let mut append_times = Vec::new();
        for place in places {
            let (base_offset, append_time) = match place {
                Place::New { placed: new, append_time } => {
                    let base_offset = new.base_offset;
                    placed.push(new);
                    (base_offset, append_time)
                }
                Place::Known { base_offset, append_time } => (base_offset, append_time),
            };
            outcome.base_offsets.push(base_offset);
            append_times.push(append_time);
        }
        if append_times.iter().any(|time| *time >= 0) {
            outcome.append_times = append_times;
        }
        // What was written before needs no frame; its answer waits for this group all the same, where it is part of it.
        if placed.is_empty() {
            return Ok((outcome, Vec::new()));
        }
        let place = group.push_batches(Kind::Append, &placed, &[]);
        Ok((outcome, visible_of(&placed, place)))
    }

    /// A change of a transactional id: its record, and at a transaction's end the markers and the offsets it held.
    fn plan_coordinate(
        &self,
        group: &mut GroupBuffer,
        compute: Coordinate,
        staging: &mut Staging,
    ) -> Result<(Outcome, Vec<Visible>)> {
        let change = compute(&self.shared.coordinator(), staging.now)?;
        let kind = change.kind();
        // A partition that was deleted needs no marker, a damaged one takes none: the others must not wait for it.
        let takes_marker = |id| self.shared.partition(id).and_then(|partition| partition.check_writable()).is_ok();
        let batches = change.into_batches(staging.now, takes_marker)?;
        if batches.is_empty() {
            return Ok((Outcome::default(), Vec::new()));
        }
        self.check_batches(&batches)?;
        let placed = staging.place_new(&self.shared, batches)?;
        let place = group.push_batches(kind, &placed, &[]);
        Ok((Outcome::default(), visible_of(&placed, place)))
    }

    fn plan_stage(
        &mut self,
        group: &mut GroupBuffer,
        transaction: u64,
        batches: Vec<(PartitionId, Bytes)>,
        staging: &mut Staging,
    ) -> Result<(Outcome, Vec<Visible>)> {
        self.check_batches(&batches)?;
        // Its offsets are given at the end; the log's own time is that of now, since the bytes do not change any more.
        let batches = staging.stamp(&self.shared, batches)?;
        let limit = self.shared.config.transaction_bytes;
        let bytes: usize = batches.iter().map(|(_, b)| b.len()).sum();
        let touched = self.shared.clock.monotonic();
        let open = self.transactions.get(&transaction).map_or(0, |t| t.bytes);
        if open + bytes > limit {
            return Err(Error::invalid(format!("transaction of more than {limit} bytes")));
        }
        let placed: Vec<_> = batches
            .iter()
            .map(|(partition, bytes)| Placed { partition: *partition, base_offset: 0, bytes: bytes.clone() })
            .collect();
        let place = group.push_batches(Kind::Stage, &placed, &[]);
        let entry =
            self.transactions.entry(transaction).or_insert(Transaction { frames: Vec::new(), bytes: 0, touched });
        entry.frames.push(StagedFrame { lsn: place.lsn, batches });
        entry.bytes += bytes;
        entry.touched = touched;
        Ok((Outcome::default(), Vec::new()))
    }

    fn plan_commit(
        &mut self,
        group: &mut GroupBuffer,
        transaction: u64,
        staged: usize,
        batches: Vec<(PartitionId, Bytes)>,
        fence: Option<&Fence>,
        staging: &mut Staging,
    ) -> Result<(Outcome, Vec<Visible>)> {
        let open = self.transactions.remove(&transaction);
        let frames = open.map(|t| t.frames).unwrap_or_default();
        if frames.len() != staged {
            return Err(Error::conflict("the transaction was aborted: it was open for too long"));
        }
        self.check_fence(fence)?;
        self.check_batches(&batches)?;
        for frame in &frames {
            self.check_batches(&frame.batches)?;
        }
        let (mut entries, mut visible) = (Vec::new(), Vec::new());
        for StagedFrame { lsn, batches } in frames {
            for (index, placed) in staging.place_new(&self.shared, batches)?.into_iter().enumerate() {
                let span = BatchHeader::decode(&placed.bytes)?.last_offset_delta + 1;
                let Placed { partition, base_offset, bytes } = placed;
                entries.push(StagedEntry { stage_lsn: lsn, index: index as u32, partition, base_offset, span });
                let mut bytes = bytes.to_vec();
                patch_base_offset(&mut bytes, base_offset);
                visible.push(Visible::Staged(partition, Bytes::from(bytes)));
            }
        }
        let placed = staging.place_new(&self.shared, batches)?;
        let base_offsets = placed.iter().map(|placed| placed.base_offset).collect();
        let place = group.push_batches(Kind::Commit, &placed, &entries);
        visible.extend(visible_of(&placed, place));
        Ok((Outcome { base_offsets, ..Outcome::default() }, visible))
    }

    fn plan_keyed(
        &self,
        group: &mut GroupBuffer,
        table: Table,
        key: String,
        compute: Compute,
        staging: &mut Staging,
    ) -> Result<(Outcome, Vec<Visible>)> {
        let value = compute(&self.shared.catalog())?;
        let mut builder = BatchBuilder::default();
        let record = Record::new(Bytes::from(key), value.clone().map(Bytes::from));
        builder.push(&record, self.shared.clock.now())?;
        let batches = vec![(table.partition(), builder.finish())];
        let (outcome, visible) = self.plan_append(group, batches, None, staging)?;
        Ok((Outcome { value, ..outcome }, visible))
    }

    fn check_fence(&self, fence: Option<&Fence>) -> Result<()> {
        let Some(Fence { owner, epoch }) = fence else { return Ok(()) };
        let current = self.shared.catalog().writer_epoch(owner);
        if current == *epoch {
            return Ok(());
        }
        Err(Error::conflict(format!("writer {owner:?} of epoch {epoch} is fenced: epoch {current} was opened")))
    }

    fn check_batches(&self, batches: &[(PartitionId, Bytes)]) -> Result<()> {
        for (partition, _) in batches {
            self.shared.partition(*partition)?.check_writable()?;
        }
        Ok(())
    }

    /// Whether all that an append goes to is content with the operating system's word.
    fn is_answered_early(&self, work: &Work) -> bool {
        let relaxed = |id: PartitionId| {
            let partition = self.shared.partition(id);
            partition.is_ok_and(|partition| partition.config().durability != Durability::Commit)
        };
        matches!(work, Work::Append { batches, .. } if batches.iter().all(|(id, _)| relaxed(*id)))
    }

    fn write_group(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_only(bytes)?;
        self.sync_group(bytes.len())
    }

    fn write_only(&self, bytes: &[u8]) -> Result<()> {
        let position = self.next_lsn - self.slot.base_lsn;
        let written = self.slot.file.write_at(bytes, position);
        let ended = written.and_then(|()| self.slot.end_with_zeros(position + bytes.len() as u64));
        ended.map_err(|e| Error::from(e).context("write the commit log"))
    }

    fn sync_group(&mut self, length: usize) -> Result<()> {
        self.slot.file.sync().map_err(|e| Error::from(e).context("fdatasync of the commit log"))?;
        self.next_lsn += length as u64;
        self.durable_lsn = self.next_lsn;
        Ok(())
    }

    /// Makes a durable group visible as a whole, then answers its requests.
    fn publish(&mut self, group: &Bytes, planned: Vec<Planned>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut touched = Vec::new();
        let mut published = shared.published.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for visible in planned.iter().flat_map(|plan| &plan.visible) {
            let (partition, bytes) = match visible {
                Visible::InGroup(partition, range) => (*partition, group.slice(range.clone())),
                Visible::Staged(partition, bytes) => (*partition, bytes.clone()),
            };
            shared.publish_batch(partition, &Batch::trusted(BatchHeader::decode(&bytes)?, bytes))?;
            touched.push(partition);
        }
        published.lsn = self.next_lsn;
        published.oldest_staged_lsn = self.oldest_staged_lsn();
        let wake = {
            let mut writer = lock(&shared.writer);
            let was_clean = writer.dirty.is_empty();
            writer.dirty.extend(touched.iter().copied());
            was_clean
        };
        drop(published);
        for partition in touched.iter().filter_map(|id| shared.partition(*id).ok()) {
            partition.appended.notify_waiters();
        }
        for Planned { request, outcome, .. } in planned {
            let _ = request.reply.send(Ok(outcome));
        }
        let pressed = shared.commit_log_used() > shared.config.commit_log_bytes as u64 / 2
            || shared.unwritten_bytes.load(Ordering::Relaxed) > shared.config.ring_bytes / 4;
        if wake || pressed {
            shared.wake_writer(pressed);
        }
        Ok(())
    }

    /// Writes a note that proves all groups so far, once. Called when nothing came for 100 ms, and at a clean stop.
    pub(super) fn note(&mut self, clean: bool) -> Result<()> {
        self.shared.check_alive()?;
        if self.noted && !clean {
            return Ok(());
        }
        if self.next_lsn - self.slot.base_lsn + 512 > self.slot.capacity {
            // The next file's first frame will prove it; a clean stop is proven by the superblock.
            self.noted = true;
            return Ok(());
        }
        let mut group = self.begin_group();
        group.push_note(Note {
            reason: if clean { NoteReason::Clean } else { NoteReason::Idle },
            continues_lsn: self.next_lsn,
            continues_crc: self.previous_crc,
        });
        let (bytes, previous_crc) = group.finish();
        if let Err(error) = self.write_group(&bytes) {
            self.shared.fail(&error);
            return Err(error);
        }
        self.previous_crc = previous_crc;
        self.noted = true;
        self.shared.published.write().unwrap_or_else(std::sync::PoisonError::into_inner).lsn = self.next_lsn;
        Ok(())
    }

    fn expire_transactions(&mut self) {
        if self.transactions.is_empty() {
            return;
        }
        let now = self.shared.clock.monotonic();
        self.transactions.retain(|_, t| now.saturating_sub(t.touched) < TRANSACTION_TIMEOUT);
    }

    /// When no file is free and a transaction keeps them, the oldest transaction gives way.
    fn abort_blocking_transaction(&mut self) {
        let checkpoint = self.shared.checkpoint_lsn.load(Ordering::Acquire);
        let oldest = self.transactions.iter().min_by_key(|(_, t)| t.frames.first().map(|f| f.lsn));
        let Some((&id, oldest)) = oldest else { return };
        if oldest.frames.first().is_some_and(|frame| frame.lsn <= checkpoint) {
            tracing::warn!(transaction = id, "transaction aborted to free the commit log");
            self.transactions.remove(&id);
            self.release_staged();
        }
    }

    /// Lets checkpoints pass what ended transactions have staged. Only between groups: a commit that is planned but not
    /// yet durable still needs its frames.
    fn release_staged(&self) {
        let oldest = self.oldest_staged_lsn();
        if self.shared.published().oldest_staged_lsn != oldest {
            let mut published = self.shared.published.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            published.oldest_staged_lsn = oldest;
        }
    }

    fn oldest_staged_lsn(&self) -> Option<u64> {
        self.transactions.values().filter_map(|t| t.frames.first()).map(|f| f.lsn).min()
    }
}

/// Answers those who do not wait for the disk. Nobody sees their records yet.
fn answer_early(planned: &mut [Planned]) {
    for plan in planned.iter_mut().filter(|plan| plan.early) {
        // Who is answered hears nothing of the rest.
        let reply = std::mem::replace(&mut plan.request.reply, tokio::sync::oneshot::channel().0);
        let _ = reply.send(Ok(plan.outcome.clone()));
    }
}

/// Upper bound of the bytes a request takes in a group.
fn frame_bound(work: &Work, committer: &Committer) -> usize {
    let staged = match work {
        Work::Commit { transaction, .. } => {
            committer.transactions.get(transaction).map_or(0, |t| t.frames.iter().map(|f| f.batches.len()).sum())
        }
        Work::Coordinate { id, added_bytes, .. } => {
            return committer.shared.coordinator().frame_bound(id.as_deref(), *added_bytes);
        }
        Work::Keyed { key, size_hint, .. } => return GroupBuffer::frame_bound(1, 0, key.len() + size_hint + 256),
        _ => 0,
    };
    GroupBuffer::frame_bound(work.batches().len(), staged, work.payload_bytes())
}

fn visible_of(placed: &[Placed], place: FramePlace) -> Vec<Visible> {
    placed.iter().zip(place.batches).map(|(p, range)| Visible::InGroup(p.partition, range)).collect()
}
