//! The judge that other tests rely on: it forgives spelling and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::judge::{self, Class, Side, normal};
use crate::servers::{Folder, MariaDb, Postgres, chinook, client};

const POSTGRES: &str = "create table t(id bigint primary key, name text, amount numeric(30, 10), at timestamptz, flag boolean, \
    data bytea, weight real, size double precision, doc jsonb, mark uuid, code char(5))";
const MARIADB: &str = "create table t(id bigint primary key, name text, amount decimal(30, 10), at timestamp(6), flag boolean, \
    data blob, weight float, size double, doc json, mark uuid, code char(5)) default charset utf8mb4";
const SQLITE: &str = "create table t(id integer primary key, name text, amount text, at text, flag boolean, \
    data blob, weight real, size real, doc text, mark text, code text)";

/// Rows in SQL that all three read alike; `BYTES(..)` stands for each one's way to write bytes.
const ROWS: &str = "insert into t values \
    (1, 'plain', '12345678901234567890.5', '2026-01-02 03:04:05.120000', true, BYTES(00ff61), 0.1, 1e300, '{\"b\": 1, \"a\": [1, null]}', '01234567-89ab-4def-8123-456789abcdef', 'ab'), \
    (2, 'Žluť 🌊 <&> ''x''', '-0.0000000001', '1999-12-31 23:59:59', false, BYTES(), -3.5, 0.1, '[]', 'fedcba98-7654-4210-8edc-ba9876543210', 'abcde'), \
    (3, '', 0, '2000-01-01 00:00:00', true, null, null, null, null, null, ''), \
    (4, null, null, null, null, null, null, null, null, null, null), \
    (9223372036854775807, 'NULL', 7, '2026-06-15 12:00:00', false, BYTES(27), 16777216, 5e-324, '\"x\"', null, 'x y')";

fn bytes_written(sql: &str, open: &str, close: &str) -> String {
    let mut parts = sql.split("BYTES(");
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |sql, part| {
        let (digits, rest) = part.split_once(')').unwrap();
        sql + open + digits + close + rest
    })
}

fn for_postgres(sql: &str) -> String {
    bytes_written(sql, "decode('", "', 'hex')")
}

fn for_the_others(sql: &str) -> String {
    bytes_written(sql, "x'", "'")
}

fn sqlite_exec(path: &Path, sql: &str) {
    client::run(Command::new("sqlite3").arg("-bail").arg(path), sql.as_bytes()).unwrap();
}

