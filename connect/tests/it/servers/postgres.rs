//! PostgreSQL: the distribution's, or the newer one of `scripts/servers`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::{self, Row};
use super::disk::Disk;
use super::process::{Process, free_port, hand_over, hand_over_all, succeed};
use super::{ADMIN, CDC, PASSWORD, SINK, newer, process, template};

const DISTRIBUTION: &str = "/usr/lib/postgresql/15";
/// An immediate shutdown: as hard on the data as a kill, but shared memory is given back.
const AT_ONCE: &str = "QUIT";

/// Settings every server begins with; a test's own win.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_connections", "100"),
    ("shared_buffers", "32MB"),
    ("fsync", "on"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("lc_messages", "C"),
    ("listen_addresses", "127.0.0.1"),
    // The others would leave files outside the server's folder.
    ("dynamic_shared_memory_type", "mmap"),
];

/// What a server is to be.
#[derive(Clone, Default)]
pub struct Options {
    settings: BTreeMap<String, String>,
    newer: bool,
}

impl Options {
    /// A setting of `postgresql.conf`.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    pub fn fsync(self, on: bool) -> Self {
        self.set("fsync", if on { "on" } else { "off" })
    }

    /// The newer PostgreSQL; a test that goes without it is a named skip.
    pub fn start_newer(mut self) -> Option<Postgres> {
        let home = newer::postgres()?;
        self.newer = true;
        Some(Postgres::start_from(home, self))
    }

    pub fn start(self) -> Postgres {
        Postgres::start_from(DISTRIBUTION.into(), self)
    }
}

/// A running server with its own data folder.
pub struct Postgres {
    process: Process,
    /// The folder of `bin`, `lib` and `share`.
    home: PathBuf,
    port: u16,
    options: Options,
}

impl Postgres {
    pub fn options() -> Options {
        Options::default()
    }

    pub fn start() -> Self {
        Self::options().start()
    }

    /// `None`, after saying why, where there is no newer PostgreSQL.
    pub fn start_newer() -> Option<Self> {
        Self::options().start_newer()
    }

