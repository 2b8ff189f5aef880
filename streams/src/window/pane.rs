//! One open window: its keys, the state of its groups, and what of it the changelog has.
//!
//! An entry's key is the JSON array `[start, key]`, its value `[rows, state]`; `rows` is 1 where rows are never taken back.

use bytes::Bytes;
use serde_json::value::RawValue;
use tidemill_core::topic::partition_of;

use super::{Changed, Groups, GroupsOf, Window};
use crate::{
    Error, Result,
    agg::Agg,
    chunk::{Chunk, Op, Selection},
    key::Keyer,
    state::{Changes, KEY_GROUPS, KeyGroups},
};

pub(super) struct Pane<K, A> {
    start: i64,
    keys: K,
    aggs: A,
    /// Rows added less rows taken back, per group; empty unless rows may be taken back.
    counts: Vec<i64>,
    /// Whether a group changed since the last barrier, and which did.
    is_dirty: Vec<bool>,
    dirty: Vec<u32>,
    /// The key group of each group that the changelog has, [`NOT_STORED`] for others. A byte each, so that a snapshot of
    /// some key groups looks at no other key.
    stored: Vec<u8>,
}

const NOT_STORED: u8 = u8::MAX;
const _: () = assert!(KEY_GROUPS < NOT_STORED as u32);

impl<K, A> Pane<K, A> {
    pub(super) fn new(start: i64, keys: K, aggs: A) -> Self {
        Self { start, keys, aggs, counts: Vec::new(), is_dirty: Vec::new(), dirty: Vec::new(), stored: Vec::new() }
    }

    /// Number of groups that ever had a row.
    pub(super) fn groups(&self) -> usize {
        self.stored.len()
    }

