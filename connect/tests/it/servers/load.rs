//! A write load that knows what it committed: seeded transactions through the database's own client, one long-lived
//! process, with a ledger of each change that a reader of the log must see.
//!
//! Each transaction also writes its number into a table of its own. So after a kill in the middle of a commit the load
//! asks the server whether that commit was, instead of guessing.

mod dialect;
mod ledger;
mod writer;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Folder, client};

pub use dialect::{Column, TABLES, Target};
pub use ledger::{Change, Ledger, Op, Row, Seen};
use writer::{Transaction, Writer};

/// A server may be away this long before the load gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// A transaction may fail this often on a server that answers.
const ATTEMPTS: u32 = 5;

#[derive(Clone)]
pub struct Settings {
    pub seed: u64,
    /// Transactions a second; as many as the server takes if `None`.
    pub rate: Option<u32>,
    /// The tables are `PREFIX_wide`, `PREFIX_pair`, `PREFIX_text` and `PREFIX_tx`.
    pub prefix: String,
    /// About so many rows are kept in each table.
    pub rows: usize,
    /// Makes the tables and waits for [`Load::resume`].
    pub paused: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, rate: None, prefix: "load".into(), rows: 60, paused: false }
    }
}

#[derive(Default)]
struct State {
    paused: bool,
    stopped: bool,
    /// No transaction is open.
    idle: bool,
    /// The thread has ended, well or not.
    ended: bool,
    ledger: Ledger,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// A load that runs until it is stopped or dropped.
pub struct Load {
    shared: Shared,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Makes the tables, which must not exist, and begins to write.
    pub fn start(target: Target, settings: Settings) -> Self {
        println!("load with seed {}", settings.seed);
        let (writer, first) = Writer::new(&settings, target.dialect);
        client::run(&mut target.client(), target.dialect.create(&settings.prefix).as_bytes())
            .unwrap_or_else(|e| panic!("the load's tables: {e}"));
        let mut state = State { paused: settings.paused, idle: true, ..State::default() };
        state.ledger.push(first);
        let shared: Shared = Arc::new((Mutex::new(state), Condvar::new()));
        let mut run = Run { shared: shared.clone(), target, settings, writer, client: None };
        let thread = std::thread::Builder::new().name("load".into());
        let thread = thread.spawn(move || {
            let _ended = Ended(run.shared.clone());
            run.run();
        });
        Self { shared, thread: Some(thread.unwrap()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    /// Returns when no transaction is open.
    pub fn pause(&self) {
        self.lock().paused = true;
        self.wait(|state| state.idle);
    }

    pub fn resume(&self) {
        self.lock().paused = false;
        self.shared.1.notify_all();
    }

    /// Number of the last committed transaction.
    pub fn committed(&self) -> u64 {
        self.lock().ledger.last()
    }

    /// Returns when so many more transactions are committed.
    pub fn wait_for(&self, more: u64) {
        let goal = self.committed() + more;
        self.wait(|state| state.ledger.last() >= goal);
    }

    fn wait(&self, done: impl Fn(&State) -> bool) {
        let state = self.lock();
        let state = self.shared.1.wait_while(state, |state| !done(state) && !state.ended).unwrap();
        assert!(done(&state), "the load has ended; its own panic says why");
    }

    /// What is committed up to now.
    pub fn ledger(&self) -> Ledger {
        self.lock().ledger.clone()
    }

    /// Ends the load after its open transaction; all it committed.
    pub fn stop(mut self) -> Ledger {
        self.end().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.ledger()
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.shared.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).stopped = true;
        self.shared.1.notify_all();
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Wakes those who wait for a load that panicked.
struct Ended(Shared);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ended = true;
        self.0.1.notify_all();
    }
}

/// What the load's thread has.
struct Run {
    shared: Shared,
    target: Target,
    settings: Settings,
    writer: Writer,
    client: Option<Client>,
}

impl Run {
    fn run(&mut self) {
        let mut due = Instant::now();
        while self.may_begin(&mut due) {
            let transaction = self.writer.transaction();
            let committed = self.execute(&transaction);
            let mut state = self.shared.0.lock().unwrap();
            if committed {
                state.ledger.push(transaction.changes);
            }
            state.idle = true;
            drop(state);
            self.shared.1.notify_all();
        }
    }

    /// Waits until the next transaction may begin; `false` when none may any more.
    fn may_begin(&self, due: &mut Instant) -> bool {
        let (state, changed) = &*self.shared;
        let mut state = state.lock().unwrap();
        loop {
            let early = due.saturating_duration_since(Instant::now());
            if state.stopped {
                return false;
            } else if state.paused {
                state = changed.wait(state).unwrap();
            } else if early > Duration::ZERO {
                state = changed.wait_timeout(state, early).unwrap().0;
            } else {
                state.idle = false;
                if let Some(rate) = self.settings.rate {
                    // No catching up after a pause.
                    *due = (*due).max(Instant::now()) + Duration::from_secs(1) / rate;
                }
                return true;
            }
        }
    }

    /// Runs a transaction until it is known to be committed; `false` only if the load is stopped before.
    fn execute(&mut self, transaction: &Transaction) -> bool {
        let mut deadline = Instant::now() + PATIENCE;
        let mut attempts = 0;
        let mut said = String::new();
        loop {
            let client = self.client.get_or_insert_with(|| Client::start(&self.target));
            match client.run(&transaction.script, &self.target.dialect.marker(transaction.number)) {
                Ok(()) => return true,
                Err(error) => said = if error.is_empty() { said } else { error },
            }
            self.client = None;
            // The server may be away. Once it answers it also says whether this commit was its last act.
            let known = self.target.dialect.last_transaction(&self.settings.prefix);
            match client::run(&mut self.target.client(), known.as_bytes()) {
                Ok(output) => {
                    let last: u64 = String::from_utf8_lossy(&output).trim().parse().unwrap();
                    if last == transaction.number {
                        return true;
                    }
                    attempts += 1;
                    assert!(attempts < ATTEMPTS, "the load's transaction fails: {said}: {:.2000}", transaction.script);
                    deadline = Instant::now() + PATIENCE;
                }
                Err(away) => {
                    assert!(Instant::now() < deadline, "the load's server is away: {away}; before that: {said}");
                    let (state, changed) = &*self.shared;
                    let state = state.lock().unwrap();
                    if state.stopped {
                        return false;
                    }
                    drop(changed.wait_timeout(state, Duration::from_millis(20)).unwrap());
                }
            }
        }
    }
}

/// A client process that takes one script after the other.
struct Client {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Holds what it says of errors: nobody reads a pipe meanwhile.
    folder: Folder,
}

impl Client {
    fn start(target: &Target) -> Self {
        let folder = Folder::new();
        let errors = std::fs::File::create(folder.path("errors")).unwrap();
        let mut command: Command = target.client();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout, folder }
    }

    /// `Err` is what the client said before it ended.
    fn run(&mut self, script: &str, marker: &str) -> Result<(), String> {
        let sent = self.stdin.write_all(script.as_bytes()).and_then(|()| self.stdin.write_all(marker.as_bytes()));
        let mut line = String::new();
        while sent.is_ok() && self.stdout.read_line(&mut line).is_ok_and(|read| read > 0) {
            if marker.contains(line.trim()) && line.starts_with("done ") {
                return Ok(());
            }
            line.clear();
        }
        let _ = self.child.wait();
        Err(std::fs::read_to_string(self.folder.path("errors")).unwrap_or_default().trim().to_owned())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
