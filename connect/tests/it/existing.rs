//! Tables that a target has before a sync writes to them: refused, merged into, replaced. All three kinds of target, the
//! worker over a real log.

use std::{path::Path, sync::Arc};

use tidemill_connect::{
    ErrorKind, Result,
    change::{Change, Column, Op, TableSchema, Value},
    connector::{Level, SinkConnector, TopicChanges},
    converter::TopicSchema,
    sync::{
        check::check,
        file::{SyncSpec, load},
        known::Known,
        plan::plan,
        run::{RunOptions, run},
    },
    types::Dialect,
};
use tidemill_core::{
    clock::{Clock, SystemClock},
    engine::{Config, Engine},
    log::{Caller, Embedded, Log},
    storage::OsStorage,
};
use tokio::sync::watch;

use crate::{
    servers::{MariaDb, PASSWORD, Postgres, SINK},
    support::{Folder, Python},
    worker::Silent,
};

/// A SQLite source, a log, and a target of some kind.
struct Bench {
    folder: Folder,
    engine: Arc<Engine>,
    python: Python,
    server: Option<(bool, String)>,
}

const KINDS: [&str; 3] = ["postgres", "mariadb", "sqlite"];

impl Bench {
    fn new(kind: &str) -> Self {
        let (folder, mut python) = (Folder::new(), Python::start());
        let rows = "insert into t values (1, 'a'), (2, 'b'), (3, 'c')";
        python.sql(&folder.path("source.db"), &["create table t(id integer primary key, v text)", rows]);
        let server = match kind {
            "postgres" => Some((true, Postgres::shared().fresh_database())),
            "mariadb" => Some((false, MariaDb::shared().fresh_database())),
            _ => None,
        };
        let (clock, storage) = (Arc::new(SystemClock::default()), Arc::new(OsStorage));
        let engine = Engine::open(&folder.path("data"), Config::default(), storage, clock).unwrap();
        Self { folder, engine: Arc::new(engine), python, server }
    }

    fn spec(&self, on_existing: &str) -> SyncSpec {
        let to = match &self.server {
            None => "'sqlite:target.db'".to_owned(),
            Some((true, db)) => format!("{{ url = '{}', password = '{PASSWORD}' }}", Postgres::shared().url(SINK, db)),
            Some((false, db)) => format!("{{ url = '{}', password = '{PASSWORD}' }}", MariaDb::shared().url(SINK, db)),
        };
        let file = self.folder.path("sync.toml");
        let text =
            format!("[sync.s]\nfrom = 'sqlite:source.db'\nto = {to}\ntables = ['*']\non_existing = '{on_existing}'\n");
        std::fs::write(&file, text).unwrap();
        load(&file).unwrap().remove(0)
    }

    fn sink(&self, on_existing: &str) -> Box<dyn SinkConnector> {
        self.spec(on_existing).sink().unwrap()
    }

    async fn run(&self, on_existing: &str, recopy: &[&str]) -> Result<()> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let session = Embedded::new(Arc::clone(&self.engine)).session(Caller::internal("test")).await.unwrap();
        let recopy = recopy.iter().map(|name| (*name).to_owned()).collect();
        let options = RunOptions { once: true, recopy, ..RunOptions::default() };
        let (_told, stop) = watch::channel(false);
        run(session, clock, &self.spec(on_existing), &options, Arc::new(Silent), Arc::default(), stop).await
    }

    fn source(&mut self, sql: &str) {
        self.python.sql(&self.folder.path("source.db"), &[sql]);
    }

    fn exec(&mut self, sql: &str) {
        match &self.server {
            None => drop(sqlite_rows(&self.folder.path("target.db"), sql)),
            Some((true, db)) => drop(Postgres::shared().query_as(SINK, db, sql).unwrap()),
            Some((false, db)) => drop(MariaDb::shared().query_as(SINK, db, sql).unwrap()),
        }
    }

    /// Rows of a query as `a|b`, by the target's own client.
    fn rows(&self, sql: &str) -> Vec<String> {
        let rows = match &self.server {
            None => return sqlite_rows(&self.folder.path("target.db"), sql),
            Some((true, db)) => Postgres::shared().query_as(SINK, db, sql).unwrap(),
            Some((false, db)) => MariaDb::shared().query_as(SINK, db, sql).unwrap(),
        };
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "~".into());
        rows.into_iter().map(|row| row.into_iter().map(cell).collect::<Vec<_>>().join("|")).collect()
    }

    /// A table that fits, with a column of its own and a row that the source does not have.
    fn table_of_others(&mut self) {
        let (number, text) = match &self.server {
            None => ("integer", "text"),
            Some((true, _)) => ("bigint", "text"),
            Some((false, _)) => ("bigint", "longtext"),
        };
        self.exec(&format!("create table t (id {number} not null primary key, v {text}, extra int default 7)"));
        self.exec("insert into t (id, v) values (2, 'old'), (9, 'mine')");
    }
}

