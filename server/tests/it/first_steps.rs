//! What somebody meets who tries syncs for the first time: errors whose commands work as they are printed, states that are
//! told when the process has gone, waits that end with a word.

use std::time::Duration;

use serde_json::Value as Json;

use crate::{
    pairs::Place,
    servers::{ADMIN, CDC, PASSWORD, Postgres, SINK, cut::Wire},
    support::{Folder, PATIENCE, Running, poll},
};

const LOG: [&str; 2] = ["--data-dir", "log"];
const RUN: [&str; 5] = ["sync", "run", "s.toml", "--data-dir", "log"];
const TABLE: [&str; 2] = ["create table t (id integer primary key, v text)", "insert into t values (1, 'a'), (2, 'b')"];

fn shop() -> Folder {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    folder.sync_file("s");
    folder.sql("source.db", &TABLE);
    folder
}

fn status_of(folder: &Folder, more: &[&str]) -> Json {
    let done = folder.run(&[&["sync", "status", "-o", "json"], more].concat());
    serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {done:?}"))
}

/// Waits until the one sync of the log is in a state.
fn wait_state(folder: &Folder, state: &str) -> Json {
    let mut seen = Json::Null;
    let found = poll(PATIENCE, || {
        seen = status_of(folder, &LOG);
        (seen[0]["state"] == state).then_some(())
    });
    assert!(found.is_some(), "not {state}: {seen}");
    seen[0].clone()
}

/// The command in a text that begins like this, up to its end.
fn command(text: &str, begin: &str) -> String {
    let at = text.find(begin).unwrap_or_else(|| panic!("no {begin:?} in {text}"));
    let rest = &text[at..];
    let end = rest.find(['\n', ';', ',', ')']).unwrap_or(rest.len());
    rest[..end].trim().to_owned()
}

/// Starts a command line as it was printed, with the binary first in the path.
fn typed(folder: &Folder, line: &str) -> Running {
    folder.start_program("bash", &["-c", &format!("exec {line}")])
}

#[test]
fn a_foreground_syncs_error_outlives_it_until_it_runs_well() {
    let folder = shop();
    let mut running = folder.start(&RUN);
    running.wait_err("in step, following");
    assert_eq!(status_of(&folder, &LOG)[0]["lag_seconds"], 0.0);
    folder.sql("source.db", &["alter table t add column w text"]);
    running.end().fails(4, &["--recopy t"]);
    for _ in 0..2 {
        let status = status_of(&folder, &LOG)[0].clone();
        assert_eq!((&status["state"], &status["lag_seconds"]), (&Json::from("failed"), &Json::Null), "{status}");
    }
    let shown = folder.run(&[&["sync", "status"], &LOG[..]].concat()).fails(1, &[]).out;
    assert!(shown.contains("sync s: FAILED") && shown.contains("lag: -"), "{shown}");
    // A start that fails before it has begun leaves the error that is to be mended, or its own.
    folder.run(&RUN).fails(4, &["--recopy t"]);
    let mut running = typed(&folder, &command(&shown, "tidemill sync run"));
    running.wait_err("in step, following");
    let status = status_of(&folder, &LOG)[0].clone();
    assert_eq!((&status["state"], &status["last_error"]), (&Json::from("following"), &Json::Null), "{status}");
    running.stop("TERM");
    let status = status_of(&folder, &LOG)[0].clone();
    assert_eq!((&status["state"], &status["last_error"]), (&Json::from("stopped"), &Json::Null), "{status}");
    assert_eq!(status["lag_seconds"], Json::Null);
}

#[test]
fn an_error_is_kept_without_the_password() {
    let folder = Folder::with_env(&[("PAIRS_PW", "hunter2hunter2")]);
    let server = Postgres::shared();
    let from = format!("{{ url = '{}', password = '${{env:PAIRS_PW}}' }}", server.url(CDC, &server.fresh_database()));
    let file = format!("[sync.s]\nfrom = {from}\nto = 'sqlite:replica.db'\ntables = ['*']\n");
    std::fs::write(folder.path("s.toml"), file).unwrap();
    folder.run(&RUN).fails(77, &["password authentication failed"]);
    let status = status_of(&folder, &LOG)[0].clone();
    assert!(status["last_error"].as_str().unwrap().contains("password authentication failed"), "{status}");
    assert_eq!(folder.bash("grep -rl hunter2hunter2 log || echo none").ok().trim(), "none");
    // What rm removes is gone with it.
    std::fs::write(folder.path("s.toml"), "[sync.s]\nfrom = 'sqlite:source.db'\nto = 'sqlite:r.db'\ntables = ['*']\n")
        .unwrap();
    folder.sql("source.db", &TABLE);
    folder.run(&[&["sync", "rm", "s.toml"], &LOG[..]].concat()).ok();
    assert_eq!(status_of(&folder, &LOG), Json::Array(Vec::new()));
}

