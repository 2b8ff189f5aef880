//! What is refused: jobs that are put together wrongly, state of another job, records that do not fit.

use std::time::Duration;

use bytes::Bytes;
use tidemill_core::record::{FetchedRecord, Header, Record, Timestamp};
use tidemill_streams::{
    Driver, Error, ErrorKind, Job, Windowed,
    agg::{Count, Fold, Sum},
    window::Tumbling,
};

fn second() -> Tumbling {
    Tumbling::of(Duration::from_secs(1))
}

/// Builds a job and gives what is wrong with it.
fn fault(build: impl Fn(&Job) + 'static) -> String {
    let make = move || {
        let job = Job::new("test");
        build(&job);
        job
    };
    let error = Driver::new(make).err().expect("a fault");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    error.to_string()
}

fn counted(job: &Job, step: &str, windows: Tumbling) {
    let topic = format!("in-{}", step.len());
    job.topic(topic)
        .json::<i64>()
        .stream()
        .key_by(|n| *n)
        .window(windows)
        .aggregate(step, Count::default())
        .late
        .discard();
}

#[test]
fn faults_of_a_job_are_told_all_at_once() {
    assert_eq!(fault(|_| {}), "the job reads no topic");
    let twice = fault(|job| {
        let rows = job.topic("in").json::<i64>().stream();
        for _ in 0..2 {
            rows.clone().key_by(|n| *n).window(second()).aggregate("a", Count::default()).late.discard();
        }
        job.topic("in").json::<i64>().stream().to_topic("a b");
    });
    assert_eq!(
        twice,
        "two steps are called \"a\"; topic \"in\" is read twice; read it once and use its stream twice; topic name \
         \"a b\" has ' '; allowed are A-Z a-z 0-9 . _ -"
    );
    assert_eq!(
        fault(|job| counted(job, "a", Tumbling::of(Duration::ZERO))),
        "step \"a\": a window's size must be at least 1 ms"
    );
    assert_eq!(fault(|job| counted(job, "a.b", second())), "step \"a.b\": a step needs a name, without dots");
    assert!(fault(|job| counted(job, "", second())).starts_with("step \"\": a step needs a name, without dots"));
    let long = fault(|job| counted(job, &"a".repeat(240), second()));
    assert!(long.starts_with("changelog of step \"aaa") && long.ends_with("exceeds 249"), "{long}");
    let bad_name = Driver::new(|| {
        let job = Job::new("no spaces");
        counted(&job, "a", second());
        job
    });
    assert!(bad_name.err().unwrap().to_string().starts_with("job \"no spaces\": topic name"));
}

#[test]
fn topics_that_are_not_the_jobs_to_use_are_a_fault() {
    let changelog = fault(|job| {
        counted(job, "a", second());
        job.topic("in").json::<i64>().stream().to_topic("test.a.changelog");
    });
    assert_eq!(changelog, "topic \"test.a.changelog\" is the changelog of step \"a\"");
    let internal = fault(|job| job.topic("_tidemill.topics").json::<i64>().stream().to_topic("_tidemill.positions"));
    assert_eq!(internal, "topic \"_tidemill.topics\" is the log's own; topic \"_tidemill.positions\" is the log's own");
}

#[test]
fn late_rows_that_nobody_reads_are_a_fault() {
    let unread = "step \"a\": late rows go nowhere; write late.to_topic(\"..\"), or late.discard() to only count them";
    let late = |job: &Job| {
        let rows = job.topic("in").json::<i64>().stream();
        rows.key_by(|n| *n).window(second()).aggregate("a", Count::default()).late
    };
    assert_eq!(fault(move |job| drop(late(job))), unread);
    assert_eq!(fault(move |job| drop(late(job).map(|n| n + 1).filter(|n| *n > 0))), unread);
    let read = [
        Driver::new(move || {
            let job = Job::new("test");
            late(&job).discard();
            job
        }),
        Driver::new(move || {
            let job = Job::new("test");
            late(&job).map(|n| n + 1).filter(|n| *n > 0).discard();
            job
        }),
        Driver::new(move || {
            let job = Job::new("test");
            late(&job).flat_map(|n| [n, n]).to_topic("late");
            job
        }),
    ];
    assert!(read.iter().all(Result::is_ok));
}

