//! The PostgreSQL source where things go wrong: writers during the copy, cut connections, slots that are not what the
//! position says, columns that change.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill_connect::change::{Op, StoredValue, Value};
use tidemill_connect::connector::{Copied, Level, Source, SourceConnector};
use tidemill_connect::endpoint::{Secret, Tls};
use tidemill_connect::postgres::endpoint::PostgresServer;
use tidemill_connect::{Error, ErrorKind};

use super::postgres_source::{Followed, LOG, int, lsn, server};
use super::servers::{CDC, Postgres, skipped};

fn conflict(result: Result<(), Error>, words: &[&str]) -> String {
    let error = result.expect_err("it must stop");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let said = error.to_string();
    for word in words {
        assert!(said.contains(word), "{said}");
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_under_writers_ends_with_what_the_table_holds() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, v int); insert into t select i * 3, 0 from generate_series(1, 20000) i;",
    );
    f.open().await;
    let (pg, db) = (f.pg, f.db.clone());
    let work = |seed: usize| {
        format!(
            "select setseed(0.{seed}); do $$ declare k int; begin for i in 1..1500 loop \
         k := (random() * 60000)::int; update t set v = v + 1 where id between k and k + 30; commit; \
         delete from t where id = k; insert into t values (k, i) on conflict (id) do update set v = -i; commit; \
         update t set id = -(i * 10 + {seed}) where id = (select min(id) from t where id > k); commit; end loop; end $$"
        )
    };
    let finished = std::thread::scope(|scope| {
        let writers: Vec<_> = (1..4)
            .map(|seed| {
                let sql = work(seed);
                let db = db.clone();
                scope.spawn(move || pg.exec(&db, &sql))
            })
            .collect();
        let polling = async {
            let mut reopened = 0;
            while !f.source().states().iter().all(|state| state.copied == Copied::Done) {
                f.poll().await.unwrap();
                // It goes on from the middle of the copy as well.
                if reopened < 3 && f.log.changes.len() > 4_000 * (reopened + 1) {
                    f.source().commit().await.unwrap();
                    f.open().await;
                    reopened += 1;
                }
            }
            reopened
        };
        let reopened = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(polling));
        for writer in writers {
            writer.join().unwrap();
        }
        reopened
    });
    assert_eq!(finished, 3);
    f.catch_up().await;
    f.same("t").await;
}

