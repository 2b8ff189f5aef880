//! A log that this process owns: its lock, its engine, its listeners.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use axum::Router;
use tidemill_core::{
    Error, ErrorKind,
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Caller, Embedded, Log, Session},
    storage::{OsLock, OsStorage},
};
use tokio::net::{TcpListener, UnixListener};

use crate::{api, syncs::Syncs, topics::EngineTopics};

/// Longest path that fits into a unix socket's address, with room to spare.
const SOCKET_PATH_MAX: usize = 100;

/// The name under which `tidemill start` owns a log.
pub const SERVER_COMMAND: &str = "start";

/// How long the lock of an owner may last whose process has gone, or is going.
const GOING_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The kernel's mark of a process that ends, in its flags.
#[cfg(target_os = "linux")]
const PF_EXITING: u64 = 0x4;
/// The signal that kills, in a set of signals.
#[cfg(target_os = "linux")]
const SIGKILL: u64 = 1 << 8;

/// An owned log. Dropping it without [`Node::close`] is like a crash: nothing acknowledged is lost.
pub struct Node {
    engine: Arc<Engine>,
    log: Embedded,
    router: Router,
    syncs: Syncs,
    socket: PathBuf,
    _lock: OsLock,
}

/// Whether there is a log in a folder, or one that its owner is about to make.
pub fn has_log(data_dir: &Path) -> bool {
    ["superblock", "LOCK"].iter().any(|file| data_dir.join(file).exists())
}

/// Refuses a folder without a log.
pub fn require_log(data_dir: &Path) -> Result<(), Error> {
    if has_log(data_dir) {
        return Ok(());
    }
    Err(Error::not_found(format!("no log in {}; --data-dir DIR names the folder of one", data_dir.display())))
}

/// Who owns a data directory, as its lock tells.
#[derive(Debug)]
pub struct Owner(pub String);

impl Owner {
    /// Whether it is `tidemill start`, which does what others ask of it.
    pub fn is_server(&self) -> bool {
        self.0.contains(&format!(", {SERVER_COMMAND}, "))
    }

    /// Whether its process has gone, or is about to: it was killed and does nothing more.
    fn is_going(&self) -> bool {
        let pid = self.0.strip_prefix("pid ").and_then(|rest| rest.split(',').next()?.parse::<u32>().ok());
        pid.is_some_and(is_going)
    }

    /// What a command is told that must own the folder itself.
    pub fn refusal(&self, data_dir: &Path) -> Error {
        Error::conflict(format!("{} is owned by another process: {}", data_dir.display(), self.0))
    }
}

/// What a lock's file tells of the command that holds it.
fn holder(command: &str) -> String {
    format!("pid {}, {command}, socket api.sock", std::process::id())
}

/// Locks a log that is to be looked at while nobody owns it.
///
/// # Errors
/// `Conflict` names the owner.
pub fn lock(data_dir: &Path, command: &str) -> Result<OsLock, Error> {
    OsLock::take(&data_dir.join("LOCK"), &holder(command)).map_err(|error| match error.kind() {
        ErrorKind::Conflict => Owner(error.message().to_owned()).refusal(data_dir),
        _ => error.context(format!("lock {}", data_dir.display())),
    })
}

impl Node {
    /// Opens the log in `data_dir` as its owner and serves its API on the folder's socket.
    ///
    /// # Errors
    /// The inner error is the present owner, if there is one.
    pub async fn open(data_dir: &Path, command: &str) -> anyhow::Result<Result<Self, Owner>> {
        std::fs::create_dir_all(data_dir)
            .map_err(|e| Error::from(e).context(format!("make {}", data_dir.display())))?;
        let holder = holder(command);
        let until = Instant::now() + GOING_PATIENCE;
        let lock = loop {
            match OsLock::take(&data_dir.join("LOCK"), &holder) {
                Ok(lock) => break lock,
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    let owner = Owner(error.message().to_owned());
                    // The lock of a process that was killed goes with the last of its threads, which takes a moment.
                    if !owner.is_going() || Instant::now() >= until {
                        return Ok(Err(owner));
                    }
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(error) => return Err(error.context(format!("lock {}", data_dir.display())).into()),
            }
        };
        let dir = data_dir.to_path_buf();
        let open = move || Engine::open(&dir, Config::default(), Arc::new(OsStorage), Arc::new(SystemClock::default()));
        let engine = Arc::new(tokio::task::spawn_blocking(open).await??);
        report_recovery(&engine, data_dir);
        let log = Embedded::new(Arc::clone(&engine));
        let sql = tidemill_sql::Session::new(
            Arc::new(EngineTopics(Arc::clone(&engine))),
            tidemill_sql::Settings { temp_dir: data_dir.join("spill"), ..Default::default() },
        )?;
        let syncs = Syncs::new(log.clone(), data_dir);
        let router = api::router(api::State {
            log: log.clone(),
            syncs: syncs.clone(),
            sql: Arc::new(sql),
            command: command.to_owned(),
            turns: Arc::default(),
        });
        let socket = data_dir.join("api.sock");
        serve_socket(data_dir, router.clone())?;
        stop_on_failure(Arc::clone(&engine));
        Ok(Ok(Self { engine, log, router, syncs, socket, _lock: lock }))
    }

