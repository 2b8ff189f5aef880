//! A job at work, without a log: records of its inputs go in, epochs come out. The runtime and the test driver both put
//! it between a log's reads and its transactions; neither knows more of a job than this.
//!
//! - An epoch holds everything that the records since the last one changed: output, state, input positions. It is
//!   committed whole, or the task is cleared and restored from what was.
//! - An input's watermark is the latest event time of its partition less the allowed delay; a source's is the lowest of
//!   its partitions that are not idle. None goes back.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tidemill_core::record::{FetchedRecord, Record};

use super::{
    graph::{Graph, Publish},
    source::dead_letter,
};
use crate::{
    Error, ErrorKind, Result,
    state::{Changes, KEY_GROUPS},
};

/// A partition that has been at its end for this long, with nothing new, holds the watermark no more.
pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(10);

/// Name of the position that tells what the job's state is of.
const TOPOLOGY: &str = "job";

pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) graph: Graph,
    inputs: BTreeMap<InputId, Input>,
    /// Watermarks of stateful steps as the last epoch has them.
    stored_watermarks: BTreeMap<usize, i64>,
}

/// A partition of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InputId {
    /// The source's place in the graph.
    pub(crate) source: usize,
    pub(crate) partition: u32,
}

struct Input {
    place: Place,
    is_changed: bool,
    at_end_since: Option<Duration>,
    is_idle: bool,
}

/// Where a job is in a partition, as its position tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The topic's identity: one made anew has other records at these offsets.
    topic_id: String,
    offset: i64,
    watermark: i64,
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
    /// Changed state by the step's node.
    pub(crate) state: Vec<(usize, Changes)>,
    /// Positions to set.
    pub(crate) positions: Vec<(String, String)>,
    /// What to show when it is durable.
    pub(crate) publish: Vec<Publish>,
}

impl Task {
    /// A task that has read nothing.
    ///
    /// # Errors
    /// `Invalid` lists what is wrong with the job.
    pub(crate) fn new(name: String, graph: Graph) -> Result<Self> {
        graph.check()?;
        Ok(Self { name, graph, inputs: BTreeMap::new(), stored_watermarks: BTreeMap::new() })
    }

    pub(crate) fn input_position(&self, id: InputId) -> String {
        format!("input:{}:{}", self.graph.sources[id.source].topic, id.partition)
    }

    /// Checks that stored state is of these steps. The steps named in `reset` may be new, gone or changed: returns them,
    /// their state is to be forgotten.
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
            let names = mine.steps.keys().chain(theirs.steps.keys());
            let mut differ: Vec<&String> =
                names.filter(|name| mine.steps.get(*name) != theirs.steps.get(*name)).collect();
            differ.retain(|name| !reset.contains(*name));
            differ.dedup();
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
    pub(crate) fn add_input(&mut self, id: InputId, topic_id: &str, stored: Option<&String>, start: i64) -> Result<()> {
        let place = match stored {
            Some(stored) => from_position(stored)?,
            None => Place { topic_id: topic_id.to_owned(), offset: start, watermark: i64::MIN },
        };
        if place.topic_id != topic_id {
            return Err(Error::conflict(format!(
                "topic {} was deleted and made again since this job read it; give the job another name to start anew",
                self.graph.sources[id.source].topic
            )));
        }
        self.inputs.insert(id, Input { place, is_changed: false, at_end_since: None, is_idle: false });
        Ok(())
    }

    /// All inputs: those whose records are oldest come first, so that a backlog is read in the order of event time.
    pub(crate) fn inputs(&self) -> Vec<(InputId, i64)> {
        let mut all: Vec<_> = self.inputs.iter().collect();
        all.sort_by_key(|(id, input)| (input.place.watermark, **id));
        all.into_iter().map(|(id, input)| (*id, input.place.offset)).collect()
    }

