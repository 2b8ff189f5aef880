//! Databases of servers, kept in step through faults: a write load runs during the copy and after it, while the sync is
//! killed, servers restart, connections are cut, the target is away. At the end both sides are equal, and the change
//! stream holds every committed change once, in order per key.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value as Json;

use crate::{
    servers::{
        ADMIN, MariaDb, PASSWORD, Postgres,
        cut::Wire,
        disk::Disk,
        judge::{self, normal},
        load::{Column, Ledger, Load, Op, Seen, Settings, TABLES, Target},
    },
    support::{Folder, PATIENCE, Running, json_lines, poll},
};

/// Rows that stand in a table before the sync begins, so that its copy takes a while.
const FILLED: u32 = 30_000;
/// Megabytes of the target's disk.
const ROOM: u32 = 150;

enum Server {
    Postgres(Postgres),
    MariaDb(MariaDb),
}

impl Server {
    fn start(kind: &str) -> Self {
        match kind {
            "postgres" => Self::Postgres(Postgres::start()),
            "postgres newer" => Self::Postgres(Postgres::start_newer().expect("a newer PostgreSQL")),
            _ => Self::MariaDb(MariaDb::start()),
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Postgres(s) => s.port(),
            Self::MariaDb(s) => s.port(),
        }
    }

    fn database(&self) -> String {
        match self {
            Self::Postgres(s) => s.fresh_database(),
            Self::MariaDb(s) => s.fresh_database(),
        }
    }

    /// A database on a small disk, where there can be one.
    fn small_database(&self) -> (String, Option<Disk>) {
        let small = match self {
            Self::Postgres(s) => s.database_on_a_small_disk(ROOM),
            Self::MariaDb(s) => s.database_on_a_small_disk(ROOM),
        };
        match small {
            Some((name, disk)) => (name, Some(disk)),
            None => (self.database(), None),
        }
    }

    fn scheme(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::MariaDb(_) => "mysql",
        }
    }

    fn fault(&mut self, hard: bool) {
        match (self, hard) {
            (Self::Postgres(s), false) => s.restart(),
            (Self::MariaDb(s), false) => s.restart(),
            (Self::Postgres(s), true) => {
                s.kill9();
                s.start_again();
            }
            (Self::MariaDb(s), true) => {
                s.kill9();
                s.start_again();
            }
        }
    }

    fn exec(&self, db: &str, sql: &str) {
        match self {
            Self::Postgres(s) => s.exec(db, sql),
            Self::MariaDb(s) => s.exec(db, sql),
        }
    }

    fn load(&self, db: &str) -> Target {
        match self {
            Self::Postgres(s) => Target::postgres(s, db),
            Self::MariaDb(s) => Target::mariadb(s, db),
        }
    }
}

/// One source and one target, with wires between them and the sync.
struct Bench {
    folder: Folder,
    source: Server,
    target: Server,
    wires: [Wire; 2],
    databases: [String; 2],
    /// The target's, where it can be filled.
    disk: Option<Disk>,
}

impl Bench {
    fn new(from: &str, to: &str) -> Self {
        let (source, target) = (Server::start(from), Server::start(to));
        let (small, disk) = target.small_database();
        let databases = [source.database(), small];
        let wires = [Wire::to(source.port()), Wire::to(target.port())];
        let folder = Folder::with_env(&[("ROUNDS_PW", PASSWORD)]);
        let side = |server: &Server, wire: &Wire, db: &str| {
            format!(
                "{{ url = '{}://{ADMIN}@127.0.0.1:{}/{db}', password = '${{env:ROUNDS_PW}}' }}",
                server.scheme(),
                wire.port()
            )
        };
        let (from, to) = (side(&source, &wires[0], &databases[0]), side(&target, &wires[1], &databases[1]));
        let file = format!("[sync.s]\nfrom = {from}\nto = {to}\ntables = ['*']\n");
        std::fs::write(folder.path("s.toml"), file).unwrap();
        let fill = match &source {
            Server::Postgres(_) => {
                format!(
                    "create table filled as select n as id, md5(n::text) as v from generate_series(1, {FILLED}) n; alter table filled add primary key (id)"
                )
            }
            Server::MariaDb(_) => {
                format!(
                    "create table filled (id int primary key, v text) select seq as id, md5(seq) as v from seq_1_to_{FILLED}"
                )
            }
        };
        source.exec(&databases[0], &fill);
        Self { folder, source, target, wires, databases, disk }
    }