/// The same table in all three.
struct Three {
    postgres: (&'static Postgres, String),
    mariadb: (&'static MariaDb, String),
    folder: Folder,
}

impl Three {
    fn new() -> Self {
        let (postgres, mariadb) = (Postgres::shared(), MariaDb::shared());
        let three = Self {
            postgres: (postgres, postgres.fresh_database()),
            mariadb: (mariadb, mariadb.fresh_database()),
            folder: Folder::new(),
        };
        postgres.exec(&three.postgres.1, &format!("{POSTGRES}; {}", for_postgres(ROWS)));
        mariadb.exec(&three.mariadb.1, &format!("{MARIADB}; {}", for_the_others(ROWS)));
        sqlite_exec(&three.file(), &format!("pragma journal_mode = wal; {SQLITE}; {}", for_the_others(ROWS)));
        three
    }

    fn file(&self) -> PathBuf {
        self.folder.path("t.db")
    }

    /// Runs a statement in one of them only, and takes back all rows afterwards.
    fn sabotage(&self, which: usize, sql: &str, expect: &[&str]) {
        let file = self.file();
        let sides = [
            Side::Postgres(self.postgres.0, &self.postgres.1, "t"),
            Side::MariaDb(self.mariadb.0, &self.mariadb.1, "t"),
            Side::Sqlite(&file, "t"),
        ];
        let run = |sql: &str| match which {
            0 => self.postgres.0.exec(&self.postgres.1, &for_postgres(sql)),
            1 => self.mariadb.0.exec(&self.mariadb.1, &for_the_others(sql)),
            _ => sqlite_exec(&file, &for_the_others(sql)),
        };
        run(sql);
        let (left, right) = (sides[(which + 1) % 3], sides[which]);
        let found = judge::differences(left, right);
        let said = found.len() == 1 && expect.iter().all(|part| found[0].contains(part));
        assert!(said, "{sql} in {right}: expected {expect:?}, found {found:#?}");
        run(&format!("delete from t; {ROWS}"));
    }
}

#[test]
fn equal_tables_are_equal_between_all_three() {
    let three = Three::new();
    let file = three.file();
    let postgres = Side::Postgres(three.postgres.0, &three.postgres.1, "t");
    let mariadb = Side::MariaDb(three.mariadb.0, &three.mariadb.1, "t");
    let sqlite = Side::Sqlite(&file, "t");
    for (left, right) in [(postgres, mariadb), (mariadb, sqlite), (sqlite, postgres), (postgres, postgres)] {
        judge::assert_equal(left, right);
    }
    let table = judge::read(postgres);
    assert_eq!((table.rows.len(), table.columns.len()), (5, 11));
    let keys: Vec<_> = table.columns.iter().filter(|column| column.key).map(|column| column.name.as_str()).collect();
    assert_eq!(keys, ["id"]);
}

/// A judge that cannot say no is worth nothing: each of these must be told.
#[test]
fn every_sabotage_is_told() {
    let three = Three::new();
    for which in 0..3 {
        three.sabotage(which, "delete from t where id = 2", &["only in"]);
        three.sabotage(which, "update t set name = 'plain ' where id = 1", &["name", "\"plain\"", "\"plain \""]);
        three.sabotage(which, "update t set name = 'Plain' where id = 1", &["name"]);
        three.sabotage(which, "update t set name = null where id = 3", &["name", "NULL", "\"\""]);
        three.sabotage(which, "update t set name = '' where id = 4", &["name", "NULL"]);
        three.sabotage(which, "update t set amount = '12345678901234567890.5000000001' where id = 1", &["amount"]);
    }
    let others = [
        ("insert into t(id, name) values (5, 'more')", "only in"),
        ("update t set name = null where id = 9223372036854775807", "name"),
        ("update t set amount = 0 where id = 2", "amount"),
        ("update t set at = '2026-01-02 03:04:05.120001' where id = 1", "at"),
        ("update t set flag = null where id = 2", "flag"),
        ("update t set flag = false where id = 1", "flag"),
        ("update t set data = BYTES(00ff62) where id = 1", "data"),
        ("update t set data = null where id = 2", "data"),
        ("update t set weight = 0.2 where id = 1", "weight"),
        ("update t set size = 0.10000000000000002 where id = 2", "size"),
        ("update t set doc = '{\"b\": 1, \"a\": [null, 1]}' where id = 1", "doc"),
        ("update t set code = 'xy' where id = 9223372036854775807", "code"),
    ];
    for (i, (sql, expect)) in others.into_iter().enumerate() {
        three.sabotage(i % 3, sql, &[expect]);
    }
}

#[test]
fn a_missing_column_or_table_and_a_doubled_row_are_told() {
    let (server, folder) = (Postgres::shared(), Folder::new());
    let db = server.fresh_database();
    let file = folder.path("t.db");
    server.exec(&db, "create table t(a int, b text); insert into t values (1, 'x'), (1, 'x')");
    sqlite_exec(&file, "create table t(b text, a int); insert into t values ('x', 1), ('x', 1)");
    let (left, right) = (Side::Postgres(server, &db, "t"), Side::Sqlite(&file, "t"));
    judge::assert_equal(left, right);
    sqlite_exec(&file, "insert into t values ('x', 1)");
    assert_eq!(judge::differences(left, right), ["row (\"1\", \"x\") is only in SQLite t"]);
    sqlite_exec(&file, "alter table t drop column a");
    assert_eq!(judge::differences(left, right), [format!("column a is only in PostgreSQL {db}.t")]);
    assert!(judge::differences(left, Side::Sqlite(&file, "none")).iter().any(|line| line.contains("does not exist")));
}

#[test]
fn numbers_are_compared_by_exact_decimal_value() {
    for (a, b) in [("1", "1.000"), ("-0.0", "0"), ("+1.50e1", "15"), ("1e-3", ".001"), ("00012", "12"), ("1E3", "1000")]
    {
        assert_eq!(normal(Class::Number, a), normal(Class::Number, b), "{a} {b}");
    }
    for (a, b) in [("1", "10"), ("1", "-1"), ("0.1", "0.10000000000000000001"), ("NaN", "0"), ("1e3", "1e4")] {
        assert_ne!(normal(Class::Number, a), normal(Class::Number, b), "{a} {b}");
    }
}

#[test]
fn times_have_one_spelling() {
    for text in ["2026-01-02 03:04:05.5", "2026-01-02T03:04:05.500000Z", "2026-01-02 03:04:05.500+00"] {
        assert_eq!(normal(Class::Timestamp, text), "2026-01-02 03:04:05.5");
    }
    assert_eq!(normal(Class::Timestamp, "2026-01-02"), "2026-01-02 00:00:00");
    assert_eq!(normal(Class::Timestamp, "2026-01-02 03:04:00"), "2026-01-02 03:04:00");
    assert_ne!(normal(Class::Timestamp, "2026-01-02 03:04:05+02"), normal(Class::Timestamp, "2026-01-02 03:04:05"));
}

#[test]
fn chinook_is_as_its_three_dialects_say() {
    let (postgres, mariadb, folder) = (Postgres::shared(), MariaDb::shared(), Folder::new());
    let (left, right, file) = (postgres.fresh_database(), mariadb.fresh_database(), folder.path("chinook.db"));
    if chinook::postgres(postgres, &left).is_none() {
        return;
    }
    chinook::mariadb(mariadb, &right).unwrap();
    chinook::sqlite(&file).unwrap();
    // Their scripts have two traps. A town is written N'Edinburgh ', which PostgreSQL reads as text of fixed length and
    // strips of its blank; a backslash in a track's name is an escape to MariaDB alone.
    let town = |line: &String| line.ends_with(r#"city: "Edinburgh" | "Edinburgh ""#);
    let track = |line: &String| line.starts_with("row (") && line.contains("name: ");
    let (mut towns, mut tracks) = (0, 0);
    for (snake, camel) in chinook::TABLES {
        let (mariadb, sqlite) = (Side::MariaDb(mariadb, &right, camel), Side::Sqlite(&file, camel));
        let from_postgres = judge::differences(Side::Postgres(postgres, &left, snake), sqlite);
        let from_mariadb = judge::differences(mariadb, sqlite);
        assert!(from_postgres.iter().all(town), "{from_postgres:#?}");
        assert!(*snake == "track" && from_mariadb.iter().all(track) || from_mariadb.is_empty(), "{from_mariadb:#?}");
        towns += from_postgres.len();
        tracks += from_mariadb.len();
    }
    assert_eq!((towns, tracks), (8, 4));
    let rows = postgres.value(&left, "select count(*) from track").unwrap();
    assert_eq!(rows, "3503");
}
