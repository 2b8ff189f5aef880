//! The embedded log: one commit log that makes every append durable, segments written behind it, recovery.
//!
//! | module | what it does |
//! |---|---|
//! | `frame` | the grammar of the commit log |
//! | `slots` | its files |
//! | `queue`, `commit` | requests, and the committer that makes groups of them durable and visible |
//! | `producers`, `transactions` | idempotent producers, and transactions of Kafka's protocol |
//! | `staging` | what a group has planned: offsets, and what producers have sent |
//! | `committed` | reading what is committed |
//! | `partition`, `segment`, `index` | one partition's records in memory and on disk |
//! | `write_behind`, `checkpoint` | records into segments, and these made durable, a little at a time |
//! | `compact`, `key_map` | sealed segments written anew with the newest record of each key |
//! | `manifest`, `superblock` | what a checkpoint leaves |
//! | `recovery` | what a crash left, made whole |
//! | `full_disk` | how a full disk is weathered |
//! | `housekeeping` | what is done every so often, apart from all of these |
//! | `books` | what coordinators keep in the log's own topics |
//! | `catalog` | topics, positions, writers and schemas: the log's own topics in memory |
//! | `leftovers` | what a crash left in the folders |
//! | `retention` | which segments go, which ones end |
//! | `times` | reads by time |
//! | `threads` | the three threads that drive it all |
//!
//! This level speaks batches. What speaks records, and may one day be another machine's log, is [`crate::log::Log`].

mod backup;
mod books;
mod catalog;
mod checkpoint;
mod commit;
mod committed;
mod compact;
mod config;
mod frame;
mod full_disk;
mod housekeeping;
mod index;
pub mod inspect;
mod key_map;
mod leftovers;
mod manifest;
mod partition;
mod producers;
mod queue;
mod recovery;
mod retention;
mod segment;
mod shared;
mod slots;
mod staging;
mod superblock;
mod threads;
mod times;
mod transactions;
mod write_behind;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use backup::BackupReport;
pub(crate) use books::{Books, Places};
pub use catalog::{Entry, Table};
pub use commit::Turn;
pub use committed::{Aborted, AbortedBatches, Committed};
pub use compact::Compaction;
pub use config::{Config, ProducerLimits};
pub use housekeeping::ChoreFailures;
pub use partition::Damage;
pub use producers::ProducerInfo;
pub use queue::{Fence, Outcome};
pub use recovery::RecoveryReport;
pub use threads::Stepper;
pub use transactions::{Produced, ProducerIdentity, ProducerStats, TransactionInfo, TransactionState};

use self::{
    catalog::{Catalog, position_key},
    housekeeping::Bell,
    manifest::Manifest,
    partition::{Partition, State},
    producers::{Census, Producers},
    queue::{Queue, Work},
    segment::Segment,
    shared::{Published, Shared, WriterState, lock},
    slots::SlotPool,
    superblock::SuperblockFile,
    transactions::Coordinator,
};
use crate::{
    Error, ErrorKind, Reason, Result,
    batch::Batch,
    clock::Clock,
    storage::Storage,
    topic::{self, PartitionId, TopicConfig, TopicInfo, TopicSpec},
};

/// The version of the data directory's format that this program writes.
pub const FORMAT_VERSION: u32 = 1;
const PERMIT_BYTES: usize = 1024;
/// Most partitions of one topic.
const MAX_PARTITIONS: u32 = 1000;

/// Bounds of a partition: visible records have offsets in `[log_start_offset, durable_offset)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// First offset that is kept.
    pub log_start_offset: i64,
    /// First offset that is not yet durable.
    pub durable_offset: i64,
    /// First offset of the oldest transaction of Kafka's protocol that is still open, or `durable_offset`: records that
    /// count, and are known to, end here.
    pub last_stable_offset: i64,
}

