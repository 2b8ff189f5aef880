//! One consumer of committed records, and the partitions it reads. Each partition has a queue of its own, which is
//! taken without waiting; a thread serves what is not about one partition.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer, base_consumer::PartitionQueue},
    error::KafkaError,
    message::{BorrowedMessage, Headers as _, Message},
};
use tokio::sync::Notify;

use super::{
    cluster::{Cluster, Consumes, Context, REQUEST_TIME},
    error::from_kafka,
    native,
};
use crate::{
    Error, Result,
    record::{FetchedRecord, Header, Timestamp},
    topic::TopicPartition,
};

/// About the bytes that librdkafka reads ahead of each partition: half of it waits, and the answer to one more request
/// comes on top. A larger batch comes alone.
const AHEAD: usize = 1 << 20;

/// A consumer that reads any partitions, each from any offset.
pub(super) struct Consuming {
    consumer: Arc<Consumes>,
    stopped: Arc<AtomicBool>,
}

impl Consuming {
    pub(super) fn start(cluster: &Cluster) -> Result<Self> {
        let mut config = cluster.config();
        config
            // Needed to assign partitions by hand; nothing is committed under it.
            .set("group.id", "tidemill-reader")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("check.crcs", "true")
            // A reader that is moved waits for the request that is under way.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.queue.backoff.ms", "5")
            // Of each partition: some fetches ahead of who reads.
            .set("queued.max.messages.kbytes", (AHEAD / 2 / 1024).to_string())
            .set("fetch.message.max.bytes", (AHEAD / 2).to_string());
        let consumer: Consumes = config.create_with_context(Context).map_err(|e| from_kafka(&e, "open a consumer"))?;
        let (consumer, stopped) = (Arc::new(consumer), Arc::new(AtomicBool::new(false)));
        let (served, stop) = (Arc::clone(&consumer), Arc::clone(&stopped));
        let serve = move || {
            while !stop.load(Ordering::Acquire) {
                if let Some(Err(error)) = served.poll(Duration::from_millis(100)) {
                    tracing::debug!(%error, "a consumer reports an error");
                }
            }
            // Closing blocks: the last to let go of the consumer must be this thread.
            while Arc::strong_count(&served) > 1 {
                served.poll(Duration::from_millis(20));
            }
        };
        let thread = std::thread::Builder::new().name("tm-kafka-consumer".into()).spawn(serve);
        thread.map_err(|e| Error::unavailable("start a thread").with_source(e))?;
        Ok(Self { consumer, stopped })
    }

