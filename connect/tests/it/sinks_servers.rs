//! Sinks of database servers, each test on PostgreSQL and MariaDB alike, judged by the servers' own clients.

use std::{path::Path, sync::Arc};

use tidemill_connect::{
    ErrorKind, Result,
    change::{Change, Column, Op, Row, TableSchema, Value},
    connector::{Level, Sink, SinkConnector, TopicChanges},
    converter::TopicSchema,
    endpoint::{Endpoint, Secret},
    types::Dialect,
};

use crate::servers::{ADMIN, CDC, MariaDb, PASSWORD, Postgres, SINK, cut::Wire, skipped};

/// A database that a test writes to.
enum Target {
    Postgres(&'static Postgres, String),
    Maria(&'static MariaDb, String),
}

fn targets() -> [Target; 2] {
    let (postgres, maria) = (Postgres::shared(), MariaDb::shared());
    [Target::Postgres(postgres, postgres.fresh_database()), Target::Maria(maria, maria.fresh_database())]
}

fn connector(url: &str, password: &str) -> Box<dyn SinkConnector> {
    Endpoint::parse(url, Some(Secret::Plain(password.into())), Path::new(".")).unwrap().sink().unwrap()
}

impl Target {
    fn connector(&self) -> Box<dyn SinkConnector> {
        match self {
            Self::Postgres(server, db) => connector(&server.url(SINK, db), PASSWORD),
            Self::Maria(server, db) => connector(&server.url(SINK, db), PASSWORD),
        }
    }

    async fn open(&self) -> Box<dyn Sink> {
        let mut sink = self.connector().open("s", "L").await.unwrap();
        sink.positions().await.unwrap();
        sink
    }

    /// As the user of the sink, whose tables then are ours to change.
    fn query(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let rows = match self {
            Self::Postgres(server, db) => server.query_as(SINK, db, sql),
            Self::Maria(server, db) => server.query_as(SINK, db, sql),
        };
        rows.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Rows as `a|b`, NULL as `~`.
    fn rows(&self, sql: &str) -> Vec<String> {
        let cell = |cell: Option<String>| cell.unwrap_or_else(|| "~".into());
        self.query(sql).into_iter().map(|row| row.into_iter().map(cell).collect::<Vec<_>>().join("|")).collect()
    }
}

fn schema(id: u64, from: Dialect, columns: &[(&str, &str)]) -> Arc<TopicSchema> {
    let column = |(place, (name, declared)): (usize, &(&str, &str))| Column {
        name: (*name).into(),
        declared_type: (*declared).into(),
        not_null: place == 0,
        key: (place == 0).then_some(0),
    };
    let columns = columns.iter().enumerate().map(column).collect();
    let space = (from == Dialect::Postgres).then(|| "public".to_owned());
    let table = TableSchema { schema: space, name: "t".into(), columns };
    Arc::new(TopicSchema { id, ..TopicSchema::draft("s", from, &table) })
}

fn numbers(id: u64) -> Arc<TopicSchema> {
    schema(id, Dialect::Sqlite, &[("id", "INTEGER"), ("v", "TEXT")])
}

fn text(text: &str) -> Value {
    match text {
        "~" => Value::Null,
        "?" => Value::Unchanged,
        text => Value::Text(text.into()),
    }
}

fn pair(id: i64, v: &str) -> Row {
    vec![Value::Integer(id), text(v)]
}

fn change(op: Op, row: Row, sequence: i64) -> Change {
    let key = vec![row[0].clone()];
    match op {
        Op::Delete => Change { table: 0, op, key, before: Some(row), after: None, sequence },
        _ => Change { table: 0, op, key, before: None, after: Some(row), sequence },
    }
}

async fn put(sink: &mut dyn Sink, schema: &Arc<TopicSchema>, changes: Vec<Change>, next: i64) -> Result<()> {
    let topic = schema.topic.clone();
    sink.put(vec![TopicChanges { schema: Arc::clone(schema), changes }], vec![(topic, next)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_applied_with_their_positions() {
    for target in targets() {
        let mut sink = target.open().await;
        let schema = numbers(1);
        let copy: Vec<_> = (0..1000).map(|i| change(Op::Read, pair(i, &format!("v{i}")), 0)).collect();
        put(&mut *sink, &schema, copy.clone(), 1000).await.unwrap();
        // The same rows again: nothing is doubled, though the table was being filled.
        put(&mut *sink, &schema, copy, 2000).await.unwrap();
        let mixed = vec![
            change(Op::Update, pair(1, "new"), 1),
            change(Op::Delete, pair(2, "v2"), 2),
            change(Op::Create, pair(5000, "it's \\ a\ttab\nand 'quotes' 🌊"), 3),
            change(Op::Delete, pair(3, "v3"), 4),
            change(Op::Create, pair(3003, "v3"), 4),
            change(Op::Create, pair(6000, "x"), 5),
            change(Op::Delete, pair(6000, "x"), 6),
            change(Op::Update, pair(4, "~"), 7),
        ];
        put(&mut *sink, &schema, mixed, 2008).await.unwrap();
        assert_eq!(target.rows("select count(*) from t"), ["1000"]);
        assert_eq!(
            target.rows("select id, v from t where id in (1,2,3,4,5000,3003,6000) order by id"),
            ["1|new", "4|~", "3003|v3", "5000|it's \\ a\ttab\nand 'quotes' 🌊"]
        );
        assert_eq!(sink.positions().await.unwrap().next["s.t"], 2008);
        // Many changes of all kinds, through the merge.
        let many = (0..500).map(|i| match i % 3 {
            0 => change(Op::Delete, pair(i + 100, ""), i),
            1 => change(Op::Update, pair(i + 100, "upd"), i),
            _ => change(Op::Create, pair(i + 10_000, "cre"), i),
        });
        put(&mut *sink, &schema, many.collect(), 3000).await.unwrap();
        assert_eq!(target.rows("select count(*), sum(case when v = 'upd' then 1 else 0 end) from t"), ["999|167"]);
        let forgotten = target.connector().forget("s", "L").await.unwrap().unwrap();
        assert!(forgotten.contains("positions removed"));
        assert_eq!(target.rows("select count(*) from t"), ["999"]);
    }
}

/// More than go into one statement of literals: through temporary tables, where there are.
#[tokio::test(flavor = "multi_thread")]
async fn changes_by_the_thousand_are_one_transaction() {
    for target in targets() {
        let mut sink = target.open().await;
        let schema = numbers(1);
        let copy: Vec<_> = (0..6000).map(|i| change(Op::Read, pair(i, &format!("v{i}")), 0)).collect();
        put(&mut *sink, &schema, copy.clone(), 6000).await.unwrap();
        put(&mut *sink, &schema, copy, 12_000).await.unwrap();
        assert_eq!(target.rows("select count(*), count(distinct v) from t"), ["6000|6000"]);
        // A topic twice in one transaction: the second part finds nothing of the first in its way.
        let part = |gone: std::ops::Range<i64>, new: std::ops::Range<i64>, v: &'static str| TopicChanges {
            schema: Arc::clone(&schema),
            changes: gone
                .map(|i| change(Op::Delete, pair(i, ""), i))
                .chain(new.map(|i| change(Op::Update, pair(i, v), i)))
                .collect(),
        };
        let parts =
            vec![part(0..1500, 1500..4000, "a"), part(1500..2000, 2000..3500, "b"), part(2000..3100, 0..10, "c")];
        sink.put(parts, vec![("s.t".to_owned(), 20_000)]).await.unwrap();
        let left = "select case when v like 'v%' then 'v' else v end w, count(*), min(id), max(id) from t group by 1 order by 1";
        assert_eq!(target.rows(left), ["a|500|3500|3999", "b|400|3100|3499", "c|10|0|9", "v|2000|4000|5999"]);
        assert_eq!(sink.positions().await.unwrap().next["s.t"], 20_000);
        // Rows that swap a value, and a row that is refused for good.
        target.query("delete from t where id < 4000");
        match &target {
            Target::Postgres(..) => target.query("create unique index u on t (v)"),
            Target::Maria(..) => target.query("alter table t modify v varchar(20); create unique index u on t (v)"),
        };
        let mut sink = target.open().await;
        let moved = |i: i64, to: i64| change(Op::Update, pair(i, &format!("v{to}")), i);
        let swap = [change(Op::Update, pair(4000, "away"), 1)].into_iter();
        let swap = swap.chain((4001..6000).map(|i| moved(i, i - 1))).chain([moved(4000, 5999)]);
        put(&mut *sink, &schema, swap.collect(), 30_000).await.unwrap();
        assert_eq!(
            target.rows("select id from t where v in ('v4000', 'v5998', 'v5999') order by id"),
            ["4000", "4001", "5999"]
        );
        let refused = (7000..8500).map(|i| change(Op::Create, pair(i, if i == 8400 { "v5000" } else { "~" }), i));
        let error = put(&mut *sink, &schema, refused.collect(), 40_000).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains("8400"), "{error}");
        assert_eq!(target.rows("select count(*) from t"), ["2000"]);
        assert_eq!(sink.positions().await.unwrap().next["s.t"], 30_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_others_are_refused_and_replaced_when_asked() {
    for target in targets() {
        target.query("create table t (id bigint primary key, v int); insert into t values (1, 1)");
        let schema = numbers(1);
        let mut sink = target.open().await;
        let error = sink.check(&[(*schema).clone()]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("holds rows") && error.to_string().contains("--replace"), "{error}");
        assert_eq!(put(&mut *sink, &schema, vec![], 1).await.unwrap_err().kind(), ErrorKind::Conflict);
        target.query("delete from t");
        let error = sink.check(&[(*schema).clone()]).await.unwrap_err().to_string();
        assert!(error.contains("is empty but") && error.contains("column v"), "{error}");
        let findings = target.connector().preflight("s", "L", &[(*schema).clone()]).await.unwrap();
        assert!(findings.iter().any(|f| f.level == Level::Refuse && f.message.contains("column v")), "{findings:?}");
        drop(sink);
        let (mut sink, dropped) = target.connector().replace("s", "L", &[(*schema).clone()]).await.unwrap();
        assert_eq!(dropped.len(), 1);
        sink.positions().await.unwrap();
        put(&mut *sink, &schema, vec![change(Op::Read, pair(1, "a"), 0)], 1).await.unwrap();
        // Another log must not go on here.
        let Err(other) = target.connector().open("s", "M").await else { panic!("another log's target") };
        assert!(other.to_string().contains("another log"), "{other}");
        // Another copy: the table is made anew.
        let again = schema_with(&schema, 2, None);
        put(&mut *sink, &again, vec![change(Op::Read, pair(9, "b"), 0)], 2).await.unwrap();
        assert_eq!(target.rows("select id, v from t"), ["9|b"]);
    }
}

fn schema_with(schema: &TopicSchema, id: u64, copy: Option<u64>) -> Arc<TopicSchema> {
    Arc::new(TopicSchema { id, copy, ..schema.clone() })
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_may_swap_a_value_of_a_unique_index() {
    for target in targets() {
        let schema = schema(1, Dialect::Mysql, &[("id", "int"), ("v", "varchar(20)")]);
        let mut sink = target.open().await;
        put(&mut *sink, &schema, vec![], 0).await.unwrap();
        target.query("create unique index u on t (v)");
        let mut sink = target.open().await;
        let first = vec![change(Op::Create, pair(1, "a"), 1), change(Op::Create, pair(2, "b"), 2)];
        put(&mut *sink, &schema, first, 2).await.unwrap();
        let swap = vec![
            change(Op::Update, pair(1, "c"), 3),
            change(Op::Update, pair(2, "a"), 4),
            change(Op::Update, pair(1, "b"), 5),
        ];
        put(&mut *sink, &schema, swap, 5).await.unwrap();
        assert_eq!(target.rows("select id, v from t order by id"), ["1|b", "2|a"]);
        // What the index refuses for good is told, and nothing of it stays.
        let twice = vec![change(Op::Create, pair(3, "z"), 6), change(Op::Create, pair(4, "a"), 7)];
        let error = put(&mut *sink, &schema, twice, 7).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains("s.t") && error.to_string().contains('4'), "{error}");
        assert_eq!(target.rows("select count(*) from t"), ["2"]);
        put(&mut *sink, &schema, vec![change(Op::Create, pair(3, "z"), 6)], 6).await.unwrap();
        assert_eq!(target.rows("select count(*) from t"), ["3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn untold_values_stay_and_columns_are_added() {
    for target in targets() {
        let first = schema(1, Dialect::Postgres, &[("id", "integer"), ("v", "text"), ("w", "text")]);
        let row = |id, v, w| vec![Value::Integer(id), text(v), text(w)];
        let mut sink = target.open().await;
        let rows = (0..100).map(|i| change(Op::Read, row(i, "big", "x"), 0)).collect();
        put(&mut *sink, &first, rows, 100).await.unwrap();
        let partial = vec![
            change(Op::Update, row(1, "?", "y"), 1),
            change(Op::Update, row(2, "small", "?"), 2),
            change(Op::Delete, row(3, "?", "x"), 3),
            change(Op::Create, row(300, "?", "moved"), 3),
        ];
        put(&mut *sink, &first, partial, 104).await.unwrap();
        let seen = "select id, v, w from t where id in (1, 2, 3, 300) order by id";
        assert_eq!(target.rows(seen), ["1|big|y", "2|small|x", "300|big|moved"]);
        let wider = [("id", "bigint"), ("v", "text"), ("w", "text"), ("n", "integer")];
        let wider = schema_with(&schema(2, Dialect::Postgres, &wider), 2, Some(1));
        let row = vec![Value::Integer(i64::MAX), text("v"), text("w"), Value::Integer(7)];
        // Rows of the older shape may still come before those of the newer one, also after a restart.
        for _ in 0..2 {
            let old = vec![change(Op::Create, vec![Value::Integer(500), text("o"), text("o")], 8)];
            let changes = vec![
                TopicChanges { schema: Arc::clone(&first), changes: old },
                TopicChanges { schema: Arc::clone(&wider), changes: vec![change(Op::Create, row.clone(), 9)] },
            ];
            sink.put(changes, vec![("s.public.t".into(), 105)]).await.unwrap();
            sink = target.open().await;
        }
        assert_eq!(
            target.rows("select id, v, n from t where id >= 300 order by id"),
            ["300|big|~", "500|o|~", "9223372036854775807|v|7"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_worker_is_shut_out() {
    for target in targets() {
        let schema = numbers(1);
        let (mut old, mut new) = (target.open().await, target.open().await);
        put(&mut *old, &schema, vec![change(Op::Create, pair(1, "a"), 1)], 1).await.unwrap();
        new.positions().await.unwrap();
        put(&mut *new, &schema, vec![change(Op::Update, pair(1, "b"), 2)], 2).await.unwrap();
        let error = put(&mut *old, &schema, vec![change(Op::Update, pair(1, "stale"), 1)], 2).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains("another worker"), "{error}");
        assert_eq!(target.rows("select v from t"), ["b"]);
        put(&mut *new, &schema, vec![change(Op::Update, pair(1, "c"), 3)], 3).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_values_name_their_key_and_passwords_are_not_told() {
    for target in targets() {
        let schema = schema(1, Dialect::Sqlite, &[("id", "INTEGER"), ("v", "INTEGER")]);
        let mut sink = target.open().await;
        let bad = vec![change(Op::Create, pair(41, "no number"), 1)];
        let error = put(&mut *sink, &schema, bad, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let said = error.to_string();
        assert!(said.contains("41") && said.contains("column v") && said.contains("no number"), "{said}");
        let url = match &target {
            Target::Postgres(server, db) => server.url(SINK, db),
            Target::Maria(server, db) => server.url(SINK, db),
        };
        let Err(error) = connector(&url, "hunter2").open("s", "L").await else { panic!("a wrong password") };
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_written_to_again() {
    let (mut postgres, mut maria) = (Postgres::start(), MariaDb::start());
    let (a, b) = (postgres.fresh_database(), maria.fresh_database());
    let schema = numbers(1);
    let mut sinks = Vec::new();
    for url in [postgres.url(SINK, &a), maria.url(SINK, &b)] {
        let mut sink = connector(&url, PASSWORD).open("s", "L").await.unwrap();
        sink.positions().await.unwrap();
        put(&mut *sink, &schema, vec![change(Op::Create, pair(1, "a"), 1)], 1).await.unwrap();
        sinks.push(sink);
    }
    postgres.kill9();
    maria.kill9();
    let next = || vec![change(Op::Create, pair(2, "b"), 2)];
    for sink in &mut sinks {
        for _ in 0..2 {
            let error = put(&mut **sink, &schema, next(), 2).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    }
    postgres.start_again();
    maria.start_again();
    for sink in &mut sinks {
        put(&mut **sink, &schema, next(), 2).await.unwrap();
    }
    assert_eq!(postgres.value(&a, "select count(*) from t").as_deref(), Some("2"));
    assert_eq!(maria.value(&b, "select count(*) from t").as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_that_is_cut_refuses_nothing() {
    let schema = numbers(1);
    for target in targets() {
        let (port, url) = match &target {
            Target::Postgres(server, db) => (server.port(), server.url(SINK, db)),
            Target::Maria(server, db) => (server.port(), server.url(SINK, db)),
        };
        let wire = Wire::to(port);
        let to = connector(&url.replace(&format!(":{port}/"), &format!(":{}/", wire.port())), PASSWORD);
        put(&mut *to.open("s", "L").await.unwrap(), &schema, vec![change(Op::Create, pair(1, "a"), 1)], 1)
            .await
            .unwrap();
        let mut cut = 0;
        for bytes in (0..4_000).step_by(100) {
            wire.cut_after(bytes);
            match to.preflight("s", "L", &[(*schema).clone()]).await {
                Ok(findings) => assert!(findings.iter().all(|f| f.level != Level::Refuse), "{findings:?}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                    cut += 1;
                }
            }
        }
        assert!(cut > 5, "the wire was cut {cut} times only");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_for_comparing_are_bounded_by_their_bytes() {
    for target in targets() {
        let url = match &target {
            Target::Postgres(server, db) => {
                let rows = "insert into big select i, repeat('x', 3000000) from generate_series(1, 30) i";
                server.exec(db, &format!("create table big (id int primary key, v text); {rows}"));
                server.url(ADMIN, db)
            }
            Target::Maria(server, db) => {
                let rows = "insert into big select seq, repeat('x', 3000000) from seq_1_to_30";
                server.exec(db, &format!("create table big (id int primary key, v longtext); {rows}"));
                server.url(ADMIN, db)
            }
        };
        let mut reader = connector(&url, PASSWORD).reader().await.unwrap();
        let table = reader.table(None, "big").await.unwrap().unwrap();
        let (mut after, mut pages, mut count) = (None, 0, 0);
        loop {
            let rows = reader.rows(&table, after.as_ref(), 5_000).await.unwrap();
            let Some(last) = rows.last() else { break };
            after = Some(table.key_of(last));
            (pages, count) = (pages + 1, count + rows.len());
        }
        assert_eq!(count, 30);
        assert!(pages > 1, "all 90 MB at once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_wire_loses_nothing_and_doubles_nothing() {
    const ROUNDS: i64 = 120;
    for target in targets() {
        let port = match &target {
            Target::Postgres(server, _) => server.port(),
            Target::Maria(server, _) => server.port(),
        };
        let wire = Wire::to(port);
        let url = match &target {
            Target::Postgres(server, db) => server.url(SINK, db),
            Target::Maria(server, db) => server.url(SINK, db),
        };
        let url = url.replace(&format!(":{port}/"), &format!(":{}/", wire.port()));
        let mut sink = connector(&url, PASSWORD).open("s", "L").await.unwrap();
        sink.positions().await.unwrap();
        let schema = numbers(1);
        let mut failed = 0;
        for round in 0..ROUNDS {
            // In the middle of any answer, that to the commit among them.
            wire.cut_after(u64::try_from(round * 7 % 211).unwrap());
            let changes = || {
                let last = change(Op::Update, pair(-1, &format!("{round}")), round);
                let moved =
                    [change(Op::Delete, pair(round, ""), round), change(Op::Create, pair(round + 1, "x"), round)];
                moved.into_iter().chain([last]).collect()
            };
            while let Err(error) = put(&mut *sink, &schema, changes(), round + 1).await {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                failed += 1;
            }
        }
        assert!(failed > ROUNDS / 4, "the wire was cut {failed} times only");
        drop(wire);
        assert_eq!(
            target.rows("select id, v from t order by id"),
            [format!("-1|{}", ROUNDS - 1), format!("{ROUNDS}|x")]
        );
        let positions = target.open().await.positions().await.unwrap();
        assert_eq!(positions.next["s.t"], ROUNDS);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_tells_what_stands_in_the_way_and_its_cure() {
    for target in targets() {
        let first = numbers(1);
        let found = async || target.connector().preflight("s", "L", &[(*first).clone()]).await.unwrap();
        let findings = found().await;
        assert!(findings.iter().all(|finding| finding.level != Level::Refuse), "{findings:?}");
        let mut sink = target.open().await;
        put(&mut *sink, &first, vec![], 0).await.unwrap();
        target.query("create table child (id bigint primary key, p bigint, foreign key (p) references t (id))");
        target.query("alter table t add column n int unique");
        let findings = found().await;
        let told =
            |level: Level, message: &str| findings.iter().find(|f| f.level == level && f.message.contains(message));
        let cure = told(Level::Refuse, "foreign key").and_then(|finding| finding.cure.clone()).unwrap();
        assert!(told(Level::Warn, "unique index").is_some(), "{findings:?}");
        target.query(&cure);
        assert!(found().await.iter().all(|finding| finding.level != Level::Refuse));
    }
    // Rights that are missing, with the statement that gives them.
    let (postgres, maria) = (Postgres::shared(), MariaDb::shared());
    let (a, b) = (postgres.fresh_database(), maria.fresh_database());
    let first = numbers(1);
    for (url, given) in [(postgres.url(CDC, &a), "GRANT USAGE, CREATE ON SCHEMA"), (maria.url(CDC, &b), "GRANT ")] {
        let findings = connector(&url, PASSWORD).preflight("s", "L", &[(*first).clone()]).await.unwrap();
        let refused: Vec<_> = findings.iter().filter(|finding| finding.level == Level::Refuse).collect();
        let cure = refused.first().and_then(|finding| finding.cure.clone()).unwrap_or_default();
        assert!(cure.contains(given), "{findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() {
    let (postgres, maria) = (Postgres::start(), MariaDb::start());
    let disks = (postgres.database_on_a_small_disk(30), maria.database_on_a_small_disk(30));
    let (Some((a, a_disk)), Some((b, b_disk))) = disks else {
        return skipped("a_full_disk_is_waited_for", "file systems cannot be mounted here");
    };
    let count = "select count(*) from t";
    for (url, disk, rows) in [
        (postgres.url(SINK, &a), a_disk, &(|| postgres.value(&a, count)) as &dyn Fn() -> Option<String>),
        (maria.url(SINK, &b), b_disk, &(|| maria.value(&b, count))),
    ] {
        let mut sink = connector(&url, PASSWORD).open("s", "L").await.unwrap();
        sink.positions().await.unwrap();
        let schema = numbers(1);
        for round in 0..4 {
            let rows = || (0..5000).map(|i| change(Op::Create, pair(round * 5000 + i, &"x".repeat(200)), i)).collect();
            if round == 2 {
                disk.fill();
                for _ in 0..3 {
                    let error = put(&mut *sink, &schema, rows(), round + 1).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                }
                disk.free();
            }
            put(&mut *sink, &schema, rows(), round + 1).await.unwrap();
        }
        assert_eq!(rows().as_deref(), Some("20000"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_differ_in_case_or_spaces_stay_apart() {
    for target in targets() {
        let keyed = schema(1, Dialect::Postgres, &[("id", "text"), ("v", "numeric(30,0)")]);
        let keys = ["a", "a ", "A", "", "é", "e\u{301}", "it's"];
        let row = |key: &str| vec![Value::Text(key.into()), Value::Text("123456789012345678901234567890".into())];
        let mut sink = target.open().await;
        put(&mut *sink, &keyed, keys.iter().map(|key| change(Op::Read, row(key), 0)).collect(), 7).await.unwrap();
        assert_eq!(target.rows("select count(*) from t where v = 123456789012345678901234567890"), ["7"]);
        let gone = ["a ", "it's"].iter().map(|key| change(Op::Delete, row(key), 1)).collect();
        put(&mut *sink, &keyed, gone, 9).await.unwrap();
        assert_eq!(target.rows("select count(*) from t"), ["5"]);
        assert_eq!(target.rows("select count(*) from t where id = 'a'"), ["1"]);
        // A key that MySQL's index cannot hold is refused, not cut.
        let long = put(&mut *sink, &keyed, vec![change(Op::Create, row(&"k".repeat(256)), 2)], 10).await;
        match target {
            Target::Postgres(..) => long.unwrap(),
            Target::Maria(..) => assert_eq!(long.unwrap_err().kind(), ErrorKind::Conflict),
        }
    }
}
