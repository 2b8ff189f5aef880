//! MariaDB as a source, on a real server.

use std::collections::BTreeMap;

use tidemill_connect::{
    Error, ErrorKind,
    change::{Change, Op, Row, TableSchema, Value},
    connector::{Follow, Polled, Source, SourceConnector},
    endpoint::{Endpoint, Secret},
    mysql::{Knobs, endpoint::MysqlServer},
};

use crate::servers::{ADMIN, CDC, MariaDb, PASSWORD};

/// A database of a server of its own, and a follower of its tables that can be stopped and opened again.
pub(super) struct Bench {
    pub(super) server: MariaDb,
    pub(super) knobs: Knobs,
    pub(super) stored: BTreeMap<String, String>,
    pub(super) recopy: Vec<String>,
    pub(super) once: bool,
}

impl Bench {
    pub(super) fn new(sql: &str) -> Self {
        Self::on(MariaDb::start(), sql)
    }

    pub(super) fn on(server: MariaDb, sql: &str) -> Self {
        server.create_database("shop");
        server.exec("shop", sql);
        Self { server, knobs: Knobs::default(), stored: BTreeMap::new(), recopy: Vec::new(), once: false }
    }

    pub(super) fn exec(&self, sql: &str) {
        self.server.exec("shop", sql);
    }

    pub(super) fn endpoint(&self, user: &str) -> MysqlServer {
        let password = Some(Secret::Plain(PASSWORD.into()));
        let url = Endpoint::parse(&self.server.url(user, "shop"), password, ".".as_ref()).unwrap();
        let Endpoint::Mysql(server) = url else { panic!("no server") };
        MysqlServer::new(&server).with_knobs(self.knobs)
    }

    pub(super) async fn tables(&self) -> Vec<TableSchema> {
        self.endpoint(CDC).tables(&["*".into()]).await.unwrap()
    }

    pub(super) async fn open(&self) -> Result<Box<dyn Source>, Error> {
        let follow = Follow {
            sync: "shop".into(),
            log_id: "log".into(),
            tables: self.tables().await,
            stored: self.stored.clone(),
            recopy: self.recopy.clone(),
            once: self.once,
        };
        let source = self.endpoint(CDC).follow(follow).await?;
        Ok(source)
    }

    pub(super) fn store(&mut self, polled: &Polled) {
        self.stored.extend(polled.position.iter().cloned());
    }

    /// Polls until `done`, storing positions; what was polled.
    pub(super) async fn polled(
        &mut self,
        source: &mut Box<dyn Source>,
        mut done: impl FnMut(&Polled) -> bool,
    ) -> Result<Vec<Polled>, Error> {
        self.stored.extend(source.position());
        let mut all = Vec::new();
        for _ in 0..150 {
            let polled = source.poll().await?;
            assert!(polled.changes.len() <= 2_001, "a poll is bounded");
            self.store(&polled);
            source.commit().await?;
            let ends = done(&polled);
            all.push(polled);
            if ends {
                return Ok(all);
            }
        }
        panic!("it never came: {:?}", all.last());
    }

    /// Copies everything there is.
    pub(super) async fn copied(&mut self) -> (Box<dyn Source>, Vec<Change>) {
        let mut source = self.open().await.unwrap();
        let mut left = source.tables().len();
        let polled = self.polled(&mut source, |polled| {
            left -= polled.finished_tables.len();
            left == 0
        });
        let polled = polled.await.unwrap();
        (source, polled.into_iter().flat_map(|polled| polled.changes).collect())
    }

    /// Changes until `count` came.
    pub(super) async fn changes(&mut self, source: &mut Box<dyn Source>, count: usize) -> Vec<Change> {
        let mut left = count as i64;
        let polled = self.polled(source, |polled| {
            left -= polled.changes.len() as i64;
            left <= 0
        });
        let changes: Vec<Change> = polled.await.unwrap().into_iter().flat_map(|polled| polled.changes).collect();
        assert_eq!(changes.len(), count, "{changes:?}");
        changes
    }

