//! How tables and columns are found.

use tidemill_sql::{ErrorKind, Session};

use crate::{
    csv, error,
    log::Log,
    music::{Music, integer, string},
    session,
};

/// Two syncs, tables and columns that differ only by case, and plain topics.
fn twins() -> Session {
    let mut log = Log::default();
    let columns = [("id", "INTEGER", true, Some(0)), ("Name", "TEXT", false, None), ("NAME", "TEXT", false, None)];
    for (sync, table) in [("a", "T"), ("b", "T"), ("a", "only"), ("b", "Case"), ("b", "CASE")] {
        let schema = log.table(sync, table, 1, &columns);
        log.rows(&schema, [vec![integer(1), string(sync), string(table)]]);
    }
    let orders = log.topic("orders.v1", 1);
    log.append(orders[0], &[tidemill_core::record::Record::new(None, bytes::Bytes::from_static(b"o"))]);
    log.topic("_tidemill.positions", 1);
    session(log)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_several_have_needs_its_schema() {
    let session = twins();
    let e = error(&session, "select * from T").await;
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains(r#"a."T" or b."T""#), "{e}");
    assert_eq!(csv(&session, "select \"Name\" from b.t").await, "Name\nb\n");
    assert_eq!(csv(&session, "select \"NAME\" from only").await, "NAME\nonly\n");
    let e = error(&session, "select * from case_").await;
    assert!(e.to_string().contains("nearest is b.\"CASE\"") || e.to_string().contains("nearest is b.\"Case\""), "{e}");
    assert_eq!(csv(&session, "select \"NAME\" from b.\"Case\"").await, "NAME\nCase\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_differ_by_case_need_quotes() {
    let session = twins();
    for sql in ["select name from only", "select o.name from only o", "select id from only where nAmE = 'a'"] {
        let e = error(&session, sql).await;
        assert_eq!(e.kind(), ErrorKind::Invalid, "{sql}");
        assert!(e.to_string().contains(r#"may be "NAME" or "Name""#), "{sql}: {e}");
    }
    assert_eq!(csv(&session, r#"select "Name", "NAME" from only"#).await, "Name,NAME\na,only\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_names_come_with_the_nearest() {
    let (session, _) = Music::new().session();
    let e = error(&session, "select 1,\n  2 from Trakc").await;
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains(r#"no table Trakc; nearest is chinook."Track" (2:10)"#), "{e}");
    let e = error(&session, "select * from chinok.\"Artist\"").await;
    assert!(e.to_string().contains(r#"nearest is chinook."Artist""#), "{e}");
    let e = error(&session, "select\n TrakId from Track").await;
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains(r#"no column "trakid"; nearest is "TrackId""#), "{e}");
    assert!(e.to_string().contains("(2:2)"), "{e}");
    let e = error(&session, "select t.Titel from Album t").await;
    assert!(e.to_string().contains(r#"nearest is "Title""#), "{e}");
    let e = error(&session, "select count(1\n from Track").await;
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().contains("Line: 2"), "{e}");
    // Quoted names mean what they say.
    let e = error(&session, r#"select * from "track""#).await;
    assert_eq!(e.kind(), ErrorKind::NotFound);
    let e = error(&session, r#"select "trackid" from "Track""#).await;
    assert!(e.to_string().contains(r#"no column "trackid""#), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn literals_aliases_and_functions_are_not_names_of_columns() {
    let (session, _) = Music::new().session();
    let sql = "select 'TrackId' as TrackId, Count(*) as \"Name\", UPPER('name') as unitprice from Track";
    assert_eq!(csv(&session, sql).await, "trackid,Name,unitprice\nTrackId,57,NAME\n");
    let inner = "select NAME from (select 'x' as name) s";
    assert_eq!(csv(&session, inner).await, "name\nx\n");
    // A table expression hides the table of its name.
    assert_eq!(csv(&session, "with track as (select 1 as a) select * from TRACK").await, "a\n1\n");
    // The heading of an expression is its text, without the tables that were resolved.
    let heading = csv(&session, "select max(TrackId), Name || 'x' from Track where TrackId = 1 group by Name").await;
    assert_eq!(heading, "max(TrackId),Name || 'x'\n1,Track 1x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_topics_are_public_and_internal_ones_are_not_listed() {
    let session = twins();
    assert_eq!(csv(&session, "select _value from \"orders.v1\"").await, "_value\no\n");
    assert_eq!(csv(&session, "select count(*) from public.\"orders.v1\"").await, "count(*)\n1\n");
    assert_eq!(csv(&session, "select count(*) from \"_tidemill.positions\"").await, "count(*)\n0\n");
    let tables = csv(&session, "SHOW TABLES").await;
    let expected = "schema,table,topic\na,T,a.T\na,only,a.only\nb,CASE,b.CASE\nb,Case,b.Case\nb,T,b.T\npublic,orders.v1,orders.v1\n";
    assert_eq!(tables, expected);
    assert_eq!(csv(&session, "SHOW TABLES LIKE 'on%'").await, "schema,table,topic\na,only,a.only\n");
    assert_eq!(csv(&session, "SHOW TABLES FROM a").await, "schema,table,topic\na,T,a.T\na,only,a.only\n");
    let listed = "select table_name from information_schema.tables where table_schema = 'b' order by 1";
    assert_eq!(csv(&session, listed).await, "table_name\nCASE\nCase\nT\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_listed() {
    let (session, _) = Music::new().session();
    let columns = "column,type,nullable\nTrackId,BIGINT,false\nName,TEXT,false\nAlbumId,BIGINT,true\n\
                   Milliseconds,BIGINT,false\nUnitPrice,DOUBLE,false\n";
    for sql in ["DESCRIBE Track", "SHOW COLUMNS FROM track", "describe chinook.\"Track\";"] {
        assert_eq!(csv(&session, sql).await, columns, "{sql}");
    }
    let plan = csv(&session, "EXPLAIN SELECT TrackId FROM Track").await;
    assert!(plan.contains("TableScan") && plan.contains("projection=[TrackId]"), "{plan}");
}