    /// The server all tests of this binary share; it goes with the process. Each test makes a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start_from(home: PathBuf, options: Options) -> Self {
        let program = home.join("bin/postgres");
        assert!(program.exists(), "{} is needed for these tests: `make test` installs it", program.display());
        let process = Process::new(AT_ONCE);
        let (data, run) = (process.folder.path("data"), process.folder.path("run"));
        template::copy(&format!("postgres-{}", template::version(&program)), &data, |to| make(&home, to));
        std::fs::create_dir(&run).unwrap();
        hand_over(&run);
        let mut server = Self { process, home, port: 0, options };
        for _ in 0..5 {
            server.port = free_port();
            match server.run() {
                Ok(()) => return server,
                Err(log) if log.contains("could not bind") => {}
                Err(log) => panic!("PostgreSQL ended: {log}"),
            }
        }
        panic!("no free port: {}", server.log());
    }

    fn run(&mut self) -> Result<(), String> {
        let mut conf = String::new();
        let own = self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in SETTINGS.iter().copied().chain(own) {
            writeln!(conf, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
        writeln!(conf, "port = {}", self.port).unwrap();
        writeln!(conf, "unix_socket_directories = '{}'", self.socket_folder().display()).unwrap();
        let data = self.process.folder.path("data");
        let path = data.join("postgresql.conf");
        std::fs::write(&path, conf).unwrap();
        hand_over(&path);
        let args = ["-D".to_owned(), data.display().to_string()];
        self.process.start(
            &self.home.join("bin/postgres"),
            &args,
            &[],
            "database system is ready to accept connections",
        )
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket_folder(&self) -> PathBuf {
        self.process.folder.path("run")
    }

    /// Of the postmaster.
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// What the server said since it was last started.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn url(&self, user: &str, db: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{db}", self.port)
    }

    /// Of each of the users.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// psql, connected, with output to be read by [`client::psql_rows`]; it stops at the first error.
    pub fn client(&self, user: &str, db: &str) -> Command {
        let mut command = Self::plain_client(self.port, user, db);
        command.args(["-0", "-F", client::PSQL_CELL, "-P", &format!("null={}", client::PSQL_NULL)]);
        command
    }

    /// psql, connected, printing lines; it needs the server's port only, not the server.
    pub fn plain_client(port: u16, user: &str, db: &str) -> Command {
        let mut command = Command::new(format!("{DISTRIBUTION}/bin/psql"));
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            user,
            "-d",
            db,
            "-f",
            "-",
        ]);
        command.args(["-p", &port.to_string()]).env("PGPASSWORD", PASSWORD).env("PGCLIENTENCODING", "UTF8");
        command.env("PGOPTIONS", "-c client_min_messages=warning");
        command
    }

    /// Runs statements as a user; rows of all of them, or what psql says of the one that failed.
    pub fn query_as(&self, user: &str, db: &str, sql: &str) -> Result<Vec<Row>, String> {
        client::run(&mut self.client(user, db), sql.as_bytes()).map(|output| client::psql_rows(&output))
    }

    /// Runs statements as the administrator.
    pub fn exec(&self, db: &str, sql: &str) {
        self.query(db, sql);
    }

    /// Runs statements as the administrator; their rows.
    pub fn query(&self, db: &str, sql: &str) -> Vec<Row> {
        self.query_as(ADMIN, db, sql).unwrap_or_else(|e| panic!("psql: {e}: {sql:.300}"))
    }

    /// The one cell that a query gives.
    pub fn value(&self, db: &str, sql: &str) -> Option<String> {
        let rows = self.query(db, sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "{sql}: not one cell: {rows:?}");
        rows[0][0].clone()
    }

    /// Runs a file as the administrator.
    pub fn load(&self, db: &str, file: &Path) {
        self.exec(db, &std::fs::read_to_string(file).unwrap());
    }

    pub fn create_database(&self, name: &str) {
        self.exec("postgres", &format!("create database \"{name}\"; grant create on database \"{name}\" to {SINK};"));
    }

    /// A new database with a name nobody else has; its name.
    pub fn fresh_database(&self) -> String {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name);
        name
    }

    /// A new database whose files lie on a small disk; `None` where there can be none.
    pub fn database_on_a_small_disk(&self, megabytes: u32) -> Option<(String, Disk)> {
        let folder = self.process.folder.path("small");
        std::fs::create_dir(&folder).unwrap();
        let disk = Disk::mount(&folder, megabytes)?;
        self.exec("postgres", &format!("create tablespace small location '{}'", folder.display()));
        let name = self.fresh_database();
        self.exec("postgres", &format!("alter database {name} set tablespace small"));
        Some((name, disk))
    }

    /// Changes a setting for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.settings.insert(name.into(), value.into());
    }

    /// Ends the server in good order.
    pub fn stop(&mut self) {
        self.process.stop("INT");
    }

    /// Kills the server and its sessions at once.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts a stopped or killed server on its data and port.
    pub fn start_again(&mut self) {
        self.run().unwrap_or_else(|log| panic!("PostgreSQL ended: {log}"));
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.process.stop(AT_ONCE);
        // What a killed postmaster leaves: one small segment, named in its lock file.
        if let Ok(lock) = std::fs::read_to_string(self.process.folder.path("data/postmaster.pid"))
            && let Some(segment) = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1))
        {
            let _ = Command::new("ipcrm").args(["-m", segment]).output();
        }
    }
}

/// Makes a data folder with the users in it. What is granted in `template1` is so in every later database.
fn make(home: &Path, data: &Path) {
    let password_file = data.with_file_name("password");
    std::fs::write(&password_file, PASSWORD).unwrap();
    let mut initdb = process::command(&home.join("bin/initdb"), AT_ONCE);
    initdb.args(["-U", ADMIN, "-E", "UTF8", "--locale=C", "--auth=scram-sha-256", "--no-sync"]);
    initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(data);
    succeed(&mut initdb);
    let mut sql = String::new();
    for (role, rights) in [(CDC, "login replication"), (SINK, "login")] {
        writeln!(sql, "create role {role} {rights} password '{PASSWORD}'").unwrap();
    }
    writeln!(sql, "grant usage, create on schema public to {SINK}").unwrap();
    for owner in [ADMIN, SINK] {
        let default = format!("alter default privileges for role {owner}");
        writeln!(sql, "{default} grant select on tables to {CDC}").unwrap();
        writeln!(sql, "{default} grant select, insert, update, delete on tables to {SINK}").unwrap();
    }
    let mut single = process::command(&home.join("bin/postgres"), AT_ONCE);
    single.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(data).arg("template1");
    client::run(&mut single, sql.as_bytes()).unwrap_or_else(|e| panic!("postgres --single: {e}"));
    // The template is kept where a server's user may not come; each copy is given to it.
    hand_over_all(data);
}
