//! How far a sync is in its target, as the target's own table tells it, and who may go on.
//!
//! A sink reads its rows of the table under a lock at the beginning of each transaction. They must be what it left there:
//! then it is the only worker, and no change counts twice. Where the answer to a commit was lost, they may also be what
//! that commit wrote. The first transaction of a sink claims a generation, which shuts out an older worker.

use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::{BuildHasher, Hasher},
};

use super::{
    REPLACE,
    lanes::{Positions, is_lane},
};
use crate::{Error, Result};

/// One row of the table: a topic of the sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The topic.
    pub topic: String,
    /// The log that it belongs to.
    pub log_id: String,
    /// The next offset to apply.
    pub next_offset: i64,
    /// The schema that the table's rows were copied under, by its bits; `None` before there is a table.
    pub copy: Option<i64>,
    /// The newest schema whose columns the table has.
    pub schema: Option<i64>,
    /// The generation of the worker that wrote last.
    pub generation: i64,
}

/// What a transaction is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing: the commit whose answer was lost had done it.
    Done,
    /// To apply the changes and write this generation.
    Apply {
        /// The generation.
        generation: i64,
    },
}

/// What a sink knows of its positions.
#[derive(Debug)]
pub struct Ledger {
    sync: String,
    log_id: String,
    /// What the target has, as far as we know.
    known: Option<BTreeMap<String, i64>>,
    /// What the target may have instead, after a commit whose answer was lost.
    in_doubt: Option<BTreeMap<String, i64>>,
    generation: Option<i64>,
    /// The generation before ours, until ours is known to be committed.
    before: Option<i64>,
    /// Where lanes were when the positions were read.
    lanes: BTreeMap<String, i64>,
}

impl Ledger {
    /// A ledger that knows nothing yet.
    pub fn new(sync: &str, log_id: &str) -> Self {
        let (sync, log_id) = (sync.to_owned(), log_id.to_owned());
        Self { sync, log_id, known: None, in_doubt: None, generation: None, before: None, lanes: BTreeMap::new() }
    }

    /// The sync's name.
    pub fn sync(&self) -> &str {
        &self.sync
    }

    /// The log's identity.
    pub fn log_id(&self) -> &str {
        &self.log_id
    }

    /// Refuses a target whose positions belong to another log.
    ///
    /// # Errors
    /// `Conflict` with the ways out.
    pub fn check_owner(&self, target: &str, rows: &[Stored]) -> Result<()> {
        let Some(other) = rows.iter().find(|row| row.log_id != self.log_id) else { return Ok(()) };
        Err(Error::conflict(format!(
            "target {target} was filled by sync {} from another log ({}, this is {}): use the old data directory, or name \
             a new target, or drop the sync's tables there and copy them anew: {REPLACE}",
            self.sync, other.log_id, self.log_id
        )))
    }

    /// Takes up what the target has.
    pub fn read(&mut self, rows: &[Stored]) -> Positions {
        let positions = Positions::of(rows);
        self.known = Some(positions.next.clone());
        self.lanes = lanes_of(rows);
        self.in_doubt = None;
        positions
    }

    /// The generation that it has claimed.
    pub fn generation(&self) -> Option<i64> {
        self.generation
    }

    /// Refuses a lane of a sink that another worker has shut out; `rows` are locked.
    ///
    /// # Errors
    /// `Conflict` where another worker has written since.
    pub fn check_lane(&self, target: &str, rows: &[Stored], topics: usize, generation: i64) -> Result<()> {
        self.check_owner(target, rows)?;
        match rows.len() == topics && rows.iter().all(|row| row.generation == generation) {
            true => Ok(()),
            false => Err(self.another(target)),
        }
    }

    fn another(&self, target: &str) -> Error {
        Error::conflict(format!(
            "another worker of sync {} has written to target {target} since: stop one of the two, then run the sync again",
            self.sync
        ))
    }

