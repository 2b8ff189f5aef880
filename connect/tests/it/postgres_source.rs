//! The PostgreSQL source against a real server: what it gives leads to what the tables hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tidemill_connect::Error;
use tidemill_connect::change::{Change, Op, Row, StoredValue, TableSchema, Value};
use tidemill_connect::connector::{Follow, Polled, Source, SourceConnector};
use tidemill_connect::endpoint::{Secret, Server, Tls};
use tidemill_connect::postgres::PostgresSource;
use tidemill_connect::postgres::endpoint::PostgresServer;

use super::servers::{ADMIN, PASSWORD, Postgres};

pub const LOG: &str = "0123456789abcdef0123456789abcdef";

type Key = Vec<StoredValue>;

pub fn server(pg: &Postgres, db: &str, user: &str) -> Server {
    Server {
        host: "127.0.0.1".into(),
        port: pg.port(),
        user: user.into(),
        password: Some(Secret::Plain(PASSWORD.into())),
        database: db.into(),
        tls: Tls::Disable,
    }
}

fn stored_key(key: &[Value]) -> Key {
    key.iter().map(StoredValue::from).collect()
}

/// A log in memory: rows by key, every change, and the position that was committed with them.
#[derive(Default)]
pub struct Log {
    pub rows: BTreeMap<String, std::collections::HashMap<Key, Row>>,
    pub changes: Vec<Change>,
    truncated: Vec<usize>,
    pub evolved: Vec<TableSchema>,
    pub position: BTreeMap<String, String>,
    polls: usize,
    most: usize,
    pub ended: bool,
}

impl Log {
    fn stage(&mut self, tables: &[TableSchema], polled: Polled) {
        self.polls += 1;
        self.most = self.most.max(polled.changes.len());
        self.ended = polled.ended;
        self.evolved.extend(polled.evolved.into_iter().map(|(_, schema)| schema));
        for table in polled.truncated {
            self.rows.remove(&tables[table].name);
            self.truncated.push(table);
        }
        for change in polled.changes {
            let rows = self.rows.entry(tables[change.table].name.clone()).or_default();
            let key = stored_key(&change.key);
            match (&change.op, &change.after) {
                (Op::Delete, _) => drop(rows.remove(&key)),
                (_, Some(after)) => {
                    let mut after = after.clone();
                    if let Some(old) = rows.get(&key) {
                        for (value, old) in after.iter_mut().zip(old) {
                            if *value == Value::Unchanged {
                                value.clone_from(old);
                            }
                        }
                    }
                    rows.insert(key, after);
                }
                (op, None) => panic!("{op:?} without a row"),
            }
            self.changes.push(change);
        }
        self.position.extend(polled.position);
    }
}

pub struct Followed<'a> {
    pub pg: &'a Postgres,
    pub db: String,
    pub log: Log,
    pub source: Option<PostgresSource>,
    pub patterns: Vec<String>,
    pub user: &'static str,
    pub tls: Tls,
}

impl<'a> Followed<'a> {
    pub fn new(pg: &'a Postgres, setup: &str) -> Self {
        let db = pg.fresh_database();
        pg.exec(&db, setup);
        Self::of(pg, db)
    }

    pub fn of(pg: &'a Postgres, db: String) -> Self {
        Self { pg, db, log: Log::default(), source: None, patterns: vec!["*".into()], user: ADMIN, tls: Tls::Disable }
    }

    pub fn connector(&self) -> PostgresServer {
        PostgresServer::new(Server { tls: self.tls, ..server(self.pg, &self.db, self.user) })
    }

    pub async fn try_open(&mut self, recopy: &[&str], once: bool) -> Result<(), Error> {
        // The slot is free again only when the old source is gone.
        self.source = None;
        let connector = self.connector();
        let follow = Follow {
            // Slots belong to the whole server: each database has a sync of its own.
            sync: self.sync(),
            log_id: LOG.into(),
            tables: connector.tables(&self.patterns).await?,
            stored: self.log.position.clone(),
            recopy: recopy.iter().map(|name| (*name).into()).collect(),
            once,
        };
        let mut source = connector.open_source(follow).await?;
        self.log.position.extend(source.position());
        source.commit().await?;
        self.source = Some(source);
        Ok(())
    }

    pub fn sync(&self) -> String {
        format!("shop_{}", self.db)
    }

    pub fn slot(&self) -> String {
        format!("tidemill_{}_01234567", self.sync())
    }

