//! A job as a graph: nodes in the order they were made, so that each comes after those it reads. Chunks and watermarks
//! pass through it in one sweep; nothing here waits.

use std::{any::Any, collections::BTreeSet, sync::Arc};

use tidemill_core::{
    record::Record,
    topic::{INTERNAL_PREFIX, validate_name},
};

use super::{changelog, source::Source, status::Status};
use crate::{
    Error, Result,
    chunk::{Chunk, Rows},
    state::State,
};

/// A chunk of rows of some type.
pub(crate) trait AnyRows: Send {
    fn copy(&self) -> AnyChunk;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// A chunk whose type only its two ends know.
pub(crate) type AnyChunk = Box<dyn AnyRows>;

impl<D: Rows> AnyRows for Chunk<D> {
    fn copy(&self) -> AnyChunk {
        Box::new(self.clone())
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// The chunk as what its receiver knows it to be.
pub(crate) fn typed<D: Rows>(chunk: AnyChunk) -> Result<Chunk<D>> {
    let chunk = chunk.into_any().downcast::<Chunk<D>>();
    chunk.map(|chunk| *chunk).map_err(|_| Error::internal("a chunk has another type than its stream"))
}

/// What an operator gives out.
#[derive(Default)]
pub(crate) struct Out {
    emitted: Vec<(usize, AnyChunk)>,
    /// Records for topics, by the topic's place in [`Graph::outputs`].
    pub(crate) records: Vec<(usize, Record)>,
}

impl Out {
    pub(crate) fn emit<D: Rows>(&mut self, port: usize, chunk: Chunk<D>) {
        if !chunk.time.is_empty() {
            self.emitted.push((port, Box::new(chunk)));
        }
    }
}

/// Makes what an epoch changed visible to views. Called when the epoch is durable, dropped when it never will be.
pub(crate) type Publish = Box<dyn FnOnce(u64) + Send>;

/// A step of a job: a synchronous state machine.
pub(crate) trait Operator: Send {
    /// Takes rows of the input.
    fn chunk(&mut self, chunk: AnyChunk, out: &mut Out) -> Result<()>;

    /// Takes a higher watermark, and returns the one that holds for what this step emits.
    fn watermark(&mut self, watermark: i64, _out: &mut Out) -> Result<i64> {
        Ok(watermark)
    }

    /// The step's state, where it has one.
    fn state(&mut self) -> Option<&mut dyn State> {
        None
    }

    /// What views shall see of this epoch. Called before the state's barrier.
    fn publish(&mut self) -> Result<Option<Publish>> {
        Ok(None)
    }
}

pub(crate) struct Node {
    /// The name of a stateful step.
    pub(crate) step: Option<String>,
    pub(crate) operator: Box<dyn Operator>,
    /// Nodes and ports that this one reads.
    inputs: Vec<(usize, usize)>,
    watermark_in: i64,
    watermark_out: i64,
}

/// A whole job.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) sources: Vec<Source>,
    pub(crate) nodes: Vec<Node>,
    /// Topics that are written, by name.
    pub(crate) outputs: Vec<String>,
    /// What is wrong with the job; told all at once when it starts.
    pub(crate) faults: Vec<String>,
    pub(crate) status: Arc<Status>,
    /// Late outputs that nobody reads yet: node, port and step.
    unread: BTreeSet<(usize, usize, String)>,
    queues: Vec<Vec<AnyChunk>>,
    pub(crate) records: Vec<(usize, Record)>,
}

impl Graph {
    /// Adds a node that reads `inputs`, and returns its number.
    pub(crate) fn add(
        &mut self,
        step: Option<String>,
        operator: Box<dyn Operator>,
        inputs: Vec<(usize, usize)>,
    ) -> usize {
        if let Some(name) = step.as_ref().filter(|name| self.nodes.iter().any(|node| node.step.as_ref() == Some(name)))
        {
            self.faults.push(format!("two steps are called {name:?}"));
        }
        self.nodes.push(Node { step, operator, inputs, watermark_in: i64::MIN, watermark_out: i64::MIN });
        self.queues.push(Vec::new());
        self.nodes.len() - 1
    }

    /// The place of an output topic.
    pub(crate) fn output(&mut self, topic: &str) -> usize {
        if let Err(error) = validate_name(topic) {
            self.faults.push(error.message().to_owned());
        }
        let known = self.outputs.iter().position(|name| name == topic);
        known.unwrap_or_else(|| {
            self.outputs.push(topic.to_owned());
            self.outputs.len() - 1
        })
    }

    /// A port that somebody must read, or say that nobody does.
    pub(crate) fn must_read(&mut self, node: usize, port: usize, step: &str) {
        self.unread.insert((node, port, step.to_owned()));
    }

    /// A stateless step that reads such a port hands its duty on: rows that it lets through must be read in turn.
    pub(crate) fn hand_on(&mut self, from: (usize, usize), to: usize) {
        let owed = self.unread.iter().find(|(node, port, _)| (*node, *port) == from);
        if let Some((.., step)) = owed.cloned() {
            self.read(from.0, from.1);
            self.must_read(to, 0, &step);
        }
    }

