//! The engine as SQL reads it.

use std::sync::Arc;

use tidemill_connect::converter::TopicSchema;
use tidemill_core::{
    Result,
    batch::Batch,
    engine::{Engine, Table},
    topic::{PartitionId, TopicInfo},
};
use tidemill_sql::Topics;

/// An open log.
#[derive(Debug)]
pub struct EngineTopics(pub Arc<Engine>);

impl Topics for EngineTopics {
    fn topics(&self) -> Vec<TopicInfo> {
        self.0.topics()
    }

    fn schemas(&self) -> Result<Vec<TopicSchema>> {
        self.0.table(Table::Schemas).values().map(|entry| TopicSchema::decode(entry.value.as_bytes())).collect()
    }

    fn cut(&self, partitions: &[PartitionId]) -> Result<Vec<(i64, i64)>> {
        let bounds = self.0.cut(partitions)?;
        Ok(bounds.into_iter().map(|b| (b.log_start_offset, b.last_stable_offset)).collect())
    }

    fn read(&self, partition: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<(Vec<Batch>, i64)> {
        self.0.read_shown(partition, offset, max_bytes, end)
    }
}
