//! Large batches applied by several connections at once: PostgreSQL and MariaDB alike.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tidemill_connect::{
    Error, ErrorKind, Result,
    change::{Change, Column, Op, TableSchema, Value},
    connector::{Sink, TopicChanges},
    converter::TopicSchema,
    endpoint::{Endpoint, Secret},
    sync::{
        away::Side,
        file::{SyncSpec, load},
        parked::ParkedKey,
        run::{Observer, RunOptions, TableStart, run},
    },
    target::lanes::{Lane, Positions},
    types::Dialect,
};
use tidemill_core::{
    clock::SystemClock,
    engine::{Config, Engine},
    log::{Caller, Embedded, Log},
    storage::OsStorage,
};
use tokio::sync::watch;

use crate::{
    servers::{ADMIN, MariaDb, PASSWORD, Postgres, SINK},
    support::{Folder, Python},
};

const OF: u32 = 4;
const ROWS: i64 = 4_000;

/// A database, by the user that writes to it.
#[derive(Clone)]
enum Target {
    Postgres(String),
    Maria(String),
}

impl Target {
    fn both() -> [Self; 2] {
        [Self::Postgres(Postgres::shared().fresh_database()), Self::Maria(MariaDb::shared().fresh_database())]
    }

    fn url(&self) -> String {
        match self {
            Self::Postgres(db) => Postgres::shared().url(SINK, db),
            Self::Maria(db) => MariaDb::shared().url(SINK, db),
        }
    }

    fn try_rows(&self, sql: &str) -> Result<Vec<String>, String> {
        let rows = match self {
            Self::Postgres(db) => Postgres::shared().query_as(SINK, db, sql),
            Self::Maria(db) => MariaDb::shared().query_as(SINK, db, sql),
        };
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "~".into());
        let row = |row: Vec<Option<String>>| row.into_iter().map(cell).collect::<Vec<_>>().join("|");
        Ok(rows.map_err(|e| e.to_string())?.into_iter().map(row).collect())
    }

    fn rows(&self, sql: &str) -> Vec<String> {
        self.try_rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let endpoint = Endpoint::parse(&self.url(), Some(Secret::Plain(PASSWORD.into())), Path::new(".")).unwrap();
        endpoint.sink().unwrap().open("s", "L").await.unwrap()
    }

    /// Writes to table `backwards` whatever update of `t` gives a row a value that is not above the one it had.
    fn watch_values(&self) {
        let statements: &[&str] = match self {
            Self::Postgres(_) => &[
                "create table backwards (id bigint, was bigint, now bigint)",
                "create function watch() returns trigger language plpgsql as $$ begin if new.v <= old.v then \
                 insert into backwards values (new.id, old.v, new.v); end if; return new; end $$",
                "create trigger watch before update on t for each row execute function watch()",
            ],
            Self::Maria(_) => &[
                "create table backwards (id bigint, was bigint, now bigint)",
                "create trigger watch before update on t for each row insert into backwards \
                 select new.id, old.v, new.v from dual where new.v <= old.v",
            ],
        };
        for sql in statements {
            let made = match self {
                Self::Postgres(db) => Postgres::shared().query_as(SINK, db, sql),
                // Where the server keeps a binlog, triggers are its administrator's to make.
                Self::Maria(db) => MariaDb::shared().query_as(ADMIN, db, sql),
            };
            made.unwrap();
        }
    }

    /// Ends one of the connections that others have to the database.
    fn kill_one(&self) -> bool {
        match self {
            Self::Postgres(_) => !self
                .rows(
                    "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where datname = \
                     current_database() and usename = current_user and pid <> pg_backend_pid() order by random() limit 1) p",
                )
                .is_empty(),
            Self::Maria(_) => {
                let others = "select id from information_schema.processlist where db = database() and id <> \
                              connection_id() order by rand() limit 1";
                let found = self.rows(others);
                // It may have gone meanwhile.
                found.first().is_some_and(|id| self.try_rows(&format!("kill connection {id}")).is_ok())
            }
        }
    }
}

fn schema(id: u64, key: &str) -> Arc<TopicSchema> {
    let column = |name: &str, declared: &str, key| Column {
        name: name.into(),
        declared_type: declared.into(),
        not_null: key == Some(0),
        key,
    };
    let columns = vec![column("id", key, Some(0)), column("v", "bigint", None)];
    let table = TableSchema { schema: Some("public".into()), name: "t".into(), columns };
    Arc::new(TopicSchema { id, ..TopicSchema::draft("s", Dialect::Postgres, &table) })
}

