//! Bytes that change at rest: what is proven durable and lost is named, limited and never passed over; what is not
//! proven is cut; nothing is made up.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidemill_core::{ErrorKind, engine::Damage, topic::PartitionId};

use crate::{
    harness::{DIR, Shown, State, Stepped, Unit, batch, show, small},
    sim::{Keep, Rng, SimClock, SimDisk},
};

/// How the log was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Closed,
    /// A note proves all groups.
    Idle,
    /// Nothing proves the last group.
    Killed,
}

struct Log {
    disk: SimDisk,
    shown: Shown,
    a: Vec<PartitionId>,
    b: Vec<PartitionId>,
}

/// A log with segments, an index file, a checkpoint, and groups after it; the last group goes to `a[0]` alone.
fn log(left: Left) -> Log {
    let disk = SimDisk::new(1);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new log");
    let mut state = State::default();
    let (a, b) = (log.create("a", 2).expect("topic"), log.create("b", 1).expect("topic"));
    state.apply(&Unit::Create { name: "a".into(), partitions: 2 });
    state.apply(&Unit::Create { name: "b".into(), partitions: 1 });
    let mut tag = 0;
    let mut append = |log: &mut Stepped, state: &mut State, to: &[PartitionId], size: usize| {
        let batches: Vec<_> = to
            .iter()
            .map(|id| {
                (*id, {
                    tag += 1;
                    batch(tag, 2, size)
                })
            })
            .collect();
        log.append(batches.clone()).expect("append");
        state.apply(&Unit::Data { batches, positions: Vec::new() });
    };
    for _ in 0..5 {
        append(&mut log, &mut state, &[a[0], a[1], b[0]], 3000);
        append(&mut log, &mut state, &[a[0]], 500);
        log.stepper.write_behind(true).expect("segments");
    }
    append(&mut log, &mut state, &[a[0]], 9000);
    append(&mut log, &mut state, &[a[0]], 9000);
    log.stepper.checkpoint().expect("checkpoint");
    append(&mut log, &mut state, &[a[0]], 700);
    append(&mut log, &mut state, &[a[1], b[0]], 700);
    let transaction = log.engine.begin_transaction();
    let staged = vec![(a[1], batch(500, 1, 300)), (b[0], batch(501, 3, 300))];
    let copy = staged.clone();
    log.run(async |engine| engine.stage(transaction, copy).await).expect("stage");
    append(&mut log, &mut state, &[a[1]], 300);
    log.run(async |engine| engine.commit(transaction, 1, Vec::new(), None).await).expect("commit");
    state.apply(&Unit::Data { batches: staged, positions: Vec::new() });
    append(&mut log, &mut state, &[b[0]], 700);
    append(&mut log, &mut state, &[a[0]], 700);
    match left {
        Left::Closed => log.stepper.close().expect("close"),
        Left::Idle => log.stepper.note().expect("note"),
        Left::Killed => {}
    }
    drop(log);
    Log { disk, shown: state.shown, a, b }
}

/// What a partition shows: its batches, and the offsets where a read failed.
type Content = (Vec<(i64, Bytes)>, Vec<i64>, i64);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    damage: Vec<(String, Damage)>,
    content: Vec<(PartitionId, Option<Content>)>,
}

/// Opens a damaged log and holds it against what was written.
/// What was cut is told by the opening that cut it, once.
fn verdict(log: &Log, disk: &SimDisk, already_cut: bool) -> Result<(Verdict, Stepped), String> {
    let opened = match Stepped::open(disk, small(), &SimClock::default()) {
        Ok(opened) => opened,
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => {
            return Err(format!("refused: {error}"));
        }
        Err(error) => panic!("open failed without naming damage: {error:?}"),
    };
    let damage = opened.engine.damage();
    let report = opened.engine.recovery();
    let mut content = Vec::new();
    let told = already_cut || !report.damage.is_empty() || report.cut.is_some();
    for (id, written) in &log.shown.partitions {
        let Ok(bounds) = opened.engine.cut(&[*id]) else {
            assert!(told, "partition {} gone, nobody said so", id.0);
            content.push((*id, None));
            continue;
        };
        let (mut found, mut failed) = (Vec::new(), Vec::new());
        let (mut offset, end) = (0, bounds[0].durable_offset);
        while offset < end {
            match opened.engine.read(*id, offset, 5000, i64::MAX) {
                Ok((batches, next)) => {
                    assert!(next > offset, "a read at {offset} does not get on");
                    for batch in batches {
                        let stored = (batch.header().base_offset, batch.bytes().clone());
                        assert!(written.contains(&stored), "invented: partition {} offset {}", id.0, stored.0);
                        assert_eq!(stored.0, offset, "partition {} skips silently", id.0);
                        offset = batch.header().next_offset();
                        found.push(stored);
                    }
                    assert_eq!(offset, next, "partition {} skips silently", id.0);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    failed.push(offset);
                    offset += 1;
                    // A later batch may begin in the midst of what failed.
                    while offset < end && !written.iter().any(|(base, _)| *base == offset) {
                        offset += 1;
                    }
                }
            }
        }
        let wanted = written.last().map_or(0, |(base, b)| base + i64::from(b[26]) + 1);
        if end < wanted {
            assert!(told || !damage.is_empty(), "partition {} ends at {end}, not {wanted}, nobody said so", id.0);
        }
        content.push((*id, Some((found, failed, end))));
    }
    Ok((Verdict { damage, content }, opened))
}

