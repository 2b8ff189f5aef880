//! The plain model: what was sent and what became of it, and what a log may and must show after that.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidemill_core::{
    batch::Marker,
    engine::{Table, TransactionState},
    topic::{PartitionId, TimestampType, TopicConfig},
};

use super::view::{PartitionView, View};

/// One record as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rec {
    pub key: String,
    pub value: Option<String>,
    pub time: i64,
}

/// One batch as it was sent. What has no place was refused, aborted, or is part of a unit on its way.
#[derive(Debug, Clone)]
pub struct Sent {
    pub partition: PartitionId,
    pub records: Vec<Rec>,
    pub bytes: Bytes,
    /// Of Kafka's protocol.
    pub transaction: Option<usize>,
    pub base: Option<i64>,
}

/// What a request changes: all of it or nothing.
#[derive(Debug, Clone)]
pub enum Effect {
    Batch(u64),
    Table(Table, String, Option<String>),
    Create(String),
    Delete(String),
    Alter(String, TopicConfig),
    Grow(String, u32),
    /// Records below were deleted.
    Floor(PartitionId, i64),
    End(usize, Marker),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Open,
    Committed,
    Aborted,
}

/// A transaction of Kafka's protocol.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub name: String,
    pub fate: Fate,
    /// From this time on it may be aborted for its age.
    pub deadline: i64,
    /// Records of the groups' table that it holds.
    pub held: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct Topic {
    pub partitions: Vec<PartitionId>,
    pub config: TopicConfig,
}

/// What a partition's settings, present or past, allow to go.
#[derive(Debug, Clone, Default)]
struct Leave {
    compacts: bool,
    retention_ms: Option<i64>,
    retention_bytes: Option<u64>,
    tombstone_ms: Option<i64>,
    own_time: bool,
}

