//! Each trap of the field notes, one test each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidemill_connect::change::{Change, Op, Value};
use tidemill_connect::connector::Level;
use tidemill_connect::sqlite::triggers::Variant;
use tidemill_connect::sqlite::{self, Capture, preflight};

use crate::support::{Folder, Follower, Python, tables_of};

struct Bench {
    folder: Folder,
    python: Python,
    path: PathBuf,
}

impl Bench {
    fn new(statements: &[&str]) -> Self {
        let folder = Folder::new();
        let (path, mut python) = (folder.path("source.db"), Python::start());
        python.sql(&path, statements);
        Self { folder, python, path }
    }

    fn sql(&mut self, statements: &[&str]) -> Vec<Vec<Json>> {
        self.python.sql(&self.path, statements)
    }

    /// A follower past its copy.
    fn follow(&self) -> Follower {
        let mut follower = Follower::install(&self.path, Variant::Exact);
        follower.confirm();
        follower.read_all(1000).unwrap();
        follower
    }
}

fn read(follower: &mut Follower) -> Vec<Change> {
    follower.capture.read(Duration::from_secs(1), 1000).unwrap().changes
}

fn ops(changes: &[Change]) -> Vec<Op> {
    changes.iter().map(|change| change.op).collect()
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

#[test]
fn replace_through_another_unique_index_deletes_the_displaced_row() {
    let mut bench = Bench::new(&["create table t(id integer primary key, u unique)", "insert into t values (1, 'x')"]);
    let mut follower = bench.follow();
    bench.sql(&["insert or replace into t values (2, 'x')"]);
    let changes = read(&mut follower);
    assert_eq!(ops(&changes), [Op::Delete, Op::Create]);
    assert_eq!(changes[0].before, Some(vec![Value::Integer(1), text("x")]));
    assert_eq!(changes[1].key, [Value::Integer(2)]);
    assert!(changes[0].sequence < changes[1].sequence);
}

#[test]
fn an_application_trigger_made_later_does_not_reverse_events() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let mut follower = bench.follow();
    // No read between: the application's trigger is the newest and fires first.
    bench.sql(&[
        "create trigger app after insert on t begin update t set v = 'stamped' where id = new.id; end",
        "insert into t(v) values ('raw')",
    ]);
    let changes = read(&mut follower);
    assert_eq!(ops(&changes), [Op::Create]);
    assert_eq!(changes[0].after, Some(vec![Value::Integer(1), text("stamped")]));
}

#[test]
fn without_the_top_that_insert_would_come_as_an_update() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let mut follower = Follower::install(&bench.path, Variant::NoTop);
    follower.read_all(1000).unwrap();
    bench.sql(&[
        "create trigger app after insert on t begin update t set v = 'stamped' where id = new.id; end",
        "insert into t(v) values ('raw')",
    ]);
    assert_eq!(ops(&read(&mut follower)), [Op::Update]);
}

#[test]
fn an_ignoring_trigger_made_later_is_overtaken_at_the_next_read() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let mut follower = bench.follow();
    bench.sql(&["create trigger app after insert on t begin select raise(ignore); end"]);
    read(&mut follower);
    bench.sql(&["insert into t(v) values ('kept')"]);
    assert_eq!(ops(&read(&mut follower)), [Op::Create]);
}

#[test]
fn a_row_displaced_by_an_update_that_vanishes_is_found_by_the_prune() {
    let mut bench = Bench::new(&[
        "create table t(id integer primary key, p references t(id) on delete cascade)",
        "insert into t values (3, null), (5, 3)",
    ]);
    let mut follower = bench.follow();
    // Displacing 3 deletes its child 5, the row being updated: the statement ends without AFTER UPDATE.
    bench.sql(&["pragma foreign_keys = on", "update or replace t set id = 3 where id = 5"]);
    assert!(bench.sql(&["select * from t"]).is_empty());
    let mut changes = read(&mut follower);
    follower.confirm();
    follower.capture.prune().unwrap();
    changes.extend(read(&mut follower));
    assert_eq!(ops(&changes), [Op::Delete, Op::Delete]);
}

#[test]
fn values_of_every_class_arrive_bit_for_bit() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let mut follower = bench.follow();
    for value in [
        "x'00ff'",
        "0.1 + 0.2",
        "9e999",
        "-9e999",
        "cast(x'ff41' as text)",
        "cast(x'610062' as text)",
        "9223372036854775807",
        "-9223372036854775807 - 1",
        "''",
        "x''",
        "null",
    ] {
        bench.sql(&[&format!("insert into t(v) values ({value})")]);
    }
    let values: Vec<Value> = read(&mut follower).into_iter().map(|c| c.after.unwrap()[1].clone()).collect();
    let expected = vec![
        Value::Blob(vec![0, 255]),
        Value::Real(0.1 + 0.2),
        Value::Real(f64::INFINITY),
        Value::Real(f64::NEG_INFINITY),
        Value::InvalidText(vec![0xff, 0x41]),
        text("a\0b"),
        Value::Integer(i64::MAX),
        Value::Integer(i64::MIN),
        text(""),
        Value::Blob(vec![]),
        Value::Null,
    ];
    assert_eq!(values, expected);
}

