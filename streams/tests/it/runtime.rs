//! Jobs over a real log: stopped, dropped, fenced and drained while others append.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidemill_core::topic::{TopicPartition, partition_of};
use tidemill_streams::{
    Control, ErrorKind, Job, Options, View, Windowed,
    agg::{Count, Fold, Sum},
    window::Tumbling,
};

use crate::{
    bench::{Bench, Running, soon, until},
    rows::{CHANGELOG, IN, LATE, OUT, Row, Spec, Value, batch, by_group, job},
};

pub const SPEC: Spec = Spec { size: 100, offset: 30, grace: 10, delay: 50 };

pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Appends rows to three partitions; each is up to `disorder` ms earlier than its partition's newest.
pub struct Producer {
    rng: Rng,
    clocks: [i64; 3],
    disorder: u64,
    pub rows: Vec<Row>,
}

impl Producer {
    pub fn new(seed: u64, disorder: u64) -> Self {
        Self { rng: Rng(seed), clocks: [-1000; 3], disorder, rows: Vec::new() }
    }

    /// With times that a cluster takes: it knows none before 1970.
    #[cfg(feature = "kafka")]
    pub fn after_1970(seed: u64, disorder: u64) -> Self {
        Self { clocks: [1_000_000; 3], ..Self::new(seed, disorder) }
    }

    pub async fn push(&mut self, bench: &Bench, rows: usize) {
        for _ in 0..rows {
            let partition = self.rng.below(3) as usize;
            self.clocks[partition] += self.rng.below(9) as i64;
            let at = self.clocks[partition] - self.rng.below(self.disorder + 1) as i64;
            let row = Row::new(self.rows.len() as u32, at, self.rng.below(5) as u8, self.rng.below(1000) as i64);
            bench.push(IN, partition as u32, &row).await;
            self.rows.push(row);
        }
    }
}

/// Every row is in the result of its window, once, or late, once; keys are where murmur2 says; no state is left.
pub async fn check(bench: &Bench, rows: &[Row]) -> usize {
    let late: Vec<Row> = bench.output(LATE).await;
    let late_ids: std::collections::BTreeSet<u32> = late.iter().map(|row| row.id).collect();
    assert_eq!(late_ids.len(), late.len(), "a late row came twice");
    let found: BTreeMap<(i64, String), Value> = by_group(bench.output(OUT).await, SPEC);
    assert_eq!(found, batch(SPEC, rows.iter().filter(|row| !late_ids.contains(&row.id))));
    for (partition, record) in bench.records(OUT).await {
        assert_eq!(partition, partition_of(&record.key.unwrap(), 2));
    }
    let mut live = BTreeMap::new();
    for (partition, record) in bench.records(CHANGELOG).await {
        let key = record.key.unwrap();
        assert_eq!(partition, partition_of(&key, 64));
        live.insert(key, record.value.is_some());
    }
    assert!(live.values().all(|is_live| !is_live), "state of closed windows is left");
    late.len()
}

