//! The three threads of a log, and the stepper that does their work by hand.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    commit::{Committer, Turn},
    housekeeping::Housekeeper,
    shared::{Shared, lock},
    write_behind::SegmentWriter,
};
use crate::Result;

/// A note that proves the last group is written when nothing came for this long.
const IDLE_NOTE: Duration = Duration::from_millis(100);
/// An open checkpoint takes a step this often while nothing comes.
const QUIET_STEP: Duration = Duration::from_millis(20);
/// Small amounts of records go into segments when they are this old.
const WRITE_BEHIND: Duration = Duration::from_secs(1);

/// Committer, segment writer and housekeeper, moved step by step by whoever holds it.
pub struct Stepper {
    shared: Arc<Shared>,
    committer: Committer,
    writer: SegmentWriter,
    housekeeper: Housekeeper,
}

impl Stepper {
    pub(super) fn new(committer: Committer, writer: SegmentWriter) -> Self {
        let shared = Arc::clone(&committer.shared);
        let housekeeper = Housekeeper::new(Arc::clone(&shared), writer.superblock.current().manifest);
        Self { shared, committer, writer, housekeeper }
    }

    /// Commits one group of what is queued.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn commit(&mut self) -> Result<Turn> {
        self.committer.turn()
    }

    /// Writes the note that proves the last group.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn note(&mut self) -> Result<()> {
        self.committer.note(false)
    }

    /// Does what the segment writer does when it is woken.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn write_behind(&mut self, all: bool) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let passed = writer_pass(&mut self.writer, all).and_then(|()| self.writer.serve_requests());
        failing(&shared, self.writer.interrupted(passed))
    }

    /// Begins a checkpoint, or takes an open one a step further.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn checkpoint_step(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let step = self.writer.checkpoint_step();
        failing(&shared, self.writer.interrupted(step))
    }

    /// Makes a checkpoint of all that is visible.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn checkpoint(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let made = self.writer.checkpoint();
        failing(&shared, self.writer.interrupted(made))
    }

    /// Does all that housekeeping finds to do now. What hinders it is told by `Engine::housekeeping`.
    pub fn housekeep(&mut self) {
        while self.housekeep_step() {}
    }

    /// Does one step of housekeeping, and tells whether this pass goes on.
    pub fn housekeep_step(&mut self) -> bool {
        self.housekeeper.step()
    }

    /// Ends the log in order.
    ///
    /// # Errors
    /// The log has failed for good.
    pub fn close(&mut self) -> Result<()> {
        self.shared.queue.close();
        while self.committer.turn()? != Turn::Idle {
            self.write_behind(true)?;
        }
        self.committer.note(true)?;
        self.writer.finish()
    }
}

/// A failure stops the log for good, unless it is the disk that has no room.
fn failing<T>(shared: &Shared, result: Result<T>) -> Result<T> {
    if let Err(error) = &result
        && !error.is_disk_full()
    {
        shared.fail(error);
    }
    result
}

fn writer_pass(writer: &mut SegmentWriter, all: bool) -> Result<()> {
    writer.prepare_slot()?;
    writer.write_behind(all)
}

pub(super) struct Threads {
    shared: Arc<Shared>,
    committer: JoinHandle<Result<()>>,
    writer: JoinHandle<Result<()>>,
    housekeeper: JoinHandle<()>,
}

impl Threads {
    pub(super) fn start(stepper: Stepper) -> Result<Self> {
        let Stepper { shared, mut committer, mut writer, mut housekeeper } = stepper;
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let committer = named("tm-committer").spawn(move || run_committer(&mut committer))?;
        let segment_writer = {
            let shared = Arc::clone(&shared);
            named("tm-segments").spawn(move || failing(&shared, run_writer(&mut writer)))?
        };
        let housekeeper = named("tm-housekeeper").spawn(move || {
            let _guard = AbortOnPanic;
            housekeeper.run();
        })?;
        Ok(Self { shared, committer, writer: segment_writer, housekeeper })
    }