/// An open log in a data directory that this process owns.
pub struct Engine {
    shared: Arc<Shared>,
    permits: Semaphore,
    /// Producer ids that are this process's to give.
    producer_ids: tokio::sync::Mutex<std::ops::Range<i64>>,
    report: RecoveryReport,
    threads: Mutex<Option<threads::Threads>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("data_dir", &self.shared.data_dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the log in `data_dir`, making it where there is none, and starts its three threads.
    ///
    /// # Errors
    /// `Unsupported` for a newer format, `Corrupt` where superblock or manifest are damaged, `Unavailable` for I/O.
    pub fn open(data_dir: &Path, config: Config, storage: Arc<dyn Storage>, clock: Arc<dyn Clock>) -> Result<Self> {
        let (engine, stepper) = Self::open_stepped(data_dir, config, storage, clock)?;
        *lock(&engine.threads) = Some(threads::Threads::start(stepper)?);
        Ok(engine)
    }

    /// Opens the log without threads: nothing moves but by the [`Stepper`]. This is how simulations drive it.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_stepped(
        data_dir: &Path,
        config: Config,
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Stepper)> {
        config.validate()?;
        prepare_folder(&*storage, data_dir)?;
        let mut superblock = SuperblockFile::open(&*storage, &data_dir.join("superblock"))?;
        let manifest = match superblock.current().manifest {
            0 => Manifest::empty(),
            number => Manifest::read(&*storage, &manifest::path(data_dir, number))?,
        };
        let permits = Semaphore::new((config.queue_bytes / PERMIT_BYTES).max(1));
        let shared = Arc::new(new_shared(data_dir, config, storage, clock, superblock.current().log_id));
        load_manifest(&shared, manifest)?;
        let (committer, report) = recovery::recover(&shared, &mut superblock)?;
        for (lsn, what) in &report.damage {
            tracing::error!(lsn, what, "commit log is damaged");
        }
        if let Some((lsn, bytes)) = report.cut {
            tracing::warn!(lsn, bytes, "unfinished end of the commit log cut");
        }
        let writer = write_behind::SegmentWriter::new(Arc::clone(&shared), superblock);
        let stepper = Stepper::new(committer, writer);
        let producer_ids = tokio::sync::Mutex::new(0..0);
        let engine = Self { shared, permits, producer_ids, report, threads: Mutex::new(None) };
        crate::group::clamp(&engine);
        Ok((engine, stepper))
    }

    /// What recovery found when the log was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    /// The log's identity, 32 hexadecimal digits, chosen at its creation.
    pub fn log_id(&self) -> String {
        format!("{:032x}", self.shared.log_id)
    }

    /// The clock that stamps this log's records.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Settings in force.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// All topics, the internal ones included, by name.
    pub fn topics(&self) -> Vec<TopicInfo> {
        let internal = Table::ALL.into_iter().map(|table| TopicInfo {
            name: table.topic(),
            id: format!("{:032x}", table.partition().0),
            partitions: vec![table.partition()],
            created_ms: 0,
            config: TopicConfig::compacted(),
        });
        internal.chain(self.shared.catalog().topics()).collect()
    }

    /// One topic.
    ///
    /// # Errors
    /// `NotFound` names it.
    pub fn topic(&self, name: &str) -> Result<TopicInfo> {
        if let Some(info) = self.shared.catalog().topic(name) {
            return Ok(info);
        }
        let internal = self.topics().into_iter().find(|info| info.name == name);
        internal.ok_or_else(|| Error::not_found(format!("topic {name:?} does not exist")))
    }

    /// Makes a topic; durable when it returns.
    ///
    /// # Errors
    /// `Invalid` for its name or number of partitions, `Denied` for an internal name, `Conflict` where it exists.
    pub async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<TopicInfo> {
        topic::validate_name(name)?;
        deny_internal(name)?;
        let (count, config) = (check_count(spec.partitions)?, spec.config.clone());
        config.validate()?;
        let id = format!("{:032x}", self.shared.storage.random()?);
        let created_ms = self.shared.clock.now().0;
        let key = name.to_owned();
        let compute = move |catalog: &Catalog| {
            if catalog.topic(&key).is_some() {
                return Err(Error::conflict(format!("topic {key:?} exists")));
            }
            let partitions = (0..count).map(|i| PartitionId(catalog.next_partition + i)).collect();
            encode(&TopicInfo { name: key, id, partitions, created_ms, config }).map(Some)
        };
        self.submit_keyed(Table::Topics, name, topic_bytes(count), compute).await?;
        self.topic(name)
    }

