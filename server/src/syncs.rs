//! The syncs that a process runs: those of a `sync run`, and those that were applied to a server, which starts them again
//! whenever it starts.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tidemill_connect::{
    converter::TopicSchema,
    sync::{
        control::Control,
        file::{SyncSpec, parse_text},
        parked::{ParkedKey, parked_of},
        remove::remove,
        run::{Observer, RunOptions, run},
        status::Status,
    },
};
use tidemill_core::{
    Error, ErrorKind, Result,
    log::{Caller, Embedded, Log, Session, Table},
};
use tokio::{sync::watch, task::JoinHandle};

/// The owner under which applied syncs are kept.
const OWNER: &str = "syncs";
/// A sync whose databases are not there is started again after this, doubled up to the second.
const RESTART_PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// A sync file as it was applied. Secrets in it are references still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// The file's whole path: paths in it are relative to its folder.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
}

impl Applied {
    /// Its syncs.
    ///
    /// # Errors
    /// `Invalid` for a fault in it, and for a password that stands in it: it would be stored.
    pub fn specs(&self) -> Result<Vec<SyncSpec>> {
        let specs = parse_text(&self.file, &self.text)?;
        let open = specs.iter().find(|spec| spec.from.holds_password() || spec.to.holds_password());
        match open {
            None => Ok(specs),
            Some(spec) => Err(Error::invalid(format!(
                "sync {}: a password stands in the file, and would be stored by the server; name it by ${{env:NAME}} or \
                 ${{file:PATH}}",
                spec.name
            ))),
        }
    }

    fn spec(&self, name: &str) -> Result<SyncSpec> {
        let specs = self.specs()?;
        let found = specs.into_iter().find(|spec| spec.name == name);
        found.ok_or_else(|| Error::not_found(format!("{} has no sync {name}", self.file.display())))
    }
}

/// A sync at work.
struct Running {
    control: Arc<Control>,
    /// Present where this process may stop it: it was applied.
    task: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

/// All syncs of a process.
#[derive(Clone)]
pub struct Syncs {
    log: Embedded,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    /// Whether syncs may be applied: only a server stays.
    serves: Arc<std::sync::atomic::AtomicBool>,
}

impl Syncs {
    pub fn new(log: Embedded) -> Self {
        Self { log, running: Arc::default(), serves: Arc::default() }
    }

    /// Takes up a sync that a command runs itself.
    pub fn register(&self, name: &str, control: &Arc<Control>) {
        let running = Running { control: Arc::clone(control), task: None };
        self.lock().insert(name.to_owned(), running);
    }

    /// Starts all applied syncs, and lets more be applied from now on.
    pub async fn serve(&self) -> Result<()> {
        self.serves.store(true, std::sync::atomic::Ordering::Release);
        let session = self.session().await?;
        for (name, applied) in applied_of(session.positions(OWNER).await?)? {
            match applied.spec(&name) {
                Ok(spec) => self.start(spec),
                Err(error) => tracing::error!("sync {name}: {error}"),
            }
        }
        Ok(())
    }

    /// Applies the syncs of a file: stores them and starts them, or starts them again. Tells their names.
    pub async fn apply(&self, applied: &Applied) -> Result<Vec<String>> {
        self.require_server()?;
        let specs = applied.specs()?;
        let value = serde_json::to_string(applied).map_err(|e| Error::internal("encode a sync").with_source(e))?;
        let mut writer = self.session().await?.writer(OWNER).await?;
        for spec in &specs {
            writer.set_position(&spec.name, Some(value.clone()));
        }
        writer.commit().await?;
        let mut names = Vec::new();
        for spec in specs {
            self.halt(&spec.name).await;
            names.push(spec.name.clone());
            self.start(spec);
        }
        Ok(names)
    }

    /// Stops an applied sync and removes all that it made but the target's tables. Tells what was done.
    pub async fn remove(&self, name: &str, force: bool) -> Result<Vec<String>> {
        self.require_server()?;
        let session = self.session().await?;
        let mut writer = session.writer(OWNER).await?;
        let applied = applied_of(writer.positions().clone())?.remove(name);
        let applied = applied.ok_or_else(|| Error::not_found(format!("no sync {name} was applied here")))?;
        self.halt(name).await;
        let done = remove(Arc::clone(&session), &applied.spec(name)?, force).await?;
        writer.set_position(name, None);
        writer.commit().await?;
        self.lock().remove(name);
        Ok(done)
    }