    /// Takes the step's stored watermark.
    pub(crate) fn restore_watermark(
        &mut self,
        node: usize,
        step: &str,
        stored: &BTreeMap<String, String>,
    ) -> Result<()> {
        if let Some(watermark) = stored.get(&step_position(step)) {
            self.graph.state(node)?.set_watermark(from_position(watermark)?);
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
            let Some(output) = source.dead_letters else {
                let place = format!("{}[{}]@{}", source.topic, id.partition, record.offset);
                let help = "write .dead_letters(\"..\") to set such records aside";
                return Err(Error::new(ErrorKind::Invalid, format!("{place}: {cause}; {help}")));
            };
            dead.push((output, dead_letter(&source.topic, id.partition, record, &cause)));
        }
        let (node, delay_ms) = (source.node, source.delay_ms);
        self.graph.status.add_records(records.len());
        self.graph.status.add_dead(dead.len());
        self.graph.records.append(&mut dead);
        self.graph.inject(node, decoded.chunk);
        let input = self.inputs.get_mut(&id).ok_or_else(|| Error::internal("records of an unknown input"))?;
        input.place.offset = next_offset;
        if let Some(latest) = decoded.latest {
            input.place.watermark = input.place.watermark.max(latest.saturating_sub(delay_ms));
        }
        input.is_changed = true;
        (input.at_end_since, input.is_idle) = (None, false);
        self.advance()
    }

    /// Tells whether an input has nothing to read at `now`, a time that never goes back.
    pub(crate) fn observe(&mut self, id: InputId, is_at_end: bool, now: Duration) {
        let Some(input) = self.inputs.get_mut(&id) else { return };
        if is_at_end {
            let since = *input.at_end_since.get_or_insert(now);
            input.is_idle = now.saturating_sub(since) >= IDLE_AFTER;
        } else {
            (input.at_end_since, input.is_idle) = (None, false);
        }
    }

    /// Carries the watermarks on.
    ///
    /// # Errors
    /// Those of the job's steps.
    pub(crate) fn advance(&mut self) -> Result<()> {
        let mut lowest = i64::MAX;
        for (number, node) in self.graph.sources.iter().map(|source| source.node).enumerate().collect::<Vec<_>>() {
            let busy = self.inputs.iter().filter(|(id, input)| id.source == number && !input.is_idle);
            let watermark = busy.map(|(_, input)| input.place.watermark).min();
            if let Some(watermark) = watermark {
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
        for node in self.graph.sources.iter().map(|source| source.node).collect::<Vec<_>>() {
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
        for node in &mut self.graph.nodes {
            epoch.publish.extend(node.operator.publish()?);
        }
        for (node, step) in self.graph.stateful() {
            let mut changes = Changes::default();
            let state = self.graph.state(node)?;
            state.barrier(&mut changes).map_err(|e| e.context(format!("step {step}")))?;
            let watermark = state.watermark();
            if self.stored_watermarks.insert(node, watermark) != Some(watermark) {
                epoch.positions.push((step_position(&step), to_position(&watermark)?));
            }
            if !changes.entries.is_empty() {
                epoch.state.push((node, changes));
            }
        }
        let changed: Vec<InputId> =
            self.inputs.iter().filter(|(_, input)| input.is_changed).map(|(id, _)| *id).collect();
        for id in changed {
            let position = self.input_position(id);
            if let Some(input) = self.inputs.get_mut(&id) {
                input.is_changed = false;
                epoch.positions.push((position, to_position(&input.place)?));
            }
        }
        let is_empty = epoch.records.is_empty() && epoch.state.is_empty() && epoch.positions.is_empty();
        Ok(if is_empty && epoch.publish.is_empty() { None } else { Some(epoch) })
    }

    /// Forgets everything, to be restored.
    pub(crate) fn clear(&mut self) {
        self.inputs.clear();
        self.stored_watermarks.clear();
        self.graph.clear();
    }
}

pub(crate) fn step_position(step: &str) -> String {
    format!("watermark:{step}")
}

fn to_position<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal("encode a position").with_source(e))
}

fn from_position<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::corrupt(format!("position {text:?} is malformed")).with_source(e))
}
