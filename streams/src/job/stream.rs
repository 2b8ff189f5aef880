//! The rows of a job as its author sees them: typed streams, keys, windows. Each call adds a node to the job's graph.

use std::{
    marker::PhantomData,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde::Serialize;
use tidemill_core::record::{Record, Timestamp};

use super::{
    graph::{AnyChunk, Graph, Operator, Out, typed},
    windowed::WindowedStream,
};
use crate::{
    Error, Result,
    chunk::{Chunk, Op},
    key::{Key, KeyBy, KeyByRef, Keyer},
    window::Tumbling,
};

pub(crate) type Shared = Arc<Mutex<Graph>>;

pub(crate) fn lock(graph: &Shared) -> MutexGuard<'_, Graph> {
    graph.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows of one type on their way. A clone is a second reader of the same rows.
pub struct Stream<T> {
    pub(super) graph: Shared,
    pub(super) node: usize,
    pub(super) port: usize,
    /// Whether rows may be taken back.
    pub(super) updating: bool,
    rows: PhantomData<fn() -> T>,
}

impl<T> Clone for Stream<T> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.graph), self.node, self.port, self.updating)
    }
}

impl<T> Stream<T> {
    pub(super) fn new(graph: Shared, node: usize, port: usize, updating: bool) -> Self {
        Self { graph, node, port, updating, rows: PhantomData }
    }
}

impl<T: Clone + Send + 'static> Stream<T> {
    fn then<U>(&self, operator: impl Operator + 'static) -> Stream<U> {
        let mut graph = lock(&self.graph);
        let node = graph.add(None, Box::new(operator), vec![(self.node, self.port)]);
        graph.hand_on((self.node, self.port), node);
        drop(graph);
        Stream::new(Arc::clone(&self.graph), node, 0, self.updating)
    }

    /// One row for each row.
    pub fn map<U: Clone + Send + 'static>(self, f: impl Fn(T) -> U + Send + 'static) -> Stream<U> {
        self.then(EachChunk::new(move |chunk: Chunk<Vec<T>>| {
            let data: Vec<U> = chunk.data.into_iter().map(&f).collect();
            Chunk { time: chunk.time, op: chunk.op, data }
        }))
    }

    /// The rows for which `keep` is true.
    pub fn filter(self, keep: impl Fn(&T) -> bool + Send + 'static) -> Stream<T> {
        self.then(EachChunk::new(move |chunk: Chunk<Vec<T>>| filtered(chunk, &keep)))
    }

    /// Any number of rows for each row, all at its time.
    pub fn flat_map<U, I>(self, f: impl Fn(T) -> I + Send + 'static) -> Stream<U>
    where
        U: Clone + Send + 'static,
        I: IntoIterator<Item = U>,
    {
        self.then(EachChunk::new(move |chunk: Chunk<Vec<T>>| {
            let mut out = Chunk { time: Vec::new(), op: chunk.op.as_ref().map(|_| Vec::new()), data: Vec::new() };
            for (row, value) in chunk.data.into_iter().enumerate() {
                out.data.extend(f(value));
                out.time.resize(out.data.len(), chunk.time[row]);
                if let (Some(ops), Some(op)) = (&mut out.op, &chunk.op) {
                    ops.resize(out.data.len(), op[row]);
                }
            }
            out
        }))
    }

    /// Groups rows by a key made of each: `|order| order.customer`.
    pub fn key_by<K: Key, F>(self, key: F) -> KeyedStream<T, KeyBy<T, K, F>>
    where
        F: Fn(&T) -> K + Clone + Send + 'static,
    {
        KeyedStream { stream: self, keyer: KeyBy::new(key) }
    }

    /// Groups rows by a key borrowed from each, which is copied once a window: `|order| order.sku.as_str()`.
    pub fn key_by_ref<Q, F>(self, key: F) -> KeyedStream<T, KeyByRef<T, Q, F>>
    where
        Q: ToOwned + std::hash::Hash + Eq + ?Sized + 'static,
        Q::Owned: Key,
        F: for<'a> Fn(&'a T) -> &'a Q + Clone + Send + 'static,
    {
        KeyedStream { stream: self, keyer: KeyByRef::new(key) }
    }

    /// Says that these rows are wanted by nobody. They are counted where they arise.
    pub fn discard(self) {
        lock(&self.graph).read(self.node, self.port);
    }

    /// Writes each row to a topic, as JSON, without a key. The topic is made with one partition if it is not there.
    pub fn to_topic(self, topic: &str)
    where
        T: Serialize,
    {
        self.write(topic, |_| Ok(None));
    }

    /// As [`Stream::to_topic`], with a key for each row, as JSON.
    pub fn to_topic_by<K: Serialize>(self, topic: &str, key: impl Fn(&T) -> K + Send + 'static)
    where
        T: Serialize,
    {
        self.write(topic, move |row| json(&key(row)).map(Some));
    }

    fn write(self, topic: &str, key: impl Fn(&T) -> Result<Option<Bytes>> + Send + 'static)
    where
        T: Serialize,
    {
        let mut graph = lock(&self.graph);
        if self.updating {
            let fault = format!("topic {topic:?}: rows of this stream may be taken back, which a topic cannot tell");
            graph.faults.push(fault);
        }
        let output = graph.output(topic);
        graph.read(self.node, self.port);
        graph.add(None, Box::new(ToTopic { output, key, rows: PhantomData::<fn(T)> }), vec![(self.node, self.port)]);
    }
}

/// A stream whose rows have keys.
pub struct KeyedStream<T, K> {
    pub(super) stream: Stream<T>,
    pub(super) keyer: K,
}

impl<T: Clone + Send + 'static, K: Keyer<Vec<T>>> KeyedStream<T, K> {
    /// Groups rows by window, too.
    pub fn window(self, windows: Tumbling) -> WindowedStream<T, K> {
        WindowedStream { stream: self.stream, keyer: self.keyer, windows }
    }
}

