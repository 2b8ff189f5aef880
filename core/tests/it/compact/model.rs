use std::{collections::BTreeMap, path::Path, time::Duration};

use tidemill_core::{
    ErrorKind,
    batch::{Batch, BatchBuilder},
    clock::Clock,
    record::{Record, Timestamp},
    topic::PartitionId,
};

use super::keyed::{History, Keyed, compact, config, create, encode, random_records, records, spec};
use crate::{
    harness::{DIR, Stepped},
    sim::{Rng, SimClock, SimDisk},
};

const DELAY: Duration = Duration::from_secs(60);

fn append(log: &mut Stepped, id: PartitionId, history: &mut History, batch: &[Keyed]) {
    let offsets = log.append(vec![(id, encode(batch))]).expect("appended");
    assert_eq!(offsets, [history.end]);
    history.add(batch);
}

/// Base offsets of a partition's segment files, with generations.
fn segment_files(disk: &SimDisk, id: PartitionId) -> Vec<String> {
    let folder = Path::new(DIR).join(format!("topics/{:08}", id.0));
    let files = disk.files().into_iter().filter(|(path, _)| path.starts_with(&folder));
    let names = files.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned()));
    names.filter(|name| name.ends_with(".log")).collect()
}

fn active_base(disk: &SimDisk, id: PartitionId) -> i64 {
    segment_files(disk, id).iter().map(|name| name[..20].parse().expect("digits")).max().unwrap_or(0)
}

/// From any offset, with any bound, a reader gets on, and sees at least the newest of each key. What is still in memory may
/// be seen longer.
fn read_from_anywhere(log: &Stepped, id: PartitionId, history: &History, now: i64, rng: &mut Rng) {
    let end = history.end;
    for _ in 0..6 {
        let start = rng.below(end as usize + 1) as i64;
        let max_bytes = [0, 1, 100, 5000][rng.below(4)];
        let (mut at, mut found) = (start, BTreeMap::new());
        while at < end {
            let (batches, next) = log.engine.read(id, at, max_bytes, end).expect("readable");
            assert!(next > at, "a read at {at} stands still");
            for batch in &batches {
                let offsets = batch.records().map(|record| record.expect("whole").offset);
                for offset in offsets.filter(|offset| (at..next).contains(offset)) {
                    assert!(found.last_key_value().is_none_or(|(last, _)| *last < offset), "offsets in order");
                    found.insert(offset, history.records[&offset].clone());
                }
            }
            at = next;
        }
        assert_eq!(history.fault_from(start, &found, now), None, "from {start}");
    }
}

#[test]
fn the_newest_of_each_key_stays() {
    let mut passes = 0;
    for seed in 0..25 {
        let (disk, clock, mut rng) = (SimDisk::new(seed), SimClock::default(), Rng(seed));
        let mut log = Stepped::open(&disk, config(), &clock).expect("new");
        let id = create(&mut log, "a", &spec(|config| config.tombstone_delay = DELAY));
        let mut history = History { delay: DELAY.as_millis() as i64, ..History::default() };
        let keys = [3, 40, 300][rng.below(3)];
        for step in 0..160 {
            let mut look = true;
            match rng.below(20) {
                0..12 => {
                    let batch = random_records(&mut rng, keys, clock.now().0);
                    append(&mut log, id, &mut history, &batch);
                    look = false;
                }
                12 => log.stepper.write_behind(true).expect("segments"),
                13 => log.stepper.checkpoint().expect("checkpoint"),
                14..16 => log.stepper.housekeep(),
                16 => (0..rng.below(6)).for_each(|_| _ = log.stepper.housekeep_step()),
                17 => clock.advance(Duration::from_secs(25)),
                18 => compact(&mut log),
                _ => {
                    passes += log.engine.compaction().passes;
                    if rng.coin() {
                        log.stepper.close().expect("in order");
                    }
                    drop(log);
                    log = Stepped::open(&disk, config(), &clock).expect("again");
                }
            }
            if !look {
                continue;
            }
            let found = records(&log.engine, id).expect("readable");
            let fault = history.fault(&found, clock.now().0);
            assert_eq!(fault, None, "seed {seed}, step {step}");
            read_from_anywhere(&log, id, &history, clock.now().0, &mut rng);
        }
        assert_eq!(log.engine.compaction().given_up, 0);
        assert!(log.engine.compaction().map_bytes <= 1 << 10);
        finish(&disk, &clock, log, id, &history, seed);
    }
    assert!(passes > 120, "{passes} passes");
}