    /// Changes a topic's settings; in force and durable when it returns. `change` is called once, with those of that
    /// moment.
    ///
    /// # Errors
    /// `NotFound`, `Denied` for an internal topic; `Invalid` for settings that contradict each other, or as `change` says.
    pub async fn alter_topic(
        &self,
        name: &str,
        change: impl FnOnce(&mut TopicConfig) -> Result<()> + Send + 'static,
    ) -> Result<TopicInfo> {
        let alter = move |info: &mut TopicInfo, _: u32| {
            change(&mut info.config)?;
            info.config.validate()
        };
        self.replace_topic(name, alter).await
    }

    /// Adds partitions until the topic has `count`. Keys are dealt to other partitions from then on.
    ///
    /// # Errors
    /// `NotFound`, `Denied` for an internal topic; `Invalid` for more than a topic may have, or fewer than it has.
    pub async fn add_partitions(&self, name: &str, count: u32) -> Result<TopicInfo> {
        check_count(count)?;
        let grow = move |info: &mut TopicInfo, next_partition: u32| {
            let present = info.partitions.len() as u32;
            if count < present {
                return Err(Error::invalid(format!(
                    "{:?} has {present} partitions, which cannot become fewer",
                    info.name
                )));
            }
            info.partitions.extend((0..count - present).map(|i| PartitionId(next_partition + i)));
            Ok(())
        };
        self.replace_topic(name, grow).await
    }

    async fn replace_topic(
        &self,
        name: &str,
        change: impl FnOnce(&mut TopicInfo, u32) -> Result<()> + Send + 'static,
    ) -> Result<TopicInfo> {
        deny_internal(name)?;
        let key = name.to_owned();
        let compute = move |catalog: &Catalog| {
            let found = catalog.topic(&key);
            let mut info = found.ok_or_else(|| Error::not_found(format!("topic {key:?} does not exist")))?;
            change(&mut info, catalog.next_partition)?;
            encode(&info).map(Some)
        };
        self.submit_keyed(Table::Topics, name, topic_bytes(MAX_PARTITIONS), compute).await?;
        self.topic(name)
    }