    /// What a transaction that would end at these offsets is to do; `rows` are locked.
    ///
    /// # Errors
    /// `Conflict` where another worker has written since.
    pub fn begin(&mut self, target: &str, rows: &[Stored], next_offsets: &[(String, i64)]) -> Result<Turn> {
        self.check_owner(target, rows)?;
        let present = rows.iter().map(|row| row.generation).max().unwrap_or(0);
        // Before the claim is committed an older worker may still write, and its lanes.
        let moved = |known: &BTreeMap<String, i64>| *known != Positions::of(rows).next || self.lanes != lanes_of(rows);
        if self.generation != Some(present) && self.known.as_ref().is_some_and(moved) {
            return Err(self.another(target));
        }
        let generation = match self.generation {
            Some(own) if present == own => {
                self.before = None;
                own
            }
            Some(own) if self.before == Some(present) => own,
            Some(_) => return Err(self.another(target)),
            None => {
                let own = next_generation(present);
                self.before = Some(present);
                self.generation = Some(own);
                own
            }
        };
        let has = |topic: &str| rows.iter().find(|row| row.topic == topic).map(|row| row.next_offset);
        // A transaction of no offsets cannot be told from none: its changes are applied again.
        if let Some(doubt) = &self.in_doubt
            && !next_offsets.is_empty()
            && next_offsets.iter().all(|(topic, next)| doubt.get(topic) == Some(next))
            && doubt.iter().all(|(topic, next)| has(topic) == Some(*next))
        {
            return Ok(Turn::Done);
        }
        for (topic, _) in next_offsets {
            let present = has(topic).unwrap_or(0);
            let expected = |positions: &BTreeMap<String, i64>| positions.get(topic).copied().unwrap_or(0) == present;
            let doubted = self.in_doubt.as_ref().is_some_and(|doubt| doubt.get(topic) == Some(&present));
            if !doubted && !self.known.as_ref().is_none_or(expected) {
                return Err(self.another(target));
            }
        }
        Ok(Turn::Apply { generation })
    }

    /// The rows, read under their lock, are what the target has: there is no doubt any more.
    pub fn settled(&mut self, rows: &[Stored]) {
        self.read(rows);
    }

    /// The rows that a transaction leaves: `rows` as they are, but at these offsets.
    pub fn rows_to_store(
        &self,
        rows: &HashMap<String, Stored>,
        next_offsets: &[(String, i64)],
        generation: i64,
    ) -> Vec<Stored> {
        let mut next: BTreeMap<&str, i64> = rows.values().map(|row| (row.topic.as_str(), row.next_offset)).collect();
        next.extend(next_offsets.iter().map(|(topic, offset)| (topic.as_str(), *offset)));
        let row = |(topic, next_offset): (&str, i64)| {
            let (row, log_id) = (rows.get(topic), self.log_id.clone());
            let (copy, schema) = (row.and_then(|row| row.copy), row.and_then(|row| row.schema));
            Stored { topic: topic.to_owned(), log_id, next_offset, copy, schema, generation }
        };
        next.into_iter().map(row).collect()
    }

    /// Rows of the table of positions as SQL's `(..),(..)`, in the order of its columns; empty where there are none.
    pub fn values_sql(&self, rows: &[Stored], literal: impl Fn(&str) -> String) -> String {
        let sync = literal(&self.sync);
        let number = |number: Option<i64>| number.map_or("NULL".into(), |number| number.to_string());
        let values = rows.iter().map(|row| {
            let (log_id, topic) = (literal(&row.log_id), literal(&row.topic));
            let (copy, schema) = (number(row.copy), number(row.schema));
            format!("({sync},{log_id},{topic},{},{copy},{schema},{})", row.next_offset, row.generation)
        });
        values.collect::<Vec<_>>().join(",")
    }

    /// The transaction is about to be committed; whether it was is not known until [`Ledger::committed`].
    pub fn committing(&mut self, next_offsets: &[(String, i64)]) {
        self.in_doubt = Some(next_offsets.iter().cloned().collect());
    }

    /// The transaction was committed.
    pub fn committed(&mut self, next_offsets: &[(String, i64)]) {
        self.known.get_or_insert_default().extend(next_offsets.iter().cloned());
        self.in_doubt = None;
        self.before = None;
    }
}

fn lanes_of(rows: &[Stored]) -> BTreeMap<String, i64> {
    rows.iter().filter(|row| is_lane(row)).map(|row| (row.topic.clone(), row.next_offset)).collect()
}

