//! Figures, printed and not asserted: `cargo test -p tidemill-sql --test it -- --ignored --nocapture speed`.

use std::time::Instant;

use tidemill_connect::change::Value;

use crate::{
    csv,
    log::Log,
    music::{TRACK, integer, string},
    session,
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn speed_of_a_million_current_rows() {
    const ROWS: i64 = 1_000_000;
    let mut log = Log::default();
    let schema = log.table("chinook", "Track", 1, TRACK);
    for start in (0..ROWS).step_by(1_000) {
        let row = |i: i64| {
            vec![integer(i), string(&format!("Track number {i}")), integer(i % 99), integer(i), Value::Real(0.99)]
        };
        log.rows(&schema, (start..start + 1_000).map(row));
    }
    let session = session(log);
    let profile = if cfg!(debug_assertions) { "debug assertions on" } else { "release" };
    for sql in
        ["select count(*) as n from Track", "select sum(UnitPrice) as s from Track", "select max(Name) as m from Track"]
    {
        let mut best = f64::MAX;
        for _ in 0..3 {
            let start = Instant::now();
            assert_eq!(csv(&session, sql).await.lines().count(), 2);
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{sql}: {best:.3} s, {:.2} M rows/s ({profile}, one partition, best of 3)", ROWS as f64 / best / 1e6);
    }
}
