//! The view of a running job shows what is committed, nothing else, and all of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use proptest::prelude::*;
use serde_json::json;
use tidemill_streams::{Driver, Job, View, agg::Count, window::Tumbling};

use crate::{
    oracle::{Action, World, action, spec},
    rows::{LATE, OUT, Row, Spec, Value, aggregated, batch, late_ids, results},
};

type Handle<K, V> = Arc<Mutex<Option<View<K, V>>>>;

fn job(spec: Spec, handle: &Handle<String, Value>) -> Job {
    let job = Job::new("test");
    let step = aggregated(&job, spec);
    step.late.to_topic(LATE);
    step.results.to_topic_by(OUT, |result| result.key.clone());
    *handle.lock().unwrap() = Some(step.view.watched());
    job
}

type Shown = BTreeMap<(i64, String), (bool, Value)>;

fn shown(handle: &Handle<String, Value>) -> (u64, Shown) {
    let (epoch, windows) = handle.lock().unwrap().as_ref().unwrap().windows();
    let mut all = Shown::new();
    for one in windows {
        assert!(!one.groups.is_empty());
        for (key, value) in one.groups {
            assert!(all.insert((one.window.start, key), (one.is_closed, value)).is_none());
        }
    }
    (epoch, all)
}

/// Rows in the order of their pushes, as far as they were processed and as far as they were committed.
#[derive(Default)]
struct Progress {
    processed: usize,
    committed: usize,
}

proptest! {
    #[test]
    fn a_view_is_the_batch_of_what_is_committed(
        spec in spec(), partitions in 1..=4u32, disorder in 0..40i64,
        actions in prop::collection::vec(action(), 0..120),
    ) {
        let handle = Handle::default();
        let for_job = Arc::clone(&handle);
        let mut world = World::new(move || job(spec, &for_job), partitions, disorder);
        let mut progress = Progress::default();
        for action in actions {
            if matches!(action, Action::Step) {
                continue;
            }
            let before = shown(&handle);
            world.act(&action);
            let rows = world.rows.len();
            match action {
                Action::Process => progress.processed = rows,
                Action::Commit => progress.committed = progress.processed,
                Action::Run => (progress.processed, progress.committed) = (rows, rows),
                Action::Kill => {
                    progress.processed = progress.committed;
                    prop_assert_eq!(shown(&handle), (0, Shown::new()), "a new view");
                }
                _ => {}
            }
            if !matches!(action, Action::Commit | Action::Run | Action::Kill) {
                prop_assert_eq!(shown(&handle), before, "nothing was committed");
                continue;
            }
            if matches!(action, Action::Kill) {
                continue;
            }
            let late = late_ids(&world.driver);
            let all = batch(spec, world.rows[..progress.committed].iter().filter(|row| !late.contains(&row.id)));
            let closed = results::<Value>(&world.driver, spec);
            let (_, shown) = shown(&handle);
            let open: Shown = all
                .iter()
                .filter(|(group, _)| !closed.contains_key(*group))
                .map(|(group, value)| (group.clone(), (false, value.clone())))
                .collect();
            let (shown_open, shown_closed): (Shown, Shown) = shown.into_iter().partition(|(_, (closed, _))| !closed);
            prop_assert_eq!(shown_open, open);
            for (group, (_, value)) in &shown_closed {
                prop_assert_eq!(closed.get(group), Some(value));
            }
            let windows: BTreeSet<i64> = shown_closed.keys().map(|(start, _)| *start).collect();
            prop_assert!(windows.len() <= 8);
        }
    }
}

fn counts(view: &View<String, i64>) -> Vec<(i64, bool, HashMap<String, i64>)> {
    view.windows()
        .1
        .into_iter()
        .map(|one| (one.window.start, one.is_closed, one.groups.into_iter().collect()))
        .collect()
}

fn changes(handle: &Handle<String, i64>) -> Job {
    let job = Job::new("test");
    let rows = job.topic("in").changes::<Row>().event_time(|row| row.at).max_delay(Duration::from_millis(5)).stream();
    let windows = Tumbling::of(Duration::from_millis(10));
    let step = rows.key_by(|row| row.key.clone()).window(windows).aggregate("step", Count::default());
    step.late.discard();
    step.results.to_topic("out");
    *handle.lock().unwrap() = Some(step.view.watched());
    job
}

#[test]
fn groups_and_windows_whose_rows_are_all_taken_back_leave_the_view() {
    let handle = Handle::default();
    let for_job = Arc::clone(&handle);
    let mut driver = Driver::new(move || changes(&for_job)).unwrap();
    let view = || handle.lock().unwrap().clone().unwrap();
    let (a, b) = (Row::new(1, 3, 1, 0), Row::new(2, 4, 2, 0));
    let event =
        |op: &str, before: Option<&Row>, after: Option<&Row>| json!({ "op": op, "before": before, "after": after });
    driver.push("in", &event("c", None, Some(&a))).unwrap();
    driver.push("in", &event("c", None, Some(&b))).unwrap();
    driver.run().unwrap();
    assert_eq!(counts(&view()), [(0, false, HashMap::from([("k1".into(), 1), ("k2".into(), 1)]))]);
    driver.push("in", &event("d", Some(&a), None)).unwrap();
    driver.run().unwrap();
    assert_eq!(counts(&view()), [(0, false, HashMap::from([("k2".into(), 1)]))]);
    // The last row goes in the epoch that closes the window.
    driver.push("in", &event("d", Some(&b), None)).unwrap();
    driver.push("in", &event("c", None, Some(&Row::new(3, 25, 1, 0)))).unwrap();
    driver.run().unwrap();
    assert_eq!(counts(&view()), [(20, false, HashMap::from([("k1".into(), 1)]))]);
    assert_eq!(driver.records("out").len(), 0);
    driver.end().unwrap();
    assert_eq!(counts(&view()), [(20, true, HashMap::from([("k1".into(), 1)]))]);
}

#[test]
fn the_last_eight_closed_windows_are_shown() {
    let handle = Handle::default();
    let for_job = Arc::clone(&handle);
    let mut driver = Driver::new(move || changes(&for_job)).unwrap();
    for i in 0..20 {
        let row = Row::new(i, i64::from(i) * 10, 0, 0);
        driver.push("in", &json!({ "op": "c", "before": null, "after": row })).unwrap();
    }
    driver.end().unwrap();
    let view = handle.lock().unwrap().clone().unwrap();
    let starts: Vec<i64> = counts(&view).into_iter().map(|(start, ..)| start).collect();
    assert_eq!(starts, (12..20).map(|i| i * 10).collect::<Vec<_>>());
    assert!(counts(&view).iter().all(|(_, is_closed, _)| *is_closed));
}