fn filtered<T>(chunk: Chunk<Vec<T>>, keep: impl Fn(&T) -> bool) -> Chunk<Vec<T>> {
    let kept: Vec<bool> = chunk.data.iter().map(keep).collect();
    if kept.iter().all(|kept| *kept) {
        return chunk;
    }
    fn only<V>(values: Vec<V>, kept: &[bool]) -> Vec<V> {
        values.into_iter().zip(kept).filter_map(|(value, kept)| kept.then_some(value)).collect()
    }
    let op: Option<Vec<Op>> = chunk.op.map(|op| only(op, &kept));
    Chunk { time: only(chunk.time, &kept), op, data: only(chunk.data, &kept) }
}

/// A step that makes one chunk of each.
struct EachChunk<T, U, F> {
    f: F,
    rows: PhantomData<fn(T) -> U>,
}

impl<T, U, F: FnMut(Chunk<Vec<T>>) -> Chunk<Vec<U>>> EachChunk<T, U, F> {
    fn new(f: F) -> Self {
        Self { f, rows: PhantomData }
    }
}

impl<T, U, F> Operator for EachChunk<T, U, F>
where
    T: Clone + Send + 'static,
    U: Clone + Send + 'static,
    F: FnMut(Chunk<Vec<T>>) -> Chunk<Vec<U>> + Send,
{
    fn chunk(&mut self, chunk: AnyChunk, out: &mut Out) -> Result<()> {
        out.emit(0, (self.f)(typed(chunk)?));
        Ok(())
    }
}

struct ToTopic<T, F> {
    output: usize,
    key: F,
    rows: PhantomData<fn(T)>,
}

impl<T, F> Operator for ToTopic<T, F>
where
    T: Serialize + Clone + Send + 'static,
    F: Fn(&T) -> Result<Option<Bytes>> + Send,
{
    fn chunk(&mut self, chunk: AnyChunk, out: &mut Out) -> Result<()> {
        let chunk: Chunk<Vec<T>> = typed(chunk)?;
        for (row, time) in chunk.data.iter().zip(&chunk.time) {
            let (key, value) = ((self.key)(row)?, Some(json(row)?));
            let record = Record { key, value, headers: Vec::new(), timestamp: Some(Timestamp(*time)) };
            out.records.push((self.output, record));
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|e| Error::invalid("a row cannot be written as JSON").with_source(e))
}
