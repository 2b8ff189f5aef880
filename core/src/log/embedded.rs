//! The seam over the engine in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    AllowAll, Appended, Bounds, Caller, Chunk, Entry, FetchOptions, Gate, GroupOffset, Lease, Log, Member,
    MemberOptions, Session, Table, Topic, TopicChange, Writer, gate,
};
use super::{
    local_member::{self, LocalMember, Plan},
    member::Kept,
};
use crate::{
    Error, Result,
    batch::{Batch, BatchBuilder},
    engine::{Engine, Fence},
    group::Groups,
    record::{Record, Timestamp},
    topic::{PartitionId, TopicConfig, TopicInfo, TopicPartition, TopicSpec},
};

/// Bytes of records a transaction gathers before they are staged.
const STAGE_BYTES: usize = 1 << 20;

/// What the names of leases begin with, as groups and as topics.
const LEASES: &str = "_tidemill.leases.";

/// The log in this process.
#[derive(Clone)]
pub struct Embedded {
    engine: Arc<Engine>,
    gate: Arc<dyn Gate>,
}

impl Embedded {
    /// The seam over an open engine; everybody may do everything.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self::with_gate(engine, Arc::new(AllowAll))
    }

    /// The seam over an open engine, behind a gate.
    pub fn with_gate(engine: Arc<Engine>, gate: Arc<dyn Gate>) -> Self {
        Self { engine, gate }
    }

    /// The engine, for what speaks batches.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

#[async_trait]
impl Log for Embedded {
    async fn session(&self, caller: Caller) -> Result<Arc<dyn Session>> {
        let session = EmbeddedSession { engine: Arc::clone(&self.engine), client_id: caller.client_id.clone() };
        Ok(gate::guarded(Arc::new(session), Arc::clone(&self.gate), caller))
    }
}

#[derive(Clone)]
struct EmbeddedSession {
    engine: Arc<Engine>,
    /// What members are called.
    client_id: String,
}

impl EmbeddedSession {
    fn partition(&self, of: &TopicPartition) -> Result<PartitionId> {
        let info = self.engine.topic(&of.topic)?;
        let id = info.partitions.get(of.partition as usize).copied();
        id.ok_or_else(|| Error::not_found(format!("{of} does not exist: the topic has {}", info.partitions.len())))
    }

    fn too_large(&self, size: usize) -> Result<()> {
        let limit = self.engine.config().record_limit();
        if size <= limit {
            return Ok(());
        }
        Err(Error::invalid(format!("record of {size} bytes exceeds {limit}")))
    }

    fn read(&self, id: PartitionId, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        let end = options.end.unwrap_or(i64::MAX);
        let (batches, next_offset) = self.engine.read_shown(id, offset, options.max_bytes, end)?;
        let mut chunk = Chunk { records: Vec::new(), next_offset };
        for batch in &batches {
            take_records(batch, offset, end, &mut chunk)?;
        }
        Ok(chunk)
    }
}

/// A batch may begin before the offset asked for, and end after the bound.
fn take_records(batch: &Batch, offset: i64, end: i64, chunk: &mut Chunk) -> Result<()> {
    for record in batch.records() {
        let record = record?;
        if (offset..end).contains(&record.offset) {
            chunk.records.push(record.to_owned_in(batch.bytes())?);
        }
    }
    Ok(())
}

fn shown(info: TopicInfo) -> Topic {
    Topic { partitions: info.partitions.len() as u32, name: info.name, id: info.id }
}

#[async_trait]
impl Session for EmbeddedSession {
    fn log_id(&self) -> String {
        self.engine.log_id()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        Ok(self.engine.topics().into_iter().map(shown).collect())
    }

    async fn topic(&self, name: &str) -> Result<Option<Topic>> {
        Ok(self.engine.topic(name).ok().map(shown))
    }

    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic> {
        self.engine.create_topic(name, spec).await.map(shown)
    }

