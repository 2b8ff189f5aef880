//! What is forgotten in time: groups that hold nothing, offsets of topics that are gone, and offsets of groups without
//! members whose retention is over.
//!
//! Retention counts from the commit, and from when the group lost its members (KIP-211). The latter is a record of its own,
//! written and deleted here, a minute late at most: joining and leaving write nothing. A group that is found without
//! members and without that record had members until this process began, so it counts from now.

use std::{collections::BTreeMap, time::Duration};

use super::{Groups, State, offset};
use crate::{
    engine::{Books, Places, Table},
    record::Timestamp,
};

/// Offsets are looked at this often.
const PERIOD: Duration = Duration::from_secs(60);
/// Offsets that are looked at in one step.
const STEP: usize = 1000;

/// How far the offsets were looked at.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// The key to go on from; `None` between two rounds.
    from: Option<String>,
    next_round: Duration,
}

impl Cursor {
    /// Looks at some offsets, and tells whether there is more to do.
    pub(crate) fn step(&mut self, books: Books<'_>) -> bool {
        let now = books.clock().monotonic();
        if self.from.is_none() && now < self.next_round {
            return false;
        }
        let from = self.from.take().unwrap_or_else(|| {
            books.groups().reap_all(now);
            String::new()
        });
        self.from = step(books, &from).1;
        if self.from.is_none() {
            self.next_round = now + PERIOD;
        }
        self.from.is_some()
    }
}

impl Groups {
    /// Does at once what housekeeping does every minute, and tells how many offsets are forgotten. It does not wait for
    /// the disk: what a crash loses of it is forgotten later.
    pub fn expire(&self) -> usize {
        let books = self.engine.books();
        books.groups().reap_all(self.now());
        let (mut from, mut count) = (Some(String::new()), 0);
        while let Some(key) = from {
            let (some, next) = step(books, &key);
            count += some;
            from = next;
        }
        count
    }
}

/// Forgets what is over of some offsets from a key on; tells how many, and where to go on.
fn step(books: Books<'_>, from: &str) -> (usize, Option<String>) {
    let some = books.range(Table::Groups, from, STEP);
    let next = some.last().filter(|_| some.len() == STEP).map(|(key, _)| format!("{key}\0"));
    let mut groups = BTreeMap::<String, Vec<String>>::new();
    for (key, _) in some {
        if let Some((group, _)) = offset::parse_key(&key) {
            let group = group.to_owned();
            groups.entry(group).or_default().push(key);
        } else if let Some(group) = offset::parse_idle_key(&key) {
            groups.entry(group.to_owned()).or_default();
        }
    }
    (groups.into_iter().map(|(group, keys)| look(books, &group, &keys)).sum(), next)
}

/// Forgets what is over of a group's offsets, and keeps the record of its idleness. Nothing is done while one of its commits
/// is under way: one that was answered must stay.
fn look(books: Books<'_>, group: &str, keys: &[String]) -> usize {
    let (registry, now) = (books.groups(), books.clock().monotonic());
    let Ok(cell) = registry.make(group, now) else { return 0 };
    let mut inner = cell.lock();
    cell.act(&mut inner, |inner| inner.machine.tick(now));
    if inner.commits == 0 && inner.machine.state() != State::Dead {
        let is_idle = inner.machine.members().is_empty();
        let (count, records) = due(books, group, keys, is_idle);
        offset::write_soon(books, records);
        drop(inner);
        registry.reap_one(group, now);
        return count;
    }
    0
}

/// What is to be written of a group, and how many offsets that forgets.
fn due(books: Books<'_>, group: &str, keys: &[String], is_idle: bool) -> (usize, Vec<offset::Written>) {
    let now = books.clock().now();
    let idle_key = offset::idle_key(group);
    let idle = books.entry(Table::Groups, &idle_key);
    let since = idle.as_ref().and_then(|entry| entry.value.parse().ok()).unwrap_or(now.0);
    let mut places = books.places();
    let mut records: Vec<offset::Written> = Vec::new();
    for key in keys {
        match over(books, &mut places, key, now, since) {
            Some(Over::Gone) => records.push((key.clone(), None)),
            Some(Over::Old) if is_idle => records.push((key.clone(), None)),
            _ => {}
        }
    }
    let count = records.len();
    if is_idle && idle.is_none() && count < keys.len() {
        records.push((idle_key, Some(now.0.to_string())));
    } else if idle.is_some() && (!is_idle || !has_offsets(books, group)) {
        records.push((idle_key, None));
    }
    (count, records)
}

fn has_offsets(books: Books<'_>, group: &str) -> bool {
    let behind = format!("{}\0", offset::idle_key(group));
    let next = books.range(Table::Groups, &behind, 1);
    next.first().and_then(|(key, _)| offset::parse_key(key)).is_some_and(|(of, _)| of == group)
}

/// Why an offset is forgotten.
enum Over {
    /// Its partition is no more.
    Gone,
    /// It is past its retention.
    Old,
}

fn over(books: Books<'_>, places: &mut Places<'_>, key: &str, now: Timestamp, idle_since: i64) -> Option<Over> {
    let retention = i64::try_from(books.groups().limits.offset_retention.as_millis()).unwrap_or(i64::MAX);
    let (_, of) = offset::parse_key(key)?;
    let committed = offset::parse(&books.entry(Table::Groups, key)?.value)?;
    if places.find(&of) != Some(committed.partition) {
        return Some(Over::Gone);
    }
    let expires = committed.expires_ms.unwrap_or(committed.at_ms.max(idle_since).saturating_add(retention));
    (expires <= now.0).then_some(Over::Old)
}
