//! The syncs that a process runs: those of a `sync run`, and those that were applied to a server, which starts them again
//! whenever it starts.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tidemill_connect::{
    converter::TopicSchema,
    sync::{
        away::{Side, Waits, spoken},
        check::check_run,
        control::Control,
        file::{SyncSpec, parse_text, select},
        health::last_errors,
        known::Known,
        parked::{ParkedKey, parked_of},
        recopy::resolve_recopy,
        remove::remove,
        run::{Observer, RunOptions, TableStart, run},
        status::Status,
    },
};
use tidemill_core::{
    Error, ErrorKind, Result,
    log::{Caller, Embedded, Log, Session, Table},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};

use crate::typed::Typed;

/// The owner under which applied syncs are kept.
const OWNER: &str = "syncs";
/// A sync whose databases are not there, or refuse it, is started again after this, doubled up to the second.
const RESTART_PAUSE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];
/// And up to this where they refuse it.
const LONGEST_DENIED: Duration = Duration::from_secs(60);

/// A sync file as it was applied. Secrets in it are references still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// The file's whole path: paths in it are relative to its folder.
    pub file: PathBuf,
    /// Its text.
    pub text: String,
    /// Those of its syncs that are applied; all where none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub syncs: Vec<String>,
    /// Tables to copy anew; until that has begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recopy: Vec<String>,
    /// Whether to drop the target's tables and fill them anew; until that has begun.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
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
            None => select(specs, &self.syncs),
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
    /// The sync file's whole path.
    file: PathBuf,
    /// Present where this process may stop it: it was applied.
    task: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

/// What an application did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Names {
    /// The syncs that were applied.
    pub applied: Vec<String>,
    /// Those whose databases are not there, and why.
    pub waiting: BTreeMap<String, String>,
}

/// All syncs of a process.
#[derive(Clone)]
pub struct Syncs {
    log: Embedded,
    data_dir: PathBuf,
    running: Arc<Mutex<BTreeMap<String, Running>>>,
    /// Whoever writes what is applied: a second writer would fence the first.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether syncs may be applied: only a server stays.
    serves: Arc<std::sync::atomic::AtomicBool>,
}

impl Syncs {
    pub fn new(log: Embedded, data_dir: &Path) -> Self {
        let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Self { log, data_dir, running: Arc::default(), turn: Arc::default(), serves: Arc::default() }
    }

    /// How commands about a sync are typed on this machine.
    pub fn typed(&self, name: &str) -> Typed {
        let typed = Typed::of_folder(&self.data_dir).served(self.serves());
        match self.lock().get(name) {
            Some(running) => typed.file(&running.file),
            None => typed,
        }
    }

    /// Takes up a sync that a command runs itself.
    pub fn register(&self, spec: &SyncSpec, control: &Arc<Control>) {
        let file = std::path::absolute(&spec.file).unwrap_or_else(|_| spec.file.clone());
        let running = Running { control: Arc::clone(control), file, task: None };
        self.lock().insert(spec.name.clone(), running);
    }

    /// Starts all applied syncs, and lets more be applied from now on.
    pub async fn serve(&self) -> Result<()> {
        self.serves.store(true, std::sync::atomic::Ordering::Release);
        let session = self.session().await?;
        for (name, applied) in applied_of(session.positions(OWNER).await?)? {
            match applied.spec(&name) {
                Ok(spec) => self.start(spec, applied),
                Err(error) => tracing::error!("sync {name}: {error}"),
            }
        }
        Ok(())
    }

    /// Applies the syncs of a file: stores them and starts them, or starts them again. Tells their names, and why those
    /// wait whose databases could not be looked at.
    ///
    /// # Errors
    /// `Conflict` with all that a run would refuse; then none of them is applied.
    pub async fn apply(&self, applied: &Applied) -> Result<Names> {
        self.require_server()?;
        let specs = applied.specs()?;
        let found = specs.iter().try_for_each(SyncSpec::check_passwords);
        found.map_err(|error| Error::invalid(format!("{error}, where the server runs")))?;
        let recopy = resolve_recopy(&*self.session().await?, &specs, &applied.recopy).await?;
        let applied = Applied { recopy, ..applied.clone() };
        let waiting = self.examine(&specs, &applied).await?;
        // Each is stored for itself.
        let applied = Applied { syncs: Vec::new(), ..applied };
        self.store(specs.iter().map(|spec| (spec.name.as_str(), Some(&applied))), |_| true).await?;
        let mut names = Names { applied: Vec::new(), waiting };
        for spec in specs {
            self.halt(&spec.name).await;
            names.applied.push(spec.name.clone());
            self.start(spec, applied.clone());
        }
        Ok(names)
    }

