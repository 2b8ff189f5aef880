//! A fenced writer: a transactional producer whose `transactional.id` is the owner.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    cluster::{Cluster, RECORD_LIMIT},
    fenced::Fenced,
    producer::Sent,
    tables::{self, Until},
    topics,
};
use crate::{
    Error, ErrorKind, Result,
    engine::Engine,
    log::{TRANSACTION_TIME, Writer},
    record::Record,
    topic::TopicPartition,
};

/// What one transaction may hold, as in the embedded log.
const TRANSACTION_LIMIT: usize = 64 << 20;

/// The size of a record that is not too large.
pub(super) fn check_size(record: &Record) -> Result<usize> {
    match record.size_bytes() {
        size if size > RECORD_LIMIT => Err(Error::invalid(format!("record of {size} bytes exceeds {RECORD_LIMIT}"))),
        size => Ok(size),
    }
}

/// The writer of an owner.
pub(super) struct KafkaWriter {
    cluster: Arc<Cluster>,
    fenced: Fenced,
    owner: String,
    positions: BTreeMap<String, String>,
    /// Where positions are written.
    home: TopicPartition,
    /// What this writer left there when it was opened; a newer one leaves another.
    mark: Bytes,
    /// Partitions by topic, as far as they were asked for.
    topics: HashMap<String, u32>,
    open: Option<Transaction>,
}

struct Transaction {
    since: Instant,
    /// Whether librdkafka knows of it.
    begun: bool,
    size_bytes: usize,
    /// What was sent last to each partition.
    sent: BTreeMap<TopicPartition, Sent>,
    positions: BTreeMap<String, Option<String>>,
}

/// The key of the record that names an owner's newest writer. No owner has no name, so it is no position's key.
fn mark_key(owner: &str) -> Bytes {
    Engine::position_key("", owner)
}

impl KafkaWriter {
    pub(super) async fn open(cluster: Arc<Cluster>, owner: &str) -> Result<Self> {
        if owner.is_empty() {
            return Err(Error::invalid("an owner needs a name"));
        }
        let home = tables::home_of(&cluster, owner).await?;
        let opened = |error: Error| told(error, owner);
        let fenced = Fenced::open(&cluster, &format!("tidemill.owner.{owner}")).await.map_err(opened)?;
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), owner);
        let mark = Bytes::from(format!("{random:016x}"));
        fenced.begin().await.map_err(opened)?;
        let record = Record::new(mark_key(owner), Some(mark.clone()));
        fenced.commit(Some((home.clone(), vec![record]))).await.map_err(opened)?;
        let positions = cluster.tables().positions(&cluster, owner, Until::All).await?;
        let topics = HashMap::new();
        Ok(Self { cluster, fenced, owner: owner.to_owned(), positions, home, mark, topics, open: None })
    }

    /// What a failure means. A cluster refuses a transaction that it gave up for its age with the words for a fenced
    /// one; the mark of the owner's newest writer tells which it is.
    async fn verdict(&self, error: Error, since: Option<Instant>) -> Error {
        let open = since.map_or(std::time::Duration::ZERO, |since| since.elapsed());
        if error.kind() == ErrorKind::Conflict && open >= TRANSACTION_TIME {
            let key = mark_key(&self.owner);
            let newest = self.cluster.tables().value(&self.cluster, &self.home, &key).await;
            if newest.is_ok_and(|newest| newest.is_some_and(|newest| newest.as_bytes() == self.mark)) {
                return Error::unavailable(format!(
                    "the transaction of {:?} was open for {} s and is aborted; a cluster keeps one open for {} s",
                    self.owner,
                    open.as_secs(),
                    TRANSACTION_TIME.as_secs()
                ));
            }
        }
        told(error, &self.owner)
    }

    fn transaction(&mut self) -> &mut Transaction {
        self.open.get_or_insert_with(|| Transaction {
            since: Instant::now(),
            begun: false,
            size_bytes: 0,
            sent: BTreeMap::new(),
            positions: BTreeMap::new(),
        })
    }

    async fn begin(&mut self) -> Result<()> {
        if !self.transaction().begun {
            // Marked first: after a dropped future there may be something to abort.
            let transaction = self.transaction();
            (transaction.begun, transaction.since) = (true, Instant::now());
            if let Err(error) = self.fenced.begin().await {
                return Err(self.verdict(error, None).await);
            }
        }
        Ok(())
    }

    async fn check_partition(&mut self, to: &TopicPartition) -> Result<()> {
        if self.topics.get(&to.topic).is_none_or(|count| to.partition >= *count) {
            topics::check_partition(&self.cluster, to).await?;
            self.topics.insert(to.topic.clone(), to.partition + 1);
        }
        Ok(())
    }
}

