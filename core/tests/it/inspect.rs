//! A log at rest, looked at without changing it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tidemill_core::{
    Error, ErrorKind, Result,
    engine::inspect::{self, VerifyReport},
    storage::Storage,
    topic::PartitionId,
};

use crate::{
    harness::{DIR, Stepped, batch, position_batch, small},
    sim::{Keep, Rng, SimClock, SimDisk},
};

fn storage(disk: &SimDisk) -> Arc<dyn Storage> {
    Arc::new(disk.clone())
}

fn verify(disk: &SimDisk) -> Result<VerifyReport> {
    inspect::verify(Path::new(DIR), small(), storage(disk), Arc::new(SimClock::default()))
}

fn dump(disk: &SimDisk, path: &Path, records: bool) -> Result<String> {
    let mut out = Vec::new();
    inspect::dump(&*storage(disk), path, records, &mut out)?;
    Ok(String::from_utf8(out).expect("text"))
}

/// A log whose records are partly in segments and partly in the commit log only.
fn filled(seed: u64) -> (SimDisk, Vec<PartitionId>) {
    let disk = SimDisk::new(seed);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
    let ids = log.create("a", 2).expect("made");
    for tag in 0..60 {
        log.append(vec![(ids[tag as usize % 2], batch(tag, 3, 400))]).expect("durable");
        if tag == 40 {
            log.append(vec![(PartitionId(1), position_batch("o", "p", "v"))]).expect("durable");
            log.stepper.checkpoint().expect("made");
        }
    }
    drop(log);
    (disk, ids)
}

#[test]
fn a_sound_log_is_told_as_it_is_and_stays_as_it_is() {
    let (disk, _) = filled(1);
    let (before, ops) = (disk.files(), disk.ops());
    let report = verify(&disk).expect("looked at");
    assert!(report.is_sound(), "{report:?}");
    let of = |name: &str| report.partitions.iter().find(|p| p.name == name).expect("told").clone();
    for name in ["a[0]", "a[1]"] {
        let told = of(name);
        assert_eq!((told.log_start_offset, told.end_offset, told.records, told.batches), (0, 90, 90, 30), "{told:?}");
        assert!(told.segments > 0 && told.bytes > 20 * 400, "{told:?}");
    }
    assert_eq!(of("_tidemill.positions[0]").records, 1);
    assert!(report.recovery.end_lsn > report.recovery.checkpoint_lsn);
    assert_eq!((disk.files(), disk.ops()), (before, ops), "it changed the disk");
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
    log.append(vec![(PartitionId(16), batch(99, 1, 1))]).expect("and goes on");
}

#[test]
fn each_flipped_byte_of_a_segment_is_named() {
    let (disk, _) = filled(2);
    // What is behind the length that a manifest gives is not the segment's.
    Stepped::open(&disk, small(), &SimClock::default()).expect("opens").stepper.checkpoint().expect("made");
    let files = disk.files();
    let is_segment = |path: &Path| path.starts_with("/srv/log/topics") && path.extension().is_some_and(|e| e == "log");
    let segments: Vec<_> = files.iter().filter(|(path, len)| is_segment(path) && *len > 0).collect();
    assert!(segments.len() >= 3);
    let mut rng = Rng(2);
    for _ in 0..200 {
        let (path, len) = segments[rng.below(segments.len())];
        let at = rng.below(*len);
        let hurt = disk.image(Keep::Everything);
        hurt.edit(path, |bytes| bytes[at] ^= 1 << (rng.next() % 8));
        let report = verify(&hurt).expect("looked at");
        let told: Vec<_> = report.partitions.iter().flat_map(|p| &p.faults).collect();
        let name = path.file_name().expect("named").to_string_lossy();
        assert!(!report.is_sound() && told.iter().any(|fault| fault.contains(&*name)), "byte {at} of {name}: {told:?}");
        let places = dump(&hurt, path, true).expect("dumped");
        assert!(places.contains("DAMAGED") || places.contains("UNREADABLE"), "byte {at}: {places}");
    }
}

#[test]
fn what_is_behind_a_damaged_batch_is_still_checked() {
    let (disk, ids) = filled(3);
    let path = PathBuf::from(format!("{DIR}/topics/{:08}/a-0/{:020}.log", ids[0].0, 0));
    // The last byte of the first batch: its CRC fails, its header tells where the next one begins.
    disk.edit(&path, |bytes| {
        let first = 12 + u32::from_be_bytes(bytes[8..12].try_into().expect("four")) as usize;
        bytes[first - 1] ^= 1;
    });
    let report = verify(&disk).expect("looked at");
    let told = report.partitions.iter().find(|p| p.name == "a[0]").expect("told");
    assert_eq!((told.fault_count, told.batches), (1, 29), "{told:?}");
    assert!(told.faults[0].contains("offsets 0..=2"), "{told:?}");
}

#[test]
fn a_crash_and_lost_proof_are_told_apart() {
    let (disk, _) = filled(4);
    let log = |disk: &SimDisk| {
        disk.files().into_iter().find(|(path, _)| path.starts_with("/srv/log/commitlog")).expect("one").0
    };
    let frames = dump(&disk, &log(&disk), false).expect("dumped");
    assert!(frames.contains("append lsn") && frames.contains("note lsn"), "{frames}");
    for copy in [0, 4096] {
        let hurt = disk.image(Keep::Everything);
        hurt.edit(Path::new("/srv/log/superblock"), |bytes| bytes[copy + 20] ^= 255);
        assert!(verify(&hurt).expect("looked at").is_sound(), "one copy is enough");
        assert!(dump(&hurt, Path::new("/srv/log/superblock"), false).expect("dumped").contains("damaged"));
    }
    let hurt = disk.image(Keep::Everything);
    hurt.edit(Path::new("/srv/log/superblock"), |bytes| bytes.fill(7));
    assert_eq!(verify(&hurt).expect_err("neither copy").kind(), ErrorKind::Corrupt);
    let empty = SimDisk::new(4);
    assert_eq!(verify(&empty).expect_err("no log").kind(), ErrorKind::NotFound);
}

#[test]
fn no_bytes_of_any_file_make_a_dump_fall() {
    let (disk, _) = filled(5);
    let files: Vec<_> = disk.files().into_iter().filter(|(path, _)| path.starts_with(DIR)).collect();
    let mut rng = Rng(5);
    let mut dumped = 0;
    for round in 0..20 {
        for (path, len) in files.iter().filter(|(_, len)| *len > 0) {
            let hurt = disk.image(Keep::Everything);
            hurt.edit(path, |bytes| match round {
                0 => {}
                1..10 => (0..=rng.below(20)).for_each(|_| bytes[rng.below(*len)] = rng.next() as u8),
                10..15 => bytes.truncate(rng.below(*len)),
                _ => bytes.iter_mut().for_each(|byte| *byte = rng.next() as u8),
            });
            match dump(&hurt, path, true) {
                Ok(text) => {
                    dumped += 1;
                    assert!(round > 0 || !text.contains("DAMAGED"), "{}: {text}", path.display());
                }
                Err(error) => check_refusal(&error, path, round),
            }
        }
    }
    assert!(dumped > 50, "{dumped}");
}

fn check_refusal(error: &Error, path: &Path, round: usize) {
    let expected = match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Unavailable => round > 0,
        // VERSION, LOCK.
        ErrorKind::Invalid => !path.to_string_lossy().contains('.'),
        _ => false,
    };
    assert!(expected, "{} in round {round}: {error:?}", path.display());
}