    fn start(&self) -> Running {
        self.folder.start(&["sync", "run", "s.toml", "--data-dir", "log"])
    }

    /// A fault of a kind, at a moment of its choosing.
    fn fault(&mut self, running: Running, random: &mut StdRng) -> Running {
        std::thread::sleep(Duration::from_millis(random.random_range(50..700)));
        let fault = random.random_range(0..9);
        println!("fault {fault}");
        let mut running = running;
        match (fault, &self.disk) {
            (0..=2, _) => {
                running.kill();
                drop(running);
                return self.start();
            }
            (3, _) => self.wires[0].cut(),
            (4, _) => self.wires[1].cut(),
            (5, _) => self.source.fault(random.random()),
            (6, _) => self.target.fault(random.random()),
            (7, Some(disk)) => {
                disk.fill();
                std::thread::sleep(Duration::from_millis(900));
                disk.free();
            }
            _ => {
                self.wires[1].refuse();
                std::thread::sleep(Duration::from_millis(600));
                self.wires[1].accept();
            }
        }
        assert!(running.is_running(), "the sync stopped: {}", running.err());
        running
    }

    fn tables(&self) -> Vec<String> {
        let load = TABLES.iter().map(|(name, _)| format!("load_{name}"));
        load.chain(["filled".to_owned()]).collect()
    }

    fn differences(&self) -> Vec<String> {
        let tables = self.tables();
        let differ = |table: &String| {
            let side = |number: usize| {
                let server = if number == 0 { &self.source } else { &self.target };
                match server {
                    Server::Postgres(s) => judge::Side::Postgres(s, &self.databases[number], table),
                    Server::MariaDb(s) => judge::Side::MariaDb(s, &self.databases[number], table),
                }
            };
            let compare = std::panic::AssertUnwindSafe(|| judge::differences(side(0), side(1)));
            std::panic::catch_unwind(compare).unwrap_or_else(|_| vec![format!("{table} cannot be read")])
        };
        tables.iter().flat_map(differ).collect()
    }

    /// The changes of the load's tables as the topics have them, without those that the copy read.
    fn stream(&self) -> Vec<Seen> {
        let schema = match &self.source {
            Server::Postgres(_) => "public",
            Server::MariaDb(_) => &self.databases[0],
        };
        let mut seen = Vec::new();
        for (name, columns) in TABLES {
            let topic = format!("s.{schema}.load_{name}");
            let records = self.folder.run(&["consume", &topic, "-e", "--json", "--data-dir", "log"]).ok();
            for record in json_lines(&records) {
                let Some(event) = record["value"].as_str() else { continue };
                let event: Json = serde_json::from_str(event).unwrap();
                let op = match event["op"].as_str() {
                    Some("c") => Op::Insert,
                    Some("u") => Op::Update,
                    Some("d") => Op::Delete,
                    _ => continue,
                };
                let image = if op == Op::Delete { &event["before"] } else { &event["after"] };
                let spelled = |column: &Column| cell(&image[column.name]).map(|text| normal(column.class, &text));
                let keys = columns.iter().filter(|column| column.key).map(spelled);
                seen.push(Seen {
                    table: format!("load_{name}"),
                    op,
                    key: keys.map(Option::unwrap).collect(),
                    after: (op != Op::Delete).then(|| columns.iter().map(spelled).collect()),
                });
            }
        }
        seen
    }
}

