//! The load that other tests rely on: its ledger is what the databases hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::servers::cut::Wire;
use crate::servers::judge::{self, Side};
use crate::servers::load::{Ledger, Load, Op, Seen, Settings, TABLES, Target};
use crate::servers::{Folder, MariaDb, Postgres};

/// The ledger's rows are those that the own client reads, of each table.
fn check<'a>(ledger: &Ledger, side: impl Fn(&'static str) -> Side<'a>) {
    for (table, columns) in TABLES {
        let read = judge::read(side(match *table {
            "wide" => "load_wide",
            "pair" => "load_pair",
            "text" => "load_text",
            _ => "load_tx",
        }));
        let names: Vec<_> = read.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, columns.iter().map(|column| column.name).collect::<Vec<_>>());
        let key = |row: &Vec<Option<String>>| -> Vec<String> {
            row.iter().zip(*columns).filter(|(_, column)| column.key).map(|(cell, _)| cell.clone().unwrap()).collect()
        };
        let found: BTreeMap<_, _> = read.rows.into_iter().map(|row| (key(&row), row)).collect();
        let expected = ledger.rows(&format!("load_{table}"));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{table}");
        for (key, row) in expected {
            assert_eq!(found[&key], row, "{table} {key:?}");
        }
    }
}

#[test]
fn the_ledger_is_what_postgres_holds() {
    let server = Postgres::shared();
    let db = server.fresh_database();
    let load = Load::start(Target::postgres(server, &db), Settings { seed: 11, ..Settings::default() });
    load.wait_for(300);
    load.pause();
    let held = load.committed();
    check(&load.ledger(), |table| Side::Postgres(server, &db, table));
    load.resume();
    load.wait_for(50);
    let ledger = load.stop();
    assert!(ledger.last() >= held + 50);
    check(&ledger, |table| Side::Postgres(server, &db, table));
    // Large values are where the log does not repeat them.
    let toasted =
        server.value(&db, "select pg_relation_size(reltoastrelid) > 0 from pg_class where relname = 'load_wide'");
    assert_eq!(toasted.as_deref(), Some("t"));
}

#[test]
fn the_ledger_is_what_mariadb_holds() {
    let server = MariaDb::shared();
    let db = server.fresh_database();
    let load = Load::start(Target::mariadb(server, &db), Settings { seed: 12, ..Settings::default() });
    load.wait_for(300);
    check(&load.stop(), |table| Side::MariaDb(server, &db, table));
}

#[test]
fn the_ledger_is_what_sqlite_holds() {
    let folder = Folder::new();
    let path = folder.path("load.db");
    let load = Load::start(Target::sqlite(&path), Settings { seed: 13, ..Settings::default() });
    load.wait_for(300);
    check(&load.stop(), |table| Side::Sqlite(&path, table));
}

#[test]
fn a_load_goes_on_after_its_server_was_killed() {
    let (mut postgres, mut mariadb) = (Postgres::start(), MariaDb::start());
    mariadb.create_database("d");
    let in_postgres =
        Load::start(Target::postgres(&postgres, "postgres"), Settings { seed: 21, ..Settings::default() });
    let in_mariadb = Load::start(Target::mariadb(&mariadb, "d"), Settings { seed: 22, ..Settings::default() });
    for _ in 0..2 {
        in_postgres.wait_for(20);
        postgres.kill9();
        postgres.start_again();
        in_mariadb.wait_for(20);
        mariadb.kill9();
        mariadb.start_again();
    }
    in_postgres.wait_for(20);
    in_mariadb.wait_for(20);
    check(&in_postgres.stop(), |table| Side::Postgres(&postgres, "postgres", table));
    check(&in_mariadb.stop(), |table| Side::MariaDb(&mariadb, "d", table));
}

