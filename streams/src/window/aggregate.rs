//! The window operator: rows in, groups of open windows in state, closed windows out.
//!
//! It knows neither keys nor values: a [`Keyer`] numbers the groups of each window, an [`Agg`] holds their state, and rows
//! come in chunks of any [`Rows`]. Typed jobs and Arrow run this same code.
//!
//! - A row belongs to the window of its time. A row of a closed window is late: it changes nothing, and is given back.
//! - A window closes once, when the watermark has passed its end and grace. Then its groups are emitted and forgotten.
//! - What changed since the last barrier is written to the changelog, a record a group: `[start, key]` and the state.
//!   A closed window's groups get a null. The cost of a barrier is what changed, not what there is.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde_json::Value as Json;
use tidemill_core::topic::partition_of;

use super::{Tumbling, Window};
use crate::{
    Error, Result,
    agg::Agg,
    chunk::{Chunk, Op, Rows, Selection},
    key::Keyer,
    state::{Changes, KEY_GROUPS, State},
};

/// Groups of one window, keys and results side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups<K, V> {
    /// The window.
    pub window: Window,
    /// The groups' keys.
    pub keys: K,
    /// The groups' results, in the order of the keys.
    pub values: V,
}

/// Groups of an open window that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed<K, V> {
    /// Groups with rows, and their results.
    pub groups: Groups<K, V>,
    /// Keys of groups that have no row any more.
    pub emptied: K,
}

/// The groups of a window whose keys and results are `A`'s over `K`'s.
pub type GroupsOf<D, K, A> = Groups<<K as Keyer<D>>::Keys, <A as Agg<D>>::Out>;

/// Aggregates by window and key.
pub struct WindowAggregate<D, K, A> {
    windows: Tumbling,
    keyer: K,
    agg: A,
    /// Whether rows may be taken back: then each group counts its rows, and one without rows is not emitted.
    updating: bool,
    watermark: i64,
    /// When the newest window that was closed had to be closed: what the watermark was at least.
    closed_at: i64,
    open: BTreeMap<i64, Pane<K, A>>,
    /// Changelog keys of groups that closed since the last barrier.
    gone: Vec<Bytes>,
    groups: Vec<u32>,
    by_window: ByWindow,
    rows: std::marker::PhantomData<fn(D)>,
}

/// One open window.
struct Pane<K, A> {
    keys: K,
    aggs: A,
    /// Rows added less rows taken back, per group; empty unless the operator is updating.
    counts: Vec<i64>,
    /// Whether a group changed since the last barrier, and which did.
    is_dirty: Vec<bool>,
    dirty: Vec<u32>,
    /// Whether the changelog has the group.
    stored: Vec<bool>,
}

