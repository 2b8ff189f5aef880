//! The servers that other tests rely on: they start, they come back with their data, they keep their users apart.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::servers::{ADMIN, CDC, MariaDb, Postgres, SINK};

fn some(cells: &[&str]) -> Vec<Option<String>> {
    cells.iter().map(|cell| Some((*cell).to_owned())).collect()
}

#[test]
fn postgres_speaks_through_its_own_client() {
    let server = Postgres::shared();
    let db = server.fresh_database();
    server.exec(&db, "create table t(a int primary key, b text)");
    server.exec(
        &db,
        "insert into t values (1, null), (2, ''), (3, 'NULL'), (4, E'tab\\tline\\nend \\x1f'), (5, 'žluť 🌊')",
    );
    let texts: Vec<_> =
        server.query(&db, "select b from t order by a").into_iter().map(|mut row| row.remove(0)).collect();
    let expected = [None, Some(""), Some("NULL"), Some("tab\tline\nend \x1f"), Some("žluť 🌊")];
    assert_eq!(texts, expected.map(|text| text.map(str::to_owned)));
    assert_eq!(server.query(&db, "select 1, 2; select 3, 4"), [some(&["1", "2"]), some(&["3", "4"])]);
    assert_eq!(server.query(&db, "select 1 where false"), Vec::<Vec<Option<String>>>::new());
    assert_eq!(server.value(&db, "show wal_level").as_deref(), Some("logical"));
    assert!(server.query_as(ADMIN, &db, "select 1; select nothing").unwrap_err().contains("nothing"));
    assert_eq!(server.url(CDC, &db), format!("postgres://cdc@127.0.0.1:{}/{db}", server.port()));
}

#[test]
fn mariadb_speaks_through_its_own_client() {
    let server = MariaDb::shared();
    let db = server.fresh_database();
    server.exec(&db, "create table t(a int primary key, b text)");
    server.exec(
        &db,
        r"insert into t values (1, null), (2, ''), (3, 'NULL'), (4, 'tab\tline\nend <&>\'&amp;'), (5, 'žluť 🌊')",
    );
    let texts: Vec<_> =
        server.query(&db, "select b from t order by a").into_iter().map(|mut row| row.remove(0)).collect();
    let expected = [None, Some(""), Some("NULL"), Some("tab\tline\nend <&>'&amp;"), Some("žluť 🌊")];
    assert_eq!(texts, expected.map(|text| text.map(str::to_owned)));
    assert_eq!(server.query(&db, "select 1, 2; select 3, 4"), [some(&["1", "2"]), some(&["3", "4"])]);
    assert_eq!(server.query(&db, "select 1 from t where false"), Vec::<Vec<Option<String>>>::new());
    assert_eq!(server.value(&db, "select @@binlog_row_metadata").as_deref(), Some("FULL"));
    assert!(server.query_as(ADMIN, &db, "select 1; select nothing").unwrap_err().contains("nothing"));
    assert_eq!(server.url(CDC, &db), format!("mysql://cdc@127.0.0.1:{}/{db}", server.port()));
}

#[test]
fn users_may_do_what_they_need_and_no_more() {
    let (postgres, mariadb) = (Postgres::shared(), MariaDb::shared());
    let db = postgres.fresh_database();
    postgres.exec(&db, "create table t(a int); insert into t values (1)");
    assert_eq!(postgres.query_as(CDC, &db, "select a from t"), Ok(vec![some(&["1"])]));
    postgres.query_as(CDC, &db, "select pg_create_logical_replication_slot('rights', 'pgoutput', true)").unwrap();
    postgres.query_as(SINK, &db, "update t set a = 2; create table s(a int); insert into s values (3)").unwrap();
    assert_eq!(postgres.query_as(CDC, &db, "select a from s"), Ok(vec![some(&["3"])]));
    let slot = "select pg_create_logical_replication_slot('no', 'pgoutput')";
    for (user, sql, why) in [
        (CDC, "insert into t values (4)", "permission denied"),
        (CDC, "create table c(a int)", "permission denied"),
        (SINK, slot, "must be superuser or replication role"),
    ] {
        let said = postgres.query_as(user, &db, sql).unwrap_err();
        assert!(said.contains(why), "{user}: {sql}: {said}");
    }
    let db = mariadb.fresh_database();
    mariadb.exec(&db, "create table t(a int); insert into t values (1)");
    assert_eq!(mariadb.query_as(CDC, &db, "select a from t"), Ok(vec![some(&["1"])]));
    mariadb.query_as(CDC, &db, "show master status").unwrap();
    mariadb.query_as(SINK, &db, "update t set a = 2; create table s(a int)").unwrap();
    for (user, sql) in [(CDC, "insert into t values (4)"), (CDC, "create table c(a int)"), (SINK, "show master status")]
    {
        assert!(mariadb.query_as(user, &db, sql).unwrap_err().contains("denied"), "{user}: {sql}");
    }
}