    pub async fn open(&mut self) {
        self.try_open(&[], false).await.unwrap();
    }

    pub fn source(&mut self) -> &mut PostgresSource {
        self.source.as_mut().unwrap()
    }

    pub async fn poll(&mut self) -> Result<bool, Error> {
        let polled = self.source().poll().await?;
        let more = polled.more;
        let tables = self.source().tables();
        self.log.stage(&tables, polled);
        Ok(more)
    }

    /// Polls until all that is committed now has come.
    pub async fn catch_up(&mut self) {
        self.try_catch_up().await.unwrap();
    }

    pub async fn try_catch_up(&mut self) -> Result<(), Error> {
        // A commit flushes the log to its end.
        self.pg.exec(&self.db, "create table if not exists _tidemill_mark (x int)");
        let end = lsn(&self.pg.value(&self.db, "select pg_current_wal_flush_lsn()").unwrap());
        let begun = Instant::now();
        loop {
            let more = self.poll().await?;
            let at = self.source().place();
            if !more && at >= end {
                self.source().commit().await?;
                return Ok(());
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "not caught up: {at} of {end}");
        }
    }

    /// What was rebuilt is what the table holds.
    pub async fn same(&mut self, table: &str) {
        let mut reader = self.connector().reader().await.unwrap();
        let schema = reader.table(None, table).await.unwrap().unwrap();
        let rows = reader.rows(&schema, None, 1_000_000).await.unwrap();
        let rebuilt = self.log.rows.get(table).cloned().unwrap_or_default();
        let mut wrong = Vec::new();
        for row in &rows {
            let key = schema.key_of(row);
            let found = rebuilt.get(&stored_key(&key));
            if found.map(|found| format!("{found:?}")) != Some(format!("{row:?}")) {
                wrong.push(format!("{row:?} is {found:?}"));
            }
        }
        assert!(wrong.is_empty(), "{table}: {} differ: {}", wrong.len(), wrong[0]);
        assert_eq!(rebuilt.len(), rows.len(), "{table} has rows too many");
    }
}

pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

pub fn int(value: &Value) -> i64 {
    match value {
        Value::Integer(i) => *i,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_comes_in_order() {
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, v text); create table u (a int, b text, primary key (b, a)); insert into t select i, 'old' from generate_series(1, 10) i;",
    );
    f.open().await;
    f.catch_up().await;
    assert_eq!(f.log.changes.len(), 10);
    assert!(f.log.changes.iter().all(|change| change.op == Op::Read));
    f.log.changes.clear();
    f.pg.exec(&f.db, "insert into t values (11, 'a'); update t set v = 'b' where id = 11; update t set id = 12 where id = 11; delete from t where id = 12;");
    f.pg.exec(&f.db, "begin; insert into t values (20, 'kept'); savepoint s; insert into t values (21, 'gone'); rollback to s; insert into u values (1, 'x'); commit; begin; insert into t values (30, 'never'); rollback;");
    f.pg.exec(&f.db, "insert into t values (40, 'before'); truncate t; insert into t values (50, 'after');");
    f.catch_up().await;
    let told: Vec<_> = f.log.changes.iter().map(|c| (c.table, c.op, int(c.key.last().unwrap()))).collect();
    assert_eq!(
        told,
        [
            (0, Op::Create, 11),
            (0, Op::Update, 11),
            (0, Op::Delete, 11),
            (0, Op::Create, 12),
            (0, Op::Delete, 12),
            (0, Op::Create, 20),
            (1, Op::Create, 1),
            (0, Op::Create, 40),
            (0, Op::Create, 50)
        ]
    );
    assert_eq!(f.log.truncated, [0]);
    let sequences: Vec<_> = f.log.changes.iter().map(|c| c.sequence).collect();
    assert!(sequences.is_sorted() && sequences[0] > 0);
    assert_eq!(f.log.changes[4].before, Some(vec![Value::Integer(12), Value::Unchanged]));
    f.same("t").await;
    f.same("u").await;
}

const TYPES: &str = "create type mood as enum ('sad', 'it''s ok');
create domain money_like as numeric(10,2); create domain deeper as money_like;
create table t (id bigint primary key, b boolean, i2 smallint, i4 int, i8 bigint, o oid, f4 real, f8 double precision,
  n numeric, n2 numeric(20,5), m money_like, mm deeper, t text, vc varchar(20), c char(5), bin bytea, d date, tm time, tmz timetz, ts timestamp,
  tsz timestamptz, ts3 timestamptz(3), iv interval, j json, jb jsonb, u uuid, arr int[], tarr text[], r int4range, e mood, ip inet, mac macaddr,
  bits bit varying(9), x xml, p point, cash money, tsv tsvector, g int generated always as (i4 / 2) stored)";

