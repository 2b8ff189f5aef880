//! What may be written as a call of `TUMBLE`, and what is said of the rest: an example of each for every clause.

use tidemill_connect::change::Value;
use tidemill_core::record::Record;
use tidemill_sql::{ErrorKind, Session};

use crate::{
    csv, error,
    log::Log,
    music::{integer, string},
    session,
};

fn shop() -> Session {
    let mut log = Log::default();
    let columns = [
        ("id", "INTEGER", true, Some(0)),
        ("Sku", "TEXT", false, None),
        ("ts", "INTEGER", false, None),
        ("timestamp", "TEXT", false, None),
        ("price", "REAL", false, None),
        ("it's \"\"odd\"", "INTEGER", false, None),
    ];
    let schema = log.table("shop", "Orders", 2, &columns);
    let row = |i: i64| {
        vec![integer(i), string("a"), integer(i * 5_000), string("2026-11-21"), Value::Real(0.5), integer(i * 5_000)]
    };
    log.rows(&schema, (0..8).map(row));
    let schema =
        log.table("shop", "tumble", 1, &[("descriptor", "INTEGER", true, Some(0)), ("table", "TEXT", false, None)]);
    log.rows(&schema, [vec![integer(7), string("x")]]);
    let plain = log.topic("plain", 1);
    log.append(plain[0], &[Record::new(None, bytes::Bytes::from_static(b"x"))]);
    session(log)
}