    /// Deletes a topic and its records; its name is free when this returns, its disk space some seconds later.
    ///
    /// # Errors
    /// `NotFound`, or `Denied` for an internal topic.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        deny_internal(name)?;
        let key = name.to_owned();
        let compute = move |catalog: &Catalog| match catalog.topic(&key) {
            Some(_) => Ok(None),
            None => Err(Error::not_found(format!("topic {key:?} does not exist"))),
        };
        self.submit_keyed(Table::Topics, name, 0, compute).await.map(drop)
    }

    /// A copy of an internal table: the newest record of each key.
    pub fn table(&self, table: Table) -> BTreeMap<String, Entry> {
        self.shared.catalog().table(table).clone()
    }

    /// Writes one record of an internal table if its present version is `expected` (`None`: absent), and returns its
    /// new one.
    ///
    /// # Errors
    /// `Conflict` where somebody was faster; `Denied` for a table that has calls of its own.
    pub async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        if table == Table::Producers {
            let text = format!("{} is written by the calls of producers", table.topic());
            return Err(Error::new(ErrorKind::Denied, text));
        }
        let name = key.to_owned();
        let size = value.as_ref().map_or(0, String::len);
        let compute = move |catalog: &Catalog| {
            let found = catalog.table(table).get(&name).map(|entry| entry.version);
            if found == expected {
                return Ok(value);
            }
            Err(Error::conflict(format!("{} {name:?} is at version {found:?}, not {expected:?}", table.topic())))
        };
        let outcome = self.submit_keyed(table, key, size, compute).await?;
        let version = outcome.base_offsets.first().copied();
        version.ok_or_else(|| Error::internal("a record without an offset"))
    }

    /// Opens a fenced writer: from now on what an earlier one of the same owner writes is refused.
    ///
    /// # Errors
    /// Those of an append.
    pub async fn open_writer(&self, owner: &str) -> Result<Fence> {
        let key = owner.to_owned();
        let compute = move |catalog: &Catalog| Ok(Some((catalog.writer_epoch(&key) + 1).to_string()));
        let outcome = self.submit_keyed(Table::Writers, owner, 32, compute).await?;
        let epoch = outcome.value.and_then(|value| value.parse().ok());
        let epoch = epoch.ok_or_else(|| Error::internal("writer epoch was not written"))?;
        Ok(Fence { owner: owner.to_owned(), epoch })
    }

    /// The positions that an owner has stored, by name.
    pub fn positions(&self, owner: &str) -> BTreeMap<String, String> {
        let prefix = position_key(owner, "");
        let prefix = String::from_utf8_lossy(&prefix).into_owned();
        let catalog = self.shared.catalog();
        let range = catalog.table(Table::Positions).range(prefix.clone()..);
        let own = range.take_while(|(key, _)| key.starts_with(&prefix));
        own.map(|(key, entry)| (key[prefix.len()..].to_owned(), entry.value.clone())).collect()
    }

    /// The record key of an owner's position.
    pub fn position_key(owner: &str, name: &str) -> Bytes {
        position_key(owner, name)
    }

    /// Appends batches; they are durable and visible, all together, when this returns.
    ///
    /// # Errors
    /// `Invalid` for a malformed or too large request, `NotFound`, `Corrupt` for a read-only partition, `Conflict` for
    /// a fenced writer, `Closed` once the log has stopped.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the append happens.
    pub async fn append(&self, batches: Vec<(PartitionId, Bytes)>, fence: Option<Fence>) -> Result<Outcome> {
        self.submit(Work::Append { batches, fence }).await
    }

    /// A new transaction's number. It takes no resources before something is staged.
    pub fn begin_transaction(&self) -> u64 {
        self.shared.next_transaction.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Writes batches of an open transaction; nobody sees them before the commit.
    ///
    /// # Errors
    /// As [`Engine::append`]; `Invalid` beyond `transaction_bytes`.
    pub async fn stage(&self, transaction: u64, batches: Vec<(PartitionId, Bytes)>) -> Result<()> {
        self.submit(Work::Stage { transaction, batches }).await.map(drop)
    }

    /// Ends a transaction of `staged` stage calls with its last batches.
    ///
    /// # Errors
    /// As [`Engine::append`]; `Conflict` where the transaction was aborted meanwhile.
    pub async fn commit(
        &self,
        transaction: u64,
        staged: usize,
        batches: Vec<(PartitionId, Bytes)>,
        fence: Option<Fence>,
    ) -> Result<Outcome> {
        self.submit(Work::Commit { transaction, staged, batches, fence }).await
    }

    /// Drops what a transaction has staged. Does not wait.
    pub fn abort(&self, transaction: u64) {
        drop(self.shared.queue.push(Work::Abort { transaction }));
    }

    async fn submit_keyed(
        &self,
        table: Table,
        key: &str,
        size_hint: usize,
        compute: impl FnOnce(&Catalog) -> Result<Option<String>> + Send + 'static,
    ) -> Result<Outcome> {
        if size_hint + key.len() > self.shared.config.request_limit() {
            return Err(Error::invalid(format!("metadata record of {size_hint} bytes is too large")));
        }
        let key = key.to_owned();
        self.submit(Work::Keyed { table, key, size_hint, compute: Box::new(compute) }).await
    }

    async fn submit(&self, work: Work) -> Result<Outcome> {
        self.check(&work)?;
        let permit = self.permits.acquire_many(self.permits_of(&work)).await;
        let _permit = permit.map_err(|_| Error::closed("the log was closed"))?;
        let answer = self.shared.queue.push(work);
        answer.await.map_err(|_| Error::closed("the log has stopped"))?
    }

    /// What a request takes of the queue's bytes.
    fn permits_of(&self, work: &Work) -> u32 {
        let all = self.shared.config.queue_bytes / PERMIT_BYTES;
        (work.payload_bytes() / PERMIT_BYTES + 1).min(all.max(1)) as u32
    }

    /// Puts an append into the queue without waiting for room or answer; for simulations.
    #[doc(hidden)]
    pub fn enqueue(
        &self,
        batches: Vec<(PartitionId, Bytes)>,
    ) -> Result<tokio::sync::oneshot::Receiver<Result<Outcome>>> {
        let work = Work::Append { batches, fence: None };
        self.check(&work)?;
        Ok(self.shared.queue.push(work))
    }

    fn check(&self, work: &Work) -> Result<()> {
        let limit = self.shared.config.request_limit();
        let size = work.payload_bytes();
        if size > limit {
            return Err(Error::invalid(format!("request of {size} bytes exceeds {limit}")));
        }
        for (partition, bytes) in work.batches() {
            self.check_size(*partition, bytes.len())?;
            let batch = Batch::parse(bytes).map_err(|e| Error::invalid(e.message().to_owned()))?;
            if batch.bytes().len() != bytes.len() {
                return Err(Error::invalid("batch length differs from its header"));
            }
            if batch.header().is_control() {
                return Err(Error::invalid("control batches are the log's own"));
            }
            if batch.header().has_producer() && !matches!(work, Work::Append { .. }) {
                return Err(Error::invalid("a batch of a transaction of the log's own has no producer id"));
            }
            Catalog::check(*partition, &batch)?;
            self.check_compacted(*partition, &batch)?;
        }
        Ok(())
    }

    /// What compaction relies on: keys, where they can be read, and that nobody else decides when tombstones go.
    fn check_compacted(&self, id: PartitionId, batch: &Batch) -> Result<()> {
        if batch.header().delete_horizon().is_some() {
            return Err(Error::invalid("attribute bit 6, the delete horizon, is the log's own"));
        }
        let Ok(partition) = self.shared.partition(id) else { return Ok(()) };
        if !partition.config().cleanup.compacts() || batch.header().is_compressed() {
            return Ok(());
        }
        for (number, record) in batch.records().enumerate() {
            let record = record.map_err(|e| Error::invalid(e.message().to_owned()))?;
            if record.key.is_none() {
                return Err(Error::invalid(format!(
                    "record {number} of the batch has no key, and {} is compacted by key (cleanup.policy)",
                    partition.name
                ))
                .with_reason(Reason::InvalidRecord));
            }
        }
        Ok(())
    }

    /// A topic may take smaller batches than the log does.
    fn check_size(&self, id: PartitionId, size: usize) -> Result<()> {
        let Ok(partition) = self.shared.partition(id) else { return Ok(()) };
        match partition.config().max_batch_bytes {
            Some(limit) if size as u64 > limit => Err(Error::invalid(format!(
                "batch of {size} bytes exceeds max.message.bytes of {}, which is {limit}",
                partition.name
            ))
            .with_reason(Reason::BatchTooLarge)),
            _ => Ok(()),
        }
    }

    /// Bounds of several partitions at one moment: no transaction is in some of them and not in others.
    ///
    /// # Errors
    /// `NotFound` for a partition that does not exist.
    pub fn cut(&self, partitions: &[PartitionId]) -> Result<Vec<Bounds>> {
        let _consistent = self.shared.published();
        let bounds = |id: &PartitionId| {
            let partition = self.shared.partition(*id)?;
            let state = partition.state();
            Ok(Bounds {
                log_start_offset: state.log_start_offset,
                durable_offset: state.durable_offset,
                last_stable_offset: state.last_stable_offset(),
            })
        };
        partitions.iter().map(bounds).collect()
    }

    /// Reads whole batches from the one that holds `offset` on, at least one where there is any below `end`, and the
    /// offset to go on from. Reads the disk where the records are no longer in memory.
    ///
    /// # Errors
    /// `Invalid` for an offset out of range, `Corrupt` where records are damaged.
    pub fn read(&self, id: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<(Vec<Batch>, i64)> {
        self.shared.partition(id)?.read(&*self.shared.storage, offset, max_bytes, end)
    }

    /// Waits until records at or after `offset` are visible, or the time is over.
    ///
    /// # Errors
    /// `NotFound` where the partition does not exist or is deleted meanwhile, `Closed` once the log has stopped.
    pub async fn wait_for(&self, id: PartitionId, offset: i64, time: Duration) -> Result<()> {
        self.wait_until(id, time, |state| state.durable_offset > offset).await
    }

    async fn wait_until(&self, id: PartitionId, time: Duration, there: impl Fn(&State) -> bool) -> Result<()> {
        let partition: Arc<Partition> = self.shared.partition(id)?;
        let visible = async {
            loop {
                let appended = partition.appended.notified();
                let failed = self.shared.failed.notified();
                tokio::pin!(appended, failed);
                appended.as_mut().enable();
                failed.as_mut().enable();
                self.shared.check_alive()?;
                let (deleted, there) = {
                    let state = partition.state();
                    (state.deleted, there(&state))
                };
                if deleted {
                    return Err(Error::not_found(format!("{} was deleted", partition.name)));
                }
                if there {
                    return Ok(());
                }
                tokio::select! { () = appended => {}, () = failed => {} }
            }
        };
        tokio::time::timeout(time, visible).await.unwrap_or(Ok(()))
    }

    /// Partitions with lost or doubtful records: they are read-only.
    pub fn damage(&self) -> Vec<(String, Damage)> {
        let partitions = self.shared.partitions.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = partitions
            .values()
            .flat_map(|p| p.state().damage.iter().map(|d| (p.name.clone(), d.clone())).collect::<Vec<_>>())
            .collect();
        all.sort_by(|a, b| (&a.0, a.1.from).cmp(&(&b.0, b.1.from)));
        all
    }

    /// How each chore of housekeeping has fared, by its name. A failure there harms no append: it is tried again.
    pub fn housekeeping(&self) -> BTreeMap<&'static str, ChoreFailures> {
        self.shared.bell.failures()
    }

    /// What compaction has done since the log was opened.
    pub fn compaction(&self) -> Compaction {
        lock(&self.shared.compaction).clone()
    }

    /// Whether the disk was full when the log last wrote what it has in memory, or its metadata. Records are refused as
    /// `Unavailable` once little room is left elsewhere; the log goes on by itself when there is room.
    pub fn is_disk_full(&self) -> bool {
        self.shared.disk_full.load(std::sync::atomic::Ordering::Acquire) != 0
    }

    /// Waits until the log stops because of a failure, and returns it.
    pub async fn failure(&self) -> Error {
        loop {
            let failed = self.shared.failed.notified();
            tokio::pin!(failed);
            failed.as_mut().enable();
            if let Err(error) = self.shared.check_alive() {
                return error;
            }
            failed.await;
        }
    }

    /// Closes the log in order: what is queued is made durable, a checkpoint is made, the threads end.
    ///
    /// # Errors
    /// Those of the last writes. Nothing acknowledged is lost by them.
    pub fn close(&self) -> Result<()> {
        self.permits.close();
        self.shared.queue.close();
        match lock(&self.threads).take() {
            Some(threads) => threads.join(),
            None => Ok(()),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = %error, "log did not close in order");
        }
    }
}

