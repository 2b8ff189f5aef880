//! Topics of a cluster.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication},
    types::RDKafkaErrorCode as Code,
};

use super::{
    cluster::{BATCH_LIMIT, Cluster, REQUEST_TIME, blocking},
    error::{coded, from_kafka},
    native::{Described, describe},
    settings,
};
use crate::{
    Error, ErrorKind, Result,
    log::Topic,
    topic::{INTERNAL_PREFIX, TopicPartition, TopicSpec, validate_name},
};

/// How often it is looked whether all brokers know of a change.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long a broker may lag behind the cluster's controller.
const LAG_TIME: Duration = Duration::from_secs(5);

/// How long the controller has to say what it knows.
const ASK_TIME: Duration = Duration::from_secs(2);

/// The cluster's own topics, which it makes itself when it needs them.
const CLUSTERS_OWN: [&str; 4] =
    ["__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"];

/// Topics of users: not the log's own, nor the cluster's.
pub(super) async fn list(cluster: &Arc<Cluster>) -> Result<Vec<Topic>> {
    let this = Arc::clone(cluster);
    blocking(move || {
        let metadata = this.admin.inner().fetch_metadata(None, REQUEST_TIME);
        let metadata = metadata.map_err(|e| from_kafka(&e, "list topics"))?;
        let names = metadata.topics().iter().map(|topic| topic.name());
        let names: Vec<_> = names.filter(|name| !name.starts_with(INTERNAL_PREFIX)).map(str::to_owned).collect();
        let mut topics: Vec<_> = describe(this.admin.inner(), &names, REQUEST_TIME)?
            .into_iter()
            .filter(|described| !described.internal)
            .map(|described| described.topic)
            .collect();
        topics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    })
    .await
}

/// A topic, or `None` where the cluster has none of the name.
pub(super) async fn find(cluster: &Arc<Cluster>, name: &str) -> Result<Option<Topic>> {
    let deadline = Instant::now() + LAG_TIME;
    loop {
        if let Some(described) = told(cluster, name).await? {
            return Ok(Some(described.topic));
        }
        if !lags(cluster, name, deadline).await? {
            return Ok(None);
        }
    }
}

/// A topic as some broker knows it.
async fn told(cluster: &Arc<Cluster>, name: &str) -> Result<Option<Described>> {
    // Of a name that no topic can have, the cluster would say that it is wrong.
    if validate_name(name).is_err() {
        return Ok(None);
    }
    let (this, names) = (Arc::clone(cluster), [name.to_owned()]);
    blocking(move || Ok(describe(this.admin.inner(), &names, REQUEST_TIME)?.pop())).await
}

/// The number of partitions of a topic; `None` where the cluster has none of the name.
pub(super) async fn partitions_of(cluster: &Cluster, name: &str) -> Result<Option<u32>> {
    let deadline = Instant::now() + LAG_TIME;
    loop {
        if let Some(count) = cluster.told_partitions(name).await? {
            return Ok(Some(count));
        }
        if !lags(cluster, name, deadline).await? {
            return Ok(None);
        }
    }
}

/// Some broker knows no such topic: whether it only lags behind the controller, and is to be asked again, after a pause.
async fn lags(cluster: &Cluster, name: &str, deadline: Instant) -> Result<bool> {
    if validate_name(name).is_err() {
        return Ok(false);
    }
    // The controller knows of all topics. It is asked whether it would make this one.
    let topic = NewTopic::new(name, 1, TopicReplication::Fixed(-1));
    let would = cluster.admin.create_topics([&topic], &question()).await;
    let exists = match would.unwrap_or_default().pop() {
        Some(Err((_, Code::TopicAlreadyExists))) => Some(true),
        Some(Ok(_)) => Some(false),
        // Who may not make topics is not told, and not all that speak Kafka's protocol tell at all.
        _ => None,
    };
    if exists == Some(false) || (exists.is_none() && Instant::now() > deadline) {
        return Ok(false);
    }
    if Instant::now() > deadline {
        return Err(Error::unavailable(format!("topic {name:?} exists, but a broker does not know it yet")));
    }
    tokio::time::sleep(LOOK_AGAIN).await;
    Ok(true)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIME)).operation_timeout(Some(REQUEST_TIME))
}

