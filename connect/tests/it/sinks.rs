//! The target: what it refuses, what it makes, and that nothing is half applied.

use std::time::Duration;

use serde_json::json;
use tidemill_connect::ErrorKind;
use tidemill_connect::change::{Change, Column, Op, TableSchema, Value};
use tidemill_connect::sqlite::compare::recheck;
use tidemill_connect::sqlite::{Snapshot, SqliteSink, compare_tables};

use crate::support::{Folder, Python, tables_of};

fn column(name: &str, declared: &str, key: Option<u32>) -> Column {
    Column { name: name.into(), declared_type: declared.into(), not_null: key.is_some(), key }
}

fn schema() -> TableSchema {
    TableSchema {
        schema: None,
        name: "t".into(),
        columns: vec![column("id", "INTEGER", Some(0)), column("v", "", None)],
    }
}

fn put(id: i64, v: &str) -> Change {
    let row = vec![Value::Integer(id), Value::Text(v.into())];
    Change { table: 0, op: Op::Read, key: vec![Value::Integer(id)], before: None, after: Some(row), sequence: 0 }
}

#[test]
fn positions_and_rows_are_one_transaction() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    assert!(sink.positions().unwrap().is_empty());
    sink.apply(&[("s.t", &schema(), 7, vec![put(1, "a")])], &[("s.t", 3)]).unwrap();
    let mut bad = put(3, "c");
    bad.after = Some(vec![Value::Text("no integer".into()), Value::Null]);
    let error = sink.apply(&[("s.t", &schema(), 7, vec![put(2, "b"), bad])], &[("s.t", 9)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(sink.positions().unwrap()["s.t"], 3);
    let rows = Python::start().sql(&path, &["select id, v from t"]);
    assert_eq!(rows, [[json!(1), json!("a")]]);
}

#[test]
fn another_logs_target_is_refused() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    sink.apply(&[("s.t", &schema(), 7, vec![put(1, "a")])], &[("s.t", 3)]).unwrap();
    let error = SqliteSink::open(&path, "s", "other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("tidemill sync run FILE --replace"), "{error}");
    SqliteSink::open(&path, "another sync", "other").unwrap();
    sink.forget("s").unwrap();
    assert!(Python::start().sql(&path, &["select 1 from sqlite_schema where name = '_tidemill_sync'"]).is_empty());
}

#[test]
fn rows_that_are_not_ours_are_refused() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut python = Python::start();
    python.sql(&path, &["create table t(id integer primary key, v)", "insert into t values (9, 'mine')"]);
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    let tables = [("s.t".to_owned(), schema())];
    let error = sink.check_targets(&tables).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("target table t in"), "{error}");
    assert!(error.to_string().ends_with("copy it anew: tidemill sync run FILE --replace"), "{error}");
    assert!(sink.apply(&[("s.t", &schema(), 1, vec![put(1, "a")])], &[("s.t", 1)]).is_err());
    python.sql(&path, &["delete from t"]);
    sink.check_targets(&tables).unwrap();
    sink.apply(&[("s.t", &schema(), 1, vec![put(1, "a")])], &[("s.t", 1)]).unwrap();
    sink.check_targets(&tables).unwrap();
}

#[test]
fn all_tables_in_the_way_are_named_and_replaced_only_they() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut python = Python::start();
    python.sql(
        &path,
        &[
            "create table t(id integer primary key, v)",
            "insert into t values (9, 'mine')",
            "create table \"Order Details\"(id integer primary key, v)",
            "insert into \"Order Details\" values (1, 'mine')",
            "create table other_shape(x)",
            "create table mine(x)",
            "insert into mine values (1)",
        ],
    );
    let named = |name: &str| (format!("s.{name}"), TableSchema { name: name.into(), ..schema() });
    let tables = ["t", "Order Details", "absent", "other_shape"].map(named);
    let error = SqliteSink::open(&path, "s", "log").unwrap().check_targets(&tables).unwrap_err().to_string();
    for said in [
        "target tables t, Order Details in",
        "exist and hold rows that this log did not write",
        "target table other_shape in",
        "drop them and copy them anew: tidemill sync run FILE --replace",
    ] {
        assert!(error.contains(said), "{error}");
    }
    let dropped = SqliteSink::replace(&path, "s", "log", &tables).unwrap();
    assert_eq!(dropped, ["t", "Order Details", "other_shape"]);
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    sink.check_targets(&tables).unwrap();
    sink.apply(&[("s.t", &schema(), 1, vec![put(1, "a")])], &[("s.t", 1)]).unwrap();
    assert_eq!(python.sql(&path, &["select x from mine"]), [[json!(1)]], "a table of others was touched");

    // What another sync of this log writes is not given up; what one of another log wrote is.
    let same = |sync: &str| [(format!("{sync}.t"), schema())];
    let error = SqliteSink::replace(&path, "second", "log", &same("second")).unwrap_err();
    assert!(error.to_string().contains("written by sync s of this log"), "{error}");
    assert_eq!(python.sql(&path, &["select v from t"]), [[json!("a")]]);
    assert_eq!(SqliteSink::replace(&path, "second", "other", &same("second")).unwrap(), ["t"]);
    assert!(SqliteSink::open(&path, "s", "log").unwrap().positions().unwrap().is_empty());
    assert!(SqliteSink::replace(&folder.path("none.db"), "s", "log", &tables).unwrap().is_empty());
    assert!(!folder.path("none.db").exists());
}