    /// The error that comes.
    pub(super) async fn error(&mut self, source: &mut Box<dyn Source>) -> Error {
        self.polled(source, |polled| polled.ended).await.expect_err("it stops")
    }

    /// All rows of a table, read by the source's own reader.
    pub(super) async fn rows(&self, table: usize) -> Vec<Row> {
        let schema = self.tables().await.remove(table);
        self.endpoint(ADMIN).reader().await.unwrap().rows(&schema, None, 1_000_000).await.unwrap()
    }
}

pub(super) fn int(number: i64) -> Value {
    Value::Integer(number)
}

pub(super) fn ops(changes: &[Change]) -> Vec<(Op, i64)> {
    let key = |change: &Change| match change.key[0] {
        Value::Integer(key) => key,
        _ => panic!("no number"),
    };
    changes.iter().map(|change| (change.op, key(change))).collect()
}

/// Applies changes to what a target would hold.
pub(super) fn apply(state: &mut BTreeMap<String, Row>, changes: &[Change]) {
    for change in changes {
        let key = format!("{}/{:?}", change.table, change.key);
        match change.op {
            Op::Delete => drop(state.remove(&key)),
            _ => drop(state.insert(key, change.after.clone().unwrap())),
        }
    }
}

#[tokio::test]
async fn each_operation_is_a_change_in_its_order() {
    let mut bench = Bench::new(
        "create table a (id int primary key, v varchar(20)); create table b (id int primary key, v int);
         insert into a values (1, 'one')",
    );
    let (mut source, copied) = bench.copied().await;
    assert_eq!(ops(&copied), [(Op::Read, 1)]);
    bench.exec(
        "insert into a values (2, 'two'); update a set v = 'zwei' where id = 2; update a set id = 3 where id = 2;
         delete from a where id = 3",
    );
    let changes = bench.changes(&mut source, 5).await;
    assert_eq!(ops(&changes), [(Op::Create, 2), (Op::Update, 2), (Op::Delete, 2), (Op::Create, 3), (Op::Delete, 3)]);
    let text = |text: &str| Some(vec![int(2), Value::Text(text.into())]);
    assert_eq!((&changes[1].before, &changes[1].after), (&text("two"), &text("zwei")));
    assert!(changes.windows(2).all(|pair| pair[0].sequence <= pair[1].sequence) && changes[0].sequence > 0);
    bench.exec(
        "start transaction; insert into a values (10, 'x'); savepoint s; insert into a values (11, 'y');
         rollback to s; insert into b values (10, 1); commit;
         start transaction; insert into a values (12, 'z'); rollback;
         insert into b values (11, 1) on duplicate key update v = 2;
         replace into b values (10, 7)",
    );
    let changes = bench.changes(&mut source, 4).await;
    assert_eq!(ops(&changes)[..3], [(Op::Create, 10), (Op::Create, 10), (Op::Create, 11)]);
    assert_eq!(changes[3].after, Some(vec![int(10), int(7)]));
    assert_eq!(changes.iter().map(|change| change.table).collect::<Vec<_>>(), [0, 1, 1, 1]);
}

#[tokio::test]
async fn truncating_comes_in_its_order() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a values (1), (2)");
    let (mut source, _) = bench.copied().await;
    bench.exec("insert into a values (3); truncate table a; insert into a values (4)");
    let mut seen = Vec::new();
    let polled = bench.polled(&mut source, |polled| polled.changes.iter().any(|c| c.key == [int(4)])).await.unwrap();
    for polled in polled {
        seen.extend(polled.truncated.iter().map(|_| (Op::Read, -1)));
        seen.extend(ops(&polled.changes));
    }
    assert_eq!(seen, [(Op::Create, 3), (Op::Read, -1), (Op::Create, 4)]);
}

