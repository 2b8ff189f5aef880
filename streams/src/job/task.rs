//! A job at work, without a log: records of its inputs go in, epochs come out. The runtime and the test driver both put
//! it between a log's reads and its transactions; neither knows more of a job than this.
//!
//! An epoch holds everything that the records since the last one changed: output, state, input positions. It is
//! committed whole, or the task is cleared and restored from what was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidemill_core::record::{FetchedRecord, Record};

use super::{
    changelog::{Changelogs, Part, Restore},
    graph::{Graph, Publish},
    input::{InputId, Inputs, position},
    source::dead_letter,
};
use crate::{
    Error, ErrorKind, Result,
    state::{Changes, KEY_GROUPS},
};

/// Name of the position that tells what the job's state is of.
const TOPOLOGY: &str = "job";

pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) graph: Graph,
    inputs: Inputs,
    logs: Changelogs,
    /// Watermarks of stateful steps as the last epoch has them.
    stored_watermarks: BTreeMap<usize, i64>,
}

/// What the steps of a job's stored state are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Topology {
    key_groups: u32,
    steps: BTreeMap<String, String>,
}

/// What one transaction of the log holds.
#[derive(Default)]
pub(crate) struct Epoch {
    /// Records by the output topic's place in the graph.
    pub(crate) records: Vec<(usize, Record)>,
    /// Changed state.
    pub(crate) state: Vec<Part>,
    /// Positions to set.
    pub(crate) positions: Vec<(String, String)>,
    /// What to show when it is durable.
    pub(crate) publish: Vec<Publish>,
}

impl Epoch {
    fn is_empty(&self) -> bool {
        let Self { records, state, positions, publish } = self;
        records.is_empty() && state.is_empty() && positions.is_empty() && publish.is_empty()
    }
}

impl Task {
    /// A task that has read nothing.
    ///
    /// # Errors
    /// `Invalid` lists what is wrong with the job.
    pub(crate) fn new(name: String, graph: Graph) -> Result<Self> {
        graph.check(&name)?;
        Ok(Self {
            name,
            graph,
            inputs: Inputs::default(),
            logs: Changelogs::default(),
            stored_watermarks: BTreeMap::new(),
        })
    }