    /// How all syncs of the log are, those that nobody runs too.
    pub async fn status(&self) -> Result<Vec<Status>> {
        let now = self.log.engine().clock().now();
        let mut all: BTreeMap<String, Status> =
            self.lock().iter().map(|(name, running)| (name.clone(), running.control.status(now))).collect();
        let session = self.session().await?;
        for entry in session.table(Table::Schemas).await?.values() {
            let sync = TopicSchema::decode(entry.value.as_bytes())?.sync;
            if !all.contains_key(&sync) {
                let parked = parked_of(&*session, &sync).await?;
                all.insert(sync.clone(), Status { sync, parked, ..Status::default() });
            }
        }
        Ok(all.into_values().collect())
    }

    /// The line into a sync that runs.
    ///
    /// # Errors
    /// `NotFound` where nobody runs it.
    pub fn control(&self, name: &str) -> Result<Arc<Control>> {
        let running = self.lock();
        let control = running.get(name).map(|running| Arc::clone(&running.control));
        control.ok_or_else(|| {
            Error::not_found(format!(
                "nobody runs sync {name} on this log; when it is started, it tries parked rows again by itself"
            ))
        })
    }

    /// Stops all that this process started.
    pub async fn stop(&self) {
        let names: Vec<_> = self.lock().keys().cloned().collect();
        for name in names {
            self.halt(&name).await;
        }
    }

    fn require_server(&self) -> Result<()> {
        match self.serves.load(std::sync::atomic::Ordering::Acquire) {
            true => Ok(()),
            false => Err(Error::conflict(
                "syncs are applied to a server, and none serves this log: start one with tidemill start, or run the file in \
                 the foreground with tidemill sync run FILE",
            )),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self) -> Result<Arc<dyn Session>> {
        self.log.session(Caller::internal("syncs")).await
    }

    async fn halt(&self, name: &str) {
        let task = self.lock().get_mut(name).and_then(|running| running.task.take());
        if let Some((stop, task)) = task {
            let _ = stop.send(true);
            let _ = task.await;
        }
    }

    fn start(&self, spec: SyncSpec) {
        let (tell, stop) = watch::channel(false);
        let control: Arc<Control> = Arc::default();
        let (log, name, handle) = (self.log.clone(), spec.name.clone(), Arc::clone(&control));
        let task = tokio::spawn(async move { keep_running(&log, &spec, &handle, stop).await });
        self.lock().insert(name, Running { control, task: Some((tell, task)) });
    }
}

/// Runs a sync, and again where its databases went away, until it is stopped or a person must decide.
async fn keep_running(log: &Embedded, spec: &SyncSpec, control: &Arc<Control>, mut stop: watch::Receiver<bool>) {
    let [mut pause, longest] = RESTART_PAUSE;
    while !*stop.borrow() {
        let clock = Arc::clone(log.engine().clock());
        let one_run = async {
            let session = log.session(Caller::internal(format!("sync/{}", spec.name))).await?;
            let (observer, options) = (Arc::new(Traced(spec.name.clone())), RunOptions::default());
            run(session, clock, spec, &options, observer, Arc::clone(control), stop.clone()).await
        };
        match one_run.await {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!("{error}; again in {pause:?}");
                let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
                pause = (pause * 2).min(longest);
            }
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        }
    }
}

fn applied_of(positions: BTreeMap<String, String>) -> Result<BTreeMap<String, Applied>> {
    let decode = |(name, value): (String, String)| match serde_json::from_str(&value) {
        Ok(applied) => Ok((name, applied)),
        Err(error) => Err(Error::corrupt(format!("the applied sync {name} is malformed")).with_source(error)),
    };
    positions.into_iter().map(decode).collect()
}

/// Writes what a person should know to the server's own log.
struct Traced(String);

impl Observer for Traced {
    fn started(&self, _: &str, tables: &[(String, u64)], _: &[bool]) {
        tracing::info!("sync {}: started, {} tables", self.0, tables.len());
    }

    fn copied(&self, _: usize, _: u64) {}

    fn finished(&self, _: usize) {}

    fn applied(&self, _: u64) {}

    fn caught_up(&self) {}

    fn waiting(&self, error: &Error) {
        tracing::warn!("sync {}: {error}", self.0);
    }

    fn parked(&self, keys: &[ParkedKey]) {
        if let Some(newest) = keys.iter().max_by_key(|key| key.since_ms) {
            tracing::warn!("sync {}: {} parked, the newest: {}", self.0, keys.len(), newest.cause);
        }
    }
}
