//! When an append is answered, by its topic's durability; and what of it a crash may take.

use std::{path::Path, sync::Arc, time::Duration};

use tidemill_core::{
    ErrorKind,
    engine::Engine,
    topic::{PartitionId, TopicSpec},
};

use crate::{
    harness::{DIR, Stepped, batch, read_all, small, stored_at},
    sim::{EIO, Fault, Keep, Rng, SimClock, SimDisk},
};

const LATE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(30);

fn open(disk: &SimDisk) -> Arc<Engine> {
    let engine = Engine::open(Path::new(DIR), small(), Arc::new(disk.clone()), Arc::new(SimClock::default()));
    Arc::new(engine.expect("opens"))
}

fn spec(durability: &str) -> TopicSpec {
    let mut spec = TopicSpec::partitions(1);
    spec.config.set("tidemill.durability", durability).expect("a level");
    spec
}

async fn topic(engine: &Engine, durability: &str) -> PartitionId {
    engine.create_topic(durability, &spec(durability)).await.expect("made").partitions[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_moment_of_the_answer_differs() {
    for level in ["os", "interval", "commit"] {
        let disk = SimDisk::new(1);
        let engine = open(&disk);
        let id = topic(&engine, level).await;
        let strict = engine.create_topic("strict", &TopicSpec::partitions(1)).await.expect("made").partitions[0];
        disk.block_syncs();
        let append = {
            let engine = Arc::clone(&engine);
            tokio::spawn(async move { engine.append(vec![(id, batch(1, 1, 100))], None).await })
        };
        let gate = disk.clone();
        tokio::task::spawn_blocking(move || gate.await_blocked_sync()).await.expect("a sync waits");
        let both = {
            let engine = Arc::clone(&engine);
            let batches = vec![(id, batch(2, 1, 100)), (strict, batch(3, 1, 100))];
            tokio::spawn(async move { engine.append(batches, None).await })
        };
        if level == "commit" {
            tokio::time::sleep(SOON).await;
            assert!(!append.is_finished(), "answered before its sync");
            disk.release_syncs();
            append.await.expect("no panic").expect("durable");
        } else {
            let answered = tokio::time::timeout(LATE, append).await.expect("answered before its sync");
            assert_eq!(answered.expect("no panic").expect("written").base_offsets, [0]);
            assert_eq!(engine.cut(&[id]).expect("there")[0].durable_offset, 0, "nobody sees it yet");
            tokio::time::sleep(SOON).await;
            assert!(!both.is_finished(), "what also goes to a strict topic waits for the disk");
            disk.release_syncs();
        }
        engine.wait_for(id, 0, LATE).await.expect("seen when it is durable");
        both.await.expect("no panic").expect("durable");
        engine.close().expect("in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_after_an_answer_stops_the_log() {
    let disk = SimDisk::new(1);
    let engine = open(&disk);
    let id = topic(&engine, "os").await;
    disk.inject(Fault { operation: "sync", path: "/commitlog/", after: 0, error: EIO, forever: false });
    engine.append(vec![(id, batch(1, 1, 100))], None).await.expect("answered");
    tokio::time::timeout(LATE, engine.failure()).await.expect("told");
    let error = engine.append(vec![(id, batch(2, 1, 100))], None).await.expect_err("stopped");
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(engine.cut(&[id]).expect("there")[0].durable_offset, 0);
}

/// A crash takes nothing that a strict topic acknowledged; of the others it leaves the beginning.
#[test]
fn a_crash_leaves_a_beginning_in_order() {
    let levels = ["commit", "interval", "os"];
    let mut lost = 0;
    for seed in 0..40 {
        let (disk, mut rng) = (SimDisk::new(seed), Rng(seed));
        let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
        let ids = levels.map(|level| {
            log.run(async |engine| engine.create_topic(level, &spec(level)).await).expect("made").partitions[0]
        });
        let (mut answered, mut asked) = ([0; 3], [0; 3]);
        disk.crash_at(disk.ops() + 40 + rng.below(80) as u64);
        'crash: for tag in 0..100 {
            let which: Vec<_> = (0..1 + rng.below(4)).map(|_| rng.below(3)).collect();
            let waiting: Vec<_> = which
                .iter()
                .map(|i| (*i, log.engine.enqueue(vec![(ids[*i], batch(tag * 3 + *i as u64, 1, 300))]).expect("queued")))
                .collect();
            which.iter().for_each(|i| asked[*i] += 1);
            let done = log.stepper.commit();
            for (i, mut answer) in waiting {
                answered[i] += usize::from(matches!(answer.try_recv(), Ok(Ok(_))));
            }
            if done.is_err() || log.stepper.write_behind(rng.coin()).is_err() {
                break 'crash;
            }
        }
        drop(log);
        for keep in [Keep::Nothing, Keep::Everything, Keep::Random(seed)] {
            let log = Stepped::open(&disk.image(keep), small(), &SimClock::default()).expect("opens");
            assert_eq!(log.engine.damage(), []);
            for (i, id) in ids.iter().enumerate() {
                let found = read_all(&log.engine, *id).expect("whole");
                assert!(found.len() <= asked[i]);
                assert!(i > 0 || found.len() >= answered[i], "seed {seed}: an acknowledged record is lost");
                lost += answered[i].saturating_sub(found.len());
                for (n, (base, bytes)) in found.iter().enumerate() {
                    assert_eq!(*base, n as i64, "seed {seed}: not the beginning of {}", levels[i]);
                    let record = tidemill_core::batch::Batch::parse(bytes).expect("sound");
                    let first = record.records().next().expect("one").expect("sound");
                    let tag: u64 = String::from_utf8_lossy(first.value.expect("a value"))
                        .split('/')
                        .next()
                        .and_then(|tag| tag.parse().ok())
                        .expect("a tag");
                    assert_eq!(*bytes, stored_at(&batch(tag, 1, 300), *base));
                }
            }
        }
    }
    assert!(lost > 0, "no crash came between an answer and its sync: the test shows nothing");
}