    /// Begins to read a partition, which this consumer must not be reading. Blocks.
    pub(super) fn open_now(&self, from: &TopicPartition, offset: i64) -> Result<Reader> {
        let (consumer, from) = (Arc::clone(&self.consumer), from.clone());
        let number = i32::try_from(from.partition).map_err(|_| Error::not_found(format!("{from} does not exist")))?;
        let failed = |e: KafkaError| from_kafka(&e, format!("read {from}"));
        // Before it is assigned, or its first records would go to the consumer's own queue.
        let queue = consumer.split_partition_queue(&from.topic, number);
        let mut queue = queue.ok_or_else(|| Error::not_found(format!("{from} does not exist")))?;
        let come = Arc::new(Notify::new());
        let wake = Arc::clone(&come);
        queue.set_nonempty_callback(move || wake.notify_one());
        let mut start = TopicPartitionList::new();
        start.add_partition_offset(&from.topic, number, Offset::Offset(offset)).map_err(failed)?;
        consumer.incremental_assign(&start).map_err(failed)?;
        // Until librdkafka has ended the reading before, it tells the place where that stood.
        let deadline = Instant::now() + REQUEST_TIME;
        while position(&consumer, &from.topic, number).map_err(failed)?.is_some() {
            if Instant::now() > deadline {
                let _ = consumer.incremental_unassign(&start);
                return Err(Error::unavailable(format!("librdkafka does not begin to read {from}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Reader { consumer, from, number, queue, come, next: offset, passed: offset, ahead: VecDeque::new() })
    }
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
    }
}

/// One partition as it is read. What was taken of its queue and not given yet is kept, so that a read may be dropped.
pub(super) struct Reader {
    consumer: Arc<Consumes>,
    from: TopicPartition,
    number: i32,
    queue: PartitionQueue<Context>,
    /// Told when the queue has something.
    pub(super) come: Arc<Notify>,
    /// Where the next read begins.
    pub(super) next: i64,
    /// All below was taken from the queue, or is no record.
    passed: i64,
    ahead: VecDeque<FetchedRecord>,
}

impl Reader {
    /// Whether a read at `offset` goes on here.
    pub(super) fn is_at(&self, offset: i64) -> bool {
        (self.next..=self.passed).contains(&offset)
    }

    /// Leaves out what lies before `offset`, at which the reader is.
    pub(super) fn skip_to(&mut self, offset: i64) {
        while self.ahead.front().is_some_and(|record| record.offset < offset) {
            self.ahead.pop_front();
        }
        self.next = offset;
    }

    /// Takes about `max_bytes` from the queue.
    pub(super) fn take(&mut self, max_bytes: usize) -> Result<()> {
        let mut bytes: usize = self.ahead.iter().map(size_of).sum();
        while bytes < max_bytes.max(1) {
            let record = match self.queue.poll(Duration::ZERO) {
                None => return self.pass(),
                Some(Ok(message)) => owned(&message).map_err(|e| e.context(self.from.to_string()))?,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => return Err(from_kafka(&error, format!("read {}", self.from))),
            };
            if record.offset >= self.passed {
                bytes += size_of(&record);
                self.passed = record.offset + 1;
                self.ahead.push_back(record);
            }
        }
        Ok(())
    }

    /// Asks librdkafka how far it has come: beyond the last record there may be what is none.
    fn pass(&mut self) -> Result<()> {
        let position = position(&self.consumer, &self.from.topic, self.number);
        if let Some(at) = position.map_err(|e| from_kafka(&e, format!("read {}", self.from)))? {
            self.passed = self.passed.max(at);
        }
        Ok(())
    }

    /// Gives about `max_bytes` of records below `end`, at least one if there is one; `None` where nothing has come.
    pub(super) fn give(&mut self, max_bytes: usize, end: i64) -> Option<(Vec<FetchedRecord>, i64)> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes.max(1) {
            let Some(record) = self.ahead.pop_front_if(|record| record.offset < end) else { break };
            bytes += size_of(&record);
            records.push(record);
        }
        let reached = match self.ahead.front() {
            Some(record) if record.offset >= end => end,
            Some(record) => record.offset,
            None => self.passed,
        };
        if records.is_empty() && reached < end && reached == self.next {
            return None;
        }
        self.next = reached.max(self.next);
        Some((records, self.next))
    }

    /// Ends reading the partition, so that it can be read anew. Blocks.
    pub(super) fn close_now(self) {
        let mut of = TopicPartitionList::new();
        of.add_partition(&self.from.topic, self.number);
        if let Err(error) = self.consumer.incremental_unassign(&of) {
            tracing::debug!(%error, of = %self.from, "librdkafka does not leave a partition");
        }
    }
}

/// Behind what was taken of a partition last; `None` where nothing was.
fn position(consumer: &Consumes, topic: &str, partition: i32) -> Result<Option<i64>, KafkaError> {
    let mut positions = TopicPartitionList::with_capacity(1);
    positions.add_partition(topic, partition);
    native::positions(consumer.client(), &positions);
    Ok(match positions.find_partition(topic, partition).map(|found| found.offset()) {
        Some(Offset::Offset(at)) => Some(at),
        _ => None,
    })
}

fn size_of(record: &FetchedRecord) -> usize {
    let headers = record.headers.iter().map(|h| h.name.len() + h.value.as_ref().map_or(0, Bytes::len));
    let [key, value] = [&record.key, &record.value].map(|bytes| bytes.as_ref().map_or(0, Bytes::len));
    // The offset and the rest count, too: many empty records are memory.
    32 + key + value + headers.sum::<usize>()
}

/// Copies a record out of librdkafka's memory: key and value into one piece.
fn owned(message: &BorrowedMessage<'_>) -> Result<FetchedRecord> {
    let (key, value) = (message.key(), message.payload());
    let mut bytes = BytesMut::with_capacity(key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len));
    let mut copy = |part: Option<&[u8]>| {
        part.map(|part| {
            bytes.extend_from_slice(part);
            bytes.split().freeze()
        })
    };
    let (key, value) = (copy(key), copy(value));
    let headers = match message.headers() {
        None => Vec::new(),
        // The binding panics at a name that is not UTF-8.
        Some(headers) => catch_unwind(AssertUnwindSafe(|| {
            let header = |i| {
                let header = headers.get(i);
                let name = Bytes::copy_from_slice(header.key.as_bytes());
                Header { name, value: header.value.map(Bytes::copy_from_slice) }
            };
            (0..headers.count()).map(header).collect()
        }))
        .map_err(|_| Error::corrupt(format!("a header of the record at {} has no name in UTF-8", message.offset())))?,
    };
    let timestamp = Timestamp(message.timestamp().to_millis().unwrap_or(-1));
    Ok(FetchedRecord { offset: message.offset(), timestamp, key, value, headers })
}
