//! Rows that are taken back: change events of a table. A window's result is that of the rows that remain.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tidemill_core::record::Record;
use tidemill_streams::{
    Driver, Job,
    agg::{Count, Max, Min, Sum},
};

use crate::{
    oracle::{spec, stored_windows},
    rows::{IN, OUT, Retractable, Row, Spec, results, retractable},
};

#[derive(Debug, Clone)]
enum Action {
    Upsert { id: u32, at: i64, key: u8, n: i64 },
    Delete { id: u32 },
    Tombstone,
    FetchRecords(usize),
    Process,
    Commit,
    Kill,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..8u32, -30..30i64, 0..3u8, -100..100i64).prop_map(|(id, at, key, n)| Action::Upsert { id, at, key, n }),
        4 => (0..8u32).prop_map(|id| Action::Delete { id }),
        1 => Just(Action::Tombstone),
        1 => (1..5usize).prop_map(Action::FetchRecords),
        1 => Just(Action::Process),
        2 => Just(Action::Commit),
        1 => Just(Action::Kill),
    ]
}

/// Nothing is late: the watermark is a minute behind, and all times are within that.
fn job(spec: Spec) -> Job {
    let job = Job::new("test");
    let rows = job.topic(IN).changes::<Row>().event_time(|row| row.at).max_delay(Duration::from_secs(60)).stream();
    let step = rows.key_by(|row| row.key.clone()).window(spec.windows()).aggregate(
        "step",
        (
            Count::default(),
            (Sum::of(|row: &Row| row.n), Sum::of(|row: &Row| row.x)),
            (Min::of(|row: &Row| row.n), Max::of(|row: &Row| row.n)),
        ),
    );
    step.late.discard();
    step.results.to_topic_by(OUT, |result| result.key.clone());
    job
}

struct Table {
    driver: Driver,
    rows: BTreeMap<u32, Row>,
    partitions: u32,
}

impl Table {
    fn event(&mut self, id: u32, before: Option<Row>, after: Option<Row>) {
        let op = match (&before, &after) {
            (None, _) if id.is_multiple_of(2) => "r",
            (None, _) => "c",
            (_, None) => "d",
            _ => "u",
        };
        let event = json!({ "before": before, "after": after, "op": op, "source": { "seq": 1 }, "ts_ms": 0 });
        self.record(id, Some(event));
    }

    fn record(&mut self, id: u32, value: Option<Json>) {
        let value = value.map(|value| Bytes::from(value.to_string()));
        self.driver.push_record(IN, id % self.partitions, Record::new(Bytes::from(id.to_string()), value));
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Upsert { id, at, key, n } => {
                let row = Row::new(id, at, key, n);
                let before = self.rows.insert(id, row.clone());
                self.event(id, before, Some(row));
            }
            Action::Delete { id } => {
                if let Some(row) = self.rows.remove(&id) {
                    self.event(id, Some(row), None);
                    self.record(id, None);
                }
            }
            Action::Tombstone => self.record(0, None),
            Action::FetchRecords(records) => self.driver.fetch_records(records),
            Action::Process => self.driver.process().unwrap(),
            Action::Commit => self.driver.commit().unwrap(),
            Action::Kill => self.driver.kill().unwrap(),
        }
    }
}

proptest! {
    #[test]
    fn windows_are_of_the_rows_that_remain(
        spec in spec(), partitions in 1..=4u32, actions in prop::collection::vec(action(), 0..120),
    ) {
        let mut driver = Driver::new(move || job(spec)).unwrap();
        driver.partitions(IN, partitions).unwrap();
        let mut table = Table { driver, rows: BTreeMap::new(), partitions };
        actions.iter().for_each(|action| table.act(action));
        table.driver.end().unwrap();
        prop_assert_eq!(table.driver.status().late(), 0);
        prop_assert_eq!(results::<Retractable>(&table.driver, spec), retractable(spec, table.rows.values()));
        prop_assert!(stored_windows(&table.driver).is_empty());
    }
}
