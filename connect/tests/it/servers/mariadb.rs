//! MariaDB: the distribution's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client::{self, Row};
use super::disk::Disk;
use super::process::{Process, free_port, succeed};
use super::{ADMIN, CDC, PASSWORD, SINK, process, template};

const PROGRAM: &str = "/usr/sbin/mariadbd";
const CLIENT: &str = "/usr/bin/mariadb";

/// Settings every server begins with; a test's own win.
const SETTINGS: &[(&str, &str)] = &[
    ("log_bin", "binlog"),
    ("binlog_format", "ROW"),
    ("binlog_row_image", "FULL"),
    ("binlog_row_metadata", "FULL"),
    ("server_id", "101"),
    ("gtid_domain_id", "7"),
    ("sync_binlog", "1"),
    ("innodb_flush_log_at_trx_commit", "1"),
    ("character_set_server", "utf8mb4"),
    ("collation_server", "utf8mb4_general_ci"),
    ("default_time_zone", "+00:00"),
    ("bind_address", "127.0.0.1"),
    ("skip_name_resolve", "ON"),
    ("innodb_buffer_pool_size", "32M"),
    ("innodb_log_file_size", LOG_SIZE),
    ("max_allowed_packet", "64M"),
    ("performance_schema", "OFF"),
];
const LOG_SIZE: &str = "16M";

/// What a server is to be.
#[derive(Clone)]
pub struct Options {
    settings: BTreeMap<String, String>,
}

impl Options {
    /// An option of `mariadbd`.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Leaves an option at the server's own default; `log_bin` is turned off only by this.
    pub fn unset(mut self, name: &str) -> Self {
        self.settings.remove(name);
        self
    }

    /// Whether a commit is on disk before it is answered.
    pub fn durable(self, on: bool) -> Self {
        let value = if on { "1" } else { "0" };
        self.set("sync_binlog", value).set("innodb_flush_log_at_trx_commit", value)
    }

    pub fn start(self) -> MariaDb {
        MariaDb::start_with(self)
    }
}

/// A running server with its own data folder.
pub struct MariaDb {
    process: Process,
    port: u16,
    options: Options,
}

impl MariaDb {
    pub fn options() -> Options {
        Options { settings: SETTINGS.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect() }
    }

    pub fn start() -> Self {
        Self::options().start()
    }

    /// The server all tests of this binary share; it goes with the process. Each test makes a database of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start_with(options: Options) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is needed for these tests: `make test` installs it");
        let process = Process::new("KILL");
        let data = process.folder.path("data");
        template::copy(&format!("mariadb-{}", template::version(Path::new(PROGRAM))), &data, make);
        let mut server = Self { process, port: 0, options };
        for _ in 0..5 {
            server.port = free_port();
            match server.run() {
                Ok(()) => return server,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("MariaDB ended: {log}"),
            }
        }
        panic!("no free port: {}", server.log());
    }

    fn run(&mut self) -> Result<(), String> {
        let folder = &self.process.folder;
        let mut args = vec!["--no-defaults".to_owned(), format!("--port={}", self.port)];
        for (option, path) in
            [("datadir", "data"), ("socket", "data/socket"), ("pid-file", "data/server.pid"), ("tmpdir", "data")]
        {
            args.push(format!("--{option}={}", folder.path(path).display()));
        }
        args.extend(self.options.settings.iter().map(|(name, value)| format!("--{name}={value}")));
        self.process.start(Path::new(PROGRAM), &args, &[], "ready for connections")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> PathBuf {
        self.process.folder.path("data/socket")
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// What the server said since it was last started.
    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn url(&self, user: &str, db: &str) -> String {
        format!("mysql://{user}@127.0.0.1:{}/{db}", self.port)
    }

    /// Of each of the users.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The own client, connected, with output to be read by [`client::mariadb_rows`]; it stops at the first error.
    pub fn client(&self, user: &str, db: &str) -> Command {
        let mut command = Self::plain_client(self.port, user, db);
        command.arg("--xml");
        command
    }

    /// The own client, connected, printing lines; it needs the server's port only, not the server.
    pub fn plain_client(port: u16, user: &str, db: &str) -> Command {
        let mut command = Command::new(CLIENT);
        command.args(["--no-defaults", "--batch", "--unbuffered", "--skip-column-names", "--protocol=TCP"]);
        command.args(["--default-character-set=utf8mb4", "--max-allowed-packet=64M", "--host=127.0.0.1", "-u", user]);
        command.args(["-P", &port.to_string(), db]).env("MYSQL_PWD", PASSWORD);
        command
    }

    /// Runs statements as a user; rows of all of them, or what the client says of the one that failed.
    pub fn query_as(&self, user: &str, db: &str, sql: &str) -> Result<Vec<Row>, String> {
        client::run(&mut self.client(user, db), sql.as_bytes()).map(|output| client::mariadb_rows(&output))
    }

    /// Runs statements as the administrator.
    pub fn exec(&self, db: &str, sql: &str) {
        self.query(db, sql);
    }

    /// Runs statements as the administrator; their rows.
    pub fn query(&self, db: &str, sql: &str) -> Vec<Row> {
        self.query_as(ADMIN, db, sql).unwrap_or_else(|e| panic!("mariadb: {e}: {sql:.300}"))
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
        self.exec("mysql", &format!("create database `{name}`; grant all on `{name}`.* to {SINK};"));
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
        let name = self.fresh_database();
        let folder = self.process.folder.path("data").join(&name);
        Disk::mount(&folder, megabytes).map(|disk| (name, disk))
    }

    /// Changes an option for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.options.settings.insert(name.into(), value.into());
    }

    /// Ends the server in good order.
    pub fn stop(&mut self) {
        self.process.stop("TERM");
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts a stopped or killed server on its data and port.
    pub fn start_again(&mut self) {
        self.run().unwrap_or_else(|log| panic!("MariaDB ended: {log}"));
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.process.stop("KILL");
    }
}

/// Makes a data folder with the users in it.
fn make(data: &Path) {
    let mut install = process::command(Path::new("/usr/bin/mariadb-install-db"), "KILL");
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    let log_size = format!("--innodb-log-file-size={LOG_SIZE}");
    install.args(["--skip-name-resolve", &log_size]).arg(format!("--datadir={}", data.display()));
    succeed(&mut install);
    let mut sql = String::from("flush privileges;\n");
    for (user, rights) in
        [(ADMIN, "all on *.*"), (CDC, "select, replication slave, binlog monitor on *.*"), (SINK, "usage on *.*")]
    {
        let option = if user == ADMIN { " with grant option" } else { "" };
        sql += &format!("create user {user}@'%' identified by '{PASSWORD}';\ngrant {rights} to {user}@'%'{option};\n");
    }
    sql += "drop user if exists ''@'localhost';\n";
    let mut bootstrap = process::command(Path::new(PROGRAM), "KILL");
    bootstrap.args(["--no-defaults", "--bootstrap", &log_size]).arg(format!("--datadir={}", data.display()));
    client::run(&mut bootstrap, sql.as_bytes()).unwrap_or_else(|e| panic!("mariadbd --bootstrap: {e}"));
}
