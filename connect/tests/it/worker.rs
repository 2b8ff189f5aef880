//! The worker over a real log on a real disk: what reaches the topics, and what the target looks like.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemill_connect::converter::TopicSchema;
use tidemill_connect::sync::away::Side;
use tidemill_connect::sync::control::{Ask, Control};
use tidemill_connect::sync::file::{SyncSpec, load};
use tidemill_connect::sync::parked::parked_of;
use tidemill_connect::sync::recopy::resolve_recopy;
use tidemill_connect::sync::remove::remove;
use tidemill_connect::sync::run::{Observer, RunOptions, TableStart, run};
use tidemill_connect::sync::status::{State, Status};
use tidemill_core::clock::{Clock, SystemClock};
use tidemill_core::engine::{Config, Engine};
use tidemill_core::log::{Caller, Embedded, FetchOptions, Log, Session, Table};
use tidemill_core::record::FetchedRecord;
use tidemill_core::storage::OsStorage;
use tidemill_core::topic::TopicPartition;
use tidemill_core::{Error, ErrorKind};
use tokio::sync::watch;

use crate::gaps::Gaps;
use crate::support::{Folder, Python, tables_of};

/// Nobody looks on.
pub struct Silent;

impl Observer for Silent {
    fn started(&self, _: &str, _: &[TableStart]) {}
    fn copied(&self, _: usize, _: u64) {}
    fn finished(&self, _: usize) {}
    fn applied(&self, _: u64) {}
    fn caught_up(&self) {}
    fn waiting(&self, _: Side, _: &Error) {}
}

/// A folder with a source, a sync file and a log.
struct Bench {
    folder: Folder,
    engine: Arc<Engine>,
    spec: SyncSpec,
    /// The log is a cluster's instead.
    #[cfg(feature = "kafka")]
    cluster: Option<Arc<dyn Log>>,
}

impl Bench {
    fn new(statements: &[&str], python: &mut Python) -> Self {
        let folder = Folder::new();
        python.sql(&folder.path("source.db"), statements);
        Self::open(folder)
    }

    fn open(folder: Folder) -> Self {
        let file = folder.path("sync.toml");
        std::fs::write(&file, "[sync.s]\nfrom = 'sqlite:source.db'\nto = 'sqlite:target.db'\ntables = ['*']\n")
            .unwrap();
        let engine = open_log(&folder.path("data"));
        let spec = load(&file).unwrap().remove(0);
        Self {
            folder,
            engine,
            spec,
            #[cfg(feature = "kafka")]
            cluster: None,
        }
    }

    async fn session(&self) -> Arc<dyn Session> {
        #[cfg(feature = "kafka")]
        if let Some(cluster) = &self.cluster {
            return cluster.session(Caller::internal("test")).await.unwrap();
        }
        // Its offsets have gaps, as those of a cluster.
        let log = Gaps::new(Arc::new(Embedded::new(Arc::clone(&self.engine))));
        log.session(Caller::internal("test")).await.unwrap()
    }

    async fn run(&self, options: &RunOptions, stop: watch::Receiver<bool>) -> Result<(), Error> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        run(self.session().await, clock, &self.spec, options, Arc::new(Silent), Arc::default(), stop).await
    }

    async fn once(&self) -> Result<(), Error> {
        let (_told, stop) = watch::channel(false);
        self.run(&RunOptions { once: true, ..RunOptions::default() }, stop).await
    }

    /// Follows while `work` runs, then until the target equals the source; fails after 20 s.
    async fn follow(&self, python: &mut Python, recopy: &[&str], work: impl AsyncFnOnce(&Self, &mut Python)) {
        let (told, stop) = watch::channel(false);
        let recopy = recopy.iter().map(|s| s.to_string()).collect();
        let options = RunOptions { recopy, ..RunOptions::default() };
        let following = self.run(&options, stop);
        let driving = async {
            work(self, python).await;
            self.wait_equal(python).await;
            told.send(true).unwrap();
            Ok(())
        };
        tokio::try_join!(following, driving).unwrap();
    }

    async fn wait_equal(&self, python: &mut Python) {
        let started = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (source, target) = (self.folder.path("source.db"), self.folder.path("target.db"));
            let tables = tables_of(&source);
            let ready = target.exists() && tables_of(&target).len() >= tables.len();
            if ready && is_none(&python.difference(&source, &target, &tables)) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "not equal after 20 s");
        }
    }

    async fn end(&self, topic: &str) -> i64 {
        self.session().await.bounds(&[TopicPartition::new(topic, 0)]).await.unwrap()[0].durable_offset
    }

    async fn records(&self, topic: &str) -> Vec<FetchedRecord> {
        let session = self.session().await;
        let partition = TopicPartition::new(topic, 0);
        let end = session.bounds(std::slice::from_ref(&partition)).await.unwrap()[0].durable_offset;
        let (mut all, mut offset) = (Vec::new(), 0);
        while offset < end {
            let chunk = session.fetch(&partition, offset, &FetchOptions::default()).await.unwrap();
            all.extend(chunk.records);
            offset = chunk.next_offset;
        }
        all
    }

    /// The ops of a topic's events, tombstones as `-`.
    async fn ops(&self, topic: &str) -> String {
        let op = |record: FetchedRecord| match record.value {
            None => "-".to_owned(),
            Some(value) => {
                let event: serde_json::Value = serde_json::from_slice(&value).unwrap();
                event["op"].as_str().unwrap().to_owned()
            }
        };
        self.records(topic).await.into_iter().map(op).collect()
    }

    fn assert_equal(&self, python: &mut Python) {
        let (source, target) = (self.folder.path("source.db"), self.folder.path("target.db"));
        let difference = python.difference(&source, &target, &tables_of(&source));
        assert!(is_none(&difference), "{difference}");
    }
}