#[test]
fn rows_that_are_taken_back_are_refused_where_they_cannot_be() {
    let fold = fault(|job| {
        let rows = job.topic("in").changes::<i64>().event_time(|n| *n).stream();
        let fold = Fold::new(|state: &mut i64, n: &i64| *state += n);
        rows.key_by(|n| *n).window(second()).aggregate("a", (Count::default(), fold)).late.discard();
    });
    assert_eq!(fold, "step \"a\": count, fold cannot take rows back, and its input may ask it to");
    let topic = fault(|job| job.topic("in").changes::<i64>().event_time(|n| *n).stream().map(|n| n).to_topic("out"));
    assert_eq!(topic, "topic \"out\": rows of this stream may be taken back, which a topic cannot tell");
    let late = fault(|job| {
        let rows = job.topic("in").changes::<i64>().event_time(|n| *n).stream();
        rows.key_by(|n| *n).window(second()).aggregate("a", Count::default()).late.to_topic("late");
    });
    assert_eq!(late, "topic \"late\": rows of this stream may be taken back, which a topic cannot tell");
    let timeless = fault(|job| drop(job.topic("in").changes::<i64>().stream()));
    assert_eq!(timeless, "topic \"in\": rows of change events need a time of their own: .event_time(..)");
}

fn steps(names: &'static [(&'static str, u64)]) -> impl Fn() -> Job + 'static {
    move || {
        let job = Job::new("test");
        let rows = job.topic("in").json::<(i64, i64)>().event_time(|(at, _)| *at).stream();
        for (name, size_ms) in names {
            let windows = Tumbling::of(Duration::from_millis(*size_ms));
            let sum = Sum::of(|(_, n): &(i64, i64)| *n);
            let step = rows.clone().key_by(|_| ()).window(windows).aggregate(name, sum);
            step.late.to_topic("late");
            step.results.to_topic(name);
        }
        job
    }
}

fn sums(driver: &Driver, topic: &str) -> Vec<(i64, i64)> {
    let results: Vec<Windowed<(), i64>> = driver.output(topic).unwrap();
    results.iter().map(|result| (result.window_start, result.value)).collect()
}

#[test]
fn state_of_other_steps_is_refused_by_name_and_forgotten_on_request() {
    let mut driver = Driver::new(steps(&[("kept", 10), ("changed", 10), ("gone", 10)])).unwrap();
    driver.push("in", &(5, 1)).unwrap();
    driver.push("in", &(12, 1)).unwrap();
    driver.run().unwrap();
    const OTHER: &[(&str, u64)] = &[("kept", 10), ("changed", 20), ("new", 10)];
    let error = driver.replace(steps(OTHER), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(
        error.to_string(),
        "stored state does not fit the job's steps changed, gone, new (changed is tumbling windows of 20 ms, offset 0 ms, \
         grace 0 ms of sum here and tumbling windows of 10 ms, offset 0 ms, grace 0 ms of sum in the state); to forget \
         the state of a step: reset_state(\"changed\")"
    );
    let error = driver.replace(steps(OTHER), &["changed", "new"]).unwrap_err();
    assert!(error.to_string().contains("job's steps gone ("), "{error}");
    driver.replace(steps(OTHER), &["changed", "new", "gone"]).unwrap();
    // What is forgotten is forgotten for good.
    driver.kill().unwrap();
    driver.push("in", &(13, 1)).unwrap();
    driver.end().unwrap();
    assert_eq!(sums(&driver, "kept"), [(0, 1), (10, 2)]);
    assert_eq!(sums(&driver, "changed"), [(0, 1), (0, 1)], "once by the old step, once by the new one");
    assert_eq!(sums(&driver, "new"), [(10, 1)]);
    assert_eq!(sums(&driver, "gone"), [(0, 1)]);
    // A step that comes back finds nothing of its former life.
    let error = driver.replace(steps(&[("kept", 10), ("gone", 10)]), &["changed", "new"]).unwrap_err();
    assert!(error.to_string().contains("job's steps gone ("), "{error}");
    driver.replace(steps(&[("kept", 10), ("gone", 10)]), &["changed", "new", "gone"]).unwrap();
    driver.end().unwrap();
    assert_eq!(sums(&driver, "gone"), [(0, 1)]);
}

fn decoding(dead_letters: bool) -> impl Fn() -> Job + 'static {
    move || {
        let job = Job::new("test");
        let source = job.topic("in").json::<(i64, String)>().event_time(|(at, _)| *at);
        let source = if dead_letters { source.dead_letters("dead") } else { source };
        source.stream().to_topic("out");
        job
    }
}

