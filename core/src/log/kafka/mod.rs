//! The log of an existing Kafka cluster, through librdkafka.
//!
//! - Records are produced with `acks=all` and idempotence, read committed, and never expire in topics made here.
//! - A [`Writer`] is a transactional producer: its owner is the `transactional.id`, by which the cluster fences.
//! - Positions and other metadata are records of compacted topics, `_tidemill.*`. Positions are written in their owner's
//!   transaction and read to the end that is there after the fence; other metadata under a fenced producer of the table.
//! - Offsets have gaps: what ends a transaction takes one. Where a read stands is what librdkafka says it has passed.
//!
//! librdkafka works in threads of its own. Its answers are taken by a thread for each producer and each consumer; what
//! blocks in it is called there, or in the runtime's threads for blocking work.

mod cluster;
mod error;
mod fenced;
mod groups;
mod member;
mod native;
mod own;
mod producer;
mod reader;
mod readers;
mod rebalance;
mod settings;
mod tables;
#[cfg(test)]
mod tests;
mod times;
mod topics;
mod writer;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use self::{cluster::Cluster, readers::Readers, writer::KafkaWriter};
use super::{
    AllowAll, Appended, Bounds, Caller, Chunk, Entry, FetchOptions, Gate, GroupOffset, Lease, Log, Member,
    MemberOptions, Session, Table, Topic, TopicChange, Writer, gate,
};
use crate::{
    Error, Result,
    record::{Record, Timestamp},
    topic::{TopicConfig, TopicPartition, TopicSpec},
};

/// The log of a Kafka cluster.
#[derive(Clone)]
pub struct Kafka {
    cluster: Arc<Cluster>,
    gate: Arc<dyn Gate>,
}

impl Kafka {
    /// Finds the cluster at `kafka://host:port[,host:port...]`; everybody may do everything.
    ///
    /// # Errors
    /// `Invalid` for the URL, `Unavailable` where no broker answers.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with_gate(url, Arc::new(AllowAll)).await
    }

    /// Finds the cluster, behind a gate.
    ///
    /// # Errors
    /// As [`Kafka::connect`].
    pub async fn connect_with_gate(url: &str, gate: Arc<dyn Gate>) -> Result<Self> {
        Ok(Self { cluster: Arc::new(Cluster::connect(url).await?), gate })
    }
}

#[async_trait]
impl Log for Kafka {
    async fn session(&self, caller: Caller) -> Result<Arc<dyn Session>> {
        let session = KafkaSession { cluster: Arc::clone(&self.cluster), readers: Readers::default() };
        Ok(gate::guarded(Arc::new(session), Arc::clone(&self.gate), caller))
    }
}

struct KafkaSession {
    cluster: Arc<Cluster>,
    readers: Readers,
}

#[async_trait]
impl Session for KafkaSession {
    fn log_id(&self) -> String {
        self.cluster.id.clone()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        topics::list(&self.cluster).await
    }

    async fn topic(&self, name: &str) -> Result<Option<Topic>> {
        topics::find(&self.cluster, name).await
    }

    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic> {
        topics::create(&self.cluster, name, spec).await
    }

    async fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        settings::config(&self.cluster, name).await
    }

    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()> {
        settings::alter(&self.cluster, name, change).await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.readers.forget(name).await;
        topics::delete(&self.cluster, name).await
    }

    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended> {
        records.iter().try_for_each(|record| writer::check_size(record).map(drop))?;
        topics::check_partition(&self.cluster, to).await?;
        let producer = self.cluster.producer().await?;
        let delivery = producer.send(to, records).await?;
        let (first_offset, last_offset) = delivery.done().await.map_err(|e| e.context(format!("append to {to}")))?;
        Ok(Appended { first_offset, last_offset })
    }

    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        self.readers.fetch(&self.cluster, from, offset, options).await
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>> {
        self.cluster.bounds(partitions.to_vec()).await
    }

    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        times::offset_at_time(&self.cluster, of, time).await
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>> {
        Ok(Box::new(KafkaWriter::open(Arc::clone(&self.cluster), owner).await?))
    }

    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>> {
        self.cluster.tables().positions(&self.cluster, owner, tables::Until::Stable).await
    }

    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>> {
        self.cluster.tables().all(&self.cluster, kept(table)?).await
    }

    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        if table == Table::Positions {
            return Err(Error::invalid("positions are written by their owner's writer"));
        }
        self.cluster.tables().put(&self.cluster, kept(table)?, key, value, expected).await
    }

    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>> {
        groups::join(&self.cluster, group, topics, options).await
    }

    async fn lease(&self, group: &str, slots: u32) -> Result<Lease> {
        groups::lease(&self.cluster, group, slots).await
    }

    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
        groups::committed(&self.cluster, group, partitions).await
    }
}

/// What this log keeps in tables of its own. Topics, groups and producers are the cluster's own affair.
fn kept(table: Table) -> Result<Table> {
    match table {
        Table::Positions | Table::Schemas => Ok(table),
        _ => Err(Error::unsupported(format!("{} is kept by the cluster itself", table.topic()))),
    }
}