/// Tells when the target has all.
#[derive(Default)]
struct InStep(tokio::sync::Notify);

impl Observer for InStep {
    fn started(&self, _: &str, _: &[TableStart]) {}
    fn copied(&self, _: usize, _: u64) {}
    fn finished(&self, _: usize) {}
    fn applied(&self, _: u64) {}
    fn caught_up(&self) {
        self.0.notify_one();
    }
    fn waiting(&self, _: Side, _: &Error) {}
}

/// The halves are tasks of their own, and must not outlive the run.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_dropped_ends_both_halves() {
    let bench = Bench::new(&SHOP, &mut Python::start());
    let observer = Arc::new(InStep::default());
    let halves = Arc::downgrade(&observer);
    {
        let (_told, stop) = watch::channel(false);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let (options, session, told) = (RunOptions::default(), bench.session().await, Arc::clone(&observer));
        let running = run(session, clock, &bench.spec, &options, told, Arc::default(), stop);
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            () = observer.0.notified() => {}
        }
    }
    drop(observer);
    let started = Instant::now();
    while halves.strong_count() > 0 {
        assert!(started.elapsed() < Duration::from_secs(10), "a half goes on");
        tokio::task::yield_now().await;
    }
}

fn open_log(path: &Path) -> Arc<Engine> {
    let clock = Arc::new(SystemClock::default());
    Arc::new(Engine::open(path, Config::default(), Arc::new(OsStorage), clock).unwrap())
}

fn is_none(difference: &serde_json::Value) -> bool {
    difference.as_array().is_some_and(Vec::is_empty)
}

const SHOP: [&str; 4] = [
    "create table item (id integer primary key, name text, price numeric(10,2), picture blob)",
    "create table \"order line\" (o int, n int, item int, primary key (o, n)) without rowid",
    "insert into item values (1,'a',0.99,x'00ff'),(2,'b',1e300,null),(3,null,-0.0,x'')",
    "insert into \"order line\" values (1,1,1),(1,2,2)",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_again_writes_only_what_differs() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    let before = python.sql(&source, &["select count(*), group_concat(sql) from sqlite_schema"]);
    bench.once().await.unwrap();
    bench.assert_equal(&mut python);
    assert_eq!(bench.ops("s.item").await, "rrr");
    assert_eq!(bench.ops("s.order_x20line").await, "rr");
    assert_eq!(python.sql(&source, &["select count(*), group_concat(sql) from sqlite_schema"]), before);

    bench.once().await.unwrap();
    assert_eq!(bench.ops("s.item").await, "rrr", "nothing changed, nothing may be written");

    python.sql(
        &source,
        &[
            "delete from item where id = 2",
            "update item set name = 'A' where id = 1",
            "insert into item values (9,'n',1,null)",
        ],
    );
    bench.once().await.unwrap();
    bench.assert_equal(&mut python);
    assert_eq!(bench.ops("s.item").await, "rrrrrd-");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_follow_once_each_and_a_stopped_sync_goes_on() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    bench
        .follow(&mut python, &[], async |bench, python| {
            bench.wait_equal(python).await;
            python.sql(&source, &["insert into item values (4,'d',2,null)", "update item set price = 3 where id = 4"]);
        })
        .await;
    assert_eq!(bench.ops("s.item").await, "rrrcu");
    python.sql(&source, &["delete from item where id = 4", "update item set id = 33 where id = 3"]);
    bench.follow(&mut python, &[], async |_, _| {}).await;
    assert_eq!(bench.ops("s.item").await, "rrrcud-d-c");
}

