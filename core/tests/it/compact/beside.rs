//! Compaction beside retention, and beside readers on threads of their own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tidemill_core::{
    clock::{Clock, SystemClock},
    engine::Engine,
    storage::OsStorage,
    topic::{Cleanup, TopicSpec},
};

use super::keyed::{History, compact, config, create, encode, random_records, records, spec};
use crate::{
    harness::{Stepped, TempDir},
    sim::{Rng, SimClock, SimDisk},
};

#[test]
fn retention_and_compaction_share_a_topic() {
    let (mut removed, mut moved) = (0, 0);
    for seed in 0..10 {
        let (disk, clock, mut rng) = (SimDisk::new(seed), SimClock::default(), Rng(seed));
        let mut log = Stepped::open(&disk, config(), &clock).expect("new");
        let both = spec(|config| {
            config.cleanup = Cleanup::CompactDelete;
            config.retention = Some(Duration::from_secs(100));
        });
        let id = create(&mut log, "a", &both);
        let mut history =
            History { delay: TopicSpec::default().config.tombstone_delay.as_millis() as i64, ..Default::default() };
        let mut start = 0;
        for step in 0..150 {
            match rng.below(10) {
                0..6 => {
                    for _ in 0..4 {
                        let batch = random_records(&mut rng, 30, clock.now().0);
                        log.append(vec![(id, encode(&batch))]).expect("appended");
                        history.add(&batch);
                    }
                    continue;
                }
                6 => compact(&mut log),
                7 => clock.advance(Duration::from_secs(20)),
                8 => (0..rng.below(9)).for_each(|_| _ = log.stepper.housekeep_step()),
                _ => {
                    removed += log.engine.compaction().removed_records;
                    drop(log);
                    log = Stepped::open(&disk, config(), &clock).expect("again");
                    // Not durable with the call that moves it: what a crash brings back was due to go.
                    start = 0;
                }
            }
            let bounds = log.engine.cut(&[id]).expect("there")[0];
            assert!(bounds.log_start_offset >= start, "seed {seed}, step {step}");
            start = bounds.log_start_offset;
            let found = records(&log.engine, id).expect("readable");
            assert_eq!(history.fault_from(start, &found, clock.now().0), None, "seed {seed}, step {step}");
        }
        moved += start;
    }
    assert!(removed > 200 && moved > 200, "{removed} removed, {moved} offsets gone");
}

/// A reader that holds a segment while another takes its place, and its file goes, sees neither an error nor a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_meet_passes() {
    let dir = TempDir::new("compact-readers");
    let engine = Engine::open(&dir.0, config(), Arc::new(OsStorage), Arc::new(SystemClock::default())).expect("opens");
    let engine = Arc::new(engine);
    let id = engine.create_topic("a", &spec(|_| ())).await.expect("made").partitions[0];
    let stable: Vec<_> = (0..20).map(|n| (format!("stable-{n}"), Some(n.to_string()), 1)).collect();
    engine.append(vec![(id, encode(&stable))], None).await.expect("durable");
    let (over, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let read = |seed: u64| {
        let (engine, over, reads) = (Arc::clone(&engine), Arc::clone(&over), Arc::clone(&reads));
        tokio::task::spawn_blocking(move || {
            let mut rng = Rng(seed);
            while !over.load(Ordering::Relaxed) {
                let end = engine.cut(&[id]).expect("there")[0].durable_offset;
                let (mut at, mut seen) = (0, 0);
                while at < end {
                    let max_bytes = [1, 700, 9000][rng.below(3)];
                    let (batches, next) = engine.read(id, at, max_bytes, end).expect("readable");
                    assert!(next > at);
                    for record in batches.iter().flat_map(|batch| batch.records()).map(|record| record.expect("whole"))
                    {
                        seen += usize::from(record.key.is_some_and(|key| key.starts_with(b"stable")));
                    }
                    at = next;
                }
                assert_eq!(seen, 20, "a record that nothing supersedes");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let readers = [read(1), read(2)];
    let mut rng = Rng(3);
    for round in 0..40 {
        for _ in 0..40 {
            engine.append(vec![(id, encode(&random_records(&mut rng, 15, 2)))], None).await.expect("durable");
        }
        // The end of a topic calls the housekeeper.
        let name = format!("t{round}");
        engine.create_topic(&name, &TopicSpec::partitions(1)).await.expect("made");
        engine.delete_topic(&name).await.expect("deleted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("no reader met an error");
    }
    let told = engine.compaction();
    engine.close().expect("in order");
    println!("{} reads of all, {told:?}", reads.load(Ordering::Relaxed));
    assert!(told.passes > 3 && told.given_up == 0, "{told:?}");
}
