//! The source is not what the position says: each case stops, names what it is about, and `--recopy` mends tables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tidemill_connect::change::Op;
use tidemill_connect::sqlite::{self, Capture, Fault, Position, Reason, Stop};
use tidemill_connect::{Error, ErrorKind};

use crate::support::{Folder, Python, tables_of};

const BUDGET: Duration = Duration::from_secs(5);

struct Bench {
    folder: Folder,
    python: Python,
    path: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = Folder::new();
        let (path, mut python) = (folder.path("source.db"), Python::start());
        python.sql(&path, &["create table t(id integer primary key, v, u)", "create table o(id integer primary key)"]);
        python.sql(&path, &["insert into t(v) values ('a'), ('b'), ('c')", "insert into o values (1)"]);
        Self { folder, python, path }
    }

    fn sql(&mut self, statements: &[&str]) {
        self.python.sql(&self.path, statements);
    }

    fn open(&self, position: Option<Position>) -> Result<Capture, Fault> {
        Capture::open(&self.path, tables_of(&self.path), position, &[])
    }

    /// A capture that is copied, confirmed and closed; its durable position.
    fn captured(&self) -> Position {
        let mut capture = self.open(None).unwrap();
        let first = capture.position().clone();
        capture.confirm(&first).unwrap();
        while capture.read(BUDGET, 1000).unwrap().more {}
        let position = capture.position().clone();
        capture.confirm(&position).unwrap();
        position
    }
}

fn stop<T: std::fmt::Debug>(result: Result<T, Fault>) -> Stop {
    match result {
        Err(Fault::Stop(stop)) => stop,
        other => panic!("no stop: {other:?}"),
    }
}

/// A per-table stop names the table and the exact way out, and is a conflict.
fn check_table_stop(stop: Stop, table: &str) {
    assert_eq!(stop.recopy_table(), Some(table));
    let error = Error::from(stop);
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(&format!("tidemill sync run FILE --recopy {table}")), "{error}");
}

#[test]
fn a_reopen_at_an_older_position_reads_the_same_changes() {
    let mut bench = Bench::new();
    let position = bench.captured();
    bench.sql(&["insert into t(v) values ('d')", "delete from t where id = 1", "update t set v = 'B' where id = 2"]);
    let mut first = bench.open(Some(position.clone())).unwrap();
    let one = first.read(BUDGET, 1000).unwrap().changes;
    drop(first);
    let mut second = bench.open(Some(position)).unwrap();
    assert_eq!(one, second.read(BUDGET, 1000).unwrap().changes);
    assert_eq!(one.len(), 3);
}

#[test]
fn a_crash_on_either_side_of_the_mark_can_reopen() {
    let bench = Bench::new();
    let position = bench.captured();
    let mut capture = bench.open(Some(position)).unwrap();
    let durable = capture.position().clone();
    drop(capture);
    // Durable, but the source was not told.
    capture = bench.open(Some(durable)).unwrap();
    let durable = capture.position().clone();
    capture.confirm(&durable).unwrap();
    drop(capture);
    // Told, but nothing was stored since.
    bench.open(Some(durable)).unwrap();
}

#[test]
fn a_restored_backup_is_noticed_even_if_writes_went_on() {
    let mut bench = Bench::new();
    let position = bench.captured();
    let backup = bench.folder.path("backup.db");
    bench.sql(&["pragma wal_checkpoint"]);
    std::fs::copy(&bench.path, &backup).unwrap();
    let mut capture = bench.open(Some(position)).unwrap();
    let opened = capture.position().clone();
    capture.confirm(&opened).unwrap();
    bench.sql(&["insert into t(v) values ('lost')"]);
    capture.read(BUDGET, 1000).unwrap();
    let durable = capture.position().clone();
    capture.confirm(&durable).unwrap();
    drop(capture);
    let path = bench.path.clone();
    bench.python.call(&serde_json::json!({"cmd": "close", "path": path}));
    std::fs::copy(&backup, &bench.path).unwrap();
    bench.sql(&["insert into t(v) values ('x'), ('y'), ('z')"]);
    assert_eq!(stop(bench.open(Some(durable))).reason, Reason::WentBack);
}

#[test]
fn a_backup_restored_without_new_writes_is_noticed() {
    let mut bench = Bench::new();
    let position = bench.captured();
    let path = bench.path.clone();
    bench.sql(&["update _tm_seq set n = n - 1"]);
    let stopped = stop(bench.open(Some(position)));
    assert_eq!((stopped.reason, stopped.file), (Reason::WentBack, path));
}

