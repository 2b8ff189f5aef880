//! What was committed and acknowledged, as the other programs wrote it down, and the checkers that compare it with what
//! the log holds. Each checker returns its faults; the tests of `kill9` show that each is found.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;

/// One row's life: its stamp after each change, `None` where it is absent. Stamps are never used twice.
#[derive(Debug, Clone, Default)]
struct Life {
    states: Vec<Option<i64>>,
    /// Whether the change that led to the state came after the mark, when nothing may be missing from the topic.
    exact: Vec<bool>,
}

/// All rows of one table, by key.
#[derive(Debug, Clone, Default)]
pub struct History {
    rows: BTreeMap<String, Life>,
}

impl History {
    /// Reads the ledger of the writer: a history for each table, and how many changes were committed.
    pub fn load(ledger: &str) -> (BTreeMap<String, Self>, usize) {
        let mut tables: BTreeMap<String, Self> = BTreeMap::new();
        let (mut marked, mut count) = (false, 0);
        for line in super::support::json_lines(ledger) {
            for row in line["base"].as_array().into_iter().flatten() {
                let life = tables.entry(text(&row["t"])).or_default().rows.entry(row["k"].to_string()).or_default();
                *life = Life { states: vec![row["stamp"].as_i64()], exact: vec![false] };
            }
            marked |= line.get("mark").is_some();
            for change in line["tx"].as_array().into_iter().flatten() {
                count += 1;
                let life = tables.entry(text(&change["t"])).or_default().rows.entry(change["k"].to_string());
                let life = life.or_insert_with(|| Life { states: vec![None], exact: vec![false] });
                assert_eq!(life.states.last().copied().flatten(), change["was"].as_i64(), "the ledger is broken");
                life.states.push(change["stamp"].as_i64());
                life.exact.push(marked);
            }
        }
        (tables, count)
    }
}