const VALUES: &str = "
insert into t (id) values (ID+1);
insert into t (id,b,i2,i4,i8,o,f4,f8,n,n2,m,mm,t,vc,c,bin,d,tm,tmz,ts,tsz,ts3,iv,j,jb,u,arr,tarr,r,e,ip,mac,bits,x,p,cash,tsv) values
 (ID+2,true,-32768,-2147483648,-9223372036854775808,4294967295,'NaN','-Infinity','NaN',-0.00001,1.5,99999999.99,E'a\\tb\\\\N\\nc\\r\\b''\"','é','a ',
  '\\x00ff5c','4713-01-01 BC','24:00:00','23:59:59.999999-15:59','4713-01-01 00:00:00 BC','294276-12-31 23:59:59.999999+00','2024-02-29 13:04:05.1239+05:30',
  '-1 year -2 mons +3 days -04:05:06.789','{\"a\" : [1, null]}','{\"b\":1.10,\"a\":\"\\u00e9\"}','A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11','{{1,2},{3,NULL}}','{\"a,b\",NULL,\"\"}','[1,5)','it''s ok',
  '10.0.0.1/8','08:00:2b:01:02:03',B'101','<a>&amp;</a>','(1.5,-2)','-12.34','fat:1A cat'),
 (ID+3,false,32767,2147483647,9223372036854775807,0,3.4028235e38,1.7976931348623157e308,'Infinity',123456789012345.67890,-0.01,0,'','','','','infinity','00:00','00:00+00','infinity','-infinity','1999-12-31 23:59:59.9996-01',
  '0','null','null','00000000-0000-0000-0000-000000000000','{}','{}','empty','sad','::1','00:00:00:00:00:00',B'','','(0,0)','0',''),
 (ID+4,null,null,null,null,null,1e-45,5e-324,1e100,0,null,null,repeat('x', 3000),null,null,decode(repeat('ab',5000),'hex'),'5874897-12-31','01:02:03.100','01:02:03.5+02','0044-03-15 12:00:00 BC','0044-03-15 12:00:00+00 BC',null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null),
 (ID+5,null,null,null,null,null,0.1,0.1,'-Infinity',null,null,null,null,null,null,null,'0001-01-01',null,null,'1970-01-01 00:00:00.5','1970-01-01 00:00:00+14',null,null,null,null,null,null,null,null,null,null,null,null,null,null,null,null);";