/// In the end, what is sealed has one record of each key at most, and no tombstone whose time is over.
fn finish(disk: &SimDisk, clock: &SimClock, mut log: Stepped, id: PartitionId, history: &History, seed: u64) {
    log.run(async |engine| engine.alter_topic("a", |c| c.set("min.cleanable.dirty.ratio", "0")).await).expect("set");
    compact(&mut log);
    clock.advance(DELAY);
    compact(&mut log);
    let all = records(&log.engine, id).expect("readable");
    assert_eq!(history.fault(&all, clock.now().0), None, "seed {seed}, at the end");
    drop(log);
    let verified = tidemill_core::engine::inspect::verify(
        Path::new(DIR),
        config(),
        std::sync::Arc::new(disk.clone()),
        std::sync::Arc::new(clock.clone()),
    );
    let verified = verified.expect("readable");
    assert!(verified.is_sound() && verified.leftovers.is_empty(), "seed {seed}: {verified:?}");
    // What is in memory still has all; what is opened anew shows the segments.
    let log = Stepped::open(disk, config(), clock).expect("again");
    let sealed: BTreeMap<_, _> = records(&log.engine, id)
        .expect("readable")
        .into_iter()
        .take_while(|(o, _)| *o < active_base(disk, id))
        .collect();
    let mut seen = BTreeMap::new();
    for (offset, (key, value, _)) in &sealed {
        assert_eq!(seen.insert(key, offset), None, "seed {seed}: {key} twice in what is compacted");
        assert!(value.is_some(), "seed {seed}: the tombstone of {key} at {offset} is still there");
    }
    assert_eq!(segment_files(disk, id).len(), segments_needed(disk, id), "seed {seed}: {:?}", segment_files(disk, id));
}

/// Each base offset has one file, in one generation.
fn segments_needed(disk: &SimDisk, id: PartitionId) -> usize {
    segment_files(disk, id).iter().map(|name| name[..20].to_owned()).collect::<std::collections::BTreeSet<_>>().len()
}

/// A checker that cannot fail would prove nothing.
#[test]
fn twin_a_map_that_forgets_a_record_is_found() {
    let mut history = History { delay: 1000, ..History::default() };
    let record = |key: &str, value: Option<&str>, time| (key.to_owned(), value.map(str::to_owned), time);
    history.add(&[
        record("a", Some("1"), 0),
        record("b", Some("2"), 0),
        record("a", None, 500),
        record("c", None, 9000),
    ]);
    let without = |gone: &[i64]| {
        let mut found = history.records.clone();
        gone.iter().for_each(|offset| drop(found.remove(offset)));
        found
    };
    assert_eq!(history.fault(&without(&[]), 1500), None);
    assert_eq!(history.fault(&without(&[0]), 1499), None);
    assert_eq!(history.fault(&without(&[0, 2]), 1500), None);
    for (gone, now) in [(&[1][..], 1500), (&[2], 1500), (&[0, 2], 1499), (&[3], 9999)] {
        assert!(history.fault(&without(gone), now).is_some(), "{gone:?} at {now}");
    }
    let mut invented = without(&[]);
    invented.insert(4, record("d", Some("5"), 0));
    assert!(history.fault(&invented, 1500).is_some());
}

#[test]
fn young_records_stay_and_old_ones_are_due() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let mut log = Stepped::open(&disk, config(), &clock).expect("new");
    let ids = [("a", Some(3600), None, "0"), ("b", None, None, "1"), ("c", None, Some(3600), "1")].map(
        |(name, min, max, ratio): (_, Option<u64>, Option<u64>, _)| {
            let spec = spec(|config| {
                config.min_compaction_lag = Duration::from_secs(min.unwrap_or(0));
                config.max_compaction_lag = max.map(Duration::from_secs);
                config.set("min.cleanable.dirty.ratio", ratio).expect("set");
            });
            create(&mut log, name, &spec)
        },
    );
    let mut rng = Rng(5);
    let fill = |log: &mut Stepped, rng: &mut Rng, count: usize| {
        for _ in 0..count {
            for id in ids {
                let batch = random_records(rng, 8, clock.now().0);
                log.append(vec![(id, encode(&batch))]).expect("appended");
            }
        }
        compact(log);
    };
    let removed = |log: &Stepped| log.engine.compaction().removed_records;
    fill(&mut log, &mut rng, 100);
    let first = removed(&log);
    assert!(first > 300, "all of b and c is new: {first}");
    assert_eq!(log.engine.compaction().passes % 2, 0, "a was left alone");
    clock.advance(Duration::from_secs(1800));
    fill(&mut log, &mut rng, 40);
    assert_eq!(removed(&log), first, "half of each is new, and young");
    clock.advance(Duration::from_secs(1801));
    compact(&mut log);
    let second = removed(&log);
    assert!(second > first + 200, "the first half of a is old enough: {second}");
    clock.advance(Duration::from_secs(1800));
    compact(&mut log);
    let third = removed(&log);
    assert!(third > second + 100, "the second half of a too, and that of c is overdue: {third}");
    assert_eq!(log.engine.compaction().given_up, 0);
}