/// As [`options`], for what is only asked.
fn question() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ASK_TIME)).operation_timeout(Some(ASK_TIME)).validate_only(true)
}

/// The error for a topic that does not exist.
pub(super) fn missing(name: &str) -> Error {
    Error::not_found(format!("topic {name:?} does not exist"))
}

/// Refuses names that are the log's or the cluster's own.
pub(super) fn deny_internal(name: &str) -> Result<()> {
    match name.starts_with(INTERNAL_PREFIX) || CLUSTERS_OWN.contains(&name) {
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

/// Makes a topic; false where it exists.
pub(super) async fn make(cluster: &Cluster, name: &str, partitions: u32, settings: &[(&str, &str)]) -> Result<bool> {
    let count = i32::try_from(partitions).unwrap_or(i32::MAX);
    // Replicas as the cluster's own setting says.
    let limit = BATCH_LIMIT.to_string();
    let usual = [("max.message.bytes", limit.as_str())];
    let usual = usual.iter().filter(|(key, _)| settings.iter().all(|(other, _)| other != key));
    let topic = NewTopic::new(name, count, TopicReplication::Fixed(-1));
    let topic = usual.chain(settings).fold(topic, |topic, (key, value)| topic.set(key, value));
    let made = cluster.admin.create_topics([&topic], &options()).await;
    match made.map_err(|e| from_kafka(&e, format!("make topic {name:?}")))?.pop() {
        Some(Err((_, Code::TopicAlreadyExists))) => Ok(false),
        Some(Err((_, code))) => Err(coded(code, format!("make topic {name:?}"))),
        _ => Ok(true),
    }
}

/// Waits until a topic that was made is known.
pub(super) async fn seen(cluster: &Arc<Cluster>, name: &str) -> Result<Topic> {
    let wait = async {
        loop {
            if let Some(described) = told(cluster, name).await?
                && cluster.told_partitions(name).await?.is_some()
            {
                return Ok(described.topic);
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
        while told(cluster, name).await?.is_none_or(|described| described.topic.partitions < count)
            || cluster.told_partitions(name).await?.is_none_or(|present| present < count)
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
    remove(cluster, name).await
}

/// Deletes any topic, and waits until that is known.
pub(super) async fn remove(cluster: &Arc<Cluster>, name: &str) -> Result<()> {
    validate_name(name).map_err(|_| missing(name))?;
    let deleted = cluster.admin.delete_topics(&[name], &options()).await;
    match deleted.map_err(|e| from_kafka(&e, format!("delete topic {name:?}")))?.pop() {
        Some(Err((_, Code::UnknownTopicOrPartition))) => return Err(missing(name)),
        Some(Err((_, code))) => return Err(coded(code, format!("delete topic {name:?}"))),
        _ => {}
    }
    let wait = async {
        while told(cluster, name).await?.is_some() || cluster.told_partitions(name).await?.is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    };
    let late = || Error::unavailable(format!("topic {name:?} is deleted, but its brokers do not know it yet"));
    tokio::time::timeout(REQUEST_TIME, wait).await.unwrap_or_else(|_| Err(late()))
}

/// `NotFound` unless the partition exists: librdkafka would wait for it to come.
pub(super) async fn check_partition(cluster: &Cluster, of: &TopicPartition) -> Result<()> {
    let deadline = Instant::now() + LAG_TIME;
    loop {
        let count = partitions_of(cluster, &of.topic).await?.ok_or_else(|| missing(&of.topic))?;
        if of.partition < count {
            return Ok(());
        }
        if Instant::now() > deadline || !is_grown(cluster, of).await {
            return Err(Error::not_found(format!("{of} does not exist: the topic has {count}")));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether the controller may know of more partitions than some broker: it is asked whether it would add up to this one.
async fn is_grown(cluster: &Cluster, of: &TopicPartition) -> bool {
    // More than anybody has; the controller would be asked to place each of them.
    if of.partition >= 10_000 {
        return false;
    }
    let more = NewPartitions::new(&of.topic, of.partition as usize + 1);
    let would = cluster.admin.create_partitions([&more], &question()).await;
    matches!(would.unwrap_or_default().pop(), Some(Err((_, Code::InvalidPartitions))))
}