#[test]
fn commands_printed_under_a_server_work_as_they_are_typed() {
    let folder = shop();
    // The target holds rows of somebody else.
    folder.sql("replica.db", &["create table t (id integer primary key, v text)", "insert into t values (9, 'x')"]);
    let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "log"]);
    server.wait_err("serving");
    let url = command(&server.err(), "http://");
    let status = |more: &[&str]| folder.run(&[&["sync", "status"], more].concat()).out;

    // The foreground is not the way while a server owns the log: the message has the one that is.
    let refused = folder.run(&RUN).fails(4, &["tidemill sync apply s.toml --data-dir log"]).err;
    // It is refused as the run would be, and nothing is kept of it.
    let refused = typed(&folder, &command(&refused, "tidemill sync apply")).end().fails(4, &["nothing was applied"]);
    assert_eq!(status_of(&folder, &LOG), Json::Array(Vec::new()));
    let replace = command(&refused.err, "tidemill sync apply");
    assert!(replace.contains(" --data-dir log --replace"), "{replace}");
    let applied = typed(&folder, &replace).end().ok();
    typed(&folder, &command(&applied, "tidemill sync status --data-dir log")).end();
    wait_state(&folder, "following");
    folder.wait_equal();

    for how in [&LOG[..], &["--server", &url]] {
        folder.sql("source.db", &[&format!("alter table t add column w{} text", how[1].len())]);
        wait_state(&folder, "failed");
        // What the server wrote to its own terminal names its log by the whole path.
        let said = server.err();
        let (_, last) = said.rsplit_once("tidemill sync apply").unwrap();
        assert!(last.contains(&format!("--data-dir {} --recopy t", folder.text("log"))), "{said}");
        let recopy = command(&status(how), "tidemill sync apply");
        assert!(recopy.contains(how[0]) && recopy.ends_with("--recopy t"), "{recopy}");
        typed(&folder, &recopy).end().ok();
        wait_state(&folder, "following");
        folder.wait_equal();
    }
    folder.run(&["sync", "apply", "s.toml", "--recopy", "tt", "--data-dir", "log"]).fails(3, &["the nearest is t"]);
    // What was asked for once is done once: the server starts it again as it is.
    server.stop("TERM");
    let stored =
        folder.run(&["sql", "-o", "csv", "--data-dir", "log", "select count(*) as n from changes_of(s.t)"]).ok();
    let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "log"]);
    server.wait_err("serving");
    wait_state(&folder, "following");
    let again =
        folder.run(&["sql", "-o", "csv", "--data-dir", "log", "select count(*) as n from changes_of(s.t)"]).ok();
    assert_eq!(stored, again, "rows came again");
    let url = command(&server.err(), "http://");
    let rm = folder.run(&["sync", "rm", "s.toml", "--server", &url]).ok();
    assert!(rm.contains("topic s.t deleted"), "{rm}");
    server.stop("TERM");
}

