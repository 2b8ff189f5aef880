//! Where a job's rows come from: the records of a topic, decoded, with their event time.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use tidemill_core::record::{FetchedRecord, Header, Record};

use super::{
    graph::{AnyChunk, Operator, Out},
    stream::{Shared, Stream, lock},
};
use crate::{
    Error, Result,
    chunk::{Chunk, Op},
};

/// Event times outside of this are no times: years -9999 to 9999. One record of the year 50,000 would make all others late.
const TIME_LIMIT_MS: i64 = 253_402_300_800_000;

/// A topic that a job reads.
pub(crate) struct Source {
    pub(crate) topic: String,
    pub(crate) node: usize,
    pub(crate) delay_ms: i64,
    /// Where records go that cannot be decoded.
    pub(crate) dead_letters: Option<usize>,
    pub(crate) decode: Box<dyn Decode>,
}

/// Makes rows of records.
pub(crate) trait Decode: Send {
    fn decode(&self, records: &[FetchedRecord]) -> Decoded;
}

/// Rows of some records.
pub(crate) struct Decoded {
    pub(crate) chunk: AnyChunk,
    /// The latest event time among the rows.
    pub(crate) latest: Option<i64>,
    /// Which records could not be decoded, and why.
    pub(crate) bad: Vec<(usize, Error)>,
}

/// A source is a node without inputs: its rows are put into its output.
pub(super) struct Entry;

impl Operator for Entry {
    fn chunk(&mut self, _: AnyChunk, _: &mut Out) -> Result<()> {
        Err(Error::internal("a source was given rows"))
    }
}

/// A topic before it is said what its records are.
pub struct TopicSource {
    pub(super) graph: Shared,
    pub(super) topic: String,
}

impl TopicSource {
    /// Values are JSON of `T`. Records without a value are passed over.
    pub fn json<T: DeserializeOwned + Clone + Send + 'static>(self) -> SourceBuilder<T> {
        self.decoded(|record, give| match &record.value {
            Some(value) => give(Op::Insert, from_json(value)?),
            None => Ok(()),
        })
    }

    /// Values are change events of a table whose rows are `T`, as a sync writes them: an insert adds a row, a delete takes
    /// it back, an update does both. Tombstones are passed over. Needs an [`event_time`](SourceBuilder::event_time): a row
    /// is taken back at the time that it was added with, which only the row itself can tell.
    pub fn changes<T: DeserializeOwned + Clone + Send + 'static>(self) -> SourceBuilder<T> {
        let mut source = self.decoded(|record, give| {
            let Some(value) = &record.value else { return Ok(()) };
            let Change { op, before, after } = from_json(value)?;
            let needed =
                |row: Option<T>, what: &str| row.ok_or_else(|| Error::invalid(format!("{op:?} has no {what}")));
            match op.as_str() {
                "c" | "r" => give(Op::Insert, needed(after, "row after it")?),
                "d" => give(Op::Delete, needed(before, "row before it")?),
                "u" => {
                    give(Op::Delete, needed(before, "row before it")?)?;
                    give(Op::Insert, needed(after, "row after it")?)
                }
                other => Err(Error::invalid(format!("{other:?} is no operation of a change event"))),
            }
        });
        source.updating = true;
        source
    }

    /// Rows are what `decode` makes of each record; `None` passes it over. Where it fails the record is a bad one, unless it
    /// says `Unavailable`: then the job tries again later.
    pub fn decode<T: Clone + Send + 'static>(
        self,
        decode: impl Fn(&FetchedRecord) -> Result<Option<T>> + Send + 'static,
    ) -> SourceBuilder<T> {
        self.decoded(move |record, give| match decode(record)? {
            Some(row) => give(Op::Insert, row),
            None => Ok(()),
        })
    }

    fn decoded<T>(
        self,
        rows: impl Fn(&FetchedRecord, &mut Give<'_, T>) -> Result<()> + Send + 'static,
    ) -> SourceBuilder<T> {
        SourceBuilder {
            graph: self.graph,
            topic: self.topic,
            rows: Box::new(rows),
            time: None,
            updating: false,
            delay: Duration::ZERO,
            dead_letters: None,
        }
    }
}

/// The part of a change event that a job reads.
#[derive(Deserialize)]
struct Change<T> {
    op: String,
    #[serde(default = "none")]
    before: Option<T>,
    #[serde(default = "none")]
    after: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

fn from_json<T: DeserializeOwned>(value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|e| Error::invalid("value does not fit").with_source(e))
}