    /// Refuses what a run would refuse. A database that is not there is waited for; tells why.
    async fn examine(&self, specs: &[SyncSpec], applied: &Applied) -> Result<BTreeMap<String, String>> {
        let known = Known::of(&*self.session().await?).await?;
        let options = RunOptions { once: false, recopy: applied.recopy.clone(), replace: applied.replace };
        let (mut refused, mut waiting) = (Vec::new(), BTreeMap::new());
        for spec in specs {
            let checked = check_run(spec, specs, &known, &options).await;
            for finding in checked.refusals() {
                refused.push(format!("  sync {}: refuse {}: {}", spec.name, finding.subject, finding.message));
                refused.extend(finding.cure.as_ref().map(|cure| format!("         {cure}")));
            }
            match checked.fault {
                Some(error) if error.kind() == ErrorKind::Unavailable => {
                    waiting.insert(spec.name.clone(), error.to_string());
                }
                Some(error) => {
                    return Err(error.context(format!("nothing was applied: sync {}", spec.name)));
                }
                None => {}
            }
        }
        match refused.is_empty() {
            true => Ok(waiting),
            false => {
                let typed = Typed::of_folder(&self.data_dir).served(true).file(&applied.file);
                let told = typed.text(&refused.join("\n"));
                Err(Error::conflict(format!("nothing was applied; what is in the way:\n{told}")))
            }
        }
    }

