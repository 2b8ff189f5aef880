//! What goes wrong with one partition ends its pass, and nothing else.

use std::{path::PathBuf, time::Duration};

use tidemill_core::{clock::Clock, topic::PartitionId};

use super::keyed::{History, compact, config, create, encode, random_records, records, spec};
use crate::{
    harness::{DIR, Stepped},
    sim::{ENOSPC, Fault, Rng, SimClock, SimDisk},
};

const AFTER_FAULT: Duration = Duration::from_secs(301);

fn filled(log: &mut Stepped, id: PartitionId, seed: u64, clock: &SimClock) -> History {
    let mut history = History { delay: 1 << 40, ..History::default() };
    let mut rng = Rng(seed);
    for _ in 0..300 {
        let batch = random_records(&mut rng, 20, clock.now().0);
        log.append(vec![(id, encode(&batch))]).expect("appended");
        history.add(&batch);
    }
    log.stepper.write_behind(true).expect("segments");
    log.stepper.checkpoint().expect("durable");
    history
}

fn files(disk: &SimDisk, id: PartitionId) -> Vec<PathBuf> {
    let folder = PathBuf::from(DIR).join(format!("topics/{:08}", id.0));
    disk.files().into_iter().map(|(path, _)| path).filter(|path| path.starts_with(&folder)).collect()
}

#[test]
fn a_damaged_segment_is_named_and_left_as_it_is() {
    let (disk, clock) = (SimDisk::new(3), SimClock::default());
    let mut log = Stepped::open(&disk, config(), &clock).expect("new");
    let bad = create(&mut log, "bad", &spec(|_| ()));
    filled(&mut log, bad, 1, &clock);
    drop(log);
    let path = files(&disk, bad).into_iter().filter(|path| path.extension().is_some_and(|e| e == "log")).nth(1);
    let path = path.expect("several segments");
    let whole = files(&disk, bad);
    disk.edit(&path, |bytes| bytes[1000] ^= 4);
    let mut log = Stepped::open(&disk, config(), &clock).expect("again");
    let good = create(&mut log, "good", &spec(|_| ()));
    let history = filled(&mut log, good, 2, &clock);
    compact(&mut log);
    let told = log.engine.compaction();
    assert_eq!(told.given_up, 1);
    assert!(told.passes >= 1 && told.removed_records > 100, "the other partition is compacted: {told:?}");
    let error = log.engine.housekeeping()["compaction"].error.clone().unwrap_or_default();
    let name = path.file_name().expect("name").to_string_lossy().into_owned();
    assert!(log.engine.housekeeping()["compaction"].count > 0);
    assert!(error.is_empty() || error.contains(&name) && error.contains("bad[0]"), "{error}");
    assert_eq!(files(&disk, bad), whole, "nothing came, nothing went");
    assert_eq!(history.fault(&records(&log.engine, good).expect("readable"), clock.now().0), None);
    // It is tried again later, and no more often.
    compact(&mut log);
    assert_eq!(log.engine.compaction().given_up, 1);
    clock.advance(AFTER_FAULT);
    compact(&mut log);
    assert_eq!(log.engine.compaction().given_up, 2);
    assert_eq!(files(&disk, bad), whole);
    log.append(vec![(bad, encode(&[("k".into(), None, 5)]))]).expect("appends go on");
}

#[test]
fn a_full_disk_ends_a_pass_and_nothing_else() {
    let mut hit = 0;
    for operation in ["open", "write", "sync", "sync_dir"] {
        for after in [0, 1, 3] {
            let (disk, clock) = (SimDisk::new(4), SimClock::default());
            let mut log = Stepped::open(&disk, config(), &clock).expect("new");
            let id = create(&mut log, "a", &spec(|_| ()));
            log.stepper.housekeep();
            let mut history = filled(&mut log, id, 5, &clock);
            let before = files(&disk, id);
            disk.inject(Fault { operation, path: "/a-0", after, error: ENOSPC, forever: true });
            log.stepper.housekeep();
            let told = log.engine.compaction();
            if after > 0 && told.given_up == 0 {
                continue; // The pass was over before.
            }
            hit += 1;
            assert_eq!((told.passes, told.given_up), (0, 1), "{operation} {after}");
            let what = log.engine.housekeeping()["compaction"].clone();
            assert!(what.count == 1, "{operation} {after}: {what:?}");
            let more = [("key-1".to_owned(), Some("new".to_owned()), clock.now().0)];
            log.append(vec![(id, encode(&more))]).expect("appends go on");
            history.add(&more);
            disk.heal();
            assert_eq!(history.fault(&records(&log.engine, id).expect("readable"), clock.now().0), None);
            if after == 0 {
                assert_eq!(files(&disk, id), before, "{operation}: its file is gone");
            }
            clock.advance(AFTER_FAULT);
            compact(&mut log);
            assert!(log.engine.compaction().passes > 0, "{operation} {after}: it gets on again");
            drop(log);
            let log = Stepped::open(&disk, config(), &clock).expect("again");
            assert_eq!(history.fault(&records(&log.engine, id).expect("readable"), clock.now().0), None);
        }
    }
    assert!(hit >= 7, "{hit}");
}

/// Whenever it is deleted, its folder goes, and the next partition has its turn.
#[test]
fn a_topic_that_is_deleted_meanwhile_ends_its_pass() {
    for steps in 0..40 {
        let (disk, clock) = (SimDisk::new(6), SimClock::default());
        let mut log = Stepped::open(&disk, config(), &clock).expect("new");
        let id = create(&mut log, "a", &spec(|_| ()));
        filled(&mut log, id, 7, &clock);
        (0..steps).for_each(|_| _ = log.stepper.housekeep_step());
        log.run(async |engine| engine.delete_topic("a").await).expect("deleted");
        compact(&mut log);
        compact(&mut log);
        assert_eq!(files(&disk, id), Vec::<PathBuf>::new(), "after {steps} steps");
        assert!(
            log.engine.housekeeping().values().all(|chore| chore.error.is_none()),
            "{:?}",
            log.engine.housekeeping()
        );
        let other = create(&mut log, "b", &spec(|_| ()));
        let history = filled(&mut log, other, 8, &clock);
        compact(&mut log);
        assert_eq!(history.fault(&records(&log.engine, other).expect("readable"), clock.now().0), None);
    }
}
