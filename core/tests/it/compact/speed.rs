//! How fast a pass is, what memory it takes, and what appends feel of it. Each prints its settings and figures:
//! `cargo test -p tidemill-core --release --test it speed_ -- --ignored --nocapture --test-threads 1`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidemill_core::{
    batch::BatchBuilder,
    clock::SystemClock,
    engine::{Config, Engine},
    record::{Record, Timestamp},
    storage::OsStorage,
    topic::{TopicConfig, TopicSpec},
};

use crate::{harness::TempDir, sim::Rng};

/// 100 bytes each: a key of 16, a value of 84.
fn batch(rng: &mut Rng, records: usize, keys: usize) -> Bytes {
    let mut builder = BatchBuilder::default();
    let value = Bytes::from(vec![b'v'; 84]);
    for _ in 0..records {
        let key = Bytes::from(format!("key-{:012}", rng.below(keys)));
        builder.push(&Record::new(key, value.clone()), Timestamp(1_700_000_000_000)).expect("small");
    }
    builder.finish()
}

/// What of this process is or was in memory, in KiB.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0)
}

fn config(bytes_per_second: u64) -> Config {
    Config { segment_bytes: 32 << 20, compaction_bytes_per_second: bytes_per_second, ..Config::default() }
}

#[test]
#[ignore = "measures"]
fn speed_of_a_pass() {
    const RECORDS: usize = 3_000_000;
    for (keys, map_bytes) in [(500_000, 32 << 20), (2_000_000, 32 << 20)] {
        let dir = TempDir::new("compact-speed");
        let config = Config { compaction_map_bytes: map_bytes, ..config(u64::MAX) };
        let storage = Arc::new(OsStorage);
        let (engine, mut stepper) =
            Engine::open_stepped(&dir.0, config, storage, Arc::new(SystemClock::default())).expect("opens");
        let made = {
            let spec = TopicSpec { config: TopicConfig::compacted(), ..TopicSpec::partitions(1) };
            let mut call = Box::pin(engine.create_topic("a", &spec));
            assert!(crate::harness::poll(&mut call).is_none());
            stepper.commit().expect("made");
            crate::harness::poll(&mut call).expect("answered").expect("made")
        };
        stepper.housekeep();
        let (id, mut rng) = (made.partitions[0], Rng(1));
        for i in 0..RECORDS / 1000 {
            drop(engine.enqueue(vec![(id, batch(&mut rng, 1000, keys))]).expect("queued"));
            if i % 20 == 19 {
                while stepper.commit().expect("written") != tidemill_core::engine::Turn::Idle {
                    stepper.write_behind(false).expect("segments");
                }
            }
        }
        stepper.write_behind(true).expect("segments");
        stepper.checkpoint().expect("durable");
        let (before, started) = (memory("VmRSS:"), Instant::now());
        stepper.housekeep();
        let (time, told) = (started.elapsed().as_secs_f64(), engine.compaction());
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "{RECORDS} records of 100 bytes, {keys} keys, map of {} bytes: {} passes, {:.2} s; read {:.0} MB (map and rewrite), \
             wrote {:.0} MB, {:.0} MB/s read, {:.0} MB/s of the partition; {} records removed; resident {} KiB before, {} after, {} at most in this process",
            told.map_bytes,
            told.passes,
            time,
            mb(told.read_bytes),
            mb(told.written_bytes),
            mb(told.read_bytes) / time,
            mb(told.replaced_bytes) / time,
            told.removed_records,
            before,
            memory("VmRSS:"),
            memory("VmHWM:"),
        );
        stepper.close().expect("in order");
    }
}

/// Latencies of appends, one at a time, for so long: median, p99, most, in microseconds, and how many.
async fn appends(engine: &Engine, id: tidemill_core::topic::PartitionId, time: Duration) -> [u128; 4] {
    let (started, mut rng, mut all) = (Instant::now(), Rng(9), Vec::new());
    while started.elapsed() < time {
        let batch = batch(&mut rng, 10, 1000);
        let begun = Instant::now();
        engine.append(vec![(id, batch)], None).await.expect("durable");
        all.push(begun.elapsed().as_micros());
    }
    all.sort_unstable();
    [all[all.len() / 2], all[all.len() * 99 / 100], *all.last().unwrap_or(&0), all.len() as u128]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn speed_of_appends_beside_a_pass() {
    let seconds = Duration::from_secs;
    let rate = Config::default().compaction_bytes_per_second;
    let dir = TempDir::new("compact-latency");
    let engine = Engine::open(&dir.0, config(rate), Arc::new(OsStorage), Arc::new(SystemClock::default()));
    let engine = engine.expect("opens");
    let plain = engine.create_topic("plain", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
    let id = engine.create_topic("a", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
    let mut rng = Rng(1);
    for _ in 0..7500 {
        engine.append(vec![(id, batch(&mut rng, 1000, 1_000_000))], None).await.expect("durable");
    }
    println!("compaction at {rate} bytes/s; appends of 10 records of 100 bytes, one at a time");
    // What is written behind comes to rest.
    tokio::time::sleep(seconds(15)).await;
    let tell = |what: &str, [median, p99, most, count]: [u128; 4]| {
        println!("{what}: {count} appends, median {median} us, p99 {p99} us, most {most} us");
    };
    tell("alone", appends(&engine, plain, seconds(10)).await);
    engine.alter_topic("a", |config| config.set("cleanup.policy", "compact")).await.expect("set");
    // Housekeeping looks every five seconds.
    tokio::time::sleep(seconds(6)).await;
    let before = engine.compaction();
    tell("beside a pass that reads", appends(&engine, plain, seconds(5)).await);
    tokio::time::sleep(seconds(3)).await;
    tell("beside a pass that reads and writes", appends(&engine, plain, seconds(10)).await);
    let after = engine.compaction();
    println!("passes ended by then: {}", after.passes - before.passes);
    while engine.compaction().passes == before.passes {
        tokio::time::sleep(seconds(1)).await;
    }
    println!("{:?}", engine.compaction());
    tell("alone again", appends(&engine, plain, seconds(10)).await);
    engine.close().expect("in order");
}
