//! Windows of `TUMBLE`: which rows are in them, for every type of time, against SQLite's arithmetic.

use rusqlite::Connection;
use tidemill_connect::change::Value;
use tidemill_sql::{ErrorKind, Session};

use crate::{
    chinook, csv, error,
    log::Log,
    music::{compare_with, integer, sqlites, string},
    session,
};

/// Orders before and after 1970, many of them exactly at a window's start or a millisecond beside it, some without a
/// time: as milliseconds and as the texts that SQLite makes of them.
const ORDERS: &str = "create table orders as
    with recursive n(id) as (select 0 union all select id + 1 from n where id < 3999),
    t as (select id, case when id % 97 = 0 then null
                          when id % 5 = 0 then (id % 400 - 200) * 10000 + id % 3 - 1
                          else (id * 7919) % 4000003 - 2000001 end as ms from n),
    s as (select *, ((ms % 1000) + 1000) % 1000 as frac, (ms - ((ms % 1000) + 1000) % 1000) / 1000 as sec from t)
    select id, 'sku' || (id % 7) as sku, id % 11 as qty, ms,
        datetime(sec, 'unixepoch') || printf('.%03d', frac) as \"text\",
        strftime('%Y-%m-%dT%H:%M:%S', sec, 'unixepoch') || printf('.%03dZ', frac) as zulu,
        datetime(sec + 19800, 'unixepoch') || printf('.%03d+05:30', frac) as zoned,
        datetime(sec, 'unixepoch') as seconds,
        date(sec, 'unixepoch') as day
    from s";

fn orders() -> (Session, Connection) {
    let sqlite = Connection::open_in_memory().expect("sqlite");
    sqlite.execute_batch(ORDERS).expect("orders");
    let text = |name| (name, "TEXT", false, None);
    let columns = [
        ("id", "INTEGER", true, Some(0)),
        text("sku"),
        ("qty", "INTEGER", false, None),
        ("ms", "INTEGER", false, None),
        text("text"),
        text("zulu"),
        text("zoned"),
        text("seconds"),
        text("day"),
    ];
    let mut log = Log::default();
    let schema = log.table("s", "orders", 3, &columns);
    let mut statement = sqlite.prepare("select * from orders").expect("orders");
    let rows: Vec<Vec<Value>> = statement
        .query_map([], |row| (0..columns.len()).map(|i| row.get_ref(i).map(chinook::value)).collect())
        .expect("rows")
        .collect::<Result<_, _>>()
        .expect("rows");
    log.rows(&schema, rows);
    drop(statement);
    (session(log), sqlite)
}