#[test]
fn postgres_comes_back_after_a_restart_and_a_kill() {
    let mut server = Postgres::options().set("wal_level", "replica").start();
    assert_eq!(server.value("postgres", "show wal_level").as_deref(), Some("replica"));
    server.exec("postgres", "create table t(a int); insert into t values (1)");
    server.set("wal_level", "logical");
    let (port, first) = (server.port(), server.pid());
    server.restart();
    assert_eq!(server.value("postgres", "show wal_level").as_deref(), Some("logical"));
    server.exec("postgres", "insert into t values (2)");
    server.kill9();
    assert!(server.query_as(ADMIN, "postgres", "select 1").is_err());
    server.start_again();
    assert!(server.log().contains("automatic recovery in progress"), "{}", server.log());
    assert_eq!(server.query("postgres", "select a from t order by a"), [some(&["1"]), some(&["2"])]);
    assert!(server.port() == port && server.pid() != first);
    server.stop();
    assert!(server.query_as(ADMIN, "postgres", "select 1").is_err());
}

#[test]
fn mariadb_comes_back_after_a_restart_and_a_kill() {
    let options = MariaDb::options().set("binlog_format", "STATEMENT").set("binlog_row_metadata", "NO_LOG");
    let mut server = options.set("log_bin_compress", "ON").start();
    let settings = "select @@binlog_format, @@binlog_row_metadata, @@log_bin_compress";
    assert_eq!(server.query("mysql", settings), [some(&["STATEMENT", "NO_LOG", "1"])]);
    server.create_database("d");
    server.exec("d", "create table t(a int); insert into t values (1)");
    server.set("binlog_format", "ROW");
    server.restart();
    assert_eq!(server.value("d", "select @@binlog_format").as_deref(), Some("ROW"));
    server.exec("d", "insert into t values (2)");
    server.kill9();
    assert!(server.query_as(ADMIN, "d", "select 1").is_err());
    server.start_again();
    assert!(server.log().contains("crash recovery"), "{}", server.log());
    assert_eq!(server.query("d", "select a from t order by a"), [some(&["1"]), some(&["2"])]);
    let gtid = server.value("d", "select @@gtid_binlog_pos").unwrap();
    assert!(gtid.starts_with("7-101-"), "{gtid}");
}

#[test]
fn the_newer_postgres_is_newer() {
    let Some(server) = Postgres::start_newer() else { return };
    let version: u32 = server.value("postgres", "show server_version_num").unwrap().parse().unwrap();
    assert!(version >= 180_000, "{version}");
    let slot = "select 1 from pg_create_logical_replication_slot('newer', 'pgoutput', true)";
    assert_eq!(server.query_as(CDC, "postgres", slot), Ok(vec![some(&["1"])]));
}

/// Set for the copy of this program that is to be killed.
const TO_BE_KILLED: &str = "TIDEMILL_TEST_TO_BE_KILLED";

/// Not a test of its own: with the variable set, starts servers, names their processes and waits to be killed.
#[test]
fn killed_from_outside() {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        let folder = crate::servers::Folder::new();
        let (postgres, mariadb) = (Postgres::shared(), MariaDb::start());
        let told = format!("{} {} {}", postgres.pid().unwrap(), mariadb.pid().unwrap(), folder.path("").display());
        writeln!(std::io::stderr(), "running: {told}").unwrap();
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn no_server_outlives_a_killed_test() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "servers_test::killed_from_outside", "--nocapture"]).env(TO_BE_KILLED, "1");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let told = told.filter_map(|line| line.strip_prefix("running: ").map(str::to_owned)).next().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let [postgres, mariadb, folder] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told}") };
    let folder = Path::new(folder).parent().unwrap();
    // What has ended has no command line, even where nobody has asked for its exit code yet.
    let runs = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    let deadline = Instant::now() + Duration::from_secs(10);
    while runs(postgres) || runs(mariadb) || folder.exists() {
        assert!(Instant::now() < deadline, "left behind: {told}: {:?}", std::fs::read_dir(folder).map(|d| d.count()));
        std::thread::sleep(Duration::from_millis(20));
    }
}