#[tokio::test(flavor = "multi_thread")]
async fn copy_and_stream_give_the_same_values() {
    let pg = Postgres::shared();
    let mut f = Followed::new(pg, TYPES);
    // What role and database set must not show.
    let db = f.db.clone();
    pg.exec(&db, &format!("alter database {db} set datestyle = 'SQL, DMY'; alter database {db} set timezone = 'America/New_York'; alter database {db} set bytea_output = 'escape'; alter database {db} set extra_float_digits = 0; alter database {db} set intervalstyle = 'iso_8601'; set timezone = 'UTC'; set datestyle = 'ISO, YMD';"));
    pg.exec(&db, &format!("set timezone = 'UTC'; set datestyle = 'ISO, YMD'; {}", VALUES.replace("ID", "0")));
    f.open().await;
    pg.exec(&db, &format!("set timezone = 'UTC'; set datestyle = 'ISO, YMD'; {}", VALUES.replace("ID", "100")));
    f.catch_up().await;
    let rows = f.log.rows["t"].clone();
    let row = |id: i64| rows[&vec![StoredValue::Int(id)]].clone();
    for id in 1..=5 {
        let (copied, streamed) = (format!("{:?}", &row(id)[1..]), format!("{:?}", &row(id + 100)[1..]));
        assert_eq!(copied, streamed, "row {id}");
    }
    let schema = f.source().tables()[0].clone();
    assert!(!schema.columns.iter().any(|column| column.name == "g"), "generated columns are left out");
    let value = |id: i64, name: &str| row(id)[schema.columns.iter().position(|c| c.name == name).unwrap()].clone();
    let text = |text: &str| Value::Text(text.into());
    for (id, name, expected) in [
        (1, "t", Value::Null),
        (2, "b", Value::Boolean(true)),
        (2, "i8", Value::Integer(i64::MIN)),
        (2, "o", Value::Integer(4_294_967_295)),
        (2, "n", text("NaN")),
        (2, "m", text("1.50")),
        (2, "mm", text("99999999.99")),
        (2, "t", text("a\tb\\N\nc\r\u{8}'\"")),
        (2, "c", text("a    ")),
        (2, "bin", Value::Blob(vec![0, 255, 92])),
        (2, "d", text("4713-01-01 BC")),
        (2, "tsz", text("294276-12-31T23:59:59.999999Z")),
        (2, "ts3", text("2024-02-29T07:34:05.124Z")),
        (2, "u", text("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        (2, "iv", text("-1 years -2 mons +3 days -04:05:06.789")),
        (3, "tsz", text("-infinity")),
        (3, "ts3", text("2000-01-01T01:00:00Z")),
        (5, "f8", Value::Real(0.1)),
        (5, "ts", text("1970-01-01T00:00:00.5")),
        (5, "tsz", text("1969-12-31T10:00:00Z")),
    ] {
        assert_eq!(value(id, name), expected, "{id} {name}");
    }
    f.same("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_a_change_leaves_alone_are_completed() {
    let big = "(select string_agg(md5(i::text), '') from generate_series(1, 2000) i)";
    let mut f = Followed::new(
        Postgres::shared(),
        "create table t (id int primary key, n int, big text); create table f (id int primary key, n int, big text); alter table f replica identity full; alter table t alter big set storage external; alter table f alter big set storage external;",
    );
    f.open().await;
    f.catch_up().await;
    for table in ["t", "f"] {
        f.pg.exec(&f.db, &format!("insert into {table} values (1, 1, {big}), (2, 1, {big}); update {table} set n = 2; update {table} set id = 3 where id = 2; update {table} set n = 4 where id = 1; update {table} set big = 'short' where id = 3;"));
    }
    f.pg.exec(
        &f.db,
        &format!("insert into t values (9, 1, {big}); update t set n = 2 where id = 9; delete from t where id = 9;"),
    );
    f.catch_up().await;
    f.same("t").await;
    f.same("f").await;
    let unknown = f.log.changes.iter().filter(|c| c.after.as_ref().is_some_and(|row| row.contains(&Value::Unchanged)));
    let mut keys: Vec<_> = unknown.map(|c| (c.table, int(&c.key[0]))).collect();
    keys.dedup();
    // Rows that were gone when asked: their deletes are told after.
    assert_eq!(keys, [(1, 2), (1, 9)], "those of the table with the whole row before are complete");
    let full = f.log.changes.iter().find(|c| c.table == 0 && c.op == Op::Update).unwrap();
    assert!(full.before.as_ref().unwrap().iter().all(|value| *value != Value::Unchanged));
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_it_ends_it_goes_on_without_loss_or_repetition() {
    let mut f = Followed::new(Postgres::shared(), "create table t (id int primary key, v text);");
    f.open().await;
    f.catch_up().await;
    // One transaction of several polls between small ones.
    f.pg.exec(&f.db, "insert into t values (-1, ''); insert into t select i, 'v' from generate_series(0, 9999) i; insert into t values (-2, '');");
    let mut reopened = 0;
    while !f.log.rows.get("t").is_some_and(|rows| rows.contains_key(&vec![StoredValue::Int(-2)])) {
        let before = f.log.changes.len();
        f.poll().await.unwrap();
        if f.log.changes.len() > before {
            f.source().commit().await.unwrap();
            f.open().await;
            reopened += 1;
        }
    }
    assert!(reopened >= 5, "{reopened}");
    let keys: Vec<_> = f.log.changes.iter().map(|change| int(&change.key[0])).collect();
    let expected: Vec<_> = [-1].into_iter().chain(0..10_000).chain([-2]).collect();
    assert_eq!(keys, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_in_bounded_polls() {
    let mut f = Followed::new(Postgres::shared(), "create table t (id int primary key, v text);");
    f.open().await;
    f.catch_up().await;
    f.pg.exec(&f.db, "insert into t select i, 'v' from generate_series(1, 200000) i;");
    f.catch_up().await;
    assert_eq!(f.log.changes.len(), 200_000);
    assert!(f.log.most <= 2_001, "{}", f.log.most);
}
