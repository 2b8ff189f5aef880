//! What goes: by age, by size, by deletion; and what a reader and a crash find meanwhile.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    ErrorKind, Result,
    batch::BatchBuilder,
    engine::Engine,
    record::{Record, Timestamp},
    topic::{PartitionId, TopicConfig, TopicSpec},
};

use crate::{
    harness::{DIR, Stepped, batch, read_all, small},
    sim::{Keep, Rng, SimClock, SimDisk},
};

/// What the simulated clock shows at first.
const START_MS: i64 = 1_700_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

fn timed(tag: u64, time_ms: i64, size: usize) -> Bytes {
    let mut builder = BatchBuilder::default();
    let record = Record::new(Bytes::from(tag.to_string()), Bytes::from(vec![tag as u8; size]));
    builder.push(&record, Timestamp(time_ms)).expect("small");
    builder.finish()
}

fn segments(disk: &SimDisk, id: PartitionId) -> Vec<i64> {
    let folder = Path::new(DIR).join(format!("topics/{:08}", id.0));
    let files = disk.files();
    let own = files.iter().filter(|(path, _)| path.starts_with(&folder));
    let bases = own.filter(|(path, _)| path.extension().is_some_and(|end| end == "log"));
    bases.map(|(path, _)| path.file_stem().expect("name").to_string_lossy().parse().expect("offset")).collect()
}

struct Bench {
    disk: SimDisk,
    clock: SimClock,
    log: Stepped,
    id: PartitionId,
}

impl Bench {
    fn new(settings: &'static [(&'static str, &'static str)]) -> Self {
        let (disk, clock) = (SimDisk::new(1), SimClock::default());
        let mut log = Stepped::open(&disk, small(), &clock).expect("opens");
        let id = log.create("a", 1).expect("made")[0];
        let mut this = Self { disk, clock, log, id };
        this.set(settings);
        this
    }

    fn set(&mut self, settings: &'static [(&'static str, &'static str)]) {
        let change = |config: &mut TopicConfig| settings.iter().try_for_each(|(name, value)| config.set(name, value));
        self.log.run(async |engine| engine.alter_topic("a", change).await).expect("altered");
    }

    fn append(&mut self, tags: std::ops::Range<u64>, time_ms: i64) {
        for tag in tags {
            self.log.append(vec![(self.id, timed(tag, time_ms, 3000))]).expect("durable");
            self.log.stepper.write_behind(true).expect("written");
        }
    }

    /// As much as the threads do in a few seconds.
    fn pass(&mut self) {
        for _ in 0..3 {
            self.log.stepper.housekeep();
            self.log.stepper.write_behind(false).expect("written");
            self.clock.advance(Duration::from_secs(5));
        }
        self.log.stepper.housekeep();
    }

    fn start(&self) -> i64 {
        self.log.engine.cut(&[self.id]).expect("there")[0].log_start_offset
    }

    fn reopen(&mut self) {
        self.disk = self.disk.image(Keep::Nothing);
        self.log = Stepped::open(&self.disk, small(), &self.clock).expect("opens");
    }
}

#[test]
fn segments_go_when_their_newest_record_is_old() {
    let mut bench = Bench::new(&[("retention.ms", "3600000"), ("segment.bytes", "16384")]);
    bench.append(0..20, START_MS);
    bench.clock.advance(HOUR / 2);
    bench.append(20..22, START_MS + 1_800_000);
    bench.pass();
    assert_eq!(bench.start(), 0, "nothing is old enough");
    bench.clock.advance(HOUR / 2 + Duration::from_secs(1));
    bench.pass();
    let start = bench.start();
    assert!((15..=20).contains(&start), "the segments of the old records are gone, up to {start}");
    assert_eq!(segments(&bench.disk, bench.id).first(), Some(&start), "and their files");
    let below = bench.log.engine.read(bench.id, start - 1, 1, i64::MAX).expect_err("gone");
    assert_eq!(below.kind(), ErrorKind::Invalid);
    let kept = read_all(&bench.log.engine, bench.id).expect("whole");
    assert_eq!(kept.len() as i64, 22 - start);
    bench.log.stepper.checkpoint().expect("made");
    bench.reopen();
    assert_eq!((bench.start(), read_all(&bench.log.engine, bench.id).expect("whole")), (start, kept));
    bench.clock.advance(HOUR);
    bench.pass();
    assert_eq!(bench.start(), 22, "the last segment goes as well");
    assert!(segments(&bench.disk, bench.id).is_empty());
    assert_eq!(bench.log.append(vec![(bench.id, timed(22, START_MS, 10))]).expect("goes on"), [22]);
    assert_eq!(read_all(&bench.log.engine, bench.id).expect("whole").len(), 1);
    bench.log.stepper.checkpoint().expect("made");
    assert_eq!(segments(&bench.disk, bench.id), [22]);
}