impl<D, K, A> WindowAggregate<D, K, A>
where
    D: Rows,
    K: Keyer<D>,
    A: Agg<D>,
{
    /// An operator without open windows.
    pub fn new(windows: Tumbling, keyer: K, agg: A, updating: bool) -> Self {
        Self {
            windows,
            keyer,
            agg,
            updating,
            watermark: i64::MIN,
            closed_at: i64::MIN,
            open: BTreeMap::new(),
            gone: Vec::new(),
            groups: Vec::new(),
            by_window: ByWindow::default(),
            rows: std::marker::PhantomData,
        }
    }

    /// Adds the rows of a chunk. Appends the positions of late rows, which belong to closed windows, to `late`.
    ///
    /// # Errors
    /// Those of the aggregate.
    pub fn push(&mut self, chunk: &Chunk<D>, late: &mut Vec<u32>) -> Result<()> {
        if chunk.time.is_empty() {
            return Ok(());
        }
        let ends = |(first, last): (i64, i64), time: &i64| (first.min(*time), last.max(*time));
        let (first, last) = chunk.time.iter().fold((i64::MAX, i64::MIN), ends);
        let window = self.windows.window_of(first);
        if window.contains(last) {
            return self.add(window, chunk, Selection::All(chunk.time.len()), late);
        }
        let mut by_window = std::mem::take(&mut self.by_window);
        by_window.split(&self.windows, &chunk.time);
        for (window, rows) in by_window.parts() {
            self.add(window, chunk, Selection::Rows(rows), late)?;
        }
        self.by_window = by_window;
        Ok(())
    }

    fn add(&mut self, window: Window, chunk: &Chunk<D>, rows: Selection<'_>, late: &mut Vec<u32>) -> Result<()> {
        if self.windows.is_closed(window, self.watermark) {
            rows.for_each(|row| late.push(row as u32));
            return Ok(());
        }
        let pane = self.open.entry(window.start).or_insert_with(|| Pane::new(self.keyer.fresh(), self.agg.fresh()));
        self.groups.clear();
        pane.keys.groups(&chunk.data, rows, &mut self.groups);
        pane.grow(self.updating);
        match &chunk.op {
            None => pane.aggs.update(&chunk.data, rows, &self.groups)?,
            Some(op) => pane.apply(&chunk.data, rows, &self.groups, op)?,
        }
        if self.updating {
            pane.count(rows, &self.groups, chunk.op.as_deref());
        }
        pane.mark(&self.groups);
        Ok(())
    }

    /// Moves the watermark, which never goes back, and returns the windows that it closes, oldest first.
    ///
    /// # Errors
    /// Those of the aggregate's results.
    pub fn advance(&mut self, watermark: i64) -> Result<Vec<GroupsOf<D, K, A>>> {
        self.watermark = self.watermark.max(watermark);
        let mut closed = Vec::new();
        while let Some(first) = self.open.first_entry() {
            let window = self.windows.window_of(*first.key());
            if !self.windows.is_closed(window, self.watermark) {
                break;
            }
            let pane = first.remove();
            self.closed_at = self.closed_at.max(window.end.saturating_add(self.windows.grace_ms()));
            for group in (0..pane.keys.len() as u32).filter(|group| pane.stored[*group as usize]) {
                self.gone.push(changelog_key(window.start, &pane.keys, group)?);
            }
            let all: Vec<u32> = (0..pane.keys.len() as u32).filter(|group| pane.has_rows(*group)).collect();
            if !all.is_empty() {
                closed.push(pane.results(window, &all)?);
            }
        }
        Ok(closed)
    }

    /// The watermark that holds for what this operator emits: a window's results have times before its end.
    pub fn output_watermark(&self) -> i64 {
        match self.watermark {
            i64::MAX => i64::MAX,
            watermark => watermark.saturating_sub(self.windows.grace_ms()),
        }
    }

    /// Number of open windows.
    pub fn open_windows(&self) -> usize {
        self.open.len()
    }

    /// What changed in open windows since the last barrier, as results of now.
    ///
    /// # Errors
    /// Those of the aggregate's results.
    pub fn changed(&self) -> Result<Vec<Changed<K::Keys, A::Out>>> {
        let changed = self.open.iter().filter(|(_, pane)| !pane.dirty.is_empty());
        let results = |(start, pane): (&i64, &Pane<K, A>)| pane.changed(self.windows.window_of(*start), &pane.dirty);
        changed.map(results).collect()
    }

    /// All groups of open windows, as results of now.
    ///
    /// # Errors
    /// Those of the aggregate's results.
    pub fn all_open(&self) -> Result<Vec<Changed<K::Keys, A::Out>>> {
        let results = |(start, pane): (&i64, &Pane<K, A>)| {
            let all: Vec<u32> = (0..pane.keys.len() as u32).collect();
            pane.changed(self.windows.window_of(*start), &all)
        };
        self.open.iter().map(results).collect()
    }
}