/// A generation above another. Its low bits are by chance, so that two workers that both go on from one are told apart.
fn next_generation(present: i64) -> i64 {
    let chance = RandomState::new().build_hasher().finish() & 0xffff;
    ((present >> 16).saturating_add(1) << 16) | i64::try_from(chance).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(topic: &str, next_offset: i64, generation: i64) -> Stored {
        let (copy, schema) = (Some(1), Some(1));
        Stored { topic: topic.into(), log_id: "L".into(), next_offset, copy, schema, generation }
    }

    fn apply(ledger: &mut Ledger, rows: &[Stored], next: i64) -> Result<i64> {
        match ledger.begin("t", rows, &[("a".into(), next)])? {
            Turn::Apply { generation } => Ok(generation),
            Turn::Done => Err(Error::internal("done")),
        }
    }

    #[test]
    fn changes_without_offsets_are_applied_again_after_a_lost_answer() {
        let mut ledger = Ledger::new("s", "L");
        let own = apply(&mut ledger, &[], 5).unwrap();
        ledger.committed(&[("a".into(), 5)]);
        // The answer to a transaction that moves no offset is lost: whether it was done, no row tells.
        ledger.committing(&[]);
        let rows = [row("a", 5, own)];
        assert_eq!(ledger.begin("t", &rows, &[]).unwrap(), Turn::Apply { generation: own });
    }

    #[test]
    fn what_was_read_under_the_lock_ends_a_doubt() {
        let mut ledger = Ledger::new("s", "L");
        let own = apply(&mut ledger, &[], 5).unwrap();
        ledger.committed(&[("a".into(), 5)]);
        // The commit at 6 was done and its answer lost; one that moves no offset comes between.
        ledger.committing(&[("a".into(), 6)]);
        let rows = [row("a", 6, own)];
        assert_eq!(ledger.begin("t", &rows, &[]).unwrap(), Turn::Apply { generation: own });
        ledger.settled(&rows);
        ledger.committed(&[]);
        assert_eq!(apply(&mut ledger, &rows, 7).unwrap(), own);
    }

    #[test]
    fn an_older_worker_is_shut_out() {
        let (mut old, mut new) = (Ledger::new("s", "L"), Ledger::new("s", "L"));
        old.read(&[]);
        let first = apply(&mut old, &[], 5).unwrap();
        old.committed(&[("a".into(), 5)]);
        new.read(&[row("a", 5, first)]);
        let second = apply(&mut new, &[row("a", 5, first)], 7).unwrap();
        assert!(second > first);
        // The claim alone is enough: the offsets are still what the older one left.
        assert!(apply(&mut old, &[row("a", 5, second)], 9).unwrap_err().to_string().contains("another worker"));
        // And one that never claimed sees that offsets moved.
        let mut idle = Ledger::new("s", "L");
        idle.read(&[]);
        assert!(apply(&mut idle, &[row("a", 7, second)], 9).is_err());
    }

    #[test]
    fn lanes_write_under_their_sinks_generation_alone() {
        let mut ledger = Ledger::new("s", "L");
        ledger.read(&[]);
        let own = apply(&mut ledger, &[], 5).unwrap();
        let lane = Ledger::new("s", "L");
        assert!(lane.check_lane("t", &[row("a", 5, own)], 1, own).is_ok());
        let shut_out = lane.check_lane("t", &[row("a", 5, own + (1 << 16))], 1, own);
        assert!(shut_out.unwrap_err().to_string().contains("another worker"));
        // The positions were removed.
        assert!(lane.check_lane("t", &[], 1, own).is_err());
    }

    #[test]
    fn a_lane_that_moves_before_the_claim_is_another_workers() {
        let mut ledger = Ledger::new("s", "L");
        ledger.read(&[row("a", 5, 1), row("a#0/2", 9, 1)]);
        let moved = [row("a", 5, 1), row("a#0/2", 9, 1), row("a#1/2", 9, 1)];
        assert!(apply(&mut ledger, &moved, 9).is_err());
        assert!(apply(&mut ledger, &moved[..2], 9).is_ok());
        // The claim was not committed: it is looked at again.
        assert!(apply(&mut ledger, &moved, 9).is_err());
        assert!(apply(&mut ledger, &[row("a", 7, 1), row("a#0/2", 9, 1)], 9).is_err());
        assert!(apply(&mut ledger, &moved[..2], 9).is_ok());
    }

    #[test]
    fn a_commit_without_an_answer_counts_once() {
        let mut ledger = Ledger::new("s", "L");
        ledger.read(&[]);
        let next = [("a".to_owned(), 5)];
        let own = apply(&mut ledger, &[], 5).unwrap();
        ledger.committing(&next);
        // It was not committed: it is done again.
        assert_eq!(apply(&mut ledger, &[], 5).unwrap(), own);
        ledger.committing(&next);
        // It was.
        assert_eq!(ledger.begin("t", &[row("a", 5, own)], &next).unwrap(), Turn::Done);
        assert_eq!(apply(&mut ledger, &[row("a", 5, own)], 8).unwrap(), own);
        assert!(apply(&mut ledger, &[row("a", 6, own)], 8).is_err());
    }

    #[test]
    fn another_logs_target_is_refused() {
        let ledger = Ledger::new("s", "other");
        assert!(ledger.check_owner("t", &[row("a", 1, 1)]).unwrap_err().to_string().contains("--replace"));
    }
}
