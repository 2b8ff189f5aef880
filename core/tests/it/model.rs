//! Random operations without crashes against a plain `Vec`: appends of all sizes, reads at any offset with any bounds,
//! write-behind, checkpoints and openings between them.

use bytes::Bytes;
use tidemill_core::ErrorKind;

use crate::{
    harness::{Stepped, batch, small, stored_at},
    sim::{Rng, SimClock, SimDisk},
};

#[test]
fn reads_return_what_a_vec_would() {
    for seed in 0..30 {
        let (disk, clock) = (SimDisk::new(seed), SimClock::default());
        let mut rng = Rng(seed);
        let mut log = Stepped::open(&disk, small(), &clock).expect("new");
        let ids = log.create("a", 3).expect("topic");
        let mut model: Vec<(Vec<(i64, Bytes)>, i64)> = vec![(Vec::new(), 0); 3];
        for step in 0..250u64 {
            let which = rng.below(3);
            match rng.below(20) {
                0..8 => {
                    let records = 1 + rng.below(9);
                    let size = [80, 700, 5000, 17_000, 27_000][rng.below(5)];
                    let bytes = batch(seed << 32 | step, records, size);
                    let offsets = log.append(vec![(ids[which], bytes.clone())]).expect("append");
                    let (batches, end) = &mut model[which];
                    assert_eq!(offsets, [*end], "seed {seed} step {step}");
                    batches.push((*end, stored_at(&bytes, *end)));
                    *end += records as i64;
                }
                8..16 => {
                    let (batches, durable) = &model[which];
                    let offset = rng.below(*durable as usize + 3) as i64;
                    let end = if rng.coin() { i64::MAX } else { rng.below(*durable as usize + 2) as i64 };
                    let max_bytes = [0, 1, 500, 6000, 50_000][rng.below(5)];
                    let read = log.engine.read(ids[which], offset, max_bytes, end);
                    if offset > *durable {
                        assert_eq!(read.expect_err("out of range").kind(), ErrorKind::Invalid);
                        continue;
                    }
                    let (found, next) = read.unwrap_or_else(|e| panic!("seed {seed} step {step}: {e:?}"));
                    let end = end.min(*durable);
                    let from = batches.partition_point(|(base, b)| base + count(b) <= offset);
                    let wanted: Vec<_> = batches[from..].iter().filter(|(base, _)| *base < end).collect();
                    if offset >= end {
                        assert!(found.is_empty(), "seed {seed} step {step}");
                        assert_eq!(next, offset);
                        continue;
                    }
                    assert!(
                        !found.is_empty() && found.len() <= wanted.len(),
                        "seed {seed} step {step}: {offset}..{end}"
                    );
                    for (found, (base, bytes)) in found.iter().zip(&wanted) {
                        assert_eq!(
                            (found.header().base_offset, found.bytes()),
                            (*base, bytes),
                            "seed {seed} step {step}"
                        );
                    }
                    let before: usize = found[..found.len() - 1].iter().map(|b| b.bytes().len()).sum();
                    assert!(before <= max_bytes, "more was read than asked: seed {seed} step {step}");
                    let last = wanted[found.len() - 1];
                    assert_eq!(next, (last.0 + count(&last.1)).min(end), "seed {seed} step {step}");
                }
                16 => log.stepper.write_behind(rng.coin()).expect("write-behind"),
                17 => log.stepper.checkpoint().expect("checkpoint"),
                18 => log.stepper.note().expect("note"),
                _ => {
                    if rng.coin() {
                        log.stepper.close().expect("close");
                    }
                    drop(log);
                    log = Stepped::open(&disk, small(), &clock).expect("again");
                }
            }
        }
    }
}

fn count(batch: &[u8]) -> i64 {
    i64::from(i32::from_be_bytes(batch[23..27].try_into().expect("four"))) + 1
}