fn sqlite_rows(path: &Path, sql: &str) -> Vec<String> {
    let output = std::process::Command::new("sqlite3").args(["-batch", "-nullvalue", "~"]).arg(path).arg(sql).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_keeps_what_only_the_target_has() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        bench.table_of_others();
        let error = bench.run("refuse", &[]).await.expect_err(kind);
        assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("holds rows"), "{kind}: {error}");
        let findings = check(&bench.spec("merge"), &[], &Known::default(), &RunOptions::default()).await.findings;
        let merges = |said: &str| said.contains("written over those of the same key, all others stay");
        assert!(findings.iter().any(|f| f.level == Level::Warn && merges(&f.message)), "{kind}: {findings:?}");
        assert!(findings.iter().all(|f| f.ok), "{kind}: {findings:?}");
        let planned = plan(&bench.spec("merge")).await.unwrap();
        assert!(planned.tables[0].existing.as_deref().is_some_and(merges), "{kind}: {planned:?}");
        let planned = plan(&bench.spec("replace")).await.unwrap();
        assert!(planned.tables[0].existing.as_deref().is_some_and(|said| said.contains("dropped")), "{planned:?}");
        let planned = plan(&bench.spec("refuse")).await.unwrap();
        assert!(planned.tables[0].existing.as_deref().is_some_and(|said| said.contains("holds rows")), "{planned:?}");

        bench.run("merge", &[]).await.unwrap();
        let all = "select id, v, extra from t order by id";
        assert_eq!(bench.rows(all), ["1|a|7", "2|b|7", "3|c|7", "9|mine|7"], "{kind}");
        // A new copy drops nothing: what the source lost goes, what only the target has stays.
        bench.source("delete from t where id = 3");
        bench.source("alter table t add column w int");
        bench.source("update t set w = 5 where id = 2");
        bench.run("merge", &["t"]).await.unwrap();
        assert_eq!(
            bench.rows("select id, v, extra, w from t order by id"),
            ["1|a|7|~", "2|b|7|5", "9|mine|7|~"],
            "{kind}"
        );
        // The table is the sync's own by now: the word replaces nothing any more.
        bench.source("insert into t values (4, 'd', 1)");
        bench.run("replace", &[]).await.unwrap();
        assert_eq!(bench.rows("select id from t order by id"), ["1", "2", "4", "9"], "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_does_not_fit_is_not_merged_into() {
    for kind in KINDS {
        for (columns, row) in [
            ("id int not null, v int, primary key (id)", "9, 9"),
            ("v varchar(20) not null, primary key (v)", "'1'"),
            ("id int not null primary key, v text, needed int not null", "9, '9', 1"),
        ] {
            let mut bench = Bench::new(kind);
            bench.exec(&format!("create table t ({columns})"));
            bench.exec(&format!("insert into t values ({row})"));
            let findings = check(&bench.spec("merge"), &[], &Known::default(), &RunOptions::default()).await.findings;
            let refused = findings.iter().find(|f| f.level == Level::Refuse).expect(kind);
            assert!(refused.message.contains("merged into"), "{kind}: {refused:?}");
            let error = bench.run("merge", &[]).await.expect_err(kind);
            assert_eq!(error.kind(), ErrorKind::Conflict, "{kind}: {error}");
            assert_eq!(bench.rows("select count(*) from t"), ["1"], "{kind}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replace_drops_once_and_only_what_is_not_its_own() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        bench.exec("create table t (x int)");
        bench.exec("insert into t values (9)");
        bench.run("replace", &[]).await.unwrap();
        assert_eq!(bench.rows("select id, v from t order by id"), ["1|a", "2|b", "3|c"], "{kind}");
        // A restart finds its own table. A row put there by hand tells whether it was made anew.
        bench.exec("insert into t values (10, 'by hand')");
        bench.run("replace", &[]).await.unwrap();
        assert_eq!(bench.rows("select id from t order by id"), ["1", "2", "3", "10"], "{kind}");
    }
}

/// A target that was behind when a table was copied anew has rows whose deletes belong to the older copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_of_an_older_copy_reaches_a_merged_table() {
    let mut bench = Bench::new("sqlite");
    bench.table_of_others();
    bench.run("merge", &[]).await.unwrap();
    let (target, kept) = (bench.folder.path("target.db"), bench.folder.path("kept.db"));
    bench.python.sql(&target, &[&format!("vacuum into '{}'", kept.display())]);
    bench.source("delete from t where id = 3");
    bench.run("merge", &[]).await.unwrap();
    assert_eq!(bench.rows("select id from t order by id"), ["1", "2", "9"]);
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{ending}", target.display()));
    }
    std::fs::rename(&kept, &target).unwrap();
    assert_eq!(bench.rows("select id from t order by id"), ["1", "2", "3", "9"]);
    bench.run("merge", &["t"]).await.unwrap();
    assert_eq!(bench.rows("select id from t order by id"), ["1", "2", "9"]);
}

