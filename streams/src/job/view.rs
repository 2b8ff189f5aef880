//! A look into a running job: the results of its windows as of the last committed epoch. What an epoch changes is shown
//! when the epoch is durable, all at once; what never commits is never shown.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    key::Key,
    window::{Changed, Groups, Window},
};

/// Closed windows that a view still shows.
const CLOSED_SHOWN: usize = 8;

/// Results of a step's windows. Clones look at the same step.
pub struct View<K, V> {
    shared: Arc<Shared<K, V>>,
}

struct Shared<K, V> {
    is_wanted: AtomicBool,
    shown: Mutex<Shown<K, V>>,
}

struct Shown<K, V> {
    epoch: u64,
    windows: BTreeMap<i64, OneWindow<K, V>>,
}

struct OneWindow<K, V> {
    window: Window,
    is_closed: bool,
    groups: HashMap<K, V>,
}

/// A window as a view shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowView<K, V> {
    /// The window.
    pub window: Window,
    /// Whether these results are final.
    pub is_closed: bool,
    /// Key and result of each group, in no order.
    pub groups: Vec<(K, V)>,
}

impl<K, V> Default for View<K, V> {
    fn default() -> Self {
        let shown = Mutex::new(Shown { epoch: 0, windows: BTreeMap::new() });
        Self { shared: Arc::new(Shared { is_wanted: AtomicBool::new(false), shown }) }
    }
}

impl<K, V> Clone for View<K, V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What an epoch changes in a view.
pub(crate) struct ViewUpdate<K, V> {
    pub(crate) replace: bool,
    pub(crate) changed: Vec<Changed<Vec<K>, Vec<V>>>,
    pub(crate) closed: Vec<Groups<Vec<K>, Vec<V>>>,
}

impl<K: Key, V: Clone + Send + Sync + 'static> View<K, V> {
    /// The view in use. Before this is called a job spends nothing on it; call it before the job runs.
    #[must_use]
    pub fn watched(self) -> Self {
        self.shared.is_wanted.store(true, Ordering::Relaxed);
        self
    }

    /// The number of the last committed epoch that changed it, and its windows in order: all that are open, and the last
    /// that were closed.
    pub fn windows(&self) -> (u64, Vec<WindowView<K, V>>) {
        let shown = self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let window = |one: &OneWindow<K, V>| WindowView {
            window: one.window,
            is_closed: one.is_closed,
            groups: one.groups.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        };
        (shown.epoch, shown.windows.values().map(window).collect())
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.shared.is_wanted.load(Ordering::Relaxed)
    }

    pub(crate) fn apply(&self, epoch: u64, update: ViewUpdate<K, V>) {
        let mut shown = self.shared.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.epoch = epoch;
        if update.replace {
            shown.windows.retain(|_, one| one.is_closed);
        }
        for Changed { groups, emptied } in update.changed {
            let one = shown.window(groups.window);
            one.groups.extend(groups.keys.into_iter().zip(groups.values));
            emptied.iter().for_each(|key| drop(one.groups.remove(key)));
        }
        for groups in update.closed {
            let one = shown.window(groups.window);
            one.is_closed = true;
            one.groups = groups.keys.into_iter().zip(groups.values).collect();
        }
        shown.forget();
    }
}

impl<K, V> Shown<K, V> {
    fn window(&mut self, window: Window) -> &mut OneWindow<K, V> {
        let empty = || OneWindow { window, is_closed: false, groups: HashMap::new() };
        self.windows.entry(window.start).or_insert_with(empty)
    }

    fn forget(&mut self) {
        self.windows.retain(|_, one| !one.groups.is_empty());
        let closed: Vec<i64> = self.windows.iter().filter(|(_, one)| one.is_closed).map(|(start, _)| *start).collect();
        for start in closed.iter().rev().skip(CLOSED_SHOWN) {
            self.windows.remove(start);
        }
    }
}
