//! The demo's stream job, orders and revenue by product and window, and the check of its results against SQLite.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use serde::Deserialize;
use tidemill_core::{
    Error, Result,
    log::{FetchOptions, Session},
    topic::TopicPartition,
};
use tidemill_streams::{
    Job, View, Windowed,
    agg::{Count, Sum},
    window::Tumbling,
};

pub const WINDOW: Duration = Duration::from_secs(5);
/// The topic that the sync makes of the shop's orders.
pub const ORDERS: &str = "shop.orders";
const RESULTS: &str = "revenue";
/// Orders may come this much later than younger ones.
const MAX_DELAY: Duration = Duration::from_secs(1);

/// An order, as far as the job reads it.
#[derive(Clone, Deserialize)]
struct Order {
    sku: String,
    cents: i64,
    /// Milliseconds since 1970 UTC.
    ordered_at: i64,
}

/// Number of orders and their revenue in cents.
pub type Revenue = (i64, i64);

/// The job, and a look into it.
pub fn job() -> (Job, View<String, Revenue>) {
    let job = Job::new("revenue");
    let orders =
        job.topic(ORDERS).changes::<Order>().event_time(|order| order.ordered_at).max_delay(MAX_DELAY).stream();
    let by_product = orders
        .key_by_ref(|order| order.sku.as_str())
        .window(Tumbling::of(WINDOW))
        .aggregate("by-product", (Count::default(), Sum::of(|order: &Order| order.cents)));
    by_product.late.discard();
    by_product.results.to_topic_by(RESULTS, |result| (result.window_start, result.key.clone()));
    (job, by_product.view.watched())
}

/// The same question for SQLite. Whole numbers throughout, so the answers are equal to the last digit or not at all.
pub fn sqlite_query() -> String {
    let size = WINDOW.as_millis();
    format!(
        "select ordered_at / {size} * {size} as window_start, sku, count(*) as orders, sum(cents) as cents \
         from orders group by 1, 2"
    )
}

/// What the check of the job's results found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Windows that the job closed.
    pub windows: usize,
    /// What is wrong with them.
    pub faults: Vec<String>,
}

/// Compares the windows in the job's topic, all closed, with what SQLite makes of the shop's own table.
///
/// # Errors
/// Those of the log and of the database.
pub async fn check(session: &dyn Session, shop: &Path) -> anyhow::Result<Findings> {
    Ok(compare(&results(session).await?, &by_sqlite(shop)?))
}

type Groups = BTreeMap<(i64, String), Revenue>;

async fn results(session: &dyn Session) -> Result<Vec<Windowed<String, Revenue>>> {
    let from = TopicPartition::new(RESULTS, 0);
    let end = session.bounds(std::slice::from_ref(&from)).await?.first().map_or(0, |bounds| bounds.durable_offset);
    let (mut offset, mut found) = (0, Vec::new());
    while offset < end {
        let chunk = session.fetch(&from, offset, &FetchOptions { end: Some(end), ..FetchOptions::default() }).await?;
        for record in chunk.records {
            let result = serde_json::from_slice(&record.value.unwrap_or_default());
            found.push(result.map_err(|e| Error::internal("a result of the job is malformed").with_source(e))?);
        }
        offset = chunk.next_offset;
    }
    Ok(found)
}

fn by_sqlite(shop: &Path) -> rusqlite::Result<Groups> {
    let conn = Connection::open_with_flags(shop, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut query = conn.prepare(&sqlite_query())?;
    let rows = query.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?))))?;
    rows.collect()
}

fn compare(results: &[Windowed<String, Revenue>], expected: &Groups) -> Findings {
    let mut findings = Findings::default();
    let mut seen = Groups::new();
    for result in results {
        let group = (result.window_start, result.key.clone());
        if seen.insert(group, result.value).is_some() {
            findings.faults.push(format!("{} of {} came twice", result.key, clock(result.window_start)));
        }
    }
    let windows: BTreeSet<i64> = seen.keys().map(|(start, _)| *start).collect();
    let wanted = expected.iter().filter(|((start, _), _)| windows.contains(start));
    for ((start, sku), value) in wanted {
        let found = seen.get(&(*start, sku.clone()));
        if found != Some(value) {
            findings.faults.push(format!("{sku} of {}: the job has {found:?}, sqlite {value:?}", clock(*start)));
        }
    }
    for (start, sku) in seen.keys().filter(|group| !expected.contains_key(group)) {
        findings.faults.push(format!("{sku} of {} is not in sqlite's answer", clock(*start)));
    }
    findings.windows = windows.len();
    findings
}

/// The time of day, UTC.
pub fn clock(ms: i64) -> String {
    let seconds = ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(start: i64, key: &str, value: Revenue) -> Windowed<String, Revenue> {
        Windowed { window_start: start, window_end: start + 5000, key: key.into(), value }
    }

    #[test]
    fn the_check_sees_what_is_wrong() {
        let expected: Groups =
            [((0, "a".into()), (2, 10)), ((0, "b".into()), (1, 5)), ((5000, "a".into()), (3, 9))].into();
        let right = vec![result(0, "a", (2, 10)), result(0, "b", (1, 5))];
        let found = compare(&right, &expected);
        assert_eq!((found.windows, found.faults.len()), (1, 0), "a window that is not closed is not missed");
        let wrong: [(&str, Vec<Windowed<String, Revenue>>); 4] = [
            ("another count", vec![result(0, "a", (3, 10)), result(0, "b", (1, 5))]),
            ("a lost group", vec![result(0, "a", (2, 10))]),
            ("a doubled group", vec![result(0, "a", (2, 10)), result(0, "b", (1, 5)), result(0, "b", (1, 5))]),
            ("an invented group", vec![result(0, "a", (2, 10)), result(0, "b", (1, 5)), result(0, "c", (1, 1))]),
        ];
        for (what, results) in wrong {
            assert_eq!(compare(&results, &expected).faults.len(), 1, "{what}");
        }
    }
}
