//! Temporary folders, the binary as a child process, and the other program.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value as Json;

pub const TIDEMILL: &str = env!("CARGO_BIN_EXE_tidemill");
/// No command and no condition of these tests may take longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that goes when the test ends.
pub struct Folder(PathBuf, Vec<(String, String)>);

impl Folder {
    pub fn new() -> Self {
        Self::with_env(&[])
    }

    /// With variables that its programs see.
    pub fn with_env(env: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tidemill-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path, env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a sync file of all tables from `source.db` to `replica.db`; its name is `NAME.toml`.
    pub fn sync_file(&self, name: &str) {
        let text = format!("[sync.{name}]\nfrom = 'sqlite:source.db'\nto = 'sqlite:replica.db'\ntables = ['*']\n");
        std::fs::write(self.path(&format!("{name}.toml")), text).unwrap();
    }

    /// Runs `tidemill` in this folder to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, "")
    }

    pub fn run_with(&self, args: &[&str], stdin: &str) -> Done {
        let mut running = self.start(args);
        running.say(stdin);
        running.close_stdin();
        running.end()
    }

    /// Starts `tidemill` in this folder.
    pub fn start(&self, args: &[&str]) -> Running {
        self.start_program(TIDEMILL, args)
    }

    pub fn start_program(&self, program: &str, args: &[&str]) -> Running {
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.0).env("HOME", &self.0).env("PATH", path_with_binary());
        command.envs(self.1.iter().map(|(name, value)| (name, value)));
        for name in ["TIDEMILL__DATA_DIR", "TIDEMILL__SERVER", "TIDEMILL_LOG"] {
            command.env_remove(name);
        }
        Running::start(command, format!("{} {}", Path::new(program).display(), args.join(" ")))
    }

    /// A shell command line, with the binary first in the path.
    pub fn bash(&self, line: &str) -> Done {
        let mut running = self.start_program("bash", &["-c", line]);
        running.close_stdin();
        running.end()
    }

    /// Runs the other program to its end; its answer.
    pub fn python(&self, args: &[&str]) -> Json {
        let mut running = self.start_python(args);
        running.close_stdin();
        serde_json::from_str(&running.end().ok()).unwrap()
    }

    pub fn start_python(&self, args: &[&str]) -> Running {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/other.py");
        self.start_program("python3", &[&[script], args].concat())
    }

    /// Statements by the other program; the rows of the last one.
    pub fn sql(&self, file: &str, statements: &[&str]) -> Json {
        self.python(&[&["sql", file], statements].concat())
    }

    /// A statement by the other program that SQLite refuses; what it says.
    pub fn run_sqlite(&self, file: &str, statement: &str) -> String {
        let code = "import sqlite3, sys\ntry:\n    sqlite3.connect(sys.argv[1]).execute(sys.argv[2])\n\
                    except sqlite3.Error as e:\n    print(e)\n";
        let mut running = self.start_program("python3", &["-c", code, file, statement]);
        running.close_stdin();
        running.end().ok()
    }

    pub fn dump(&self, file: &str) -> Json {
        self.python(&["dump", file])
    }

    /// Waits until the replica equals the source.
    pub fn wait_equal(&self) {
        let mut faults = Vec::new();
        let equal = poll(PATIENCE, || {
            faults = replica_faults(&self.dump("source.db"), &self.dump("replica.db"));
            faults.is_empty().then_some(())
        });
        assert!(equal.is_some(), "source and replica differ: {faults:?}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn path_with_binary() -> std::ffi::OsString {
    let folder = Path::new(TIDEMILL).parent().unwrap().as_os_str().to_owned();
    let rest = std::env::var_os("PATH").unwrap_or_default();
    [folder.as_os_str(), OsStr::new(":"), &rest].into_iter().collect()
}

/// What differs between two dumps; at most a few of each table.
pub fn replica_faults(source: &Json, replica: &Json) -> Vec<String> {
    let (source, replica) = (source.as_object().unwrap(), replica.as_object().unwrap());
    let mut faults = Vec::new();
    for name in source.keys().chain(replica.keys().filter(|name| !source.contains_key(*name))) {
        let rows = |side: &serde_json::Map<String, Json>| side.get(name).and_then(Json::as_array).cloned();
        match (rows(source), rows(replica)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
                let (rows, x, y) = ((a.len(), b.len()), a.get(at), b.get(at));
                faults.push(format!("table {name}: {rows:?} rows, first difference at {at}: {x:?} and {y:?}"));
            }
            _ => faults.push(format!("table {name} is on one side only")),
        }
    }
    faults
}