/// A transaction whose commit is in the log, and was delivered, is held invisible by its wait for a standby.
async fn copy_beside_an_invisible_commit(careless: bool) -> Value {
    let options = Postgres::options().set("synchronous_standby_names", "nobody").set("synchronous_commit", "local");
    let pg = options.start();
    let mut f = Followed::new(
        &pg,
        "create table t (id int primary key, v text); insert into t select i, 'old' from generate_series(1, 30000) i;",
    );
    f.open().await;
    if careless {
        f.source().be_careless();
    }
    while f.log.changes.is_empty() {
        f.poll().await.unwrap();
    }
    let db = f.db.clone();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| pg.exec(&db, "set synchronous_commit = on; update t set v = 'new' where id = 29999"));
        let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep'";
        while pg.query(&db, waits).is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(f.catch_up()));
        pg.exec(&db, "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'");
        held.join().unwrap();
    });
    assert_eq!(pg.value(&f.db, "select v from t where id = 29999").as_deref(), Some("new"));
    let updates = f.log.changes.iter().filter(|change| change.op == Op::Update).count();
    assert_eq!(updates, 1, "the commit was delivered while it was invisible");
    f.log.rows["t"][&vec![StoredValue::Int(29_999)]][1].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_does_not_undo_a_commit_it_cannot_see() {
    assert_eq!(copy_beside_an_invisible_commit(false).await, Value::Text("new".into()));
    // Without the exclusion it does: the test can fail.
    assert_eq!(copy_beside_an_invisible_commit(true).await, Value::Text("old".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_and_repeat_nothing() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id serial primary key, v text); insert into t (v) select 'copy' from generate_series(1, 3000);",
    );
    f.open().await;
    let (pg, db) = (f.pg, f.db.clone());
    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{db}' and application_name = 'tidemill'"
    );
    let (mut failures, mut cuts) = (0, 0);
    for round in 0..12 {
        pg.exec(&db, "insert into t (v) select 'v' from generate_series(1, 5000)");
        for step in 0..4 {
            if (step + round) % 3 == 0 {
                cuts += pg.query(&db, &cut).len();
            }
            match f.poll().await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                    failures += 1;
                }
            }
        }
    }
    assert!(cuts >= 3 && failures > 0, "{cuts} cuts, {failures} polls failed");
    let begun = Instant::now();
    while let Err(error) = f.try_catch_up().await {
        assert!(error.kind() == ErrorKind::Unavailable && begun.elapsed() < Duration::from_secs(30), "{error}");
    }
    let created: Vec<_> = f.log.changes.iter().filter(|c| c.op == Op::Create).map(|c| int(&c.key[0])).collect();
    assert_eq!(created, (3_001..=63_000).collect::<Vec<_>>());
    f.same("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_is_gone_on_with() {
    let mut pg = Postgres::start();
    let db = pg.fresh_database();
    pg.exec(&db, "create table t (id serial primary key); insert into t select from generate_series(1, 3000);");
    let mut source = {
        let mut f = Followed::of(&pg, db.clone());
        f.open().await;
        f.source.take().unwrap()
    };
    let mut keys = Vec::new();
    let mut failures = 0;
    for round in 0..3 {
        pg.exec(&db, "insert into t select from generate_series(1, 3000)");
        // The cut may be seen only now.
        if let Ok(polled) = source.poll().await {
            keys.extend(polled.changes.iter().filter(|c| c.op == Op::Create).map(|c| int(&c.key[0])));
        }
        pg.kill9();
        // What was read ahead may still come.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            match source.poll().await {
                Ok(polled) => keys.extend(polled.changes.iter().filter(|c| c.op == Op::Create).map(|c| int(&c.key[0]))),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{round}: {error}");
                    failures += 1;
                    break;
                }
            }
        }
        pg.start_again();
    }
    assert_eq!(failures, 3);
    let begun = Instant::now();
    while keys.len() < 9_000 && begun.elapsed() < Duration::from_secs(30) {
        if let Ok(polled) = source.poll().await {
            keys.extend(polled.changes.iter().filter(|c| c.op == Op::Create).map(|c| int(&c.key[0])));
        }
    }
    // A sequence leaves numbers out after a crash: the order and the count tell.
    assert!(keys.is_sorted() && keys.len() == 9_000, "{}", keys.len());
    keys.dedup();
    assert_eq!(keys.len(), 9_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_may_be_encrypted() {
    let mut pg = Postgres::start();
    let db = pg.fresh_database();
    pg.exec(&db, "create table t (id int primary key); insert into t values (1)");
    let folder = pg.socket_folder();
    let (key, certificate) = (folder.join("key"), folder.join("certificate"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        skipped("encryption", "there is no openssl");
        return;
    }
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&folder).unwrap());
    for path in [&key, &certificate] {
        std::os::unix::fs::chown(path, Some(owner), None).unwrap();
    }
    pg.set("ssl", "on");
    pg.set("ssl_key_file", &key.display().to_string());
    pg.set("ssl_cert_file", &certificate.display().to_string());
    pg.restart();
    let mut f = Followed::of(&pg, db);
    for tls in [Tls::Require, Tls::Prefer] {
        f.tls = tls;
        f.open().await;
        f.catch_up().await;
        f.pg.exec(&f.db, "insert into t select max(id) + 1 from t");
        f.catch_up().await;
        f.same("t").await;
        let plain = "select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) \
            where a.application_name = 'tidemill' and not s.ssl";
        assert_eq!(f.pg.value(&f.db, plain).as_deref(), Some("0"));
    }
    // Nobody vouches for this certificate.
    f.tls = Tls::VerifyFull;
    let error = f.connector().tables(&["*".into()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_where_the_position_is_stops_the_sync() {
    let mut f = Followed::new(Postgres::shared(), "create table t (id int primary key);");
    f.open().await;
    // A start that ended before it stored a position left a slot: a first start makes it anew.
    f.log.position.clear();
    f.open().await;
    f.catch_up().await;
    let good = f.log.position.clone();
    // Somebody else reads it.
    let first = f.source.take();
    conflict(f.try_open(&[], false).await, &["pg_terminate_backend", &f.slot()]);
    drop(first);
    f.open().await;
    for (name, other, words) in [
        ("system", serde_json::json!("1"), "not the one that was captured"),
        ("timeline", serde_json::json!(7), "timeline is 1, was 7"),
    ] {
        let mut stream: serde_json::Value = serde_json::from_str(&good["postgres"]).unwrap();
        stream[name] = other;
        f.log.position.insert("postgres".into(), stream.to_string());
        conflict(f.try_open(&[], false).await, &[words, "tidemill sync rm FILE"]);
        f.log.position = good.clone();
    }
    f.source = None;
    f.pg.exec(&f.db, "insert into t values (1)");
    let free = format!("select count(*) from pg_replication_slots where slot_name = '{}' and active", f.slot());
    while f.pg.value(&f.db, &free).as_deref() != Some("0") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    f.pg.exec(&f.db, &format!("select pg_replication_slot_advance('{}', pg_current_wal_lsn())", f.slot()));
    conflict(f.try_open(&[], false).await, &["ahead of the position", "tidemill sync rm FILE"]);
    f.pg.exec(&f.db, &format!("select pg_drop_replication_slot('{}')", f.slot()));
    conflict(f.try_open(&[], false).await, &["is gone", "tidemill sync rm FILE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_log_was_removed_is_told() {
    let pg = Postgres::options().set("max_slot_wal_keep_size", "1MB").set("max_wal_size", "32MB").start();
    let mut f = Followed::new(&pg, "create table t (id int primary key);");
    f.open().await;
    f.source = None;
    for i in 0..6 {
        pg.exec(&f.db, &format!("insert into t values ({i}); select pg_switch_wal(); checkpoint"));
    }
    conflict(f.try_open(&[], false).await, &["max_slot_wal_keep_size", "tidemill sync rm FILE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_table_on_a_busy_server_holds_no_log() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key); create table busy (id int primary key);",
    );
    f.patterns = vec!["t".into()];
    f.open().await;
    f.catch_up().await;
    f.pg.exec(&f.db, "insert into busy select i from generate_series(1, 1000) i");
    let end = lsn(&f.pg.value(&f.db, "select pg_current_wal_flush_lsn()").unwrap());
    let before = f.log.position["postgres"].clone();
    let begun = Instant::now();
    while f.log.position["postgres"] == before {
        f.poll().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "not at every keepalive");
    f.source().commit().await.unwrap();
    let confirmed = format!("select confirmed_flush_lsn from pg_replication_slots where slot_name = '{}'", f.slot());
    while lsn(&f.pg.value(&f.db, &confirmed).unwrap()) < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    assert!(f.log.changes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_are_added_or_widened_are_followed() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, v varchar(5)); insert into t values (1, 'a'), (2, 'b');",
    );
    f.open().await;
    f.catch_up().await;
    f.pg.exec(&f.db, "insert into t values (3, 'c'); alter table t add w int; insert into t values (4, 'd', 4);");
    f.catch_up().await;
    let copied = f.log.changes.iter().filter(|c| c.op == Op::Read).count();
    assert_eq!(copied, 2, "no row has another value in a column without a default");
    // What values they have now, no event says: the rows come again.
    f.pg.exec(&f.db, "alter table t alter v type text using v || '!', alter id type bigint; insert into t values (5000000000, 'longer', 5);");
    f.catch_up().await;
    f.same("t").await;
    let shown: Vec<_> = f
        .log
        .evolved
        .iter()
        .map(|t| t.columns.iter().map(|c| c.declared_type.as_str()).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(shown, ["integer character varying(5) integer", "bigint text integer"]);
    // Rows that were there have the default, and no event says so: they come again.
    f.pg.exec(&f.db, "alter table t add x int default 7; insert into t values (6, 'f', 6, 8);");
    f.catch_up().await;
    f.same("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_go_or_change_stop_the_sync_until_the_table_is_copied_anew() {
    for (change, words) in [
        ("alter table t drop v", "v was dropped or renamed"),
        ("alter table t rename v to nv", "v was dropped or renamed; new: nv"),
        ("alter table t alter v type int using 0", "v is integer, was text"),
    ] {
        let mut f = Followed::new(
            Postgres::shared(),
            "create table t (id int primary key, v text); insert into t values (1, 'a');",
        );
        f.open().await;
        f.catch_up().await;
        f.pg.exec(&f.db, &format!("insert into t values (2, 'last'); {change}; insert into t (id) values (3);"));
        conflict(f.try_catch_up().await, &["public.t", words, "tidemill sync run FILE --recopy public.t"]);
        assert_eq!(int(&f.log.changes.last().unwrap().key[0]), 2, "what came before is given out");
        conflict(f.poll().await.map(drop), &[words]);
        f.source().commit().await.unwrap();
        f.pg.exec(&f.db, "insert into t (id) values (4); alter table t add z text; insert into t (id) values (5);");
        f.try_open(&["public.t"], false).await.unwrap();
        f.log.rows.clear();
        f.catch_up().await;
        f.same("t").await;
        f.pg.exec(&f.db, "insert into t (id) values (6)");
        f.catch_up().await;
        f.same("t").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_one_table_and_new_tables_are_copied() {
    let mut f = Followed::new(Postgres::shared(), "create table p (id int, at date, primary key (id, at)) partition by range (at); create table p1 partition of p for values from ('2024-01-01') to ('2025-01-01'); create table p2 partition of p for values from ('2025-01-01') to ('2026-01-01'); insert into p values (1, '2024-05-05'), (2, '2025-05-05');
        create table parent (id int primary key); create table child (primary key (id)) inherits (parent); insert into child values (7);");
    f.open().await;
    let names: Vec<_> = f.source().tables().iter().map(|table| table.name.clone()).collect();
    assert_eq!(names, ["child", "p", "parent"]);
    f.catch_up().await;
    f.pg.exec(&f.db, "insert into p values (3, '2024-06-06'); update p set at = '2025-06-06' where id = 1; insert into child values (8); create table later (id int primary key); insert into later values (1); truncate p; insert into p values (9, '2024-01-01')");
    f.catch_up().await;
    f.open().await;
    f.pg.exec(&f.db, "insert into later values (2)");
    f.catch_up().await;
    for table in ["p", "child", "later"] {
        f.same(table).await;
    }
    assert!(!f.log.rows.contains_key("parent"), "a table's rows are not those of its children");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_run_ends_and_a_copy_alone_installs_nothing() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, v text); insert into t select i, 'x' from generate_series(1, 5000) i;",
    );
    let tables = f.connector().tables(&["t".into()]).await.unwrap();
    assert_eq!(f.connector().row_counts(&tables).await, [5_000]);
    let mut reader = f.connector().read(tables.clone()).await.unwrap();
    f.pg.exec(&f.db, "insert into t values (9999, 'later')");
    let mut rows = 0;
    loop {
        let polled = reader.poll().await.unwrap();
        rows += polled.changes.len();
        if polled.ended {
            break;
        }
    }
    assert_eq!(rows, 5_000, "all of one moment");
    let made = format!("select count(*) from pg_replication_slots where slot_name = '{}'", f.slot());
    assert_eq!(f.pg.value(&f.db, &made).as_deref(), Some("0"));
    f.try_open(&[], true).await.unwrap();
    while !f.log.ended {
        f.poll().await.unwrap();
    }
    f.same("t").await;
    let mut looking = f.connector().reader().await.unwrap();
    let keys = [vec![Value::Integer(2)], vec![Value::Integer(-1)], vec![Value::Integer(1)]];
    let found = looking.find(&tables[0], &keys).await.unwrap();
    assert_eq!(found[0].as_ref().unwrap()[0], Value::Integer(2));
    assert!(found[1].is_none() && found[2].is_some());
    f.source = None;
    let said = f.connector().remove(&f.sync(), LOG, &f.log.position, false).await.unwrap();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(f.pg.value(&f.db, &made).as_deref(), Some("0"));
    assert!(f.connector().remove(&f.sync(), LOG, &BTreeMap::new(), false).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_swapped_for_another_stops_the_sync() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, v text); insert into t values (1, 'a'); create table u (id int primary key);",
    );
    f.open().await;
    f.catch_up().await;
    // One that is gone is no reason to stop for the others.
    f.pg.exec(&f.db, "drop table u");
    f.source().look_at_tables().await.unwrap();
    f.pg.exec(
        &f.db,
        "create table new (like t including all); alter table t rename to old; alter table new rename to t; \
         insert into t values (2, 'b');",
    );
    let words = ["public.t is not published", "tidemill sync run FILE --recopy public.t"];
    conflict(f.source().look_at_tables().await, &words);
    f.source = None;
    conflict(f.try_open(&[], false).await, &words);
    f.try_open(&["public.t"], false).await.unwrap();
    f.log.rows.clear();
    f.catch_up().await;
    f.same("t").await;
    // What is left out of the publication is not missed in silence.
    f.pg.exec(&f.db, &format!("alter publication {} set table t where (id > 5), only old", f.slot()));
    conflict(f.source().look_at_tables().await, &["row filter"]);
    f.pg.exec(&f.db, &format!("drop publication {}", f.slot()));
    conflict(f.source().look_at_tables().await, &["is gone"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_told_with_its_cure() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key); create table k (v int); create unlogged table un (id int primary key); create table n (id int primary key, g int generated always as (1) stored); alter table n replica identity nothing;",
    );
    f.user = CDC;
    let tables = f.connector().tables(&["*".into()]).await.unwrap();
    let findings = f.connector().preflight(&f.sync(), "", &tables, false).await.unwrap();
    let find = |subject: &str, words: &str| {
        let found = findings.iter().find(|x| {
            x.subject == subject && (x.message.contains(words) || x.cure.as_ref().is_some_and(|c| c.contains(words)))
        });
        found.unwrap_or_else(|| panic!("{subject} {words}: {findings:#?}")).level
    };
    assert_eq!(find("wal_level", "logical"), Level::Ok);
    assert_eq!(find("role", "may replicate"), Level::Ok);
    assert_eq!(find("publication", "does not own"), Level::Refuse);
    assert_eq!(find("public.k", "ADD PRIMARY KEY"), Level::Refuse);
    assert_eq!(find("public.un", "SET LOGGED"), Level::Refuse);
    assert_eq!(find("public.n", "REPLICA IDENTITY DEFAULT"), Level::Refuse);
    assert_eq!(find("public.n", "generated columns are left out: g"), Level::Warn);
    assert_eq!(find("public.t", "can be read"), Level::Ok);
    // A role that may read and replicate follows with a publication that the owner made.
    f.patterns = vec!["t".into()];
    let error = f.try_open(&[], false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    let said = error.to_string();
    let statement = said.split_once("type: ").unwrap().1;
    let tables = f.connector().tables(&["t".into()]).await.unwrap();
    let publication = async |log: &str| {
        let findings = f.connector().preflight(&f.sync(), log, &tables, false).await.unwrap();
        findings.into_iter().find(|finding| finding.subject == "publication").unwrap()
    };
    // The same statement as the preflight's, which knows no log.
    for log in ["", LOG] {
        let found = publication(log).await;
        assert_eq!((found.level, found.cure.as_deref()), (Level::Refuse, Some(statement)));
    }
    f.pg.exec(&f.db, statement);
    for log in ["", LOG] {
        assert_eq!(publication(log).await.level, Level::Ok);
    }
    f.open().await;
    f.pg.exec(&f.db, "insert into t values (1)");
    f.catch_up().await;
    f.same("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_password_is_denied_and_not_shown() {
    let pg = Postgres::shared();
    let db = pg.fresh_database();
    let mut wrong = server(pg, &db, CDC);
    wrong.password = Some(Secret::Plain("hunter2".into()));
    let error = PostgresServer::new(wrong.clone()).tables(&["*".into()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    wrong.port = 1;
    let away = PostgresServer::new(wrong.clone()).tables(&["*".into()]).await.unwrap_err();
    assert_eq!(away.kind(), ErrorKind::Unavailable, "{away}");
    let shown = format!("{error} {error:?} {away:?} {:?}", PostgresServer::new(wrong));
    assert!(!shown.contains("hunter2"), "{shown}");
}
