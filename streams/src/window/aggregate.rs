//! The window operator: rows in, groups of open windows in state, closed windows out.
//!
//! It knows neither keys nor values: a [`Keyer`] numbers the groups of each window, an [`Agg`] holds their state, and rows
//! come in chunks of any [`Rows`]. Typed jobs and Arrow run this same code.
//!
//! - A row belongs to the window of its time. A row of a closed window is late: it changes nothing, and is given back.
//! - A window closes once, when the watermark has passed its end and grace. Then its groups are emitted and forgotten.
//! - What changed since the last barrier is written to the changelog, a record a group: `[start, key]` and the state.
//!   A closed window's groups get a null. The cost of a barrier is what changed, not what there is.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{
    Tumbling, Window,
    pane::{Pane, parse_key},
    split::ByWindow,
};
use crate::{
    Result,
    agg::Agg,
    chunk::{Chunk, Rows, Selection},
    key::Keyer,
    state::{Changes, KeyGroups, State},
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
    /// The watermark less the end of input: at least where the newest closed window had to close.
    reached: i64,
    open: BTreeMap<i64, Pane<K, A>>,
    /// Groups of the window that closed last: about as many the next one will have.
    expected: usize,
    /// Changelog keys of groups that closed since the last barrier.
    gone: Vec<Bytes>,
    groups: Vec<u32>,
    by_window: ByWindow,
    rows: std::marker::PhantomData<fn(D)>,
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
            reached: i64::MIN,
            open: BTreeMap::new(),
            expected: 0,
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
        // Not for many at once: they cannot all be as large.
        let has_room = self.open.len() < 4;
        let pane = || {
            let mut keys = self.keyer.fresh();
            if has_room {
                keys.expect(self.expected);
            }
            Pane::new(window.start, keys, self.agg.fresh())
        };
        self.open.entry(window.start).or_insert_with(pane).add(chunk, rows, self.updating, &mut self.groups)
    }

    /// Moves the watermark, which never goes back, and returns the windows that it closes, oldest first. One whose rows
    /// were all taken back has no groups.
    ///
    /// # Errors
    /// Those of the aggregate's results.
    pub fn advance(&mut self, watermark: i64) -> Result<Vec<GroupsOf<D, K, A>>> {
        self.watermark = self.watermark.max(watermark);
        if watermark < i64::MAX {
            self.reached = self.reached.max(watermark);
        }
        let mut closed = Vec::new();
        while let Some(first) = self.open.first_entry() {
            let window = self.windows.window_of(*first.key());
            if !self.windows.is_closed(window, self.watermark) {
                break;
            }
            let pane = first.remove();
            self.expected = pane.groups();
            self.reached = self.reached.max(window.end.saturating_add(self.windows.grace_ms()));
            for key in pane.stored_keys() {
                self.gone.push(key?);
            }
            closed.push(pane.close(window)?);
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
        let changed = self.open.iter().filter(|(_, pane)| pane.is_changed());
        changed.map(|(start, pane)| pane.changed(self.windows.window_of(*start))).collect()
    }

    /// All groups of open windows, as results of now.
    ///
    /// # Errors
    /// Those of the aggregate's results.
    pub fn all_open(&self) -> Result<Vec<Changed<K::Keys, A::Out>>> {
        self.open.iter().map(|(start, pane)| pane.whole(self.windows.window_of(*start))).collect()
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
        self.open.values_mut().try_for_each(|pane| pane.barrier(changes))
    }

    fn snapshot(&self, key_groups: &KeyGroups, changes: &mut Changes) -> Result<()> {
        self.open.values().try_for_each(|pane| pane.snapshot(key_groups, changes))
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (start, _) = parse_key(key)?;
        let pane = || Pane::new(start, self.keyer.fresh(), self.agg.fresh());
        self.open.entry(start).or_insert_with(pane).restore(key, value, self.updating)
    }

    fn watermark(&self) -> i64 {
        match self.watermark {
            // The end of input closed everything; what is told later of windows that never were is not late.
            i64::MAX => self.reached,
            watermark => watermark,
        }
    }

    fn set_watermark(&mut self, watermark: i64) {
        self.watermark = self.watermark.max(watermark);
        self.reached = self.reached.max(watermark);
    }

    fn clear(&mut self) {
        self.open.clear();
        self.gone.clear();
        (self.watermark, self.reached) = (i64::MIN, i64::MIN);
    }
}
