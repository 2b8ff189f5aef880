//! MariaDB as a source: columns and tables that change, several followers, large transactions, bounded runs.

use std::collections::BTreeMap;

use tidemill_connect::{
    change::{Change, Op, Row, Value},
    connector::{Follow, Source, SourceConnector},
    endpoint::{Endpoint, Secret},
    mysql::endpoint::MysqlServer,
};

use super::mysql_source::{Bench, apply, int, ops, sorted};
use crate::servers::{CDC, MariaDb, PASSWORD};

fn text(text: &str) -> Value {
    Value::Text(text.into())
}

#[tokio::test]
async fn columns_that_widen_or_come_are_followed() {
    let mut bench = Bench::new("create table a (id int primary key, v int); insert into a values (1, 1), (2, 2)");
    let (mut source, _) = bench.copied().await;
    bench.exec("alter table a modify v bigint; insert into a values (3, 9000000000)");
    let polled = bench.polled(&mut source, |polled| !polled.changes.is_empty()).await.unwrap();
    let (_, wider) = polled.iter().flat_map(|polled| &polled.evolved).next().unwrap();
    assert_eq!(wider.columns[1].declared_type, "bigint(20)");
    assert_eq!(polled.last().unwrap().changes[0].after, Some(vec![int(3), int(9_000_000_000)]));
    assert_eq!(polled.iter().map(|polled| polled.changes.len()).sum::<usize>(), 1, "nothing comes again");
    // Rows that are there have the default, which no event tells: they come again.
    bench.exec("alter table a add w int not null default 7; insert into a values (4, 4, 8)");
    let (mut state, mut again) = (BTreeMap::new(), 0);
    let polled = bench.polled(&mut source, |polled| !polled.finished_tables.is_empty()).await.unwrap();
    for polled in &polled {
        apply(&mut state, &polled.changes);
        again += polled.changes.iter().filter(|change| change.op == Op::Read).count();
    }
    assert!(again >= 3, "{again}");
    assert_eq!(sorted(state.into_values()), bench.rows(0).await);
}

#[tokio::test]
async fn a_dropped_table_ends_and_the_others_go_on() {
    let mut bench = Bench::new(
        "create table a (id int primary key); create table b (id int primary key); insert into a values (1);
         insert into b values (1)",
    );
    let (mut source, _) = bench.copied().await;
    bench.exec("insert into a values (2); drop table a; insert into b values (2)");
    let changes = bench.changes(&mut source, 2).await;
    assert_eq!(changes.iter().map(|c| c.table).collect::<Vec<_>>(), [0, 1]);
    // A table of its name is another one, also for who was away.
    drop(source);
    bench.exec("create table a (id int primary key)");
    let mut source = bench.open().await.unwrap();
    let error = bench.error(&mut source).await;
    assert!(error.to_string().contains("--recopy shop.a"), "{error}");
}