/// Where the answer to a commit is lost, the ledger must have the commit all the same, and once.
#[test]
fn a_load_knows_what_it_committed_when_its_wire_is_cut() {
    let (postgres, mariadb) = (Postgres::shared(), MariaDb::shared());
    let (in_postgres, in_mariadb) = (postgres.fresh_database(), mariadb.fresh_database());
    let wires = [Wire::to(postgres.port()), Wire::to(mariadb.port())];
    let targets = [Target::postgres(postgres, &in_postgres), Target::mariadb(mariadb, &in_mariadb)];
    let loads: Vec<Load> = targets
        .into_iter()
        .zip(&wires)
        .map(|(target, wire)| {
            Load::start(target.through(wire.port()), Settings { seed: 23, rate: Some(200), ..Settings::default() })
        })
        .collect();
    for round in 1..=6 {
        for (load, wire) in loads.iter().zip(&wires) {
            wire.cut_after(round * 97);
            load.wait_for(5);
        }
    }
    let ledgers: Vec<Ledger> = loads.into_iter().map(Load::stop).collect();
    check(&ledgers[0], |table| Side::Postgres(postgres, &in_postgres, table));
    check(&ledgers[1], |table| Side::MariaDb(mariadb, &in_mariadb, table));
    assert!(wires.iter().all(|wire| wire.accepted() > 6));
}

#[test]
fn the_same_seed_writes_the_same_and_does_all_it_says() {
    let folder = Folder::new();
    let ledgers: Vec<Ledger> = ["a", "b"]
        .map(|name| {
            let load = Load::start(Target::sqlite(&folder.path(name)), Settings { seed: 14, ..Settings::default() });
            load.wait_for(200);
            load.stop()
        })
        .into();
    let [a, b] = [ledgers[0].seen(), ledgers[1].seen()];
    let both = a.len().min(b.len());
    assert_eq!(a[..both], b[..both]);
    let changes = &ledgers[0].changes;
    for op in [Op::Insert, Op::Update, Op::Delete] {
        assert!(changes.iter().filter(|change| change.op == op && !change.moved).count() > 100, "{op:?}");
    }
    assert!(changes.iter().filter(|change| change.moved).count() > 20);
    let left_alone = changes.iter().filter(|change| match (&change.before, &change.after) {
        (Some(before), Some(after)) if change.table == "load_wide" => {
            before[3] == after[3] && after[3].as_ref().is_some_and(|big| big.len() > 8000)
        }
        _ => false,
    });
    assert!(left_alone.count() > 20);
    let mut per_transaction = BTreeMap::<u64, Vec<&str>>::new();
    for change in changes {
        per_transaction.entry(change.transaction).or_default().push(&change.table);
    }
    for tables in per_transaction.values_mut() {
        tables.sort_unstable();
        tables.dedup();
    }
    assert!(per_transaction.values().filter(|tables| tables.len() > 2).count() > 50);
}

#[test]
fn a_stream_that_is_not_the_ledger_is_told() {
    let folder = Folder::new();
    let load = Load::start(Target::sqlite(&folder.path("load.db")), Settings { seed: 15, ..Settings::default() });
    load.wait_for(50);
    let ledger = load.stop();
    let perfect = ledger.seen();
    assert_eq!(ledger.differences(&perfect), Vec::<String>::new());
    let many =
        perfect.iter().position(|seen| perfect.iter().filter(|other| other.key == seen.key).count() > 3).unwrap();
    let key = perfect[many].clone();
    let next =
        (many + 1..perfect.len()).find(|i| perfect[*i].key == key.key && perfect[*i].table == key.table).unwrap();
    let spoilt: [fn(&mut Vec<Seen>, usize, usize); 5] = [
        |stream, at, _| drop(stream.remove(at)),
        |stream, at, _| stream.insert(at, stream[at].clone()),
        |stream, at, next| stream.swap(at, next),
        |stream, at, _| stream[at].after = None,
        |stream, at, _| stream[at].key = vec!["nobody".into()],
    ];
    for (i, spoil) in spoilt.iter().enumerate() {
        let mut stream = perfect.clone();
        spoil(&mut stream, many, next);
        assert!(!ledger.differences(&stream).is_empty(), "sabotage {i} was not told");
    }
    // Order between keys is free.
    let mut stream = perfect.clone();
    stream.sort_by(|a, b| (&a.table, &a.key).cmp(&(&b.table, &b.key)));
    assert_eq!(ledger.differences(&stream), Vec::<String>::new());
}

#[test]
fn a_load_keeps_its_rate_and_its_pause() {
    let folder = Folder::new();
    let settings = Settings { seed: 16, rate: Some(50), paused: true, ..Settings::default() };
    let load = Load::start(Target::sqlite(&folder.path("load.db")), settings);
    assert_eq!(load.committed(), 0);
    let started = Instant::now();
    load.resume();
    load.wait_for(11);
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
    load.pause();
    let ledger = load.ledger();
    assert_eq!(load.committed(), ledger.last());
    assert_eq!(load.stop().last(), ledger.last());
}