#[test]
fn another_schema_makes_the_table_anew() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    sink.apply(&[("s.t", &schema(), u64::MAX, vec![put(1, "a"), put(2, "b")])], &[("s.t", 2)]).unwrap();
    let wide = TableSchema { columns: [schema().columns, vec![column("w", "VARCHAR(9)", None)]].concat(), ..schema() };
    let mut change = put(5, "e");
    change.after.as_mut().unwrap().push(Value::Null);
    sink.apply(&[("s.t", &wide, 8, vec![change])], &[("s.t", 3)]).unwrap();
    let rows = Python::start().sql(&path, &["select * from t"]);
    assert_eq!(rows, [[json!(5), json!("e"), json!(null)]]);
    assert_eq!(tables_of(&path)[0].columns[2].declared_type, "VARCHAR(9)");
}

#[test]
fn a_locked_target_is_unavailable() {
    let folder = Folder::new();
    let path = folder.path("target.db");
    let mut sink = SqliteSink::open(&path, "s", "log").unwrap();
    let mut python = Python::start();
    python.sql(&path, &["begin immediate"]);
    let error = sink.apply(&[("s.t", &schema(), 1, vec![put(1, "a")])], &[("s.t", 1)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    python.sql(&path, &["commit"]);
    sink.apply(&[("s.t", &schema(), 1, vec![put(1, "a")])], &[("s.t", 1)]).unwrap();
}

#[test]
fn a_snapshot_installs_nothing_and_sees_other_writers() {
    let folder = Folder::new();
    let path = folder.path("source.db");
    let mut python = Python::start();
    python.sql(
        &path,
        &[
            "pragma journal_mode=wal",
            "create table t(id integer primary key, v)",
            "insert into t values (1, 1), (2, 2)",
        ],
    );
    let before = python.sql(&path, &["select * from sqlite_schema"]);
    let mut snapshot = Snapshot::open(&path, tables_of(&path)).unwrap();
    let version = snapshot.data_version().unwrap();
    let rows = snapshot.next_chunk(0, None, Duration::ZERO).unwrap();
    assert_eq!(rows, [[Value::Integer(1), Value::Integer(1)]]);
    assert_eq!(snapshot.data_version().unwrap(), version);
    python.sql(&path, &["insert into t values (3, 3)"]);
    assert_ne!(snapshot.data_version().unwrap(), version);
    snapshot.begin_held().unwrap();
    python.sql(&path, &["insert into t values (4, 4)"]);
    let key = vec![Value::Integer(1)];
    assert_eq!(snapshot.next_chunk(0, Some(&key), Duration::from_secs(1)).unwrap().len(), 2);
    snapshot.end_held().unwrap();
    assert_eq!(snapshot.next_chunk(0, Some(&key), Duration::from_secs(1)).unwrap().len(), 3);
    assert_eq!(python.sql(&path, &["select * from sqlite_schema"]), before);
}

#[test]
fn compare_tells_missing_extra_and_differing_type_for_type() {
    let folder = Folder::new();
    let (source, target) = (folder.path("a.db"), folder.path("b.db"));
    let mut python = Python::start();
    python.sql(&source, &["create table t(k text collate nocase primary key not null, v)"]);
    python.sql(&source, &["insert into t values ('B', 1), ('a', 0.1 + 0.2), ('c', 'x'), ('same', x'00')"]);
    let schema = tables_of(&source).remove(0);
    drop(SqliteSink::open(&target, "s", "log").unwrap());
    let all = compare_tables(&source, &target, &schema).unwrap();
    assert_eq!((all.rows, all.missing_rows), (4, 4));
    python.sql(&target, &["create table t(k text primary key not null, v)"]);
    python.sql(&target, &["insert into t values ('B', 1.0), ('a', 0.3), ('d', 'x'), ('same', x'00')"]);
    let diff = compare_tables(&source, &target, &schema).unwrap();
    let key = |k: &str| vec![Value::Text(k.into())];
    assert_eq!((diff.missing.clone(), diff.extra.clone()), (vec![key("c")], vec![key("d")]));
    assert_eq!(diff.differing, [key("B"), key("a")]);
    assert_eq!(recheck(&source, &target, &schema, &diff).unwrap(), diff);
    python.sql(&target, &["delete from t where k = 'd'", "update t set v = 1 where k = 'B'"]);
    let still = recheck(&source, &target, &schema, &diff).unwrap();
    assert_eq!((still.missing, still.extra, still.differing), (vec![key("c")], vec![], vec![key("a")]));
}
