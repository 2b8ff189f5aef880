//! The coordinator of an engine's groups: [`Machine`]s by name, and those who wait for them.
//!
//! It has no thread and no task. What is due is let pass by whoever calls next, and who waits for an answer, or for a
//! change, wakes up when the next thing is due. A group that nobody asks for is looked at by [`Groups::expire`]. Joins,
//! syncs and heartbeats touch memory only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};

use super::{
    Answer, Identity, JoinRequest, Joined, Limits, Machine, MemberInfo, Refusal, State, SyncRequest, Synced, Token,
};
use crate::{engine::Engine, topic::MAX_NAME_LEN};

/// Who waits looks again after this long, whatever it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The groups of one engine that have, or may have, members, by name.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(super) limits: Limits,
    cells: Mutex<HashMap<String, Arc<Cell>>>,
}

impl Registry {
    fn cells(&self) -> MutexGuard<'_, HashMap<String, Arc<Cell>>> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the groups in memory.
    pub(super) fn names(&self) -> Vec<String> {
        self.cells().keys().cloned().collect()
    }

    pub(super) fn find(&self, group: &str) -> Option<Arc<Cell>> {
        self.cells().get(group).cloned()
    }

    /// A group, made where there is none.
    pub(super) fn make(&self, group: &str, now: Duration) -> Result<Arc<Cell>, Refusal> {
        if group.is_empty() || group.len() > MAX_NAME_LEN {
            return Err(Refusal::InvalidGroup);
        }
        let mut cells = self.cells();
        if let Some(cell) = cells.get(group) {
            return Ok(Arc::clone(cell));
        }
        let limit = self.limits.groups;
        if cells.len() >= limit {
            cells.retain(|_, cell| !cell.is_over(now));
        }
        if cells.len() >= limit {
            return Err(Refusal::Full(format!("there are {limit} groups already")));
        }
        let inner = Inner { machine: Machine::new(self.limits), waiting: HashMap::new(), commits: 0 };
        let cell = Arc::new(Cell { inner: Mutex::new(inner), changed: Arc::default() });
        cells.insert(group.to_owned(), Arc::clone(&cell));
        Ok(cell)
    }

    /// Lets pass what is due in all groups, and forgets those that hold nothing.
    pub(super) fn reap_all(&self, now: Duration) {
        self.cells().retain(|_, cell| !cell.is_over(now));
    }

    /// Forgets one group if it holds nothing.
    pub(super) fn reap_one(&self, group: &str, now: Duration) {
        let mut cells = self.cells();
        if cells.get(group).is_some_and(|cell| cell.is_over(now)) {
            cells.remove(group);
        }
    }
}

/// One group.
#[derive(Debug)]
pub(super) struct Cell {
    inner: Mutex<Inner>,
    /// Told when anything about the group may have changed.
    changed: Arc<Notify>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) machine: Machine,
    waiting: HashMap<Token, Waiting>,
    /// Commits that are on their way to the disk: what they write may not be seen yet.
    pub(super) commits: usize,
}

#[derive(Debug)]
enum Waiting {
    Join(oneshot::Sender<Result<Joined, Refusal>>),
    Sync(oneshot::Sender<Result<Synced, Refusal>>),
}

impl Cell {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the machine of a group that is locked, then answers and wakes whom that concerns.
    pub(super) fn act<T>(&self, inner: &mut Inner, act: impl FnOnce(&mut Inner) -> T) -> T {
        let before = (inner.machine.state(), inner.machine.generation());
        let result = act(inner);
        inner.deliver();
        if before != (inner.machine.state(), inner.machine.generation()) {
            self.changed.notify_waiters();
        }
        result
    }

    /// Whether the group holds nothing; then it is dead.
    fn is_over(&self, now: Duration) -> bool {
        let mut inner = self.lock();
        self.act(&mut inner, |inner| {
            inner.machine.tick(now);
            let is_free = inner.commits == 0 && inner.waiting.is_empty();
            inner.machine.state() == State::Dead
                || (is_free && inner.machine.is_idle() && inner.machine.kill(now).is_ok())
        })
    }
}

impl Inner {
    /// Answers those whose time has come.
    fn deliver(&mut self) {
        for (token, answer) in self.machine.take_answers() {
            match (self.waiting.remove(&token), answer) {
                (Some(Waiting::Join(to)), Answer::Joined(answer)) => drop(to.send(answer)),
                (Some(Waiting::Sync(to)), Answer::Synced(answer)) => drop(to.send(answer)),
                _ => {}
            }
        }
    }
}

/// The coordinator. Cheap to clone; all of one engine are the same.
#[derive(Debug, Clone)]
pub struct Groups {
    pub(super) engine: Arc<Engine>,
}

impl Groups {
    /// The coordinator of an engine's groups.
    pub fn of(engine: &Arc<Engine>) -> Self {
        Self { engine: Arc::clone(engine) }
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.registry().limits
    }

