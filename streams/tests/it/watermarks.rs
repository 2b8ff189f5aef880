//! Who holds the watermark: partitions that are behind do, idle ones do not.

use std::time::Duration;

use bytes::Bytes;
use tidemill_core::record::Record;
use tidemill_streams::{Driver, Job, Windowed, agg::Count, window::Tumbling};

const IN: &str = "in";

fn job() -> Job {
    let job = Job::new("test");
    let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream();
    let step = rows.key_by(|_| ()).window(Tumbling::of(Duration::from_millis(10))).aggregate("step", Count::default());
    step.late.to_topic("late");
    step.results.to_topic("out");
    job
}

fn driver() -> Driver {
    let mut driver = Driver::new(job).unwrap();
    driver.partitions(IN, 2).unwrap();
    driver
}

fn push(driver: &mut Driver, partition: u32, at: i64) {
    driver.push_record(IN, partition, Record::new(None, Bytes::from(at.to_string())));
    driver.run().unwrap();
}

fn pass(driver: &mut Driver, ms: u64) {
    driver.advance(Duration::from_millis(ms)).unwrap();
    driver.commit().unwrap();
}

fn starts(driver: &Driver) -> Vec<i64> {
    let results: Vec<Windowed<(), i64>> = driver.output("out").unwrap();
    results.iter().map(|result| result.window_start).collect()
}

#[test]
fn an_idle_partition_lets_go_after_ten_seconds_and_not_before() {
    let mut driver = driver();
    push(&mut driver, 1, 5);
    pass(&mut driver, 5_000);
    push(&mut driver, 0, 100);
    assert_eq!(driver.status().watermark(), Some(5));
    pass(&mut driver, 4_999);
    assert_eq!(starts(&driver), [0; 0], "partition 1 has been idle for 9.999 s only");
    pass(&mut driver, 1);
    assert_eq!(starts(&driver), [0]);
    assert_eq!(driver.status().watermark(), Some(100));
}

#[test]
fn a_partition_that_never_had_a_record_lets_go_too() {
    let mut driver = driver();
    pass(&mut driver, 9_999);
    push(&mut driver, 0, 5);
    push(&mut driver, 0, 100);
    assert_eq!((starts(&driver), driver.status().watermark()), (vec![], None));
    pass(&mut driver, 1);
    assert_eq!((starts(&driver), driver.status().watermark()), (vec![0], Some(100)));
}

#[test]
fn the_watermark_stays_when_all_are_idle() {
    let mut driver = driver();
    push(&mut driver, 0, 15);
    push(&mut driver, 1, 25);
    pass(&mut driver, 3_600_000);
    assert_eq!((starts(&driver), driver.status().watermark()), (vec![], Some(15)));
    push(&mut driver, 1, 26);
    assert_eq!(driver.status().watermark(), Some(26), "partition 0 is idle still");
    assert_eq!(starts(&driver), [10]);
}

#[test]
fn a_partition_that_comes_back_is_late_by_row_and_holds_again() {
    let mut driver = driver();
    push(&mut driver, 1, 5);
    pass(&mut driver, 10_000);
    push(&mut driver, 0, 100);
    assert_eq!((starts(&driver), driver.status().watermark()), (vec![0], Some(100)));
    // Of a closed window, of an open one whose time has passed, and ahead.
    for at in [7, 103, 130] {
        push(&mut driver, 1, at);
    }
    assert_eq!(driver.output::<i64>("late").unwrap(), [7]);
    push(&mut driver, 0, 200);
    assert_eq!(driver.status().watermark(), Some(130), "partition 1 holds it");
    assert_eq!(starts(&driver), [0, 100]);
}

#[test]
fn the_watermark_of_idle_times_survives_a_crash() {
    let mut driver = driver();
    push(&mut driver, 1, 5);
    pass(&mut driver, 10_000);
    push(&mut driver, 0, 100);
    driver.kill().unwrap();
    // The partitions are not known to be idle now, but what was closed stays closed.
    push(&mut driver, 1, 7);
    assert_eq!(driver.output::<i64>("late").unwrap(), [7]);
    assert_eq!(starts(&driver), [0]);
    driver.end().unwrap();
    assert_eq!(starts(&driver), [0, 100]);
}

/// The end of input closes what is open, and sets no step back: what was late before stays late.
#[test]
fn an_end_of_input_sets_no_watermark_back() {
    let mut driver = driver();
    push(&mut driver, 1, 5);
    pass(&mut driver, 10_000);
    push(&mut driver, 0, 100);
    push(&mut driver, 0, 55);
    assert_eq!(driver.output::<i64>("late").unwrap(), [55]);
    driver.end().unwrap();
    driver.kill().unwrap();
    for at in [57, 107, 110] {
        push(&mut driver, 0, at);
    }
    assert_eq!(driver.output::<i64>("late").unwrap(), [55, 57, 107]);
    driver.end().unwrap();
    assert_eq!(starts(&driver), [0, 100, 110]);
}

/// The same where no window tells how far the watermark was: its rows were filtered.
#[test]
fn an_end_of_input_sets_no_watermark_back_without_windows() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream().filter(|at| *at != 1000);
        let step = rows.key_by(|_| ()).window(Tumbling::of(Duration::from_millis(10)));
        let step = step.aggregate("step", Count::default());
        step.late.to_topic("late");
        step.results.to_topic("out");
        job
    };
    let mut driver = Driver::new(job).unwrap();
    driver.partitions(IN, 2).unwrap();
    push(&mut driver, 1, 5);
    pass(&mut driver, 10_000);
    push(&mut driver, 0, 1000);
    assert_eq!((starts(&driver), driver.status().watermark()), (vec![0], Some(1000)));
    driver.end().unwrap();
    driver.kill().unwrap();
    push(&mut driver, 0, 57);
    assert_eq!(driver.output::<i64>("late").unwrap(), [57]);
}

/// A second window over the results of the first: grace holds the watermark between them back by as much.
#[test]
fn windows_of_windows_close_in_order() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream();
        let ms = Duration::from_millis;
        let small = rows.key_by(|_| ()).window(Tumbling::of(ms(10)).grace(ms(25))).aggregate("small", Count::default());
        small.late.discard();
        let large = small
            .results
            .key_by(|_| ())
            .window(Tumbling::of(ms(20)))
            .aggregate("large", tidemill_streams::agg::Sum::of(|result: &Windowed<(), i64>| result.value));
        large.late.to_topic("late");
        large.results.to_topic("out");
        job
    };
    let mut driver = Driver::new(job).unwrap();
    for at in 0..300i64 {
        driver.push(IN, &(at - at % 7)).unwrap();
        driver.run().unwrap();
        if at % 11 == 0 {
            driver.kill().unwrap();
        }
    }
    driver.end().unwrap();
    let results: Vec<Windowed<(), i64>> = driver.output("out").unwrap();
    assert_eq!(driver.records("late").len(), 0);
    assert_eq!(results.iter().map(|result| result.value).sum::<i64>(), 300);
    let starts: Vec<i64> = results.iter().map(|result| result.window_start).collect();
    assert_eq!(starts, (0..15).map(|i| i * 20).collect::<Vec<_>>());
}
