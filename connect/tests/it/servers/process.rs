//! How a server process is started so that it can never outlive the test: not by panic, not by `kill -9`.
//!
//! Three nets, each for what the one before lets through: `Drop` stops the server and removes its folder; the kernel
//! signals a server whose test process is gone; a watcher, which notices the same by the end of its standard input,
//! kills what is left and removes the folders.

use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rand::RngExt;

const START_LIMIT: Duration = Duration::from_secs(30);
/// A container's memory folder is often too small for a database.
const ENOUGH_MEGABYTES: u64 = 2_000;
const POLL: Duration = Duration::from_millis(5);

/// Says on the true standard error, where `scripts/test` counts it, that a test could not run here.
///
/// # Panics
/// With `TIDEMILL_REQUIRE=all`, under which nothing may be skipped.
pub fn skipped(test: &str, why: &str) {
    assert!(std::env::var("TIDEMILL_REQUIRE").as_deref() != Ok("all"), "{test} cannot run here: {why}");
    let _ = writeln!(io::stderr(), "skipped here: {test}: {why}");
}

/// The user that servers run as; `None` is whoever runs the test. Database servers refuse to run as root.
pub fn run_as() -> Option<(u32, u32)> {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    root.then(|| {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let nobody = users.lines().find(|line| line.starts_with("nobody:")).expect("every system has a user nobody");
        let field = |n: usize| nobody.split(':').nth(n).unwrap().parse().unwrap();
        (field(2), field(3))
    })
}

/// Gives a path to the user that servers run as.
pub fn hand_over(path: &Path) {
    if let Some((user, group)) = run_as() {
        chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Gives a whole tree to the user that servers run as.
pub fn hand_over_all(path: &Path) {
    if let Some((user, group)) = run_as() {
        succeed(Command::new("chown").arg("-R").arg(format!("{user}:{group}")).arg(path));
    }
}

/// A command that runs as the server's user and gets `signal` when the thread that started it is gone.
pub fn command(program: &Path, signal: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some((user, group)) = run_as() {
        command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
    }
    command.arg("--").arg(program).env("HOME", "/nonexistent").current_dir("/");
    command
}

/// Runs a command to its end; its output.
///
/// # Panics
/// With what it said, if it failed.
pub fn succeed(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A port nobody listens on, below those that the kernel gives to connections: it is still free after a restart.
pub fn free_port() -> u16 {
    loop {
        let port = rand::rng().random_range(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts children from a thread that never ends: the kernel's signal comes when the *thread* of the parent ends, and a
/// shared server is started by whichever test is first.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static KEEPER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        let run = move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("servers".into()).spawn(run).unwrap();
        Mutex::new(orders)
    });
    let (answer, outcome) = channel();
    keeper.lock().unwrap().send((command, answer)).unwrap();
    outcome.recv().unwrap()
}

/// The third net, in sh because it must live longer than the test. Its standard input is a pipe only the test holds.
const WATCHER: &str = r#"
trap '' INT TERM HUP
cat >/dev/null
for round in 1 2 3 4 5 6 7 8 9 10; do
  for file in "$1"/*/pid; do
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    if grep -qsF "$1" "/proc/$pid/cmdline"; then [ "$round" -gt 3 ] && kill -KILL "$pid"; else rm -f "$file"; fi
  done
  ls "$1"/*/pid >/dev/null 2>&1 || { rm -rf "$1" 2>/dev/null && exit 0; }
  sleep 0.2
done
rm -rf "$1"
"#;

/// Free space; none where the folder is missing.
fn free_megabytes(folder: &Path) -> u64 {
    let output =
        Command::new("df").arg("-Pm").arg(folder).stderr(Stdio::null()).output().map_or(Vec::new(), |o| o.stdout);
    let text = String::from_utf8_lossy(&output);
    text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3)?.parse().ok()).unwrap_or(0)
}

/// All folders of this process are in here; in memory where that is possible.
fn base() -> &'static Path {
    static BASE: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (path, _) = BASE.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let parent = if free_megabytes(memory) >= ENOUGH_MEGABYTES { memory.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("tidemill-servers-{}-{:04x}", std::process::id(), rand::rng().random::<u16>()));
        std::fs::create_dir(&path).unwrap();
        let mut watcher = Command::new("sh");
        watcher.args(["-c", WATCHER, "watcher"]).arg(&path).process_group(0);
        let child = watcher.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        (path, child)
    });
    path
}

/// A folder for one server or one test; removed on drop, or by the watcher.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = base().join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A killed server's last child may still be writing.
        for _ in 0..100 {
            match std::fs::remove_dir_all(&self.0) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => std::thread::sleep(POLL),
                _ => return,
            }
        }
    }
}

/// A server that may be running.
pub struct Process {
    pub folder: Folder,
    /// The signal by which the kernel ends the server when the test is gone.
    signal: &'static str,
    child: Option<Child>,
}

impl Process {
    pub fn new(signal: &'static str) -> Self {
        let folder = Folder::new();
        hand_over(&folder.0);
        Self { folder, signal, child: None }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What the server said since it was last started.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path("log")).unwrap_or_default()).into_owned()
    }

    /// Starts the program and waits until `ready` says so of its log; `Err` is the log of a server that ended instead.
    pub fn start(&mut self, program: &Path, args: &[String], envs: &[(&str, &str)], ready: &str) -> Result<(), String> {
        assert!(self.child.is_none(), "the server runs already");
        let log = std::fs::File::create(self.folder.path("log")).unwrap();
        let mut command = command(program, self.signal);
        command.args(args).envs(envs.iter().copied()).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = spawn(command).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        std::fs::write(self.folder.path("pid"), child.id().to_string()).unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + START_LIMIT;
        while !self.log().contains(ready) {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.child = None;
                return Err(self.log());
            }
            assert!(Instant::now() < deadline, "{} is not ready: {}", program.display(), self.log());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Asks the server to end by a signal and waits; kills it when it does not.
    pub fn stop(&mut self, signal: &str) {
        let Some(mut child) = self.child.take() else { return };
        let _ = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        let deadline = Instant::now() + START_LIMIT;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = child.kill();
            }
            std::thread::sleep(POLL);
        }
        let _ = std::fs::remove_file(self.folder.path("pid"));
    }

    /// Kills the server and all its children at once, as a power cut would, and waits until they are gone.
    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = children_of(child.id());
        child.kill().unwrap();
        for pid in &children {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        child.wait().unwrap();
        let deadline = Instant::now() + START_LIMIT;
        while children.iter().any(|pid| matches!(stat(*pid), Some((_, state)) if state != "Z")) {
            assert!(Instant::now() < deadline, "children outlive their server");
            std::thread::sleep(POLL);
        }
        let _ = std::fs::remove_file(self.folder.path("pid"));
    }
}

/// Parent and state of a process.
fn stat(pid: u32) -> Option<(u32, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.to_owned();
    Some((fields.next()?.parse().ok()?, state))
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.filter(|pid| stat(*pid).is_some_and(|(of, _)| of == parent)).collect()
}