#[test]
fn a_side_that_goes_and_comes_back_is_told_once_each_and_drivers_keep_quiet() {
    for kind in ["postgres", "mariadb"] {
        let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
        let place = Place::fresh(kind, &folder, "source");
        place.exec("create table t (id int primary key, v varchar(20)); insert into t values (1, 'a');");
        let (port, url) = match &place {
            Place::Postgres(s, db) => (s.port(), s.url(ADMIN, db)),
            Place::MariaDb(s, db) => (s.port(), s.url(ADMIN, db)),
            Place::Sqlite(_) => unreachable!(),
        };
        let wire = Wire::to(port);
        let url = url.replace(&port.to_string(), &wire.port().to_string());
        let from = format!("{{ url = '{url}', password = '${{env:PAIRS_PW}}' }}");
        let file = format!("[sync.s]\nfrom = {from}\nto = 'sqlite:replica.db'\ntables = ['t']\n");
        std::fs::write(folder.path("s.toml"), file).unwrap();
        let mut running = folder.start(&RUN);
        running.wait_err("in step, following");
        wire.refuse();
        wire.cut();
        running.wait_err("waiting for the source: ");
        let waiting = wait_state(&folder, "waiting");
        assert_eq!(waiting["lag_seconds"], Json::Null, "{waiting}");
        std::thread::sleep(Duration::from_secs(3));
        wire.accept();
        running.wait_err("s: the source is back after ");
        wait_state(&folder, "following");
        let said = running.err();
        assert_eq!(said.matches("waiting for").count(), 1, "{said}");
        assert_eq!(said.matches("is back after").count(), 1, "{said}");
        for noise in ["ERROR", "WARN", "sqlx", "pgwire", "mysql_async"] {
            assert!(!said.contains(noise), "{noise}: {said}");
        }
        running.stop("TERM");
    }
}

#[test]
fn a_password_that_is_not_there_is_a_fault_of_the_file() {
    let folder = Folder::new();
    folder.sql("source.db", &TABLE);
    let file = |to: &str| {
        let to = format!("{{ url = 'mysql://u@127.0.0.1:1/d', password = '{to}' }}");
        let file = format!("[sync.s]\nfrom = 'sqlite:source.db'\nto = {to}\ntables = ['*']\n");
        std::fs::write(folder.path("s.toml"), file).unwrap();
    };
    for (secret, said) in
        [("${env:NO_SUCH_THING}", "variable NO_SUCH_THING is not set"), ("${file:none.pw}", "none.pw")]
    {
        file(secret);
        for args in [&["run", "s.toml", "--data-dir", "log"][..], &["check", "s.toml"], &["verify", "s.toml"]] {
            folder.run(&[&["sync"], args].concat()).fails(78, &["s.toml: sync.s.to: the password's ", said]);
        }
        let mut server = folder.start(&["start", "--listen", "127.0.0.1:0", "--data-dir", "log"]);
        server.wait_err("serving");
        let apply = folder.run(&[&["sync", "apply", "s.toml"], &LOG[..]].concat());
        apply.fails(78, &[said, "where the server runs"]);
        server.stop("TERM");
    }
}

#[test]
fn a_table_without_a_key_is_left_out_as_the_error_says() {
    for kind in ["postgres", "mariadb", "sqlite"] {
        let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
        let source = Place::fresh(kind, &folder, "source");
        source.exec("create table t (id int primary key, v varchar(20)); insert into t values (1, 'a');");
        source.exec("create table audit_log (v varchar(20)); create table audit_old (v varchar(20));");
        let target = Place::fresh("sqlite", &folder, "target");
        let file = |patterns: &str| {
            let (from, to) = (source.endpoint(ADMIN), target.endpoint(SINK));
            let file = format!("[sync.s]\nfrom = {from}\nto = {to}\ntables = [{patterns}]\n");
            std::fs::write(folder.path("s.toml"), file).unwrap();
        };
        file("'*'");
        let refused = folder.run(&RUN).fails(4, &["and 1 more: tidemill sync check s.toml"]).err;
        let checked = folder.run(&["sync", "check", "s.toml"]).fails(4, &[]).out;
        let names: Vec<_> =
            checked.split("leave it out by ").skip(1).map(|rest| rest.split('"').nth(1).unwrap()).collect();
        assert!(names.len() >= 2 && refused.contains(names[0]), "{checked}\n{refused}");
        // As the cures say, and by one pattern before the others.
        let listed: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
        for patterns in [format!("'*', {}", listed.join(", ")), "'!audit_*', '*'".to_owned()] {
            file(&patterns);
            folder.run(&["sync", "check", "s.toml"]).ok();
        }
        let mut running = folder.start(&RUN);
        running.wait_err("in step, following");
        assert!(source.differences(&target, &["t".to_owned()]).is_empty());
        running.stop("TERM");
        file("'*', '!audit_lgo'");
        folder.run(&["sync", "check", "s.toml"]).fails(3, &["no table matches \"audit_lgo\"", "audit_log"]);
    }
}