const TYPES: &str = "create table t (
    id int primary key,
    ti tinyint, tu tinyint unsigned, si smallint, mi mediumint, mu mediumint unsigned, i int, iu int unsigned,
    b bigint, bu bigint unsigned, z int(6) unsigned zerofill, y year, after_year int unsigned,
    f float, d double, de decimal(65,30), d2 decimal(10,2), dz decimal(8,3) zerofill, bi bit(10), b64 bit(64),
    da date, t0 time, t3 time(3), t6 time(6), dt datetime, dt1 datetime(1), dt6 datetime(6), ts timestamp null,
    ts2 timestamp(2) null, ts6 timestamp(6) null,
    e enum('a', 'b''c', 'd,e', 'g\\\\h') character set latin1, s set('x', 'y', 'zä') character set utf8mb4,
    c char(5), cl char(5) character set latin1, v varchar(300) character set utf8mb4, l varchar(20) character set latin1,
    u2 varchar(20) character set ucs2, u16 text character set utf16, u32 char(3) character set utf32,
    u3 mediumtext character set utf8mb3, bn binary(8), vb varbinary(300), bl longblob, tb tinyblob,
    j json, uu uuid, i6 inet6, i4 inet4, g geometry, p point)";

const VALUES: &[&str] = &[
    "1, -128, 255, -32768, -8388608, 16777215, -2147483648, 4294967295, -9223372036854775808, 18446744073709551615, 42,
     2155, 4294967295, 3.4028235e38, 1.7976931348623157e308, 12345678901234567890123456789012345.123456789012345678901234567890,
     -12345678.9, 1.5, b'1111111111', 18446744073709551615, '9999-12-31', '838:59:59', '-838:59:59.999',
     '-101:02:03.5', '9999-12-31 23:59:59', '2024-02-29 13:04:05.2', '0001-01-01 00:00:00.000001',
     '2038-01-19 03:14:07', '2024-02-29 13:04:05.25', '1970-01-01 00:00:01.000001', 'b''c', 'x,zä', 'abc  ', 'ü€',
     'tide 🌊', '€uro ÿ', 'ħ', '🌊 x', '🌊', 'ß', x'0100', x'00ff00', x'0001', '', '{\"a\": [1, 2.50, \"ü\"]}',
     '11223344-5566-4788-99aa-bbccddeeff00', '2001:db8::ff00:42:8300', '192.168.0.0', point(1, 2), point(-1.5, 0)",
    "2, 127, 0, 32767, 8388607, 0, 2147483647, 0, 9223372036854775807, 9223372036854775808, 1234567, 1901, 0, 0.1,
     -0.1, 0, 0.01, 0, 0, 0, '0000-00-00', '-00:00:01', '-00:00:00.001', '838:59:59.999999', '0000-00-00 00:00:00',
     '1000-01-01 00:00:00', '2024-02-29 13:04:05', '0000-00-00 00:00:00', '1970-01-01 00:00:01', '2038-01-19 03:14:07.999999',
     '', '', '', '', '', '', '', '', '', '', '', '', '', x'00', 'null', '00000000-0000-0000-0000-000000000000', '::',
     '0.0.0.0', null, null",
    "3, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null, null, null, null, null, null, null",
    "4, -1, 1, -1, -1, 1, -1, 1, -1, 1, 0, 0, 7, 16777217, 0.30000000000000004, -0.000000000000000000000000000001,
     99999999.99, 99999.999, 5, 1, '2024-12-01', '-12:00:00', '-12:30:00.5', '00:00:00.000001', '2024-01-01 00:00:00',
     '2024-01-01 00:00:00.9', '2024-01-01 00:00:00.100000', '2000-01-01 00:00:00', '2000-01-01 00:00:00.10',
     '2000-01-01 00:00:00', 'g\\\\h', 'x,y,zä', ' a', 'a', repeat('é', 300), 'x', 'x', 'x', 'xyz', 'x', repeat(x'ff', 8),
     repeat(x'ab', 300), repeat(x'00', 70000), x'ff', '[]', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '::ffff:1.2.3.0',
     '255.255.255.255', st_geomfromtext('linestring(0 0, 1 1)', 4326), point(0, 0)",
];