    /// Waits for all threads; the queue is closed already.
    pub(super) fn join(self) -> Result<()> {
        // A panic in any of them is a defect that leaves the log's state unknown: it ends the process.
        let join = |handle: JoinHandle<Result<()>>| handle.join().unwrap_or_else(|_| std::process::abort());
        self.shared.bell.close();
        self.housekeeper.join().unwrap_or_else(|_| std::process::abort());
        let committed = join(self.committer);
        lock(&self.shared.writer).closing = true;
        self.shared.writer_work.notify_all();
        let written = join(self.writer);
        committed.and(written)
    }
}

/// Aborts the process when a thread of the log unwinds: nobody could tell what it left undone.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn run_committer(committer: &mut Committer) -> Result<()> {
    let _guard = AbortOnPanic;
    loop {
        let shared = Arc::clone(&committer.shared);
        let idle = (!committer.noted).then_some(IDLE_NOTE);
        let ended = shared.queue.wait(idle);
        let rooms = shared.rooms.load(Ordering::Acquire);
        match committer.turn()? {
            Turn::Idle if ended => return committer.note(true),
            Turn::Idle => committer.note(false)?,
            Turn::Committed(_) => {}
            Turn::Blocked => {
                shared.wake_writer(true);
                shared.await_room(rooms);
            }
        }
    }
}

fn run_writer(writer: &mut SegmentWriter) -> Result<()> {
    let _guard = AbortOnPanic;
    let shared = Arc::clone(&writer.shared);
    let mut whole = Instant::now();
    writer.prepare_slot()?;
    loop {
        let mut closing = false;
        let worked = await_work(writer, &shared, &mut whole).and_then(|work| {
            shared.check_alive()?;
            closing = work == Some(true);
            match work {
                Some(false) => work_once(writer, &mut whole),
                _ => Ok(()),
            }
        });
        if closing {
            return writer.finish();
        }
        writer.weather(worked)?;
        writer.rest();
    }
}

fn work_once(writer: &mut SegmentWriter, whole: &mut Instant) -> Result<()> {
    let shared = Arc::clone(&writer.shared);
    let ring_bytes = shared.config.ring_bytes;
    let unwritten = || shared.unwritten_bytes.load(Ordering::Relaxed);
    // Before records: what is asked for may make room for them.
    writer.serve_requests()?;
    let all = whole.elapsed() >= WRITE_BEHIND;
    if all || unwritten() > ring_bytes / 4 {
        writer_pass(writer, all)?;
    } else {
        // Woken for the commit log's sake: what came is left to grow.
        writer.keep_pace()?;
    }
    // Many partitions with little each: large runs alone do not make room, nor let the oldest be forgotten.
    if unwritten().max(shared.ring_bytes.load(Ordering::Relaxed) / 2) > ring_bytes / 2 {
        writer.write_behind(true)?;
    }
    if all {
        *whole = Instant::now();
    }
    Ok(())
}

/// Waits for something to do, and tells whether the log is closing; nothing where an open checkpoint took a step in the
/// quiet instead.
fn await_work(writer: &mut SegmentWriter, shared: &Shared, whole: &mut Instant) -> Result<Option<bool>> {
    let mut state = lock(&shared.writer);
    if state.dirty.is_empty() {
        *whole = Instant::now();
    }
    while state.dirty.is_empty() && !state.urgent && !state.closing && !writer.is_hindered() {
        if state.checkpoint_wanted || !state.rolls.is_empty() {
            drop(state);
            shared.check_alive()?;
            writer.serve_requests()?;
            return Ok(None);
        }
        if writer.checkpoint.is_none() {
            state = shared.writer_work.wait(state).unwrap_or_else(PoisonError::into_inner);
            *whole = Instant::now();
            continue;
        }
        let waited = shared.writer_work.wait_timeout(state, QUIET_STEP).unwrap_or_else(PoisonError::into_inner);
        state = waited.0;
        if waited.1.timed_out() {
            drop(state);
            shared.check_alive()?;
            writer.checkpoint_step()?;
            return Ok(None);
        }
    }
    // What came is left to grow for a while, so that runs are large.
    let rest = WRITE_BEHIND.saturating_sub(whole.elapsed());
    let waited = shared.writer_work.wait_timeout_while(state, rest, |s| !s.urgent && !s.closing);
    state = waited.unwrap_or_else(PoisonError::into_inner).0;
    state.urgent = false;
    Ok(Some(state.closing))
}