/// As [`verdict`], and the same again when the log is opened once more.
fn stable_verdict(log: &Log, disk: &SimDisk) -> Result<(Verdict, Stepped), String> {
    stable_verdict_of(log, disk, false)
}

fn stable_verdict_of(log: &Log, disk: &SimDisk, untold: bool) -> Result<(Verdict, Stepped), String> {
    let first = verdict(log, disk, untold).map(|(v, opened)| (v, opened.engine.recovery().cut.is_some()));
    let cut = first.as_ref().is_ok_and(|(_, cut)| *cut) || untold;
    let second = verdict(log, &disk.image(Keep::Nothing), cut);
    let first = first.map(|(v, _)| v);
    match (first, second) {
        (Ok(first), Ok((second, opened))) => {
            assert_eq!(first.damage, second.damage, "reopening changes the verdict");
            assert!(first == second, "reopening changes what is shown");
            Ok((second, opened))
        }
        (Err(first), Err(_)) => Err(first),
        (first, second) => {
            panic!("first {:?}, then {:?}", first.map(|v| v.damage), second.map(|(v, _)| v.damage))
        }
    }
}

fn whole(log: &Log, disk: &SimDisk, what: &str) {
    let (verdict, mut opened) = stable_verdict(log, disk).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(verdict.damage, [], "{what}");
    assert_eq!(show(&opened.engine).expect("whole").partitions, log.shown.partitions, "{what}");
    opened.append(vec![(log.a[0], batch(9, 1, 100)), (log.b[0], batch(9, 1, 100))]).expect("append goes on");
}

/// A frame as the test finds it in a file: path, place, and its fields.
#[derive(Debug, Clone)]
struct Frame {
    path: PathBuf,
    at: usize,
    length: usize,
    kind: u8,
    lsn: u64,
    descriptor: usize,
    payload: usize,
    partitions: Vec<PartitionId>,
}

fn frames(disk: &SimDisk) -> Vec<Frame> {
    let mut found = Vec::new();
    for (path, length) in disk.files() {
        if !path.to_string_lossy().contains("/commitlog/") {
            continue;
        }
        let bytes = bytes_of(disk, &path);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four")) as usize;
        let mut at = 0;
        while at + 64 <= length {
            if &bytes[at..at + 4] != b"TMF1" {
                at += 8;
                continue;
            }
            let lsn = u64::from_le_bytes(bytes[at + 24..at + 32].try_into().expect("eight"));
            let (kind, descriptor, payload) = (bytes[at + 12], word(at + 44), word(at + 52));
            let mut partitions = Vec::new();
            if kind != 5 {
                let (batches, staged) = (word(at + 64), word(at + 68));
                partitions.extend((0..batches).map(|i| PartitionId(word(at + 72 + 24 * i) as u32)));
                let staged_at = at + 72 + 24 * batches;
                partitions.extend((0..staged).map(|i| PartitionId(word(staged_at + 32 * i + 12) as u32)));
            }
            found.push(Frame {
                path: path.clone(),
                at,
                length: word(at + 8),
                kind,
                lsn,
                descriptor,
                payload,
                partitions,
            });
            at += word(at + 8);
        }
    }
    found.sort_by_key(|f| f.lsn);
    found
}

fn bytes_of(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let mut copy = Vec::new();
    disk.edit(path, |bytes| copy.clone_from(bytes));
    copy
}

fn flipped(log: &Log, path: &Path, at: usize) -> SimDisk {
    let disk = log.disk.image(Keep::Everything);
    disk.edit(path, |bytes| bytes[at] ^= 0x10);
    disk
}

fn checkpoint_lsn(log: &Log) -> u64 {
    let opened = Stepped::open(&log.disk.image(Keep::Everything), small(), &SimClock::default()).expect("whole");
    opened.engine.recovery().checkpoint_lsn
}