#[tokio::test(flavor = "multi_thread")]
async fn following_after_a_copy_writes_only_what_differs() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    bench.once().await.unwrap();
    python.sql(&source, &["delete from item where id = 1", "insert into item values (7,'x',7,null)"]);
    bench.follow(&mut python, &[], async |_, _| {}).await;
    assert_eq!(bench.ops("s.item").await, "rrrd-r");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_came_before_the_copy_reached_it_comes_once() {
    let mut python = Python::start();
    let fill = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 12000) \
                insert into t select i, 'row ' || i from n";
    let bench = Bench::new(&["create table t (id integer primary key, name text)", fill], &mut python);
    let source = bench.folder.path("source.db");
    // Beyond all that is there, so the copy meets these rows after the capture did.
    let write = async |python: &mut Python, from: i64, counter: &str| {
        for id in from..from + 20 {
            python.sql(&source, &[&format!("insert into t values ({id}, '{counter}')")]);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    // The first run is dropped, like one that crashed; the second goes on in the middle of the copy.
    let (_told, stop) = watch::channel(false);
    let options = RunOptions::default();
    tokio::select! {
        ended = bench.run(&options, stop) => panic!("ended: {ended:?}"),
        () = async {
            while bench.session().await.topic("s.t").await.unwrap().is_none() || bench.end("s.t").await == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            write(&mut python, 100_000, "first").await;
        } => {}
    }
    bench.follow(&mut python, &[], async |_, python| write(python, 200_000, "second").await).await;
    let records = bench.records("s.t").await;
    let mut keys: Vec<_> = records.iter().map(|record| record.key.clone().unwrap()).collect();
    keys.sort();
    let (all, rows) = (keys.len(), 12_040);
    keys.dedup();
    assert_eq!((all, keys.len()), (rows, rows), "each row once");
    let ops = bench.ops("s.t").await;
    let early = ops.find('c').unwrap() < ops.rfind('r').unwrap();
    assert!(early, "nothing was written while the copy ran: the test proves nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_columns_stop_the_sync_and_a_recopy_goes_on() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    bench.follow(&mut python, &[], async |_, _| {}).await;
    python.sql(&source, &["alter table item add column colour text default 'red'", "delete from item where id = 2"]);
    let (_told, stop) = watch::channel(false);
    let error = bench.run(&RunOptions::default(), stop).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let command = format!("tidemill sync run {} --recopy item", bench.spec.file.display());
    assert!(error.to_string().contains(&command), "{error}");

    let session = bench.session().await;
    let check = async |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| name.to_string()).collect();
        resolve_recopy(&*session, std::slice::from_ref(&bench.spec), &names).await
    };
    check(&["ITEM", "order line"]).await.unwrap();
    let error = check(&["item", "itme"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("table itme to copy anew; the nearest is item"), "{error}");

    bench.follow(&mut python, &["item"], async |_, _| {}).await;
    let schemas = bench.session().await.table(Table::Schemas).await.unwrap();
    let of_item =
        schemas.values().map(|e| TopicSchema::decode(e.value.as_bytes()).unwrap()).filter(|s| s.topic == "s.item");
    assert_eq!(of_item.count(), 2);
    let ops = bench.ops("s.item").await;
    assert_eq!(ops, "rrr-rr", "all rows again with the new columns, a tombstone for the lost one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_can_be_named_to_be_forgotten() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    bench.follow(&mut python, &[], async |_, _| {}).await;
    python.sql(&bench.folder.path("source.db"), &["drop table item"]);
    let session = bench.session().await;
    resolve_recopy(&*session, std::slice::from_ref(&bench.spec), &["item".into()]).await.unwrap();
    bench.follow(&mut python, &["item"], async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_target_is_filled_anew_and_only_when_the_source_is_sound() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let (source, target) = (bench.folder.path("source.db"), bench.folder.path("target.db"));
    python.sql(&target, &["create table item (mine)", "insert into item values ('mine')", "create table other (x)"]);
    let replace = RunOptions { once: true, replace: true, ..RunOptions::default() };
    let (_told, stop) = watch::channel(false);
    let error = bench.once().await.unwrap_err();
    assert!(error.to_string().contains("target table item in"), "{error}");
    bench.run(&replace, stop.clone()).await.unwrap();
    bench.assert_equal(&mut python);
    python.sql(&target, &["select * from other"]);
    bench.follow(&mut python, &[], async |_, _| {}).await;

    // A source that went backwards: the target is not given up for a copy that does not begin.
    python.sql(&source, &["update _tm_seq set mark = 'of a backup'"]);
    let error = bench.run(&RunOptions { replace: true, ..RunOptions::default() }, stop.clone()).await.unwrap_err();
    assert!(error.to_string().contains("went backwards"), "{error}");
    bench.assert_equal(&mut python);
    remove(bench.session().await, &bench.spec, false).await.unwrap();
    python.sql(&source, &["delete from item where id = 1"]);
    assert!(bench.once().await.unwrap_err().to_string().contains("target tables item, order line in"));
    bench.run(&replace, stop).await.unwrap();
    bench.assert_equal(&mut python);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_emptied_before_its_recopy_is_empty_in_the_target() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    bench.once().await.unwrap();
    python.sql(&source, &["delete from item", "alter table item drop column picture"]);
    assert!(bench.once().await.unwrap_err().to_string().contains("--recopy item"));
    bench.follow(&mut python, &["item"], async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_of_another_log_and_a_target_ahead_of_the_log_are_refused() {
    let mut python = Python::start();
    let mut bench = Bench::new(&SHOP, &mut python);
    bench.once().await.unwrap();
    bench.engine.close().unwrap();
    bench.engine = open_log(&bench.folder.path("other"));
    let error = bench.once().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another log"), "{error}");
    let command = format!("tidemill sync run {} --replace", bench.spec.file.display());
    assert!(error.to_string().ends_with(&command), "{error}");

    bench.engine = open_log(&bench.folder.path("data"));
    python.sql(&bench.folder.path("target.db"), &["update _tidemill_sync set next_offset = 1000"]);
    let error = bench.once().await.unwrap_err();
    let ends = [bench.end("s.item").await, bench.end("s.order_x20line").await];
    assert!(ends.iter().any(|end| error.to_string().contains(&format!("the log ends at {end}:"))), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_fences_the_first() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let (_told, stop) = watch::channel(false);
    let source = bench.folder.path("source.db");
    let options = RunOptions::default();
    let first = bench.run(&options, stop);
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // What a second worker does first; the first one's next commit must be refused.
        let _writer = bench.session().await.writer("sync/s/source").await.unwrap();
        python.sql(&source, &["insert into item values (50,'z',0,null)"]);
    };
    let (result, ()) = tokio::join!(first, second);
    let error = result.unwrap_err();
    assert!(error.to_string().contains("fenced"), "{error}");
    assert_eq!(bench.ops("s.item").await, "rrr");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_leaves_the_source_as_it_was() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    let source = bench.folder.path("source.db");
    let schema = "select type, name, tbl_name, sql from sqlite_schema order by name";
    let before = python.sql(&source, &[schema]);
    bench.follow(&mut python, &[], async |_, _| {}).await;
    assert_ne!(python.sql(&source, &[schema]), before);
    remove(bench.session().await, &bench.spec, false).await.unwrap();
    assert_eq!(python.sql(&source, &[schema]), before);
    assert!(bench.session().await.topics().await.unwrap().is_empty());
    assert!(bench.session().await.table(Table::Schemas).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_is_refused_with_what_to_do() {
    let mut python = Python::start();
    let bench = Bench::new(&["create table t (a, b)"], &mut python);
    for once in [true, false] {
        let (_told, stop) = watch::channel(false);
        let error = bench.run(&RunOptions { once, ..RunOptions::default() }, stop).await.unwrap_err();
        assert!(error.to_string().contains("primary key") || error.to_string().contains("PRIMARY KEY"), "{error}");
    }
    assert!(!bench.folder.path("target.db").exists(), "nothing may be made before the source is found fit");
}

#[tokio::test(flavor = "multi_thread")]
async fn chinook_is_copied_whole() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/chinook/Chinook_Sqlite.sqlite");
    if !Path::new(file).exists() {
        println!("skipped: the Chinook database is not here");
        return;
    }
    let mut python = Python::start();
    let folder = Folder::new();
    std::fs::copy(file, folder.path("source.db")).unwrap();
    let bench = Bench::open(folder);
    bench.once().await.unwrap();
    bench.assert_equal(&mut python);
    assert_eq!(bench.session().await.topics().await.unwrap().len(), 11);
}

/// A run that was to copy a table anew, and was killed when the log had the new schema and the position knew nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_copy_that_a_kill_cut_short_is_made() {
    let mut python = Python::start();
    let bench = Bench::new(&SHOP, &mut python);
    bench.follow(&mut python, &[], async |_, _| {}).await;
    let session = bench.session().await;
    let schemas: Vec<_> = session.table(Table::Schemas).await.unwrap().into_values().collect();
    let schemas = schemas.iter().map(|entry| TopicSchema::decode(entry.value.as_bytes()).unwrap());
    let of_item = schemas.clone().find(|schema| schema.topic == "s.item").unwrap();
    let anew = TopicSchema { id: schemas.map(|schema| schema.id).max().unwrap() + 1, ..of_item };
    let value = serde_json::to_string(&anew).unwrap();
    session.put(Table::Schemas, &TopicSchema::record_key(anew.id), Some(value), None).await.unwrap();
    bench.follow(&mut python, &[], async |_, _| {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_row_waits_alone() {
    let mut python = Python::start();
    let bench = Bench::new(&["create table t (id integer primary key, v text)"], &mut python);
    let (source, target) = (bench.folder.path("source.db"), bench.folder.path("target.db"));
    // The target's owner allows no 'bad'.
    python.sql(&target, &["create table t (id integer primary key, v text, check (v <> 'bad'))"]);
    let (told, stop) = watch::channel(false);
    let control: Arc<Control> = Arc::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let (options, session) = (RunOptions::default(), bench.session().await);
    let sync = run(session, Arc::clone(&clock), &bench.spec, &options, Arc::new(Silent), Arc::clone(&control), stop);
    let mut driver = Python::start();
    let status = async |ready: &dyn Fn(&Status) -> bool| {
        let started = Instant::now();
        loop {
            let status = control.status(clock.now());
            if ready(&status) && status.lag_seconds == Some(0.0) {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let drive = async {
        status(&|s| s.state == State::Following).await;
        driver.sql(&source, &["insert into t values (1,'a'),(2,'bad'),(3,'c')", "update t set v = 'b' where id = 1"]);
        let seen = status(&|s| s.state == State::Degraded).await;
        assert_eq!(seen.parked.len(), 1);
        assert_eq!(seen.parked[0].key, r#"{"id":2}"#);
        assert!(seen.parked[0].cause.contains("CHECK constraint failed"), "{}", seen.parked[0].cause);
        // What comes later for the key waits too, though the target would take it.
        driver.sql(&source, &["update t set v = 'good' where id = 2", "insert into t values (4,'d')"]);
        let rows = "select id, v from t order by id";
        wait_rows(&mut driver, &target, rows, r#"[[1,"b"],[3,"c"],[4,"d"]]"#).await;
        let still = control.ask(Ask::Retry).await.unwrap();
        assert_eq!((still.released.len(), still.parked.len()), (1, 0), "the newest change is good");
        wait_rows(&mut driver, &target, rows, r#"[[1,"b"],[2,"good"],[3,"c"],[4,"d"]]"#).await;
        driver.sql(&source, &["update t set v = 'bad' where id = 3"]);
        status(&|s| s.state == State::Degraded).await;
        assert_eq!(control.ask(Ask::Retry).await.unwrap().parked.len(), 1);
        let error = control.ask(Ask::Skip(r#"{"id":9}"#.into())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(control.ask(Ask::Skip(r#"{"id":3}"#.into())).await.unwrap().released.len(), 1);
        driver.sql(&source, &["update t set v = 'again' where id = 3"]);
        wait_rows(&mut driver, &target, rows, r#"[[1,"b"],[2,"good"],[3,"again"],[4,"d"]]"#).await;
        // A delete ends the wait: it is later than what was refused, and so is all that comes after it.
        driver.sql(&source, &["update t set v = 'bad' where id = 1"]);
        status(&|s| s.state == State::Degraded).await;
        driver.sql(&source, &["begin", "delete from t where id = 1", "insert into t values (1, 'new')", "commit"]);
        wait_rows(&mut driver, &target, rows, r#"[[1,"new"],[2,"good"],[3,"again"],[4,"d"]]"#).await;
        assert!(status(&|s| s.state == State::Following).await.parked.is_empty());
        told.send(true).unwrap();
        Ok(())
    };
    tokio::try_join!(sync, drive).unwrap();
    let letters = bench.records("s.dead-letters").await;
    assert_eq!(letters.len(), 3, "one for each change that failed");
    let cause = letters[0].header("tm-error").map(|cause| String::from_utf8_lossy(cause).into_owned()).unwrap();
    assert!(cause.contains("CHECK constraint failed"), "{cause}");
    // A run that ends with a row parked says so.
    python.sql(&source, &["update t set v = 'bad' where id = 4"]);
    let error = bench.once().await.unwrap_err();
    assert!(error.to_string().contains("the target refused one row"), "{error}");
    remove(bench.session().await, &bench.spec, false).await.unwrap();
    assert!(parked_of(&*bench.session().await, "s").await.unwrap().is_empty());
}

async fn wait_rows(python: &mut Python, path: &Path, query: &str, expected: &str) {
    let started = Instant::now();
    loop {
        let rows = serde_json::to_string(&python.sql(path, &[query])).unwrap();
        if rows == expected {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{rows}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Copied, followed under writes, and a second worker that fences the first, over a real broker of Apache Kafka.
#[cfg(feature = "kafka")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_over_kafka_keeps_its_target_in_step() {
    let broker = tokio::task::spawn_blocking(crate::servers::Broker::start).await.unwrap();
    let Some(broker) = broker else { return };
    let mut python = Python::start();
    let mut bench = Bench::new(
        &["CREATE TABLE t (id INTEGER PRIMARY KEY, v)", "CREATE TABLE u (k TEXT PRIMARY KEY, v) WITHOUT ROWID"],
        &mut python,
    );
    let connect = async || {
        let log: Arc<dyn Log> = Arc::new(tidemill_core::log::Kafka::connect(&broker.url()).await.unwrap());
        log
    };
    bench.cluster = Some(connect().await);
    let source = bench.folder.path("source.db");
    for i in 0..200 {
        python.sql(&source, &[&format!("INSERT INTO t VALUES ({i}, 'a{i}')")]);
    }
    bench.once().await.unwrap();
    bench.assert_equal(&mut python);
    for round in 0..3 {
        // Each time as another process has the log.
        bench.cluster = Some(connect().await);
        let work = async |bench: &Bench, python: &mut Python| {
            let source = bench.folder.path("source.db");
            for i in 0..30 {
                let id = round * 30 + i;
                let change = format!("UPDATE t SET v = 'r{round}' WHERE id = {id}");
                let add = format!("INSERT INTO u VALUES ('{round}-{i}', {i})");
                python
                    .sql(&source, &[&change, &add, &format!("DELETE FROM t WHERE id = {}", 150 + round * 10 + i % 10)]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        bench.follow(&mut python, &[], work).await;
        bench.assert_equal(&mut python);
    }
    // A sync that is dropped at any moment goes on.
    for pause in [50, 300, 900, 1500] {
        bench.cluster = Some(connect().await);
        let (_told, stop) = watch::channel(false);
        let options = RunOptions::default();
        let work = async {
            for i in 0..10 {
                python.sql(&source, &[&format!("INSERT INTO u VALUES ('{pause}+{i}', {i})")]);
                tokio::time::sleep(Duration::from_millis(pause / 10)).await;
            }
        };
        tokio::select! {
            ended = bench.run(&options, stop) => panic!("ended by itself: {ended:?}"),
            () = work => {}
        }
    }
    bench.cluster = Some(connect().await);
    bench.follow(&mut python, &[], async |_: &Bench, _: &mut Python| {}).await;
    bench.assert_equal(&mut python);
    let inserts = bench.ops("s.u").await;
    assert_eq!(inserts.matches(['c', 'r']).count(), 90 + 40, "each row came once: {inserts}");
}

/// A server runs syncs on tasks of its own.
#[test]
fn a_sync_may_run_on_any_thread() {
    fn movable<T: Send>(_: impl FnOnce() -> T) {}
    movable(|| {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let (_told, stop) = watch::channel(false);
        async move {
            let engine = open_log(Path::new("/nowhere"));
            let session = Embedded::new(engine).session(Caller::internal("test")).await.unwrap();
            let spec = load(Path::new("none")).unwrap().remove(0);
            run(session, clock, &spec, &RunOptions::default(), Arc::new(Silent), Arc::default(), stop).await
        }
    });
}