fn changes(v: i64) -> Vec<Change> {
    let change = |id| Change {
        table: 0,
        op: Op::Update,
        key: vec![Value::Integer(id)],
        before: None,
        after: Some(vec![Value::Integer(id), Value::Integer(v)]),
        sequence: v,
    };
    (0..ROWS).map(change).collect()
}

/// The lane of a row, by the key as its records carry it.
fn lane_of(id: i64) -> u32 {
    Lane::number_of(format!("{{\"id\":{id}}}").as_bytes(), OF)
}

async fn put(sink: &mut dyn Sink, schema: &Arc<TopicSchema>, changes: Vec<Change>, next: i64) -> Result<()> {
    let topic = schema.topic.clone();
    sink.put(vec![TopicChanges { schema: Arc::clone(schema), changes }], vec![(topic, next)]).await
}

/// The part of a lane.
fn part(v: i64, number: u32) -> Vec<Change> {
    let own = |change: &Change| matches!(change.key[0], Value::Integer(id) if lane_of(id) == number);
    changes(v).into_iter().filter(own).collect()
}

async fn open_lane(sink: &mut dyn Sink, number: u32) -> Box<dyn Sink> {
    sink.lane(Lane { number, of: OF }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_are_ahead_are_told_and_left_out() {
    for target in Target::both() {
        let schema = schema(1, "bigint");
        let mut sink = target.sink().await;
        assert_eq!(sink.positions().await.unwrap(), Positions::default());
        assert!(!sink.may_be_dealt(&schema), "its table is not made yet");
        put(&mut *sink, &schema, changes(1), ROWS).await.unwrap();
        target.watch_values();
        assert!(sink.may_be_dealt(&schema));
        // Two lanes of four are done when the worker ends.
        for number in [0, 2] {
            let mut lane = open_lane(&mut *sink, number).await;
            put(&mut *lane, &schema, part(2, number), 2 * ROWS).await.unwrap();
        }
        drop(sink);
        let mut sink = target.sink().await;
        let mut positions = sink.positions().await.unwrap();
        assert_eq!((positions.next["s.public.t"], positions.farthest("s.public.t")), (ROWS, Some(2 * ROWS)));
        let holds = |positions: &Positions, id: i64, offset| {
            positions.hold("s.public.t", format!("{{\"id\":{id}}}").as_bytes(), offset)
        };
        for id in 0..ROWS {
            assert_eq!(holds(&positions, id, ROWS + id), [0, 2].contains(&lane_of(id)), "{id}");
            assert!(!holds(&positions, id, 2 * ROWS + id), "{id} of the batch after it");
        }
        // What was written under the old names stays right: those lanes keep what they have.
        let left = |id: &Value| matches!(id, Value::Integer(id) if !holds(&positions, *id, ROWS));
        let rest: Vec<_> = changes(2).into_iter().filter(|change| left(&change.key[0])).collect();
        assert!((1..ROWS as usize).contains(&rest.len()));
        put(&mut *sink, &schema, rest, 2 * ROWS).await.unwrap();
        positions.pass(&[("s.public.t".into(), 2 * ROWS)]);
        assert!(positions.are_even() && sink.positions().await.unwrap().are_even());
        assert_eq!(target.rows("select count(*), min(v), max(v) from t"), [format!("{ROWS}|2|2")]);
        assert_eq!(target.rows("select count(*) from backwards"), ["0"]);
        // The twin: what lanes have is applied again, and seen.
        put(&mut *sink, &schema, changes(2), 3 * ROWS).await.unwrap();
        assert_eq!(target.rows("select count(*) from backwards"), [ROWS.to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_an_older_worker_are_shut_out() {
    for target in Target::both() {
        let schema = schema(1, "bigint");
        let (mut old, mut new) = (target.sink().await, target.sink().await);
        old.positions().await.unwrap();
        put(&mut *old, &schema, changes(1), ROWS).await.unwrap();
        let (mut early, mut late) = (open_lane(&mut *old, 1).await, open_lane(&mut *old, 2).await);
        new.positions().await.unwrap();
        // Before the newer one has claimed the target, what it knows of it is out of date.
        put(&mut *early, &schema, part(2, 1), 2 * ROWS).await.unwrap();
        let error = put(&mut *new, &schema, changes(2), 2 * ROWS).await.unwrap_err();
        assert!(error.to_string().contains("another worker"), "{error}");
        let mut new = target.sink().await;
        new.positions().await.unwrap();
        put(&mut *new, &schema, Vec::new(), ROWS).await.unwrap();
        for lane in [&mut early, &mut late] {
            let error = put(&mut **lane, &schema, part(9, 2), 3 * ROWS).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert!(error.to_string().contains("another worker"), "{error}");
        }
        assert_eq!(target.rows("select count(*) from t where v = 9"), ["0"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_under_way_is_waited_for() {
    for target in Target::both() {
        let schema = schema(1, "bigint");
        let mut sink = target.sink().await;
        put(&mut *sink, &schema, changes(1), ROWS).await.unwrap();
        // A lane whose worker is gone may still write: another row of its part is held meanwhile by a client.
        let (held, gone) = (part(2, 1)[0].key[0].clone(), Arc::new(AtomicBool::new(false)));
        let Value::Integer(held) = held else { panic!("not a number") };
        let (client, told) = (target.clone(), Arc::clone(&gone));
        let holds = tokio::task::spawn_blocking(move || {
            let sleep = match client {
                Target::Postgres(_) => "select pg_sleep(2)",
                Target::Maria(_) => "select sleep(2)",
            };
            client.rows(&format!("begin; update t set v = v where id = {held}; {sleep}; commit"));
            told.store(true, Ordering::Release);
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut lane = open_lane(&mut *sink, 1).await;
        let schema_of_lane = Arc::clone(&schema);
        let writes = tokio::spawn(async move { put(&mut *lane, &schema_of_lane, part(2, 1), 2 * ROWS).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut next = target.sink().await;
        let positions = next.positions().await.unwrap();
        assert!(gone.load(Ordering::Acquire), "the positions were read while a lane was under way");
        writes.await.unwrap().unwrap();
        holds.await.unwrap();
        assert_eq!(positions.farthest("s.public.t"), Some(2 * ROWS), "{}", target.url());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_tied_together_are_not_dealt() {
    for target in Target::both() {
        let mut sink = target.sink().await;
        // The same number may be written in several ways: a delete of one and an insert of the other have an order.
        let numbers = schema(1, "numeric(12,2)");
        put(&mut *sink, &numbers, Vec::new(), 1).await.unwrap();
        assert!(!sink.may_be_dealt(&numbers));
        target.rows("drop table t");
        target.rows("delete from _tidemill_sync");
        let schema = schema(2, "bigint");
        for (statement, dealt) in [("select 1", true), ("create unique index other on t (v)", false)] {
            let mut sink = target.sink().await;
            put(&mut *sink, &schema, Vec::new(), 1).await.unwrap();
            drop(sink);
            target.rows(statement);
            let mut sink = target.sink().await;
            put(&mut *sink, &schema, Vec::new(), 1).await.unwrap();
            assert_eq!(sink.may_be_dealt(&schema), dealt, "{statement}");
        }
    }
}

/// Counts what a run tells.
#[derive(Default)]
struct Told {
    waits: AtomicU64,
    parked: Mutex<Vec<ParkedKey>>,
}

impl Observer for Told {
    fn started(&self, _: &str, _: &[TableStart]) {}
    fn copied(&self, _: usize, _: u64) {}
    fn finished(&self, _: usize) {}
    fn applied(&self, _: u64) {}
    fn caught_up(&self) {}
    fn waiting(&self, _: Side, _: &Error) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }
    fn parked(&self, keys: &[ParkedKey]) {
        *self.parked.lock().unwrap() = keys.to_vec();
    }
}

fn sync_file(folder: &Folder, target: &Target, more: &str) -> SyncSpec {
    let file = folder.path("sync.toml");
    let to = format!("{{ url = '{}', password = '{PASSWORD}' }}", target.url());
    let text = format!("[sync.s]\nfrom = 'sqlite:source.db'\nto = {to}\ntables = ['*']\n{more}\n");
    std::fs::write(&file, text).unwrap();
    load(&file).unwrap().remove(0)
}

/// Connections are killed one by one while rounds of updates are applied: each row gets each value at most once, and never
/// an older one.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_that_die_lose_nothing_and_double_nothing() {
    lanes_die(12).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a soak"]
async fn soak_lanes_that_die() {
    let rounds = std::env::var("TIDEMILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    lanes_die(rounds.unwrap_or(50)).await;
}

async fn lanes_die(rounds: i64) {
    const KILLS: u32 = 3;
    for target in Target::both() {
        let (folder, mut python) = (Folder::new(), Python::start());
        let source = folder.path("source.db");
        let rows = "with recursive n(i) as (select 0 union all select i + 1 from n where i < 9999) \
                    insert into t select i, 0, printf('%0500d', i) from n";
        python.sql(&source, &["create table t(id integer primary key, v integer, filler text)", rows]);
        let (clock, storage) = (Arc::new(SystemClock::default()), Arc::new(OsStorage));
        let engine = Engine::open(&folder.path("data"), Config::default(), storage, clock).unwrap();
        let session = Embedded::new(Arc::new(engine)).session(Caller::internal("test")).await.unwrap();
        let (spec, told) = (sync_file(&folder, &target, ""), Arc::new(Told::default()));
        let (stop, stopped) = watch::channel(false);
        let observer = Arc::clone(&told);
        let run = tokio::spawn(async move {
            let (options, clock) = (RunOptions::default(), Arc::new(SystemClock::default()));
            run(session, clock, &spec, &options, observer, Arc::default(), stopped).await
        });
        let has =
            |v: i64| target.try_rows(&format!("select count(*) from t where v = {v}")) == Ok(vec!["10000".into()]);
        wait(|| has(0), &target).await;
        target.watch_values();
        let mut killed = 0;
        for round in 1..=rounds {
            python.sql(&source, &["update t set v = v + 1"]);
            let mut kills = 0..KILLS;
            wait(
                || {
                    if kills.next().is_some() {
                        killed += u32::from(target.kill_one());
                    }
                    has(round)
                },
                &target,
            )
            .await;
        }
        let _ = stop.send(true);
        run.await.unwrap().unwrap();
        let lanes = target.rows("select count(*) from _tidemill_sync where topic like '%#%'");
        assert!(lanes[0] != "0", "no batch was dealt to lanes");
        assert!(killed > 10 && told.waits.load(Ordering::Relaxed) > 3, "{killed} connections were killed");
        assert_eq!(told.parked.lock().unwrap().len(), 0);
        assert_eq!(target.rows("select count(*), min(v), max(v) from t"), [format!("10000|{rounds}|{rounds}")]);
        assert_eq!(target.rows("select * from backwards limit 3"), [""; 0]);
    }
}

/// A SQLite source of some rows of 500 bytes, copied once.
async fn copy_once(target: &Target, count: u32, more: &str) {
    let (folder, mut python) = (Folder::new(), Python::start());
    let rows = format!(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) \
         insert into t select i, 0, printf('%0500d', i) from n"
    );
    let make = "create table t(id integer primary key, v integer, filler text)";
    python.sql(&folder.path("source.db"), &[make, &rows]);
    let (clock, storage) = (Arc::new(SystemClock::default()), Arc::new(OsStorage));
    let engine = Engine::open(&folder.path("data"), Config::default(), storage, clock).unwrap();
    let session = Embedded::new(Arc::new(engine)).session(Caller::internal("test")).await.unwrap();
    let options = RunOptions { once: true, ..RunOptions::default() };
    let (_told, stop) = watch::channel(false);
    let (spec, clock) = (sync_file(&folder, target, more), Arc::new(SystemClock::default()));
    run(session, clock, &spec, &options, Arc::new(Told::default()), Arc::default(), stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_gives_no_more_connections_is_written_by_one() {
    for (limit, dealt) in [(3, "0"), (20, "4")] {
        let db = Postgres::shared().fresh_database();
        let admin = |sql: &str| Postgres::shared().query_as(ADMIN, &db, sql).unwrap();
        admin(&format!("alter database {db} connection limit {limit}"));
        copy_once(&Target::Postgres(db.clone()), 40_000, "").await;
        assert_eq!(admin("select count(*) from t")[0][0].as_deref(), Some("40000"));
        let lanes = admin("select count(*) from _tidemill_sync where topic like '%#%'");
        assert_eq!(lanes[0][0].as_deref(), Some(dealt), "connection limit {limit}");
    }
}

/// Rows a second into a target that waits for its disk: a trigger sleeps 1 ms at every tenth row.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "speed: run by hand and by make bench"]
async fn rows_a_second_into_a_slow_target() {
    const COUNT: u32 = 60_000;
    println!("{COUNT} rows of 500 bytes, made and copied from SQLite; the target sleeps 1 ms at every tenth row");
    for connections in [1, 2, 4, 8] {
        let target = Target::Postgres(Postgres::shared().fresh_database());
        for sql in [
            "create table t (id bigint not null primary key, v bigint, filler text)",
            "create function slow() returns trigger language plpgsql as $$ begin if new.id % 10 = 0 then \
             perform pg_sleep(0.001); end if; return new; end $$",
            "create trigger slow before insert or update on t for each row execute function slow()",
        ] {
            target.rows(sql);
        }
        let begun = Instant::now();
        copy_once(&target, COUNT, &format!("on_existing = 'merge'\nconnections = {connections}")).await;
        let seconds = begun.elapsed().as_secs_f64();
        assert_eq!(target.rows("select count(*) from t"), [COUNT.to_string()]);
        println!("connections = {connections}: {:>8.0} rows/s", f64::from(COUNT) / seconds);
    }
}

async fn wait(mut done: impl FnMut() -> bool, target: &Target) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not there: {:?}", target.try_rows("select v, count(*) from t group by v"));
}