fn name_of(log: &Log, id: PartitionId) -> String {
    let number = |ids: &[PartitionId]| ids.iter().position(|other| *other == id);
    match (number(&log.a), number(&log.b)) {
        (Some(n), _) => format!("a[{n}]"),
        (_, Some(n)) => format!("b[{n}]"),
        _ => panic!("partition {}", id.0),
    }
}

#[test]
fn proven_damage_is_named_and_limited() {
    let log = log(Left::Idle);
    let checkpoint = checkpoint_lsn(&log);
    let tested: Vec<_> = frames(&log.disk).into_iter().filter(|f| f.lsn >= checkpoint && f.kind != 5).collect();
    assert!(tested.len() >= 7, "{tested:?}");
    for frame in tested {
        let hurt = |from: usize| {
            let (verdict, opened) = stable_verdict(&log, &flipped(&log, &frame.path, frame.at + from)).expect("opens");
            assert!(opened.engine.recovery().damage.iter().any(|(lsn, _)| *lsn == frame.lsn), "not named");
            (verdict, opened)
        };
        // A good descriptor limits the damage to whom it names; a staged frame's commit names them.
        if frame.payload > 0 {
            let (verdict, mut opened) = hurt(64 + frame.descriptor + 3);
            let mut wanted: Vec<_> = frame.partitions.iter().map(|id| name_of(&log, *id)).collect();
            wanted.sort();
            let named: Vec<_> = verdict.damage.iter().map(|(name, _)| name.clone()).collect();
            assert_eq!(named, wanted);
            for id in log.a.iter().chain(&log.b) {
                let appended = opened.append(vec![(*id, batch(1, 1, 50))]);
                if frame.partitions.contains(id) {
                    let error = appended.expect_err("read-only");
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    assert!(error.message().contains(&name_of(&log, *id)), "{error}");
                } else {
                    appended.expect("others go on");
                }
            }
            let lost: Vec<_> =
                verdict.content.iter().filter(|(_, c)| c.as_ref().is_some_and(|c| !c.1.is_empty())).collect();
            assert_eq!(lost.len(), frame.partitions.len(), "reads fail inside the hole");
        }
        // A bad header or descriptor: whoever is not shown continuous afterwards is read-only.
        for at in [5, 20, 30, 64 + frame.descriptor - 1] {
            let (verdict, mut opened) = hurt(at);
            for id in &frame.partitions {
                assert!(
                    verdict.damage.iter().any(|(name, _)| *name == name_of(&log, *id)) || frame.kind == 2,
                    "byte {at}"
                );
                if frame.kind != 2 {
                    opened.append(vec![(*id, batch(1, 1, 50))]).expect_err("read-only");
                }
            }
        }
        // Zeroed sectors.
        let disk = log.disk.image(Keep::Everything);
        disk.edit(&frame.path, |bytes| bytes[frame.at..frame.at + 512].fill(0));
        let (verdict, _) = stable_verdict(&log, &disk).expect("opens");
        assert!(!verdict.damage.is_empty());
        // Padding is nobody's.
        let end = 64 + frame.descriptor + frame.payload;
        if end < frame.length {
            whole(&log, &flipped(&log, &frame.path, frame.at + frame.length - 1), "padding");
        }
    }
}

/// An opening note has no records: its loss is told and costs nobody anything.
#[test]
fn a_damaged_opening_note_costs_no_records() {
    let disk = SimDisk::new(1);
    let mut state = State::default();
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new log");
    let (a, b) = (log.create("a", 2).expect("topic"), log.create("b", 1).expect("topic"));
    state.apply(&Unit::Create { name: "a".into(), partitions: 2 });
    state.apply(&Unit::Create { name: "b".into(), partitions: 1 });
    // An old file, its end unproven; then a new epoch, and a roll in it.
    for tag in 0..30 {
        let batches = vec![(a[tag as usize % 2], batch(tag, 2, 3000)), (b[0], batch(100 + tag, 2, 200))];
        log.append(batches.clone()).expect("append");
        state.apply(&Unit::Data { batches, positions: Vec::new() });
        if tag == 9 {
            log = Stepped::open(&disk, small(), &SimClock::default()).expect("again");
        }
    }
    log.stepper.note().expect("note");
    drop(log);
    let log = Log { disk, shown: state.shown, a, b };
    let notes: Vec<_> = frames(&log.disk).into_iter().filter(|f| f.kind == 5 && f.at == 0).collect();
    assert!(notes.len() >= 3, "{notes:?}");
    for note in notes.into_iter().filter(|note| note.lsn >= checkpoint_lsn(&log)) {
        for at in [1, 5, 30, 64, 80] {
            let disk = flipped(&log, &note.path, at);
            let opened = Stepped::open(&disk.image(Keep::Everything), small(), &SimClock::default()).expect("opens");
            assert!(opened.engine.recovery().damage.iter().any(|(lsn, _)| *lsn == note.lsn), "not told");
            whole(&log, &disk, "opening note");
        }
    }
}