#[test]
fn what_has_no_key_or_a_horizon_is_refused() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let mut log = Stepped::open(&disk, config(), &clock).expect("new");
    let id = create(&mut log, "a", &spec(|_| ()));
    let plain = create(&mut log, "b", &tidemill_core::topic::TopicSpec::partitions(1));
    let mut builder = BatchBuilder::default();
    builder.push(&Record::new(bytes::Bytes::from_static(b"k"), None), Timestamp(1)).expect("small");
    builder.push(&Record::new(None, bytes::Bytes::from_static(b"v")), Timestamp(1)).expect("small");
    let keyless = builder.finish();
    let error = log.append(vec![(id, keyless.clone())]).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.message().contains("record 1") && error.message().contains("a[0]"), "{error}");
    log.append(vec![(plain, keyless.clone())]).expect("taken");
    let mut marked = keyless.to_vec();
    marked[22] |= 1 << 6;
    let crc = tidemill_core::batch::crc32c(&marked[21..]);
    marked[17..21].copy_from_slice(&crc.to_be_bytes());
    let marked = bytes::Bytes::from(marked);
    Batch::parse(&marked).expect("sound otherwise");
    assert_eq!(log.append(vec![(plain, marked)]).expect_err("refused").kind(), ErrorKind::Invalid);
}

/// A topic may have had other settings before: what has no key is nobody's older record. And of compressed batches nobody
/// knows the keys.
#[test]
fn records_whose_key_is_not_known_stay_and_so_do_later_tombstones() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let mut log = Stepped::open(&disk, config(), &clock).expect("new");
    let id = create(&mut log, "a", &spec(|config| config.cleanup = tidemill_core::topic::Cleanup::Delete));
    let mut builder = BatchBuilder::default();
    builder.push(&Record::new(None, bytes::Bytes::from_static(b"no key")), Timestamp(1)).expect("small");
    log.append(vec![(id, builder.finish())]).expect("taken");
    // It says that it is compressed; what it holds nobody reads.
    let mut packed = encode(&[("key-1".to_owned(), Some("old".to_owned()), 1)]).to_vec();
    packed[22] |= 4;
    let crc = tidemill_core::batch::crc32c(&packed[21..]);
    packed[17..21].copy_from_slice(&crc.to_be_bytes());
    log.append(vec![(id, packed.into())]).expect("taken");
    log.run(async |engine| engine.alter_topic("a", |c| c.set("cleanup.policy", "compact")).await).expect("set");
    log.run(async |engine| engine.alter_topic("a", |c| c.set("delete.retention.ms", "1000")).await).expect("set");
    log.append(vec![(id, encode(&[("key-1".to_owned(), None, 2)]))]).expect("taken");
    let mut rng = Rng(7);
    for round in 0..3 {
        for _ in 0..100 {
            let batch: Vec<_> = random_records(&mut rng, 5, clock.now().0);
            let batch: Vec<_> = batch.into_iter().map(|(k, v, t)| (format!("other-{k}"), v, t)).collect();
            log.append(vec![(id, encode(&batch))]).expect("appended");
        }
        compact(&mut log);
        clock.advance(Duration::from_secs(5));
        compact(&mut log);
        drop(log);
        log = Stepped::open(&disk, config(), &clock).expect("again");
        let (batches, _) = log.engine.read(id, 0, 1 << 20, 20).expect("readable");
        let first = batches[0].records().next().expect("one").expect("whole");
        assert_eq!((first.key, first.value), (None, Some(&b"no key"[..])), "round {round}");
        assert!(batches[1].header().is_compressed(), "round {round}");
        let third = batches[2].records().next().expect("one").expect("whole");
        assert_eq!((third.offset, third.key, third.value), (2, Some(&b"key-1"[..]), None), "round {round}");
    }
}