/// A command that has ended.
#[derive(Debug)]
pub struct Done {
    /// For whoever reads why a test failed.
    #[expect(dead_code, reason = "printed by Debug")]
    pub command: String,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    /// Its output; it must have ended well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.out
    }

    /// It must have failed with this code and said all of this on standard error.
    #[track_caller]
    pub fn fails(self, code: i32, said: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for text in said {
            assert!(self.err.contains(text), "does not say {text:?}: {self:#?}");
        }
        assert!(!self.err.contains("panicked"), "{self:#?}");
        self
    }
}

type Text = Arc<Mutex<Vec<u8>>>;

/// A child process; killed when dropped.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    command: String,
    out: Text,
    err: Text,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    fn start(mut command: Command, name: String) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        let (out, err) = (Text::default(), Text::default());
        let readers = vec![gather(child.stdout.take().unwrap(), &out), gather(child.stderr.take().unwrap(), &err)];
        Self { stdin: child.stdin.take(), child, command: name, out, err, readers }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn say(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        // A child that ended already tells why itself.
        let _ = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.out.lock().unwrap()).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.err.lock().unwrap()).into_owned()
    }

    /// Waits until standard error holds the text.
    #[track_caller]
    pub fn wait_err(&mut self, text: &str) {
        self.wait_for(text, Self::err);
    }

    /// Waits until standard output holds the text.
    #[track_caller]
    pub fn wait_out(&mut self, text: &str) {
        self.wait_for(text, Self::out);
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str, of: impl Fn(&Self) -> String) {
        let came = poll(PATIENCE, || {
            let ended = !self.is_running();
            (of(self).contains(text) || ended).then_some(())
        });
        // What was written last may still be on its way from a process that ended.
        let there = came.is_some() && poll(Duration::from_secs(2), || of(self).contains(text).then_some(())).is_some();
        assert!(there, "{}: no {text:?} in\n{}\n{}", self.command, self.out(), self.err());
    }

    pub fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.pid());
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(mut self) -> Done {
        let status = poll(PATIENCE, || self.child.try_wait().unwrap());
        if status.is_none() {
            panic!("{} did not end:\n{}\n{}", self.command, self.out(), self.err());
        }
        self.readers.drain(..).for_each(|reader| reader.join().unwrap());
        let code = status.and_then(|status| status.code());
        Done { command: std::mem::take(&mut self.command), code, out: self.out(), err: self.err() }
    }

    /// Asks it to stop and waits; it must end well.
    #[track_caller]
    pub fn stop(self, signal: &str) -> Done {
        self.signal(signal);
        let done = self.end();
        assert_eq!(done.code, Some(0), "after SIG{signal}: {done:#?}");
        done
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "reads a pipe until it ends; joined")]
fn gather(mut from: impl Read + Send + 'static, to: &Text) -> JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut piece = [0; 65536];
        while let Ok(n @ 1..) = from.read(&mut piece) {
            to.lock().unwrap().extend_from_slice(&piece[..n]);
        }
    })
}

/// Asks until there is an answer or the time is over.
pub fn poll<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + time;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The Chinook database, where the real data is.
pub fn chinook() -> Option<PathBuf> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chinook/Chinook_Sqlite.sqlite");
    let file = Path::new(file);
    if !file.exists() {
        println!("skipped: {} is not here", file.display());
        return None;
    }
    Some(file.to_owned())
}

/// A copy that can be written, whatever the rights of the original.
pub fn copy_writable(from: &Path, to: &Path) {
    std::fs::write(to, std::fs::read(from).unwrap()).unwrap();
}

/// Lines of JSON.
pub fn json_lines(text: &str) -> Vec<Json> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}