impl<D, K, A> State for WindowAggregate<D, K, A>
where
    D: Rows,
    K: Keyer<D>,
    A: Agg<D>,
{
    fn describe(&self) -> String {
        let updating = if self.updating { ", updating" } else { "" };
        format!("{} of {}{updating}", self.windows.describe(), self.agg.name())
    }

    fn barrier(&mut self, changes: &mut Changes) -> Result<()> {
        for key in self.gone.drain(..) {
            changes.delete(key);
        }
        for (start, pane) in &mut self.open {
            for group in std::mem::take(&mut pane.dirty) {
                pane.is_dirty[group as usize] = false;
                pane.stored[group as usize] = true;
                changes.set(changelog_key(*start, &pane.keys, group)?, pane.encode(group, self.updating)?);
            }
        }
        Ok(())
    }

    fn snapshot(&self, key_group: u32, changes: &mut Changes) -> Result<()> {
        for (start, pane) in &self.open {
            for group in (0..pane.keys.len() as u32).filter(|group| pane.stored[*group as usize]) {
                let key = changelog_key(*start, &pane.keys, group)?;
                if partition_of(&key, KEY_GROUPS) == key_group {
                    changes.set(key, pane.encode(group, self.updating)?);
                }
            }
        }
        Ok(())
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let fault = |e: serde_json::Error| Error::corrupt("a changelog record is malformed").with_source(e);
        let (start, key): (i64, Json) = serde_json::from_slice(key).map_err(fault)?;
        let (count, state): (i64, Json) = serde_json::from_slice(value).map_err(fault)?;
        let pane = self.open.entry(start).or_insert_with(|| Pane::new(self.keyer.fresh(), self.agg.fresh()));
        let group = pane.keys.decode(key)?;
        pane.grow(self.updating);
        if let Some(rows) = pane.counts.get_mut(group as usize) {
            *rows = count;
        }
        pane.stored[group as usize] = true;
        pane.aggs.decode(group, state)
    }

    fn watermark(&self) -> i64 {
        match self.watermark {
            // The end of input closed everything; what is told later of windows that never were is not late.
            i64::MAX => self.closed_at,
            watermark => watermark,
        }
    }

    fn set_watermark(&mut self, watermark: i64) {
        self.watermark = self.watermark.max(watermark);
        self.closed_at = self.closed_at.max(watermark);
    }

    fn clear(&mut self) {
        self.open.clear();
        self.gone.clear();
        (self.watermark, self.closed_at) = (i64::MIN, i64::MIN);
    }
}

impl<K, A> Pane<K, A> {
    fn new(keys: K, aggs: A) -> Self {
        Self { keys, aggs, counts: Vec::new(), is_dirty: Vec::new(), dirty: Vec::new(), stored: Vec::new() }
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
            self.stored.resize(groups, false);
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

    fn has_rows(&self, group: u32) -> bool {
        self.counts.get(group as usize).is_none_or(|count| *count > 0)
    }

    fn encode<D>(&self, group: u32, updating: bool) -> Result<Bytes>
    where
        A: Agg<D>,
    {
        let count = if updating { self.counts[group as usize] } else { 1 };
        let mut value = format!("[{count},").into_bytes();
        self.aggs.encode(group, &mut value)?;
        value.push(b']');
        Ok(value.into())
    }

    fn changed<D>(&self, window: Window, groups: &[u32]) -> Result<Changed<K::Keys, A::Out>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        let (there, empty): (Vec<u32>, Vec<u32>) = groups.iter().partition(|group| self.has_rows(**group));
        Ok(Changed { groups: self.results(window, &there)?, emptied: self.keys.keys(&empty) })
    }

    fn results<D>(&self, window: Window, groups: &[u32]) -> Result<GroupsOf<D, K, A>>
    where
        K: Keyer<D>,
        A: Agg<D>,
    {
        Ok(Groups { window, keys: self.keys.keys(groups), values: self.aggs.emit(groups)? })
    }
}

fn changelog_key<D, K: Keyer<D>>(start: i64, keys: &K, group: u32) -> Result<Bytes> {
    let mut key = format!("[{start},").into_bytes();
    keys.encode(group, &mut key)?;
    key.push(b']');
    Ok(key.into())
}

/// A chunk's rows sorted by window. Keeps its memory from chunk to chunk.
#[derive(Default)]
struct ByWindow {
    numbers: HashMap<i64, usize>,
    windows: Vec<Window>,
    rows: Vec<Vec<u32>>,
}

impl ByWindow {
    fn split(&mut self, windows: &Tumbling, times: &[i64]) {
        self.numbers.clear();
        self.windows.clear();
        self.rows.iter_mut().for_each(Vec::clear);
        // Rows that follow each other mostly share a window.
        let mut current = (Window { start: 0, end: 0 }, 0);
        for (row, time) in times.iter().enumerate() {
            if !current.0.contains(*time) {
                let window = windows.window_of(*time);
                current = (window, self.number(window));
            }
            self.rows[current.1].push(row as u32);
        }
    }

    fn number(&mut self, window: Window) -> usize {
        let next = self.windows.len();
        let number = *self.numbers.entry(window.start).or_insert(next);
        if number == next {
            self.windows.push(window);
            if self.rows.len() == next {
                self.rows.push(Vec::new());
            }
        }
        number
    }

    fn parts(&self) -> impl Iterator<Item = (Window, &[u32])> {
        self.windows.iter().copied().zip(self.rows.iter().map(Vec::as_slice))
    }
}
