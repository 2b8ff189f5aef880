//! An example as a child process, and the log that it leaves.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tidemill_core::{
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Caller, Embedded, FetchOptions, Log, Session},
    record::FetchedRecord,
    storage::OsStorage,
    topic::TopicPartition,
};

/// Nothing that these tests wait for may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes when the test ends.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidemill-examples-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The folder that cargo builds into: `target/debug`.
pub fn target() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_path_buf()
}

/// An example, which must be of the sources as they are: `cargo test NAME`, other than `cargo test`, builds no examples.
fn example(name: &str) -> PathBuf {
    let program = target().join("examples").join(name);
    let built = |path: &Path| path.metadata().and_then(|file| file.modified());
    let list = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let mut sources = list.split_once(": ").map_or("", |(_, sources)| sources).split_whitespace().map(Path::new);
    let is_fresh =
        built(&program).is_ok_and(|program| sources.all(|source| built(source).is_ok_and(|at| at <= program)));
    assert!(is_fresh, "{} is out of date: cargo build -p tidemill-examples --examples", program.display());
    program
}

/// A running example.
pub struct Program {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    /// What it has said.
    pub said: Vec<String>,
}

impl Program {
    pub fn start(name: &str, args: &[&str]) -> Self {
        let program = example(name);
        let mut command = Command::new(&program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let (send, lines) = channel();
        let (out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line));
        std::thread::Builder::new().spawn(read).unwrap();
        let read = move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        };
        let errors = Some(std::thread::Builder::new().spawn(read).unwrap());
        Self { child, started, lines, errors, said: Vec::new() }
    }

    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits for its next line; `None` when it has ended.
    pub fn line(&mut self) -> Option<&str> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => self.said.push(line),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => panic!("no word for {PATIENCE:?} after {:?}", self.said.last()),
        }
        self.said.last().map(String::as_str)
    }

    /// `kill -9`. Whether it was still running.
    pub fn kill(&mut self) -> bool {
        let was_running = self.child.try_wait().unwrap().is_none();
        self.child.kill().unwrap();
        self.wait();
        was_running
    }

    /// Waits for its end; returns what it wrote to standard error.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let status = self.wait();
        let errors = self.errors.take().map(|thread| thread.join().unwrap());
        (status, errors.unwrap_or_default())
    }

    fn wait(&mut self) -> ExitStatus {
        while self.line().is_some() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All records of topics of one partition, in order.
pub fn read_log(data_dir: &Path, topics: &[&str]) -> Vec<Vec<FetchedRecord>> {
    let clock = Arc::new(SystemClock::default());
    let engine = Engine::open(data_dir, Config::default(), Arc::new(OsStorage), clock).expect("the log opens");
    let engine = Arc::new(engine);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = runtime.block_on(async {
        let session = Embedded::new(Arc::clone(&engine)).session(Caller::internal("test")).await.unwrap();
        let mut records = Vec::new();
        for topic in topics {
            records.push(read_topic(&*session, topic).await);
        }
        records
    });
    engine.close().unwrap();
    records
}

async fn read_topic(session: &dyn Session, topic: &str) -> Vec<FetchedRecord> {
    let from = TopicPartition::new(topic, 0);
    let bounds = session.bounds(std::slice::from_ref(&from)).await.unwrap()[0];
    let (mut offset, mut records) = (bounds.log_start_offset, Vec::new());
    while offset < bounds.durable_offset {
        let chunk = session.fetch(&from, offset, &FetchOptions::default()).await.unwrap();
        records.extend(chunk.records);
        offset = chunk.next_offset;
    }
    records
}