/// A time in microseconds lies in the year 55,000; none at all is -1.
#[test]
fn a_time_from_the_future_keeps_nobodys_records() {
    for time in [START_MS * 1000, -1] {
        let mut bench = Bench::new(&[("retention.ms", "3600000"), ("segment.bytes", "16384")]);
        bench.append(0..3, time);
        bench.append(3..10, START_MS);
        bench.clock.advance(HOUR - Duration::from_secs(60));
        bench.pass();
        assert_eq!(bench.start(), 0, "{time}: as old as its append");
        bench.clock.advance(Duration::from_secs(120));
        bench.pass();
        assert_eq!(bench.start(), 10, "{time}");
    }
}

#[test]
fn a_partition_keeps_at_least_its_bytes() {
    let mut bench = Bench::new(&[("retention.bytes", "40000"), ("segment.bytes", "16384")]);
    bench.append(0..50, START_MS);
    bench.pass();
    let bytes: usize = read_all(&bench.log.engine, bench.id).expect("whole").iter().map(|(_, bytes)| bytes.len()).sum();
    assert!((40_000..40_000 + 16_384).contains(&bytes), "{bytes} bytes are kept");
    bench.set(&[("cleanup.policy", "compact"), ("retention.bytes", "0")]);
    let start = bench.start();
    bench.pass();
    assert_eq!(bench.start(), start, "what is only compacted does not go");
    bench.set(&[("cleanup.policy", "compact,delete")]);
    bench.pass();
    assert_eq!(bench.start(), 50);
}

#[test]
fn a_segment_ends_at_its_age() {
    let mut bench = Bench::new(&[("segment.ms", "60000")]);
    bench.append(0..2, START_MS);
    bench.pass();
    bench.append(2..3, START_MS);
    bench.clock.advance(Duration::from_secs(60));
    bench.pass();
    bench.append(3..4, START_MS);
    assert_eq!(segments(&bench.disk, bench.id), [0, 3]);
    // The age is kept over a restart.
    bench.log.stepper.checkpoint().expect("made");
    bench.clock.advance(Duration::from_secs(61));
    bench.reopen();
    bench.log.stepper.housekeep();
    bench.log.stepper.write_behind(false).expect("written");
    bench.append(4..5, START_MS);
    let engine = &bench.log.engine;
    assert_eq!(read_all(engine, bench.id).expect("whole").len(), 5);
    assert_eq!(engine.cut(&[bench.id]).expect("there")[0].log_start_offset, 0, "and nothing goes by it");
}

#[test]
fn deleted_records_stay_deleted() {
    let mut bench = Bench::new(&[("segment.bytes", "16384")]);
    bench.append(0..20, START_MS);
    let id = bench.id;
    let delete = |bench: &mut Bench, before: Option<i64>| -> Result<i64> {
        bench.log.run(async |engine| engine.delete_records(id, before).await)
    };
    assert_eq!(delete(&mut bench, Some(13)).expect("deleted"), 13);
    assert_eq!(bench.start(), 13);
    let first = bench.log.engine.read(id, 13, 1, i64::MAX).expect("kept").0;
    assert_eq!(first[0].header().base_offset, 13);
    assert_eq!(delete(&mut bench, Some(5)).expect("nothing to do"), 13);
    for wrong in [-2, 21] {
        assert_eq!(delete(&mut bench, Some(wrong)).expect_err("out of range").kind(), ErrorKind::Invalid);
    }
    let internal = bench.log.run(async |engine| engine.delete_records(PartitionId(1), None).await);
    assert_eq!(internal.expect_err("the log's own").kind(), ErrorKind::Denied);
    // Nothing but its group was made durable.
    bench.reopen();
    assert_eq!(bench.start(), 13);
    bench.log.stepper.write_behind(true).expect("written");
    bench.pass();
    assert!(segments(&bench.disk, id).into_iter().all(|base| base >= 10), "whole segments below are gone");
    assert_eq!(delete(&mut bench, None).expect("all"), 20);
    bench.pass();
    assert_eq!(read_all(&bench.log.engine, id).expect("whole"), []);
    bench.reopen();
    assert_eq!(bench.log.append(vec![(id, batch(1, 1, 10))]).expect("goes on"), [20]);
    bench.set(&[("cleanup.policy", "compact")]);
    assert_eq!(delete(&mut bench, None).expect_err("compacted").kind(), ErrorKind::Invalid);
    bench.log.run(async |engine| engine.delete_topic("a").await).expect("deleted");
    assert!(bench.log.engine.table(tidemill_core::engine::Table::LogStarts).is_empty());
}