#[tokio::test]
async fn a_database_is_named_as_the_server_spells_it() {
    let folds = MariaDb::options().set("lower_case_table_names", "1").start();
    let bench = Bench::on(folds, "create table a (id int primary key)");
    let named = |name: &str| {
        let url = bench.server.url(CDC, name);
        let Endpoint::Mysql(server) =
            Endpoint::parse(&url, Some(Secret::Plain(PASSWORD.into())), ".".as_ref()).unwrap()
        else {
            panic!("no server")
        };
        MysqlServer::new(&server)
    };
    let error = named("Shop").tables(&["*".into()]).await.unwrap_err();
    assert!(error.to_string().contains("the server calls database Shop shop"), "{error}");
    assert_eq!(named("shop").tables(&["*".into()]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_table_made_anew_stops_the_sync() {
    let mut bench = Bench::new("create table a (id int primary key); create table b (id int primary key)");
    let (mut source, _) = bench.copied().await;
    bench.exec("drop table a; create table a (id int primary key); insert into a values (9); insert into b values (3)");
    let error = bench.error(&mut source).await;
    assert!(error.to_string().contains("--recopy shop.a"), "{error}");
}

#[tokio::test]
async fn what_nobody_follows_stops_nobody() {
    let mut bench = Bench::new("create table a (id int primary key)");
    let (mut source, _) = bench.copied().await;
    bench.exec(
        "create table z (id int, c text compressed, v varchar(300) compressed, k text character set big5, g geometry);
         set session binlog_row_image = 'MINIMAL';
         insert into z values (1, repeat('x', 1000), repeat('y', 200), 'z', point(1, 1)); update z set id = 2;
         truncate table z; insert into z (id) values (3); alter table z drop c; drop table z;
         set session binlog_format = 'STATEMENT'; create table y (id int); insert into y values (1);
         set session binlog_format = 'ROW', session binlog_row_image = 'FULL'; insert into a values (1)",
    );
    assert_eq!(ops(&bench.changes(&mut source, 1).await), [(Op::Create, 1)]);
}

#[tokio::test]
async fn two_followers_share_a_server() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a values (1)");
    let (mut source, _) = bench.copied().await;
    let follow = Follow {
        sync: "other".into(),
        log_id: "log".into(),
        tables: bench.tables().await,
        stored: bench.stored.clone(),
        recopy: Vec::new(),
        once: false,
    };
    let mut other: Box<dyn Source> = bench.endpoint(CDC).follow(follow).await.unwrap();
    for id in 2..6 {
        bench.exec(&format!("insert into a values ({id})"));
        assert_eq!(ops(&bench.changes(&mut source, 1).await), [(Op::Create, id)]);
        assert_eq!(ops(&bench.changes(&mut other, 1).await), [(Op::Create, id)]);
    }
}

#[tokio::test]
async fn a_large_transaction_comes_in_bounded_polls() {
    let mut bench = Bench::new("create table a (id int primary key, v varchar(100))");
    let (mut source, _) = bench.copied().await;
    bench.exec("insert into a select seq, repeat('x', 50) from seq_1_to_200000");
    let (mut next, mut polls) = (1, 0);
    while next <= 200_000 {
        // Opened anew in the middle.
        if polls == 40 {
            source = bench.open().await.unwrap();
        }
        let polled = source.poll().await.unwrap();
        assert!(polled.changes.len() <= 2_001, "a poll is bounded");
        bench.stored.extend(polled.position);
        source.commit().await.unwrap();
        for change in &polled.changes {
            assert_eq!((change.op, &change.key), (Op::Create, &vec![int(next)]));
            next += 1;
        }
        polls += 1;
        assert!(polls < 2_000);
    }
    bench.exec("delete from a where id = 7");
    assert_eq!(ops(&bench.changes(&mut source, 1).await), [(Op::Delete, 7)]);
}

#[tokio::test]
async fn a_bounded_follower_ends_where_the_server_was() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a select seq from seq_1_to_3000");
    bench.once = true;
    for round in 0..3 {
        let mut source = bench.open().await.unwrap();
        // Later than the end.
        bench.exec(&format!("insert into a values ({})", 10_000 + round));
        let polled = bench.polled(&mut source, |polled| polled.ended).await.unwrap();
        let changes: Vec<Change> = polled.into_iter().flat_map(|polled| polled.changes).collect();
        let mut keys: Vec<i64> = ops(&changes).into_iter().map(|(_, key)| key).collect();
        keys.sort_unstable();
        // A row may come as a change and with the copy.
        keys.dedup();
        match round {
            0 => assert!(keys.starts_with(&(1..=3_000).collect::<Vec<_>>()) && keys.len() <= 3_001, "{}", keys.len()),
            // What the round before may have seen already does not come again.
            _ => assert!(keys.len() <= 2 && keys.iter().all(|key| *key > 9_999), "{keys:?}"),
        }
    }
}

#[tokio::test]
async fn a_copy_alone_is_one_snapshot() {
    let bench = Bench::new(
        "create table a (id int primary key, v int); create table b (x varchar(20), y decimal(10,2), primary key (x, y));
         insert into a select seq, 0 from seq_1_to_5000; insert into b values ('k', 1.50)",
    );
    let mut source = bench.endpoint(CDC).read(bench.tables().await).await.unwrap();
    bench.exec("update a set v = 1; delete from b; insert into a values (6000, 1)");
    let (mut rows, mut finished) = (Vec::new(), Vec::new());
    loop {
        let polled = source.poll().await.unwrap();
        assert!(polled.changes.len() <= 2_000);
        assert!(polled.changes.iter().all(|change| change.op == Op::Read));
        rows.extend(polled.changes.into_iter().map(|change| (change.table, change.after.unwrap())));
        finished.extend(polled.finished_tables);
        if polled.ended {
            break;
        }
    }
    let of_b: Vec<&Row> = rows.iter().filter(|(table, _)| *table == 1).map(|(_, row)| row).collect();
    assert_eq!(of_b, [&vec![text("k"), text("1.50")]]);
    let expected: Vec<Row> = (1..=5_000).map(|id| vec![int(id), int(0)]).collect();
    let of_a: Vec<Row> = rows.iter().filter(|(table, _)| *table == 0).map(|(_, row)| row.clone()).collect();
    assert!(of_a == expected && finished == [0, 1], "{} rows, {finished:?}", of_a.len());
}

#[tokio::test]
async fn rows_are_found_by_their_keys() {
    let bench = Bench::new(
        "create table a (id int primary key, v int); insert into a select seq * 2, seq from seq_1_to_500;
         create table b (x varchar(20) character set latin1, y decimal(10,2), z varbinary(10), d datetime(3),
             v text, primary key (x, y, z, d));
         insert into b values ('ü', 1.50, x'00ff', '2024-01-02 03:04:05.25', 'one'), ('a''b', -2, '', '0001-01-01', 'two')",
    );
    let tables = bench.tables().await;
    let mut reader = bench.endpoint(CDC).reader().await.unwrap();
    let keys: Vec<Row> = (1..=500).rev().map(|id| vec![int(id)]).collect();
    let found = reader.find(&tables[0], &keys).await.unwrap();
    for (key, found) in keys.iter().zip(found) {
        let Value::Integer(id) = key[0] else { unreachable!() };
        assert_eq!(found, (id % 2 == 0).then(|| vec![int(id), int(id / 2)]));
    }
    let all = reader.rows(&tables[1], None, 10).await.unwrap();
    let mut keys: Vec<Row> = all.iter().map(|row| tables[1].key_of(row)).collect();
    keys.push(vec![text("x"), text("1.50"), Value::Blob(vec![0, 255]), text("2024-01-02T03:04:05.25")]);
    let found = reader.find(&tables[1], &keys).await.unwrap();
    assert_eq!(found, [Some(all[0].clone()), Some(all[1].clone()), None]);
}