fn check_count(partitions: u32) -> Result<u32> {
    match (1..=MAX_PARTITIONS).contains(&partitions) {
        true => Ok(partitions),
        false => Err(Error::invalid(format!("{partitions} partitions is not in 1..{MAX_PARTITIONS}"))),
    }
}

/// Upper bound of a topic's record.
fn topic_bytes(partitions: u32) -> usize {
    2048 + 12 * partitions as usize
}

fn deny_internal(name: &str) -> Result<()> {
    match name.starts_with(topic::INTERNAL_PREFIX) {
        true => {
            Err(Error::new(ErrorKind::Denied, format!("topics named {}* are the log's own", topic::INTERNAL_PREFIX)))
        }
        false => Ok(()),
    }
}

fn encode<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal("encode metadata").with_source(e))
}

/// Makes the folders and files of a new log, or checks those that are there.
fn prepare_folder(storage: &dyn Storage, data_dir: &Path) -> Result<()> {
    let named = |e: std::io::Error| Error::from(e).context(format!("data directory {}", data_dir.display()));
    storage.create_dir(&data_dir.join("commitlog")).map_err(named)?;
    storage.create_dir(&data_dir.join("topics")).map_err(named)?;
    let path = data_dir.join("VERSION");
    match storage.read(&path) {
        Ok(content) => return check_version(&content, data_dir),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(error)),
    }
    if !storage.list(&data_dir.join("commitlog")).map_err(named)?.is_empty() {
        return Err(Error::corrupt(format!("{} has a commit log but no VERSION", data_dir.display())));
    }
    sync_ancestors(storage, data_dir).map_err(named)?;
    // VERSION comes last: a crash before it leaves nothing that anybody relies on.
    SuperblockFile::create(storage, &data_dir.join("superblock"), storage.random().map_err(named)?)?;
    storage.sync_dir(data_dir).map_err(named)?;
    storage.write_atomically(&path, format!("tidemill {FORMAT_VERSION}\n").as_bytes()).map_err(named)
}

