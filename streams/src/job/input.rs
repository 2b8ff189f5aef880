//! What a job reads: the partitions of its topics, how far it is in each, and which of them hold the watermark.
//!
//! A partition's watermark is its latest event time less the allowed delay; a source's is the lowest of its partitions
//! that are not idle. None goes back.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::task::{from_position, to_position};
use crate::{Error, Result};

/// A partition that has been at its end for this long, with nothing new, holds the watermark no more.
const IDLE_AFTER: Duration = Duration::from_secs(10);

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

/// The name of an input's position.
pub(crate) fn position(topic: &str, partition: u32) -> String {
    format!("input:{topic}:{partition}")
}

/// All inputs of a job.
#[derive(Default)]
pub(super) struct Inputs(BTreeMap<InputId, Input>);

impl Inputs {
    /// Adds an input, where its stored position says, or at `start`. Whether it is the topic that was read before.
    pub(super) fn add(&mut self, id: InputId, topic_id: &str, stored: Option<&String>, start: i64) -> Result<bool> {
        let place = match stored {
            Some(stored) => from_position(stored)?,
            None => Place { topic_id: topic_id.to_owned(), offset: start, watermark: i64::MIN },
        };
        let is_same = place.topic_id == topic_id;
        self.0.insert(id, Input { place, is_changed: false, at_end_since: None, is_idle: false });
        Ok(is_same)
    }

    /// All inputs: those whose records are oldest come first, so that a backlog is read in the order of event time.
    pub(super) fn oldest_first(&self) -> Vec<(InputId, i64)> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by_key(|(id, input)| (input.place.watermark, **id));
        all.into_iter().map(|(id, input)| (*id, input.place.offset)).collect()
    }

    /// Takes note of records that were read, and of the watermark of the latest.
    pub(super) fn read(&mut self, id: InputId, next_offset: i64, watermark: Option<i64>) -> Result<()> {
        let input = self.0.get_mut(&id).ok_or_else(|| Error::internal("records of an unknown input"))?;
        input.place.offset = next_offset;
        input.place.watermark = input.place.watermark.max(watermark.unwrap_or(i64::MIN));
        input.is_changed = true;
        (input.at_end_since, input.is_idle) = (None, false);
        Ok(())
    }

    /// Tells whether an input has nothing to read at `now`, a time that never goes back.
    pub(super) fn observe(&mut self, id: InputId, is_at_end: bool, now: Duration) {
        let Some(input) = self.0.get_mut(&id) else { return };
        if is_at_end {
            let since = *input.at_end_since.get_or_insert(now);
            input.is_idle = now.saturating_sub(since) >= IDLE_AFTER;
        } else {
            (input.at_end_since, input.is_idle) = (None, false);
        }
    }

    /// A source's watermark; `None` where all of its partitions are idle: it stays where it is.
    pub(super) fn watermark(&self, source: usize) -> Option<i64> {
        let busy = self.0.iter().filter(|(id, input)| id.source == source && !input.is_idle);
        busy.map(|(_, input)| input.place.watermark).min()
    }

    /// Inputs that were read since the last call, with the positions to store.
    pub(super) fn take_changed(&mut self) -> Result<Vec<(InputId, String)>> {
        let changed = self.0.iter_mut().filter(|(_, input)| input.is_changed);
        let position = |(id, input): (&InputId, &mut Input)| {
            input.is_changed = false;
            Ok((*id, to_position(&input.place)?))
        };
        changed.map(position).collect()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