fn schema(sync: &str, id: u64) -> Arc<TopicSchema> {
    let column = |name: &str, declared: &str, key| Column {
        name: name.into(),
        declared_type: declared.into(),
        not_null: key,
        key: key.then_some(0),
    };
    let columns = vec![column("id", "INTEGER", true), column("v", "TEXT", false)];
    let table = TableSchema { schema: None, name: "t".into(), columns };
    Arc::new(TopicSchema { id, ..TopicSchema::draft(sync, Dialect::Sqlite, &table) })
}

fn rows(schema: &Arc<TopicSchema>, ids: std::ops::Range<i64>) -> Vec<TopicChanges> {
    let change = |id| {
        let row = vec![Value::Integer(id), Value::Text("new".into())];
        Change { table: 0, op: Op::Read, key: vec![row[0].clone()], before: None, after: Some(row), sequence: 0 }
    };
    vec![TopicChanges { schema: Arc::clone(schema), changes: ids.map(change).collect() }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merge_goes_on_after_a_kill_and_a_table_of_another_sync_is_refused() {
    for kind in KINDS {
        let mut bench = Bench::new(kind);
        bench.table_of_others();
        bench.exec("insert into t (id, v) values (2500, 'old'), (9000, 'mine')");
        let schema_s = schema("s", 1);
        for (ids, next) in [(0..2000, 2000), (2000..4000, 4000)] {
            let mut sink = bench.sink("merge").open("s", "L").await.unwrap();
            sink.positions().await.unwrap();
            sink.check(&[(*schema_s).clone()]).await.unwrap();
            sink.put(rows(&schema_s, ids), vec![("s.t".into(), next)]).await.unwrap();
        }
        assert_eq!(bench.rows("select count(*), min(v), max(id) from t"), ["4001|mine|9000"], "{kind}");
        let other = schema("two", 2);
        for on_existing in ["merge", "replace"] {
            let to = bench.sink(on_existing);
            let mut findings = to.preflight("two", "L", &[(*other).clone()]).await.unwrap();
            findings.extend(to.existing("two", "L", &[(*other).clone()]).await.unwrap());
            assert!(findings.iter().any(|f| !f.ok && f.message.contains("written by sync s")), "{kind}: {findings:?}");
            let mut sink = to.open("two", "L").await.unwrap();
            sink.positions().await.unwrap();
            let error = sink.check(&[(*other).clone()]).await.unwrap_err();
            assert!(error.to_string().contains("is written by sync s of this log"), "{kind}: {error}");
            assert_eq!(error.kind(), ErrorKind::Conflict, "{kind}");
            let put = sink.put(rows(&other, 0..1), vec![("two.t".into(), 1)]).await;
            assert_eq!(put.unwrap_err().kind(), ErrorKind::Conflict, "{kind}");
        }
        assert_eq!(bench.rows("select count(*) from t"), ["4001"], "{kind}");
        // Another log's table is refused a merge, and given up by a replace.
        let mut sink = bench.sink("merge").open("two", "M").await.unwrap();
        sink.positions().await.unwrap();
        assert!(sink.check(&[(*other).clone()]).await.unwrap_err().to_string().contains("of another log"), "{kind}");
        let mut sink = bench.sink("replace").open("two", "M").await.unwrap();
        sink.positions().await.unwrap();
        sink.put(rows(&other, 0..1), vec![("two.t".into(), 1)]).await.unwrap();
        assert_eq!(bench.rows("select id, v from t"), ["0|new"], "{kind}");
        assert_eq!(bench.rows("select sync from _tidemill_sync"), ["two"], "{kind}");
    }
}