/// Whatever is asked of the log that is wrong is refused before anything is written.
#[test]
fn malformed_requests_are_refused() {
    let disk = SimDisk::new(2);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
    let id = log.create("a", 1).expect("topic")[0];
    let good = batch(1, 2, 200);
    let ops = disk.ops();
    let mut bad = Vec::new();
    bad.push((id, good.slice(..50)));
    bad.push((id, Bytes::from([&good[..], b"x"].concat())));
    let mut flipped = good.to_vec();
    flipped[100] ^= 1;
    bad.push((id, Bytes::from(flipped)));
    bad.push((tidemill_core::engine::Table::Topics.partition(), good.clone()));
    let mut noise = tidemill_core::batch::BatchBuilder::default();
    let record = tidemill_core::record::Record::new(Bytes::from_static(b"k"), Bytes::from_static(b"\xff\xfe"));
    noise.push(&record, tidemill_core::record::Timestamp(0)).expect("small");
    bad.push((tidemill_core::engine::Table::Positions.partition(), noise.finish()));
    bad.push((id, batch(1, 1, 60_000)));
    for (id, bytes) in bad {
        assert_eq!(log.append(vec![(id, bytes)]).expect_err("refused").kind(), ErrorKind::Invalid);
    }
    let nowhere = log.append(vec![(id, good.clone()), (tidemill_core::topic::PartitionId(999), good.clone())]);
    assert_eq!(nowhere.expect_err("refused").kind(), ErrorKind::NotFound);
    assert_eq!(disk.ops(), ops, "something was written");
    assert_eq!(log.append(vec![(id, good)]).expect("fine"), [0]);
    drop(log);
    Stepped::open(&disk, small(), &SimClock::default()).expect("opens again");
}

/// Two writers of one metadata record in one group: one of them is refused.
#[test]
fn of_two_writers_of_a_version_one_wins() {
    let disk = SimDisk::new(2);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
    let table = tidemill_core::engine::Table::Positions;
    let Stepped { engine, stepper } = &mut log;
    let append = (table.partition(), crate::harness::position_batch("o", "p", "first"));
    let mut first = Box::pin(engine.append(vec![append], None));
    let mut second = Box::pin(engine.put(table, "o\u{1f}p", Some("second".into()), None));
    assert!(crate::harness::poll(&mut first).is_none() && crate::harness::poll(&mut second).is_none());
    while stepper.commit().expect("turn") != tidemill_core::engine::Turn::Idle {}
    crate::harness::poll(&mut first).expect("answered").expect("acknowledged");
    let error = crate::harness::poll(&mut second).expect("answered").expect_err("the version changed");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(engine.positions("o")["p"], "first");
}

/// A transaction aborted by its owner, or for its age, does not keep the commit log from moving on.
#[test]
fn ended_transactions_free_the_commit_log() {
    for by_age in [false, true] {
        let (disk, clock) = (SimDisk::new(2), SimClock::default());
        let mut log = Stepped::open(&disk, small(), &clock).expect("new");
        let id = log.create("a", 1).expect("topic")[0];
        let transaction = log.engine.begin_transaction();
        log.run(async |engine| engine.stage(transaction, vec![(id, batch(1, 1, 100))]).await).expect("staged");
        if by_age {
            clock.advance(std::time::Duration::from_secs(61));
        } else {
            log.engine.abort(transaction);
        }
        for tag in 0..200 {
            log.append(vec![(id, batch(tag, 1, 4000))]).expect("append");
        }
        let gone = log.run(async |engine| engine.commit(transaction, 1, Vec::new(), None).await);
        assert_eq!(gone.expect_err("aborted").kind(), ErrorKind::Conflict);
    }
}

/// The same when it grows too old at the very moment the commit log is full because of it, wherever that is.
#[test]
fn a_transaction_that_expires_when_all_is_full_lets_go() {
    for before in 20..70 {
        let (disk, clock) = (SimDisk::new(2), SimClock::default());
        let mut log = Stepped::open(&disk, small(), &clock).expect("new");
        let id = log.create("a", 1).expect("topic")[0];
        let transaction = log.engine.begin_transaction();
        log.run(async |engine| engine.stage(transaction, vec![(id, batch(1, 1, 100))]).await).expect("staged");
        for tag in 0..before + 10 {
            if tag == before {
                clock.advance(std::time::Duration::from_secs(61));
            }
            log.append(vec![(id, batch(tag, 1, 4000))]).expect("append");
        }
    }
}