#[test]
fn another_file_at_the_path_is_noticed() {
    let bench = Bench::new();
    let other = Bench::new();
    let position = bench.captured();
    other.captured();
    std::fs::copy(&other.path, &bench.path).unwrap();
    let stopped = stop(bench.open(Some(position)));
    assert_eq!(stopped.reason, Reason::Swapped);
    assert!(stopped.to_string().contains("source.db"));
}

#[test]
fn a_file_replaced_while_running_is_noticed() {
    let bench = Bench::new();
    let mut capture = bench.open(None).unwrap();
    let copy = bench.folder.path("copy.db");
    std::fs::copy(&bench.path, &copy).unwrap();
    std::fs::rename(&copy, &bench.path).unwrap();
    assert_eq!(stop(capture.read(BUDGET, 10)).reason, Reason::Replaced);
}

#[test]
fn a_capture_without_its_position_is_not_taken_over() {
    let bench = Bench::new();
    // Never confirmed: the worker died before anything was durable.
    drop(bench.open(None).unwrap());
    bench.captured();
    assert_eq!(stop(bench.open(None)).reason, Reason::Leftover);
}

#[test]
fn missing_objects_are_noticed() {
    let mut bench = Bench::new();
    let position = bench.captured();
    bench.sql(&["drop table _tm_seq"]);
    assert_eq!(stop(bench.open(Some(position))).reason, Reason::ObjectsGone);
}

/// What the application does to table t, and what the capture says, at an open and in a running read alike.
fn changed_table(statements: &[&str], judge: impl Fn(&Reason) -> bool) {
    let mut bench = Bench::new();
    let position = bench.captured();
    let mut running = bench.open(Some(position)).unwrap();
    let position = running.position().clone();
    bench.sql(statements);
    let stopped = stop(running.read(BUDGET, 10));
    assert!(judge(&stopped.reason), "{stopped:?}");
    check_table_stop(stopped, "t");
    drop(running);
    let stopped = stop(bench.open(Some(position.clone())));
    assert!(judge(&stopped.reason), "{stopped:?}");
    check_table_stop(stopped, "t");
    // The way out works, and leaves the other table alone.
    let tables = tables_of(&bench.path);
    let mut capture = Capture::open(&bench.path, tables.clone(), Some(position), &["T".into()]).unwrap();
    let read = capture.read(BUDGET, 1000).unwrap();
    assert!(read.changes.iter().all(|change| change.op == Op::Read && tables[change.table].name == "t"));
    assert_eq!(read.changes.is_empty(), tables.len() == 1);
}

#[test]
fn an_added_column_is_noticed() {
    changed_table(&["alter table t add column w"], |r| matches!(r, Reason::ColumnsChanged(w) if w.contains('w')));
}

#[test]
fn a_renamed_column_is_noticed() {
    changed_table(&["alter table t rename column v to w"], |r| matches!(r, Reason::ColumnsChanged(_)));
}

#[test]
fn a_rebuilt_table_is_noticed() {
    changed_table(
        &[
            "create table t_new(id integer primary key, v, u)",
            "insert into t_new select * from t",
            "drop table t",
            "alter table t_new rename to t",
        ],
        |r| *r == Reason::TriggersGone,
    );
}

/// What our triggers' names say.
fn cure(table: &str) -> String {
    format!(
        "(to alter this table: tidemill sync release FILE {table}; alter it; tidemill sync run FILE --recopy {table})"
    )
}