/// The same datum has the same value, read by the copy and by the binlog.
async fn types_agree(server: MariaDb, adapt: &str) {
    let mut bench = Bench::on(server, &format!("{adapt}{TYPES}"));
    let (mut source, _) = bench.copied().await;
    let rows: Vec<_> = VALUES.iter().map(|values| format!("({values})")).collect();
    bench.exec(&format!("set sql_mode = ''; insert into t values {}", rows.join(", ")));
    bench.exec("insert into t (id, uu, i6) values (5, '11223344-5566-1788-99aa-bbccddeeff00', '::1:0:0'), (6, '11223344-5566-7788-19aa-bbccddeeff00', '1::'), (7, null, '1:0:0:2::3'), (8, null, '::1.2.3.4'), (9, null, '1:2:3:4:5:6:7:8'), (10, null, '::1'), (11, null, '1:0:2:3:4:5:6:7')");
    let streamed = bench.changes(&mut source, 11).await;
    let columns = source.tables().remove(0).columns;
    let selected = bench.rows(0).await;
    bench.stored.clear();
    let (_, copied) = bench.copied().await;
    for ((change, selected), copied) in streamed.iter().zip(&selected).zip(&copied) {
        let after = change.after.as_ref().unwrap();
        for (i, column) in columns.iter().enumerate() {
            let (name, declared) = (&column.name, &column.declared_type);
            assert_eq!(after[i], selected[i], "{name} {declared}, row {:?}", change.key);
            assert_eq!(Some(&after[i]), copied.after.as_ref().map(|row| &row[i]), "{name}");
        }
    }
    let cell = |row: usize, name: &str| {
        let at = columns.iter().position(|column| column.name == name).unwrap();
        selected[row][at].clone()
    };
    let text = |text: &str| Value::Text(text.into());
    for (row, name, expected) in [
        (0, "bu", Value::Unsigned(u64::MAX)),
        (0, "after_year", int(4_294_967_295)),
        (0, "t3", text("-838:59:59.999")),
        (0, "t6", text("-101:02:03.5")),
        (0, "dt6", text("0001-01-01T00:00:00.000001")),
        (0, "ts2", text("2024-02-29T13:04:05.25Z")),
        (0, "e", text("b'c")),
        (0, "s", text("x,zä")),
        (0, "bn", Value::Blob(vec![1, 0, 0, 0, 0, 0, 0, 0])),
        (0, "d2", text("-12345678.90")),
        (0, "dz", text("1.500")),
        (1, "f", Value::Real(0.1)),
        (1, "da", text("0000-00-00")),
        (1, "dt", text("0000-00-00T00:00:00")),
        (1, "ts", text("0000-00-00T00:00:00Z")),
        (1, "e", text("")),
        (3, "e", text(r"g\h")),
        (0, "b64", Value::Unsigned(u64::MAX)),
    ] {
        assert_eq!(cell(row, name), expected, "{name}");
    }
}

#[tokio::test]
async fn every_type_has_the_same_value_in_the_copy_and_the_binlog() {
    types_agree(MariaDb::start(), "").await;
}

#[tokio::test]
async fn so_it_has_without_names_in_the_binlog_and_compressed() {
    let server = MariaDb::options().unset("binlog_row_metadata").set("log_bin_compress", "ON");
    types_agree(server.set("log_bin_compress_min_len", "10").start(), "").await;
}

/// Rows in the order of their first number.
pub(super) fn sorted(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by_key(|row| if let Value::Integer(key) = row[0] { key } else { 0 });
    rows
}

#[tokio::test]
async fn a_source_goes_on_where_it_was_and_stops_where_columns_go() {
    let mut bench = Bench::new("create table a (id int primary key, v varchar(20)); insert into a values (1, 'x')");
    let (source, copied) = bench.copied().await;
    let mut state = BTreeMap::new();
    apply(&mut state, &copied);
    drop(source);
    bench.exec("insert into a select seq, 'big' from seq_2_to_6001; update a set v = 'y' where id < 4000");
    let mut sequence = Vec::new();
    // Opened anew after every poll.
    while sequence.len() < 9_999 {
        let mut source = bench.open().await.unwrap();
        let polled = bench.polled(&mut source, |polled| !polled.changes.is_empty()).await.unwrap();
        let changes: Vec<Change> = polled.into_iter().flat_map(|polled| polled.changes).collect();
        apply(&mut state, &changes);
        sequence.extend(ops(&changes));
    }
    let created = (2..=6001).map(|id| (Op::Create, id));
    assert_eq!(sequence, created.chain((1..4000).map(|id| (Op::Update, id))).collect::<Vec<_>>());
    assert_eq!(sorted(state.into_values()), bench.rows(0).await);
    let mut source = bench.open().await.unwrap();
    bench.exec("alter table a add w int; insert into a values (7000, 'z', 5)");
    let polled = bench.polled(&mut source, |polled| !polled.changes.is_empty()).await.unwrap();
    assert!(polled.iter().any(|polled| polled.evolved.iter().any(|(_, table)| table.columns.len() == 3)));
    let last = polled.last().unwrap().changes.last().unwrap();
    assert_eq!(last.after, Some(vec![int(7000), Value::Text("z".into()), int(5)]));
    bench.exec("alter table a drop v");
    let error = bench.error(&mut source).await;
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("gone: v") && error.to_string().contains("--recopy shop.a"), "{error}");
}

