//! What the committer, the segment writer and all readers of one log share.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    catalog::{Catalog, Table, TopicChange},
    compact::Compaction,
    config::Config,
    housekeeping::Bell,
    partition::Partition,
    producers::Census,
    queue::Queue,
    slots::SlotPool,
    transactions::Coordinator,
};
use crate::{
    Error, Result,
    batch::Batch,
    clock::Clock,
    storage::Storage,
    topic::{PartitionId, TopicConfig, TopicInfo},
};

/// A committer that waits for room looks for itself so often, whatever it is told.
const ROOM_PATIENCE: Duration = Duration::from_millis(20);

/// A segment of the log's own topics is sealed at this size: their records are soon superseded, and only what is sealed is
/// compacted.
const INTERNAL_SEGMENT_BYTES: u64 = 1 << 20;

/// The consistent state of all partitions together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    /// Everything below is durable and visible.
    pub(super) lsn: u64,
    /// The first frame of the oldest transaction still open, which replay must not pass.
    pub(super) oldest_staged_lsn: Option<u64>,
}

/// What the segment writer has to do.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    pub(super) dirty: BTreeSet<PartitionId>,
    /// Somebody waits for room in the ring or in the commit log.
    pub(super) urgent: bool,
    /// Files wait for a manifest that no longer lists them.
    pub(super) checkpoint_wanted: bool,
    /// Partitions whose last segment is to be ended, whatever its size.
    pub(super) rolls: BTreeSet<PartitionId>,
    pub(super) closing: bool,
}

/// What is to be removed from the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Doomed {
    /// With all that is in it.
    Folder(PathBuf),
    File(PathBuf),
}

impl Doomed {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) => path,
        }
    }

    /// Removes it. What is gone already is no failure.
    pub(super) fn remove(&self, storage: &dyn Storage) -> std::io::Result<()> {
        let removed = match self {
            Self::Folder(path) => storage.remove_dir(path),
            Self::File(path) => storage.remove(path),
        };
        removed.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
    }
}

pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) data_dir: PathBuf,
    pub(super) log_id: u128,
    pub(super) queue: Queue,
    pub(super) partitions: RwLock<HashMap<PartitionId, Arc<Partition>>>,
    pub(super) catalog: RwLock<Catalog>,
    /// What `_tidemill.producers` says, decoded.
    pub(super) coordinator: RwLock<Coordinator>,
    /// How many producers the partitions know.
    pub(super) producers: Census,
    /// Held for writing while a group becomes visible: a reader that holds it sees all of a group or nothing.
    pub(super) published: RwLock<Published>,
    pub(super) checkpoint_lsn: AtomicU64,
    /// No group begins at or beyond: an open checkpoint raises it as it gets on, so that appends slow down instead of
    /// standing still where the commit log ends.
    pub(super) allowed_lsn: AtomicU64,
    /// Bytes in the tails of all partitions.
    pub(super) ring_bytes: AtomicUsize,
    /// Of these, bytes that no segment holds yet.
    pub(super) unwritten_bytes: AtomicUsize,
    /// Tails in the order of arrival, for eviction.
    pub(super) arrivals: Mutex<VecDeque<(PartitionId, usize)>>,
    pub(super) slots: Mutex<SlotPool>,
    pub(super) writer: Mutex<WriterState>,
    /// Wakes the segment writer.
    pub(super) writer_work: Condvar,
    /// Wakes a committer that waits for room.
    pub(super) room: Condvar,
    /// How often room was made; changes under the lock `writer`.
    pub(super) rooms: AtomicU64,
    /// What nobody needs once a manifest is durable that was begun after it came here.
    pub(super) doomed: Mutex<Vec<Doomed>>,
    /// What no durable manifest lists: housekeeping removes it.
    pub(super) removable: Mutex<Vec<Doomed>>,
    /// While it is not 0, none of these goes.
    pub(super) pins: AtomicUsize,
    /// What a full disk hinders: bits of `full_disk::Hindered`.
    pub(super) disk_full: AtomicU32,
    /// Wakes the housekeeper, and keeps what it has to tell.
    pub(super) bell: Bell,
    pub(super) failure: OnceLock<String>,
    pub(super) failed: tokio::sync::Notify,
    pub(super) next_transaction: AtomicU64,
    pub(super) compaction: Mutex<Compaction>,
    /// Whether all files that a crash left are known, and named.
    pub(super) leftovers_known: AtomicBool,
    pub(super) groups: crate::group::Registry,
}