    /// The engine whose groups they are.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn now(&self) -> Duration {
        self.engine.clock().monotonic()
    }

    pub(super) fn registry(&self) -> &Registry {
        self.engine.groups()
    }

    pub(super) fn find(&self, group: &str) -> Option<Arc<Cell>> {
        self.registry().find(group)
    }

    pub(super) fn make(&self, group: &str) -> Result<Arc<Cell>, Refusal> {
        self.registry().make(group, self.now())
    }

    /// Calls a group's machine, then answers and wakes whom that concerns.
    pub(super) fn call<T>(&self, cell: &Cell, call: impl FnOnce(&mut Inner, Duration) -> T) -> T {
        let mut inner = cell.lock();
        cell.act(&mut inner, |inner| call(inner, self.now()))
    }

    /// Lets everybody who waits look at the clock: for tests, which move it.
    #[doc(hidden)]
    pub fn look(&self) {
        let cells: Vec<_> = self.registry().cells().values().cloned().collect();
        for cell in cells {
            self.call(&cell, |inner, now| inner.machine.tick(now));
            cell.changed.notify_waiters();
        }
    }

    /// Members of a group, by id.
    pub fn members(&self, group: &str) -> Vec<MemberInfo> {
        self.find(group).map_or(Vec::new(), |cell| {
            self.call(&cell, |inner, now| {
                inner.machine.tick(now);
                inner.machine.members()
            })
        })
    }

    /// Resolves when something about the group may have changed since this was called, or something is due.
    pub(crate) fn changed(&self, group: &str) -> impl Future<Output = ()> + Send + use<> {
        let (cell, groups) = (self.find(group), self.clone());
        let changed = cell.as_ref().map(|cell| Arc::clone(&cell.changed).notified_owned());
        async move {
            let Some((cell, changed)) = cell.zip(changed) else { return std::future::pending().await };
            let due = groups.call(&cell, |inner, now| inner.machine.next_deadline().map(|at| at.saturating_sub(now)));
            let _ = tokio::time::timeout(due.map_or(PATIENCE, |due| due.min(PATIENCE)), changed).await;
        }
    }

    /// A fresh member id.
    pub(crate) fn new_id(&self, client_id: &str) -> Result<String, Refusal> {
        let random = self.engine.random().map_err(|e| e.context("a member's id"))?;
        let end = (0..=client_id.len().min(64)).rev().find(|end| client_id.is_char_boundary(*end)).unwrap_or(0);
        Ok(format!("{}-{random:032x}", &client_id[..end]))
    }

    /// Joins a group; returns when the round is over. A request without a new id gets one.
    ///
    /// # Errors
    /// Those of the protocol.
    ///
    /// # Cancel safety
    /// A dropped future leaves the member in the group until its time is over.
    pub async fn join(&self, group: &str, mut request: JoinRequest) -> Result<Joined, Refusal> {
        if request.new_id.is_empty() {
            request.new_id = self.new_id(&request.client_id)?;
        }
        loop {
            let cell = match request.who.id.is_empty() {
                true => self.make(group)?,
                false => self.find(group).ok_or(Refusal::UnknownMember)?,
            };
            let (to, answer) = oneshot::channel();
            let asked = request.clone();
            self.call(&cell, |inner, now| {
                let token = inner.machine.join(now, asked);
                inner.waiting.insert(token, Waiting::Join(to));
            });
            match self.wait(&cell, answer).await {
                // It was reaped between finding and joining.
                Err(Refusal::Dead) => {}
                answer => return answer,
            }
        }
    }

    /// Hands over a leader's assignment, or waits for it.
    ///
    /// # Errors
    /// Those of the protocol.
    ///
    /// # Cancel safety
    /// The member stays; it may sync again.
    pub async fn sync(&self, group: &str, request: SyncRequest) -> Result<Synced, Refusal> {
        let cell = self.find(group).ok_or(Refusal::UnknownMember)?;
        let (to, answer) = oneshot::channel();
        self.call(&cell, |inner, now| {
            let token = inner.machine.sync(now, request);
            inner.waiting.insert(token, Waiting::Sync(to));
        });
        alive(self.wait(&cell, answer).await)
    }

    /// Waits for an answer, and lets pass what is due meanwhile.
    async fn wait<T>(&self, cell: &Cell, mut answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
        loop {
            let changed = cell.changed.notified();
            let wait = self.call(cell, |inner, now| {
                inner.machine.tick(now);
                inner.machine.next_deadline().map_or(PATIENCE, |deadline| deadline.saturating_sub(now))
            });
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or(Err(Refusal::Dead)),
                () = changed => {}
                () = tokio::time::sleep(wait.min(PATIENCE)) => {}
            }
        }
    }

    /// A member's sign of life.
    ///
    /// # Errors
    /// `RebalanceInProgress` tells it to join again; others that it is none.
    pub fn heartbeat(&self, group: &str, who: &Identity, generation: i32) -> Result<(), Refusal> {
        let cell = self.find(group).ok_or(Refusal::UnknownMember)?;
        alive(self.call(&cell, |inner, now| inner.machine.heartbeat(now, who, generation)))
    }

    /// A member leaves.
    ///
    /// # Errors
    /// `UnknownMember`, `FencedInstance`.
    pub fn leave(&self, group: &str, who: &Identity) -> Result<(), Refusal> {
        let cell = self.find(group).ok_or(Refusal::UnknownMember)?;
        let left = alive(self.call(&cell, |inner, now| inner.machine.leave(now, who)));
        self.registry().reap_one(group, self.now());
        left
    }
}

/// Who finds a group that was just forgotten is none of its members.
fn alive<T>(answer: Result<T, Refusal>) -> Result<T, Refusal> {
    answer.map_err(|refusal| if matches!(refusal, Refusal::Dead) { Refusal::UnknownMember } else { refusal })
}