/// A copy while another program writes; whether what comes out of it is the table.
async fn copy_under_writes(knobs: Knobs) {
    let mut bench =
        Bench::new("create table a (id int primary key, v int); insert into a select seq, 0 from seq_1_to_30000");
    bench.knobs = knobs;
    bench.exec("grant lock tables on shop.* to cdc");
    let mut writer = bench.server.client(ADMIN, "shop");
    let script = "for i in 1..400 do update a set v = v + 1 where id % 97 = i % 97; delete from a where id = i * 70;
                  insert into a values (100000 + i, i); update a set id = id + 200000 where id = i * 70 + 1; end for";
    let writing = writer
        .args(["-e", &format!("delimiter //\nbegin not atomic {script}; end//")])
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // On a busy machine the client takes a while to begin.
    while bench.server.value("shop", "select count(*) from a where id > 100000").as_deref() == Some("0") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (mut source, copied) = bench.copied().await;
    assert!(writing.wait_with_output().unwrap().status.success());
    bench.exec("insert into a values (999999, 0)");
    let mut state = BTreeMap::new();
    apply(&mut state, &copied);
    let polled =
        bench.polled(&mut source, |polled| polled.changes.iter().any(|c| c.key == [int(999_999)])).await.unwrap();
    polled.iter().for_each(|polled| apply(&mut state, &polled.changes));
    assert!(copied.iter().any(|change| change.op != Op::Read), "nothing was written meanwhile");
    assert!(sorted(state.into_values()) == bench.rows(0).await, "the copy differs");
}

#[tokio::test]
async fn a_copy_is_exact_while_others_write() {
    copy_under_writes(Knobs::default()).await;
}

#[tokio::test]
async fn so_it_is_where_a_lock_tells_its_place() {
    copy_under_writes(Knobs { lock_tables: true, ..Knobs::default() }).await;
}

#[tokio::test]
async fn what_the_position_does_not_know_is_named() {
    let mut bench = Bench::new("create table a (id int primary key); insert into a values (1)");
    let (mut source, _) = bench.copied().await;
    // A connection that is cut is made anew.
    let dump = "select id from information_schema.processlist where command = 'Binlog Dump'";
    let id = bench.server.value("shop", dump).unwrap();
    bench.exec(&format!("kill {id}"));
    bench.exec("insert into a values (2)");
    let error = loop {
        match source.poll().await {
            Ok(polled) => assert!(polled.changes.is_empty(), "the connection was not cut"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(ops(&bench.changes(&mut source, 1).await), [(Op::Create, 2)]);
    drop(source);
    bench.exec("insert into a values (3); flush logs; flush logs");
    bench.exec("select sleep(1); purge binary logs before now()");
    let error = bench.open().await.err();
    let error = match error {
        Some(error) => error,
        None => {
            let mut source = bench.open().await.unwrap();
            bench.error(&mut source).await
        }
    };
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("no longer has the binlog"), "{error}");
    bench.exec("set global server_id = 5");
    let error = bench.open().await.err().unwrap();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("another one"), "{error}");
    bench.exec("set global server_id = 101; reset master");
    let error = bench.open().await.err().unwrap();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("went backwards"), "{error}");
}
