//! One cluster: how it is reached, and what all sessions of a process share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    admin::AdminClient,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};
use tokio::sync::OnceCell;

use super::{error::from_kafka, producer::Producer, tables::Tables};
use crate::{
    Error, Result,
    log::{Bounds, Table},
    topic::TopicPartition,
};

/// How long one request may take, tries included. A broker that ended is known to have ended long before.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(30);

/// How long a partition may be without a leader: a new topic's for a moment, others while brokers change.
const LEADER_TIME: Duration = Duration::from_secs(10);

/// How long a commit waits until readers see it.
const SIGHT_TIME: Duration = Duration::from_secs(2);

/// Largest record, as in the embedded log.
pub(super) const RECORD_LIMIT: usize = 8 << 20;

/// Largest batch on the wire: a record of the largest size and what is around it.
pub(super) const BATCH_LIMIT: usize = 16 << 20;

/// What librdkafka tells beside answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        tracing::debug!(?level, fac, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports an error");
    }
}

impl ConsumerContext for Context {}

pub(super) type Consumes = BaseConsumer<Context>;

/// A cluster that answered.
pub(super) struct Cluster {
    /// The cluster's own identity.
    pub(super) id: String,
    brokers: String,
    pub(super) admin: AdminClient<Context>,
    /// Asks how far committed records go; reads nothing.
    pub(super) stable: Arc<Consumes>,
    /// Asks how far all records go.
    uncommitted: Arc<Consumes>,
    /// Of appends outside transactions.
    producer: OnceCell<Producer>,
    tables: Tables,
}

impl Cluster {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let brokers = brokers_of(url)?;
        blocking(move || {
            let config = config(&brokers);
            let failed = |e: KafkaError| from_kafka(&e, format!("reach the Kafka cluster at {brokers}"));
            let admin: AdminClient<Context> = config.create_with_context(Context).map_err(failed)?;
            // Any question makes it connect; the identity alone is looked for only once a second.
            let _ = admin.inner().fetch_metadata(Some(&Table::Positions.topic()), Duration::from_secs(10));
            let id = admin.inner().fetch_cluster_id(Duration::from_millis(1));
            let id = id.ok_or_else(|| Error::unavailable(format!("no Kafka broker answers at {brokers}")))?;
            let asking = |isolation: &str| -> Result<Arc<Consumes>> {
                let mut config = config.clone();
                let consumer = config.set("isolation.level", isolation).create_with_context(Context);
                Ok(Arc::new(consumer.map_err(failed)?))
            };
            let (stable, uncommitted) = (asking("read_committed")?, asking("read_uncommitted")?);
            Ok(Self { id, admin, stable, uncommitted, producer: OnceCell::new(), tables: Tables::default(), brokers })
        })
        .await
    }

    /// What every client of this cluster is set to.
    pub(super) fn config(&self) -> ClientConfig {
        config(&self.brokers)
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The producer of appends outside transactions.
    pub(super) async fn producer(&self) -> Result<&Producer> {
        self.producer.get_or_try_init(|| async { Producer::start(self.config()) }).await
    }

    /// Bounds of what readers of committed records can see.
    pub(super) async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<Vec<Bounds>> {
        ask_bounds(Arc::clone(&self.stable), partitions).await
    }

    /// The end of all records, committed or not.
    pub(super) async fn high_watermark(&self, partition: &TopicPartition) -> Result<i64> {
        let bounds = ask_bounds(Arc::clone(&self.uncommitted), vec![partition.clone()]).await?;
        bounds.first().map(|b| b.durable_offset).ok_or_else(|| Error::internal("no bounds"))
    }

    /// Waits until readers see these offsets of a transaction that is committed: what ends it in a partition is written
    /// after the commit is acknowledged. Not for long: behind an open transaction of another they stay unseen.
    pub(super) async fn seen(&self, offsets: Vec<(TopicPartition, i64)>) -> Result<()> {
        let consumer = Arc::clone(&self.stable);
        blocking(move || {
            let failed = |e: KafkaError| from_kafka(&e, "look for what was committed");
            let deadline = Instant::now() + SIGHT_TIME;
            let mut left = offsets;
            while !left.is_empty() && Instant::now() < deadline {
                let mut ends = TopicPartitionList::with_capacity(left.len());
                for (of, _) in &left {
                    let number = i32::try_from(of.partition).unwrap_or(i32::MAX);
                    ends.add_partition_offset(&of.topic, number, Offset::End).map_err(failed)?;
                }
                // The end as a time is the end of what readers see; one request for all.
                let ends = consumer.offsets_for_times(ends, REQUEST_TIME).map_err(failed)?;
                left.retain(|(of, offset)| {
                    let number = i32::try_from(of.partition).unwrap_or(i32::MAX);
                    let end = ends.find_partition(&of.topic, number).map(|found| found.offset());
                    !matches!(end, Some(Offset::Offset(end)) if end > *offset)
                });
                if !left.is_empty() {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            Ok(())
        })
        .await
    }

    /// The number of partitions of a topic; `None` where it does not exist.
    pub(super) async fn partitions_of(&self, topic: &str) -> Result<Option<u32>> {
        let (consumer, topic) = (Arc::clone(&self.stable), topic.to_owned());
        blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), REQUEST_TIME);
            let metadata = metadata.map_err(|e| from_kafka(&e, format!("look for topic {topic:?}")))?;
            let Some(found) = metadata.topics().first() else { return Ok(None) };
            match found.error().map(rdkafka::types::RDKafkaErrorCode::from) {
                None => Ok(Some(found.partitions().len() as u32)),
                Some(code) if super::error::kind_of(code) == crate::ErrorKind::NotFound => Ok(None),
                Some(code) => Err(super::error::coded(code, format!("topic {topic:?}"))),
            }
        })
        .await
    }
}

