//! Where a contract runs: a log, and names that no other test uses.

use std::{any::Any, sync::Arc, time::Duration};

use bytes::Bytes;
use tidemill_core::{
    ErrorKind, Result,
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Caller, Chunk, Embedded, FetchOptions, Log, Session, Writer},
    record::{FetchedRecord, Record},
    storage::OsStorage,
    topic::{TopicPartition, TopicSpec},
};

use super::gaps::Gaps;
use crate::harness::TempDir;

/// Longer than anything here takes that does not hang.
pub const LATE: Duration = Duration::from_secs(40);

/// A log to test.
pub struct Bed {
    pub log: Arc<dyn Log>,
    /// The same log as another process has it.
    pub other: Arc<dyn Log>,
    /// Of this test alone; part of all its names.
    tag: String,
    /// What must live as long as the log.
    _keep: Option<Box<dyn Any + Send + Sync>>,
}

/// A name that neither another test nor another run has.
fn tag() -> String {
    format!("t{:016x}", rand::random::<u64>())
}

impl Bed {
    pub fn of(log: Arc<dyn Log>, keep: impl Any + Send + Sync) -> Self {
        Self { other: Arc::clone(&log), log, tag: tag(), _keep: Some(Box::new(keep)) }
    }

    pub async fn embedded() -> Self {
        let dir = TempDir::new(&tag());
        let engine = Engine::open(&dir.0, Config::default(), Arc::new(OsStorage), Arc::new(SystemClock::default()));
        let log = Embedded::new(Arc::new(engine.expect("opens")));
        Self::of(Arc::new(log), dir)
    }

    pub async fn gapped() -> Self {
        let Self { log, _keep, .. } = Self::embedded().await;
        Self::of(Arc::new(Gaps::new(log)), _keep)
    }

    /// One broker for all tests of this binary; `None`, after saying so, where there is none to be had.
    #[cfg(feature = "kafka")]
    pub async fn kafka() -> Option<Self> {
        use std::sync::OnceLock;
        static BROKER: OnceLock<Option<crate::servers::Broker>> = OnceLock::new();
        let broker = tokio::task::spawn_blocking(|| BROKER.get_or_init(crate::servers::Broker::start).as_ref());
        let broker = broker.await.expect("joined")?;
        let connect =
            || async { soon("the broker", tidemill_core::log::Kafka::connect(&broker.url())).await.expect("connects") };
        Some(Self { other: Arc::new(connect().await), ..Self::of(Arc::new(connect().await), ()) })
    }

    pub async fn session(&self) -> Arc<dyn Session> {
        self.log.session(Caller::internal("contract")).await.expect("a session")
    }

    /// A session of another process.
    pub async fn other_session(&self) -> Arc<dyn Session> {
        self.other.session(Caller::internal("other")).await.expect("a session")
    }

    /// A name for a topic or an owner.
    pub fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.tag)
    }

    /// The first partition of a new topic.
    pub async fn partition(&self, name: &str) -> TopicPartition {
        self.partitions(name, 1).await.remove(0)
    }

    pub async fn partitions(&self, name: &str, count: u32) -> Vec<TopicPartition> {
        let (session, name) = (self.session().await, self.name(name));
        session.create_topic(&name, &TopicSpec::partitions(count)).await.expect("a topic");
        (0..count).map(|partition| TopicPartition::new(&name, partition)).collect()
    }

    pub async fn writer(&self, owner: &str) -> Box<dyn Writer> {
        self.session().await.writer(&self.name(owner)).await.expect("a writer")
    }

    /// The owner's writer as another process opens it.
    pub async fn other_writer(&self, owner: &str) -> Box<dyn Writer> {
        self.other_session().await.writer(&self.name(owner)).await.expect("a writer")
    }
}

/// A record of a text.
pub fn text(value: impl Into<String>) -> Record {
    Record::new(Some(Bytes::from_static(b"k")), Some(Bytes::from(value.into())))
}

/// Records of texts.
pub fn texts<const N: usize>(values: [&str; N]) -> Vec<Record> {
    values.into_iter().map(text).collect()
}

pub fn value_of(record: &FetchedRecord) -> String {
    String::from_utf8(record.value.as_ref().expect("a value").to_vec()).expect("UTF-8")
}

/// What can be read of a partition now, in one bounded read to its end.
pub async fn all(session: &dyn Session, of: &TopicPartition) -> Vec<String> {
    let bounds = session.bounds(std::slice::from_ref(of)).await.expect("bounds")[0];
    records_to(session, of, bounds.log_start_offset, bounds.durable_offset).await.iter().map(value_of).collect()
}

/// A bounded read; its offsets are checked on the way.
pub async fn records_to(session: &dyn Session, of: &TopicPartition, from: i64, end: i64) -> Vec<FetchedRecord> {
    let (mut next, mut records) = (from, Vec::<FetchedRecord>::new());
    let deadline = tokio::time::Instant::now() + LATE;
    while next < end {
        let options = FetchOptions { end: Some(end), ..FetchOptions::default() };
        let chunk = session.fetch(of, next, &options).await.expect("a chunk");
        assert!(chunk.next_offset >= next, "a read goes back from {next} to {}", chunk.next_offset);
        for record in chunk.records {
            assert!((next..end).contains(&record.offset), "{} is not in {next}..{end}", record.offset);
            assert!(record.offset < chunk.next_offset, "{} comes again", record.offset);
            assert!(records.last().is_none_or(|last| last.offset < record.offset), "offsets increase");
            records.push(record);
        }
        next = chunk.next_offset;
        assert!(tokio::time::Instant::now() < deadline, "a bounded read stands at {next} of {end}");
    }
    records
}

/// Reads until so many records came, waiting for each; what is durable may be seen a moment later.
pub async fn first(session: &dyn Session, of: &TopicPartition, count: usize) -> Vec<String> {
    let (mut next, mut values) = (0, Vec::new());
    let deadline = tokio::time::Instant::now() + LATE;
    while values.len() < count {
        assert!(tokio::time::Instant::now() < deadline, "only {values:?} of {count} came");
        let options = FetchOptions { max_wait: Duration::from_secs(1), ..FetchOptions::default() };
        let Chunk { records, next_offset } = session.fetch(of, next, &options).await.expect("a chunk");
        values.extend(records.iter().map(value_of));
        next = next_offset;
    }
    values
}

/// Asserts that a call failed in this way.
#[track_caller]
pub fn refused<T>(result: Result<T>, kind: ErrorKind) -> String {
    match result {
        Ok(_) => panic!("it was not refused as {kind:?}"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            error.to_string()
        }
    }
}

/// A call that must come to its end.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(LATE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}
