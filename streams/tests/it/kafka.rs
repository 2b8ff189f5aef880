//! Jobs over a real broker of Apache Kafka.

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tidemill_core::{
    clock::SystemClock,
    log::{Caller, Kafka, Log},
};
use tidemill_streams::{Control, Options};

use crate::{
    bench::{Bench, soon},
    rows::{OUT, job},
    runtime::{Producer, Rng, SPEC, check, topics},
    servers::Broker,
};

const URL: &str = "TIDEMILL_TEST_KAFKA";

async fn broker() -> Option<Broker> {
    tokio::task::spawn_blocking(Broker::start).await.unwrap()
}

/// A dropped future is a crash, at random moments: in the opening, between epochs, in a commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_dropped_at_any_moment_loses_and_doubles_nothing() {
    let Some(broker) = broker().await else { return };
    let bench = Bench::of_cluster(&broker.url(), &topics()).await;
    let mut producer = Producer::after_1970(5, SPEC.delay);
    let mut rng = Rng(6);
    for _ in 0..5 {
        let (_control, receiver) = tokio::sync::watch::channel(Control::Run);
        let moment = Duration::from_millis(rng.below(1500));
        let until_then = async {
            producer.push(&bench, 20).await;
            tokio::time::sleep(moment).await;
        };
        tokio::select! {
            ended = bench.run(job(SPEC), Options::default(), receiver) => panic!("ended by itself: {ended:?}"),
            () = until_then => {}
        }
    }
    bench.drain(job(SPEC)).await.unwrap();
    assert_eq!(check(&bench, &producer.rows).await, 0);
}

/// Not a test: what a worker process of the next one does, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: only as a process of another test"]
async fn worker() {
    let Ok(url) = std::env::var(URL) else { return };
    let log = Kafka::connect(&url).await.unwrap();
    let session = log.session(Caller::internal("worker")).await.unwrap();
    let (_control, receiver) = tokio::sync::watch::channel(Control::Run);
    job(SPEC).run(session, Arc::new(SystemClock::default()), Options::default(), receiver).await.unwrap();
}

fn start_worker(url: &str) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kafka::worker", "--ignored"]).env(URL, url);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// How many results there are. Ends of partitions would not tell: what ends a transaction moves them, too.
async fn results(bench: &Bench) -> usize {
    bench.records(OUT).await.len()
}

/// A worker process is killed by `kill -9` while rows come; another one, started then, goes on within 15 s of the kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_is_followed_by_another() {
    let Some(broker) = broker().await else { return };
    let bench = Bench::of_cluster(&broker.url(), &topics()).await;
    let mut producer = Producer::after_1970(9, SPEC.delay);
    let mut worker = start_worker(&broker.url());
    let mut killed = Instant::now();
    for round in 0..3 {
        let before = results(&bench).await;
        let begun = Instant::now();
        while results(&bench).await == before {
            producer.push(&bench, 20).await;
            assert!(begun.elapsed() < Duration::from_secs(60), "no output in round {round}");
        }
        if round > 0 {
            println!("output {:?} after kill -9", killed.elapsed());
            assert!(killed.elapsed() < Duration::from_secs(15), "resumed only after {:?}", killed.elapsed());
        }
        if round < 2 {
            worker.kill().unwrap();
            worker.wait().unwrap();
            killed = Instant::now();
            // What it had committed just before may come to sight yet.
            tokio::time::sleep(Duration::from_millis(500)).await;
            worker = start_worker(&broker.url());
        }
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    soon("the drain", bench.drain(job(SPEC))).await.unwrap();
    assert_eq!(check(&bench, &producer.rows).await, 0);
}
