//! State in its changelog: snapshots, restores, sums and keys that JSON is not made for.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidemill_streams::{
    Driver, ErrorKind, Job, Windowed,
    agg::{Count, Fold, Sum},
    window::Tumbling,
};

use crate::rows::{CHANGELOG, IN, OUT};

const ROUNDS: i64 = 60;
const TEXT: usize = 20_000;
const ROUNDS_OF_MANY: usize = 10;

/// One window whose only group has a state of 20,000 bytes, written anew each epoch; others close behind it.
fn fat() -> Job {
    let job = Job::new("test");
    let rows = job.topic(IN).json::<(i64, String)>().event_time(|(at, _)| *at).stream();
    let last = |state: &mut (i64, String), (_, text): &(i64, String)| *state = (state.0 + 1, text.clone());
    let windows = Tumbling::of(Duration::from_secs(1)).grace(Duration::from_secs(10));
    let step = rows.key_by(|_| 0u8).window(windows).aggregate("step", Fold::new(last));
    step.late.discard();
    step.results.to_topic(OUT);
    job
}

fn bytes_read_by_a_restore(driver: &Driver) -> usize {
    driver.stored("step").iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, |value| value.len())).sum()
}

#[test]
fn a_restore_begins_at_a_snapshot_and_reads_about_three_times_the_state() {
    let mut driver = Driver::new(fat).unwrap();
    for round in 0..ROUNDS {
        let text: String = std::iter::repeat_n(char::from(b'a' + (round % 26) as u8), TEXT).collect();
        driver.push(IN, &(round, text)).unwrap();
        driver.run().unwrap();
        let limit = 3 * (TEXT + 100) + (256 << 10) + (TEXT + 100);
        assert!(bytes_read_by_a_restore(&driver) <= limit, "round {round} reads {}", bytes_read_by_a_restore(&driver));
        driver.kill().unwrap();
    }
    let written: usize = driver.records(CHANGELOG).iter().map(|record| record.value.as_ref().unwrap().len()).sum();
    assert!(written >= ROUNDS as usize * TEXT);
    assert!(bytes_read_by_a_restore(&driver) < written / 2, "no snapshot was taken");
    driver.end().unwrap();
    let results: Vec<Windowed<u8, (i64, String)>> = driver.output(OUT).unwrap();
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].value.0, ROUNDS);
    assert!(driver.table::<serde_json::Value>(CHANGELOG).unwrap().is_empty());
}

/// Many windows of one key group each: the snapshot holds the groups that did not change in its epoch, too.
#[test]
fn a_snapshot_has_what_did_not_change() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<(i64, String)>().event_time(|(at, _)| *at).max_delay(Duration::from_secs(9));
        let last = |state: &mut (i64, String), (_, text): &(i64, String)| *state = (state.0 + 1, text.clone());
        let windows = Tumbling::of(Duration::from_millis(1));
        let step = rows.stream().key_by(|(at, _)| *at).window(windows).aggregate("step", Fold::new(last));
        step.late.discard();
        step.results.to_topic(OUT);
        job
    };
    let mut driver = Driver::new(job).unwrap();
    for round in 0..ROUNDS_OF_MANY {
        for at in 0..200i64 {
            driver.push(IN, &(at, "x".repeat(20_000 + round))).unwrap();
            if at % 50 == 49 {
                driver.run().unwrap();
                driver.kill().unwrap();
            }
        }
    }
    let all: usize = driver.records(CHANGELOG).len();
    assert!(driver.stored("step").len() < all, "no snapshot was taken");
    driver.end().unwrap();
    let results: Vec<Windowed<i64, (i64, String)>> = driver.output(OUT).unwrap();
    assert_eq!(results.len(), 200);
    assert!(results.iter().all(|result| result.value.0 == ROUNDS_OF_MANY as i64));
}

fn sums() -> Job {
    let job = Job::new("test");
    let rows = job.topic(IN).json::<(i64, i64)>().event_time(|(at, _)| *at).stream();
    let windows = Tumbling::of(Duration::from_secs(1));
    let step = rows.key_by(|_| u128::MAX - 1).window(windows).aggregate("step", Sum::of(|(_, n): &(i64, i64)| *n));
    step.late.discard();
    step.results.to_topic(OUT);
    job
}

#[test]
fn a_sum_and_a_key_beyond_64_bits_survive() {
    let mut driver = Driver::new(sums).unwrap();
    for n in [i64::MAX, i64::MAX, 7, -i64::MAX] {
        driver.push(IN, &(1, n)).unwrap();
        driver.run().unwrap();
        driver.kill().unwrap();
    }
    driver.push(IN, &(1, -i64::MAX)).unwrap();
    driver.end().unwrap();
    let results: Vec<Windowed<u128, i64>> = driver.output(OUT).unwrap();
    assert_eq!(results, [Windowed { window_start: 0, window_end: 1000, key: u128::MAX - 1, value: 7 }]);
}

#[test]
fn a_result_beyond_64_bits_is_an_error_that_names_the_step() {
    let mut driver = Driver::new(sums).unwrap();
    driver.push(IN, &(1, i64::MAX)).unwrap();
    driver.push(IN, &(1, 1)).unwrap();
    driver.run().unwrap();
    let error = driver.end().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Invalid, "step step: a sum exceeds 64 bits"));
}

/// A key that forgets a field when it is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Forgetful {
    name: String,
    #[serde(skip)]
    number: u32,
}

#[test]
fn a_key_that_is_not_read_back_as_written_is_refused() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<u32>().stream();
        let keyed = rows.key_by(|n| Forgetful { name: "a".into(), number: *n });
        let step = keyed.window(Tumbling::of(Duration::from_secs(1))).aggregate("step", Count::default());
        step.late.discard();
        job
    };
    let mut driver = Driver::new(job).unwrap();
    driver.push(IN, &0).unwrap();
    driver.run().unwrap();
    driver.push(IN, &1).unwrap();
    let error = driver.run().unwrap_err();
    let expected = "step step: a key is not the same once it is written as JSON and read back: [0,{\"name\":\"a\"}]";
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Invalid, expected));
}

#[test]
fn a_state_that_json_cannot_tell_is_refused() {
    type Odd = std::collections::HashMap<(u8, u8), u8>;
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<u32>().stream();
        let fold = |state: &mut Odd, _: &u32| {
            state.insert((1, 2), 3);
        };
        let windows = Tumbling::of(Duration::from_secs(1));
        rows.key_by(|n| *n).window(windows).aggregate("step", Fold::new(fold)).late.discard();
        job
    };
    let mut driver = Driver::new(job).unwrap();
    driver.push(IN, &0).unwrap();
    let error = driver.run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().starts_with("step step: a state cannot be written as JSON"), "{error}");
}
