//! One cluster: how it is reached, and what all sessions of a process share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use super::{error::from_kafka, native, producer::Producer, tables::Tables, topics};
use crate::{
    Error, ErrorKind, Result,
    log::{Bounds, Table},
    topic::{TopicPartition, validate_name},
};
use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    admin::AdminClient,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};

/// How long one request may take, tries included. A broker that ended is known to have ended long before.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(30);

/// How long a partition may be without a leader: a new topic's for a moment, others while brokers change.
pub(super) const LEADER_TIME: Duration = Duration::from_secs(10);

/// How often clients that nobody polls are asked for what they put aside.
const TEND: Duration = Duration::from_secs(1);

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
    pub(super) admin: Arc<AdminClient<Context>>,
    /// Asks how far committed records go; reads nothing.
    pub(super) stable: Arc<Consumes>,
    /// Asks how far all records go.
    uncommitted: Arc<Consumes>,
    /// Of appends outside transactions.
    producer: tokio::sync::Mutex<Option<Arc<Producer>>>,
    tables: Tables,
    /// The log's own topics that were found to be as they must.
    checked: std::sync::Mutex<BTreeSet<String>>,
    /// Dropped with the cluster, which ends the thread that tends its clients.
    _tended: Sender<()>,
}

impl Cluster {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let brokers = brokers_of(url)?;
        blocking(move || {
            let config = config(&brokers);
            let failed = |e: KafkaError| from_kafka(&e, format!("reach the Kafka cluster at {brokers}"));
            let admin: AdminClient<Context> = config.create_with_context(Context).map_err(failed)?;
            let admin = Arc::new(admin);
            // Any question makes it connect; the identity alone is looked for only once a second.
            let _ = admin.inner().fetch_metadata(Some(&Table::Positions.topic()), Duration::from_secs(10));
            let id = native::cluster_id(admin.inner(), Duration::from_millis(1));
            let id = id.ok_or_else(|| Error::unavailable(format!("no Kafka broker answers at {brokers}")))?;
            let asking = |isolation: &str| -> Result<Arc<Consumes>> {
                let mut config = config.clone();
                let consumer = config.set("isolation.level", isolation).create_with_context(Context);
                Ok(Arc::new(consumer.map_err(failed)?))
            };
            let (stable, uncommitted) = (asking("read_committed")?, asking("read_uncommitted")?);
            let _tended = tend(&admin, [&stable, &uncommitted])?;
            let (producer, tables, checked) = Default::default();
            Ok(Self { id, admin, stable, uncommitted, producer, tables, checked, brokers, _tended })
        })
        .await
    }

    /// A client for questions that have no other.
    pub(super) fn asking(&self) -> &Consumes {
        &self.stable
    }

    /// What every client of this cluster is set to.
    pub(super) fn config(&self) -> ClientConfig {
        config(&self.brokers)
    }

    pub(super) fn is_checked(&self, topic: &str) -> bool {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).contains(topic)
    }

    pub(super) fn set_checked(&self, topic: &str) {
        self.checked.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned());
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The producer of appends outside transactions; another one where the last can write no more.
    pub(super) async fn producer(&self) -> Result<Arc<Producer>> {
        let mut producer = self.producer.lock().await;
        match &*producer {
            Some(producer) if !producer.is_dead() => Ok(Arc::clone(producer)),
            _ => Ok(Arc::clone(producer.insert(Arc::new(Producer::start(self.config())?)))),
        }
    }

    /// Bounds of what readers of committed records can see.
    pub(super) async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<Vec<Bounds>> {
        self.ask_bounds(&self.stable, partitions).await
    }

    /// The end of all records, committed or not.
    pub(super) async fn high_watermark(&self, partition: &TopicPartition) -> Result<i64> {
        let bounds = self.ask_bounds(&self.uncommitted, vec![partition.clone()]).await?;
        bounds.first().map(|b| b.durable_offset).ok_or_else(|| Error::internal("no bounds"))
    }

    async fn ask_bounds(&self, consumer: &Arc<Consumes>, partitions: Vec<TopicPartition>) -> Result<Vec<Bounds>> {
        let deadline = Instant::now() + LEADER_TIME;
        let mut bounds = Vec::with_capacity(partitions.len());
        while let Some(next) = partitions.get(bounds.len()) {
            validate_name(&next.topic).map_err(|_| topics::missing(&next.topic))?;
            let (consumer, left) = (Arc::clone(consumer), partitions[bounds.len()..].to_vec());
            let (mut found, failed) = blocking(move || Ok(watermarks(&consumer, &left, deadline))).await?;
            bounds.append(&mut found);
            let Some(error) = failed else { continue };
            if error.kind() != ErrorKind::NotFound || Instant::now() > deadline {
                return Err(error);
            }
            // A broker that does not know it may only lag behind the others.
            topics::check_partition(self, &partitions[bounds.len()]).await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(bounds)
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

    /// The number of partitions of a topic, as some broker knows it; `None` where that one knows of none.
    pub(super) async fn told_partitions(&self, topic: &str) -> Result<Option<u32>> {
        if validate_name(topic).is_err() {
            return Ok(None);
        }
        let (consumer, topic) = (Arc::clone(&self.stable), topic.to_owned());
        blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), REQUEST_TIME);
            let metadata = metadata.map_err(|e| from_kafka(&e, format!("look for topic {topic:?}")))?;
            let Some(found) = metadata.topics().first() else { return Ok(None) };
            match found.error().map(rdkafka::types::RDKafkaErrorCode::from) {
                None => Ok(Some(found.partitions().len() as u32)),
                Some(code) if super::error::kind_of(code) == ErrorKind::NotFound => Ok(None),
                Some(code) => Err(super::error::coded(code, format!("topic {topic:?}"))),
            }
        })
        .await
    }
}

