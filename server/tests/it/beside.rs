//! Several syncs of one file, one log, one source: which may run beside each other, and how one of them is named.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::{
    servers::{PASSWORD, Postgres},
    support::{Folder, PATIENCE, Running, poll},
};

const LOG: [&str; 2] = ["--data-dir", "log"];

fn sync(name: &str, from: &str, to: &str) -> String {
    format!("[sync.{name}]\nfrom = 'sqlite:{from}.db'\nto = 'sqlite:{to}.db'\ntables = ['*']\n")
}

fn shop() -> Folder {
    let folder = Folder::new();
    folder.sync_file("s");
    let table = "create table t (id integer primary key, v text)";
    folder.sql("source.db", &[table, "insert into t values (1, 'a')"]);
    folder
}

fn write(folder: &Folder, name: &str, text: &str) {
    std::fs::write(folder.path(name), text).unwrap();
}

fn command(folder: &Folder, args: &[&str]) -> crate::support::Done {
    folder.run(&[&["sync"], args, &LOG].concat())
}

fn follow(folder: &Folder, file: &str) -> Running {
    let mut running = folder.start(&["sync", "run", file, "--data-dir", "log"]);
    running.wait_err("in step, following");
    running
}

fn server(folder: &Folder) -> Running {
    let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "log"]);
    server.wait_err("serving");
    server
}

fn wait_state(folder: &Folder, state: &str) -> Json {
    let mut seen = Json::Null;
    let came = poll(PATIENCE, || {
        seen = serde_json::from_str(&command(folder, &["status", "-o", "json"]).out).ok()?;
        (seen[0]["state"] == state).then_some(())
    });
    assert!(came.is_some(), "not {state}: {seen}");
    seen[0].clone()
}

fn triggers(folder: &Folder) -> Json {
    folder.sql("source.db", &["select count(*) from sqlite_schema where type = 'trigger'"])
}

#[test]
fn a_second_sync_of_a_sqlite_file_is_refused_and_takes_nothing_from_the_first() {
    let folder = shop();
    follow(&folder, "s.toml").stop("TERM");
    let before = triggers(&folder);
    assert_ne!(before, json!([[0]]));
    write(&folder, "two.toml", &sync("two", "source", "other"));
    let checked = command(&folder, &["check", "two.toml"]).fails(4, &[]).out;
    assert!(checked.contains("refuse capture: source.db feeds sync s, and a SQLite file feeds one sync"), "{checked}");
    command(&folder, &["check", "s.toml"]).ok();
    command(&folder, &["run", "two.toml"]).fails(4, &["source.db feeds sync s"]);
    let removed = command(&folder, &["rm", "two.toml", "--force"]).ok();
    assert!(removed.contains("its capture is sync s's and stays"), "{removed}");
    assert_eq!(triggers(&folder), before);
    folder.sql("source.db", &["insert into t values (2, 'b')"]);
    let running = follow(&folder, "s.toml");
    folder.wait_equal();
    running.stop("TERM");
    command(&folder, &["rm", "s.toml"]).ok();
    assert_eq!(triggers(&folder), json!([[0]]));

    // A capture that the log knows nothing of stands in the way as well, and of two in one file the second.
    let checked = folder.run(&["sync", "check", "s.toml"]).out;
    assert!(checked.contains("capture: none installed"), "{checked}");
    write(&folder, "both.toml", &(sync("a", "source", "a") + &sync("b", "source", "b")));
    let checked = folder.run(&["sync", "check", "both.toml"]).fails(4, &[]).out;
    assert!(checked.contains("is to feed sync a of this file, too"), "{checked}");
    let mut running = follow(&folder, "both.toml");
    running.wait_err("is to feed sync a of this file, too");
    running.signal("TERM");
    running.end().fails(4, &["sync b: "]);
    let checked = folder.run(&["sync", "check", "s.toml", "--data-dir", "log"]).fails(4, &[]).out;
    assert!(checked.contains("feeds sync a,"), "{checked}");
}

#[test]
fn apply_refuses_what_a_run_refuses_and_waits_for_what_is_not_there() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let tables = ["create table t (id integer primary key)", "create table audit (v text)"];
    folder.sql("source.db", &tables);
    let away = "{ url = 'postgres://u@127.0.0.1:1/d', password = '${env:PAIRS_PW}' }";
    let file = |tables: &str| format!("[sync.s]\nfrom = 'sqlite:source.db'\nto = {away}\ntables = [{tables}]\n");
    let running = server(&folder);
    write(&folder, "s.toml", &file("'*'"));
    let refused = command(&folder, &["apply", "s.toml"]).fails(4, &["nothing was applied", "sync s: refuse audit: "]);
    assert!(refused.err.contains("!audit"), "{refused:?}");
    assert_eq!(command(&folder, &["status", "-o", "json"]).ok().trim(), "[]");
    // The target may come yet.
    write(&folder, "s.toml", &file("'*', '!audit'"));
    let applied = command(&folder, &["apply", "s.toml"]).ok();
    assert!(applied.contains("applied; it is not examined yet and waits: "), "{applied}");
    let status = wait_state(&folder, "waiting");
    assert!(status["last_error"].as_str().unwrap().contains("127.0.0.1:1"), "{status}");
    running.stop("TERM");
}

