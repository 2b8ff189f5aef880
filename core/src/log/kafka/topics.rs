//! Topics of a cluster.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    admin::{AdminOptions, NewTopic, TopicReplication},
    types::RDKafkaErrorCode as Code,
};

use super::{
    cluster::{BATCH_LIMIT, Cluster, REQUEST_TIME, blocking},
    describe::describe,
    error::{coded, from_kafka},
    settings,
};
use crate::{
    Error, ErrorKind, Result,
    log::Topic,
    topic::{INTERNAL_PREFIX, TopicPartition, TopicSpec, validate_name},
};

/// How often it is looked whether all brokers know of a change.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Topics of users: not the log's own, nor the cluster's.
pub(super) async fn list(cluster: &Arc<Cluster>) -> Result<Vec<Topic>> {
    let this = Arc::clone(cluster);
    blocking(move || {
        let metadata = this.admin.inner().fetch_metadata(None, REQUEST_TIME);
        let metadata = metadata.map_err(|e| from_kafka(&e, "list topics"))?;
        let names = metadata.topics().iter().map(|topic| topic.name());
        let own = |name: &&str| !name.starts_with(INTERNAL_PREFIX) && !name.starts_with("__");
        let names: Vec<_> = names.filter(own).map(str::to_owned).collect();
        let mut topics = describe(this.admin.inner(), &names, REQUEST_TIME)?;
        topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    })
    .await
}

pub(super) async fn find(cluster: &Arc<Cluster>, name: &str) -> Result<Option<Topic>> {
    // Of a name that no topic can have, the cluster would say that it is wrong.
    if validate_name(name).is_err() {
        return Ok(None);
    }
    let (this, names) = (Arc::clone(cluster), [name.to_owned()]);
    blocking(move || Ok(describe(this.admin.inner(), &names, REQUEST_TIME)?.pop())).await
}

/// Refuses names that are the log's or the cluster's own.
pub(super) fn deny_internal(name: &str) -> Result<()> {
    match name.starts_with(INTERNAL_PREFIX) || name.starts_with("__") {
        true => Err(Error::new(ErrorKind::Denied, format!("{name} is internal"))),
        false => Ok(()),
    }
}

pub(super) async fn create(cluster: &Arc<Cluster>, name: &str, spec: &TopicSpec) -> Result<Topic> {
    validate_name(name)?;
    deny_internal(name)?;
    if !(1..=1000).contains(&spec.partitions) {
        return Err(Error::invalid(format!("{} partitions is not in 1..1000", spec.partitions)));
    }
    let settings = settings::of_new(spec)?;
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if !make(cluster, name, spec.partitions, &settings).await? {
        return Err(Error::conflict(format!("topic {name:?} exists")));
    }
    seen(cluster, name).await
}

/// Makes one of the log's own topics, which keep the newest record of each key, unless it is there.
pub(super) async fn ensure_internal(cluster: &Arc<Cluster>, name: &str, partitions: u32) -> Result<u32> {
    if let Some(found) = cluster.partitions_of(name).await? {
        return Ok(found);
    }
    // Small segments: what is replaced goes soon, and a reader of the whole table has little to read.
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.bytes", "16777216"),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("max.compaction.lag.ms", "600000"),
    ];
    make(cluster, name, partitions, &settings).await?;
    Ok(seen(cluster, name).await?.partitions)
}

/// Makes a topic; false where it exists.
async fn make(cluster: &Arc<Cluster>, name: &str, partitions: u32, settings: &[(&str, &str)]) -> Result<bool> {
    let limit = BATCH_LIMIT.to_string();
    let count = i32::try_from(partitions).unwrap_or(i32::MAX);
    // Replicas as the cluster's own setting says.
    let usual = [("max.message.bytes", limit.as_str())];
    let usual = usual.iter().filter(|(key, _)| settings.iter().all(|(other, _)| other != key));
    let topic = NewTopic::new(name, count, TopicReplication::Fixed(-1));
    let topic = usual.chain(settings).fold(topic, |topic, (key, value)| topic.set(key, value));
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIME)).operation_timeout(Some(REQUEST_TIME));
    let made = cluster.admin.create_topics([&topic], &options).await;
    match made.map_err(|e| from_kafka(&e, format!("make topic {name:?}")))?.pop() {
        Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, code))) => Err(coded(code, format!("make topic {name:?}"))),
        _ => Ok(true),
    }
}

/// Waits until a topic that was made is known.
async fn seen(cluster: &Arc<Cluster>, name: &str) -> Result<Topic> {
    let wait = async {
        loop {
            if let Some(topic) = find(cluster, name).await?
                && cluster.partitions_of(name).await?.is_some()
            {
                return Ok(topic);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let late = || Error::unavailable(format!("topic {name:?} was made, but its brokers do not know it yet"));
    tokio::time::timeout(REQUEST_TIME, wait).await.unwrap_or_else(|_| Err(late()))
}

/// Waits until the brokers know that a topic has grown.
pub(super) async fn await_partitions(cluster: &Arc<Cluster>, name: &str, count: u32) -> Result<()> {
    let wait = async {
        while find(cluster, name).await?.is_none_or(|topic| topic.partitions < count)
            || cluster.partitions_of(name).await?.is_none_or(|present| present < count)
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    let late = || Error::unavailable(format!("{name:?} has more partitions, but its brokers do not know them yet"));
    tokio::time::timeout(REQUEST_TIME, wait).await.unwrap_or_else(|_| Err(late()))
}

pub(super) async fn delete(cluster: &Arc<Cluster>, name: &str) -> Result<()> {
    deny_internal(name)?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIME)).operation_timeout(Some(REQUEST_TIME));
    let deleted = cluster.admin.delete_topics(&[name], &options).await;
    match deleted.map_err(|e| from_kafka(&e, format!("delete topic {name:?}")))?.pop() {
        Some(Err((_, Code::UnknownTopicOrPartition))) => {
            return Err(Error::not_found(format!("topic {name:?} does not exist")));
        }
        Some(Err((_, code))) => return Err(coded(code, format!("delete topic {name:?}"))),
        _ => {}
    }
    let wait = async {
        while find(cluster, name).await?.is_some() || cluster.partitions_of(name).await?.is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    let late = || Error::unavailable(format!("topic {name:?} is deleted, but its brokers do not know it yet"));
    tokio::time::timeout(REQUEST_TIME, wait).await.unwrap_or_else(|_| Err(late()))
}

/// `NotFound` unless the partition exists: librdkafka would wait for it to come.
pub(super) async fn check_partition(cluster: &Cluster, of: &TopicPartition) -> Result<()> {
    let count = cluster.partitions_of(&of.topic).await?;
    let count = count.ok_or_else(|| Error::not_found(format!("topic {:?} does not exist", of.topic)))?;
    match of.partition < count {
        true => Ok(()),
        false => Err(Error::not_found(format!("{of} does not exist: the topic has {count}"))),
    }
}
