//! A log in memory: real encoded batches, gaps between them where a test wants some, and cuts.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tidemill_connect::{
    change::{Change, Column, Op, TableSchema, Value},
    converter::TopicSchema,
    types::Dialect,
};
use tidemill_core::{
    batch::{Batch, BatchBuilder, patch_base_offset},
    record::{Record, Timestamp},
    topic::{PartitionId, TopicInfo, partition_of},
};
use tidemill_sql::{Error, Result, Topics};

#[derive(Debug, Default)]
pub struct Log {
    topics: Vec<TopicInfo>,
    schemas: Vec<TopicSchema>,
    batches: BTreeMap<PartitionId, Vec<Batch>>,
    /// Overrides of the cut.
    pub cuts: BTreeMap<PartitionId, (i64, i64)>,
    pub reads: std::sync::Arc<AtomicUsize>,
    now: i64,
}

/// A column: name, declared type, not null, place in the key.
pub type ColumnSpec<'a> = (&'a str, &'a str, bool, Option<u32>);

impl Log {
    pub fn topic(&mut self, name: &str, partitions: u32) -> Vec<PartitionId> {
        let first = self.topics.iter().map(|topic| topic.partitions.len() as u32).sum::<u32>();
        let ids: Vec<PartitionId> = (first..first + partitions).map(PartitionId).collect();
        ids.iter().for_each(|id| drop(self.batches.insert(*id, Vec::new())));
        let id = format!("{first:032x}");
        self.topics.push(TopicInfo {
            name: name.to_owned(),
            id,
            partitions: ids.clone(),
            created_ms: 0,
            config: Default::default(),
        });
        ids
    }

    /// A table of a sync with its topic.
    pub fn table(&mut self, sync: &str, name: &str, partitions: u32, columns: &[ColumnSpec<'_>]) -> TopicSchema {
        let topic = format!("{sync}.{}", tidemill_core::topic::escape(name));
        self.topic(&topic, partitions);
        self.schema(sync, name, &topic, columns)
    }

    /// A further schema of a topic.
    pub fn schema(&mut self, sync: &str, name: &str, topic: &str, columns: &[ColumnSpec<'_>]) -> TopicSchema {
        let column = |(name, declared, not_null, key): &ColumnSpec<'_>| Column {
            name: (*name).to_owned(),
            declared_type: (*declared).to_owned(),
            not_null: *not_null,
            key: *key,
        };
        let columns: Vec<Column> = columns.iter().map(column).collect();
        let table = TableSchema { schema: None, name: name.to_owned(), columns };
        let id = self.schemas.len() as u64 + 1;
        let schema = TopicSchema { id, topic: topic.to_owned(), ..TopicSchema::draft(sync, Dialect::Sqlite, &table) };
        self.schemas.push(schema.clone());
        schema
    }

    pub fn partition(&self, topic: &str, number: usize) -> PartitionId {
        self.topics.iter().find(|info| info.name == topic).expect("topic").partitions[number]
    }

    /// Writes one batch and returns its first offset.
    pub fn append(&mut self, partition: PartitionId, records: &[Record]) -> i64 {
        self.now += 1_000;
        let mut builder = BatchBuilder::default();
        records.iter().for_each(|record| builder.push(record, Timestamp(self.now)).expect("fits"));
        let base = self.end(partition);
        let mut bytes = builder.finish().to_vec();
        patch_base_offset(&mut bytes, base);
        let batch = Batch::parse(&Bytes::from(bytes)).expect("own batch");
        self.batches.get_mut(&partition).expect("partition").push(batch);
        base
    }

    /// Leaves offsets out: an empty batch that is read by nobody is gone, as after compaction.
    pub fn skip(&mut self, partition: PartitionId, offsets: i64) {
        let base = self.end(partition) + offsets;
        let mut bytes = BatchBuilder::default().finish().to_vec();
        patch_base_offset(&mut bytes, base - 1);
        let batch = Batch::parse(&Bytes::from(bytes)).expect("own batch");
        self.batches.get_mut(&partition).expect("partition").push(batch);
    }

    fn end(&self, partition: PartitionId) -> i64 {
        self.batches[&partition].last().map_or(0, |batch| batch.header().next_offset())
    }

    pub fn change(&mut self, schema: &TopicSchema, op: Op, before: Option<Vec<Value>>, after: Option<Vec<Value>>) {
        let row = after.as_ref().or(before.as_ref()).expect("an image");
        let key = schema.table.key_of(row);
        let change = Change { table: 0, op, key, before, after, sequence: 0 };
        let mut records = Vec::new();
        schema.encode(&change, Timestamp(self.now), &mut records);
        self.append_by_key(&schema.topic, &records);
    }

    /// Rows as one batch a partition, as a copy of a table writes them.
    pub fn rows(&mut self, schema: &TopicSchema, rows: impl IntoIterator<Item = Vec<Value>>) {
        let mut records = Vec::new();
        for row in rows {
            let key = schema.table.key_of(&row);
            let change = Change { table: 0, op: Op::Read, key, before: None, after: Some(row), sequence: 0 };
            schema.encode(&change, Timestamp(self.now), &mut records);
        }
        self.append_by_key(&schema.topic, &records);
    }

    fn append_by_key(&mut self, topic: &str, records: &[Record]) {
        let partitions = self.topics.iter().find(|info| info.name == topic).expect("topic").partitions.clone();
        for (number, partition) in partitions.iter().enumerate() {
            let is_here = |record: &&Record| {
                let key = record.key.as_deref().unwrap_or_default();
                partition_of(key, partitions.len() as u32) as usize == number
            };
            let own: Vec<Record> = records.iter().filter(is_here).cloned().collect();
            if !own.is_empty() {
                self.append(*partition, &own);
            }
        }
    }
}

impl Topics for Log {
    fn topics(&self) -> Vec<TopicInfo> {
        self.topics.clone()
    }

    fn schemas(&self) -> Result<Vec<TopicSchema>> {
        Ok(self.schemas.clone())
    }

    fn cut(&self, partitions: &[PartitionId]) -> Result<Vec<(i64, i64)>> {
        Ok(partitions.iter().map(|p| self.cuts.get(p).copied().unwrap_or((0, self.end(*p)))).collect())
    }

    fn read(&self, partition: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<(Vec<Batch>, i64)> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let batches = self.batches.get(&partition).ok_or_else(|| Error::not_found("partition"))?;
        let first = batches.partition_point(|batch| batch.header().next_offset() <= offset);
        let mut bytes = 0;
        let mut found: Vec<Batch> = Vec::new();
        for batch in &batches[first..] {
            bytes += batch.header().size_bytes;
            if batch.header().base_offset >= end || (bytes > max_bytes && !found.is_empty()) {
                break;
            }
            found.push(batch.clone());
        }
        let next = found.last().map_or(end, |batch| batch.header().next_offset());
        Ok((found, next))
    }
}