impl Leave {
    fn add(&mut self, config: &TopicConfig) {
        let least = |a: Option<i64>, b: Option<i64>| a.into_iter().chain(b).min();
        let millis = |d: std::time::Duration| d.as_millis() as i64;
        self.own_time |= config.timestamp_type == TimestampType::LogAppendTime;
        if config.cleanup.compacts() {
            self.compacts = true;
            self.tombstone_ms = least(self.tombstone_ms, Some(millis(config.tombstone_delay)));
        }
        if config.cleanup.deletes() {
            self.retention_ms = least(self.retention_ms, config.retention.map(millis));
            self.retention_bytes = self.retention_bytes.into_iter().chain(config.retention_bytes).min();
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Partition {
    /// (batch, number in it) by offset.
    records: BTreeMap<i64, (u64, usize)>,
    /// No offset below is given any more.
    pub end: i64,
    /// Nothing below is shown again.
    pub floor: i64,
    /// Below, records may have been deleted.
    floor_maybe: i64,
    leave: Leave,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub sent: BTreeMap<u64, Sent>,
    pub topics: BTreeMap<String, Topic>,
    pub partitions: BTreeMap<PartitionId, Partition>,
    dead: BTreeSet<PartitionId>,
    pub tables: BTreeMap<(u32, String), String>,
    pub transactions: Vec<Transaction>,
    /// Asked for and not answered, in order.
    pub pending: Vec<Vec<Effect>>,
}

type Judged = Result<(), String>;

impl Model {
    /// Notes that a batch is at an offset.
    pub fn place(&mut self, tag: u64, base: i64) -> Judged {
        let sent = self.sent.get_mut(&tag).ok_or("a batch that was never sent")?;
        if let Some(known) = sent.base {
            return match known == base {
                true => Ok(()),
                false => Err(format!("batch {tag} is at {base} of {:?}, and was at {known}", sent.partition)),
            };
        }
        sent.base = Some(base);
        let id = sent.partition;
        let Some(partition) = self.partitions.get_mut(&id) else { return Ok(()) };
        if base < partition.end {
            return Err(format!("batch {tag} got {base} of {id:?}, which ended at {}", partition.end));
        }
        for number in 0..sent.records.len() {
            partition.records.insert(base + number as i64, (tag, number));
        }
        partition.end = base + sent.records.len() as i64;
        Ok(())
    }

    /// Widens what may go, before a change is asked for.
    fn foresee(&mut self, effect: &Effect) {
        match effect {
            Effect::Alter(name, config) => {
                for id in self.topics[name].partitions.clone() {
                    self.partitions.get_mut(&id).expect("listed").leave.add(config);
                }
            }
            Effect::Floor(id, to) => {
                let partition = self.partitions.get_mut(id).expect("listed");
                partition.floor_maybe = partition.floor_maybe.max(*to);
            }
            _ => {}
        }
    }

    pub fn ask(&mut self, unit: Vec<Effect>) {
        unit.iter().for_each(|effect| self.foresee(effect));
        self.pending.push(unit);
    }

    /// All but the places of batches and the partitions of topics.
    pub fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Batch(_) | Effect::Create(..) | Effect::Grow(..) => {}
            Effect::Table(table, key, value) => {
                let key = (*table as u32, key.clone());
                match value {
                    Some(value) => self.tables.insert(key, value.clone()),
                    None => self.tables.remove(&key),
                };
            }
            Effect::Delete(name) => {
                for id in self.topics.remove(name).expect("it was there").partitions {
                    self.partitions.remove(&id);
                    self.dead.insert(id);
                }
            }
            Effect::Alter(name, config) => self.topics.get_mut(name).expect("there").config = config.clone(),
            Effect::Floor(id, to) => {
                let partition = self.partitions.get_mut(id).expect("there");
                partition.floor = partition.floor.max(*to);
            }
            Effect::End(number, marker) => {
                let transaction = &mut self.transactions[*number];
                transaction.fate = if *marker == Marker::Commit { Fate::Committed } else { Fate::Aborted };
                if *marker == Marker::Commit {
                    for (key, value) in transaction.held.clone() {
                        self.apply(&Effect::Table(Table::Groups, key, Some(value)));
                    }
                }
            }
        }
    }

    /// A topic has these partitions now.
    pub fn settle(&mut self, name: &str, partitions: &[PartitionId], config: &TopicConfig) -> Judged {
        let before = self.topics.get(name).map(|topic| topic.partitions.clone()).unwrap_or_default();
        if !partitions.starts_with(&before) {
            return Err(format!("{name} has {partitions:?}, and had {before:?}"));
        }
        for id in &partitions[before.len()..] {
            if self.dead.contains(id) || self.partitions.contains_key(id) {
                return Err(format!("{id:?} is given to {name} and was another topic's"));
            }
            let mut partition = Partition::default();
            partition.leave.add(config);
            self.partitions.insert(*id, partition);
        }
        let topic = Topic { partitions: partitions.to_vec(), config: config.clone() };
        self.topics.insert(name.to_owned(), topic);
        Ok(())
    }

    /// Finds out what became of the requests that nobody answered. They were asked for in this order.
    pub fn learn(&mut self, view: &View) -> Judged {
        let places = view.places();
        let mut out = false;
        for unit in std::mem::take(&mut self.pending) {
            let votes: Vec<_> = unit.iter().filter_map(|effect| self.vote(effect, view, &places)).collect();
            if votes.iter().any(|vote| *vote != votes[0]) {
                return Err(format!("half of a request is there: {unit:?}: {votes:?}"));
            }
            let Some(there) = votes.first().copied() else { continue };
            if there && out {
                return Err(format!("{unit:?} is there, and one asked for before it is not"));
            }
            out |= !there;
            for effect in unit.iter().filter(|_| there) {
                match effect {
                    Effect::Batch(tag) => match places.get(tag) {
                        Some((_, base)) => self.place(*tag, *base)?,
                        None => continue,
                    },
                    Effect::Create(name) | Effect::Grow(name, _) => {
                        let (ids, config) = &view.topics[name];
                        self.settle(name, ids, config)?;
                    }
                    Effect::Floor(..) => {}
                    other => self.apply(other),
                }
            }
        }
        Ok(())
    }

    /// Whether a change is there; nothing where that cannot be told.
    fn vote(&self, effect: &Effect, view: &View, places: &BTreeMap<u64, (PartitionId, i64)>) -> Option<bool> {
        match effect {
            Effect::Batch(tag) => {
                let partition = self.sent[tag].partition;
                view.partitions.contains_key(&partition).then(|| places.contains_key(tag))
            }
            Effect::Table(table, key, value) => {
                let key = (*table as u32, key.clone());
                let (before, now) = (self.tables.get(&key), view.tables.get(&key));
                (before != value.as_ref()).then(|| now == value.as_ref())
            }
            Effect::Create(name) => Some(view.topics.contains_key(name)),
            Effect::Delete(name) => Some(!view.topics.contains_key(name)),
            Effect::Alter(name, config) => {
                (self.topics[name].config != *config).then(|| view.topics.get(name).is_some_and(|t| t.1 == *config))
            }
            Effect::Grow(name, count) => {
                let before = self.topics[name].partitions.len();
                (before != *count as usize).then(|| view.topics.get(name).is_some_and(|t| t.0.len() == *count as usize))
            }
            Effect::Floor(..) => None,
            Effect::End(number, _) => {
                let transaction = &self.transactions[*number];
                (transaction.fate == Fate::Open)
                    .then(|| view.transactions.get(&transaction.name) != Some(&TransactionState::Ongoing))
            }
        }
    }

    /// Compares what a log shows with what it may and must show.
    pub fn check(&mut self, view: &View) -> Judged {
        self.expire(view)?;
        let topics = self.topics.iter().map(|(name, t)| (name.clone(), (t.partitions.clone(), t.config.clone())));
        let topics: BTreeMap<_, _> = topics.collect();
        if topics != view.topics {
            return Err(format!("topics {:?}, wanted {topics:?}", view.topics));
        }
        if self.tables != view.tables {
            return Err(format!("tables {:?}, wanted {:?}", view.tables, self.tables));
        }
        for (id, found) in &view.partitions {
            let judged = self.check_partition(*id, found, view.now);
            judged.map_err(|fault| format!("{id:?} ({}..{}): {fault}", found.start, found.end))?;
            self.partitions.get_mut(id).expect("compared").end = found.end;
        }
        Ok(())
    }

    /// What was open for too long may have been aborted.
    fn expire(&mut self, view: &View) -> Judged {
        for transaction in self.transactions.iter_mut().filter(|t| t.fate == Fate::Open) {
            match view.transactions.get(&transaction.name) {
                Some(TransactionState::Ongoing) => {}
                Some(TransactionState::Aborted) if view.now >= transaction.deadline => {
                    transaction.fate = Fate::Aborted;
                }
                other => return Err(format!("{transaction:?} is {other:?} at {}", view.now)),
            }
        }
        Ok(())
    }

    fn rec(&self, (tag, number): (u64, usize)) -> (&Sent, &Rec) {
        let sent = &self.sent[&tag];
        (sent, &sent.records[number])
    }

    fn fate(&self, sent: &Sent) -> Fate {
        sent.transaction.map_or(Fate::Committed, |number| self.transactions[number].fate)
    }

    fn check_partition(&self, id: PartitionId, found: &PartitionView, now: i64) -> Judged {
        let own = &self.partitions[&id];
        if found.start < own.floor {
            return Err(format!("begins below {}, where its records were deleted", own.floor));
        }
        if found.end < own.end {
            return Err(format!("ends before {}: offsets would be given twice", own.end));
        }
        self.check_nothing_invented(id, found)?;
        let offsets: BTreeSet<i64> = found.raw.iter().map(|r| r.offset).collect();
        let open = own.records.iter().filter(|(_, at)| self.fate(self.rec(**at).0) == Fate::Open);
        let stable = open.map(|(offset, _)| *offset).next().unwrap_or(found.end).clamp(found.start, found.end);
        if found.stable != stable {
            return Err(format!("the last stable offset is {}, wanted {stable}", found.stable));
        }
        self.check_missing(own, found, &offsets, stable, now)?;
        let counts = |offset: &i64| {
            let at = own.records.get(offset);
            at.is_some_and(|at| self.fate(self.rec(*at).0) == Fate::Committed) && *offset < stable
        };
        let wanted: Vec<i64> = offsets.iter().copied().filter(|o| counts(o)).collect();
        if found.shown != wanted {
            return Err(format!("readers of committed records get {:?}, wanted {wanted:?}", found.shown));
        }
        Ok(())
    }

    /// Every record that is shown was sent, and is at its offset.
    pub fn check_nothing_invented(&self, id: PartitionId, found: &PartitionView) -> Judged {
        let own = &self.partitions[&id];
        for record in found.raw.iter().filter(|record| !record.control) {
            let Some(at) = own.records.get(&record.offset) else { return Err(format!("invented: {record:?}")) };
            let (_, wanted) = self.rec(*at);
            let time = record.rec.time == wanted.time || (own.leave.own_time && record.rec.time > wanted.time);
            if (&record.rec.key, &record.rec.value) != (&wanted.key, &wanted.value) || !time {
                return Err(format!("{record:?}, wanted {wanted:?}"));
            }
        }
        Ok(())
    }

    /// What is not there may be missing: it was deleted, is too old or too much, or a newer record has its key.
    fn check_missing(
        &self,
        own: &Partition,
        found: &PartitionView,
        offsets: &BTreeSet<i64>,
        stable: i64,
        now: i64,
    ) -> Judged {
        let leave = &own.leave;
        let enough = leave.retention_bytes.is_some_and(|least| found.bytes as u64 >= least || leave.compacts);
        let mut newest = BTreeMap::new();
        for (offset, at) in own.records.range(..stable) {
            let (sent, rec) = self.rec(*at);
            if self.fate(sent) == Fate::Committed {
                newest.insert(&rec.key, *offset);
            }
        }
        for (offset, at) in own.records.iter().filter(|(offset, _)| !offsets.contains(offset)) {
            let (sent, rec) = self.rec(*at);
            let deleted = *offset < own.floor_maybe;
            let old = leave.retention_ms.is_some_and(|most| now - rec.time > most);
            let compacted = leave.compacts
                && *offset < stable
                && (self.fate(sent) == Fate::Aborted
                    || newest.get(&rec.key).is_some_and(|newest| newest > offset)
                    || (rec.value.is_none() && leave.tombstone_ms.is_some_and(|delay| now >= rec.time + delay)));
            let gone = *offset < found.start && (deleted || old || enough);
            if !gone && !compacted {
                return Err(format!("{offset} is missing: {rec:?} of batch {}", at.0));
            }
        }
        Ok(())
    }

    /// On a disk that lies: what is shown is a beginning of what was sent, and nothing else.
    /// Where loss is told there may be holes.
    pub fn check_prefix(&mut self, view: &View, told: bool) -> Judged {
        let mut places = view.places();
        places.retain(|tag, _| self.pending.iter().flatten().any(|e| matches!(e, Effect::Batch(t) if t == tag)));
        for (tag, (_, base)) in places {
            self.place(tag, base)?;
        }
        for (id, found) in view.partitions.iter().filter(|(id, _)| self.partitions.contains_key(id)) {
            self.check_nothing_invented(*id, found)?;
            let mut own = self.partitions[id].clone();
            let last = found.raw.last().map_or(0, |record| record.offset);
            let offsets = found.raw.iter().map(|r| r.offset).collect();
            // What was lost behind may have been why something before it is gone.
            if !own.leave.compacts && !told {
                own.records.retain(|offset, _| *offset <= last && *offset >= found.start);
                self.check_missing(&own, found, &offsets, found.end, view.now)
                    .map_err(|fault| format!("{id:?}: a hole: {fault}"))?;
            }
        }
        Ok(())
    }
}
