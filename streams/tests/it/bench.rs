//! A real log in a temporary folder, jobs that run over it, and a gate that counts calls and can shut.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tidemill_core::{
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Action, AllowAll, Caller, Embedded, FetchOptions, Gate, Log, Session},
    record::{FetchedRecord, Record},
    storage::OsStorage,
    topic::{TopicPartition, TopicSpec},
};
use tidemill_streams::{Control, Error, Job, Options, Result};
use tokio::{sync::watch, task::JoinHandle};

use crate::gaps::Gaps;

pub struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidemill-streams-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Counts all calls; while it is shut nothing can be read or written, as if the log were away.
#[derive(Default)]
pub struct Door {
    pub calls: AtomicU64,
    pub is_shut: AtomicBool,
    /// Records and positions cannot be committed.
    pub takes_no_writes: AtomicBool,
}

impl Gate for Door {
    fn authorize(&self, _: &Caller, action: Action, _: &str) -> Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let is_shut = self.is_shut.load(Ordering::Relaxed) && matches!(action, Action::Read | Action::Write);
        if is_shut { Err(Error::unavailable("the door is shut")) } else { Ok(()) }
    }

    fn charge(&self, caller: &Caller, action: Action, _: usize) -> Result<()> {
        if self.takes_no_writes.load(Ordering::Relaxed) && action == Action::Write {
            return Err(Error::unavailable("nothing can be written"));
        }
        self.authorize(caller, action, "")
    }
}

pub struct Bench {
    folder: Folder,
    engine: Arc<Engine>,
    pub door: Arc<Door>,
    /// The log is a cluster's instead.
    #[cfg(feature = "kafka")]
    cluster: Option<(String, tidemill_core::log::Kafka)>,
}

/// A job under way.
pub struct Running {
    pub control: watch::Sender<Control>,
    pub job: JoinHandle<Result<()>>,
}

impl Running {
    pub async fn end(self, control: Control) -> Result<()> {
        self.control.send(control).unwrap();
        soon("the end of a job", self.job).await.unwrap()
    }
}

pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Looks again until it is so.
pub async fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: not after 60 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Bench {
    pub async fn new(topics: &[(&str, u32)]) -> Self {
        let folder = Folder::new();
        let engine = open(&folder);
        let bench = Self {
            folder,
            engine,
            door: Arc::default(),
            #[cfg(feature = "kafka")]
            cluster: None,
        };
        for (name, partitions) in topics {
            bench.create(name, *partitions).await;
        }
        bench
    }

    /// On a broker of its own, which has no topics yet.
    #[cfg(feature = "kafka")]
    pub async fn of_cluster(url: &str, topics: &[(&str, u32)]) -> Self {
        let log = tidemill_core::log::Kafka::connect(url).await.unwrap();
        let bench = Self { cluster: Some((url.to_owned(), log)), ..Self::new(&[]).await };
        for (name, partitions) in topics {
            bench.create(name, *partitions).await;
        }
        bench
    }

    pub async fn create(&self, topic: &str, partitions: u32) {
        self.session().await.create_topic(topic, &TopicSpec::partitions(partitions)).await.unwrap();
    }

    /// Closes the log and opens it again.
    pub fn reopen(&mut self) {
        self.engine.close().unwrap();
        self.engine = open(&self.folder);
    }

    /// Its offsets have gaps, as those of a cluster.
    fn log(&self, gate: Arc<dyn Gate>) -> Gaps {
        Gaps::new(Arc::new(Embedded::with_gate(Arc::clone(&self.engine), gate)))
    }

    pub async fn session(&self) -> Arc<dyn Session> {
        #[cfg(feature = "kafka")]
        if let Some((_, log)) = &self.cluster {
            return log.session(Caller::internal("test")).await.unwrap();
        }
        self.log(Arc::new(AllowAll)).session(Caller::internal("test")).await.unwrap()
    }

    /// What the job's future needs; its session goes through the door.
    pub async fn run(&self, job: Job, options: Options, control: watch::Receiver<Control>) -> Result<()> {
        let gate: Arc<dyn Gate> = Arc::clone(&self.door) as Arc<dyn Gate>;
        #[cfg(feature = "kafka")]
        if let Some((url, _)) = &self.cluster {
            // As another process has it.
            let log = tidemill_core::log::Kafka::connect_with_gate(url, gate).await?;
            let session = log.session(Caller::internal("job")).await?;
            return job.run(session, Arc::new(SystemClock::default()), options, control).await;
        }
        let session = self.log(gate).session(Caller::internal("job")).await?;
        job.run(session, Arc::new(SystemClock::default()), options, control).await
    }

    pub async fn start_with(self: &Arc<Self>, job: Job, options: Options) -> Running {
        let (control, receiver) = watch::channel(Control::Run);
        let this = Arc::clone(self);
        Running { control, job: tokio::spawn(async move { this.run(job, options, receiver).await }) }
    }

    pub async fn start(self: &Arc<Self>, job: Job) -> Running {
        self.start_with(job, Options::default()).await
    }

    /// Runs a job until it has read what there is and closed all windows.
    pub async fn drain(&self, job: Job) -> Result<()> {
        let (_control, receiver) = watch::channel(Control::Drain);
        soon("a drain", self.run(job, Options::default(), receiver)).await
    }

    pub async fn push(&self, topic: &str, partition: u32, value: &impl Serialize) {
        let record = Record::new(None, Bytes::from(serde_json::to_vec(value).unwrap()));
        self.session().await.append(&TopicPartition::new(topic, partition), vec![record]).await.unwrap();
    }

    pub async fn records(&self, topic: &str) -> Vec<(u32, FetchedRecord)> {
        let session = self.session().await;
        let Some(found) = session.topic(topic).await.unwrap() else { return Vec::new() };
        let mut all = Vec::new();
        for partition in 0..found.partitions {
            let from = TopicPartition::new(topic, partition);
            let end = session.bounds(std::slice::from_ref(&from)).await.unwrap()[0].durable_offset;
            let mut offset = 0;
            while offset < end {
                let chunk = session.fetch(&from, offset, &FetchOptions::default()).await.unwrap();
                all.extend(chunk.records.into_iter().map(|record| (partition, record)));
                offset = chunk.next_offset;
            }
        }
        all
    }

    pub async fn output<T: DeserializeOwned>(&self, topic: &str) -> Vec<T> {
        let values = self.records(topic).await.into_iter().filter_map(|(_, record)| record.value);
        values.map(|value| serde_json::from_slice(&value).unwrap()).collect()
    }
}

fn open(folder: &Folder) -> Arc<Engine> {
    let clock = Arc::new(SystemClock::default());
    let config = Config {
        commit_file_bytes: 1 << 20,
        commit_log_bytes: 64 << 20,
        transaction_bytes: 16 << 20,
        ..Config::default()
    };
    Arc::new(Engine::open(&folder.0, config, Arc::new(OsStorage), clock).unwrap())
}
