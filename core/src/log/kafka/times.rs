//! The first record of a time, as the cluster tells it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer, error::KafkaResult};

use super::{
    cluster::{Cluster, Consumes, LEADER_TIME, REQUEST_TIME, blocking, leader_moves},
    error::from_kafka,
    topics,
};
use crate::{
    Result,
    record::Timestamp,
    topic::{TopicPartition, validate_name},
};

const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The offset of the first record whose time is `time` or later, of those that readers of committed records see.
pub(super) async fn offset_at_time(cluster: &Cluster, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
    validate_name(&of.topic).map_err(|_| topics::missing(&of.topic))?;
    topics::check_partition(cluster, of).await?;
    let (consumer, of) = (Arc::clone(&cluster.stable), of.clone());
    blocking(move || {
        let deadline = Instant::now() + LEADER_TIME;
        loop {
            match ask(&consumer, &of, time) {
                Err(error) if leader_moves(&error) && Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                other => return other.map_err(|error| from_kafka(&error, &of)),
            }
        }
    })
    .await
}

fn ask(consumer: &Consumes, of: &TopicPartition, time: Timestamp) -> KafkaResult<Option<i64>> {
    let number = i32::try_from(of.partition).unwrap_or(i32::MAX);
    let mut asked = TopicPartitionList::with_capacity(1);
    // Below zero lie the protocol's own marks.
    asked.add_partition_offset(&of.topic, number, Offset::Offset(time.0.max(0)))?;
    let told = consumer.offsets_for_times(asked, REQUEST_TIME)?;
    let Some(found) = told.find_partition(&of.topic, number) else { return Ok(None) };
    found.error()?;
    Ok(match found.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    })
}
