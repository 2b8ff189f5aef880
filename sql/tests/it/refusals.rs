//! What is no query, or too much of one.

use std::sync::Arc;

use tidemill_sql::ErrorKind;

use crate::{
    csv, error,
    log::Log,
    music::{Music, integer, string},
    session, session_with,
};

#[tokio::test(flavor = "multi_thread")]
async fn only_queries_run() {
    let (session, _) = Music::new().session();
    let path = std::env::temp_dir().join(format!("tidemill-sql-refused-{}.csv", std::process::id()));
    let copy = format!("COPY (SELECT 1) TO '{}'", path.display());
    let refused = [
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE \"Track\"",
        "INSERT INTO \"Track\" SELECT * FROM \"Track\"",
        "UPDATE \"Track\" SET \"Name\" = 'x'",
        "DELETE FROM \"Track\"",
        "SET datafusion.execution.batch_size = 1",
        "EXPLAIN INSERT INTO \"Track\" VALUES (1)",
        "WITH x AS (DELETE FROM \"Track\" RETURNING *) SELECT * FROM x",
        "SELECT 1 INTO t",
        "SELECT * FROM \"Track\" FOR UPDATE",
        "BEGIN",
        "PREPARE p AS SELECT 1",
        copy.as_str(),
    ];
    for sql in refused {
        let e = error(&session, sql).await;
        let known = matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::Invalid);
        assert!(known && !e.to_string().contains("internal"), "{sql}: {e:?}");
    }
    assert!(!path.exists());
    assert!(error(&session, "COPY t TO 'x'").await.to_string().contains("COPY is not supported: only SELECT"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_statement_at_a_time() {
    let (session, _) = Music::new().session();
    assert_eq!(csv(&session, "SELECT 1 AS a;").await, "a\n1\n");
    let e = error(&session, "SELECT 1; SELECT 2").await;
    assert_eq!((e.kind(), e.to_string().as_str()), (ErrorKind::Invalid, "2 statements; only one at a time"));
    assert_eq!(error(&session, " ; ").await.to_string(), "no statement");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_opens_files() {
    let (session, _) = Music::new().session();
    for sql in [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM \"file:///etc/passwd\"",
    ] {
        let e = error(&session, sql).await;
        assert!(matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid), "{sql}: {e:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_statements_fail_instead_of_overflowing() {
    let (session, _) = Music::new().session();
    let run = async |sql: String| tokio_join(&session, sql).await;
    assert_eq!(run(format!("SELECT 1{} AS n", " + 1".repeat(450))).await.as_deref(), Ok("n\n451\n"));
    let of_column = format!("SELECT TrackId{} AS n FROM Track WHERE TrackId = 1", " + TrackId".repeat(450));
    assert_eq!(run(of_column).await.as_deref(), Ok("n\n451\n"));
    let either = format!("SELECT Name FROM Track WHERE TrackId = 0{}", " OR TrackId = 1".repeat(240));
    assert_eq!(run(either).await.as_deref(), Ok("Name\nTrack 1\n"));
    let union = vec!["SELECT 1 AS n"; 400].join(" UNION ALL ");
    assert_eq!(run(union).await.as_deref().map(|text| text.lines().count()), Ok(401));
    for sql in [
        format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("SELECT {} 1", "NOT ".repeat(50_000)),
        format!("SELECT 1{}", " + 1".repeat(100_000)),
        vec!["SELECT 1"; 5_000].join(" UNION ALL "),
        format!("SELECT {}", "x".repeat(2 << 20)),
    ] {
        let answer = run(sql).await;
        assert_eq!(answer.err().map(|(kind, _)| kind), Some(ErrorKind::Invalid));
    }
}

async fn tokio_join(session: &tidemill_sql::Session, sql: String) -> Result<String, (ErrorKind, String)> {
    match session.query(&sql).await {
        Ok(result) => Ok(crate::text(result, tidemill_sql::Format::Csv).await.expect("runs")),
        Err(e) => Err((e.kind(), e.to_string())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_running_are_the_streams() {
    let (session, _) = Music::new().session();
    let result = session.query("SELECT 1 / (\"TrackId\" - 5) FROM \"Track\"").await.expect("plans");
    let e = crate::text(result, tidemill_sql::Format::Csv).await.expect_err("divides by zero");
    assert_eq!(e.kind(), ErrorKind::Invalid);
    assert!(e.to_string().to_lowercase().contains("divide by zero"), "{e}");
}

fn big_log() -> Log {
    let mut log = Log::default();
    let columns = [("id", "INTEGER", true, Some(0)), ("text", "TEXT", false, None)];
    let schema = log.table("s", "big", 1, &columns);
    log.rows(&schema, (0..4_000).map(|i| vec![integer(i), string(&format!("{i:01000}"))]));
    let plain = log.topic("plain", 1);
    for i in 0..300i64 {
        let value = |j: i64| bytes::Bytes::from(format!("{:08}{}", (i * 100 + j) * 7919 % 30_011, "x".repeat(1_000)));
        let records: Vec<_> = (0..100).map(|j| tidemill_core::record::Record::new(None, value(j))).collect();
        log.append(plain[0], &records);
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_a_statement_is_bounded() {
    let session = session_with(Arc::new(big_log()), Some(8 << 20));
    let e = error(&session, "SELECT count(*) FROM big").await;
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().starts_with("memory limit 2 MiB reached in the scan of s.big; "), "{e}");
    // A statement that fails leaves nothing reserved: this one needs its share again.
    assert_eq!(csv(&session, "SELECT count(*) FROM plain").await, "count(*)\n30000\n");
    let e = error(&session, "SELECT _value, count(*) FROM plain GROUP BY _value ORDER BY 1").await;
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().starts_with("memory limit 2 MiB reached in "), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_sort_spills() {
    let temp_dir = std::env::temp_dir().join(format!("tidemill-sql-spill-{}", std::process::id()));
    let memory_bytes = Some(88 << 20);
    let settings = tidemill_sql::Settings { memory_bytes, temp_dir: temp_dir.clone(), threads: Some(1) };
    let session = tidemill_sql::Session::new(Arc::new(big_log()), settings).expect("valid");
    // 30 MB of values in the 22 MiB of a statement.
    let answer = csv(&session, "SELECT _value FROM plain ORDER BY _value").await;
    let keys: Vec<&str> = answer.lines().skip(1).collect();
    assert_eq!(keys.len(), 30_000);
    assert!(keys.is_sorted());
    let analyzed = csv(&session, "EXPLAIN ANALYZE SELECT _value FROM plain ORDER BY _value").await;
    let spills = analyzed.split("spill_count=").nth(1).and_then(|rest| rest.split([',', ']']).next());
    assert_ne!(spills, Some("0"), "{analyzed}");
    assert!(spills.is_some(), "{analyzed}");
    drop(session);
    assert_eq!(std::fs::read_dir(&temp_dir).expect("folder").count(), 0);
    std::fs::remove_dir_all(temp_dir).expect("own folder");
}

#[test]
fn settings_name_their_faults() {
    let settings = tidemill_sql::Settings { memory_bytes: Some(5), threads: Some(0), ..Default::default() };
    let e = tidemill_sql::Session::new(Arc::new(Log::default()), settings).expect_err("two faults");
    assert_eq!(e.to_string(), "memory_bytes is below 1 MiB; threads is 0");
    drop(session(Log::default()));
}