/// Serves what nobody else takes of clients that are only asked. Ends when what it gives is dropped.
fn tend(admin: &Arc<AdminClient<Context>>, consumers: [&Arc<Consumes>; 2]) -> Result<Sender<()>> {
    let (tended, ended) = channel();
    let (admin, consumers) = (Arc::downgrade(admin), consumers.map(Arc::downgrade));
    let serve = move || {
        while ended.recv_timeout(TEND) == Err(RecvTimeoutError::Timeout) {
            if let Some(admin) = admin.upgrade() {
                native::take_events(admin.inner());
            }
            for consumer in consumers.iter().filter_map(std::sync::Weak::upgrade) {
                native::take_events(consumer.client());
            }
        }
    };
    let thread = std::thread::Builder::new().name("tm-kafka-cluster".into()).spawn(serve);
    thread.map_err(|e| Error::unavailable("start a thread").with_source(e))?;
    Ok(tended)
}

/// The partition is there, but not where librdkafka thought; it has asked anew.
pub(super) fn leader_moves(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    let moves = [
        Code::NotLeaderForPartition,
        Code::LeaderNotAvailable,
        Code::ReplicaNotAvailable,
        Code::OffsetNotAvailable,
        Code::UnknownLeaderEpoch,
        Code::FencedLeaderEpoch,
        Code::KafkaStorageError,
    ];
    error.rdkafka_error_code().is_some_and(|code| moves.contains(&code))
}

/// Bounds of partitions, one after the other, up to the first that has none. Blocks.
fn watermarks(consumer: &Consumes, of: &[TopicPartition], deadline: Instant) -> (Vec<Bounds>, Option<Error>) {
    let mut bounds = Vec::with_capacity(of.len());
    for of in of {
        let number = i32::try_from(of.partition).unwrap_or(i32::MAX);
        let found = loop {
            match consumer.fetch_watermarks(&of.topic, number, REQUEST_TIME) {
                Err(error) if leader_moves(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => break outcome,
            }
        };
        match found {
            Ok((low, high)) => {
                bounds.push(Bounds { log_start_offset: low, durable_offset: high, last_stable_offset: high });
            }
            Err(error) => return (bounds, Some(from_kafka(&error, of))),
        }
    }
    (bounds, None)
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