#[test]
fn a_copy_that_goes_on_counts_what_was_copied_before() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let source = Place::fresh("postgres", &folder, "source");
    source.exec("create table t (id int primary key, v text); insert into t select i, md5(i::text) from generate_series(1, 150000) i;");
    let file = format!("[sync.s]\nfrom = {}\nto = 'sqlite:replica.db'\ntables = ['t']\n", source.endpoint(ADMIN));
    std::fs::write(folder.path("s.toml"), file).unwrap();
    let copied = || {
        // Before the first run there is no log to ask.
        let done = folder.run(&[&["sync", "status", "-o", "json"], &LOG[..]].concat());
        let status: Json = serde_json::from_str(&done.out).unwrap_or_default();
        (status[0]["tables"][0]["copied"].as_u64(), status[0]["tables"][0]["complete"].as_bool())
    };
    let mut running = folder.start(&RUN);
    let before = poll(PATIENCE, || match copied() {
        (Some(copied), complete) if copied > 20_000 => Some((copied, complete)),
        _ => None,
    });
    running.kill();
    let (before, complete) = before.unwrap();
    assert_eq!(complete, Some(false), "the copy was over too soon to be killed");
    let mut running = folder.start(&RUN);
    running.wait_err("copied before");
    let again = poll(PATIENCE, || copied().0).unwrap();
    // What was read and not yet durable is read again.
    assert!(again > before / 2, "{again} of {before}");
    running.wait_err("in step, following");
    let (at_the_end, complete) = copied();
    assert_eq!((at_the_end, complete), (Some(150_000), Some(true)));
    running.stop("TERM");
}

#[test]
fn the_statement_that_check_prints_makes_the_publication() {
    let folder = Folder::with_env(&[("PAIRS_PW", PASSWORD)]);
    let server = Postgres::shared();
    let db = server.fresh_database();
    server.exec(&db, "create table t (id int primary key, v text); create table \"U\" (id int primary key); insert into t values (1, 'a')");
    let from = format!("{{ url = '{}', password = '${{env:PAIRS_PW}}' }}", server.url(CDC, &db));
    let file = |tables: &str| {
        let file = format!("[sync.shop]\nfrom = {from}\nto = 'sqlite:replica.db'\ntables = [{tables}]\n");
        std::fs::write(folder.path("s.toml"), file).unwrap();
    };
    let statement = |text: &str| {
        let line = text.lines().find(|line| line.contains("PUBLICATION")).unwrap_or_else(|| panic!("{text}"));
        line[line.find(|c: char| c.is_uppercase()).unwrap()..].trim().to_owned()
    };
    file("'t'");
    let refused = folder.run(&["sync", "check", "s.toml"]).fails(4, &[]).out;
    // Where check refuses, the run does, with the same statement.
    let run = folder.run(&RUN).fails(4, &[]).err;
    let typed = statement(&refused);
    assert!(run.contains(&typed), "{run}\n{typed}");
    server.exec(&db, &typed);
    for check in [&["sync", "check", "s.toml"][..], &["sync", "check", "s.toml", "--data-dir", "log"]] {
        folder.run(check).ok();
    }
    let mut running = folder.start(&RUN);
    running.wait_err("in step, following");
    server.exec(&db, "insert into t values (2, 'b')");
    let arrived = poll(PATIENCE, || {
        let rows = folder.sql("replica.db", &["select count(*) from t"]);
        (rows == serde_json::json!([[2]])).then_some(())
    });
    assert!(arrived.is_some(), "{}", running.err());
    running.stop("TERM");
    // A table more: the statement that adds it.
    file("'t', 'U'");
    let typed = statement(&folder.run(&["sync", "check", "s.toml"]).fails(4, &[]).out);
    assert_eq!(typed, "ALTER PUBLICATION \"tidemill_shop\" ADD TABLE ONLY \"public\".\"U\"");
    let refused = folder.run(&RUN).fails(4, &[]).err;
    assert!(refused.contains(&typed), "{refused}");
    server.exec(&db, &typed);
    let mut running = folder.start(&RUN);
    running.wait_err("in step, following");
    running.stop("TERM");
    let rm = folder.run(&[&["sync", "rm", "s.toml"], &LOG[..]].concat()).ok();
    assert!(rm.contains("DROP PUBLICATION tidemill_shop"), "{rm}");
}