    /// Stores what is applied, or that it is no more, where `still` holds of what is stored.
    async fn store<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a str, Option<&'a Applied>)>,
        still: impl Fn(Option<&Applied>) -> bool,
    ) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut writer = self.session().await?.writer(OWNER).await?;
        let stored = applied_of(writer.positions().clone())?;
        for (name, applied) in changes {
            if still(stored.get(name)) {
                let value = applied.map(serde_json::to_string).transpose();
                let value = value.map_err(|e| Error::internal("encode a sync").with_source(e))?;
                writer.set_position(name, value);
            }
        }
        writer.commit().await
    }

    /// Stops an applied sync and removes all that it made but the target's tables. Tells what was done.
    pub async fn remove(&self, name: &str, force: bool) -> Result<Vec<String>> {
        self.require_server()?;
        let session = self.session().await?;
        let applied = applied_of(session.positions(OWNER).await?)?.remove(name);
        let applied = applied.ok_or_else(|| Error::not_found(format!("no sync {name} was applied here")))?;
        self.halt(name).await;
        let removed = remove(Arc::clone(&session), &applied.spec(name)?, force).await;
        let done = removed.map_err(|error| self.typed(name).known(&error))?;
        self.store([(name, None)], |_| true).await?;
        self.lock().remove(name);
        Ok(done)
    }

    /// Forgets that a sync was applied, which something else removed.
    pub async fn forget(&self, name: &str) -> Result<()> {
        let applied = applied_of(self.session().await?.positions(OWNER).await?)?;
        if applied.contains_key(name) {
            self.store([(name, None)], |_| true).await?;
        }
        Ok(())
    }

    /// How all syncs of the log are, those that nobody runs too.
    pub async fn status(&self) -> Result<Vec<Status>> {
        let now = self.log.engine().clock().now();
        let running: Vec<_> = self.lock().iter().map(|(name, it)| (name.clone(), it.control.status(now))).collect();
        let mut all = BTreeMap::new();
        for (name, mut status) in running {
            status.last_error = status.last_error.map(|error| self.typed(&name).text(&error));
            all.insert(name, status);
        }
        let session = self.session().await?;
        for entry in session.table(Table::Schemas).await?.values() {
            let sync = TopicSchema::decode(entry.value.as_bytes())?.sync;
            if !all.contains_key(&sync) {
                let parked = parked_of(&*session, &sync).await?;
                all.insert(sync.clone(), Status { sync, parked, ..Status::default() });
            }
        }
        for (sync, last) in last_errors(&*session).await? {
            let idle = all.entry(sync.clone()).or_insert_with(|| Status { sync: sync.clone(), ..Status::default() });
            if !self.lock().contains_key(&sync) {
                let typed = self.typed(&sync).file(&last.file);
                (idle.state, idle.last_error) = (last.state(), Some(typed.text(&last.error)));
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
        match self.serves() {
            true => Ok(()),
            false => Err(Error::conflict(
                "syncs are applied to a server, and none serves this log: start one with tidemill start, or run the file in \
                 the foreground with tidemill sync run FILE",
            )),
        }
    }

    fn serves(&self) -> bool {
        self.serves.load(std::sync::atomic::Ordering::Acquire)
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

    fn start(&self, spec: SyncSpec, applied: Applied) {
        let (tell, stop) = watch::channel(false);
        let control: Arc<Control> = Arc::default();
        let (syncs, name, handle) = (self.clone(), spec.name.clone(), Arc::clone(&control));
        let file = applied.file.clone();
        let task = tokio::spawn(async move { syncs.keep_running(&spec, applied, &handle, stop).await });
        self.lock().insert(name, Running { control, file, task: Some((tell, task)) });
    }

    /// Runs a sync, and again where its databases went away, until it is stopped or a person must decide.
    async fn keep_running(
        &self,
        spec: &SyncSpec,
        mut applied: Applied,
        control: &Arc<Control>,
        mut stop: watch::Receiver<bool>,
    ) {
        let ([first, longest], mut away) = (RESTART_PAUSE, None);
        let mut pause = first;
        let typed = Typed::of_folder(&self.data_dir).served(true).file(&applied.file);
        let observer = Arc::new(Traced {
            sync: spec.name.clone(),
            typed: typed.clone(),
            begun: Notify::new(),
            waits: Waits::default(),
        });
        while !*stop.borrow() {
            match self.run_once(spec, &mut applied, &observer, control, &stop, &mut away).await {
                Ok(()) => return,
                // A password or a right may be mended on the database's side.
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied) => {
                    control.will_start_again();
                    let longest = if error.kind() == ErrorKind::Denied { LONGEST_DENIED } else { longest };
                    // The same again at each try says no more.
                    match away {
                        Some(_) => tracing::debug!("{}; again in {pause:?}", typed.known(&error)),
                        None => tracing::warn!("{}; it is tried again until it works", typed.known(&error)),
                    }
                    if away.is_none() {
                        (away, pause) = (Some(Instant::now()), first);
                    }
                    let _ = tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await;
                    pause = (pause * 2).min(longest);
                }
                Err(error) => {
                    tracing::error!("{}", typed.known(&error));
                    return;
                }
            }
        }
    }

    /// What was asked for once is done once: when the run has begun, it stands in the log and in the target.
    async fn run_once(
        &self,
        spec: &SyncSpec,
        applied: &mut Applied,
        observer: &Arc<Traced>,
        control: &Arc<Control>,
        stop: &watch::Receiver<bool>,
        away: &mut Option<Instant>,
    ) -> Result<()> {
        let session = self.log.session(Caller::internal(format!("sync/{}", spec.name))).await?;
        let clock = Arc::clone(self.log.engine().clock());
        let options = RunOptions { once: false, recopy: applied.recopy.clone(), replace: applied.replace };
        let shown = Arc::clone(observer);
        let mut run = pin!(run(session, clock, spec, &options, shown, Arc::clone(control), stop.clone()));
        loop {
            tokio::select! {
                biased;
                () = observer.begun.notified() => {
                    if let Some(since) = away.take() {
                        tracing::warn!("sync {}: it works again after {}", spec.name, spoken(since.elapsed()));
                    }
                    let plain = Applied { recopy: Vec::new(), replace: false, ..applied.clone() };
                    if plain != *applied {
                        self.store([(spec.name.as_str(), Some(&plain))], |stored| stored == Some(applied)).await?;
                        *applied = plain;
                    }
                }
                result = &mut run => return result,
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
struct Traced {
    sync: String,
    typed: Typed,
    begun: Notify,
    waits: Waits,
}

impl Observer for Traced {
    fn started(&self, _: &str, tables: &[TableStart]) {
        self.begun.notify_one();
        tracing::info!("sync {}: started, {} tables", self.sync, tables.len());
    }

    fn copied(&self, _: usize, _: u64) {}

    fn finished(&self, _: usize) {}

    fn applied(&self, _: u64) {}

    fn caught_up(&self) {}

    fn waiting(&self, side: Side, error: &Error) {
        if self.waits.begins(side) {
            tracing::warn!("sync {}: waiting for the {}: {}", self.sync, side.as_str(), self.typed.known(error));
        }
    }

    fn back(&self, side: Side, away: Duration) {
        if self.waits.ends(side) {
            tracing::warn!("sync {}: the {} is back after {}", self.sync, side.as_str(), spoken(away));
        }
    }

    fn parked(&self, keys: &[ParkedKey]) {
        if let Some(newest) = keys.iter().max_by_key(|key| key.since_ms) {
            tracing::warn!("sync {}: {} parked, the newest: {}", self.sync, keys.len(), newest.cause);
        }
    }
}
