//! A fenced writer: a transactional producer whose `transactional.id` is the owner.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::{error::KafkaError, producer::Producer as _};

use super::{
    cluster::{Cluster, RECORD_LIMIT, REQUEST_TIME},
    error::from_kafka,
    producer::{Client, Producer, Sent, drain, send},
    tables::{self, Until},
    topics,
};
use crate::{
    Error, ErrorKind, Result,
    engine::Engine,
    log::{TRANSACTION_TIME, Table, Writer},
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

/// A producer of transactions under one fenced name.
pub(super) struct Fenced {
    producer: Producer,
    /// Whose it is, for messages.
    owner: String,
}

impl Fenced {
    /// Fences older ones of this name; what they left open is aborted when this returns.
    pub(super) async fn open(cluster: &Cluster, id: &str, owner: &str) -> Result<Self> {
        let mut config = cluster.config();
        config.set("transactional.id", id);
        let producer = Producer::start(config)?;
        let what = format!("open the writer of {owner:?}");
        let deadline = Instant::now() + REQUEST_TIME;
        let home = Table::Positions.topic();
        let open = move |client: &Client| {
            // With no connection yet, librdkafka would look for its coordinator only half a second later.
            let _ = client.client().fetch_metadata(Some(&home), REQUEST_TIME);
            retried(deadline, &what, |left| client.init_transactions(left))
        };
        producer.call(open).await?;
        Ok(Self { producer, owner: owner.to_owned() })
    }

    pub(super) async fn begin(&self) -> Result<()> {
        let what = format!("begin a transaction of {:?}", self.owner);
        self.producer.call(move |client| client.begin_transaction().map_err(|e| from_kafka(&e, what))).await
    }

    /// Hands records to librdkafka.
    pub(super) async fn send(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Sent> {
        let (to, owner) = (to.clone(), self.owner.clone());
        self.producer.call(move |client| send(client, &to, &records).map_err(|e| told(e, &owner))).await
    }

    /// Sends the last records, and commits. The offsets are those of the last records.
    pub(super) async fn commit(
        &self,
        last: Option<(TopicPartition, Vec<Record>)>,
        since: Instant,
    ) -> Result<Option<i64>> {
        let owner = self.owner.clone();
        self.producer.call(move |client| commit(client, last, since, &owner)).await
    }

    pub(super) async fn abort(&self) -> Result<()> {
        let owner = self.owner.clone();
        self.producer.call(move |client| abort(client, &owner)).await
    }

    /// Aborts what is open, if it can be done soon; nobody waits for it.
    fn leave(&self) {
        let owner = self.owner.clone();
        let _ = self.producer.give(move |client| drop(abort(client, &owner)));
    }
}

/// Tries until it works, as long as trying again is what librdkafka asks for.
fn retried(deadline: Instant, what: &str, call: impl Fn(Duration) -> Result<(), KafkaError>) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match call(left) {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(error)) if error.is_retriable() && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(from_kafka(&error, what)),
        }
    }
}

fn commit(
    client: &Client,
    last: Option<(TopicPartition, Vec<Record>)>,
    since: Instant,
    owner: &str,
) -> Result<Option<i64>> {
    let deadline = Instant::now() + REQUEST_TIME;
    let work = || {
        let sent = last.map(|(to, records)| send(client, &to, &records)).transpose()?;
        drain(client, deadline)?;
        // What was not taken is an error of the transaction, told by the commit; its own is the clearer one.
        let offset = match sent.map(|sent| sent.now()) {
            Some(Err(error)) if client.client().fatal_error().is_none() => {
                let _ = abort(client, owner);
                return Err(error);
            }
            outcome => outcome.and_then(Result::ok).map(|(_, last)| last),
        };
        retried(deadline, "commit", |left| client.commit_transaction(left))?;
        Ok(offset)
    };
    work().map_err(|error| {
        // A transaction that the cluster gave up for its age is refused with the words for a fenced one.
        if error.kind() == ErrorKind::Conflict && since.elapsed() >= TRANSACTION_TIME {
            let open = since.elapsed().as_secs();
            return Error::unavailable(format!(
                "the transaction of {owner:?} was open for {open} s and is aborted; a cluster keeps one open for {} s",
                TRANSACTION_TIME.as_secs()
            ));
        }
        told(error, owner)
    })
}

fn abort(client: &Client, owner: &str) -> Result<()> {
    let deadline = Instant::now() + REQUEST_TIME;
    // Else the abort would wait for answers that only this thread takes.
    drain(client, deadline).map_err(|e| told(e, owner))?;
    match retried(deadline, "abort", |left| client.abort_transaction(left)) {
        Err(error) => Err(told(error, owner)),
        Ok(()) => Ok(()),
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

/// The writer of an owner.
pub(super) struct KafkaWriter {
    cluster: Arc<Cluster>,
    fenced: Fenced,
    owner: String,
    positions: BTreeMap<String, String>,
    /// Where positions are written.
    home: TopicPartition,
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

impl KafkaWriter {
    pub(super) async fn open(cluster: Arc<Cluster>, owner: &str) -> Result<Self> {
        let home = tables::home_of(&cluster, owner).await?;
        let fenced = Fenced::open(&cluster, &format!("tidemill.owner.{owner}"), owner).await?;
        let positions = cluster.tables().positions(&cluster, owner, Until::All).await?;
        let topics = HashMap::new();
        Ok(Self { cluster, fenced, owner: owner.to_owned(), positions, home, topics, open: None })
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
            self.fenced.begin().await?;
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
        let sent = self.fenced.send(to, records).await?;
        self.transaction().sent.insert(to.clone(), sent);
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
        self.fenced.commit(last, open.since).await?;
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
            Some(open) if open.begun => self.fenced.abort().await,
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

/// Whether a commit of a table's producer was refused because another process opened it.
pub(super) fn is_fenced(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict
}