#[test]
fn sequences_go_on_after_a_prune_and_no_sqlite_sequence_is_left() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let mut follower = bench.follow();
    bench.sql(&["insert into t(v) values (1)"]);
    let first = read(&mut follower)[0].sequence;
    follower.confirm();
    // One journal row, two states: the row's, and "absent" for -1, which is what BEFORE INSERT sees of a rowid to come.
    assert_eq!(follower.capture.prune().unwrap(), sqlite::Pruned::Rows { rows: 3, more: false });
    let position = follower.capture.position().clone();
    follower.capture.confirm(&position).unwrap();
    bench.sql(&["insert into t(v) values (2)"]);
    assert!(read(&mut follower)[0].sequence > first);
    assert!(bench.sql(&["select name from sqlite_schema where name = 'sqlite_sequence'"]).is_empty());
}

#[test]
fn drop_column_is_refused_with_the_cure_in_the_message() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)"]);
    let _follower = bench.follow();
    let error = bench.python.sql_error(&bench.path, "alter table t drop column v");
    assert!(error.contains("tidemill sync release FILE t; alter it; tidemill sync run FILE --recopy t"), "{error}");
}

#[test]
fn uninstall_leaves_the_schema_as_it_was() {
    let schema = "select type, name, tbl_name, sql from sqlite_schema order by 1, 2";
    let mut bench = Bench::new(&[
        "create table \"odd \"\"name'\"(id text primary key, \"select\" unique)",
        "create table t(id integer primary key, v)",
        "create trigger app after insert on t begin select 1; end",
    ]);
    let before = bench.sql(&[schema]);
    drop(bench.follow());
    assert_ne!(bench.sql(&[schema]), before);
    sqlite::uninstall(&bench.path, Some(&["t".into()])).unwrap();
    assert_ne!(bench.sql(&[schema]), before);
    sqlite::uninstall(&bench.path, Some(&["odd \"name'".into()])).unwrap();
    assert_eq!(bench.sql(&[schema]), before);
    drop(bench.follow());
    sqlite::uninstall(&bench.path, None).unwrap();
    assert_eq!(bench.sql(&[schema]), before);
}

#[test]
fn keys_that_compare_equal_but_differ_in_bytes_move() {
    let mut bench = Bench::new(&[
        "create table n(k text collate nocase primary key not null, v)",
        "create table u(k primary key not null, v)",
        "insert into n values ('a', 1)",
        "insert into u values (1, 1)",
    ]);
    let mut follower = bench.follow();
    bench.sql(&["update n set k = 'A'", "update u set k = 1.0"]);
    let changes = read(&mut follower);
    assert_eq!(ops(&changes), [Op::Delete, Op::Create, Op::Delete, Op::Create]);
    assert_eq!(changes[1].key, [text("A")]);
    assert_eq!((&changes[2].key[..], &changes[3].key[..]), (&[Value::Integer(1)][..], &[Value::Real(1.0)][..]));
}

#[test]
fn an_update_that_changes_nothing_is_no_event() {
    let mut bench = Bench::new(&["create table t(id integer primary key, v)", "insert into t values (1, 'x')"]);
    let mut follower = bench.follow();
    bench.sql(&["update t set v = 'x'"]);
    assert!(read(&mut follower).is_empty());
}

#[test]
fn our_triggers_do_not_inherit_the_statements_conflict_clause() {
    let mut bench = Bench::new(&["create table t(id integer primary key, u unique)", "insert into t values (1, 'x')"]);
    let mut follower = bench.follow();
    bench.sql(&[
        "begin",
        "insert or rollback into t values (2, 'y')",
        "update or rollback t set u = 'z' where id = 2",
        "update or rollback t set u = 'zz' where id = 2",
        "commit",
    ]);
    assert_eq!(ops(&read(&mut follower)), [Op::Create, Op::Update, Op::Update]);
}

#[test]
fn a_null_in_a_key_stops_the_capture_and_names_the_table() {
    let mut bench = Bench::new(&["create table t(k text primary key, v)"]);
    let mut follower = bench.follow();
    bench.sql(&["insert into t values (null, 1)"]);
    let error = follower.capture.read(Duration::from_secs(1), 10).unwrap_err().to_string();
    assert!(error.contains("NULL") && error.contains("tidemill sync run FILE --recopy t"), "{error}");
}

