//! The life of a sync that a server runs: applied, looked at, degraded, mended, started again, removed.

use serde_json::Value as Json;

use crate::support::{Folder, PATIENCE, Running, poll};

const DATA: [&str; 2] = ["--data-dir", "log"];

fn server(folder: &Folder) -> Running {
    let mut server = folder.start(&[&["start", "--listen", "127.0.0.1:0"], &DATA[..]].concat());
    server.wait_err("serving");
    server
}

/// The status of the one sync, once it is as wanted.
fn status(folder: &Folder, wanted: impl Fn(&Json) -> bool) -> Json {
    let mut seen = Json::Null;
    let found = poll(PATIENCE, || {
        let done = folder.run(&[&["sync", "status", "-o", "json"], &DATA[..]].concat());
        seen = serde_json::from_str(&done.out).ok()?;
        wanted(&seen[0]).then_some(())
    });
    assert!(found.is_some(), "{seen}");
    seen[0].clone()
}

fn in_state(state: &'static str) -> impl Fn(&Json) -> bool {
    move |status| status["state"] == state && status["lag_seconds"] == 0.0
}

#[test]
fn a_server_runs_the_syncs_that_are_applied() {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &["create table t (id integer primary key, v text)", "insert into t values (1,'a')"]);
    // The replica's owner allows no 'bad'.
    folder.sql("replica.db", &["create table t (id integer primary key, v text, check (v <> 'bad'))"]);
    let apply = [&["sync", "apply", "s.toml"], &DATA[..]].concat();
    folder.run(&apply).fails(3, &["no log in log"]);

    let running = server(&folder);
    assert!(folder.run(&apply).ok().contains("replica.db, applied"));
    status(&folder, in_state("following"));
    folder.wait_equal();

    folder.sql("source.db", &["insert into t values (2,'bad')", "insert into t values (3,'c')"]);
    let degraded = status(&folder, in_state("degraded"));
    assert_eq!(degraded["parked"][0]["key"], r#"{"id":2}"#);
    let shown = folder.run(&[&["sync", "status", "s.toml"], &DATA[..]].concat()).fails(1, &[]).out;
    for part in ["sync s: DEGRADED", "t: in step", r#"parked: '{"id":2}' of s.t"#, "CHECK constraint failed"] {
        assert!(shown.contains(part), "{shown}");
    }
    folder.run(&["sync", "verify", "s.toml"]).fails(1, &[]);
    let retry = [&["sync", "retry", "s.toml"], &DATA[..]].concat();
    folder.run(&retry).fails(1, &[]);

    // The server starts it again, and knows what is parked.
    assert_eq!(running.stop("TERM").code, Some(0));
    let running = server(&folder);
    status(&folder, in_state("degraded"));
    folder.sql("source.db", &["update t set v = 'good' where id = 2"]);
    assert!(poll(PATIENCE, || folder.run(&retry).out.contains("released").then_some(())).is_some());
    status(&folder, in_state("following"));
    let verified = folder.run(&[&["sync", "verify", "s.toml"], &DATA[..]].concat()).ok();
    assert!(verified.contains("the target has what the source had at "), "{verified}");

    folder.sql("source.db", &["insert into t values (4,'bad')"]);
    status(&folder, in_state("degraded"));
    let skip = |key: &str| folder.run(&[&["sync", "skip", "s.toml", key], &DATA[..]].concat());
    skip("{\"id\":9}").fails(3, &["no key {\"id\":9} is parked"]);
    assert!(skip("{\"id\":4}").ok().contains("released {\"id\":4}"));
    status(&folder, in_state("following"));

    let rm = [&["sync", "rm", "s.toml"], &DATA[..]].concat();
    assert!(folder.run(&rm).ok().contains("topic s.t deleted"));
    folder.run(&rm).fails(3, &["no sync s was applied here"]);
    folder
        .run(&[&["sync", "status", "s.toml"], &DATA[..]].concat())
        .fails(3, &["the log knows no sync s; it knows none"]);
    assert!(folder.run(&[&["sync", "status"], &DATA[..]].concat()).ok().contains("no syncs"));
    assert_eq!(running.stop("TERM").code, Some(0));
}

#[test]
fn a_plan_makes_nothing() {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &["create table t (id integer primary key, v numeric(10,2))"]);
    let plan = folder.run(&["sync", "plan", "s.toml"]).ok();
    for part in ["triggers _tm_* at t", "t from t through topic s.t", "id (key)", "-> numeric(10,2)", "nothing is lost"]
    {
        assert!(plan.contains(part), "{plan}");
    }
    assert!(!folder.path("replica.db").exists());
}

#[test]
fn a_server_stores_no_password() {
    let folder = Folder::new();
    let file = "[sync.s]\nfrom = 'postgres://u:hunter2@127.0.0.1:1/d'\nto = 'sqlite:replica.db'\ntables = ['*']\n";
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let running = server(&folder);
    let refused = folder.run(&[&["sync", "apply", "s.toml"], &DATA[..]].concat());
    refused.fails(78, &["a password stands in the file", "${env:NAME}"]);
    assert_eq!(running.stop("TERM").code, Some(0));
    let stored = folder.bash("grep -rl hunter2 log || echo none").ok();
    assert_eq!(stored.trim(), "none");
}

#[test]
fn what_is_removed_while_no_server_runs_does_not_come_back() {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &["create table t (id integer primary key, v text)", "insert into t values (1,'a')"]);
    let running = server(&folder);
    folder.run(&[&["sync", "apply", "s.toml"], &DATA[..]].concat()).ok();
    status(&folder, in_state("following"));
    assert_eq!(running.stop("TERM").code, Some(0));
    folder.run(&[&["sync", "rm", "s.toml"], &DATA[..]].concat()).ok();
    let running = server(&folder);
    let listed = folder.run(&[&["sync", "status", "-o", "json"], &DATA[..]].concat()).ok();
    assert_eq!(listed.trim(), "[]");
    let left = folder.sql("source.db", &["select count(*) from sqlite_schema where type = 'trigger'"]);
    assert_eq!(left, serde_json::json!([[0]]));
    assert_eq!(running.stop("TERM").code, Some(0));
    // One that is not there keeps no other of its file from going.
    let two = std::fs::read_to_string(folder.path("s.toml")).unwrap();
    std::fs::remove_file(folder.path("replica.db")).unwrap();
    let running = server(&folder);
    folder.run(&[&["sync", "apply", "s.toml"], &DATA[..]].concat()).ok();
    status(&folder, in_state("following"));
    std::fs::write(folder.path("two.toml"), format!("{}\n{two}", two.replace("[sync.s]", "[sync.never]"))).unwrap();
    folder.run(&[&["sync", "rm", "two.toml"], &DATA[..]].concat()).fails(3, &["never was applied"]);
    let listed = folder.run(&[&["sync", "status", "-o", "json"], &DATA[..]].concat()).ok();
    assert_eq!(listed.trim(), "[]");
    assert_eq!(running.stop("TERM").code, Some(0));
}

#[test]
fn a_reader_that_goes_away_ends_no_sync_command() {
    let folder = Folder::new();
    folder.sync_file("s");
    folder.sql("source.db", &["create table t (id integer primary key, v text)", "create table keyless (v text)"]);
    let done = folder.bash("tidemill sync plan s.toml | (exec <&-; sleep 1); echo ${PIPESTATUS[0]}");
    assert_eq!((done.out.as_str(), done.err.as_str()), ("0\n", ""));
    let plan = folder.run(&["sync", "plan", "s.toml"]).ok();
    assert!(plan.contains("refused: it has no key: make one, or leave it out by \"!keyless\""), "{plan}");
}