    async fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.engine.topic(name).map(|info| info.config)
    }

    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()> {
        let settings = change.settings.clone();
        let alter = move |config: &mut TopicConfig| {
            settings.iter().try_for_each(|(name, value)| match value {
                Some(value) => config.set(name, value),
                None => config.unset(name),
            })
        };
        self.engine.alter_topic(name, alter).await?;
        if let Some(count) = change.partitions {
            self.engine.add_partitions(name, count).await?;
        }
        Ok(())
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.engine.delete_topic(name).await
    }

    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended> {
        let id = self.partition(to)?;
        let now = self.engine.clock().now();
        let (mut first, mut last) = (None, 0);
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let mut builder = BatchBuilder::default();
            while let Some(record) =
                records.next_if(|r| builder.is_empty() || builder.size_bytes() + r.size_bytes() < STAGE_BYTES)
            {
                self.too_large(record.size_bytes())?;
                builder.push(&record, now)?;
            }
            let batch = builder.finish();
            let span = i64::from(crate::batch::BatchHeader::decode(&batch)?.last_offset_delta);
            let outcome = self.engine.append(vec![(id, batch)], None).await?;
            let base = *outcome.base_offsets.first().ok_or_else(|| Error::internal("append without an offset"))?;
            first.get_or_insert(base);
            last = base + span;
        }
        let first_offset = first.ok_or_else(|| Error::invalid("an append needs a record"))?;
        Ok(Appended { first_offset, last_offset: last })
    }

    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        let id = self.partition(from)?;
        let bounds = self.engine.cut(&[id])?;
        if bounds.first().is_some_and(|b| (b.last_stable_offset..=b.durable_offset).contains(&offset))
            && !options.max_wait.is_zero()
        {
            self.engine.wait_for_committed(id, offset, options.max_wait).await?;
        }
        // Records no longer in memory are read from disk: that must not hold up the runtime.
        let (this, options) = (self.clone(), *options);
        let read = tokio::task::spawn_blocking(move || this.read(id, offset, &options));
        read.await.map_err(|e| Error::internal("fetch").with_source(e))?
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>> {
        let ids: Vec<_> = partitions.iter().map(|p| self.partition(p)).collect::<Result<_>>()?;
        // What can be read now ends before the first open transaction.
        let shown = |bounds: Bounds| Bounds { durable_offset: bounds.last_stable_offset, ..bounds };
        Ok(self.engine.cut(&ids)?.into_iter().map(shown).collect())
    }

    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        let (id, engine) = (self.partition(of)?, Arc::clone(&self.engine));
        let found = tokio::task::spawn_blocking(move || engine.shown_offset_at_time(id, time.0));
        let found = found.await.map_err(|e| Error::internal("find a time").with_source(e))??;
        Ok(found.map(|(offset, _)| offset))
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>> {
        let fence = self.engine.open_writer(owner).await?;
        let positions = self.engine.positions(owner);
        Ok(Box::new(EmbeddedWriter { session: self.clone(), fence, positions, open: None }))
    }

    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.engine.positions(owner))
    }

    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>> {
        Ok(self.engine.table(table))
    }

    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        self.engine.put(table, key, value, expected).await
    }

    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>> {
        let plan = Plan {
            group: group.to_owned(),
            client_id: self.client_id.clone(),
            topics: topics.iter().cloned().collect(),
            slots: None,
            options: options.clone(),
        };
        Ok(Box::new(Kept::new(group, LocalMember::start(Groups::of(&self.engine), plan))))
    }

    async fn lease(&self, group: &str, slots: u32) -> Result<Lease> {
        let (name, groups) = (format!("{LEASES}{group}"), Groups::of(&self.engine));
        if let Some(more) = local_member::slots_of(&groups, &name).filter(|more| *more > slots) {
            return Err(Error::conflict(format!("others lease {more} slots of {group:?}, not {slots}")));
        }
        let plan = Plan {
            group: name.clone(),
            client_id: self.client_id.clone(),
            topics: BTreeSet::from([name]),
            slots: Some(slots),
            options: MemberOptions::default(),
        };
        Ok(Lease::over(Box::new(Kept::new(group, LocalMember::start(groups, plan)))))
    }

    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
        let ids: Vec<_> = partitions.iter().map(|p| self.partition(p)).collect::<Result<_>>()?;
        let bounds = self.engine.cut(&ids)?;
        let mut found = Groups::of(&self.engine).offsets_of(group, partitions);
        let at_most_end = |(of, bounds): (&TopicPartition, Bounds)| {
            let committed = found.remove(of)?;
            let offset = committed.offset.min(bounds.durable_offset);
            Some((of.clone(), GroupOffset { offset, metadata: committed.metadata }))
        };
        Ok(partitions.iter().zip(bounds).filter_map(at_most_end).collect())
    }
}