    pub(crate) fn read(&mut self, node: usize, port: usize) {
        self.unread.retain(|(n, p, _)| (*n, *p) != (node, port));
    }

    /// All that is wrong, or nothing.
    pub(crate) fn check(&self, job: &str) -> Result<()> {
        let unread = self.unread.iter().map(|(_, _, step)| {
            format!(
                "step {step:?}: late rows go nowhere; write late.to_topic(\"..\"), or late.discard() to only count them"
            )
        });
        let mut faults: Vec<String> = self.faults.iter().cloned().chain(unread).collect();
        for (_, step) in self.stateful() {
            if step.is_empty() || step.contains('.') {
                faults.push(format!("step {step:?}: a step needs a name, without dots"));
            }
            let changelog = changelog::topic(job, &step);
            if let Err(error) = validate_name(&changelog) {
                faults.push(format!("changelog of step {step:?}: {}", error.message()));
            }
            if self.outputs.contains(&changelog) {
                faults.push(format!("topic {changelog:?} is the changelog of step {step:?}"));
            }
        }
        let topics = self.sources.iter().map(|source| &source.topic).chain(&self.outputs);
        let internal = topics.filter(|topic| topic.starts_with(INTERNAL_PREFIX));
        faults.extend(internal.map(|topic| format!("topic {topic:?} is the log's own")));
        if self.sources.is_empty() {
            faults.push("the job reads no topic".into());
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::invalid(faults.join("; "))) }
    }

    /// Puts a source's rows into its node's outputs.
    pub(crate) fn inject(&mut self, node: usize, chunk: AnyChunk) {
        let mut out = Out { emitted: vec![(0, chunk)], records: Vec::new() };
        self.route(node, &mut out);
    }

    /// Sets the watermark that a source gives out; the next sweep carries it on.
    pub(crate) fn set_source_watermark(&mut self, node: usize, watermark: i64) {
        let node = &mut self.nodes[node];
        node.watermark_out = node.watermark_out.max(watermark);
    }

    pub(crate) fn source_watermark(&self, node: usize) -> i64 {
        self.nodes[node].watermark_out
    }

    /// Carries all rows and watermarks as far as they go.
    pub(crate) fn sweep(&mut self) -> Result<()> {
        let mut out = Out::default();
        for number in 0..self.nodes.len() {
            if self.nodes[number].inputs.is_empty() {
                continue;
            }
            let chunks = std::mem::take(&mut self.queues[number]);
            let inputs = self.nodes[number].inputs.iter().map(|(node, _)| self.nodes[*node].watermark_out);
            let watermark = inputs.min().unwrap_or(i64::MIN);
            let node = &mut self.nodes[number];
            node.work(chunks, watermark, &mut out).map_err(|error| node.told(error))?;
            self.route(number, &mut out);
        }
        Ok(())
    }

    fn route(&mut self, from: usize, out: &mut Out) {
        self.records.append(&mut out.records);
        for (port, chunk) in out.emitted.drain(..) {
            let readers = self.nodes.iter().enumerate().filter(|(_, node)| node.inputs.contains(&(from, port)));
            let readers: Vec<usize> = readers.map(|(reader, _)| reader).collect();
            let Some((last, others)) = readers.split_last() else { continue };
            for reader in others {
                self.queues[*reader].push(chunk.copy());
            }
            self.queues[*last].push(chunk);
        }
    }

    /// Steps with state, with their nodes.
    pub(crate) fn stateful(&self) -> Vec<(usize, String)> {
        let step = |(number, node): (usize, &Node)| Some((number, node.step.clone()?));
        self.nodes.iter().enumerate().filter_map(step).collect()
    }

    pub(crate) fn source_nodes(&self) -> Vec<usize> {
        self.sources.iter().map(|source| source.node).collect()
    }

    /// What views shall see of this epoch.
    pub(crate) fn publish(&mut self) -> Result<Vec<Publish>> {
        let mut all = Vec::new();
        for node in &mut self.nodes {
            let published = node.operator.publish();
            all.extend(published.map_err(|error| node.told(error))?);
        }
        Ok(all)
    }

    pub(crate) fn state(&mut self, node: usize) -> Result<&mut dyn State> {
        self.nodes[node].operator.state().ok_or_else(|| Error::internal("a named step has no state"))
    }

    /// Forgets all state, rows and watermarks.
    pub(crate) fn clear(&mut self) {
        for node in &mut self.nodes {
            (node.watermark_in, node.watermark_out) = (i64::MIN, i64::MIN);
            if let Some(state) = node.operator.state() {
                state.clear();
            }
        }
        self.queues.iter_mut().for_each(Vec::clear);
        self.records.clear();
    }
}

impl Node {
    fn told(&self, error: Error) -> Error {
        match &self.step {
            Some(step) => error.context(format!("step {step}")),
            None => error,
        }
    }

    fn work(&mut self, chunks: Vec<AnyChunk>, watermark: i64, out: &mut Out) -> Result<()> {
        for chunk in chunks {
            self.operator.chunk(chunk, out)?;
        }
        if watermark > self.watermark_in {
            self.watermark_in = watermark;
            self.watermark_out = self.operator.watermark(watermark, out)?.max(self.watermark_out);
        }
        Ok(())
    }
}