    /// Opens as owner, or fails with exit code 4 naming the owner.
    pub async fn own(data_dir: &Path, command: &str) -> anyhow::Result<Self> {
        match Self::open(data_dir, command).await? {
            Ok(node) => Ok(node),
            Err(owner) => Err(owner.refusal(data_dir).into()),
        }
    }

    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// The syncs of this process.
    pub fn syncs(&self) -> &Syncs {
        &self.syncs
    }

    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A session of a part of this process.
    pub async fn session(&self, client: &str) -> anyhow::Result<Arc<dyn Session>> {
        Ok(self.log.session(Caller::internal(client)).await?)
    }

    /// Serves the API on a TCP port too; returns the address.
    pub async fn listen(&self, address: &str) -> std::io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(local)
    }

    /// Closes the log in order.
    pub async fn close(self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(&self.socket);
        let engine = Arc::clone(&self.engine);
        Ok(tokio::task::spawn_blocking(move || engine.close()).await??)
    }
}

#[cfg(target_os = "linux")]
fn is_going(pid: u32) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { return true };
    // After the name, which may hold anything: the state, and six fields on the kernel's flags.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let dead = fields.first().is_some_and(|state| matches!(*state, "Z" | "X"));
    let exiting =
        fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & PF_EXITING != 0);
    let pending = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let mut pending = pending.filter_map(|signals| u64::from_str_radix(signals.trim(), 16).ok());
    dead || exiting || pending.any(|signals| signals & SIGKILL != 0)
}

#[cfg(not(target_os = "linux"))]
fn is_going(_: u32) -> bool {
    false
}

fn report_recovery(engine: &Engine, data_dir: &Path) {
    let report = engine.recovery();
    if let Some((lsn, bytes)) = report.cut
        && bytes > 0
    {
        eprintln!(
            "{}: {bytes} unfinished bytes at LSN {lsn} were cut; nothing acknowledged was in them",
            data_dir.display()
        );
    }
    for (partition, damage) in engine.damage() {
        let to = damage.to.map_or("its end".to_owned(), |to| to.to_string());
        eprintln!(
            "{}: {partition} is read-only, damaged from {} to {to}: {}",
            data_dir.display(),
            damage.from,
            damage.cause
        );
    }
}

/// The path under which the folder's socket can be reached, however long the folder's own path is. The file keeps the
/// short path alive.
pub fn socket_path(data_dir: &Path) -> std::io::Result<(PathBuf, Option<std::fs::File>)> {
    use std::os::fd::AsRawFd;
    let path = data_dir.join("api.sock");
    if path.as_os_str().len() <= SOCKET_PATH_MAX {
        return Ok((path, None));
    }
    let folder = std::fs::File::open(data_dir)?;
    Ok((PathBuf::from(format!("/proc/self/fd/{}/api.sock", folder.as_raw_fd())), Some(folder)))
}

fn serve_socket(data_dir: &Path, router: Router) -> anyhow::Result<()> {
    let (path, folder) = socket_path(data_dir)?;
    // What a crashed owner left; the lock says that there is no other.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    tokio::spawn(async move {
        let _folder = folder;
        axum::serve(listener, router).await
    });
    Ok(())
}

/// A log that failed acknowledges nothing any more: the process ends, and recovery decides at the next start.
fn stop_on_failure(engine: Arc<Engine>) {
    tokio::spawn(async move {
        let error = engine.failure().await;
        eprintln!("error: {error}");
        std::process::exit(1);
    });
}
