//! Anomalies of records.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Anomaly, Finding, History, Kind, Op, Outcome, Partition, Poll, Value};

/// What all operations together tell.
struct Known<'a> {
    ops: &'a [Op],
    writers: HashMap<Value, usize>,
    /// Where each value was seen or acknowledged, and by which operations.
    places: BTreeMap<Value, BTreeMap<(Partition, i64), Vec<usize>>>,
    /// By partition and offset: the values seen or answered there.
    values: BTreeMap<(Partition, i64), BTreeMap<Value, Vec<usize>>>,
    seen: BTreeSet<Value>,
    /// Offsets that were seen, of values that count, with one that saw it.
    shown: BTreeMap<(Partition, i64), usize>,
    /// All polls in the order in which they ended.
    polls: Vec<(usize, &'a Poll)>,
}

pub fn check(history: &History) -> Vec<Finding> {
    let known = Known::of(history);
    let mut findings = known.places();
    findings.extend(known.reads());
    findings.extend(known.writes(history.is_read_to_the_end));
    findings.extend(known.order_of_sends());
    findings.extend(known.order_of_polls());
    findings.extend(known.stale());
    findings
}

impl<'a> Known<'a> {
    fn of(history: &'a History) -> Self {
        let ops = &history.ops;
        let writers: HashMap<_, _> =
            ops.iter().enumerate().flat_map(|(i, op)| op.sends.iter().map(move |send| (send.value, i))).collect();
        let mut polls: Vec<_> =
            ops.iter().enumerate().flat_map(|(i, op)| op.polls.iter().map(move |poll| (i, poll))).collect();
        polls.sort_by_key(|(_, poll)| poll.at);
        let mut known = Self {
            ops,
            writers,
            places: BTreeMap::new(),
            values: BTreeMap::new(),
            seen: BTreeSet::new(),
            shown: BTreeMap::new(),
            polls,
        };
        for (i, op) in ops.iter().enumerate() {
            for send in &op.sends {
                if let Some(offset) = send.offset {
                    known.note(send.value, (send.partition, offset), i);
                }
            }
        }
        for (i, poll) in known.polls.clone() {
            for (offset, value) in &poll.records {
                let place = (poll.partition, *offset);
                known.note(*value, place, i);
                known.seen.insert(*value);
                let counts = known.writers.get(value).is_some_and(|w| ops[*w].outcome != Outcome::Failed);
                if counts {
                    known.shown.entry(place).or_insert(i);
                }
            }
        }
        known
    }

    fn note(&mut self, value: Value, place: (Partition, i64), op: usize) {
        for list in [
            self.places.entry(value).or_default().entry(place).or_default(),
            self.values.entry(place).or_default().entry(value).or_default(),
        ] {
            // Two are enough to prove it.
            if list.len() < 2 {
                list.push(op);
            }
        }
    }

    /// One value has one place, one place one value.
    fn places(&self) -> Vec<Finding> {
        let twice = self.places.iter().filter(|(_, places)| places.len() > 1).map(|(value, places)| {
            let what = format!("value {value} is at {:?}", places.keys().collect::<Vec<_>>());
            finding(Anomaly::Duplicate, what, places.values().flatten())
        });
        let shared = self.values.iter().filter(|(_, values)| values.len() > 1).map(|(place, values)| {
            let what = format!("at {place:?} are {:?}", values.keys().collect::<Vec<_>>());
            finding(Anomaly::InconsistentOffset, what, values.values().flatten())
        });
        twice.chain(shared).collect()
    }

    /// Each value that was seen is of an operation that happened, or may have.
    fn reads(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (i, poll) in &self.polls {
            for (offset, value) in &poll.records {
                let place = format!("value {value} at {}/{offset}", poll.partition);
                let Some(writer) = self.writers.get(value) else {
                    findings.push(finding(Anomaly::MadeUp, place, [i]));
                    continue;
                };
                let op = &self.ops[*writer];
                if op.outcome == Outcome::Failed {
                    findings.push(finding(Anomaly::AbortedRead, place, [writer, i]));
                } else if op.asked.is_none_or(|asked| poll.at < asked) {
                    findings.push(finding(Anomaly::PrecommittedRead, place, [writer, i]));
                }
            }
        }
        findings
    }

    /// What was acknowledged is there, and what is in doubt is there or not.
    fn writes(&self, is_read_to_the_end: bool) -> Vec<Finding> {
        let mut highest = BTreeMap::new();
        for (partition, offset) in self.shown.keys() {
            highest.insert(*partition, *offset);
        }
        let is_part = |missing: usize, op: &Op| missing > 0 && missing < op.sends.len();
        let mut findings = Vec::new();
        for (i, op) in self.ops.iter().enumerate() {
            let missing: Vec<_> = op.sends.iter().filter(|send| !self.seen.contains(&send.value)).collect();
            match op.outcome {
                Outcome::Ok => findings.extend(missing.iter().filter_map(|send| {
                    let below = send.offset.is_some_and(|o| highest.get(&send.partition).is_some_and(|h| o < *h));
                    let what = format!("value {} of {}/{:?}", send.value, send.partition, send.offset);
                    match below {
                        true => Some(finding(Anomaly::LostWrite, what, [&i])),
                        false => is_read_to_the_end.then(|| finding(Anomaly::Unseen, what, [&i])),
                    }
                })),
                Outcome::Unknown if op.kind != Kind::Plain && is_read_to_the_end && is_part(missing.len(), op) => {
                    let values: Vec<_> = missing.iter().map(|send| send.value).collect();
                    let what = format!("of {} values, {values:?} are not there", op.sends.len());
                    findings.push(finding(Anomaly::Torn, what, [&i]));
                }
                _ => {}
            }
        }
        findings
    }