struct EmbeddedWriter {
    session: EmbeddedSession,
    fence: Fence,
    positions: BTreeMap<String, String>,
    open: Option<Transaction>,
}

/// A transaction's records that are not staged yet, and its new positions.
struct Transaction {
    number: u64,
    staged: usize,
    batches: BTreeMap<PartitionId, BatchBuilder>,
    size_bytes: usize,
    positions: BTreeMap<String, Option<String>>,
}

impl Transaction {
    fn take_batches(&mut self) -> Vec<(PartitionId, Bytes)> {
        self.size_bytes = 0;
        std::mem::take(&mut self.batches).into_iter().map(|(id, builder)| (id, builder.finish())).collect()
    }
}

impl EmbeddedWriter {
    fn transaction(&mut self) -> &mut Transaction {
        let engine = &self.session.engine;
        self.open.get_or_insert_with(|| Transaction {
            number: engine.begin_transaction(),
            staged: 0,
            batches: BTreeMap::new(),
            size_bytes: 0,
            positions: BTreeMap::new(),
        })
    }

    async fn stage(&mut self) -> Result<()> {
        let transaction = self.transaction();
        let number = transaction.number;
        let batches = transaction.take_batches();
        transaction.staged += 1;
        self.session.engine.stage(number, batches).await
    }

    /// The positions of the open transaction as one batch of their topic.
    fn position_batch(&self, positions: &BTreeMap<String, Option<String>>) -> Result<Option<(PartitionId, Bytes)>> {
        if positions.is_empty() {
            return Ok(None);
        }
        let mut builder = BatchBuilder::default();
        for (name, value) in positions {
            let key = Engine::position_key(&self.fence.owner, name);
            let record = Record::new(key, value.clone().map(Bytes::from));
            self.session.too_large(record.size_bytes())?;
            builder.push(&record, self.session.engine.clock().now())?;
        }
        Ok(Some((Table::Positions.partition(), builder.finish())))
    }
}

#[async_trait]
impl Writer for EmbeddedWriter {
    fn positions(&self) -> &BTreeMap<String, String> {
        &self.positions
    }

    async fn append(&mut self, to: &TopicPartition, records: Vec<Record>) -> Result<()> {
        let id = self.session.partition(to)?;
        let now = self.session.engine.clock().now();
        let stage_bytes = STAGE_BYTES.min(self.session.engine.config().record_limit());
        for record in records {
            let size = record.size_bytes();
            self.session.too_large(size)?;
            if self.transaction().size_bytes > 0 && self.transaction().size_bytes + size > stage_bytes {
                self.stage().await?;
            }
            let transaction = self.transaction();
            transaction.batches.entry(id).or_default().push(&record, now)?;
            transaction.size_bytes += size + 32;
        }
        Ok(())
    }

    fn set_position(&mut self, name: &str, value: Option<String>) {
        self.transaction().positions.insert(name.to_owned(), value);
    }

    async fn commit(&mut self) -> Result<()> {
        // A position that cannot be written leaves the transaction open: the caller aborts it, or the drop does.
        let Some(open) = &self.open else { return Ok(()) };
        let positions = self.position_batch(&open.positions)?;
        let Some(mut transaction) = self.open.take() else { return Ok(()) };
        let mut batches = transaction.take_batches();
        batches.extend(positions);
        let fence = Some(self.fence.clone());
        self.session.engine.commit(transaction.number, transaction.staged, batches, fence).await?;
        for (name, value) in transaction.positions {
            match value {
                Some(value) => self.positions.insert(name, value),
                None => self.positions.remove(&name),
            };
        }
        Ok(())
    }

    async fn abort(&mut self) -> Result<()> {
        if let Some(transaction) = self.open.take() {
            self.session.engine.abort(transaction.number);
        }
        Ok(())
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.abort().await
    }
}

impl Drop for EmbeddedWriter {
    fn drop(&mut self) {
        if let Some(transaction) = self.open.take() {
            self.session.engine.abort(transaction.number);
        }
    }
}