#[test]
fn preflight_refuses_by_name_and_names_the_cure() {
    let bench = Bench::new(&[
        "create table nokey(v)",
        "create table nullkey(k text primary key)",
        "insert into nullkey values (null), (null)",
        "create table part(id integer primary key, u)",
        "create unique index part_u on part(u) where u > 1",
        "create table expr(id integer primary key, u)",
        "create unique index expr_u on expr(lower(u))",
        "create table dflt(id integer primary key, u text not null default 'x' unique)",
        "create table fine(id integer primary key)",
        "create view v as select 1",
    ]);
    let tables = tables_of(&bench.path);
    assert!(tables.iter().all(|table| table.name != "v"));
    let conn = sqlite::open_source(&bench.path).unwrap();
    let findings = preflight(&conn, &tables).unwrap();
    for (table, message, cure) in [
        ("nokey", "no primary key", "CREATE TABLE"),
        ("nullkey", "2 rows", "WHERE \"k\" IS NULL"),
        ("part", "partial", "DROP INDEX \"part_u\""),
        ("expr", "expression", "DROP INDEX \"expr_u\""),
        ("dflt", "default", "rebuild"),
    ] {
        let found = findings.iter().find(|f| f.subject == table).unwrap();
        assert_eq!(found.level, Level::Refuse, "{table}");
        assert!(found.message.contains(message), "{found:?}");
        assert!(found.cure.as_ref().unwrap().contains(cure), "{found:?}");
        let schema = tables.iter().find(|t| t.name == table).unwrap().clone();
        if table != "nullkey" {
            assert!(Capture::open(&bench.path, vec![schema], None, &[]).is_err(), "{table}");
        }
    }
    assert_eq!(findings.iter().find(|f| f.subject == "fine").unwrap().level, Level::Ok);
    let same = sqlite::preflight::check_target_is_not_source(&bench.path, &bench.path);
    assert!(!same.ok);
}

#[test]
fn a_pattern_without_a_table_names_the_nearest() {
    let bench =
        Bench::new(&["create table orders(id integer primary key)", "create table items(id integer primary key)"]);
    let tables = tables_of(&bench.path);
    assert_eq!(sqlite::match_tables(&["*".into()], &tables).unwrap().len(), 2);
    assert_eq!(sqlite::match_tables(&["ORD*".into(), "orders".into()], &tables).unwrap().len(), 1);
    let error = sqlite::match_tables(&["order".into()], &tables).unwrap_err();
    assert!(error.to_string().contains("\"orders\""), "{error}");
}

#[test]
fn the_cost_of_the_triggers_is_printed() {
    let mut bench =
        Bench::new(&["create table t(id integer primary key, a text, b int, c real)", "pragma synchronous=off"]);
    let insert = json!({"cmd": "time", "path": bench.path, "count": 20000,
        "sql": "insert into t(a, b, c) values ('some text', ?, 1.5)"});
    let update =
        json!({"cmd": "time", "path": bench.path, "count": 20000, "sql": "update t set b = b + 1 where id = ? + 1"});
    let mut figures = Vec::new();
    for _ in 0..2 {
        figures.push((bench.python.call(&insert).as_f64().unwrap(), bench.python.call(&update).as_f64().unwrap()));
        let _ = Capture::open(&bench.path, tables_of(&bench.path), None, &[]).unwrap();
    }
    println!(
        "microseconds per (insert, update), python's library: {:?} without, {:?} with capture",
        figures[0], figures[1]
    );
    // The second of an order of magnitude that a defect (a missing index) would pass.
    assert!(figures[1].0 < 500.0 && figures[1].1 < 500.0, "{figures:?}");
}

#[test]
fn every_row_of_chinook_is_copied_while_it_is_written() {
    let real = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chinook/Chinook_Sqlite.sqlite"));
    if !real.exists() {
        println!("skipped: {} is not there", real.display());
        return;
    }
    let mut bench = Bench::new(&["pragma journal_mode"]);
    std::fs::copy(real, &bench.path).unwrap();
    std::fs::set_permissions(&bench.path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    bench.python.call(&json!({"cmd": "close", "path": bench.path}));
    let mut follower = Follower::install(&bench.path, Variant::Exact);
    follower.confirm();
    let target = bench.folder.path("target.db");
    let mut sink = sqlite::SqliteSink::open(&target, "s", "log").unwrap();
    let mut round = 0;
    while follower.read(Duration::from_millis(15), 500).unwrap() {
        round += 1;
        follower.apply(&mut sink);
        bench.python.sql(
            &bench.path,
            &[
                &format!("update Track set Milliseconds = Milliseconds + 1 where TrackId % 97 = {round} % 97"),
                &format!("insert into Genre(GenreId, Name) values ({round} + 1000, 'made')"),
                &format!("delete from PlaylistTrack where TrackId = {round} * 7"),
            ],
        );
        assert!(round < 2000);
    }
    follower.read_all(1000).unwrap();
    follower.apply(&mut sink);
    follower.check_contents().unwrap();
    assert!(round > 5 && follower.tables.len() == 11);
    let difference = bench.python.difference(&bench.path, &target, &follower.tables);
    assert_eq!(difference, json!([]));
}
