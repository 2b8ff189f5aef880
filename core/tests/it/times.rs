//! Reads by time: compared with a plain scan over all records, wherever they lie.

use bytes::Bytes;
use tidemill_core::{
    batch::BatchBuilder,
    engine::Engine,
    record::{Record, Timestamp},
    topic::PartitionId,
};

use crate::{
    harness::{Stepped, small},
    sim::{Keep, Rng, SimClock, SimDisk},
};

/// A batch whose records bear these times.
fn batch_of(times: &[i64], size: usize) -> Bytes {
    let mut builder = BatchBuilder::default();
    for time in times {
        let record = Record::new(None, Bytes::from(vec![7; size]));
        builder.push(&record, Timestamp(*time)).expect("small");
    }
    builder.finish()
}

/// (offset, time) of all kept records.
fn all_times(engine: &Engine, id: PartitionId) -> Vec<(i64, i64)> {
    let start = engine.cut(&[id]).expect("there")[0].log_start_offset;
    let batches = read_all_from(engine, id, start);
    batches.into_iter().filter(|(offset, _)| *offset >= start).collect()
}

fn read_all_from(engine: &Engine, id: PartitionId, mut offset: i64) -> Vec<(i64, i64)> {
    let end = engine.cut(&[id]).expect("there")[0].durable_offset;
    let mut found = Vec::new();
    while offset < end {
        let (batches, next) = engine.read(id, offset, 20_000, i64::MAX).expect("whole");
        for record in batches.iter().flat_map(|batch| batch.records()) {
            let record = record.expect("sound");
            found.push((record.offset, record.timestamp));
        }
        offset = next;
    }
    found
}

fn check(engine: &Engine, id: PartitionId, rng: &mut Rng, when: &str) {
    let all = all_times(engine, id);
    let latest = all.iter().map(|(_, time)| *time).max();
    let mut asked: Vec<i64> = (0..40).map(|_| rng.below(5000) as i64).collect();
    asked.extend([i64::MIN, -1, 0, i64::MAX, latest.unwrap_or(0), latest.unwrap_or(0) + 1]);
    for time in asked {
        let wanted = all.iter().find(|(_, own)| *own >= time).copied();
        assert_eq!(engine.offset_at_time(id, time).expect("asked"), wanted, "{when}: first at or after {time}");
    }
    let wanted = all.iter().find(|(_, time)| Some(*time) == latest).copied();
    assert_eq!(engine.offset_of_latest_time(id).expect("asked"), wanted, "{when}: latest of all");
}

#[test]
fn a_time_finds_the_exact_record() {
    for seed in 0..6 {
        let (disk, clock, mut rng) = (SimDisk::new(seed), SimClock::default(), Rng(seed));
        let mut log = Stepped::open(&disk, small(), &clock).expect("opens");
        let id = log.create("a", 1).expect("made")[0];
        check(&log.engine, id, &mut rng, "empty");
        for step in 0..120i64 {
            // Times drift upwards, in disorder, now and then far off.
            let times: Vec<_> = (0..1 + rng.below(20))
                .map(|_| match rng.below(30) {
                    0 => rng.below(5000) as i64,
                    1 => -1,
                    _ => step * 30 + rng.below(400) as i64,
                })
                .collect();
            log.append(vec![(id, batch_of(&times, 1 + rng.below(300)))]).expect("durable");
            match rng.below(12) {
                0 => log.stepper.write_behind(true).expect("written"),
                1 => log.stepper.checkpoint().expect("made"),
                2 => {
                    let end = log.engine.cut(&[id]).expect("there")[0].durable_offset;
                    let to = rng.below(end as usize / 2 + 1) as i64;
                    log.run(async |engine| engine.delete_records(id, Some(to)).await).expect("deleted");
                    log.stepper.housekeep();
                }
                3 => check(&log.engine, id, &mut rng, &format!("seed {seed}, step {step}")),
                _ => {}
            }
        }
        check(&log.engine, id, &mut rng, &format!("seed {seed}, at the end"));
        log.stepper.checkpoint().expect("made");
        drop(log);
        let image = disk.image(Keep::Nothing);
        let log = Stepped::open(&image, small(), &clock).expect("opens");
        check(&log.engine, id, &mut rng, &format!("seed {seed}, opened again"));
        drop(log);
        // Indexes are never evidence: without them, and with what an older program left.
        for (path, _) in image.files().iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "index")) {
            if rng.coin() { image.unlink(path) } else { image.edit(path, |bytes| bytes[30] ^= 1) }
        }
        let log = Stepped::open(&image, small(), &clock).expect("opens");
        check(&log.engine, id, &mut rng, &format!("seed {seed}, without indexes"));
    }
}

/// A manifest and indexes as programs wrote them that knew no times.
#[test]
fn what_an_older_program_wrote_is_asked_by_time() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let mut log = Stepped::open(&disk, small(), &clock).expect("opens");
    let id = log.create("a", 1).expect("made")[0];
    for time in 0..60 {
        log.append(vec![(id, batch_of(&[time * 10], 2000))]).expect("durable");
        log.stepper.write_behind(true).expect("written");
    }
    log.stepper.close().expect("in order");
    drop(log);
    let mut changed = (0, 0);
    for (path, _) in disk.files() {
        if path.extension().is_some_and(|end| end == "index") {
            changed.0 += 1;
            disk.edit(&path, without_times);
        } else if path.to_string_lossy().contains("/manifest-") {
            changed.1 += 1;
            disk.edit(&path, |bytes| {
                let mut body: serde_json::Value = serde_json::from_slice(&bytes[16..]).expect("a manifest");
                for partition in body["partitions"].as_array_mut().expect("a list") {
                    for segment in partition["segments"].as_array_mut().expect("a list") {
                        let segment = segment.as_object_mut().expect("an object");
                        segment.retain(|name, _| name == "base_offset" || name == "length");
                    }
                }
                let body = serde_json::to_vec(&body).expect("encoded");
                bytes.truncate(8);
                bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
                bytes.extend_from_slice(&tidemill_core::batch::crc32c(&body).to_le_bytes());
                bytes.extend_from_slice(&body);
            });
        }
    }
    assert!(changed.0 > 3 && changed.1 == 1, "{changed:?}");
    let log = Stepped::open(&disk, small(), &clock).expect("opens");
    let mut rng = Rng(1);
    check(&log.engine, id, &mut rng, "older files");
    assert_eq!(log.engine.offset_at_time(id, 301).expect("asked"), Some((31, 310)));
}

/// The index file of a program that knew no times: entries of 16 bytes under another magic.
fn without_times(bytes: &mut Vec<u8>) {
    let entries: Vec<u8> = bytes[24..].chunks_exact(24).flat_map(|entry| entry[..16].to_vec()).collect();
    bytes.truncate(24);
    bytes.extend_from_slice(&entries);
    bytes[..8].copy_from_slice(b"TMINDEX1");
    let crc = tidemill_core::batch::crc32c(&bytes[16..]);
    bytes[8..12].copy_from_slice(&crc.to_le_bytes());
}