#[test]
fn a_password_that_is_mended_in_the_database_ends_the_waiting_of_an_applied_sync() {
    let folder = Folder::with_env(&[("PAIRS_PW", "first")]);
    let postgres = Postgres::start();
    let db = postgres.fresh_database();
    let sql = "create table t (id int primary key); create role changing login superuser password 'first'";
    postgres.exec(&db, sql);
    let from = format!("{{ url = '{}', password = '${{env:PAIRS_PW}}' }}", postgres.url("changing", &db));
    write(&folder, "s.toml", &format!("[sync.s]\nfrom = {from}\nto = 'sqlite:replica.db'\ntables = ['t']\n"));
    let running = server(&folder);
    command(&folder, &["apply", "s.toml"]).ok();
    wait_state(&folder, "following");
    let cut = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'changing'";
    postgres.exec(&db, &format!("alter role changing password 'second'; {cut}"));
    let denied =
        |status: &Json| status["last_error"].as_str().is_some_and(|error| error.contains("authentication failed"));
    assert!(poll(PATIENCE, || denied(&wait_state(&folder, "waiting")).then_some(())).is_some());
    // It stays so, as long as nobody mends it.
    std::thread::sleep(Duration::from_secs(2));
    wait_state(&folder, "waiting");
    postgres.exec(&db, "alter role changing password 'first'; insert into t values (7)");
    wait_state(&folder, "following");
    let there = || (folder.sql("replica.db", &["select id from t"]) == json!([[7]])).then_some(());
    assert!(poll(PATIENCE, there).is_some());
    // One that is wrong from the start is told at once.
    postgres.exec(&db, "alter role changing password 'second'");
    command(&folder, &["apply", "s.toml"]).fails(77, &["nothing was applied: sync s: ", "authentication failed"]);
    running.stop("TERM");
}

#[test]
fn one_sync_of_a_file_is_named_by_sync() {
    let folder = shop();
    folder.sql("two.db", &["create table t (id integer primary key)", "insert into t values (1)"]);
    folder.sql("b.db", &["create table t (id integer primary key)", "insert into t values (9)"]);
    write(&folder, "s.toml", &(sync("a", "source", "a") + &sync("b", "two", "b")));
    for args in [["run", "s.toml"], ["check", "s.toml"], ["plan", "s.toml"], ["verify", "s.toml"], ["rm", "s.toml"]] {
        folder.run(&[&["sync"], &args[..], &["--sync", "c"]].concat()).fails(3, &["s.toml has no sync c; "]);
    }
    command(&folder, &["run", "s.toml", "--sync", "a", "--once"]).ok();
    assert!(folder.path("a.db").exists());
    command(&folder, &["status", "s.toml", "--sync", "a"]).ok();
    let shown = command(&folder, &["status", "s.toml"]).fails(3, &["the log knows no sync b; it knows a"]).out;
    assert!(shown.contains("sync a: STOPPED"), "{shown}");
    // What is printed for one sync drops no table of the other.
    let refused = command(&folder, &["run", "s.toml", "--once"]).fails(4, &[]).err;
    let replace = "tidemill sync run s.toml --data-dir log --sync b --replace";
    assert!(refused.contains(replace), "{refused}");
    folder.sql("a.db", &["insert into t values (77, 'mine')"]);
    folder.bash(&format!("{replace} --once")).ok();
    assert_eq!(folder.sql("a.db", &["select count(*) from t"]), json!([[2]]));
    assert_eq!(folder.sql("b.db", &["select id from t"]), json!([[1]]));
    let verified = command(&folder, &["verify", "s.toml", "--sync", "b"]).ok();
    assert!(verified.contains("sync b: ") && !verified.contains("sync a: "), "{verified}");
    let verified = command(&folder, &["verify", "s.toml"]).fails(1, &[]).out;
    assert!(verified.contains("tidemill sync run s.toml --data-dir log --sync a --recopy t\n"), "{verified}");
    command(&folder, &["rm", "s.toml", "--sync", "a"]).ok();
    let left = command(&folder, &["status", "-o", "json"]).ok();
    assert!(left.contains("\"sync\": \"b\"") && !left.contains("\"sync\": \"a\""), "{left}");
    // So it is with a server.
    let running = server(&folder);
    command(&folder, &["apply", "s.toml", "--sync", "b", "--replace"]).ok();
    let status = wait_state(&folder, "following");
    assert_eq!(status["sync"], "b");
    command(&folder, &["retry", "s.toml", "--sync", "b"]).ok();
    command(&folder, &["skip", "s.toml", "--sync", "b", "{}"]).fails(3, &["no key {} is parked"]);
    // A table that broke is not in step.
    folder.sql("two.db", &["alter table t add column w text"]);
    wait_state(&folder, "failed");
    let shown = command(&folder, &["status"]).fails(1, &[]).out;
    assert!(shown.contains("t: copied, not followed now") && !shown.contains("in step"), "{shown}");
    assert!(shown.contains("tidemill sync apply ") && shown.contains("--sync b --recopy t"), "{shown}");
    running.stop("TERM");
}