/// A value of an event as its text.
fn cell(value: &Json) -> Option<String> {
    match value {
        Json::Null => None,
        Json::String(text) => Some(text.clone()),
        Json::Object(tagged) => {
            let bytes = tagged.get("$blob").and_then(Json::as_str).map(|text| BASE64_STANDARD.decode(text).unwrap());
            let bytes = bytes.unwrap_or_else(|| panic!("{value}"));
            Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
        }
        other => Some(other.to_string()),
    }
}

/// Rounds of faults under load, and what must hold at their end.
fn rounds(from: &str, to: &str, seed: u64, rounds: usize) {
    println!("{from} to {to}, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut bench = Bench::new(from, to);
    let settings = Settings { seed, rate: Some(150), paused: true, ..Settings::default() };
    let load = Load::start(bench.source.load(&bench.databases[0]), settings);
    if let Server::Postgres(server) = &bench.source {
        // With it every event has all of its row as it was; else large values that did not change are read later.
        server.exec(
            &bench.databases[0],
            "alter table load_wide replica identity full; alter table load_text replica identity full",
        );
    }
    let before = load.committed();
    let mut running = bench.start();
    running.wait_err("in the source");
    load.resume();
    for _ in 0..rounds {
        running = bench.fault(running, &mut random);
    }
    let ledger: Ledger = load.stop();
    let mut differences = Vec::new();
    let equal = poll(PATIENCE, || {
        assert!(running.is_running(), "the sync stopped: {}", running.err());
        differences = bench.differences();
        differences.is_empty().then_some(())
    });
    assert!(equal.is_some(), "seed {seed}: {differences:#?}\n{}", running.err());
    bench.folder.run(&["sync", "verify", "s.toml"]).ok();
    assert_eq!(running.stop("TERM").code, Some(0));
    let faults = ledger.after(before).differences(&bench.stream());
    assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
    secrets_are_nowhere(&bench.folder);
}

/// The password occurs in no file of the data directory.
fn secrets_are_nowhere(folder: &Folder) {
    let mut folders = vec![folder.path("log")];
    while let Some(path) = folders.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                let bytes = std::fs::read(entry.path()).unwrap();
                let found = bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes());
                assert!(!found, "{} holds the password", entry.path().display());
            }
        }
    }
}

#[test]
fn a_sync_that_ran_before_waits_for_databases_that_are_away_at_its_start() {
    let bench = Bench::new("postgres", "mariadb");
    bench.wires[1].refuse();
    bench.start().end().fails(69, &["mysql://"]);
    bench.wires[1].accept();
    let mut running = bench.start();
    running.wait_err("in step, following");
    assert_eq!(running.stop("TERM").code, Some(0));
    for wire in &bench.wires {
        wire.refuse();
        let mut running = bench.start();
        running.wait_err("connect to");
        wire.accept();
        running.wait_err("in step, following");
        assert_eq!(running.stop("TERM").code, Some(0));
    }
    bench.wires[0].refuse();
    bench.folder.run(&["sync", "run", "s.toml", "--data-dir", "log", "--once"]).fails(69, &["postgres://"]);
}

#[test]
fn postgres_to_mariadb_through_faults() {
    rounds("postgres", "mariadb", 1, 3);
}

#[test]
fn mariadb_to_postgres_through_faults() {
    rounds("mariadb", "postgres", 1, 3);
}

#[test]
fn a_newer_postgres_to_another_through_faults() {
    if Postgres::start_newer().is_some() {
        rounds("postgres newer", "postgres newer", 1, 2);
    }
}

#[test]
#[ignore = "soak: some ten minutes"]
fn soak_many_rounds() {
    let first: u64 = std::env::var("TIDEMILL_SEED").map_or(100, |seed| seed.parse().unwrap());
    for seed in first..first + 4 {
        rounds("postgres", "mariadb", seed, 8);
        rounds("mariadb", "postgres", seed, 8);
        rounds("postgres newer", "postgres", seed, 8);
        rounds("mariadb", "mariadb", seed, 8);
    }
}
