//! Data directories that earlier programs wrote: each must open and say what it said then.
//!
//! A fixture is a text: what the log shows, then each file with the bytes of it that are not zero. A new one is written by
//! `cargo test -p tidemill-core --test it -- --ignored fixtures::write` into `core/tests/fixtures/new.txt`; those that are
//! there are never written anew.

use std::{fmt::Write as _, path::Path};

use tidemill_core::{
    batch::crc32c,
    engine::{Engine, Table},
    storage::Storage,
    topic::PartitionId,
};

use crate::{
    harness::{DIR, Stepped, batch, position_batch, read_all, small},
    sim::{SimClock, SimDisk},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
/// As many zeros end a run of bytes.
const GAP: usize = 64;

/// What a log shows, a line each.
fn shown(engine: &Engine) -> String {
    let mut text = String::new();
    for topic in engine.topics().iter().filter(|topic| !topic.name.starts_with('_')) {
        for (number, id) in topic.partitions.iter().enumerate() {
            let bounds = engine.cut(&[*id]).expect("there")[0];
            let bytes: Vec<u8> =
                read_all(engine, *id).expect("whole").into_iter().flat_map(|(_, b)| b.to_vec()).collect();
            let (from, to, crc) = (bounds.log_start_offset, bounds.durable_offset, crc32c(&bytes));
            writeln!(text, "shows {}[{number}] {} {from}..{to} {crc:08x}", topic.name, topic.id).expect("text");
        }
    }
    for (name, value) in engine.positions("owner") {
        writeln!(text, "shows position {name} {value}").expect("text");
    }
    for (key, entry) in engine.table(Table::Schemas) {
        writeln!(text, "shows schema {key} {} {}", entry.version, entry.value).expect("text");
    }
    text
}

/// A log with something of each kind, partly in segments and partly in the commit log only.
fn fill(disk: &SimDisk) -> Stepped {
    let mut log = Stepped::open(disk, small(), &SimClock::default()).expect("opens");
    let ids = log.create("orders", 2).expect("made");
    let gone = log.create("gone", 1).expect("made");
    for tag in 0..40 {
        log.append(vec![(ids[tag as usize % 2], batch(tag, 3, 200))]).expect("durable");
        if tag == 25 {
            log.append(vec![(gone[0], batch(tag, 1, 10))]).expect("durable");
            log.append(vec![(PartitionId(1), position_batch("owner", "place", "17"))]).expect("durable");
            log.stepper.checkpoint().expect("made");
        }
    }
    log.run(async |engine| engine.put(Table::Schemas, "1", Some("{}".into()), None).await).expect("put");
    let transaction = log.engine.begin_transaction();
    let staged = vec![(ids[0], batch(100, 2, 300)), (ids[1], batch(101, 2, 300))];
    log.run(async |engine| engine.stage(transaction, staged.clone()).await).expect("staged");
    let rest = vec![(ids[0], batch(102, 1, 50)), (PartitionId(1), position_batch("owner", "other", "x"))];
    log.run(async |engine| engine.commit(transaction, 1, rest.clone(), None).await).expect("committed");
    log.run(async |engine| engine.delete_topic("gone").await).expect("deleted");
    log.run(async |engine| engine.open_writer("owner").await).expect("opened");
    log
}

fn pack(disk: &SimDisk, log: &Stepped) -> String {
    let mut text = shown(&log.engine);
    let storage: &dyn Storage = disk;
    for (path, length) in disk.files().into_iter().filter(|(path, _)| path.starts_with(DIR)) {
        writeln!(text, "file {} {length}", path.strip_prefix(DIR).expect("below").display()).expect("text");
        let bytes = storage.read(&path).expect("read");
        let mut at = 0;
        while let Some(from) = bytes[at..].iter().position(|b| *b != 0).map(|n| at + n) {
            let gap = bytes[from..].windows(GAP).position(|window| window.iter().all(|b| *b == 0));
            let to = gap.map_or(bytes.len(), |n| from + n);
            let hex = bytes[from..to].iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
            writeln!(text, "{from} {hex}").expect("text");
            at = to;
        }
    }
    text
}

/// A disk with the fixture's files, and what its log must show.
fn unpack(text: &str) -> (SimDisk, String) {
    let (disk, mut wanted) = (SimDisk::new(1), String::new());
    let mut file: Option<(String, Vec<u8>)> = None;
    let plant = |file: Option<(String, Vec<u8>)>| {
        let Some((name, bytes)) = file else { return };
        let path = Path::new(DIR).join(name);
        Storage::create_dir(&disk, path.parent().expect("a folder")).expect("made");
        disk.plant(&path, &bytes);
    };
    for line in text.lines() {
        if line.starts_with("shows ") {
            writeln!(wanted, "{line}").expect("text");
        } else if let Some(head) = line.strip_prefix("file ") {
            let (name, length) = head.rsplit_once(' ').expect("a length");
            plant(file.replace((name.to_owned(), vec![0; length.parse().expect("a number")])));
        } else {
            let (at, hex) = line.split_once(' ').expect("a place");
            let at: usize = at.parse().expect("a number");
            let (_, bytes) = file.as_mut().expect("bytes follow their file");
            for (i, pair) in hex.as_bytes().chunks_exact(2).enumerate() {
                bytes[at + i] = u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("hexadecimal");
            }
        }
    }
    plant(file);
    (disk, wanted)
}

#[test]
#[ignore = "soak: writes a fixture, when the format has grown"]
fn write() {
    let disk = SimDisk::new(7);
    let log = fill(&disk);
    std::fs::write(Path::new(FOLDER).join("new.txt"), pack(&disk, &log)).expect("written");
}

#[test]
fn what_earlier_programs_wrote_is_read() {
    let mut read = 0;
    for entry in std::fs::read_dir(FOLDER).expect("there") {
        let path = entry.expect("there").path();
        let (disk, wanted) = unpack(&std::fs::read_to_string(&path).expect("read"));
        let mut log = Stepped::open(&disk, small(), &SimClock::default())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(log.engine.recovery().damage, [], "{}", path.display());
        assert_eq!(shown(&log.engine), wanted, "{}", path.display());
        // And it goes on, over a checkpoint and another opening.
        let orders = log.engine.topic("orders").expect("there").partitions;
        log.append(vec![(orders[0], batch(1000, 1, 10))]).expect("durable");
        log.stepper.checkpoint().expect("made");
        let after = shown(&log.engine);
        drop(log);
        let log = Stepped::open(&disk, small(), &SimClock::default()).expect("opens");
        assert_eq!(shown(&log.engine), after, "{}", path.display());
        read += 1;
    }
    assert!(read >= 1, "no fixtures in {FOLDER}");
}

#[test]
fn a_packed_log_is_unpacked() {
    let disk = SimDisk::new(8);
    let log = fill(&disk);
    let text = pack(&disk, &log);
    let (copy, wanted) = unpack(&text);
    assert_eq!(wanted, shown(&log.engine));
    let bytes = |disk: &SimDisk| -> Vec<_> {
        let files = disk.files().into_iter().filter(|(path, _)| path.starts_with(DIR));
        files.map(|(path, _)| (Storage::read(disk, &path).expect("read"), path)).collect()
    };
    assert!(bytes(&copy) == bytes(&disk));
}
