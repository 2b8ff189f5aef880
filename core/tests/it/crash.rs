//! Crash after every single call to the disk, keep any subset of what was not synced, reopen, compare.
//!
//! The workload runs once; before each call that changes the disk, images of it as after a crash at this moment are
//! opened and judged. What is wanted: some number of whole requests, in the order asked, at least all acknowledged.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    ErrorKind, Result,
    engine::{Engine, Fence, Table, Turn},
    topic::PartitionId,
};

use crate::{
    harness::{Model, Shown, State, Stepped, Unit, batch, difference, poll, position_batch, show, small},
    sim::{Keep, Lie, Rng, SimClock, SimDisk},
};

type Shared = Arc<Mutex<Model>>;

/// A workload on its way.
struct Work {
    disk: SimDisk,
    clock: SimClock,
    model: Shared,
    rng: Rng,
    log: Option<Stepped>,
    tags: u64,
    names: u64,
    open: Vec<Open>,
    fences: Vec<Fence>,
}

/// A transaction on its way.
struct Open {
    id: u64,
    staged: Vec<Vec<(PartitionId, Bytes)>>,
}

impl Work {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            clock: SimClock::default(),
            model: Shared::default(),
            rng: Rng(seed),
            log: None,
            tags: 0,
            names: 0,
            open: Vec::new(),
            fences: Vec::new(),
        }
    }

    fn model(&self) -> std::sync::MutexGuard<'_, Model> {
        self.model.lock().expect("no panic inside")
    }

    fn log(&mut self) -> &mut Stepped {
        self.log.as_mut().expect("open")
    }

    fn run(&mut self, steps: usize) -> Result<()> {
        self.reopen()?;
        for name in ["a", "b", "c"] {
            let partitions = 1 + self.rng.below(3) as u32;
            self.create(name, partitions)?;
        }
        for _ in 0..steps {
            self.step()?;
        }
        self.close()
    }

    fn step(&mut self) -> Result<()> {
        match self.rng.below(100) {
            0..48 => self.appends()?,
            48..60 => self.transaction_step()?,
            60..66 => self.commit_small()?,
            66..70 => self.put()?,
            70..74 => self.fence()?,
            74..76 => {
                self.names += 1;
                let name = format!("t{}", self.names % 4);
                if self.model().acked.shown.topics.contains_key(&name) {
                    self.delete(&name)?
                } else {
                    self.create(&name, 2)?
                }
            }
            76..82 => self.log().stepper.note()?,
            82..86 => self.log().stepper.write_behind(false)?,
            86..88 => {
                self.clock.advance(Duration::from_secs(4));
                for _ in 0..1 + self.rng.below(20) {
                    self.log().stepper.housekeep_step();
                }
            }
            88..92 => self.log().stepper.write_behind(true)?,
            92..93 => self.log().stepper.checkpoint()?,
            // Appends, deletions and transactions come between the steps.
            93..96 => self.checkpoint_steps()?,
            96..97 => self.clock.advance(Duration::from_secs(20)),
            97..98 => {
                self.close()?;
                self.reopen()?;
            }
            _ => self.reopen()?,
        }
        Ok(())
    }

    fn checkpoint_steps(&mut self) -> Result<()> {
        for _ in 0..1 + self.rng.below(12) {
            self.log().stepper.checkpoint_step()?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        self.log = None;
        self.open.clear();
        self.log = Some(Stepped::open(&self.disk, small(), &self.clock)?);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.open.clear();
        self.log().stepper.close()
    }

    fn batch(&mut self) -> Bytes {
        self.tags += 1;
        let size = [60, 300, 1000, 3000, 9000][self.rng.below(5)];
        batch(self.tags, 1 + self.rng.below(4), size)
    }

    /// One to three batches, some to the same partition.
    fn batches(&mut self, most: usize) -> Vec<(PartitionId, Bytes)> {
        let ids: Vec<_> = self.model().acked.shown.partitions.keys().copied().collect();
        (0..1 + self.rng.below(most)).map(|_| (ids[self.rng.below(ids.len())], self.batch())).collect::<Vec<_>>()
    }

    /// Several requests at once, so that groups have several frames.
    fn appends(&mut self) -> Result<()> {
        let requests: Vec<_> = (0..1 + self.rng.below(4)).map(|_| self.batches(2)).collect();
        let Stepped { engine, stepper } = self.log.as_mut().expect("open");
        let mut waiting = VecDeque::new();
        for batches in requests {
            let unit = Unit::Data { batches: batches.clone(), positions: Vec::new() };
            self.model.lock().expect("whole").pending.push(unit);
            let mut call = Box::pin(engine.append(batches, None));
            assert!(poll(&mut call).is_none(), "answered before anything was written");
            waiting.push_back(call);
        }
        let mut turns = 0;
        while let Some(call) = waiting.front_mut() {
            let Some(outcome) = poll(call) else {
                turns += 1;
                assert!(turns < 200, "an append waits for ever");
                if stepper.commit()? == Turn::Blocked {
                    stepper.write_behind(true)?;
                }
                continue;
            };
            waiting.pop_front();
            let mut model = self.model.lock().expect("whole");
            let Unit::Data { batches, .. } = model.pending[0].clone() else { unreachable!("appends only") };
            assert_eq!(outcome?.base_offsets, expected_offsets(&model.acked, &batches), "acknowledged offsets");
            model.ack(1);
        }
        Ok(())
    }

    fn unit<T>(&mut self, unit: Unit, call: impl AsyncFnOnce(&Engine) -> Result<T>) -> Result<T> {
        self.model().pending.push(unit);
        let output = self.log().run(call)?;
        self.model().ack(1);
        Ok(output)
    }

    fn create(&mut self, name: &str, partitions: u32) -> Result<()> {
        let unit = Unit::Create { name: name.to_owned(), partitions };
        let spec = tidemill_core::topic::TopicSpec::partitions(partitions);
        let info = self.unit(unit, async |engine| engine.create_topic(name, &spec).await)?;
        assert_eq!(self.model().acked.shown.topics[name], info.partitions);
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.unit(Unit::Delete { name: name.to_owned() }, async |engine| engine.delete_topic(name).await)
    }

    fn put(&mut self) -> Result<()> {
        let table = [Table::Schemas, Table::Positions][self.rng.below(2)];
        let key = format!("x{}", self.rng.below(4));
        self.tags += 1;
        let value = (self.rng.below(4) > 0).then(|| format!("v{}", self.tags));
        let expected = self.log().engine.table(table).get(&key).map(|entry| entry.version);
        let unit = Unit::Put { table, key: key.clone(), value: value.clone() };
        self.unit(unit, async |engine| engine.put(table, &key, value, expected).await.map(drop))
    }

    fn fence(&mut self) -> Result<()> {
        let owner = format!("w{}", self.rng.below(3));
        let epoch =
            self.log().engine.table(Table::Writers).get(&owner).map_or(0, |e| e.value.parse::<u64>().expect("number"));
        let value = Some((epoch + 1).to_string());
        let unit = Unit::Put { table: Table::Writers, key: owner.clone(), value };
        let fence = self.unit(unit, async |engine| engine.open_writer(&owner).await)?;
        assert_eq!(fence.epoch, epoch + 1);
        let stale = Fence { owner: owner.clone(), epoch };
        let batches = self.batches(2);
        let refused = self.log().run(async |engine| engine.append(batches, Some(stale)).await);
        match refused {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
            Ok(_) => panic!("a fenced writer wrote"),
        }
        self.fences.retain(|f| f.owner != fence.owner);
        self.fences.push(fence);
        Ok(())
    }

    /// A transaction without staging: batches and positions in one frame.
    fn commit_small(&mut self) -> Result<()> {
        let id = self.log().engine.begin_transaction();
        self.commit(Open { id, staged: Vec::new() })
    }

    fn transaction_step(&mut self) -> Result<()> {
        if self.open.len() < 2 && self.rng.coin() {
            let id = self.log().engine.begin_transaction();
            self.open.push(Open { id, staged: Vec::new() });
        }
        if self.open.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.open.len());
        match self.rng.below(8) {
            0 => {
                let gone = self.open.swap_remove(i);
                self.log().engine.abort(gone.id);
                Ok(())
            }
            1 | 2 => {
                let open = self.open.swap_remove(i);
                self.commit(open)
            }
            _ => {
                let batches = self.batches(3);
                let (id, copy) = (self.open[i].id, batches.clone());
                match self.log().run(async |engine| engine.stage(id, copy).await) {
                    Ok(()) => {
                        self.open[i].staged.push(batches);
                        Ok(())
                    }
                    // Beyond its limit, or its topic is gone: the caller gives up.
                    Err(error) if matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound) => {
                        let gone = self.open.swap_remove(i);
                        self.log().engine.abort(gone.id);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn commit(&mut self, open: Open) -> Result<()> {
        let live = self.model().acked.shown.partitions.clone();
        let mut inline = self.batches(2);
        self.tags += 1;
        let (owner, value) = (format!("o{}", self.rng.below(2)), format!("at {}", self.tags));
        let mut all: Vec<_> = open.staged.iter().flatten().cloned().collect();
        all.extend(inline.iter().cloned());
        let positions = vec![(format!("{owner}\u{1f}p"), value.clone())];
        inline.push((Table::Positions.partition(), position_batch(&owner, "p", &value)));
        let fence = if self.fences.is_empty() || self.rng.coin() {
            None
        } else {
            let i = self.rng.below(self.fences.len());
            Some(self.fences[i].clone())
        };
        let gone = all.iter().any(|(id, _)| !live.contains_key(id));
        self.model().pending.push(Unit::Data { batches: all, positions });
        let count = open.staged.len();
        match self.log().run(async |engine| engine.commit(open.id, count, inline, fence).await) {
            Ok(_) => {
                assert!(!gone, "a transaction was committed to a deleted topic");
                self.model().ack(1);
                Ok(())
            }
            // Aborted to free the commit log or for its age, or a topic of it was deleted.
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                self.model().pending.pop();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn expected_offsets(state: &State, batches: &[(PartitionId, Bytes)]) -> Vec<i64> {
    let mut ends: BTreeMap<PartitionId, i64> = state.ends.clone();
    let span = |b: &Bytes| i64::from(i32::from_be_bytes(b[23..27].try_into().expect("four"))) + 1;
    batches
        .iter()
        .map(|(id, bytes)| {
            let end = ends.get_mut(id).expect("live partition");
            *end += span(bytes);
            *end - span(bytes)
        })
        .collect()
}

/// Opens an image and compares. Ok tells how many unacknowledged units were there as well.
fn judge(image: &SimDisk, model: &Model, thorough: bool) -> Result<usize, String> {
    let clock = SimClock::default();
    let open = |disk: &SimDisk, when: &str| {
        let log = Stepped::open(disk, small(), &clock).map_err(|e| format!("{when}: open failed: {e:?}"))?;
        let damage = (&log.engine.recovery().damage, log.engine.damage());
        if !damage.0.is_empty() || !damage.1.is_empty() {
            return Err(format!("{when}: an honest crash was called damage: {damage:?}"));
        }
        let shown = show(&log.engine).map_err(|e| format!("{when}: read failed: {e:?}"))?;
        Ok((log, shown))
    };
    let (mut log, shown) = open(image, "after the crash")?;
    let mut state = model.acked.clone();
    let mut extra = 0;
    while state.shown != shown {
        let Some(unit) = model.pending.get(extra) else {
            return Err(format!(
                "shows no number of whole requests: compared with the {} acknowledged ones: {}; with all {} more: {}",
                "units",
                difference(&shown, &model.acked.shown),
                model.pending.len(),
                difference(&shown, &state.shown)
            ));
        };
        state.apply(unit);
        extra += 1;
    }
    if !thorough {
        return Ok(extra);
    }
    // What was read stays: nothing unsynced survives now.
    let (_, again) = open(&image.image(Keep::Nothing), "after a second crash at once")?;
    if again != shown {
        return Err(format!("what was read vanished at the second crash: {}", difference(&again, &shown)));
    }
    let ids: Vec<_> = state.shown.partitions.keys().copied().collect();
    for (i, id) in ids.into_iter().enumerate() {
        let bytes = batch(900_000 + i as u64, 2, 2000);
        let offsets = log.append(vec![(id, bytes.clone())]).map_err(|e| format!("append after recovery: {e:?}"))?;
        if offsets != [state.ends[&id]] {
            return Err(format!("append after recovery at {offsets:?}, wanted {}", state.ends[&id]));
        }
        state.apply(&Unit::Data { batches: vec![(id, bytes)], positions: Vec::new() });
    }
    log.create("after", 1).map_err(|e| format!("create after recovery: {e:?}"))?;
    state.apply(&Unit::Create { name: "after".into(), partitions: 1 });
    let (_, last) = open(&image.image(Keep::Nothing), "after a third crash")?;
    if last != state.shown {
        return Err(format!("appended after recovery, acknowledged, lost: {}", difference(&last, &state.shown)));
    }
    Ok(extra)
}

/// How hard a run looks.
#[derive(Clone, Copy)]
struct Effort {
    steps: usize,
    /// Images per call to the disk.
    images: u64,
    /// Every so many images, the recovery itself is crashed at each of its calls.
    nested_every: u64,
    thorough_every: u64,
}

const QUICK: Effort = Effort { steps: 110, images: 2, nested_every: 23, thorough_every: 5 };

fn keep(seed: u64, op: u64, image: u64) -> Keep {
    let mut rng = Rng(seed ^ op << 20 ^ image << 50);
    match (image, rng.below(4)) {
        (0, _) => Keep::Random(rng.next()),
        (_, 0) => Keep::Nothing,
        (_, 1) => Keep::Everything,
        (_, 2) => Keep::LastWrite,
        _ => Keep::Random(rng.next()),
    }
}

#[derive(Default)]
struct Tally {
    images: u64,
    nested: u64,
    extra: u64,
    fault: Option<String>,
}

/// Runs the workload of a seed and judges; the first violation is the error.
fn crash_everywhere(seed: u64, lie: Lie, effort: Effort) -> Result<String, String> {
    let mut work = Work::new(seed);
    work.disk.lie(lie);
    let model = Arc::clone(&work.model);
    let tally = Arc::new(Mutex::new(Tally::default()));
    let counts = Arc::clone(&tally);
    work.disk.observe(move |disk, op| {
        let model = model.lock().expect("whole").clone();
        let mut tally = counts.lock().expect("whole");
        for image in 0..effort.images {
            if tally.fault.is_some() {
                return;
            }
            let keep = keep(seed, op, image);
            tally.images += 1;
            let nested = tally.images.is_multiple_of(effort.nested_every);
            if nested && let Err(fault) = crash_recovery(disk, keep, &model, seed ^ op, &mut tally.nested) {
                tally.fault = Some(format!("seed {seed}, crash before call {op} keeping {keep:?}, {fault}"));
                return;
            }
            let thorough = tally.images.is_multiple_of(effort.thorough_every);
            match judge(&disk.image(keep), &model, thorough) {
                Ok(extra) => tally.extra += extra as u64,
                Err(fault) => {
                    tally.fault = Some(format!("seed {seed}, crash before call {op} keeping {keep:?}: {fault}"));
                }
            }
        }
    });
    let ran = work.run(effort.steps);
    work.disk.stop_observing();
    let ops = work.disk.ops();
    let mut tally = tally.lock().expect("whole");
    if let Some(fault) = tally.fault.take() {
        return Err(fault);
    }
    ran.map_err(|e| format!("seed {seed}: the workload itself failed: {e:?}"))?;
    judge(&work.disk.image(Keep::Nothing), &work.model(), true)
        .map_err(|f| format!("seed {seed}, after the end: {f}"))?;
    let Tally { images, nested, extra, .. } = *tally;
    Ok(format!(
        "seed {seed}: {ops} calls, {images} crashes, {nested} crashes of recoveries, {extra} unacknowledged kept"
    ))
}

/// Crashes the recovery of an image before each of its calls, and judges what the next recovery makes of it.
fn crash_recovery(disk: &SimDisk, first: Keep, model: &Model, seed: u64, count: &mut u64) -> Result<(), String> {
    let image = disk.image(first);
    let fault = Arc::new(Mutex::new((None, 0)));
    let (found, copy) = (Arc::clone(&fault), model.clone());
    image.observe(move |disk, op| {
        let mut found = found.lock().expect("whole");
        for choice in 0..2 {
            if found.0.is_some() {
                return;
            }
            found.1 += 1;
            let keep = keep(seed, op, choice);
            if let Err(fault) = judge(&disk.image(keep), &copy, false) {
                found.0 = Some(format!("then before call {op} of the recovery keeping {keep:?}: {fault}"));
            }
        }
    });
    let opened = Stepped::open(&image, small(), &SimClock::default());
    image.stop_observing();
    let mut fault = fault.lock().expect("whole");
    *count += fault.1;
    match (fault.0.take(), opened) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(format!("recovery failed: {error:?}")),
        (None, Ok(_)) => Ok(()),
    }
}

fn seeds(from: u64, quick: u64) {
    for seed in from..from + quick {
        match crash_everywhere(seed, Lie::None, QUICK) {
            Ok(told) => println!("{told}"),
            Err(fault) => panic!("{fault}"),
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_wherever_it_crashes() {
    seeds(100, 3);
}

#[test]
fn nothing_acknowledged_is_lost_wherever_it_crashes_2() {
    seeds(200, 3);
}

/// `TIDEMILL_SEEDS=1000 cargo test -p tidemill-core --release -- --ignored soak`
#[test]
#[ignore = "runs as long as TIDEMILL_SEEDS says"]
fn soak() {
    let seeds: u64 = std::env::var("TIDEMILL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let from: u64 = std::env::var("TIDEMILL_FIRST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    let effort = Effort { steps: 200, images: 4, nested_every: 11, thorough_every: 3 };
    for seed in from..from + seeds {
        match crash_everywhere(seed, Lie::None, effort) {
            Ok(told) => println!("{told}"),
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// The engine itself meets the failing disk: whatever call fails, nothing is acknowledged that is not there later.
#[test]
fn a_disk_that_goes_away_takes_nothing_acknowledged() {
    let total = {
        let mut work = Work::new(7);
        work.run(60).expect("an honest disk");
        work.disk.ops()
    };
    for op in (0..total).step_by(3) {
        let mut work = Work::new(7);
        work.disk.crash_at(op);
        let ran = work.run(60);
        work.log = None;
        // Failing to remove what is no longer needed is no failure; all else is.
        assert!(ran.is_err() || op + 40 > total, "call {op} of {total} failed and nobody noticed");
        let keep = keep(7, op, op % 3);
        if let Err(fault) = judge(&work.disk.image(keep), &work.model(), op % 4 == 0) {
            panic!("seed 7, call {op} failed, keeping {keep:?}: {fault}");
        }
    }
}

/// A disk that lies must turn the test red, or the test proves nothing.
fn caught(lie: Lie) {
    let effort = Effort { images: 3, nested_every: u64::MAX, ..QUICK };
    let fault = (1..20).find_map(|seed| {
        // What is found may also be an assertion of the workload, or a disk too broken to go on.
        let run = std::panic::catch_unwind(|| crash_everywhere(seed, lie, effort));
        match run {
            Ok(Ok(_)) => None,
            Ok(Err(fault)) => Some(fault),
            Err(_) => Some(format!("seed {seed}: a panic")),
        }
    });
    let fault = fault.unwrap_or_else(|| panic!("{lie:?} goes unnoticed"));
    println!("{lie:?}: {fault}");
}

#[test]
fn twin_commit_log_sync_does_nothing() {
    caught(Lie::CommitLogSync);
}

#[test]
fn twin_commit_log_sync_comes_late() {
    caught(Lie::LateSync);
}

#[test]
fn twin_superblock_sync_does_nothing() {
    caught(Lie::SuperblockSync);
}

#[test]
fn twin_segment_sync_does_nothing() {
    caught(Lie::SegmentSync);
}

#[test]
fn twin_manifest_sync_does_nothing() {
    caught(Lie::ManifestSync);
}

#[test]
fn twin_sync_dir_does_nothing() {
    caught(Lie::DirSync);
}

/// What a crash now leaves, whatever it keeps: no damage, and all that is shown.
fn survives(disk: &SimDisk, wanted: &Shown, what: &str) {
    for keep in [Keep::Nothing, Keep::Everything, Keep::Random(1)] {
        let opened = Stepped::open(&disk.image(keep), small(), &SimClock::default())
            .unwrap_or_else(|e| panic!("{what}, {keep:?}: {e:?}"));
        assert_eq!(opened.engine.recovery().damage, [], "{what}, {keep:?}");
        let shown = show(&opened.engine).expect("readable");
        assert_eq!(&shown, wanted, "{what}, {keep:?}: {}", difference(&shown, wanted));
    }
}

/// Replay must find what a transaction has staged, however long it stays open.
#[test]
fn a_checkpoint_does_not_pass_what_is_staged() {
    // Staged before the checkpoint begins, and between its steps.
    for steps_before in 0..6 {
        let disk = SimDisk::new(11);
        let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
        let ids = log.create("a", 2).expect("topic");
        log.append(vec![(ids[0], batch(1, 2, 2000))]).expect("append");
        for _ in 0..steps_before {
            log.stepper.checkpoint_step().expect("checkpoint");
        }
        let transaction = log.engine.begin_transaction();
        let staged = vec![(ids[0], batch(2, 2, 2000)), (ids[1], batch(3, 2, 2000))];
        log.run(async |engine| engine.stage(transaction, staged).await).expect("stage");
        log.append(vec![(ids[1], batch(4, 1, 3000))]).expect("append");
        log.stepper.checkpoint().expect("checkpoint");
        log.append(vec![(ids[0], batch(5, 1, 3000))]).expect("append");
        log.stepper.checkpoint().expect("checkpoint");
        let tail = vec![(ids[0], batch(6, 1, 100))];
        log.run(async |engine| engine.commit(transaction, 1, tail, None).await).expect("commit");
        let wanted = show(&log.engine).expect("whole");
        assert_eq!(wanted.partitions[&ids[0]].len(), 4);
        survives(&disk, &wanted, &format!("staged after {steps_before} steps"));
    }
}

/// Segments grow between their sync and the manifest: the manifest says what was synced.
#[test]
fn a_manifest_lists_what_is_synced() {
    let disk = SimDisk::new(12);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
    let ids = log.create("a", 3).expect("topic");
    for tag in 0..40 {
        for (i, id) in ids.iter().enumerate() {
            log.append(vec![(*id, batch(tag * 3 + i as u64, 1, 900))]).expect("append");
        }
        log.stepper.checkpoint_step().expect("checkpoint");
        // The segments are longer now than what was synced.
        log.stepper.write_behind(true).expect("segments");
        let wanted = show(&log.engine).expect("whole");
        survives(&disk, &wanted, &format!("round {tag}"));
    }
    let reopened = Stepped::open(&disk.image(Keep::Nothing), small(), &SimClock::default()).expect("opens");
    assert!(reopened.engine.recovery().checkpoint_lsn > 0, "no checkpoint came to its end");
}

/// A roll's note whose group never came, because all that was asked for was refused, ends the log like any other frame:
/// what stands behind it in a recycled file is known as the leaving it is.
#[test]
fn a_roll_without_its_group_is_the_end() {
    let disk = SimDisk::new(13);
    let mut log = Stepped::open(&disk, small(), &SimClock::default()).expect("new");
    let id = log.create("a", 1).expect("topic")[0];
    let stale = log.run(async |engine| engine.open_writer("w").await).expect("first");
    log.run(async |engine| engine.open_writer("w").await).expect("second");
    let mut rolls = 0;
    for tag in 0..300 {
        let before = disk.ops();
        let batches = vec![(id, batch(tag, 1, 20_000))];
        let fence = Some(stale.clone());
        let refused = log.run(async |engine| engine.append(batches, fence).await);
        assert_eq!(refused.expect_err("fenced").kind(), ErrorKind::Conflict);
        if disk.ops() > before {
            rolls += 1;
            for keep in [Keep::Everything, Keep::LastWrite, Keep::Nothing] {
                let opened = Stepped::open(&disk.image(keep), small(), &SimClock::default()).expect("opens");
                assert_eq!(opened.engine.recovery().cut, None, "round {tag}, {keep:?}");
                assert_eq!(opened.engine.recovery().damage, [], "round {tag}, {keep:?}");
            }
        }
        log.append(vec![(id, batch(tag, 1, 1000 + (tag as usize * 731) % 9000))]).expect("append");
        log.stepper.write_behind(true).expect("segments");
    }
    assert!(rolls > 8, "{rolls} rolls of recycled files");
}
