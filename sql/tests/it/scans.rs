//! What a scan reads: cuts, gaps, hidden columns, schemas of several ages, changes, plain records, cancellation.

use std::sync::{
    Arc, Mutex,
    atomic::Ordering,
    mpsc::{Receiver, Sender, channel},
};

use bytes::Bytes;
use futures::StreamExt as _;
use tidemill_connect::{
    change::{Op, Value},
    converter::TopicSchema,
};
use tidemill_core::{
    batch::{Batch, BatchBuilder, patch_base_offset},
    record::{Header, Record, Timestamp},
    topic::{PartitionId, TopicInfo},
};
use tidemill_sql::{ErrorKind, Result, Topics};

use crate::{
    csv, error,
    log::{ColumnSpec, Log},
    music::{Music, integer, string},
    session, session_with,
};

const PAIR: &[ColumnSpec<'_>] = &[("id", "INTEGER", true, Some(0)), ("v", "TEXT", false, None)];

fn pair(id: i64, v: &str) -> Vec<Value> {
    vec![integer(id), string(v)]
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_columns_are_there_when_named() {
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    log.rows(&schema, [pair(1, "a"), pair(2, "b")]);
    log.change(&schema, Op::Update, Some(pair(1, "a")), Some(pair(1, "c")));
    let session = session(log);
    let all = "_partition,_offset,_timestamp,_key\n0,1,1970-01-01T00:00:00Z,\"{\"\"id\"\":2}\"\n0,2,1970-01-01T00:00:01Z,\"{\"\"id\"\":1}\"\n";
    assert_eq!(csv(&session, "select _partition, _offset, _timestamp, _key from pair order by _offset").await, all);
    assert_eq!(
        csv(&session, "select _headers from pair limit 1").await,
        "_headers\n\"[{\"\"name\"\":\"\"tm-schema\"\",\"\"value\"\":\"\"1\"\"}]\"\n"
    );
    // A star never shows them, wherever they are named.
    assert_eq!(csv(&session, "select * from pair order by _offset").await, "id,v\n2,b\n1,c\n");
    assert_eq!(csv(&session, "select *, _offset from pair order by 1").await, "id,v,_offset\n1,c,2\n2,b,1\n");
    assert_eq!(csv(&session, "select _offset, p.* from pair p where p._offset > 1").await, "_offset,id,v\n2,1,c\n");
    assert_eq!(csv(&session, "select * from (select * from pair where _OFFSET = 1) x").await, "id,v\n2,b\n");
    let joined = "select *, p._offset from pair p join pair q using (id) order by id";
    assert_eq!(csv(&session, joined).await, "id,v,v,_offset\n1,c,c,2\n2,b,b,1\n");
    assert_eq!(csv(&session, "select s.pair.*, _partition from s.pair where id = 1").await, "id,v,_partition\n1,c,0\n");
    assert_eq!(
        csv(&session, "select count(*) from pair where _timestamp >= '1970-01-01T00:00:01Z'").await,
        "count(*)\n1\n"
    );
    let e = error(&session, "select _offset from (select * from pair) x").await;
    assert!(e.to_string().contains("no column \"_offset\""), "{e}");
    let e = error(&session, "select *, p._offset from pair p natural join pair q").await;
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert_eq!(csv(&session, "select count(*) from pair p natural join pair q").await, "count(*)\n2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_of_the_source_hides_ours() {
    let mut log = Log::default();
    let schema = log.table("s", "t", 1, &[("id", "INTEGER", true, Some(0)), ("_offset", "TEXT", false, None)]);
    log.rows(&schema, [vec![integer(1), string("mine")]]);
    let session = session(log);
    assert_eq!(csv(&session, "select _offset, _partition from t").await, "_offset,_partition\nmine,0\n");
    assert_eq!(csv(&session, "select * from t").await, "id,_offset\n1,mine\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_cut_is_seen() {
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    // One batch, so that records outside the cut are in batches inside it.
    log.rows(&schema, [pair(1, "outside"), pair(2, "a"), pair(3, "b"), pair(4, "outside")]);
    let partition = log.partition("s.pair", 0);
    log.skip(partition, 1_000);
    log.rows(&schema, [pair(2, "c")]);
    let end = 1_005;
    log.cuts.insert(partition, (1, 3));
    let session = session(log);
    for (sql, answer) in [
        ("select * from pair order by id", "id,v\n2,a\n3,b\n"),
        ("select count(*) from pair", "count(*)\n2\n"),
        (
            "select count(*), min(_offset), max(_offset) from changes_of(pair)",
            "count(*),min(_offset),max(_offset)\n2,1,2\n",
        ),
    ] {
        assert_eq!(csv(&session, sql).await, answer, "{sql}");
    }
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    log.rows(&schema, [pair(1, "outside"), pair(2, "a"), pair(3, "b")]);
    let partition = log.partition("s.pair", 0);
    log.skip(partition, 1_001);
    log.rows(&schema, [pair(2, "c")]);
    log.cuts.insert(partition, (1, end));
    let session = crate::session(log);
    assert_eq!(csv(&session, "select *, _offset from pair order by id").await, "id,v,_offset\n2,c,1004\n3,b,2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_a_delete_without_its_tombstone() {
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    log.rows(&schema, [pair(1, "a"), pair(2, "b"), pair(3, "c")]);
    log.change(&schema, Op::Delete, Some(pair(2, "b")), None);
    log.change(&schema, Op::Update, Some(pair(3, "c")), Some(pair(3, "d")));
    let partition = log.partition("s.pair", 0);
    for end in [4, 5] {
        log.cuts.insert(partition, (0, end));
        let session = session_with(Arc::new(std::mem::take(&mut log)), None);
        assert_eq!(csv(&session, "select count(*) from pair").await, "count(*)\n2\n", "cut at {end}");
        assert_eq!(csv(&session, "select * from pair").await, "id,v\n1,a\n3,c\n", "cut at {end}");
        log = Log::default();
        let schema = log.table("s", "pair", 1, PAIR);
        log.rows(&schema, [pair(1, "a"), pair(2, "b"), pair(3, "c")]);
        log.change(&schema, Op::Delete, Some(pair(2, "b")), None);
        log.change(&schema, Op::Update, Some(pair(3, "c")), Some(pair(3, "d")));
    }
    let session = session(log);
    assert_eq!(csv(&session, "select count(*) from pair").await, "count(*)\n2\n");
    assert_eq!(csv(&session, "select v from pair").await, "v\na\nd\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_events() {
    let mut log = Log::default();
    let schema = log.table("s", "Pair", 1, PAIR);
    log.rows(&schema, [pair(1, "a")]);
    log.change(&schema, Op::Create, None, Some(pair(2, "b")));
    log.change(&schema, Op::Update, Some(pair(1, "a")), Some(pair(1, "c")));
    log.change(&schema, Op::Delete, Some(pair(2, "b")), None);
    log.change(&schema, Op::Create, None, Some(pair(2, "d")));
    let session = session(log);
    // Offset 4 is the tombstone.
    let all = "_op,_offset,_timestamp,id,v\nr,0,1970-01-01T00:00:00Z,1,a\nc,1,1970-01-01T00:00:01Z,2,b\n\
               u,2,1970-01-01T00:00:02Z,1,c\nd,3,1970-01-01T00:00:03Z,2,b\nc,5,1970-01-01T00:00:04Z,2,d\n";
    assert_eq!(csv(&session, "select * from changes_of(Pair)").await, all);
    assert_eq!(csv(&session, "select * from changes_of(s.\"Pair\") where _offset > 4").await.lines().count(), 2);
    assert_eq!(csv(&session, "select count(*) from changes_of(pair)").await, "count(*)\n5\n");
    assert_eq!(
        csv(&session, "select c.ID, _partition from Changes_Of(pair) c where _op = 'd'").await,
        "id,_partition\n2,0\n"
    );
    let both = "select p.v, c.v from pair p join changes_of(pair) as c on c.id = p.id and c._op = 'r'";
    assert_eq!(csv(&session, both).await, "v,v\nc,a\n");
    let e = error(&session, "select * from changes_of(nothing)").await;
    assert_eq!(e.kind(), ErrorKind::NotFound);
    for sql in
        ["select * from changes_of('pair')", "select * from changes_of(pair, pair)", "select * from changes_of()"]
    {
        assert_eq!(error(&session, sql).await.kind(), ErrorKind::Invalid, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_older_schemas_are_read_by_name() {
    let mut log = Log::default();
    let first: &[ColumnSpec<'_>] =
        &[("id", "INTEGER", true, Some(0)), ("gone", "TEXT", true, None), ("n", "INTEGER", true, None)];
    let old = log.table("s", "t", 1, first);
    log.rows(&old, [vec![integer(1), string("x"), integer(10)], vec![integer(2), string("y"), integer(20)]]);
    let second: &[ColumnSpec<'_>] =
        &[("added", "TEXT", true, None), ("n", "REAL", true, None), ("id", "INTEGER", true, Some(0))];
    let new = log.schema("s", "t", "s.t", second);
    log.change(&new, Op::Update, None, Some(vec![string("z"), Value::Real(2.5), integer(2)]));
    let session = session(log);
    // What the older schema lacks is NULL, although the present one forbids NULL; integers are widened.
    assert_eq!(csv(&session, "select * from t order by id").await, "added,n,id\n,10.0,1\nz,2.5,2\n");
    assert_eq!(csv(&session, "select count(*) from t where added is null").await, "count(*)\n1\n");
    let columns = "column,type,nullable\nadded,TEXT,true\nn,DOUBLE,false\nid,BIGINT,false\n";
    assert_eq!(csv(&session, "describe t").await, columns);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_topics_show_keys_and_values_as_text() {
    let mut log = Log::default();
    let partitions = log.topic("plain", 2);
    let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let long = b"a value longer than the twelve bytes of a view, with \xc3\xa4";
    let headers = vec![Header::text("a", "1"), Header { name: Bytes::from_static(b"a"), value: None }];
    log.append(
        partitions[0],
        &[
            Record { key: bytes(b"k"), value: bytes(long), headers, timestamp: Some(Timestamp(-1)) },
            Record { key: None, value: None, ..Record::default() },
            Record { key: bytes(b"\xff\x00"), value: bytes(b"cut \xc3"), ..Record::default() },
        ],
    );
    log.append(partitions[1], &[Record::new(bytes(b"other"), bytes(b""))]);
    let reads = Arc::clone(&log.reads);
    let session = session(log);
    let visible = "_key,_value\n\\xff00,\\x63757420c3\nk,\"a value longer than the twelve bytes of a view, with ä\"\nother,\"\"\n,\n";
    assert_eq!(csv(&session, "select * from plain order by _key nulls last").await, visible);
    let one = "select _headers, _timestamp from plain where _offset = 0 and _partition = 0";
    let expected = "_headers,_timestamp\n\"[{\"\"name\"\":\"\"a\"\",\"\"value\"\":\"\"1\"\"},{\"\"name\"\":\"\"a\"\",\"\"value\"\":null}]\",1969-12-31T23:59:59.999Z\n";
    assert_eq!(csv(&session, one).await, expected);
    // The filter keeps the other partition from being read at all.
    reads.store(0, Ordering::Relaxed);
    assert_eq!(csv(&session, "select count(*) from plain where 1 = _partition").await, "count(*)\n1\n");
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    for (filter, count) in [
        ("_offset >= 1", 2),
        ("_offset < 1", 2),
        ("2 <= _offset", 1),
        ("_offset = 7", 0),
        ("_offset > 0 or _key = 'k'", 3),
        ("not _offset = 0", 2),
    ] {
        let sql = format!("select count(*) as n from plain where {filter}");
        assert_eq!(csv(&session, &sql).await, format!("n\n{count}\n"), "{filter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_on_offsets_brings_no_older_row_back() {
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    log.rows(&schema, [pair(1, "old")]);
    log.rows(&schema, [pair(1, "new")]);
    let session = session(log);
    assert_eq!(csv(&session, "select v from pair where _offset < 1").await, "v\n");
    assert_eq!(csv(&session, "select v from changes_of(pair) where _offset < 1").await, "v\nold\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_named() {
    let key = || Some(Bytes::from_static(b"{\"id\":1}"));
    for (record, text) in [
        (Record::new(key(), Bytes::from_static(b"{\"after\":")), "s.pair[0]@1: not a change event"),
        (Record::new(key(), Bytes::from_static(b"[]")), "s.pair[0]@1: not a change event"),
        (Record::new(None, Bytes::from_static(b"{}")), "s.pair[0]@1: a row without a key"),
        (
            Record::new(key(), Bytes::from_static(b"{\"after\":{\"id\":1,\"id\":2,\"v\":null},\"op\":\"c\"}")),
            "s.pair[0]@1: column \"id\" occurs twice",
        ),
        (
            Record::new(key(), Bytes::from_static(b"{\"after\":{\"id\":1,\"v\":{\"$x\":1}},\"op\":\"c\"}")),
            "s.pair[0]@1: column \"v\": value {\"$x\":1} is none that a source writes",
        ),
    ] {
        let mut log = Log::default();
        let schema = log.table("s", "pair", 1, PAIR);
        log.rows(&schema, [pair(9, "fine")]);
        log.append(log.partition("s.pair", 0), &[record]);
        let e = error(&session(log), "select * from pair").await;
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
        assert!(e.to_string().starts_with(text), "{e}");
    }
}

/// A topic without an end, whose reads wait for the test; tells when it is no longer used.
#[derive(Debug)]
struct Endless {
    started: Sender<()>,
    permits: Mutex<Receiver<()>>,
    dropped: Sender<()>,
    schema: Option<TopicSchema>,
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

impl Topics for Endless {
    fn topics(&self) -> Vec<TopicInfo> {
        let partitions = vec![PartitionId(0)];
        vec![TopicInfo {
            name: "s.pair".to_owned(),
            id: String::new(),
            partitions,
            created_ms: 0,
            config: Default::default(),
        }]
    }

    fn schemas(&self) -> Result<Vec<TopicSchema>> {
        Ok(self.schema.iter().cloned().collect())
    }

    fn cut(&self, _: &[PartitionId]) -> Result<Vec<(i64, i64)>> {
        Ok(vec![(0, i64::MAX / 4)])
    }

    fn read(&self, _: PartitionId, offset: i64, _: usize, _: i64) -> Result<(Vec<Batch>, i64)> {
        let _ = self.started.send(());
        // Fails once the test has given up its end, which then holds nothing back.
        let _ = self.permits.lock().expect("one reader").recv();
        let mut builder = BatchBuilder::default();
        let key = Bytes::from(format!("{{\"id\":{offset}}}"));
        builder.push(&Record::new(key, Bytes::from("{\"before\":null,\"after\":{}}")), Timestamp(0))?;
        let mut bytes = builder.finish().to_vec();
        patch_base_offset(&mut bytes, offset);
        Ok((vec![Batch::parse(&Bytes::from(bytes))?], offset + 1))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_result_ends_the_scan() {
    let schema = Log::default().table("s", "pair", 1, PAIR);
    for (schema, sql) in [
        (Some(schema.clone()), "select count(*) from pair"),
        (Some(schema), "select count(*) from changes_of(pair)"),
        (None, "select _value from \"s.pair\""),
    ] {
        let ((started, starts), (permit, permits), (dropped, drops)) = (channel(), channel(), channel());
        let endless = Endless { started, permits: Mutex::new(permits), dropped, schema };
        let session = session_with(Arc::new(endless), None);
        let mut result = session.query(sql).await.expect("plans");
        // The first poll starts the scan, which waits in its first read.
        assert!(futures::poll!(result.stream.next()).is_pending());
        for _ in 0..3 {
            tokio::task::block_in_place(|| starts.recv()).expect("a read");
            permit.send(()).expect("the scan waits");
        }
        drop(result);
        drop(session);
        drop(permit);
        let ended = tokio::task::block_in_place(|| drops.recv_timeout(std::time::Duration::from_secs(60)));
        assert!(ended.is_ok(), "{sql}: still reading");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counting_reads_no_values() {
    let mut log = Log::default();
    let schema = log.table("s", "pair", 1, PAIR);
    log.rows(&schema, [pair(1, "a")]);
    // Whoever parses this fails.
    let broken = Record::new(Bytes::from_static(b"{\"id\":2}"), Bytes::from_static(b"{\"before\":null,?"));
    log.append(log.partition("s.pair", 0), &[broken]);
    let session = session(log);
    assert_eq!(csv(&session, "select count(*) as n from pair").await, "n\n2\n");
    assert_eq!(csv(&session, "select max(_offset) as n from changes_of(pair)").await, "n\n1\n");
    assert_eq!(error(&session, "select count(v) from pair").await.kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_partitions_are_one_table() {
    let music = Music::new();
    let session = session(music.log);
    let spread = "select _partition, count(*) > 5 as some from Track group by _partition order by 1";
    assert_eq!(csv(&session, spread).await, "_partition,some\n0,true\n1,true\n2,true\n");
}
