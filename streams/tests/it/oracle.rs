//! The oracle of windows, over random rows, partitions, chunks, commits and crashes:
//! (a) with disorder within the delay nothing is late, and the results are those of a plain pass over all rows;
//! (b) with any disorder each row is on time or late, never both, and a window's result is that of its rows on time, once;
//! (c) the end of input closes every window.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;
use tidemill_core::record::Record;
use tidemill_streams::Driver;

use crate::rows::{CHANGELOG, IN, Row, Spec, Value, batch, job, late_ids, results};

#[derive(Debug, Clone)]
pub enum Action {
    /// The partition's time goes on by `step`; the row is earlier than that by a part of the disorder.
    Push {
        partition: u32,
        step: i64,
        back: f64,
        key: u8,
        n: i64,
    },
    FetchRecords(usize),
    Step,
    Process,
    Commit,
    Run,
    Kill,
}

pub fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => (0..4u32, 0..9i64, 0.0..=1.0f64, 0..4u8, -1000..1000i64)
            .prop_map(|(partition, step, back, key, n)| Action::Push { partition, step, back, key, n }),
        1 => (1..5usize).prop_map(Action::FetchRecords),
        3 => Just(Action::Step),
        1 => Just(Action::Process),
        2 => Just(Action::Commit),
        1 => Just(Action::Run),
        1 => Just(Action::Kill),
    ]
}

pub fn spec() -> impl Strategy<Value = Spec> {
    let grace = prop_oneof![Just(0), 1..15u64];
    (1..12u64, 0..30u64, grace, 0..20u64).prop_map(|(size, offset, grace, delay)| Spec { size, offset, grace, delay })
}

/// A driver, and all rows it was given.
pub struct World {
    pub driver: Driver,
    pub rows: Vec<Row>,
    clocks: Vec<i64>,
    disorder: i64,
}

impl World {
    pub fn new(make: impl Fn() -> tidemill_streams::Job + 'static, partitions: u32, disorder: i64) -> Self {
        let mut driver = Driver::new(make).unwrap();
        driver.partitions(IN, partitions).unwrap();
        Self { driver, rows: Vec::new(), clocks: vec![-70; partitions as usize], disorder }
    }

    pub fn push(&mut self, partition: u32, step: i64, back: f64, key: u8, n: i64) {
        let partition = partition % self.clocks.len() as u32;
        let clock = &mut self.clocks[partition as usize];
        *clock += step;
        let row = Row::new(self.rows.len() as u32, *clock - (back * self.disorder as f64) as i64, key, n);
        let value = Bytes::from(serde_json::to_vec(&row).unwrap());
        self.rows.push(row);
        self.driver.push_record(IN, partition, Record::new(None, value));
    }

    pub fn act(&mut self, action: &Action) {
        match *action {
            Action::Push { partition, step, back, key, n } => self.push(partition, step, back, key, n),
            Action::FetchRecords(records) => self.driver.fetch_records(records),
            Action::Step => drop(self.driver.step().unwrap()),
            Action::Process => self.driver.process().unwrap(),
            Action::Commit => self.driver.commit().unwrap(),
            Action::Run => self.driver.run().unwrap(),
            Action::Kill => self.driver.kill().unwrap(),
        }
    }

    fn on_time(&self) -> Vec<&Row> {
        let late = late_ids(&self.driver);
        self.rows.iter().filter(|row| !late.contains(&row.id)).collect()
    }
}

/// Starts of windows that the changelog still has entries of.
pub fn stored_windows(driver: &Driver) -> BTreeSet<i64> {
    let live = driver.table::<serde_json::Value>(CHANGELOG).unwrap();
    live.keys().map(|key| serde_json::from_slice::<(i64, String)>(key).unwrap().0).collect()
}

proptest! {
    #[test]
    fn disorder_within_the_delay_gives_the_batch(
        spec in spec(), partitions in 1..=4u32, actions in prop::collection::vec(action(), 0..150),
    ) {
        let mut world = World::new(move || job(spec), partitions, spec.delay as i64);
        actions.iter().for_each(|action| world.act(action));
        world.driver.end().unwrap();
        prop_assert_eq!(late_ids(&world.driver), BTreeSet::new());
        prop_assert_eq!(results::<Value>(&world.driver, spec), batch(spec, &world.rows));
        prop_assert_eq!(stored_windows(&world.driver), BTreeSet::new());
    }

    #[test]
    fn each_row_is_on_time_or_late_and_each_window_closes_once(
        spec in spec(), partitions in 1..=4u32, disorder in 0..80i64,
        actions in prop::collection::vec(action(), 0..150),
    ) {
        let mut world = World::new(move || job(spec), partitions, disorder);
        actions.iter().for_each(|action| world.act(action));
        world.driver.run().unwrap();
        // Late rows are final: so are the results of the windows that are closed.
        let closed = results::<Value>(&world.driver, spec);
        let all = batch(spec, world.on_time());
        for (group, value) in &closed {
            prop_assert_eq!(Some(value), all.get(group));
        }
        let open: BTreeSet<i64> = all.keys().filter(|group| !closed.contains_key(*group)).map(|group| group.0).collect();
        prop_assert_eq!(stored_windows(&world.driver), open.clone());
        prop_assert!(closed.keys().all(|(start, _)| !open.contains(start)), "a window is closed and open");
        world.driver.end().unwrap();
        prop_assert_eq!(results::<Value>(&world.driver, spec), all);
        prop_assert_eq!(stored_windows(&world.driver), BTreeSet::new());
    }

    /// After the end of input closed everything, a job that goes on treats rows of what was closed as late.
    #[test]
    fn the_end_of_input_is_not_the_end_of_the_job(
        spec in spec(), partitions in 1..=4u32, disorder in 0..80i64,
        lives in prop::collection::vec(prop::collection::vec(action(), 0..40), 1..5),
    ) {
        let mut world = World::new(move || job(spec), partitions, disorder);
        for actions in lives {
            actions.iter().for_each(|action| world.act(action));
            world.driver.end().unwrap();
            world.driver.kill().unwrap();
            prop_assert_eq!(results::<Value>(&world.driver, spec), batch(spec, world.on_time()));
        }
    }

    /// A driver that is killed after any of its commits goes on as one that never was.
    #[test]
    fn a_restore_is_as_if_nothing_had_been(
        spec in spec(), partitions in 1..=4u32, disorder in 0..80i64,
        actions in prop::collection::vec((action(), any::<bool>()), 0..150),
    ) {
        let mut killed = World::new(move || job(spec), partitions, disorder);
        let mut steady = World::new(move || job(spec), partitions, disorder);
        for (action, kill) in actions {
            let is_commit = matches!(action, Action::Commit | Action::Run);
            if matches!(action, Action::Kill) {
                continue;
            }
            killed.act(&action);
            steady.act(&action);
            if is_commit && kill {
                killed.driver.kill().unwrap();
            }
            prop_assert_eq!(results::<Value>(&killed.driver, spec), results::<Value>(&steady.driver, spec));
            prop_assert_eq!(late_ids(&killed.driver), late_ids(&steady.driver));
            prop_assert_eq!(stored_windows(&killed.driver), stored_windows(&steady.driver));
        }
    }
}