#[test]
fn triggers_that_an_older_version_named_are_renewed() {
    let mut bench = Bench::new();
    let position = bench.captured();
    let triggers = "select name, sql from sqlite_schema where type = 'trigger' and name like '\\_tm\\_%' escape '\\' order by name";
    let new = bench.python.sql(&bench.path, &[triggers]);
    assert_eq!(new.len(), 12);
    // The names that the first version gave.
    for row in &new {
        let (name, sql) = (row[0].as_str().unwrap(), row[1].as_str().unwrap());
        let stem = name.split(" (").next().unwrap();
        let table = stem.rsplit('_').next().unwrap();
        let old = format!(
            "{stem} (to alter this table: drop the triggers _tm_.._{table}, alter, then tidemill sync run FILE --recopy {table})"
        );
        bench.sql(&[&format!("drop trigger \"{name}\""), &sql.replacen(name, &old, 1)]);
    }
    bench.sql(&["insert into t(v) values ('seen by the old names')"]);
    let mut capture = bench.open(Some(position)).unwrap();
    let renewed = bench.python.sql(&bench.path, &[triggers]);
    assert_eq!(renewed, new);
    assert!(renewed.iter().any(|row| row[0].as_str().unwrap().ends_with(&cure("t"))), "{renewed:?}");
    bench.sql(&["insert into t(v) values ('seen by the new ones')"]);
    assert_eq!(capture.read(BUDGET, 100).unwrap().changes.len(), 2);
    // An old name does not hide that the trigger was tampered with.
    let position = capture.position().clone();
    drop(capture);
    let name = format!("_tm_ad_t {}", cure("t"));
    let hollow = "create trigger \"_tm_ad_t (to alter this table: older)\" after delete on t begin select 1; end";
    bench.sql(&[&format!("drop trigger \"{name}\""), hollow]);
    assert_eq!(stop(bench.open(Some(position))).reason, Reason::IndexesChanged);
}

#[test]
fn a_released_table_can_be_altered_and_is_copied_anew() {
    let mut bench = Bench::new();
    let position = bench.captured();
    let error = sqlite::release(&bench.path, "tt").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("the nearest is t"), "{error}");
    assert_eq!(sqlite::release(&bench.path, "T").unwrap(), "t");
    bench.sql(&["alter table t drop column u", "insert into o values (2)"]);
    check_table_stop(stop(bench.open(Some(position.clone()))), "t");
    let tables = tables_of(&bench.path);
    let mut capture = Capture::open(&bench.path, tables, Some(position), &["t".into()]).unwrap();
    let read = capture.read(BUDGET, 1000).unwrap();
    assert_eq!(read.changes.iter().filter(|change| change.op == Op::Read).count(), 3);
    assert_eq!(
        read.changes.iter().filter(|change| change.op == Op::Create).count(),
        1,
        "the other table's capture went on"
    );
    // The last captured table: what names the file stays, so that a recopy finds it.
    let position = capture.position().clone();
    capture.confirm(&position).unwrap();
    drop(capture);
    for table in ["t", "o"] {
        sqlite::release(&bench.path, table).unwrap();
    }
    let recopy = ["t".into(), "o".into()];
    Capture::open(&bench.path, tables_of(&bench.path), Some(position), &recopy).unwrap();
}

#[test]
fn a_dropped_trigger_is_noticed() {
    let name = format!("_tm_au_t {}", cure("t"));
    changed_table(&[&format!("drop trigger \"{name}\"")], |r| *r == Reason::TriggersGone);
}

#[test]
fn a_dropped_table_is_noticed() {
    changed_table(&["drop table t"], |r| *r == Reason::TableDropped);
}

#[test]
fn a_new_unique_index_is_noticed() {
    changed_table(&["create unique index tu on t(u)"], |r| *r == Reason::IndexesChanged);
}

#[test]
fn a_table_can_be_put_back_while_running() {
    let mut bench = Bench::new();
    let position = bench.captured();
    let mut capture = bench.open(Some(position)).unwrap();
    bench.sql(&["alter table t add column w default 7"]);
    assert!(capture.read(BUDGET, 10).is_err());
    capture.reset_table("t").unwrap();
    let changes = capture.read(BUDGET, 10).unwrap().changes;
    assert_eq!(changes.len(), 3);
    assert!(changes.iter().all(|c| c.op == Op::Read && c.after.as_ref().unwrap().len() == 4));
}

#[test]
fn a_table_added_to_the_sync_is_copied_and_one_left_out_is_released() {
    let mut bench = Bench::new();
    let position = bench.captured();
    bench.sql(&["create table n(id integer primary key)", "insert into n values (5)"]);
    let tables: Vec<_> = tables_of(&bench.path).into_iter().filter(|t| t.name != "o").collect();
    let mut capture = Capture::open(&bench.path, tables, Some(position), &[]).unwrap();
    let read = capture.read(BUDGET, 100).unwrap();
    assert_eq!((read.changes.len(), read.finished_tables), (1, vec![0]));
    let left = bench.python.sql(&bench.path, &["select 1 from sqlite_schema where name = '_tm_cap_o'"]);
    assert!(left.is_empty());
}

#[test]
fn a_missing_source_is_not_made() {
    let error = Error::from(Capture::open(Path::new("/nonexistent/x.db"), Vec::new(), None, &[]).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