/// What a crash may leave: at least what was acknowledged, and no later start than anybody had heard of.
#[derive(Default)]
struct Allowed {
    records: Vec<Bytes>,
    acked: usize,
    earliest_start: i64,
    latest_start: i64,
}

impl Allowed {
    fn judge(&self, image: &SimDisk, id: PartitionId) -> Result<(), String> {
        let log = Stepped::open(image, small(), &SimClock::default()).map_err(|e| format!("open failed: {e}"))?;
        if !log.engine.damage().is_empty() || !log.engine.recovery().damage.is_empty() {
            return Err(format!("called damage: {:?}", log.engine.damage()));
        }
        // Before the topic's creation was durable.
        let Ok(bounds) = log.engine.cut(&[id]) else { return Ok(()) };
        let start = bounds[0].log_start_offset;
        if !(self.earliest_start..=self.latest_start).contains(&start) {
            return Err(format!("begins at {start}, not in {}..={}", self.earliest_start, self.latest_start));
        }
        let found = read_all(&log.engine, id).map_err(|e| format!("read failed: {e}"))?;
        let end = bounds[0].durable_offset;
        let wanted = &self.records[start as usize..end as usize];
        let same = found.len() == wanted.len()
            && found
                .iter()
                .zip(wanted)
                .enumerate()
                .all(|(i, ((base, bytes), wanted))| *base == start + i as i64 && bytes[12..] == wanted[12..]);
        match same && end >= self.acked as i64 {
            true => Ok(()),
            false => Err(format!("{} records from {start} to {end}, {} were acknowledged", found.len(), self.acked)),
        }
    }
}

/// Takes away what retention took in memory, as one would who does not wait for the manifest.
fn remove_early(image: &SimDisk, id: PartitionId, start: i64) {
    for base in segments(image, id).windows(2).filter(|pair| pair[1] <= start).map(|pair| pair[0]) {
        image.unlink(&Path::new(DIR).join(format!("topics/{:08}/a-0/{base:020}.log", id.0)));
    }
}