    /// Checks that stored state is of these steps, but for those in `reset`, which may be new, gone or changed. Returns
    /// the position that says what the steps are now.
    ///
    /// # Errors
    /// `Conflict` names the steps that differ.
    pub(crate) fn check_topology(
        &mut self,
        stored: &BTreeMap<String, String>,
        reset: &[String],
    ) -> Result<(String, String)> {
        let mine = self.topology()?;
        if let Some(theirs) = stored.get(TOPOLOGY) {
            let theirs: Topology = from_position(theirs)?;
            let names: BTreeSet<&String> = mine.steps.keys().chain(theirs.steps.keys()).collect();
            let differ =
                |name: &&&String| mine.steps.get(**name) != theirs.steps.get(**name) && !reset.contains(**name);
            let differ: Vec<&String> = names.iter().filter(differ).copied().collect();
            if let Some(first) = differ.first() {
                let says = |topology: &Topology| topology.steps.get(*first).cloned().unwrap_or_else(|| "absent".into());
                let names = differ.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Error::conflict(format!(
                    "stored state does not fit the job's steps {names} ({first} is {} here and {} in the state); \
                     to forget the state of a step: reset_state(\"{first}\")",
                    says(&mine),
                    says(&theirs)
                )));
            }
            if theirs.key_groups != mine.key_groups {
                return Err(Error::conflict(format!("stored state has {} key groups", theirs.key_groups)));
            }
        }
        Ok((TOPOLOGY.to_owned(), to_position(&mine)?))
    }

    fn topology(&mut self) -> Result<Topology> {
        let mut steps = BTreeMap::new();
        for (node, name) in self.graph.stateful() {
            steps.insert(name, self.graph.state(node)?.describe());
        }
        Ok(Topology { key_groups: KEY_GROUPS, steps })
    }

    /// Adds an input, where its stored position says, or at `start`.
    ///
    /// # Errors
    /// `Conflict` where the topic is another one than was read.
    pub(crate) fn add_input(
        &mut self,
        id: InputId,
        topic_id: &str,
        stored: &BTreeMap<String, String>,
        start: i64,
    ) -> Result<()> {
        let topic = &self.graph.sources[id.source].topic;
        let stored = stored.get(&position(topic, id.partition));
        if self.inputs.add(id, topic_id, stored, start)? { Ok(()) } else { Err(made_again(topic)) }
    }

    /// Inputs and where to read on in each, in the order in which they are best read.
    pub(crate) fn inputs(&self) -> Vec<(InputId, i64)> {
        self.inputs.oldest_first()
    }

    /// Takes what the changelog has of a key group.
    ///
    /// # Errors
    /// `Corrupt` where it does not fit the step.
    pub(crate) fn restore(&mut self, node: usize, key_group: u32, entries: Restore) -> Result<()> {
        self.logs.restore(node, key_group, entries, self.graph.state(node)?)
    }

    /// Takes the step's stored watermark.
    ///
    /// # Errors
    /// `Corrupt` where it is none.
    pub(crate) fn restore_watermark(
        &mut self,
        node: usize,
        step: &str,
        stored: &BTreeMap<String, String>,
    ) -> Result<()> {
        if let Some(watermark) = stored.get(&step_position(step)) {
            let watermark = from_position(watermark)?;
            self.graph.state(node)?.set_watermark(watermark);
            self.stored_watermarks.insert(node, watermark);
        }
        Ok(())
    }

    /// Takes records of an input and carries them as far as they go.
    ///
    /// # Errors
    /// Those of the job's steps; `Invalid` for a record that does not fit, where nobody said where such go.
    pub(crate) fn feed(&mut self, id: InputId, records: &[FetchedRecord], next_offset: i64) -> Result<()> {
        let source = &self.graph.sources[id.source];
        let decoded = source.decode.decode(records);
        let mut dead = Vec::new();
        for (number, cause) in decoded.bad {
            let record = &records[number];
            let place = format!("{}[{}]@{}", source.topic, id.partition, record.offset);
            if cause.kind() == ErrorKind::Unavailable {
                // Not the record's fault: what its decoder needs is away.
                return Err(cause.context(place));
            }
            let Some(output) = source.dead_letters else {
                let help = "write .dead_letters(\"..\") to set such records aside";
                return Err(Error::invalid(format!("{place}: {cause}; {help}")));
            };
            dead.push((output, dead_letter(&source.topic, id.partition, record, &cause)));
        }
        let node = source.node;
        let watermark = decoded.latest.map(|latest| latest.saturating_sub(source.delay_ms));
        self.graph.status.add_records(records.len());
        self.graph.status.add_dead(dead.len());
        self.graph.records.append(&mut dead);
        self.graph.inject(node, decoded.chunk);
        self.inputs.read(id, next_offset, watermark)?;
        self.advance()
    }

    /// Tells whether an input has nothing to read at `now`, a time that never goes back.
    pub(crate) fn observe(&mut self, id: InputId, is_at_end: bool, now: Duration) {
        self.inputs.observe(id, is_at_end, now);
    }

    /// Carries the watermarks on.
    ///
    /// # Errors
    /// Those of the job's steps.
    pub(crate) fn advance(&mut self) -> Result<()> {
        let mut lowest = i64::MAX;
        for (source, node) in self.graph.source_nodes().into_iter().enumerate() {
            if let Some(watermark) = self.inputs.watermark(source) {
                self.graph.set_source_watermark(node, watermark);
            }
            lowest = lowest.min(self.graph.source_watermark(node));
        }
        self.graph.status.set_watermark(lowest);
        self.graph.sweep()
    }

    /// The end of all inputs: every window closes.
    ///
    /// # Errors
    /// Those of the job's steps.
    pub(crate) fn end(&mut self) -> Result<()> {
        for node in self.graph.source_nodes() {
            self.graph.set_source_watermark(node, i64::MAX);
        }
        self.graph.sweep()
    }

    /// Ends an epoch: everything that changed since the last one. `None` where nothing did.
    ///
    /// # Errors
    /// `Invalid` for state that cannot be encoded.
    pub(crate) fn barrier(&mut self) -> Result<Option<Epoch>> {
        let mut epoch = Epoch { records: std::mem::take(&mut self.graph.records), ..Epoch::default() };
        epoch.publish = self.graph.publish()?;
        for (node, step) in self.graph.stateful() {
            self.step_barrier(node, &step, &mut epoch).map_err(|e| e.context(format!("step {step}")))?;
        }
        for (id, place) in self.inputs.take_changed()? {
            epoch.positions.push((position(&self.graph.sources[id.source].topic, id.partition), place));
        }
        Ok(if epoch.is_empty() { None } else { Some(epoch) })
    }

    fn step_barrier(&mut self, node: usize, step: &str, epoch: &mut Epoch) -> Result<()> {
        let mut changes = Changes::default();
        let state = self.graph.state(node)?;
        state.barrier(&mut changes)?;
        let watermark = state.watermark();
        epoch.state.append(&mut self.logs.parts(&self.name, step, node, &*state, changes)?);
        if self.stored_watermarks.insert(node, watermark).unwrap_or(i64::MIN) != watermark {
            epoch.positions.push((step_position(step), to_position(&watermark)?));
        }
        Ok(())
    }

    /// Forgets everything, to be restored.
    pub(crate) fn clear(&mut self) {
        self.inputs.clear();
        self.logs.clear();
        self.stored_watermarks.clear();
        self.graph.clear();
    }
}

/// The name of the position that holds a step's watermark.
pub(crate) fn step_position(step: &str) -> String {
    format!("watermark:{step}")
}

/// A topic is not the one that was read.
pub(crate) fn made_again(topic: &str) -> Error {
    Error::conflict(format!(
        "topic {topic} was deleted and made again since this job read it; give the job another name to start anew"
    ))
}

pub(super) fn to_position<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal("encode a position").with_source(e))
}

pub(crate) fn from_position<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::corrupt(format!("position {text:?} is malformed")).with_source(e))
}