    fn order_of_sends(&self) -> Vec<Finding> {
        let mut order: Vec<_> = (0..self.ops.len()).collect();
        order.sort_by_key(|i| self.ops[*i].begun);
        let (mut last, mut findings) = (HashMap::<_, (i64, usize)>::new(), Vec::new());
        for i in order {
            let op = &self.ops[i];
            for send in &op.sends {
                let Some(offset) = send.offset else { continue };
                if let Some((before, other)) = last.insert((op.process, send.partition), (offset, i))
                    && offset < before
                {
                    let what = format!("process {} has {}/{offset} after {before}", op.process, send.partition);
                    findings.push(finding(Anomaly::NonmonotonicSend, what, [&other, &i]));
                }
            }
        }
        findings
    }

    fn order_of_polls(&self) -> Vec<Finding> {
        let mut cursors = HashMap::<_, (i64, usize)>::new();
        let mut findings = Vec::new();
        for (i, poll) in &self.polls {
            let process = self.ops[*i].process;
            let cursor = cursors.entry((process, poll.partition)).or_insert((poll.from, *i));
            let ends = poll.records.iter().map(|(offset, _)| (*offset, offset + 1));
            for (offset, next) in ends.chain([(poll.next, poll.next)]) {
                if offset < cursor.0 {
                    let what = format!("process {process} saw {}/{offset} after {}", poll.partition, cursor.0 - 1);
                    findings.push(finding(Anomaly::NonmonotonicPoll, what, [&cursor.1, i]));
                    continue;
                }
                let passed = self.shown.range((poll.partition, cursor.0)..(poll.partition, offset));
                let passed: Vec<_> = passed.collect();
                if let Some((_, saw)) = passed.first() {
                    let offsets: Vec<_> = passed.iter().map(|((_, offset), _)| offset).collect();
                    let what = format!("process {process} passed {offsets:?} of {}", poll.partition);
                    findings.push(finding(Anomaly::SkippedPoll, what, [*saw, i]));
                }
                *cursor = (next, *i);
            }
        }
        findings
    }

    /// A poll to the end shows all that was acknowledged before it began, but what an open transaction holds back.
    fn stale(&self) -> Vec<Finding> {
        // By partition: when it was acknowledged, and the highest offset that was until then.
        let mut acknowledged = BTreeMap::<Partition, Vec<(u64, i64, usize)>>::new();
        let mut open = BTreeMap::<Partition, Vec<(u64, u64)>>::new();
        for (i, op) in self.ops.iter().enumerate() {
            for send in &op.sends {
                if op.kind == Kind::AsTheyCome {
                    open.entry(send.partition).or_default().push((op.begun, op.ended));
                }
                let seen = || self.places.get(&send.value).and_then(|places| places.keys().next()).map(|place| place.1);
                if op.outcome == Outcome::Ok
                    && let Some(offset) = send.offset.or_else(seen)
                {
                    acknowledged.entry(send.partition).or_default().push((op.ended, offset, i));
                }
            }
        }
        for list in acknowledged.values_mut() {
            list.sort_unstable();
            let mut highest = (i64::MIN, 0);
            for (_, offset, op) in list {
                highest = highest.max((*offset, *op));
                (*offset, *op) = highest;
            }
        }
        let is_open = |poll: &Poll, begun: u64| {
            let open = open.get(&poll.partition).map_or(&[][..], Vec::as_slice);
            open.iter().any(|(from, to)| *from < poll.at && begun < *to)
        };
        let mut findings = Vec::new();
        for (i, poll) in self.polls.iter().filter(|(_, poll)| poll.to_end) {
            let begun = self.ops[*i].begun;
            let Some(list) = acknowledged.get(&poll.partition) else { continue };
            let before = list.partition_point(|(ended, ..)| *ended < begun);
            let Some((_, offset, writer)) = before.checked_sub(1).map(|last| list[last]) else { continue };
            if offset >= poll.next && !is_open(poll, begun) {
                let what = format!("{}/{offset} was acknowledged, and a poll ends at {}", poll.partition, poll.next);
                findings.push(finding(Anomaly::Stale, what, [&writer, i]));
            }
        }
        findings
    }
}

pub fn finding<'a>(anomaly: Anomaly, what: String, ops: impl IntoIterator<Item = &'a usize>) -> Finding {
    let ops: BTreeSet<_> = ops.into_iter().copied().collect();
    Finding { anomaly, what, ops: ops.into_iter().collect() }
}