/// The partition is there, but not where librdkafka thought; it has asked anew.
fn leader_moves(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    let moves =
        [Code::NotLeaderForPartition, Code::LeaderNotAvailable, Code::UnknownLeaderEpoch, Code::FencedLeaderEpoch];
    error.rdkafka_error_code().is_some_and(|code| moves.contains(&code))
}

async fn ask_bounds(consumer: Arc<Consumes>, partitions: Vec<TopicPartition>) -> Result<Vec<Bounds>> {
    blocking(move || {
        let of = |p: &TopicPartition| {
            let number = i32::try_from(p.partition).unwrap_or(i32::MAX);
            let deadline = Instant::now() + LEADER_TIME;
            loop {
                match consumer.fetch_watermarks(&p.topic, number, REQUEST_TIME) {
                    Ok((low, high)) => {
                        return Ok(Bounds { log_start_offset: low, durable_offset: high, last_stable_offset: high });
                    }
                    Err(error) if leader_moves(&error) && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    Err(error) => return Err(from_kafka(&error, p)),
                }
            }
        };
        partitions.iter().map(of).collect()
    })
    .await
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "tidemill")
        .set("allow.auto.create.topics", "false")
        .set("broker.address.family", "any")
        .set("socket.nagle.disable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        // How long a topic that was just made may be unknown to a broker.
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("message.max.bytes", BATCH_LIMIT.to_string())
        .set("receive.message.max.bytes", (4 * BATCH_LIMIT).to_string());
    config
}

/// The brokers that a URL names.
fn brokers_of(url: &str) -> Result<String> {
    let form = "write kafka://host:port[,host:port...]";
    let rest = url.strip_prefix("kafka://").ok_or_else(|| Error::invalid(format!("not a Kafka URL; {form}")))?;
    if rest.contains('@') {
        // Not repeated: it may hold a password.
        return Err(Error::new(crate::ErrorKind::Unsupported, "users and passwords of Kafka are not supported yet"));
    }
    let brokers = rest.strip_suffix('/').unwrap_or(rest);
    let is_broker = |broker: &str| match broker.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p > 0),
        None => false,
    };
    match brokers.split(',').all(is_broker) {
        true => Ok(brokers.to_owned()),
        false => Err(Error::invalid(format!("{url:?} does not name brokers; {form}"))),
    }
}

/// Runs what blocks in librdkafka where that holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::internal("a call of librdkafka").with_source(e))?
}

#[cfg(test)]
mod tests {
    use super::brokers_of;

    #[test]
    fn urls_name_brokers() {
        assert_eq!(brokers_of("kafka://h:9092").unwrap(), "h:9092");
        assert_eq!(brokers_of("kafka://a:1,[::1]:2/").unwrap(), "a:1,[::1]:2");
        for bad in
            ["h:9092", "kafka://", "kafka://h", "kafka://h:0", "kafka://h:x", "kafka://h:1/topic", "kafka://h:1,"]
        {
            assert_eq!(brokers_of(bad).unwrap_err().kind(), crate::ErrorKind::Invalid, "{bad}");
        }
        let told = brokers_of("kafka://me:secret@h:1").unwrap_err();
        assert!(!told.to_string().contains("secret"), "{told}");
    }
}