#[async_trait]
impl Writer for KafkaWriter {
    fn positions(&self) -> &BTreeMap<String, String> {
        &self.positions
    }

    async fn append(&mut self, to: &TopicPartition, records: Vec<Record>) -> Result<()> {
        let mut bytes = 0;
        for record in &records {
            bytes += check_size(record)?;
        }
        let total = self.transaction().size_bytes + bytes;
        if total > TRANSACTION_LIMIT {
            return Err(Error::invalid(format!("transaction of {total} bytes exceeds {TRANSACTION_LIMIT}")));
        }
        self.check_partition(to).await?;
        if records.is_empty() {
            return Ok(());
        }
        self.begin().await?;
        self.transaction().size_bytes = total;
        match self.fenced.send(to, records).await {
            Ok(sent) => drop(self.transaction().sent.insert(to.clone(), sent)),
            Err(error) => {
                let since = self.transaction().since;
                return Err(self.verdict(error, Some(since)).await);
            }
        }
        Ok(())
    }

    fn set_position(&mut self, name: &str, value: Option<String>) {
        self.transaction().positions.insert(name.to_owned(), value);
    }

    async fn commit(&mut self) -> Result<()> {
        let Some(open) = &self.open else { return Ok(()) };
        let record = |(name, value): (&String, &Option<String>)| {
            Record::new(Engine::position_key(&self.owner, name), value.clone().map(Bytes::from))
        };
        let records: Vec<_> = open.positions.iter().map(record).collect();
        records.iter().try_for_each(|record| check_size(record).map(drop))?;
        if records.is_empty() && !open.begun {
            self.open = None;
            return Ok(());
        }
        self.begin().await?;
        let last = (!records.is_empty()).then(|| (self.home.clone(), records));
        let Some(open) = self.open.take() else { return Ok(()) };
        if let Err(error) = self.fenced.commit(last).await {
            return Err(self.verdict(error, Some(open.since)).await);
        }
        for (name, value) in open.positions {
            match value {
                Some(value) => self.positions.insert(name, value),
                None => self.positions.remove(&name),
            };
        }
        let offset = |(of, sent): (TopicPartition, Sent)| Some((of, sent.now().ok()?.1));
        let offsets: Vec<_> = open.sent.into_iter().filter_map(offset).collect();
        if !offsets.is_empty() {
            // It is committed, even if this fails.
            let _ = self.cluster.seen(offsets).await;
        }
        Ok(())
    }

    async fn abort(&mut self) -> Result<()> {
        match self.open.take() {
            Some(open) if open.begun => match self.fenced.abort().await {
                Ok(()) => Ok(()),
                Err(error) => Err(self.verdict(error, Some(open.since)).await),
            },
            _ => Ok(()),
        }
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        self.abort().await
    }
}

impl Drop for KafkaWriter {
    fn drop(&mut self) {
        if self.open.as_ref().is_some_and(|open| open.begun) {
            self.fenced.leave();
        }
    }
}

/// Says of a fenced producer what it means here.
fn told(error: Error, owner: &str) -> Error {
    match error.kind() {
        ErrorKind::Conflict => {
            Error::conflict(format!("a newer writer of {owner:?} was opened; this one may not write any more"))
        }
        _ => error.context(format!("writer of {owner:?}")),
    }
}