pub fn topics() -> [(&'static str, u32); 2] {
    [(IN, 3), (OUT, 2)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_stops_and_goes_on_while_a_producer_appends() {
    let bench = Arc::new(Bench::new(&topics()).await);
    let mut producer = Producer::new(1, SPEC.delay);
    for _ in 0..4 {
        let job = job(SPEC);
        let status = job.status();
        let running = bench.start(job).await;
        let epochs = status.epochs();
        producer.push(&bench, 150).await;
        until("an epoch", || status.epochs() > epochs).await;
        running.end(Control::Stop).await.unwrap();
        producer.push(&bench, 20).await;
    }
    bench.drain(job(SPEC)).await.unwrap();
    assert_eq!(check(&bench, &producer.rows).await, 0);
}

/// A dropped future is a crash. It is dropped at random moments, with the log closed and opened now and then.
async fn crashes(seed: u64, disorder: u64, rounds: usize) -> usize {
    let mut bench = Bench::new(&topics()).await;
    let mut producer = Producer::new(seed, disorder);
    let mut rng = Rng(seed ^ 0xABCD);
    for round in 0..rounds {
        let (_control, receiver) = tokio::sync::watch::channel(Control::Run);
        {
            let running = bench.run(job(SPEC), Options::default(), receiver);
            let moment = Duration::from_micros(rng.below(60_000));
            let until_then = async {
                producer.push(&bench, 20).await;
                tokio::time::sleep(moment).await;
            };
            tokio::select! {
                ended = running => panic!("ended by itself: {ended:?}"),
                () = until_then => {}
            }
        }
        if round % 4 == 3 {
            bench.reopen();
        }
    }
    bench.drain(job(SPEC)).await.unwrap();
    check(&bench, &producer.rows).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_dropped_at_any_moment_loses_and_doubles_nothing() {
    assert_eq!(crashes(7, SPEC.delay, 20).await, 0);
    assert!(crashes(8, 400, 20).await > 0, "the test has late rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: a minute of crashes"]
async fn many_crashes() {
    for seed in 0..30 {
        println!("seed {seed}: {} late", crashes(seed, seed % 5 * 50, 40).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_job_of_the_name_fences_the_first() {
    let bench = Arc::new(Bench::new(&topics()).await);
    let mut producer = Producer::new(2, SPEC.delay);
    let mut older: Option<Running> = None;
    for _ in 0..5 {
        let job = job(SPEC);
        let status = job.status();
        let running = bench.start(job).await;
        // The older one goes on meanwhile.
        producer.push(&bench, 40).await;
        until("the newer job commits", || status.epochs() > 0).await;
        producer.push(&bench, 10).await;
        if let Some(older) = older.replace(running) {
            let error = soon("the fenced job", older.job).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
            assert!(error.to_string().contains("is fenced"), "{error}");
        }
    }
    older.unwrap().end(Control::Drain).await.unwrap();
    assert_eq!(check(&bench, &producer.rows).await, 0);
}

fn counts() -> (Job, View<(), i64>) {
    let job = Job::new("test");
    let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream();
    let step = rows.key_by(|_| ()).window(Tumbling::of(Duration::from_millis(10))).aggregate("step", Count::default());
    step.late.to_topic(LATE);
    step.results.to_topic(OUT);
    (job, step.view.watched())
}

async fn starts(bench: &Bench) -> Vec<(i64, i64)> {
    let results: Vec<Windowed<(), i64>> = bench.output(OUT).await;
    results.iter().map(|result| (result.window_start, result.value)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_closes_all_and_what_comes_later_for_it_is_late() {
    let bench = Bench::new(&[(IN, 1)]).await;
    bench.push(IN, 0, &-7).await;
    bench.push(IN, 0, &15).await;
    bench.drain(counts().0).await.unwrap();
    assert_eq!(starts(&bench).await, [(-10, 1), (10, 1)]);
    bench.push(IN, 0, &17).await;
    bench.push(IN, 0, &20).await;
    bench.drain(counts().0).await.unwrap();
    assert_eq!(starts(&bench).await, [(-10, 1), (10, 1), (20, 1)]);
    assert_eq!(bench.output::<i64>(LATE).await, [17]);
    bench.drain(counts().0).await.unwrap();
    assert_eq!(starts(&bench).await.len(), 3, "a drain of nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_though_a_producer_goes_on() {
    let bench = Arc::new(Bench::new(&topics()).await);
    let for_producer = Arc::clone(&bench);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let producing = tokio::spawn(async move {
        let mut producer = Producer::new(3, SPEC.delay);
        let pushing = async {
            loop {
                producer.push(&for_producer, 1).await;
            }
        };
        tokio::select! { () = pushing => {}, _ = stopped => {} }
    });
    for _ in 0..3 {
        bench.drain(job(SPEC)).await.unwrap();
    }
    stop.send(()).unwrap();
    producing.await.unwrap();
    bench.drain(job(SPEC)).await.unwrap();
    let rows: Vec<Row> = bench.output(IN).await;
    check(&bench, &rows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_panics_ends_the_job_alone() {
    let bench = Bench::new(&[(IN, 1)]).await;
    bench.push(IN, 0, &1).await;
    bench.push(IN, 0, &2).await;
    let bad = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream();
        rows.map(|n| if n == 2 { panic!("two is too much") } else { n }).to_topic(OUT);
        job
    };
    let error = bench.drain(bad()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("two is too much"), "{error}");
    assert!(bench.records(OUT).await.is_empty(), "nothing of its epoch is committed");
    bench.drain(counts().0).await.unwrap_err();
}

/// State whose writing panics: code of the job runs in barriers, too.
#[derive(Debug, Clone, Default, serde::Deserialize)]
struct Unwritable;

impl serde::Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("cannot be written")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_panics_ends_the_job_alone() {
    let bench = Bench::new(&[(IN, 1)]).await;
    bench.push(IN, 0, &1).await;
    let job = Job::new("test");
    let rows = job.topic(IN).json::<i64>().event_time(|at| *at).stream();
    let fold = Fold::new(|_: &mut Unwritable, _: &i64| {});
    rows.key_by(|_| ()).window(Tumbling::of(Duration::from_secs(1))).aggregate("step", fold).late.discard();
    let (_control, receiver) = tokio::sync::watch::channel(Control::Run);
    let error = soon("the job", bench.run(job, Options::default(), receiver)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("cannot be written"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_not_there_is_named() {
    let bench = Bench::new(&[]).await;
    let error = bench.drain(counts().0).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::NotFound, "job test: topic \"in\" does not exist")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changelog_whose_start_is_not_told_is_not_read_from_anywhere() {
    let bench = Bench::new(&[(IN, 1)]).await;
    bench.push(IN, 0, &1).await;
    bench.drain(counts().0).await.unwrap();
    let step = "step";
    let positions = bench.session().await.positions("job.test").await.unwrap();
    assert!(positions.contains_key(&format!("watermark:{step}")), "{positions:?}");
    let mut writer = bench.session().await.writer("job.test").await.unwrap();
    writer.set_position(&format!("changelog:{step}:7"), Some("somewhere".into()));
    writer.commit().await.unwrap();
    let error = bench.drain(counts().0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_noticed_stopped_and_running() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    let session = bench.session().await;
    bench.push(IN, 0, &1).await;
    bench.drain(counts().0).await.unwrap();
    session.delete_topic(IN).await.unwrap();
    bench.create(IN, 1).await;
    bench.push(IN, 0, &50).await;
    let error = bench.drain(counts().0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("topic in was deleted and made again"), "{error}");

    // While the job is busy, so that it does not wait at the old topic.
    let (busy, door) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Mutex::new(())));
    let held = door.lock().await;
    let (is_busy, may_go_on) = (Arc::clone(&busy), Arc::clone(&door));
    let job = Job::new("other");
    let slow = job.topic(IN).json::<i64>().stream().map(move |n| {
        is_busy.store(true, Ordering::Relaxed);
        drop(may_go_on.blocking_lock());
        n
    });
    slow.to_topic("other");
    let running = bench.start(job).await;
    until("it has read", || busy.load(Ordering::Relaxed)).await;
    session.delete_topic(IN).await.unwrap();
    bench.create(IN, 1).await;
    for _ in 0..5 {
        bench.push(IN, 0, &99).await;
    }
    drop(held);
    let error = soon("the job", running.job).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains("topic in was deleted and made again"), "{error}");
    assert!(bench.records("other").await.is_empty(), "records of the new topic were taken for the old one's");

    // While it waits.
    let job = Job::new("third");
    job.topic(IN).json::<i64>().stream().to_topic("third");
    let status = job.status();
    let running = bench.start(job).await;
    until("it has read", || status.epochs() > 0).await;
    session.delete_topic(IN).await.unwrap();
    let error = soon("the job", running.job).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

fn sum(reset_marker: u64) -> Job {
    let job = Job::new("test");
    let rows = job.topic(IN).json::<(i64, i64)>().event_time(|(at, _)| *at).stream();
    let windows = Tumbling::of(Duration::from_secs(1)).grace(Duration::from_millis(reset_marker));
    let step = rows.key_by(|_| ()).window(windows).aggregate("step", Sum::of(|(_, n): &(i64, i64)| *n));
    step.late.discard();
    step.results.to_topic(OUT);
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_forgotten_on_request_and_only_once() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    bench.push(IN, 0, &(1, 1)).await;
    let (control, receiver) = tokio::sync::watch::channel(Control::Run);
    let first = sum(0);
    let status = first.status();
    let running = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.run(first, Options::default(), receiver).await }
    });
    until("the first row", || status.epochs() > 0).await;
    control.send(Control::Stop).unwrap();
    running.await.unwrap().unwrap();

    let error = bench.drain(sum(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("job's steps step ("), "{error}");

    let job = sum(1);
    let status = job.status();
    let running = bench.start_with(job, Options::default().reset_state("step")).await;
    bench.push(IN, 0, &(2, 10)).await;
    until("the second row", || status.epochs() > 0).await;
    // The log goes away and comes back: the job is restored, and what it has by now is not forgotten.
    bench.door.is_shut.store(true, Ordering::Relaxed);
    bench.push(IN, 0, &(3, 100)).await;
    let calls = bench.door.calls.load(Ordering::Relaxed);
    until("it is refused", || bench.door.calls.load(Ordering::Relaxed) > calls + 10).await;
    bench.door.is_shut.store(false, Ordering::Relaxed);
    until("the third row", || status.records() == 2).await;
    running.end(Control::Drain).await.unwrap();
    assert_eq!(starts(&bench).await, [(0, 110)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_away_is_tried_again_though_nobody_holds_the_control() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    let (job, view) = counts();
    let running = bench.start(job).await;
    drop(running.control);
    bench.door.is_shut.store(true, Ordering::Relaxed);
    bench.push(IN, 0, &1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!running.job.is_finished());
    let calls = bench.door.calls.load(Ordering::Relaxed);
    assert!(calls < 1000, "{calls} calls while the log was away");
    bench.door.is_shut.store(false, Ordering::Relaxed);
    bench.push(IN, 0, &2).await;
    until("both rows", || view.windows().1.first().is_some_and(|one| one.groups == [((), 2)])).await;
    running.job.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_committed_is_not_shown() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    let (job, view) = counts();
    let status = job.status();
    let running = bench.start(job).await;
    bench.push(IN, 0, &1).await;
    until("the first row", || view.windows().1.first().is_some_and(|one| one.groups == [((), 1)])).await;
    bench.door.takes_no_writes.store(true, Ordering::Relaxed);
    let read = status.records();
    bench.push(IN, 0, &2).await;
    until("it is read again and again", || status.records() > read + 1).await;
    assert_eq!(view.windows().1[0].groups, [((), 1)]);
    bench.door.takes_no_writes.store(false, Ordering::Relaxed);
    until("the second row", || view.windows().1[0].groups == [((), 2)]).await;
    running.end(Control::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_job_rests_and_stops_promptly() {
    let bench = Arc::new(Bench::new(&[(IN, 3)]).await);
    bench.push(IN, 0, &1).await;
    for is_dropped in [false, true] {
        let (job, _view) = counts();
        let status = job.status();
        let mut running = bench.start(job).await;
        until("it runs", || status.epochs() > 0).await;
        let (other, _) = tokio::sync::watch::channel(Control::Run);
        let kept = (!is_dropped).then(|| std::mem::replace(&mut running.control, other.clone()));
        drop(std::mem::replace(&mut running.control, other));
        let before = bench.door.calls.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let calls = bench.door.calls.load(Ordering::Relaxed) - before;
        println!("{calls} calls a second, control dropped: {is_dropped}");
        assert!(calls < 200, "{calls} calls in an idle second");
        match kept {
            None => running.job.abort(),
            Some(control) => {
                let told = Instant::now();
                control.send(Control::Stop).unwrap();
                soon("a stop", running.job).await.unwrap().unwrap();
                println!("stopped after {:?}", told.elapsed());
                assert!(told.elapsed() < Duration::from_secs(1));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_in_the_view_soon() {
    let bench = Arc::new(Bench::new(&[(IN, 3)]).await);
    let (job, view) = counts();
    let running = bench.start(job).await;
    let mut took = Vec::new();
    for n in 1..=20 {
        // Into the quiet: a wait for records is under way.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let appended = Instant::now();
        bench.push(IN, 0, &1).await;
        until("the view", || view.windows().1.first().is_some_and(|one| one.groups == [((), n)])).await;
        took.push(appended.elapsed());
    }
    took.sort();
    println!("append to view: best {:?}, median {:?}, worst {:?}", took[0], took[10], took[19]);
    assert!(took[0] < Duration::from_millis(150), "best of 20 is {:?}", took[0]);
    running.end(Control::Stop).await.unwrap();
}

/// State that is written whole again and again, restored by each next run from its snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_goes_on_from_a_snapshot() {
    const TEXT: usize = 100_000;
    let fat = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<(i64, String)>().event_time(|(at, _)| *at).stream();
        let last = |state: &mut (i64, String), (_, text): &(i64, String)| *state = (state.0 + 1, text.clone());
        let windows = Tumbling::of(Duration::from_secs(1));
        let step = rows.key_by_ref(|(_, text)| &text[..1]).window(windows).aggregate("step", Fold::new(last));
        step.late.discard();
        step.results.to_topic(OUT);
        (job, step.view.watched())
    };
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    let mut starts = Vec::new();
    for round in 0..15i64 {
        let (job, view) = fat();
        let running = bench.start(job).await;
        for key in ["a", "b"] {
            bench.push(IN, 0, &(round, key.repeat(TEXT))).await;
        }
        let is_there = |one: &(String, (i64, String))| one.1.0 == round + 1;
        until("both", || {
            view.windows().1.first().is_some_and(|w| w.groups.len() == 2 && w.groups.iter().all(is_there))
        })
        .await;
        running.end(Control::Stop).await.unwrap();
        let positions = bench.session().await.positions("job.test").await.unwrap();
        let changelog = positions.into_iter().filter(|(name, _)| name.starts_with("changelog:step:"));
        starts.push(changelog.filter_map(|(_, offset)| offset.parse::<i64>().ok()).sum::<i64>());
    }
    starts.dedup();
    assert!(starts.len() >= 3, "no snapshots: {starts:?}");
    let (job, _) = fat();
    bench.drain(job).await.unwrap();
    let results: Vec<Windowed<String, (i64, String)>> = bench.output(OUT).await;
    let counts: Vec<i64> = results.iter().map(|result| result.value.0).collect();
    assert_eq!(counts, [15, 15]);
}

/// An epoch is one transaction, and those have a limit, 16 MiB here. Told with the topic; nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_beyond_the_limit_of_a_transaction_stops_the_job() {
    let job = || {
        let job = Job::new("test");
        let rows = job.topic(IN).json::<i64>().event_time(|_| 0).stream();
        let last = |state: &mut String, _: &i64| *state = "x".repeat(500_000);
        let step = rows.key_by(|n| *n).window(Tumbling::of(Duration::from_secs(1))).aggregate("step", Fold::new(last));
        step.late.discard();
        step.results.to_topic(OUT);
        job
    };
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    for n in 0..40i64 {
        // A few at a time: state grows beyond the limit without a complaint, and its snapshots take turns.
        bench.push(IN, 0, &n).await;
        if n % 10 == 9 && n < 39 {
            let job = job();
            let status = job.status();
            let running = bench.start(job).await;
            until("all are read", || status.records() == 10).await;
            running.end(Control::Stop).await.unwrap();
        }
    }
    let error = bench.drain(job()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("write to "), "{error}");
    assert!(error.to_string().contains("transaction of more than"), "{error}");
    assert!(bench.records(OUT).await.is_empty());
}

/// What was shown before a crash is shown after it, and what was not committed is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_is_there_again_after_a_restart() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    for n in 1..=3 {
        let (job, view) = counts();
        let running = bench.start(job).await;
        if n > 1 {
            until("the view", || view.windows().1.first().is_some_and(|one| one.groups == [((), n - 1)])).await;
        }
        bench.push(IN, 0, &1).await;
        until("the row", || view.windows().1.first().is_some_and(|one| one.groups == [((), n)])).await;
        running.job.abort();
        let _ = running.job.await;
    }
}

/// What docs/FORMAT.md says of jobs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_is_in_the_log_as_the_format_says() {
    let bench = Arc::new(Bench::new(&[(IN, 1)]).await);
    let (job, _view) = counts();
    let status = job.status();
    let running = bench.start(job).await;
    bench.push(IN, 0, &15).await;
    until("the row", || status.records() == 1).await;
    running.end(Control::Stop).await.unwrap();
    let session = bench.session().await;
    let id = session.topic(IN).await.unwrap().unwrap().id;
    let offset = session.bounds(&[TopicPartition::new(IN, 0)]).await.unwrap()[0].durable_offset;
    let expected = [
        ("input:in:0", format!(r#"{{"topic_id":"{id}","offset":{offset},"watermark":15}}"#)),
        (
            "job",
            r#"{"key_groups":64,"steps":{"step":"tumbling windows of 10 ms, offset 0 ms, grace 0 ms of count"}}"#
                .into(),
        ),
        ("watermark:step", "15".into()),
    ];
    let expected: BTreeMap<String, String> = expected.into_iter().map(|(name, value)| (name.into(), value)).collect();
    assert_eq!(session.positions("job.test").await.unwrap(), expected);
    let records = bench.records(CHANGELOG).await;
    let texts: Vec<_> = records.iter().map(|(_, r)| (r.key.as_deref().unwrap(), r.value.as_deref().unwrap())).collect();
    assert_eq!(texts, [(&b"[10,null]"[..], &b"[1,1]"[..])]);
    assert_eq!(records[0].0, partition_of(b"[10,null]", 64));
}
