//! What SQL needs of the log: the list of topics, their schemas, one consistent cut, and whole batches.
//!
//! A log engine implements [`Topics`]; the crate itself never opens one. All methods may block: they are called on
//! blocking threads only.

use tidemill_connect::converter::TopicSchema;
use tidemill_core::{
    Result,
    batch::Batch,
    topic::{PartitionId, TopicInfo},
};

/// A log as SQL reads it.
pub trait Topics: Send + Sync + std::fmt::Debug {
    /// Every topic, the internal ones included.
    fn topics(&self) -> Vec<TopicInfo>;

    /// Every schema ever recorded. Of a topic's schemas the one with the largest id is the present one.
    ///
    /// # Errors
    /// Those of reading and decoding the schemas' topic.
    fn schemas(&self) -> Result<Vec<TopicSchema>>;

    /// One consistent cut over all these partitions: for each, in their order, the offsets `[start, end)`.
    ///
    /// # Errors
    /// `NotFound` where a partition is gone.
    fn cut(&self, partitions: &[PartitionId]) -> Result<Vec<(i64, i64)>>;

    /// Reads whole batches from the one that holds `offset` (or the first after it) on, and the offset to go on at.
    /// Returns at least one batch while `offset < end` and there is one; offsets are not dense. `max_bytes` may be
    /// exceeded by the first batch. The batches may hold records outside `[offset, end)`; the scan leaves them out.
    ///
    /// # Errors
    /// Those of reading; `Corrupt` names the segment.
    fn read(&self, partition: PartitionId, offset: i64, max_bytes: usize, end: i64) -> Result<(Vec<Batch>, i64)>;
}
