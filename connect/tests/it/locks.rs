//! Writers hardly notice the reads; a busy source makes an empty read, never an error.

use std::time::{Duration, Instant};

use serde_json::json;
use tidemill_connect::sqlite::capture::DEFAULT_BUDGET;
use tidemill_connect::sqlite::{Capture, Pruned};

use crate::support::{Folder, Python, tables_of};

/// A writer's p99 in ms, without and with a capture that reads all the time.
fn measure(mode: &str, budget: Duration, pause: u32) -> (serde_json::Value, serde_json::Value) {
    let folder = Folder::new();
    let path = folder.path("source.db");
    let mut python = Python::start();
    python.sql(&path, &[&format!("pragma journal_mode={mode}"), "create table t(id integer primary key, v)"]);
    python.sql(&path, &["with recursive n(i) as (select 1 union all select i + 1 from n where i < 200000) insert into t(v) select i from n"]);
    let spin = json!({"cmd": "spin", "path": path, "seconds": 1.5, "pause": 0.002, "timeout": 1.0});
    let without = python.call(&spin);
    let mut capture = Capture::open(&path, tables_of(&path), None, &[]).unwrap();
    let position = capture.position().clone();
    capture.confirm(&position).unwrap();
    python.send(&spin);
    let end = Instant::now() + Duration::from_millis(1500);
    let mut rows = 0;
    while Instant::now() < end {
        let begin = Instant::now();
        rows += capture.read(budget, 100_000).unwrap().changes.len();
        // The pause is part of what is measured.
        std::thread::sleep(begin.elapsed() * pause);
    }
    println!("{mode}: {rows} rows read meanwhile");
    assert!(rows > 1000);
    (without, python.answer())
}

#[test]
fn writers_wait_at_most_50_ms_longer() {
    for mode in ["delete", "wal"] {
        let (without, with) = measure(mode, DEFAULT_BUDGET, 2);
        println!("{mode}: without {without}, with {with}");
        assert_eq!(with["failed"], 0);
        let (a, b) = (without["p99"].as_f64().unwrap(), with["p99"].as_f64().unwrap());
        assert!(b - a < 50.0, "{mode}: p99 {a} ms without, {b} ms with");
    }
}

#[test]
fn the_measurement_notices_long_reads() {
    // Beside other tests a writer may wait long without us, too.
    let noticed = (0..4).any(|_| {
        let (without, with) = measure("delete", Duration::from_millis(300), 0);
        println!("300 ms reads without pauses: without {without}, with {with}");
        with["max"].as_f64().unwrap() - without["max"].as_f64().unwrap() > 50.0
    });
    assert!(noticed);
}

#[test]
fn a_locked_source_gives_an_empty_read_and_a_skipped_prune() {
    let folder = Folder::new();
    let path = folder.path("source.db");
    let mut python = Python::start();
    python.sql(&path, &["create table t(id integer primary key, v)", "insert into t values (1, 1)"]);
    let mut capture = Capture::open(&path, tables_of(&path), None, &[]).unwrap();
    let position = capture.position().clone();
    capture.confirm(&position).unwrap();
    python.sql(&path, &["insert into t values (2, 2)"]);
    capture.read(Duration::from_secs(1), 10).unwrap();
    let position = capture.position().clone();
    capture.confirm(&position).unwrap();
    python.sql(&path, &["begin exclusive"]);
    let read = capture.read(Duration::from_millis(15), 10).unwrap();
    assert!(read.more && read.changes.is_empty());
    assert_eq!(capture.prune().unwrap(), Pruned::Busy);
    python.sql(&path, &["commit"]);
    assert!(matches!(capture.prune().unwrap(), Pruned::Rows { .. }));
    assert_eq!(capture.prune().unwrap(), Pruned::NotDurable);
}

#[test]
fn a_read_keeps_its_budget() {
    let folder = Folder::new();
    let path = folder.path("source.db");
    let mut python = Python::start();
    python.sql(&path, &["create table t(id integer primary key, v)"]);
    python.sql(&path, &["with recursive n(i) as (select 1 union all select i + 1 from n where i < 300000) insert into t(v) select i from n"]);
    let mut capture = Capture::open(&path, tables_of(&path), None, &[]).unwrap();
    let begin = Instant::now();
    let read = capture.read(Duration::from_millis(5), usize::MAX).unwrap();
    assert!(read.more && !read.changes.is_empty() && read.changes.len() < 300_000);
    // Without a budget the whole table is read, which takes far longer than this.
    assert!(begin.elapsed() < Duration::from_millis(250), "{:?}", begin.elapsed());
}
