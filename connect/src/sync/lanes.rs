//! The connections that apply large batches beside the sink's own, each a part of the keys.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::apply::{Item, push};
use crate::{
    Error, Result,
    change::{Op, Value},
    connector::{Sink, TopicChanges},
    target::lanes::Lane,
};

/// Lanes that had nothing to do for so long are closed.
const IDLE: Duration = Duration::from_secs(60);
/// How long a target that gave no connection is not asked for another.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The lanes of a sync.
pub(super) struct Lanes {
    of: u32,
    /// By number. None are open before the first large batch and after a failure.
    open: Vec<Option<Box<dyn Sink>>>,
    used: Instant,
    refused: Option<Instant>,
}

impl Lanes {
    /// At most so many lanes; 1 is none beside the sink itself.
    pub(super) fn new(of: u32) -> Self {
        Self { of, open: Vec::new(), used: Instant::now(), refused: None }
    }

    /// How many times as much as a sink alone takes a batch may hold.
    pub(super) fn width(&self) -> usize {
        if self.open.is_empty() { 1 } else { self.of as usize }
    }

    /// Closes lanes that nobody needs any more.
    pub(super) fn rest(&mut self) {
        if self.used.elapsed() > IDLE {
            self.open.clear();
        }
    }

    /// Whether these changes may be dealt, and lanes are open for them.
    pub(super) async fn ready(&mut self, sink: &mut dyn Sink, items: &[Item]) -> bool {
        let rests = self.refused.is_some_and(|since| since.elapsed() < ASK_AGAIN);
        if self.of < 2 || rests {
            return false;
        }
        let mut known = None;
        for item in items {
            if known != Some(item.schema.id) && !sink.may_be_dealt(&item.schema) {
                return false;
            }
            known = Some(item.schema.id);
            // A new row that does not tell all its values has them from the row that its key change deletes.
            if item.change.op == Op::Create
                && item.change.after.as_ref().is_some_and(|row| row.contains(&Value::Unchanged))
            {
                return false;
            }
        }
        self.refused = None;
        self.open.resize_with(self.of as usize, || None);
        for (number, place) in (0..).zip(&mut self.open) {
            if place.is_some() {
                continue;
            }
            match sink.lane(Lane { number, of: self.of }).await {
                Ok(lane) => *place = Some(lane),
                Err(error) => {
                    tracing::warn!(%error, "one connection applies what several might");
                    self.refused = Some(Instant::now());
                    self.open.clear();
                    return false;
                }
            }
        }
        true
    }

    /// Applies changes, each in the lane of its key, and stores how far the lanes are.
    ///
    /// # Errors
    /// Some lanes may have done their part: the target's positions tell.
    pub(super) async fn put(&mut self, items: Vec<Item>, next_offsets: &[(String, i64)]) -> Result<()> {
        let mut parts: Vec<Vec<TopicChanges>> = Vec::new();
        parts.resize_with(self.open.len(), Vec::new);
        for item in items {
            let key = item.record.key.as_deref().unwrap_or_default();
            push(&mut parts[Lane::number_of(key, self.of) as usize], &item.schema, item.change);
        }
        self.used = Instant::now();
        let mut at_work = JoinSet::new();
        for (number, (lane, part)) in std::mem::take(&mut self.open).into_iter().zip(parts).enumerate() {
            let next_offsets = next_offsets.to_vec();
            at_work.spawn(async move {
                let Some(mut lane) = lane else { return Err(Error::internal("a lane is not open")) };
                if !part.is_empty() {
                    lane.put(part, next_offsets).await?;
                }
                Ok((number, lane))
            });
        }
        self.open.resize_with(at_work.len(), || None);
        let mut fault = None;
        while let Some(done) = at_work.join_next().await {
            match done {
                Ok(Ok((number, lane))) => self.open[number] = Some(lane),
                Ok(Err(error)) => fault = Some(error),
                Err(ended) => match ended.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => fault = Some(Error::closed("the process ends")),
                },
            }
        }
        match fault {
            None => Ok(()),
            Some(error) => {
                self.open.clear();
                Err(error)
            }
        }
    }
}