/// Eight rows, two in each window.
const ACCEPTED: &[&str] = &[
    // Words.
    "TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '10 seconds')",
    "tumble(table Orders, descriptor(TS), interval '10 seconds')",
    "Tumble /* a */ ( -- b\n Table orders , Descriptor ( ts ) , Interval '10 seconds' )",
    "table(tumble(table orders, descriptor(ts), interval '10 seconds'))",
    "lateral tumble(table orders, descriptor(ts), interval '10 seconds')",
    // The table.
    "tumble(table shop.orders, descriptor(ts), interval '10 seconds')",
    "tumble(table shop.\"Orders\", descriptor(ts), interval '10 seconds')",
    "tumble(table(orders), descriptor(ts), interval '10 seconds')",
    "tumble(table changes_of(shop.orders), descriptor(ts), interval '10 seconds')",
    "tumble(table (select * from orders), descriptor(ts), interval '10 seconds')",
    "tumble(table (select id, ts as a from orders union all select id, 0 from orders where id < 0), descriptor(a),
        interval '10 seconds')",
    "tumble(table (with x as (select max(ts) as t from orders group by id) select t from x), descriptor(t),
        interval '10 seconds')",
    "tumble(table (select id as o, ts as t from tumble(table orders, descriptor(ts), interval '1 day')), descriptor(t),
        interval '10 seconds')",
    // The time column.
    "tumble(table orders, descriptor(\"ts\"), interval '10 seconds')",
    "tumble(table orders, descriptor(\"it's \"\"\"\"odd\"\"\"), interval '10 seconds')",
    // The size.
    "tumble(table orders, descriptor(ts), interval '10' second)",
    "tumble(table orders, descriptor(ts), interval '10' SECONDS)",
    "tumble(table orders, descriptor(ts), interval '10')",
    "tumble(table orders, descriptor(ts), interval '10000 ms')",
    "tumble(table orders, descriptor(ts), interval '0 hours 0.1 minutes 4 seconds')",
    // The offset.
    "tumble(table orders, descriptor(ts), interval '10 seconds', interval '0' second)",
    "tumble(table orders, descriptor(ts), interval '10 seconds', interval '1 minute')",
    "tumble(table orders, descriptor(ts), interval '10 seconds', interval '-30 seconds')",
    // Named arguments.
    "tumble(DATA => TABLE orders, TIMECOL => DESCRIPTOR(ts), SIZE => INTERVAL '10' SECOND)",
    "tumble(size => interval '10' second, offset => interval '1 minute', timecol => descriptor(ts),
        data => table orders)",
    "tumble(data => table (select * from orders), timecol => descriptor(ts), size => interval '10' second)",
    "tumble(table orders, timecol => descriptor(ts), size => interval '10' second)",
    // Aliases.
    "tumble(table orders, descriptor(ts), interval '10 seconds') as w",
    "tumble(table orders, descriptor(ts), interval '10 seconds') w (a, b)",
    "tumble(table orders, descriptor(ts), interval '10 seconds') w (a, b, c, d, e, f)",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_form_is_accepted() {
    let session = shop();
    let answer = "window_start,n\n1970-01-01T00:00:00Z,2\n1970-01-01T00:00:10Z,2\n\
                  1970-01-01T00:00:20Z,2\n1970-01-01T00:00:30Z,2\n";
    for from in ACCEPTED {
        let sql = format!("select window_start, count(*) as n from {from} group by window_start order by window_start");
        assert_eq!(csv(&session, &sql).await, answer, "{sql}");
    }
    for (sql, n) in [
        ("select count(*) as n from tumble(table orders, descriptor(timestamp), interval '1 hour 30 minutes')", 8),
        ("select count(*) as n from tumble(table plain, descriptor(_timestamp), interval '1' day)", 1),
        ("select count(*) as n from tumble(table tumble, descriptor(descriptor), interval '1' minute)", 1),
        ("select count(*) as n from orders, tumble(table plain, descriptor(_timestamp), interval '1 week') w", 8),
        (
            "select count(*) as n from orders o left join (tumble(table orders, descriptor(ts), interval '1' hour) w
            join plain on true) on o.id = w.id",
            8,
        ),
        (
            "select count(distinct w.window_end) as n from tumble(table orders, descriptor(ts), interval '5' second) w",
            8,
        ),
    ] {
        assert_eq!(csv(&session, sql).await, format!("n\n{n}\n"), "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_words_are_names_elsewhere() {
    let session = shop();
    for (sql, answer) in [
        ("select descriptor, table from tumble", "descriptor,table\n7,x\n"),
        ("select tumble.descriptor from shop.tumble", "descriptor\n7\n"),
        ("select 1 as tumble, 2 as descriptor, 3 as session, 4 as hop", "tumble,descriptor,session,hop\n1,2,3,4\n"),
        ("with hop as (select 1 as a), tumble (table) as (select 2) select * from hop, tumble", "a,table\n1,2\n"),
        ("select tumble.a from (select 1 as a) as tumble", "a\n1\n"),
        ("select session.table from (select 1) session (table)", "table\n1\n"),
        ("select size, data, timecol from (select 1, 2, 3) x (size, data, timecol)", "size,data,timecol\n1,2,3\n"),
        ("select tumble.* from tumble tumble", "descriptor,table\n7,x\n"),
    ] {
        assert_eq!(csv(&session, sql).await, answer, "{sql}");
    }
}

/// What stands after `select * from `, and what is said of it, with its place.
const REFUSED: &[(&str, &str)] = &[
    // Functions.
    (
        "hop(table orders, descriptor(ts), interval '5 seconds', interval '10 seconds')",
        "HOP is not supported yet (1:15)",
    ),
    (
        "orders,\n  Session(table orders partition by id, descriptor(ts), interval '5' second)",
        "SESSION is not supported yet (2:3)",
    ),
    ("table(cumulate(table orders, descriptor(ts), interval '5' second))", "CUMULATE is not supported yet (1:21)"),
    ("hop()", "HOP is not supported yet (1:15)"),
    (
        "tumble(table orders, descriptor(ts), interval '1' second) with ordinality",
        "TUMBLE goes without WITH ORDINALITY and TABLESAMPLE (1:15)",
    ),
    // Count of arguments.
    ("tumble()", "TUMBLE lacks its table; write: TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds') (1:15)"),
    (
        "tumble(table orders)",
        "TUMBLE lacks its time column; write: TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds') (1:15)",
    ),
    (
        "tumble(table orders, size => interval '1' second)",
        "TUMBLE lacks its time column; write: TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds') (1:15)",
    ),
    (
        "tumble(table orders, descriptor(ts))",
        "TUMBLE lacks its size; write: TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '10 seconds') (1:15)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1' second, interval '1' second, 5)",
        "TUMBLE takes at most 4 arguments (1:94)",
    ),
    ("tumble(*)", "* is no argument of TUMBLE (1:15)"),
    // Names of arguments.
    (
        "tumble(table orders, descriptor(ts), sized => interval '1' second)",
        "TUMBLE has no argument sized; nearest is SIZE (1:52)",
    ),
    ("tumble(dta => table orders)", "TUMBLE has no argument dta; nearest is DATA (1:22)"),
    (
        "tumble(data => table orders, descriptor(ts), interval '1' second)",
        "an argument without a name follows one with a name (1:44)",
    ),
    ("tumble(table orders, data => table orders)", "the table is given twice (1:36)"),
    // The table.
    ("tumble(orders, descriptor(ts), interval '1' second)", "the table of TUMBLE is orders; write: TABLE t (1:22)"),
    ("tumble(table, descriptor(ts), interval '1' second)", "the table of TUMBLE is table; write: TABLE t (1:22)"),
    ("tumble(table 1, descriptor(ts), interval '1' second)", "the table of TUMBLE is TABLE 1; write: TABLE t (1:28)"),
    ("tumble(table orders o, descriptor(ts), interval '1' second)", "Expected: ), found: o at Line: 1, Column: 35"),
    (
        "tumble(table (select id from), descriptor(id), interval '1' second)",
        "Expected: identifier, found: ) at Line: 1, Column: 43",
    ),
    ("tumble(table ordrs, descriptor(ts), interval '1' second)", "no table ordrs; nearest is shop.\"Orders\" (1:28)"),
    (
        "tumble(table (select idd as id from orders), descriptor(id), interval '1' second)",
        "no column \"idd\"; nearest is \"id\" (1:36)",
    ),
    // The time column.
    (
        "tumble(table orders, ts, interval '1' second)",
        "the time column of TUMBLE is ts; write one column without its table: DESCRIPTOR(ts) (1:36)",
    ),
    (
        "tumble(table orders, descriptor(), interval '1' second)",
        "the time column of TUMBLE is descriptor(); write one column without its table: DESCRIPTOR(ts) (1:36)",
    ),
    (
        "tumble(table orders, descriptor(ts, id), interval '1' second)",
        "the time column of TUMBLE is descriptor(ts, id); write one column without its table: DESCRIPTOR(ts) (1:36)",
    ),
    (
        "tumble(table orders, descriptor(orders.ts), interval '1' second)",
        "the time column of TUMBLE is descriptor(orders.ts); write one column without its table: DESCRIPTOR(ts) (1:36)",
    ),
    ("tumble(table orders,\n descriptor(tss), interval '1' second)", "no column \"tss\"; nearest is \"ts\" (2:13)"),
    (
        "tumble(table information_schema.tables, descriptor(table_nam), interval '1' second)",
        "no column \"table_nam\"; nearest is \"table_name\" (1:66)",
    ),
    ("tumble(table orders, descriptor(\"TS\"), interval '1' second)", "no column \"TS\"; nearest is \"ts\" (1:47)"),
    (
        "tumble(table orders, descriptor(price), interval '1' second)",
        "column \"price\" is DOUBLE; a time is TIMESTAMP, BIGINT (milliseconds since 1970) or TEXT (ISO 8601) (1:47)",
    ),
    (
        "tumble(table (select price > 1 as p from orders), descriptor(p), interval '1' second)",
        "column \"p\" is BOOLEAN; a time is TIMESTAMP, BIGINT (milliseconds since 1970) or TEXT (ISO 8601) (1:76)",
    ),
    (
        "tumble(table orders, descriptor(sku), interval '1' second)",
        "column \"Sku\" is text \"a\", which is no date-time; \
         write 2026-11-21 10:00:00, 2026-11-21T10:00:00.250Z or 2026-11-21 (1:47)",
    ),
    (
        "tumble(table (select 1790000000000000000 as n), descriptor(n), interval '1' second)",
        "column \"n\" is 1790000000000000000, which is no time in milliseconds since 1970 that can be written (1:74)",
    ),
    (
        "tumble(table (select id as window_end, ts from orders), descriptor(ts), interval '1' second)",
        "the table of TUMBLE has a column \"window_end\" of its own; \
         rename it: TABLE (SELECT window_end AS ..., ... FROM ...) (1:15)",
    ),
    // Size and offset.
    (
        "tumble(table orders, descriptor(ts), '10 seconds')",
        "the size is '10 seconds'; write an interval, as INTERVAL '10 seconds' (1:52)",
    ),
    ("tumble(table orders, descriptor(ts), interval '0 seconds')", "a window's size must be at least 1 ms (1:61)"),
    ("tumble(table orders, descriptor(ts), interval '-10' second)", "a window's size must be at least 1 ms (1:61)"),
    (
        "tumble(table orders, descriptor(ts), interval '400000 days')",
        "a window's size, offset and grace may not exceed 1,000 years (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1' month)",
        "the size INTERVAL '1' MONTH is not supported yet: months and years differ in length (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '0.5 months')",
        "the size INTERVAL '0.5 months' is not supported yet: months and years differ in length (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1y')",
        "the size INTERVAL '1y' is not supported yet: months and years differ in length (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1 day', interval '2 years')",
        "the offset INTERVAL '2 years' is not supported yet: months and years differ in length (1:79)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '10 us')",
        "the size INTERVAL '10 us' has parts of a millisecond (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval 'ten seconds')",
        "the size INTERVAL 'ten seconds' is no interval (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '99999999999999 hours')",
        "the size INTERVAL '99999999999999 hours' is no interval (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1:00' minute to second)",
        "the size INTERVAL '1:00' MINUTE TO SECOND is not written as INTERVAL '10 seconds' (1:61)",
    ),
    (
        "tumble(table orders, descriptor(ts), interval '1 day', 5)",
        "the offset is 5; write an interval, as INTERVAL '10 seconds' (1:70)",
    ),
    // Beside the call.
    ("tumble(table orders, descriptor(ts), interval '1' second) w where foo = 1", "no column \"foo\" (1:81)"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_named_with_its_place() {
    let session = shop();
    let mut faults = Vec::new();
    for (from, message) in REFUSED {
        let e = error(&session, &format!("select * from {from}")).await;
        let kind = if message.starts_with("no table") {
            ErrorKind::NotFound
        } else if message.contains("not supported") || message.contains("goes without") {
            ErrorKind::Unsupported
        } else {
            ErrorKind::Invalid
        };
        if (e.kind(), e.to_string().as_str()) != (kind, *message) {
            faults.push(format!("{from}\n  says {:?}: {e}\n  not  {kind:?}: {message}", e.kind()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // In a table's place only.
    let e = error(&session, "select tumble(table orders, descriptor(ts), interval '1' second) from orders").await;
    assert!(e.to_string().starts_with("invalid function 'tumble'"), "{e}");
}
