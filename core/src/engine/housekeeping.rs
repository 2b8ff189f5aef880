//! Housekeeping: what is done every so often, apart from appends, reads and segments.
//!
//! A [`Chore`] does its work in small steps; after each, the next chore has its turn, so that a long one holds up no
//! other. What holds for all of them:
//! - no lock is held over I/O, and nothing that the committer or the segment writer waits for;
//! - no manifest is written: a chore changes partitions in memory, names files that are no longer needed
//!   ([`Shared::doom`]) and asks the segment writer for a checkpoint ([`Shared::want_checkpoint`]), after which they go;
//! - a failure is told once and tried again at the next pass. Only one after which nobody knows what the disk holds
//!   stops the log, and the chore says so itself ([`Shared::fail`]).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use super::{
    compact::Compactor,
    leftovers::Leftovers,
    retention::Retention,
    shared::{Shared, lock},
    transactions::Expiry,
};
use crate::{Error, Result};

/// All chores have a turn at least this often.
const PERIOD: Duration = Duration::from_secs(5);

/// What a step left of a chore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing until the next pass.
    Done,
    /// Another step, after the other chores had theirs.
    More,
}

/// Work that is done every so often.
pub(super) trait Chore: Send {
    /// What it is called in logs and counters.
    fn name(&self) -> &'static str;

    /// Does a small part of the work: some milliseconds, so that a closing log need not wait.
    ///
    /// # Errors
    /// Whatever hinders it; it is tried again at the next pass.
    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress>;

    /// The log is closing: what was begun and cannot be ended is taken back.
    fn stop(&mut self, _shared: &Arc<Shared>) {}
}

/// All chores, in the order of their turns.
fn chores(manifest: u64) -> Vec<Box<dyn Chore>> {
    vec![
        Box::new(Leftovers::new(manifest)),
        Box::new(Retention::default()),
        Box::new(Removal),
        Box::new(Expiry),
        Box::<super::books::Groups>::default(),
        Box::<Compactor>::default(),
    ]
}

/// Removes what no manifest lists any more, a file or a folder a step: a large one takes the file system a while.
struct Removal;

impl Chore for Removal {
    fn name(&self) -> &'static str {
        "removal"
    }

    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        if shared.pins.load(Ordering::Acquire) > 0 {
            return Ok(Progress::Done);
        }
        let Some(leftover) = lock(&shared.removable).pop() else { return Ok(Progress::Done) };
        if let Err(error) = leftover.remove(&*shared.storage) {
            let error = Error::from(error).context(format!("remove {}", leftover.path().display()));
            lock(&shared.removable).push(leftover);
            return Err(error);
        }
        Ok(Progress::More)
    }
}

/// How a chore has fared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChoreFailures {
    /// How often it failed since the log was opened.
    pub count: u64,
    /// What hinders it now; `None` since it got on again.
    pub error: Option<String>,
}

/// What others tell the housekeeper, and what it tells them.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Default)]
struct BellState {
    urgent: bool,
    closing: bool,
    failures: BTreeMap<&'static str, ChoreFailures>,
}

impl Bell {
    /// Lets the next pass begin at once.
    pub(super) fn ring(&self) {
        lock(&self.state).urgent = true;
        self.rung.notify_all();
    }

    pub(super) fn close(&self) {
        lock(&self.state).closing = true;
        self.rung.notify_all();
    }

    pub(super) fn closing(&self) -> bool {
        lock(&self.state).closing
    }

    pub(super) fn failures(&self) -> BTreeMap<&'static str, ChoreFailures> {
        lock(&self.state).failures.clone()
    }

    /// Waits for the next pass, and tells whether there is to be one.
    fn wait(&self) -> bool {
        let idle = |state: &mut BellState| !state.urgent && !state.closing;
        let state = lock(&self.state);
        let waited = self.rung.wait_timeout_while(state, PERIOD, idle).unwrap_or_else(PoisonError::into_inner);
        let mut state = waited.0;
        state.urgent = false;
        !state.closing
    }

    /// Tells of a failure once, and of its end.
    fn note(&self, name: &'static str, result: Result<(), &Error>) {
        let mut state = lock(&self.state);
        let known = state.failures.entry(name).or_default();
        match result {
            Ok(()) => {
                if known.error.take().is_some() {
                    tracing::info!(chore = name, "housekeeping gets on again");
                }
            }
            Err(error) => {
                known.count += 1;
                let text = error.to_string();
                if known.error.as_ref() != Some(&text) {
                    tracing::warn!(chore = name, error = %error, "housekeeping is hindered");
                }
                known.error = Some(text);
            }
        }
    }
}

/// Does the chores, a step at a time.
pub(super) struct Housekeeper {
    pub(super) shared: Arc<Shared>,
    chores: Vec<Box<dyn Chore>>,
    /// Those that have something to do in this pass, the next one first.
    open: VecDeque<usize>,
}

impl Housekeeper {
    /// A housekeeper of a log that was just opened; `manifest` is the one in force.
    pub(super) fn new(shared: Arc<Shared>, manifest: u64) -> Self {
        Self { shared, chores: chores(manifest), open: VecDeque::new() }
    }

    /// Does one step of the next chore, beginning a pass where none is open; tells whether the pass goes on.
    pub(super) fn step(&mut self) -> bool {
        if self.open.is_empty() {
            self.open.extend(0..self.chores.len());
        }
        let Some(i) = self.open.pop_front() else { return false };
        let chore = &mut self.chores[i];
        match chore.step(&self.shared) {
            Ok(Progress::More) => self.open.push_back(i),
            Ok(Progress::Done) => self.shared.bell.note(chore.name(), Ok(())),
            Err(error) => self.shared.bell.note(chore.name(), Err(&error)),
        }
        !self.open.is_empty()
    }

    /// Ends what the chores have begun.
    pub(super) fn stop(&mut self) {
        self.chores.iter_mut().for_each(|chore| chore.stop(&self.shared));
    }

    /// The thread's work: passes until the log closes or fails.
    pub(super) fn run(&mut self) {
        let go_on = |shared: &Shared| !shared.bell.closing() && shared.check_alive().is_ok();
        while self.shared.bell.wait() && go_on(&self.shared) {
            while self.step() && go_on(&self.shared) {}
        }
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_until_it_is_over() {
        let bell = Bell::default();
        bell.note("a", Ok(()));
        bell.note("a", Err(&Error::unavailable("disk full")));
        bell.note("a", Err(&Error::unavailable("disk full")));
        bell.note("b", Ok(()));
        let told = bell.failures();
        assert_eq!(told["a"], ChoreFailures { count: 2, error: Some("disk full".to_owned()) });
        bell.note("a", Ok(()));
        assert_eq!(bell.failures()["a"], ChoreFailures { count: 2, error: None });
        assert_eq!(bell.failures()["b"], ChoreFailures::default());
    }
}