/// Where a partition's segments are. The id in the name keeps a topic that is made again apart from what is left of the old
/// one.
pub(super) fn partition_folder(data_dir: &Path, id: PartitionId, topic: &str, number: usize) -> PathBuf {
    data_dir.join("topics").join(format!("{:08}", id.0)).join(format!("{topic}-{number}"))
}

/// A lock whose holder panicked protects plain data that each critical section leaves whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn partition(&self, id: PartitionId) -> Result<Arc<Partition>> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.get(&id).cloned().ok_or_else(|| Error::not_found(format!("partition {} does not exist", id.0)))
    }

    pub(super) fn catalog(&self) -> std::sync::RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn coordinator(&self) -> std::sync::RwLockReadGuard<'_, Coordinator> {
        self.coordinator.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn all_partitions(&self) -> Vec<Arc<Partition>> {
        let partitions = self.partitions.read().unwrap_or_else(PoisonError::into_inner);
        partitions.values().cloned().collect()
    }

    pub(super) fn published(&self) -> std::sync::RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the log for good: what waits is answered with an error, nothing is acknowledged any more.
    pub(super) fn fail(&self, error: &Error) {
        let text = format!("the log has stopped: {error}");
        if self.failure.set(text.clone()).is_ok() {
            tracing::error!(error = %error, "log failed");
        }
        self.queue.fail(&text);
        self.failed.notify_waiters();
        self.room.notify_all();
        self.writer_work.notify_all();
    }

    pub(super) fn check_alive(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |text| Err(Error::closed(text.clone())))
    }

    /// Makes one durable batch visible and applies it where it is the log's own metadata. The caller holds
    /// `published` for writing, or is recovery.
    pub(super) fn publish_batch(&self, id: PartitionId, batch: &Batch) -> Result<()> {
        let Ok(partition) = self.partition(id) else { return Ok(()) };
        if partition.state().deleted {
            return Ok(());
        }
        let now_ms = if batch.header().has_producer() { self.clock.now().0 } else { 0 };
        let added = partition.publish(batch.clone(), now_ms);
        if added > 0 {
            self.producers.add(self, &partition, added);
        }
        let size = batch.bytes().len();
        self.ring_bytes.fetch_add(size, Ordering::Relaxed);
        self.unwritten_bytes.fetch_add(size, Ordering::Relaxed);
        lock(&self.arrivals).push_back((id, size));
        let mut catalog = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        let changes = catalog.apply(id, batch)?;
        if id == Table::Producers.partition() {
            self.coordinator.write().unwrap_or_else(PoisonError::into_inner).follow(&catalog, batch)?;
        }
        drop(catalog);
        for change in changes {
            match change {
                TopicChange::Created(info) | TopicChange::Changed(info) => self.add_partitions(&info),
                TopicChange::Deleted(info) => self.remove_partitions(&info),
                TopicChange::LogStart(id, to) => {
                    if let Ok(partition) = self.partition(id) {
                        partition.move_log_start(to);
                    }
                }
            }
        }
        Ok(())
    }

    /// Asks the segment writer to write what there is of a partition and to end its last segment.
    pub(super) fn want_roll(&self, id: PartitionId) {
        lock(&self.writer).rolls.insert(id);
        self.writer_work.notify_one();
    }

    pub(super) fn add_internal_partitions(&self) {
        let segment_bytes = Some(self.config.segment_bytes.min(INTERNAL_SEGMENT_BYTES));
        let config = Arc::new(TopicConfig { segment_bytes, ..TopicConfig::compacted() });
        for table in Table::ALL {
            self.add_partition(&table.topic(), 0, table.partition(), &config);
        }
    }

    /// Makes the partitions of a topic that are not there yet; those that are follow its settings from now on.
    pub(super) fn add_partitions(&self, info: &TopicInfo) {
        let config = Arc::new(info.config.clone());
        for (number, id) in info.partitions.iter().enumerate() {
            self.add_partition(&info.name, number, *id, &config);
        }
    }

    fn add_partition(&self, topic: &str, number: usize, id: PartitionId, config: &Arc<TopicConfig>) {
        let folder = partition_folder(&self.data_dir, id, topic, number);
        let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Partition::new(id, format!("{topic}[{number}]"), folder));
        partitions.entry(id).or_insert_with(make).set_config(Arc::clone(config));
    }

    fn remove_partitions(&self, info: &TopicInfo) {
        let removed: Vec<_> = {
            let mut partitions = self.partitions.write().unwrap_or_else(PoisonError::into_inner);
            info.partitions.iter().filter_map(|id| partitions.remove(id)).collect()
        };
        for partition in removed {
            let mut state = partition.state_mut();
            state.deleted = true;
            state.segments.clear();
            let unwritten: usize = unwritten_of(&state);
            self.unwritten_bytes.fetch_sub(unwritten, Ordering::Relaxed);
            let held: usize = state.tail.iter().map(|b| b.bytes().len()).sum();
            self.ring_bytes.fetch_sub(held, Ordering::Relaxed);
            state.tail.clear();
            self.producers.remove(std::mem::take(&mut state.producers).len());
            drop(state);
            lock(&self.arrivals).retain(|(other, _)| *other != partition.id);
            self.doom(partition.folder.parent().map(|folder| Doomed::Folder(folder.to_path_buf())));
            partition.appended.notify_waiters();
        }
        self.want_checkpoint();
    }

    /// Names what the partitions in memory no longer refer to; it goes after the next checkpoint.
    pub(super) fn doom(&self, what: impl IntoIterator<Item = Doomed>) {
        lock(&self.doomed).extend(what);
    }

    /// Asks the segment writer for a manifest soon, though the commit log may have room for long.
    pub(super) fn want_checkpoint(&self) {
        lock(&self.writer).checkpoint_wanted = true;
        self.writer_work.notify_one();
    }

    /// Forgets the oldest written batches of the tails until the ring is within its budget.
    pub(super) fn evict(&self) {
        let mut arrivals = lock(&self.arrivals);
        while self.ring_bytes.load(Ordering::Relaxed) > self.config.ring_bytes / 2 {
            let Some((id, size)) = arrivals.front().copied() else { break };
            if let Ok(partition) = self.partition(id) {
                let mut state = partition.state_mut();
                let written = state.written_offset;
                if state.tail.front().is_some_and(|batch| batch.header().next_offset() > written) {
                    break;
                }
                // Nothing is there where the topic is deleted at this moment: what it held is accounted for there.
                if state.tail.pop_front().is_some() {
                    self.ring_bytes.fetch_sub(size, Ordering::Relaxed);
                }
            }
            arrivals.pop_front();
        }
    }

    /// Bytes of commit log between the checkpoint and the end.
    pub(super) fn commit_log_used(&self) -> u64 {
        self.published().lsn.saturating_sub(self.checkpoint_lsn.load(Ordering::Acquire))
    }

    /// Tells a committer that waits: there is room in the ring, or the commit log may go on.
    pub(super) fn made_room(&self) {
        let writer = lock(&self.writer);
        self.rooms.fetch_add(1, Ordering::Release);
        drop(writer);
        self.room.notify_all();
    }

    /// Waits until room was made since `rooms` was read, for a moment at most: a failure is also told this way.
    pub(super) fn await_room(&self, rooms: u64) {
        let writer = lock(&self.writer);
        let none_yet = |_: &mut WriterState| self.rooms.load(Ordering::Acquire) == rooms;
        drop(self.room.wait_timeout_while(writer, ROOM_PATIENCE, none_yet));
    }

    pub(super) fn wake_writer(&self, urgent: bool) {
        let mut writer = lock(&self.writer);
        writer.urgent |= urgent;
        drop(writer);
        self.writer_work.notify_one();
    }
}

pub(super) fn unwritten_of(state: &super::partition::State) -> usize {
    let written = state.written_offset;
    state.tail.iter().rev().take_while(|b| b.header().next_offset() > written).map(|b| b.bytes().len()).sum()
}
