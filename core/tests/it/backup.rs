//! Copies of a log that is at work.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemill_core::{
    ErrorKind,
    clock::SystemClock,
    engine::{Config, Engine, inspect},
    storage::OsStorage,
    topic::{PartitionId, TopicSpec},
};

use crate::{
    harness::{Stepped, TempDir, batch, read_all, small, stored_at},
    sim::{Rng, SimClock, SimDisk},
};

const COPY: &str = "/srv/copy";

fn copied(disk: &SimDisk) -> Stepped {
    Stepped::open_at(Path::new(COPY), disk, small(), &SimClock::default()).expect("a copy opens")
}

/// At any place of a random run, the copy is the log as it was then.
#[test]
fn a_copy_is_the_log_of_its_moment() {
    for seed in 0..20 {
        let (disk, mut rng) = (SimDisk::new(seed), Rng(seed));
        let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
        let mut ids = log.create("a", 2).expect("made");
        for tag in 0..rng.below(120) as u64 {
            match rng.below(12) {
                0 => log.stepper.checkpoint().expect("made"),
                1 => log.stepper.write_behind(true).expect("written"),
                2 if tag % 7 == 0 => ids.extend(log.create(&format!("t{tag}"), 1).expect("made")),
                _ => drop(log.append(vec![(ids[rng.below(ids.len())], batch(tag, 2, 700))]).expect("durable")),
            }
        }
        let report = log.engine.backup(Path::new(COPY)).expect("copied");
        let wanted: Vec<_> = ids.iter().map(|id| read_all(&log.engine, *id).expect("whole")).collect();
        // What comes later is not in it, and does not harm it.
        for tag in 500..560 {
            log.append(vec![(ids[0], batch(tag, 2, 700))]).expect("durable");
        }
        log.stepper.checkpoint().expect("made");
        let copy = copied(&disk);
        let found: Vec<_> = ids.iter().map(|id| read_all(&copy.engine, *id).expect("whole")).collect();
        assert!(found == wanted, "seed {seed}, {report:?}");
        assert_eq!(copy.engine.recovery().damage, [], "seed {seed}");
        assert_eq!(copy.engine.log_id(), log.engine.log_id());
        assert_eq!(copy.engine.topics(), log.engine.topics());
    }
}

#[test]
fn a_byte_that_is_missing_in_a_copy_is_told() {
    let disk = SimDisk::new(1);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
    let id = log.create("a", 1).expect("made")[0];
    for tag in 0..10 {
        log.append(vec![(id, batch(tag, 1, 100))]).expect("durable");
    }
    log.engine.backup(Path::new(COPY)).expect("copied");
    let files = disk.files().into_iter().filter(|(path, _)| path.starts_with("/srv/copy/commitlog"));
    for (path, _) in files {
        disk.edit(&path, |bytes| bytes[1024..].fill(0));
    }
    assert!(!copied(&disk).engine.recovery().damage.is_empty(), "its superblock says how much is durable");
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let disk = SimDisk::new(1);
    let log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
    log.engine.backup(Path::new(COPY)).expect("an empty log is one, too");
    let refused = log.engine.backup(Path::new(COPY)).expect_err("it is full");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
}

/// Producers, retention and checkpoints go on meanwhile. All that was acknowledged before is in the copy.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_copy_under_load_is_sound() {
    let dir = TempDir::new("backup");
    let config = Config { segment_bytes: 64 << 10, ..small() };
    let open = |path: &Path| Engine::open(path, config.clone(), Arc::new(OsStorage), Arc::new(SystemClock::default()));
    let engine = Arc::new(open(&dir.0.join("log")).expect("opens"));
    let mut spec = TopicSpec::partitions(2);
    spec.config.set("retention.bytes", "262144").expect("a setting");
    let ids = engine.create_topic("a", &spec).await.expect("made").partitions;
    let stop = Arc::new(AtomicBool::new(false));
    let load = |id: PartitionId| {
        let (engine, stop) = (Arc::clone(&engine), Arc::clone(&stop));
        tokio::spawn(async move {
            for tag in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                engine.append(vec![(id, batch(tag, 1, 3000))], None).await.expect("durable");
            }
        })
    };
    let producers: Vec<_> = ids.iter().map(|id| load(*id)).collect();
    for round in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = engine.cut(&ids).expect("there");
        let (this, to) = (Arc::clone(&engine), dir.0.join(format!("copy{round}")));
        let target = to.clone();
        let report = tokio::task::spawn_blocking(move || this.backup(&target)).await.expect("joined").expect("copied");
        assert!(report.bytes > 0);
        let clock = Arc::new(SystemClock::default());
        let looked = inspect::verify(&to, config.clone(), Arc::new(OsStorage), clock).expect("looked at");
        assert!(looked.is_sound(), "{looked:?}");
        let copy = open(&to).expect("a copy opens");
        for (id, before) in ids.iter().zip(&before) {
            let bounds = copy.cut(&[*id]).expect("there")[0];
            assert!(bounds.durable_offset >= before.durable_offset, "{bounds:?}, acknowledged were {before:?}");
            let last = read_all(&copy, *id).expect("whole").pop().expect("some");
            assert_eq!(last.1, stored_at(&batch(last.0 as u64, 1, 3000), last.0), "as it was appended");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.await.expect("joined");
    }
}