/// Gives each row that a record is.
type RowsOf<T> = Box<dyn Fn(&FetchedRecord, &mut Give<'_, T>) -> Result<()> + Send>;
type Give<'a, T> = dyn FnMut(Op, T) -> Result<()> + 'a;
type TimeOf<T> = Box<dyn Fn(&T) -> i64 + Send>;

/// A source: what its records are, and when they happened.
pub struct SourceBuilder<T> {
    graph: Shared,
    topic: String,
    rows: RowsOf<T>,
    time: Option<TimeOf<T>>,
    updating: bool,
    delay: Duration,
    dead_letters: Option<String>,
}

impl<T: Clone + Send + 'static> SourceBuilder<T> {
    /// The event time of a row, milliseconds since 1970-01-01 UTC. Without it the record's timestamp is taken.
    #[must_use]
    pub fn event_time(mut self, time: impl Fn(&T) -> i64 + Send + 'static) -> Self {
        self.time = Some(Box::new(time));
        self
    }

    /// How much later than others a row may come and still be in time: the watermark stays this far behind the latest
    /// event time of each partition. Zero unless set.
    #[must_use]
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Writes records that cannot be decoded to `topic`, with the cause in headers, and goes on. Without it the job stops
    /// at such a record and names it.
    #[must_use]
    pub fn dead_letters(mut self, topic: impl Into<String>) -> Self {
        self.dead_letters = Some(topic.into());
        self
    }

    /// The rows as a stream.
    pub fn stream(self) -> Stream<T> {
        let mut graph = lock(&self.graph);
        let node = graph.add(None, Box::new(Entry), Vec::new());
        let dead_letters = self.dead_letters.as_deref().map(|topic| graph.output(topic));
        let delay_ms = i64::try_from(self.delay.as_millis()).unwrap_or(i64::MAX);
        if graph.sources.iter().any(|source| source.topic == self.topic) {
            let fault = format!("topic {:?} is read twice; read it once and use its stream twice", self.topic);
            graph.faults.push(fault);
        }
        if self.updating && self.time.is_none() {
            let fault =
                format!("topic {:?}: rows of change events need a time of their own: .event_time(..)", self.topic);
            graph.faults.push(fault);
        }
        let decode = Box::new(Decoder { rows: self.rows, time: self.time, updating: self.updating });
        graph.sources.push(Source { topic: self.topic, node, delay_ms, dead_letters, decode });
        drop(graph);
        Stream::new(Arc::clone(&self.graph), node, 0, self.updating)
    }
}

struct Decoder<T> {
    rows: RowsOf<T>,
    time: Option<TimeOf<T>>,
    updating: bool,
}

impl<T: Clone + Send + 'static> Decode for Decoder<T> {
    fn decode(&self, records: &[FetchedRecord]) -> Decoded {
        let mut chunk =
            Chunk { time: Vec::with_capacity(records.len()), op: None, data: Vec::with_capacity(records.len()) };
        let mut op = Vec::new();
        let (mut latest, mut bad, mut rows) = (None, Vec::new(), Vec::with_capacity(2));
        for (number, record) in records.iter().enumerate() {
            if let Err(error) = self.record(record, &mut rows) {
                rows.clear();
                bad.push((number, error));
            }
            for (what, time, row) in rows.drain(..) {
                latest = latest.max(Some(time));
                chunk.time.push(time);
                chunk.data.push(row);
                if self.updating {
                    op.push(what);
                }
            }
        }
        chunk.op = self.updating.then_some(op);
        Decoded { chunk: Box::new(chunk), latest, bad }
    }
}

impl<T> Decoder<T> {
    fn record(&self, record: &FetchedRecord, rows: &mut Vec<(Op, i64, T)>) -> Result<()> {
        (self.rows)(record, &mut |op, row| {
            let time = self.time.as_ref().map_or(record.timestamp.0, |time| time(&row));
            if !(-TIME_LIMIT_MS..TIME_LIMIT_MS).contains(&time) {
                return Err(Error::invalid(format!("event time {time} is not within the years -9999 to 9999, in ms")));
            }
            rows.push((op, time, row));
            Ok(())
        })
    }
}

/// A record that could not be decoded, with its place and the cause.
pub(crate) fn dead_letter(topic: &str, partition: u32, record: &FetchedRecord, cause: &Error) -> Record {
    let mut headers = record.headers.clone();
    headers.push(Header::text("tm-dead-cause", cause.to_string()));
    headers.push(Header::text("tm-dead-topic", topic));
    headers.push(Header::text("tm-dead-partition", partition.to_string()));
    headers.push(Header::text("tm-dead-offset", record.offset.to_string()));
    Record { key: record.key.clone(), value: record.value.clone(), headers, timestamp: Some(record.timestamp) }
}
