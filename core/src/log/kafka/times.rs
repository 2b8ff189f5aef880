//! The first record of a time, as the cluster tells it.

use std::sync::Arc;

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer};

use super::{
    cluster::{Cluster, REQUEST_TIME, blocking},
    error::from_kafka,
};
use crate::{Result, record::Timestamp, topic::TopicPartition};

/// The offset of the first record whose time is `time` or later, of those that readers of committed records see.
pub(super) async fn offset_at_time(cluster: &Cluster, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
    let (consumer, of) = (Arc::clone(&cluster.stable), of.clone());
    blocking(move || {
        let failed = |error| from_kafka(&error, &of);
        let number = i32::try_from(of.partition).unwrap_or(i32::MAX);
        let mut asked = TopicPartitionList::with_capacity(1);
        // Below zero lie the protocol's own marks.
        asked.add_partition_offset(&of.topic, number, Offset::Offset(time.0.max(0))).map_err(failed)?;
        let told = consumer.offsets_for_times(asked, REQUEST_TIME).map_err(failed)?;
        let Some(found) = told.find_partition(&of.topic, number) else { return Ok(None) };
        found.error().map_err(failed)?;
        Ok(match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        })
    })
    .await
}