#[test]
fn an_unproven_end_is_cut() {
    let log = log(Left::Killed);
    let last = frames(&log.disk).into_iter().next_back().expect("frames");
    assert_eq!(last.partitions, [log.a[0]]);
    for at in
        [2, 5, 20, 30, 64, 64 + last.descriptor - 1, 64 + last.descriptor + 9, 64 + last.descriptor + last.payload - 1]
    {
        let disk = flipped(&log, &last.path, last.at + at);
        let first = Stepped::open(&disk.image(Keep::Everything), small(), &SimClock::default()).expect("opens");
        let cut = first.engine.recovery().cut.expect("cut");
        assert_eq!(cut.0, last.lsn, "byte {at}");
        drop(first);
        let (verdict, mut opened) = stable_verdict(&log, &disk).expect("opens");
        assert_eq!(verdict.damage, []);
        for (id, content) in verdict.content {
            let written = &log.shown.partitions[&id];
            let kept = written.len() - usize::from(id == log.a[0]);
            assert_eq!(content.expect("there").0, written[..kept], "byte {at}");
        }
        opened.append(vec![(log.a[0], batch(1, 1, 50))]).expect("goes on");
    }
    // Cut in the midst.
    let disk = log.disk.image(Keep::Everything);
    disk.edit(&last.path, |bytes| bytes.truncate(last.at + 100));
    let (verdict, _) = stable_verdict(&log, &disk).expect("opens");
    assert_eq!(verdict.damage, []);
}

#[test]
fn after_a_clean_close_the_commit_log_is_not_needed() {
    let log = log(Left::Closed);
    whole(&log, &log.disk.image(Keep::Everything), "untouched");
    for frame in frames(&log.disk) {
        for at in [5, 64, frame.length - 1] {
            whole(&log, &flipped(&log, &frame.path, frame.at + at), "replay begins after it");
        }
    }
}

#[test]
fn one_copy_of_the_superblock_is_enough() {
    for left in [Left::Closed, Left::Idle, Left::Killed] {
        let log = log(left);
        let path = Path::new(DIR).join("superblock");
        for copy in 0..2 {
            for at in [0, 9, 20, 30, 50, 70] {
                whole(&log, &flipped(&log, &path, copy * 4096 + at), &format!("{left:?}, copy {copy}, byte {at}"));
            }
        }
        let both = flipped(&log, &path, 20);
        both.edit(&path, |bytes| bytes[4096 + 20] ^= 1);
        assert!(verdict(&log, &both, false).is_err(), "both copies are gone");
    }
}

/// The newest checkpoint is in both copies before the old one's manifest and files go.
#[test]
fn one_copy_of_the_superblock_is_enough_right_after_a_checkpoint() {
    let disk = SimDisk::new(3);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
    let id = log.create("a", 1).expect("topic")[0];
    for round in 0..4 {
        for tag in 0..20 {
            log.append(vec![(id, batch(tag, 2, 3000))]).expect("append");
        }
        log.stepper.checkpoint().expect("checkpoint");
        let wanted = show(&log.engine).expect("whole");
        for copy in 0..2 {
            let image = disk.image(Keep::Everything);
            image.edit(&Path::new(DIR).join("superblock"), |bytes| bytes[copy * 4096 + 50] ^= 1);
            let opened = Stepped::open(&image, small(), &SimClock::default())
                .unwrap_or_else(|e| panic!("round {round}, copy {copy}: {e:?}"));
            assert_eq!(show(&opened.engine).expect("whole"), wanted);
        }
    }
}