/// Appends, retention, deletions, checkpoints step by step; a crash before every call to the disk.
fn crash_under_retention(seed: u64, sabotage: bool) -> Result<(), String> {
    let mut bench = Bench::new(&[("retention.bytes", "20000"), ("segment.bytes", "8192"), ("segment.ms", "20000")]);
    let (id, allowed) = (bench.id, Arc::new(Mutex::new(Allowed::default())));
    let fault = Arc::new(Mutex::new(None));
    let (seen, told) = (Arc::clone(&allowed), Arc::clone(&fault));
    bench.disk.observe(move |disk, op| {
        let mut rng = Rng(seed ^ op << 20);
        let keep = [Keep::Nothing, Keep::Everything, Keep::LastWrite, Keep::Random(rng.next())][rng.below(4)];
        let image = disk.image(keep);
        let seen = seen.lock().expect("whole");
        if sabotage {
            remove_early(&image, id, seen.latest_start);
        }
        let judged = seen.judge(&image, id).map_err(|error| format!("seed {seed}, call {op}, {keep:?}: {error}"));
        let mut told = told.lock().expect("whole");
        *told = told.take().or(judged.err());
    });
    let mut rng = Rng(seed);
    for tag in 0..160 {
        match rng.below(12) {
            0..6 => {
                let batch = timed(tag, START_MS, 50 + rng.below(4000));
                allowed.lock().expect("whole").records.push(batch.clone());
                bench.log.append(vec![(id, batch)]).map_err(|e| e.to_string())?;
                allowed.lock().expect("whole").acked += 1;
            }
            6 => bench.log.stepper.write_behind(rng.coin()).map_err(|e| e.to_string())?,
            7 => bench.log.stepper.checkpoint_step().map_err(|e| e.to_string())?,
            8 if rng.below(3) == 0 => {
                let end = allowed.lock().expect("whole").acked;
                let to = bench.start().max(rng.below(end + 1) as i64);
                let latest = to.max(allowed.lock().expect("whole").latest_start);
                allowed.lock().expect("whole").latest_start = latest;
                bench.log.run(async |engine| engine.delete_records(id, Some(to)).await).map_err(|e| e.to_string())?;
                allowed.lock().expect("whole").earliest_start = to;
            }
            9 => bench.clock.advance(Duration::from_secs(7)),
            _ => {
                for _ in 0..1 + rng.below(4) {
                    bench.log.stepper.housekeep_step();
                    let start = bench.start();
                    allowed.lock().expect("whole").latest_start = start;
                }
            }
        }
    }
    bench.disk.stop_observing();
    if bench.start() < 20 {
        return Err(format!("seed {seed}: only {} records were taken away", bench.start()));
    }
    let fault = fault.lock().expect("whole").take();
    fault.map_or(Ok(()), Err)
}

#[test]
fn a_crash_never_loses_more_than_retention_took() {
    (0..12).for_each(|seed| crash_under_retention(seed, false).expect("kept"));
}

/// The twin: files that go before the manifest no longer lists them are noticed.
#[test]
fn files_that_go_too_early_are_noticed() {
    let found = (0..12).filter(|seed| crash_under_retention(*seed, true).is_err()).count();
    assert!(found >= 6, "noticed in {found} of 12 runs");
}

/// A reader that is slower than retention gets what it asked for, or is told that it is gone.
#[tokio::test(flavor = "multi_thread")]
async fn readers_meet_retention_and_rolls() {
    let disk = SimDisk::new(3);
    let clock = SimClock::default();
    let engine = Engine::open(Path::new(DIR), small(), Arc::new(disk.clone()), Arc::new(clock.clone()));
    let engine = Arc::new(engine.expect("opens"));
    let mut spec = TopicSpec::partitions(1);
    spec.config.set("segment.bytes", "4096").expect("a setting");
    let id = engine.create_topic("a", &spec).await.expect("made").partitions[0];
    const RECORDS: i64 = 1500;
    let reader = |step: i64| {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let (mut offset, mut seen, mut gone) = (0, 0, 0);
            while offset < RECORDS {
                engine.wait_for(id, offset, Duration::from_secs(20)).await.expect("alive");
                let bounds = engine.cut(&[id]).expect("there")[0];
                if bounds.durable_offset - offset < step && bounds.durable_offset < RECORDS {
                    tokio::task::yield_now().await;
                    continue;
                }
                match engine.read(id, offset, 1, i64::MAX) {
                    Ok((batches, next)) => {
                        for batch in &batches {
                            let base = batch.header().base_offset;
                            assert_eq!(base, offset, "the record that was asked for");
                            let record = batch.records().next().expect("one").expect("sound");
                            assert_eq!(record.key, Some(base.to_string().as_bytes()));
                            seen += 1;
                        }
                        offset = next;
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
                        assert!(error.to_string().contains("out of range"), "{error}");
                        offset = engine.cut(&[id]).expect("there")[0].log_start_offset;
                        gone += 1;
                    }
                }
            }
            (seen, gone)
        })
    };
    let readers: Vec<_> = [1, 20, 150].map(reader).into();
    for tag in 0..RECORDS {
        engine.append(vec![(id, timed(tag as u64, START_MS, 700))], None).await.expect("durable");
        if tag % 10 == 9 {
            engine.delete_records(id, Some(tag - 100)).await.ok();
        }
    }
    let mut losses = 0;
    for reader in readers {
        let (seen, gone) = reader.await.expect("no panic");
        assert!(seen > 0);
        losses += gone;
    }
    assert!(losses > 0, "no reader was too slow: the test shows nothing");
    engine.close().expect("in order");
}