#[test]
fn a_record_that_does_not_fit_stops_the_job_with_its_place() {
    let mut driver = Driver::new(decoding(false)).unwrap();
    driver.partitions("in", 3).unwrap();
    driver.push_record("in", 2, Record::new(None, Bytes::from("[1,\"a\"]")));
    driver.push_record("in", 2, Record::new(None, None));
    driver.push_record("in", 2, Record::new(None, Bytes::from("[2,5]")));
    for _ in 0..2 {
        let error = driver.run().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.starts_with("in[2]@2: value does not fit: invalid type: integer `5`"), "{text}");
        assert!(text.ends_with("; write .dead_letters(\"..\") to set such records aside"), "{text}");
        driver.kill().unwrap();
    }
    assert_eq!(driver.records("out").len(), 0, "the epoch of a bad record is not committed");
    driver.replace(decoding(true), &[]).unwrap();
    driver.run().unwrap();
    assert_eq!(driver.records("out").len(), 1);
    assert_eq!(driver.records("dead").len(), 1);
}

#[test]
fn dead_letters_keep_the_record_and_tell_place_and_cause() {
    let mut driver = Driver::new(decoding(true)).unwrap();
    let year_50_000 = 1_515_000_000_000_000i64;
    let bad = Record {
        key: Some(Bytes::from("k")),
        value: Some(Bytes::from(format!("[{year_50_000},\"a\"]"))),
        headers: vec![Header::text("mine", "1")],
        timestamp: Some(Timestamp(77)),
    };
    driver.push_record("in", 0, bad.clone());
    driver.push("in", &(1, "fine")).unwrap();
    driver.run().unwrap();
    driver.kill().unwrap();
    driver.run().unwrap();
    let dead = driver.records("dead");
    assert_eq!(dead.len(), 1);
    assert_eq!((&dead[0].key, &dead[0].value, dead[0].timestamp), (&bad.key, &bad.value, Timestamp(77)));
    let header = |name: &str| dead[0].header(name).map(|value| String::from_utf8(value.to_vec()).unwrap());
    assert_eq!(header("mine").unwrap(), "1");
    assert_eq!(header("tm-dead-topic").unwrap(), "in");
    assert_eq!(header("tm-dead-partition").unwrap(), "0");
    assert_eq!(header("tm-dead-offset").unwrap(), "0");
    assert!(header("tm-dead-cause").unwrap().starts_with("event time 1515000000000000 is not within"));
    assert_eq!(driver.records("out").len(), 1);
    assert_eq!(driver.status().dead_letters(), 0, "counted by the process that crashed, not by this one");
}

#[test]
fn a_decoder_whose_helper_is_away_makes_no_dead_letters() {
    let job = || {
        let job = Job::new("test");
        let away = |_: &FetchedRecord| Err::<Option<i64>, _>(Error::unavailable("the registry is away"));
        job.topic("in").decode(away).dead_letters("dead").stream().to_topic("out");
        job
    };
    let mut driver = Driver::new(job).unwrap();
    driver.push("in", &1).unwrap();
    let error = driver.run().unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Unavailable, "in[0]@0: the registry is away"));
}

#[test]
fn change_events_that_lack_a_row_are_bad_records() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic("in").changes::<i64>().event_time(|at| *at).dead_letters("dead").stream();
        rows.key_by(|n| *n).window(second()).aggregate("a", Count::default()).late.discard();
        job
    };
    let mut driver = Driver::new(job).unwrap();
    for event in [
        r#"{"op":"c","before":null,"after":null}"#,
        r#"{"op":"u","before":null,"after":1}"#,
        r#"{"op":"d","before":null}"#,
        r#"{"op":"x","after":1}"#,
        r#"{"op":"c","after":1}"#,
        "7",
    ] {
        driver.push_record("in", 0, Record::new(None, Bytes::from(event)));
    }
    driver.run().unwrap();
    let causes: Vec<String> = driver
        .records("dead")
        .iter()
        .map(|record| String::from_utf8(record.header("tm-dead-cause").unwrap().to_vec()).unwrap())
        .collect();
    assert_eq!(
        causes[..4],
        [
            "\"c\" has no row after it",
            "\"u\" has no row before it",
            "\"d\" has no row before it",
            "\"x\" is no operation of a change event",
        ]
    );
    assert_eq!(causes.len(), 5);
}
