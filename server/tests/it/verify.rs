//! `sync verify`: what it waits for, what it tells of each table and each sync.

use std::time::{Duration, Instant};

use crate::support::{Done, Folder, Running};

const RUN: [&str; 5] = ["sync", "run", "s.toml", "--data-dir", "data"];

fn shop() -> Folder {
    let folder = Folder::new();
    folder.sync_file("s");
    let rows = "insert into item values (1, 'a'), (2, 'b'), (3, null)";
    folder.sql("source.db", &["pragma journal_mode = wal", "create table item (id integer primary key, v text)", rows]);
    folder
}

fn follow(folder: &Folder) -> Running {
    let mut sync = folder.start(&RUN);
    sync.wait_err("in step, following");
    sync
}

fn verify(folder: &Folder, more: &[&str]) -> Done {
    folder.run(&[&["sync", "verify", "s.toml", "--data-dir", "data"], more].concat())
}

#[test]
fn verify_waits_for_what_the_source_had_and_not_for_a_time() {
    let folder = shop();
    let sync = follow(&folder);
    // The target takes nothing, for longer than a comparison without a log would look again.
    let hold = "import sqlite3, sys, time\nc = sqlite3.connect('replica.db', isolation_level=None)\n\
                c.execute('begin immediate')\nprint('held', flush=True)\ntime.sleep(float(sys.argv[1]))\nc.execute('commit')\n";
    let mut holder = folder.start_program("python3", &["-c", hold, "6"]);
    holder.wait_out("held");
    folder.sql("source.db", &["insert into item values (4, 'd')"]);
    let short = verify(&folder, &["--wait", "1"]);
    assert_eq!(short.code, Some(1), "{short:?}");
    assert!(short.out.contains("the target does not have what the source had at "), "{short:?}");
    let begun = Instant::now();
    let whole = verify(&folder, &[]);
    assert!(whole.err.contains("waiting: "), "{whole:?}");
    let out = whole.ok();
    assert!(out.contains("the target has what the source had at ") && out.ends_with("\nequal\n"), "{out}");
    assert!(out.contains("ok      s.item: 4 rows compared: 4 equal, 0 different"), "{out}");
    assert!(begun.elapsed() > Duration::from_secs(3), "the target was held: {:?}", begun.elapsed());
    sync.stop("TERM");
    // Nobody brings rows any more: nothing is waited for.
    folder.sql("source.db", &["insert into item values (5, 'e')"]);
    let begun = Instant::now();
    let done = verify(&folder, &[]);
    assert!(done.out.contains("nobody runs it") && done.out.contains("only in the source: id=5"), "{done:?}");
    assert!(done.code == Some(1) && begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn each_sync_and_each_table_has_its_own_outcome() {
    let folder = shop();
    folder.sql("source.db", &["create table other (id integer primary key)"]);
    let sync = |name: &str, to: &str| {
        format!("[sync.{name}]\nfrom = 'sqlite:source.db'\nto = 'sqlite:{to}.db'\ntables = ['*']\n")
    };
    std::fs::write(folder.path("s.toml"), sync("gone", "nowhere") + &sync("s", "replica")).unwrap();
    folder.run(&["sync", "run", "s.toml", "--data-dir", "data", "--once"]).ok();
    let out = verify(&folder, &[]).ok();
    assert_eq!(out.matches("ok      ").count(), 4, "{out}");
    std::fs::remove_file(folder.path("nowhere.db")).unwrap();
    // A table that came later and that no sync can follow is passed over.
    folder.sql("source.db", &["create table scratch (v)", "insert into scratch values (1)"]);
    folder.sql("replica.db", &["drop table other"]);
    let done = verify(&folder, &[]).fails(69, &["error: sync gone: not compared: target nowhere.db does not exist"]);
    for said in [
        "failed  gone: not compared",
        "ok      s.item: 3 rows compared: 3 equal",
        "ok      s.scratch: it has no primary key, and no sync follows it: left out",
        "missing s.other: the target has no such table; 0 rows only in the source",
        "--recopy other\n",
    ] {
        assert!(done.out.contains(said), "no {said:?} in {}", done.out);
    }
    assert!(done.out.ends_with("\nnot equal\n"), "{done:?}");
    std::fs::write(folder.path("s.toml"), sync("s", "replica")).unwrap();
    assert_eq!(verify(&folder, &[]).code, Some(1));
}

#[test]
fn a_merged_table_may_have_columns_of_its_own() {
    let folder = shop();
    folder.sql("replica.db", &["create table item (id integer primary key, v text, mine int default 7)"]);
    let sync = "[sync.s]\nfrom = 'sqlite:source.db'\nto = 'sqlite:replica.db'\ntables = ['*']\n";
    std::fs::write(folder.path("s.toml"), format!("{sync}on_existing = 'merge'\n")).unwrap();
    folder.run(&["sync", "run", "s.toml", "--data-dir", "data", "--once"]).ok();
    let out = verify(&folder, &[]).ok();
    assert!(out.contains("ok      s.item: 3 rows compared: 3 equal"), "{out}");
    folder.sql("replica.db", &["update item set v = 'x' where id = 2"]);
    assert_eq!(verify(&folder, &[]).code, Some(1));
    // Without the word they are not what the sync made.
    std::fs::write(folder.path("s.toml"), sync).unwrap();
    let done = verify(&folder, &[]);
    assert!(done.out.contains("rows not compared: only in the target: mine"), "{done:?}");
}

#[test]
fn a_sync_whose_target_is_gone_for_good_can_be_removed() {
    let folder = shop();
    folder.run(&["sync", "run", "s.toml", "--data-dir", "data", "--once"]).ok();
    let sync = "[sync.s]\nfrom = 'sqlite:source.db'\nto = 'postgres://u@127.0.0.1:1/d'\ntables = ['*']\n";
    std::fs::write(folder.path("s.toml"), sync).unwrap();
    let rm = ["sync", "rm", "s.toml", "--data-dir", "data"];
    let said = ["is removed from source and log", "tidemill sync rm s.toml --data-dir data --force"];
    folder.run(&rm).fails(69, &said);
    let out = folder.run(&[&rm[..], &["--force"]].concat()).ok();
    assert!(out.contains("is not there: what it keeps of the sync's positions stays"), "{out}");
}

#[test]
fn rows_that_the_target_refused_are_told_as_parked() {
    let folder = shop();
    folder.sql("replica.db", &["create table item (id integer primary key, v text check (v <> 'bad'))"]);
    let mut sync = follow(&folder);
    folder
        .sql("source.db", &["insert into item values (4, 'bad'), (5, 'e')", "update item set v = 'bad' where id = 1"]);
    sync.wait_err("parked");
    let counts = "5 rows compared: 3 equal, 0 different, 0 only in the source, 0 only in the target, 2 parked";
    let told = |done: &Done| {
        assert_eq!(done.code, Some(1), "{done:?}");
        for said in [counts, "parked: {\"id\":4}: ", "CHECK", "sync retry s.toml --data-dir data\n"] {
            assert!(done.out.contains(said), "no {said:?} in {}", done.out);
        }
        assert!(!done.out.contains("--recopy"), "{}", done.out);
    };
    told(&verify(&folder, &[]));
    sync.stop("TERM");
    told(&verify(&folder, &[]));
}
