//! Text of results as such.

use futures::StreamExt as _;
use tidemill_sql::{ErrorKind, Format, render};

use crate::{log::Log, music::Music, session, text};

async fn written(sql: &str, format: Format) -> String {
    let (session, _) = Music::new().session();
    text(session.query(sql).await.expect("plans"), format).await.expect("runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_the_demo() {
    assert_eq!(written(r#"select count(*) as n from "Track""#, Format::Csv).await, "n\n57\n");
    assert_eq!(written(r#"select count(*) as n from "Track""#, Format::Table).await, "  n\n----\n 57\n(1 row)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_results_are_well_formed() {
    let sql = "select TrackId, Name from Track where false";
    assert_eq!(written(sql, Format::Csv).await, "TrackId,Name\n");
    assert_eq!(written(sql, Format::Json).await, "[]\n");
    assert_eq!(written(sql, Format::Jsonl).await, "");
    assert_eq!(written(sql, Format::Table).await, " TrackId | Name\n---------+------\n(0 rows)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_beside_the_tables() {
    let sql = "select true as b, 1.50::decimal(9,2) as d, date '2024-02-03' as day, null as nothing, \
               timestamp '2024-02-03 04:05:06.007' as at, [1, null] as list, 0.1::real as r, 'nan'::double as x, \
               interval '1 day' as i, 1 as id, 2 as \"ID\"";
    let json = written(sql, Format::Jsonl).await;
    let expected = "{\"b\":true,\"d\":1.50,\"day\":\"2024-02-03\",\"nothing\":null,\"at\":\"2024-02-03T04:05:06.007\",\
                    \"list\":[1,null],\"r\":0.1,\"x\":\"NaN\",\"i\":\"1 days\",\"id\":1,\"ID\":2}\n";
    assert_eq!(json, expected);
    let twice = "select a.TrackId, b.TrackId from Track a join Track b using (TrackId) where a.TrackId = 1";
    assert_eq!(written(twice, Format::Jsonl).await, "{\"TrackId\":1,\"TrackId_2\":1}\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_table_goes_on_without_being_aligned_anew() {
    let sql = "select value as n, case when value = 10001 then 'wider than all before' else 'x' end as t from generate_series(1, 20000) order by 1";
    let table = written(sql, Format::Table).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 20_003);
    assert_eq!(
        (lines[0], lines[2], lines[10_002], lines[20_002]),
        ("     n | t", "     1 | x", " 10001 | wider than all before", "(20000 rows)")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_middle_ends_the_text() {
    let session = session(Log::default());
    // Rows of earlier batches are out before the division fails.
    let sql = "select 1 / (value - 60000) as n from generate_series(1, 100000)";
    let mut pieces = Box::pin(render(session.query(sql).await.expect("plans"), Format::Csv));
    let mut rows = 0;
    let e = loop {
        match pieces.next().await.expect("the error comes before the end") {
            Ok(piece) => rows += piece.len(),
            Err(e) => break e,
        }
    };
    assert!(rows > 0);
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(pieces.next().await.is_none());
}

#[test]
fn formats_have_names() {
    assert_eq!("jsonl".parse::<Format>().expect("known"), Format::Jsonl);
    assert_eq!("xml".parse::<Format>().expect_err("unknown").kind(), ErrorKind::Invalid);
}