/// A window's start in SQLite, whose `%` has the sign of its left side.
fn start(ms: &str, size: i64, offset: i64) -> String {
    format!("({ms} - ((({ms} - {offset}) % {size}) + {size}) % {size})")
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_sqlites() {
    let (session, sqlite) = orders();
    let seconds = "(ms - ((ms % 1000) + 1000) % 1000)";
    let day = "(ms - ((ms % 86400000) + 86400000) % 86400000)";
    let columns =
        [("ms", "ms"), ("\"text\"", "ms"), ("zulu", "ms"), ("zoned", "ms"), ("seconds", seconds), ("day", day)];
    let windows = [
        ("10 seconds", "0", 10_000, 0),
        ("10 seconds", "-3 seconds", 10_000, -3_000),
        ("1 minute 30 seconds", "7 seconds", 90_000, 7_000),
    ];
    for (column, ms) in columns {
        for (size, offset, size_ms, offset_ms) in windows {
            let ours = format!(
                "select sku, cast(window_start as bigint), cast(window_end as bigint), cast(window_time as bigint),
                     count(*), sum(qty)
                 from tumble(table orders, descriptor({column}), interval '{size}', interval '{offset}')
                 group by sku, window_start, window_end, window_time"
            );
            let theirs = format!(
                "select sku, start, start + {size_ms}, start + {size_ms} - 1, count(*), sum(qty)
                 from (select *, {} as start from orders where ms is not null) group by sku, start",
                start(ms, size_ms, offset_ms)
            );
            let rows = compare_with(&session, &sqlite, &ours, &theirs).await;
            assert!(rows > if column == "day" { 10 } else { 300 }, "{column}, {size}: {rows} rows");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_has_its_first_instant_and_not_its_end() {
    let (session, sqlite) = orders();
    // The test above proves little unless there are such rows.
    let at = |ms: i64| sqlites(&sqlite, &format!("select count(*) > 0 from orders where ms % 10000 = {ms} and ms < 0"));
    assert_eq!([at(0), at(-1), at(-9_999)], [["1"]; 3]);
    let sql = "select cast(window_start as bigint) as s, min(ms), max(ms) from tumble(table orders, descriptor(ms),
        interval '10 seconds') where ms in (-10000, -9999, -1, 0, 1, 9999, 10000) group by window_start order by s";
    let mut log = Log::default();
    let schema = log.table("s", "orders", 1, &[("ms", "INTEGER", true, Some(0))]);
    log.rows(&schema, [-10_000, -9_999, -1, 0, 1, 9_999, 10_000].map(|ms| vec![integer(ms)]));
    assert_eq!(
        csv(&crate::session(log), sql).await,
        "s,min(ms),max(ms)\n-10000,-10000,-1\n0,0,9999\n10000,10000,10000\n"
    );
    assert!(csv(&session, sql).await.lines().count() > 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_instants_like_others() {
    let (session, _) = orders();
    let sql =
        "select window_start, window_end, window_time from tumble(table orders, descriptor(ms), interval '10 seconds')
        where window_start = '1970-01-01T00:00:00Z' and id > 0 limit 1";
    let row =
        "window_start,window_end,window_time\n1970-01-01T00:00:00Z,1970-01-01T00:00:10Z,1970-01-01T00:00:09.999Z\n";
    assert_eq!(csv(&session, sql).await, row);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_time_belongs_to_no_window() {
    let (session, sqlite) = orders();
    let theirs = "select count(*) from orders where ms is not null";
    assert!(sqlites(&sqlite, theirs) < sqlites(&sqlite, "select count(*) from orders"));
    for column in ["ms", "zulu"] {
        let from = format!("from tumble(table orders, descriptor({column}), interval '1 day')");
        compare_with(&session, &sqlite, &format!("select count(*) {from}"), theirs).await;
        let missing = format!("select count(*) {from} where window_start is null or ms is null");
        assert_eq!(csv(&session, &missing).await, "count(*)\n0\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_join_nest_and_sort() {
    let (session, sqlite) = orders();
    let tumble = "tumble(table orders, descriptor(zulu), interval '10 seconds')";
    let theirs = format!("(select *, {} as s from orders where ms is not null)", start("ms", 10_000, 0));
    let s = |alias: &str| format!("cast({alias}.window_start as bigint)");
    for (ours, sqlites) in [
        (
            format!(
                "select {}, count(*) from {tumble} a join TUMBLE(TABLE orders, DESCRIPTOR(ms), INTERVAL '10' SECOND) b
                 on a.window_start = b.window_start and a.sku = b.sku where a.id < 900 group by a.window_start",
                s("a")
            ),
            format!(
                "select a.s, count(*) from {theirs} a join {theirs} b on a.s = b.s and a.sku = b.sku
                 where a.id < 900 group by a.s"
            ),
        ),
        (
            format!(
                "with w as (select * from {tumble})
                 select {} as s, sum(qty) from w group by window_start order by s",
                s("w")
            ),
            format!("select s, sum(qty) from {theirs} group by s order by s"),
        ),
        (
            format!(
                "with o as (select id, ms as t from orders where qty > 3)
                 select {} as s, max(id) from tumble(table o, descriptor(T), interval '10' second) w
                 group by window_start order by s desc",
                s("w")
            ),
            format!("select s, max(id) from {theirs} where qty > 3 group by s order by s desc"),
        ),
        (
            format!("select count(*) from orders where id in (select min(id) from {tumble} group by window_start)"),
            format!("select count(distinct s) from {theirs}"),
        ),
        (
            format!(
                "select o.id, {} from (select * from {tumble}) o, tumble(table (select min(ms) as t from orders),
                 descriptor(t), interval '10 seconds') w where o.window_end = w.window_end",
                s("w")
            ),
            format!("select id, s from {theirs} where s = (select min(s) from {theirs})"),
        ),
    ] {
        assert!(compare_with(&session, &sqlite, &ours, &sqlites).await > 0, "{ours}: no rows prove nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finer_times_belong_to_the_millisecond_they_lie_in() {
    let (session, _) = orders();
    let start = async |time: &str| {
        let sql =
            format!("select window_start from tumble(table (select {time} as t), descriptor(t), interval '1 ms')");
        csv(&session, &sql).await.lines().nth(1).map(str::to_owned)
    };
    for (time, window) in [
        ("to_timestamp_seconds(-1)", "1969-12-31T23:59:59Z"),
        ("to_timestamp_millis(-1)", "1969-12-31T23:59:59.999Z"),
        ("to_timestamp_micros(-1)", "1969-12-31T23:59:59.999Z"),
        ("to_timestamp_micros(1999)", "1970-01-01T00:00:00.001Z"),
        ("to_timestamp_nanos(-1000001)", "1969-12-31T23:59:59.998Z"),
        ("timestamp '2026-11-21 10:00:00.0019'", "2026-11-21T10:00:00.001Z"),
        ("cast('2026-11-21T10:00:00+02:00' as timestamptz)", "2026-11-21T08:00:00Z"),
    ] {
        assert_eq!(start(time).await.as_deref(), Some(window), "{time}");
    }
    assert_eq!(start("cast(null as timestamp)").await, None);
    assert_eq!(start("null").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_read_as_sqlite_reads_them() {
    let sqlite = Connection::open_in_memory().expect("sqlite");
    let session = session(Log::default());
    for text in [
        "2026-11-21 10:00:00",
        "2026-11-21T10:00:00",
        "2026-11-21 10:00",
        "2026-11-21T10:00Z",
        "2026-11-21 10:00+01:30",
        "2026-11-21 10:00:00.5",
        "2026-11-21 10:00:00.123",
        "2026-11-21T10:00:00.250Z",
        "2026-11-21 10:00:00-08:00",
        "2026-11-21 23:30:00.999+05:30",
        "1969-12-31 23:59:59.001",
        "0001-01-01",
        "9999-12-31 23:59:59",
        "2024-02-29",
    ] {
        let ours = format!(
            "select cast(window_start as bigint)
             from tumble(table (select '{text}' as t), descriptor(t), interval '1 ms')"
        );
        let theirs = format!("select cast(round((julianday('{text}') - 2440587.5) * 86400000) as integer)");
        compare_with(&session, &sqlite, &ours, &theirs).await;
    }
    for text in
        ["n/a", "", "2026", "2026-02-30", "2026-11-21 25:00:00", "2026-11-21 10", "10:00:00", "2461000.5", "now"]
    {
        let column = format!("table (select '{text}' as \"At\")");
        let e = error(&session, &format!("select * from tumble({column}, descriptor(at), interval '1 ms')")).await;
        let start = format!("column \"At\" is text {text:?}, which is no date-time; ");
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().starts_with(&start), "{e}");
        assert!(e.to_string().ends_with(&format!("(1:{})", 15 + 7 + column.len() + 2 + 11)), "{e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_columns_are_there_when_named() {
    let mut log = Log::default();
    let schema = log.table("s", "t", 1, &[("id", "INTEGER", true, Some(0)), ("v", "TEXT", false, None)]);
    // Each is written a second after the other.
    (0..25).for_each(|i| log.rows(&schema, [vec![integer(i), string("x")]]));
    let session = session(log);
    let counts =
        "select window_start, count(*) as n from tumble(table t, descriptor(_timestamp), interval '10 seconds')
        group by window_start order by window_start";
    let answer = "window_start,n\n1970-01-01T00:00:00Z,10\n1970-01-01T00:00:10Z,10\n1970-01-01T00:00:20Z,5\n";
    assert_eq!(csv(&session, counts).await, answer);
    let from = "from tumble(table t, descriptor(_timestamp), interval '10 seconds')";
    for (sql, head) in [
        (format!("select * {from}"), "id,v,window_start,window_end,window_time"),
        (format!("select _offset, tumble.* {from} order by 1"), "_offset,id,v,window_start,window_end,window_time"),
        (format!("select w.*, W._Offset {from} w(a)"), "a,v,window_start,window_end,window_time,_offset"),
        (format!("select _partition, d {from} w(a, b, c, d, e)"), "_partition,d"),
    ] {
        assert_eq!(csv(&session, &sql).await.lines().next(), Some(head), "{sql}");
    }
    let sql = format!("select * from tumble(table (select * {from}), descriptor(id), interval '1 day')");
    assert!(error(&session, &sql).await.to_string().starts_with("the table of TUMBLE has a column \"window_start\""));
    let sql = "select * from tumble(table (select * from t), descriptor(_timestamp), interval '1 day')";
    assert!(error(&session, sql).await.to_string().starts_with("no column \"_timestamp\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_cut_is_seen() {
    let mut log = Log::default();
    let schema = log.table("s", "t", 1, &[("id", "INTEGER", true, Some(0))]);
    log.rows(&schema, (0..9).map(|i| vec![integer(i)]));
    log.cuts.insert(log.partition("s.t", 0), (1, 4));
    let session = session(log);
    for table in ["t", "changes_of(t)", "(select * from t)"] {
        let sql = format!("select min(id), max(id) from tumble(table {table}, descriptor(id), interval '1 day') w");
        assert_eq!(csv(&session, &sql).await, "min(id),max(id)\n1,3\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_needed_columns_are_read() {
    let (session, _) = orders();
    let sql =
        "explain select sku, window_start, count(*) from tumble(table orders, descriptor(zulu), interval '10 seconds')
        group by sku, window_start, window_end";
    let plan = csv(&session, sql).await;
    assert!(plan.contains("StreamingTableExec: partition_sizes=3, projection=[sku, zulu]"), "{plan}");
    // The text is read once, for start and end.
    assert_eq!(
        plan.lines().filter(|line| line.contains("ProjectionExec") && line.contains("_tm_event_time")).count(),
        1
    );
    assert_eq!(plan.matches("_tm_event_time(zulu@").count(), 1, "{plan}");
    // No text of a column that nobody asks for is in the way.
    let bad = "tumble(table (select id, 'n/a' as t from orders), descriptor(t), interval '1 day')";
    assert_eq!(csv(&session, &format!("select count(*) from {bad}")).await, "count(*)\n4000\n");
    assert_eq!(error(&session, &format!("select max(window_end) from {bad}")).await.kind(), ErrorKind::Invalid);
}