/// Makes the names of the folders above durable: this process, or one that crashed, may just have made them.
fn sync_ancestors(storage: &dyn Storage, data_dir: &Path) -> std::io::Result<()> {
    for (i, folder) in data_dir.ancestors().skip(1).enumerate() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match storage.sync_dir(folder) {
            Ok(()) => {}
            // A folder that one may pass but not read was there before.
            Err(error) if i > 0 || error.kind() == std::io::ErrorKind::PermissionDenied => {
                tracing::debug!(folder = %folder.display(), error = %error, "folder above the log not synced");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn check_version(content: &[u8], data_dir: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(content);
    let version = text.trim().strip_prefix("tidemill ").and_then(|number| number.parse::<u32>().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(()),
        Some(other) => Err(Error::unsupported(format!(
            "{} has format {other}, this program reads {FORMAT_VERSION}",
            data_dir.display()
        ))),
        None => Err(Error::corrupt(format!("{}: VERSION is unreadable", data_dir.display()))),
    }
}

fn new_shared(
    data_dir: &Path,
    config: Config,
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    log_id: u128,
) -> Shared {
    Shared {
        config,
        storage,
        clock,
        data_dir: PathBuf::from(data_dir),
        log_id,
        queue: Queue::default(),
        partitions: RwLock::new(HashMap::new()),
        catalog: RwLock::new(Catalog::new()),
        coordinator: RwLock::default(),
        producers: Census::default(),
        published: RwLock::new(Published { lsn: 0, oldest_staged_lsn: None }),
        checkpoint_lsn: AtomicU64::new(0),
        allowed_lsn: AtomicU64::new(u64::MAX),
        ring_bytes: Default::default(),
        unwritten_bytes: Default::default(),
        arrivals: Mutex::default(),
        slots: Mutex::new(SlotPool { used: Default::default(), free: Vec::new(), count: 0, next_number: 0 }),
        writer: Mutex::new(WriterState::default()),
        writer_work: Condvar::new(),
        room: Condvar::new(),
        rooms: AtomicU64::new(0),
        doomed: Mutex::default(),
        removable: Mutex::default(),
        pins: Default::default(),
        disk_full: Default::default(),
        bell: Bell::default(),
        failure: OnceLock::new(),
        failed: tokio::sync::Notify::new(),
        next_transaction: AtomicU64::new(1),
        compaction: Mutex::default(),
        leftovers_known: Default::default(),
        groups: crate::group::Registry::default(),
    }
}

/// Sets up partitions and catalog as of the last checkpoint.
fn load_manifest(shared: &Shared, manifest: Manifest) -> Result<()> {
    shared.add_internal_partitions();
    for info in manifest.catalog.topics() {
        shared.add_partitions(&info);
    }
    let starts = manifest.catalog.log_starts();
    *shared.coordinator.write().unwrap_or_else(PoisonError::into_inner) = Coordinator::of(&manifest.catalog)?;
    *shared.catalog.write().unwrap_or_else(PoisonError::into_inner) = manifest.catalog;
    for entry in manifest.partitions {
        let Ok(partition) = shared.partition(entry.id) else { continue };
        let mut state = partition.state_mut();
        state.log_start_offset = entry.log_start_offset;
        state.written_offset = entry.written_offset;
        state.synced_offset = entry.written_offset;
        let holes = entry.damage.iter().filter_map(|d| d.to).max().unwrap_or(0);
        state.durable_offset = entry.written_offset.max(holes);
        let listed = |entry| Arc::new(Segment::listed(&partition.folder, entry, shared.clock.now().0));
        state.segments = entry.segments.into_iter().map(listed).collect();
        state.compacted = entry.compacted;
        state.damage = entry.damage;
        if let Some(snapshot) = entry.producers {
            state.producers = Producers::restore(snapshot);
            shared.producers.known.fetch_add(state.producers.len(), std::sync::atomic::Ordering::Relaxed);
        }
    }
    // The catalog may be newer than the partitions.
    for (id, start) in starts {
        if let Ok(partition) = shared.partition(id) {
            partition.move_log_start(start);
        }
    }
    Ok(())
}