impl Life {
    /// The state that an event leads to, counted from the first.
    fn state_of(&self, event: &Event) -> Option<usize> {
        let is = |stamp: i64| self.states.iter().position(|state| *state == Some(stamp));
        match (event.op.as_str(), event.was, event.now) {
            ("r", None, Some(now)) => is(now),
            ("c", None, Some(now)) => is(now).filter(|at| *at > 0 && self.states[at - 1].is_none()),
            ("u", Some(was), Some(now)) => is(now).filter(|at| *at > 0 && self.states[at - 1] == Some(was)),
            ("d", Some(was), None) => is(was).map(|at| at + 1).filter(|at| self.states.get(*at) == Some(&None)),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Event {
    op: String,
    was: Option<i64>,
    now: Option<i64>,
}

impl Event {
    fn of(value: &str) -> Self {
        let value: Json = serde_json::from_str(value).unwrap();
        let stamp = |side: &str| value[side]["stamp"].as_i64();
        Self { op: text(&value["op"]), was: stamp("before"), now: stamp("after") }
    }
}

fn text(value: &Json) -> String {
    value.as_str().unwrap().to_owned()
}

/// What is wrong with a topic, given its records as `consume --json` prints them: each committed change once, in the
/// order of the commits for each key, a delete with its tombstone, nothing else. What the copy read of a row that was not
/// changed before stands for the changes that led to it, unless they are exact.
pub fn topic_faults(history: &History, records: &[Json]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    let mut copied: HashSet<String> = HashSet::new();
    let mut owed: HashMap<String, u64> = HashMap::new();
    let mut last_offset = -1;
    for record in records {
        let (key, offset) = (text(&record["key"]), record["offset"].as_i64().unwrap());
        if offset <= last_offset {
            faults.push(format!("offset {offset} after {last_offset}"));
        }
        last_offset = offset;
        let Some(value) = record["value"].as_str() else {
            if owed.remove(&key).is_none() {
                faults.push(format!("{key}: a tombstone without its delete, offset {offset}"));
            }
            continue;
        };
        if owed.remove(&key).is_some() {
            faults.push(format!("{key}: a delete without its tombstone, before offset {offset}"));
        }
        let event = Event::of(value);
        if event.op == "d" {
            owed.insert(key.clone(), offset as u64);
        }
        let Some(life) = history.rows.get(&key) else {
            faults.push(format!("{key}: invented key, offset {offset}"));
            continue;
        };
        let Some(state) = life.state_of(&event) else {
            faults.push(format!("{key}: invented change {event:?}, offset {offset}"));
            continue;
        };
        let known = at.insert(key.clone(), state);
        let is_copy = event.op == "r";
        if is_copy && !copied.insert(key.clone()) {
            faults.push(format!("{key}: copied twice, offset {offset}"));
        }
        match known {
            Some(known) if state <= known => {
                faults.push(format!("{key}: state {state} after {known}: doubled or out of order, offset {offset}"));
            }
            Some(known) if is_copy || state > known + 1 => {
                faults.push(format!("{key}: lost changes {}..{state}, before offset {offset}", known + 1));
            }
            Some(_) => {}
            // A copy stands for what led to the state it read; a change stands for itself.
            None => {
                let missing = (0..state + usize::from(is_copy)).find(|change| life.exact[*change]);
                if let Some(change) = missing {
                    faults.push(format!("{key}: lost change {change}, before offset {offset}"));
                }
            }
        }
    }
    faults.extend(owed.into_keys().map(|key| format!("{key}: a delete without its tombstone at the end")));
    for (key, life) in &history.rows {
        let (end, exact) = (life.states.len() - 1, life.exact.iter().any(|exact| *exact));
        match at.get(key) {
            Some(at) if *at == end => {}
            Some(at) => faults.push(format!("{key}: ends at state {at} of {end}: lost changes")),
            None if exact || life.states[end].is_some() => faults.push(format!("{key}: never came")),
            None => {}
        }
    }
    faults
}

/// What the producer sent, and what was acknowledged to it.
#[derive(Debug, Default)]
pub struct Sent {
    pub acknowledged: Vec<Vec<u64>>,
    unanswered: BTreeMap<u64, Vec<u64>>,
}

impl Sent {
    pub fn load(ledger: &str) -> Self {
        let mut this = Self::default();
        for line in super::support::json_lines(ledger) {
            assert!(line.get("fault").is_none(), "the producer was refused: {line}");
            let ids = |name: &str| -> Option<Vec<u64>> { serde_json::from_value(line.get(name)?.clone()).ok() };
            if let Some(ids) = ids("sent") {
                this.unanswered.insert(ids[0], ids);
            }
            if let Some(ids) = ids("acknowledged") {
                this.unanswered.remove(&ids[0]);
                this.acknowledged.push(ids);
            }
        }
        this
    }

    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }
}

/// What is wrong with the lines that a topic holds: the acknowledged are all there, each once and in order; those that
/// got no answer are there whole or not at all.
pub fn line_faults(sent: &Sent, lines: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let id_of = |line: &String| line.strip_prefix("line ").and_then(|id| id.parse::<u64>().ok());
    let ids: Vec<u64> = lines.iter().filter_map(id_of).collect();
    if ids.len() != lines.len() {
        faults.push("lines that nobody sent".to_owned());
    }
    faults.extend(ids.windows(2).filter(|two| two[1] <= two[0]).map(|two| format!("line {} after {}", two[1], two[0])));
    let there: std::collections::BTreeSet<u64> = ids.into_iter().collect();
    let mut known = std::collections::BTreeSet::new();
    for request in &sent.acknowledged {
        known.extend(request);
        let lost: Vec<_> = request.iter().filter(|id| !there.contains(id)).collect();
        if !lost.is_empty() {
            faults.push(format!("acknowledged lines {lost:?} are lost"));
        }
    }
    for request in sent.unanswered.values() {
        known.extend(request);
        let came = request.iter().filter(|id| there.contains(id)).count();
        if came != 0 && came != request.len() {
            faults.push(format!("of the request {request:?} only {came} lines came"));
        }
    }
    faults.extend(there.difference(&known).map(|id| format!("line {id} was never sent")));
    faults
}