    /// Adds rows of a chunk. `groups` is room to work in.
    pub(super) fn add<D>(
        &mut self,
        chunk: &Chunk<D>,
        rows: Selection<'_>,
        updating: bool,
        groups: &mut Vec<u32>,
    ) -> Result<()>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        groups.clear();
        self.keys.groups(&chunk.data, rows, groups);
        self.grow(updating);
        match &chunk.op {
            None => self.aggs.update(&chunk.data, rows, groups)?,
            Some(op) => self.apply(&chunk.data, rows, groups, op)?,
        }
        if updating {
            self.count(rows, groups, chunk.op.as_deref());
        }
        self.mark(groups);
        Ok(())
    }

    fn grow<D>(&mut self, updating: bool)
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        let groups = self.keys.len();
        if groups > self.stored.len() {
            self.aggs.grow(groups);
            self.is_dirty.resize(groups, false);
            self.stored.resize(groups, NOT_STORED);
            if updating {
                self.counts.resize(groups, 0);
            }
        }
    }

    /// Adds and takes back rows of one chunk. Aggregates do not depend on the order.
    fn apply<D>(&mut self, data: &D, rows: Selection<'_>, groups: &[u32], op: &[Op]) -> Result<()>
    where
        A: Agg<D>,
    {
        for (wanted, add) in [(Op::Insert, true), (Op::Delete, false)] {
            let (mut some, mut their) = (Vec::new(), Vec::new());
            let mut group = groups.iter();
            rows.for_each(|row| {
                if let Some(group) = group.next()
                    && op[row] == wanted
                {
                    some.push(row as u32);
                    their.push(*group);
                }
            });
            match (some.is_empty(), add) {
                (true, _) => {}
                (_, true) => self.aggs.update(data, Selection::Rows(&some), &their)?,
                (_, false) => self.aggs.retract(data, Selection::Rows(&some), &their)?,
            }
        }
        Ok(())
    }

    fn count(&mut self, rows: Selection<'_>, groups: &[u32], op: Option<&[Op]>) {
        let mut group = groups.iter();
        rows.for_each(|row| {
            let by = if op.is_some_and(|op| op[row] == Op::Delete) { -1 } else { 1 };
            if let Some(group) = group.next() {
                self.counts[*group as usize] += by;
            }
        });
    }

    fn mark(&mut self, groups: &[u32]) {
        // So many rows for so few groups change nearly all: looking at each row costs more than writing a few too many.
        if groups.len() / 4 >= self.stored.len() {
            self.is_dirty.fill(true);
            self.dirty.clear();
            self.dirty.extend(0..self.stored.len() as u32);
            return;
        }
        for group in groups {
            let dirty = &mut self.is_dirty[*group as usize];
            if !*dirty {
                *dirty = true;
                self.dirty.push(*group);
            }
        }
    }

    /// All groups that it has met, with rows or without.
    fn all(&self) -> std::ops::Range<u32> {
        0..self.stored.len() as u32
    }

    fn has_rows(&self, group: u32) -> bool {
        self.counts.get(group as usize).is_none_or(|count| *count > 0)
    }

    pub(super) fn is_changed(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What changed since the last barrier, as results of now.
    pub(super) fn changed<D>(&self, window: Window) -> Result<Changed<K::Keys, A::Out>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        self.parted(window, &mut self.dirty.iter().copied())
    }

    /// All groups, as results of now.
    pub(super) fn whole<D>(&self, window: Window) -> Result<Changed<K::Keys, A::Out>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        self.parted(window, &mut self.all())
    }

    fn parted<D>(&self, window: Window, groups: &mut dyn Iterator<Item = u32>) -> Result<Changed<K::Keys, A::Out>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        let (there, empty): (Vec<u32>, Vec<u32>) = groups.partition(|group| self.has_rows(*group));
        Ok(Changed { groups: self.results(window, &there)?, emptied: self.keys.keys(&empty) })
    }

    /// The results of all groups that have rows.
    pub(super) fn close<D>(&self, window: Window) -> Result<GroupsOf<D, K, A>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        let there: Vec<u32> = self.all().filter(|group| self.has_rows(*group)).collect();
        self.results(window, &there)
    }

    fn results<D>(&self, window: Window, groups: &[u32]) -> Result<GroupsOf<D, K, A>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        Ok(Groups { window, keys: self.keys.keys(groups), values: self.aggs.emit(groups)? })
    }

    /// Keys of the entries that the changelog has of it.
    pub(super) fn stored_keys<D>(&self) -> impl Iterator<Item = Result<Bytes>>
    where
        K: Keyer<D>,
    {
        let stored = self.all().filter(|group| self.stored[*group as usize] != NOT_STORED);
        stored.map(|group| self.entry_key(group))
    }

    /// Writes the entries that the changelog has in these key groups.
    pub(super) fn snapshot<D>(&self, key_groups: &KeyGroups, changes: &mut Changes) -> Result<()>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        for group in self.all().filter(|group| key_groups.contains(&u32::from(self.stored[*group as usize]))) {
            changes.set(self.entry_key(group)?, self.entry(group)?);
        }
        Ok(())
    }

    /// Writes what changed since the last barrier.
    pub(super) fn barrier<D>(&mut self, changes: &mut Changes) -> Result<()>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        for at in 0..self.dirty.len() {
            let group = self.dirty[at];
            let key = self.entry_key(group)?;
            if self.stored[group as usize] == NOT_STORED {
                self.prove(&key, group)?;
                self.stored[group as usize] = key_group(&key);
            }
            changes.set(key, self.entry(group)?);
            self.is_dirty[group as usize] = false;
        }
        self.dirty.clear();
        Ok(())
    }

    fn entry_key<D>(&self, group: u32) -> Result<Bytes>
    where
        K: Keyer<D>,
    {
        let mut key = format!("[{},", self.start).into_bytes();
        self.keys.encode(group, &mut key)?;
        key.push(b']');
        Ok(key.into())
    }

    /// A key that is not the same when it is read back, a float that is no number, say, or a type that leaves fields out,
    /// would come back as another group, or not at all: it is refused before it is stored.
    fn prove<D>(&mut self, key: &[u8], group: u32) -> Result<()>
    where
        K: Keyer<D>,
    {
        let back = parse_key(key).and_then(|(_, json)| self.keys.decode(json));
        if back.is_ok_and(|back| back == group) {
            return Ok(());
        }
        let key = String::from_utf8_lossy(key);
        Err(Error::invalid(format!("a key is not the same once it is written as JSON and read back: {key}")))
    }

    fn entry<D>(&self, group: u32) -> Result<Bytes>
    where
        A: Agg<D>,
    {
        let count = self.counts.get(group as usize).copied().unwrap_or(1);
        let mut value = format!("[{count},").into_bytes();
        self.aggs.encode(group, &mut value)?;
        value.push(b']');
        Ok(value.into())
    }

    /// Sets a group to an entry of the changelog.
    pub(super) fn restore<D>(&mut self, key: &[u8], value: &[u8], updating: bool) -> Result<()>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        let (count, state): (i64, &RawValue) = serde_json::from_slice(value).map_err(malformed)?;
        let group = self.keys.decode(parse_key(key)?.1)?;
        self.grow(updating);
        if let Some(rows) = self.counts.get_mut(group as usize) {
            *rows = count;
        }
        self.stored[group as usize] = key_group(key);
        self.aggs.decode(group, state.get())
    }
}

fn key_group(key: &[u8]) -> u8 {
    partition_of(key, KEY_GROUPS) as u8
}

/// Window and key of an entry.
pub(super) fn parse_key(key: &[u8]) -> Result<(i64, &str)> {
    let (start, key): (i64, &RawValue) = serde_json::from_slice(key).map_err(malformed)?;
    Ok((start, key.get()))
}

fn malformed(cause: serde_json::Error) -> Error {
    Error::corrupt("a changelog record is malformed").with_source(cause)
}
