//! A producer of transactions under one fenced name, and what its failures mean.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::{error::KafkaError, producer::Producer as _, types::RDKafkaErrorCode as Code};

use super::{
    cluster::{Cluster, REQUEST_TIME},
    error::{coded, from_kafka},
    producer::{Client, Producer, Sent, drain, fatal, prepare, send},
};
use crate::{Error, ErrorKind, Result, log::Table, record::Record, topic::TopicPartition};

/// A producer of transactions under one fenced name. A newer one of the name is told as `Conflict`, and so is a
/// transaction that the cluster gave up for its age: it uses the same words for both.
pub(super) struct Fenced {
    producer: Producer,
}

impl Fenced {
    /// Fences older ones of this name; what they left open is aborted when this returns.
    pub(super) async fn open(cluster: &Cluster, id: &str) -> Result<Self> {
        let mut config = cluster.config();
        config.set("transactional.id", id);
        let producer = Producer::start(config)?;
        let home = Table::Positions.topic();
        let open = move |client: &Client| {
            // With no connection yet, librdkafka would look for its coordinator only half a second later.
            let _ = client.client().fetch_metadata(Some(&home), REQUEST_TIME);
            let opened = retried(Instant::now() + REQUEST_TIME, |left| client.init_transactions(left));
            opened.map_err(|error| failure(client, &error, "open a writer"))
        };
        producer.call(open).await?;
        Ok(Self { producer })
    }

    pub(super) async fn begin(&self) -> Result<()> {
        let begin = |client: &Client| {
            client.context().forget();
            client.begin_transaction().map_err(|error| failure(client, &error, "begin a transaction"))
        };
        self.producer.call(begin).await
    }

    /// Hands records to librdkafka: all of them, or none where one is not as it must be.
    pub(super) async fn send(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Sent> {
        let to = to.clone();
        let hand_over = move |client: &Client| {
            let (messages, sent) = prepare(&to, &records)?;
            send(client, messages).map_err(|error| failure(client, &error, format!("write to {to}")))?;
            Ok(sent)
        };
        self.producer.call(hand_over).await
    }

    /// Sends the last records, and commits. The offset is that of the last record. What fails for another reason than a
    /// fence, a dead cluster or its silence is aborted when this returns.
    pub(super) async fn commit(&self, last: Option<(TopicPartition, Vec<Record>)>) -> Result<Option<i64>> {
        self.producer.call(move |client| commit(client, last.as_ref())).await
    }

    pub(super) async fn abort(&self) -> Result<()> {
        self.producer.call(abort).await
    }

    /// Aborts what is open, if it can be done soon; nobody waits for it.
    pub(super) fn leave(&self) {
        let _ = self.producer.give(|client| drop(abort(client)));
    }
}

/// Whether a commit was refused because another opened the same name.
pub(super) fn is_fenced(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict
}

/// An error with its cause: a fatal one, or the record that was not taken first, is why all after it fails.
fn failure(client: &Client, error: &KafkaError, what: impl std::fmt::Display) -> Error {
    if let Some(fatal) = fatal(client, &what) {
        return fatal;
    }
    match client.context().failed() {
        Some(code) => coded(code, format!("{what}: the cluster refuses a record")),
        None => from_kafka(error, what),
    }
}

/// Tries until it works, as long as trying again is what librdkafka asks for.
fn retried(deadline: Instant, call: impl Fn(Duration) -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match call(left) {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && !left.is_zero() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Whether it is not known what becomes of a commit: it may still be under way.
fn is_open(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable(),
        KafkaError::Flush(_) => true,
        _ => false,
    }
}

fn commit(client: &Client, last: Option<&(TopicPartition, Vec<Record>)>) -> Result<Option<i64>> {
    let deadline = Instant::now() + REQUEST_TIME;
    let sent = match last.map(|(to, records)| prepare(to, records)).transpose() {
        Ok(None) => Ok(None),
        Ok(Some((messages, sent))) => send(client, messages).map(|()| Some(sent)),
        Err(invalid) => {
            abort(client)?;
            return Err(invalid);
        }
    };
    drain(client, deadline)?;
    let done = match sent {
        Ok(sent) => retried(deadline, |left| client.commit_transaction(left)).map(|()| sent),
        // Nothing is taken any more: the commit, which is refused, tells why.
        Err(KafkaError::MessageProduction(Code::State | Code::Fatal)) => {
            Err(client.commit_transaction(REQUEST_TIME).err().unwrap_or(KafkaError::Canceled))
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(sent) => Ok(sent.and_then(|sent| sent.now().ok()).map(|(_, last)| last)),
        Err(error) => {
            let told = failure(client, &error, "commit");
            // What stays open would hide what others write after it.
            if !is_open(&error) && client.client().fatal_error().is_none() {
                abort(client)?;
                heal(client);
            }
            Err(told)
        }
    }
}

/// Ends the gaps that refused records have left in the numbers of their partitions, for which the cluster would refuse
/// the next transaction: it is met here with a record that is aborted, whereupon librdkafka numbers anew. If this fails,
/// the next commit says so.
fn heal(client: &Client) {
    let gaps = client.context().forget();
    if gaps.is_empty() || client.begin_transaction().is_err() {
        return;
    }
    for (topic, partition) in gaps {
        let to = TopicPartition::new(topic, u32::try_from(partition).unwrap_or(u32::MAX));
        if let Ok((messages, _)) = prepare(&to, &[Record::new(Some(Bytes::from_static(b"aborted")), None)]) {
            let _ = send(client, messages);
        }
    }
    let _ = abort(client);
    client.context().forget();
}

fn abort(client: &Client) -> Result<()> {
    let deadline = Instant::now() + REQUEST_TIME;
    // Else the abort would wait for answers that only this thread takes.
    drain(client, deadline)?;
    let aborted = retried(deadline, |left| client.abort_transaction(left));
    aborted.map_err(|error| fatal(client, "abort").unwrap_or_else(|| from_kafka(&error, "abort")))
}