#[test]
fn index_files_are_never_evidence() {
    let log = log(Left::Idle);
    let indexes: Vec<_> =
        log.disk.files().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "index")).collect();
    assert!(!indexes.is_empty(), "no segment was sealed");
    for (path, length) in indexes {
        for at in 0..length {
            whole(&log, &flipped(&log, &path, at), "a byte of an index");
        }
        for cut in [0, 1, 8, 23, length - 1] {
            let disk = log.disk.image(Keep::Everything);
            disk.edit(&path, |bytes| bytes.truncate(cut));
            whole(&log, &disk, "a cut index");
        }
        let disk = log.disk.image(Keep::Everything);
        disk.unlink(&path);
        whole(&log, &disk, "no index");
        // A whole index that tells lies.
        let disk = log.disk.image(Keep::Everything);
        disk.edit(&path, |bytes| {
            bytes.truncate(24);
            bytes.extend_from_slice(&3i64.to_le_bytes());
            bytes.extend_from_slice(&777u64.to_le_bytes());
            let crc = tidemill_core::batch::crc32c(&bytes[16..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        });
        whole(&log, &disk, "a lying index");
    }
}

#[test]
fn no_byte_of_any_file_makes_anything_up() {
    for left in [Left::Idle, Left::Killed, Left::Closed] {
        let log = log(left);
        let mut rng = Rng(77);
        for (path, length) in log.disk.files() {
            let used = bytes_of(&log.disk, &path).iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
            let stride = if used > 2000 { used / 160 } else { 7 };
            let mut at = rng.below(stride);
            while at < length.min(used + 300) {
                let disk = flipped(&log, &path, at);
                let _ = stable_verdict(&log, &disk);
                at += 1 + rng.below(2 * stride);
            }
        }
    }
}

/// One loss cannot be told from a crash: the newest file of the commit log as a whole, with all that proved it.
#[test]
fn no_length_of_any_file_makes_anything_up() {
    for left in [Left::Idle, Left::Closed] {
        let log = log(left);
        let newest = frames(&log.disk).pop().map(|frame| frame.path);
        for (path, length) in log.disk.files() {
            let newest = Some(&path) == newest.as_ref();
            for cut in [0, 1, 63, 64, 511, 512, 513, 4095, 4096].into_iter().chain((0..16).map(|i| length * i / 16)) {
                let disk = log.disk.image(Keep::Everything);
                disk.edit(&path, |bytes| bytes.truncate(cut));
                let _ = stable_verdict_of(&log, &disk, cut < 512 && newest);
            }
            let disk = log.disk.image(Keep::Everything);
            disk.unlink(&path);
            let _ = stable_verdict_of(&log, &disk, newest);
            let disk = log.disk.image(Keep::Everything);
            disk.edit(&path, |bytes| bytes.fill(0));
            let _ = stable_verdict_of(&log, &disk, newest);
        }
    }
}

#[test]
fn garbage_beside_the_files_is_left_alone() {
    let log = log(Left::Idle);
    let disk = log.disk.image(Keep::Everything);
    let noise: Vec<u8> = (0..70_000u32).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
    for name in [
        "commitlog/4294967295.log",
        "commitlog/x.log",
        "commitlog/0900.log",
        "commitlog/0901.log",
        "manifest-0000000099",
        "VERSION.tmp",
        "topics/zzz",
    ] {
        disk.plant(&Path::new(DIR).join(name), if name.contains("901") { b"" } else { &noise });
    }
    whole(&log, &disk, "garbage");
}

/// A segment lost at rest costs its partition, and nobody else anything.
#[test]
fn a_lost_segment_costs_its_partition_only() {
    for cut in [None, Some(100)] {
        let log = log(Left::Closed);
        let disk = log.disk.image(Keep::Everything);
        let folder = format!("/a-{}/", 0);
        let all: Vec<_> = disk.files().into_iter().filter(|(p, _)| p.to_string_lossy().contains(&folder)).collect();
        let (path, _) = all.into_iter().rfind(|(p, _)| p.extension().is_some_and(|e| e == "log")).expect("segment");
        match cut {
            None => disk.unlink(&path),
            Some(length) => disk.edit(&path, |bytes| bytes.truncate(length)),
        }
        let (_, mut opened) = stable_verdict(&log, &disk).expect("opens");
        // Nobody has looked at the segment yet; writing to it finds out.
        opened.append(vec![(log.a[0], batch(1, 1, 100)), (log.b[0], batch(1, 1, 100))]).expect("acknowledged");
        opened.stepper.write_behind(true).expect("the log goes on");
        opened.stepper.checkpoint().expect("the log goes on");
        assert_eq!(opened.engine.damage().len(), 1);
        opened.append(vec![(log.a[0], batch(1, 1, 100))]).expect_err("read-only");
        opened.append(vec![(log.b[0], batch(1, 1, 100))]).expect("others go on");
        let end = opened.engine.cut(&[log.a[0]]).expect("there")[0].durable_offset;
        let (batches, _) = opened.engine.read(log.a[0], end - 1, 1000, end).expect("what came after is there");
        assert_eq!(batches.len(), 1);
    }
}
