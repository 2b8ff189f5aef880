//! Crash before every call to the disk that compaction makes, whatever of the unsynced is kept: no newest record of a key is
//! lost, nothing old comes back, and the next opening goes on.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tidemill_core::{Result, clock::Clock, topic::PartitionId};

use super::keyed::{History, compact, config, create, encode, random_records, records, spec};
use crate::{
    harness::{DIR, Stepped},
    sim::{Keep, Lie, Rng, SimClock, SimDisk},
};

const DELAY: Duration = Duration::from_secs(40);

/// What is acknowledged, and the batch that is on its way.
#[derive(Debug, Clone, Default)]
struct Known {
    partitions: BTreeMap<PartitionId, History>,
    pending: Option<(PartitionId, History)>,
}

/// Opens an image and compares; then goes on with it.
fn judge(image: &SimDisk, known: &Known, clock: &SimClock, thorough: bool) -> Result<(), String> {
    let open = |disk: &SimDisk, when: &str| -> Result<Stepped, String> {
        let log = Stepped::open(disk, config(), clock).map_err(|e| format!("{when}: open failed: {e:?}"))?;
        let damage = (log.engine.recovery().damage.len(), log.engine.damage());
        if damage.0 > 0 || !damage.1.is_empty() {
            return Err(format!("{when}: an honest crash was called damage: {damage:?}"));
        }
        for (id, acked) in &known.partitions {
            let found = records(&log.engine, *id).map_err(|e| format!("{when}: read failed: {e:?}"))?;
            let end = log.engine.cut(&[*id]).map_err(|e| e.to_string())?[0].durable_offset;
            let pending = known.pending.as_ref().filter(|(other, history)| other == id && history.end == end);
            let wanted = pending.map_or(acked, |(_, history)| history);
            if end != wanted.end {
                return Err(format!("{when}: partition {} ends at {end}, wanted {}", id.0, wanted.end));
            }
            if let Some(fault) = wanted.fault(&found, clock.now().0) {
                return Err(format!("{when}: partition {}: {fault}", id.0));
            }
        }
        Ok(log)
    };
    let mut log = open(image, "after the crash")?;
    if thorough {
        compact(&mut log);
        if log.engine.compaction().given_up > 0 {
            return Err(format!("a pass after the crash was given up: {:?}", log.engine.housekeeping()));
        }
        leavings(image)?;
        open(&image.image(Keep::Nothing), "after a pass and a second crash")?;
    }
    Ok(())
}

/// A base offset has one file once the sweep and a checkpoint were there.
fn leavings(disk: &SimDisk) -> Result<(), String> {
    let mut seen: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let is_segment =
        |path: &Path| path.starts_with(Path::new(DIR).join("topics")) && path.extension().is_some_and(|e| e == "log");
    for (path, _) in disk.files().into_iter().filter(|(path, _)| is_segment(path)) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(other) = seen.insert(path.with_file_name(&name[..20]), path.clone()) {
            return Err(format!("{} and {} are both there", other.display(), path.display()));
        }
    }
    Ok(())
}

/// As an engine would that removes replaced files at once: what a newer generation of the same base offset replaces.
fn remove_early(disk: &SimDisk) {
    let files: Vec<PathBuf> = disk.files().into_iter().map(|(path, _)| path).collect();
    for path in &files {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(generation) = name.strip_suffix(".log").and_then(|stem| stem.split_once('.')?.1.parse::<u32>().ok())
        else {
            continue;
        };
        // Only one that its index shows to be whole.
        if !files.contains(&path.with_extension("index")) {
            continue;
        }
        for older in 0..generation {
            let older =
                if older == 0 { format!("{}.log", &name[..20]) } else { format!("{}.{older}.log", &name[..20]) };
            if files.contains(&path.with_file_name(&older)) {
                disk.unlink(&path.with_file_name(&older));
            }
        }
    }
}

#[derive(Default)]
struct Tally {
    images: u64,
    fault: Option<String>,
}

fn crash_everywhere(seed: u64, lie: Lie, early: bool) -> Result<String, String> {
    let (disk, clock, mut rng) = (SimDisk::new(seed), SimClock::default(), Rng(seed));
    disk.lie(lie);
    let known = Arc::new(Mutex::new(Known::default()));
    let mut log = Stepped::open(&disk, config(), &clock).map_err(|e| e.to_string())?;
    let ids = ["a", "b"].map(|name| create(&mut log, name, &spec(|config| config.tombstone_delay = DELAY)));
    let delay = DELAY.as_millis() as i64;
    for id in ids {
        known.lock().expect("whole").partitions.insert(id, History { delay, ..History::default() });
    }
    let tally = Arc::new(Mutex::new(Tally::default()));
    let (counts, model, time) = (Arc::clone(&tally), Arc::clone(&known), clock.clone());
    disk.observe(move |disk, op| {
        let known = model.lock().expect("whole").clone();
        let mut tally = counts.lock().expect("whole");
        if tally.fault.is_some() {
            return;
        }
        let mut rng = Rng(seed ^ op << 20);
        let keep = [Keep::Nothing, Keep::Everything, Keep::LastWrite, Keep::Random(rng.next())][rng.below(4)];
        tally.images += 1;
        let thorough = tally.images.is_multiple_of(4);
        let fault = judge(&disk.image(keep), &known, &time, thorough).err();
        tally.fault = fault.map(|fault| format!("seed {seed}, crash before call {op} keeping {keep:?}: {fault}"));
    });
    let mut passes = 0;
    let mut work = || -> Result<()> {
        for _ in 0..90 {
            match rng.below(20) {
                0..8 => {
                    let id = ids[rng.below(2)];
                    for _ in 0..1 + rng.below(8) {
                        let batch = random_records(&mut rng, 25, clock.now().0);
                        let mut after = known.lock().expect("whole").partitions[&id].clone();
                        after.add(&batch);
                        known.lock().expect("whole").pending = Some((id, after.clone()));
                        log.append(vec![(id, encode(&batch))])?;
                        let mut known = known.lock().expect("whole");
                        known.partitions.insert(id, after);
                        known.pending = None;
                    }
                }
                8..10 => log.stepper.write_behind(true)?,
                10 => log.stepper.checkpoint()?,
                11..14 => (0..rng.below(5)).try_for_each(|_| log.stepper.checkpoint_step())?,
                14..18 => {
                    for _ in 0..rng.below(12) {
                        log.stepper.housekeep_step();
                        if early {
                            remove_early(&disk);
                        }
                    }
                }
                18 => clock.advance(Duration::from_secs(15)),
                _ => {
                    passes += log.engine.compaction().passes;
                    if rng.coin() {
                        log.stepper.close()?;
                    }
                    log = Stepped::open(&disk, config(), &clock)?;
                }
            }
        }
        compact(&mut log);
        Ok(())
    };
    let ran = work();
    disk.stop_observing();
    let mut tally = tally.lock().expect("whole");
    if let Some(fault) = tally.fault.take() {
        return Err(fault);
    }
    ran.map_err(|e| format!("seed {seed}: the workload itself failed: {e:?}"))?;
    passes += log.engine.compaction().passes;
    judge(&disk.image(Keep::Nothing), &known.lock().expect("whole"), &clock, true)
        .map_err(|f| format!("seed {seed}, after the end: {f}"))?;
    leavings(&disk)?;
    Ok(format!("seed {seed}: {} calls, {} crashes, {passes} passes", disk.ops(), tally.images))
}

#[test]
fn no_newest_record_is_lost_wherever_it_crashes() {
    for seed in 500..506 {
        println!("{}", crash_everywhere(seed, Lie::None, false).unwrap_or_else(|fault| panic!("{fault}")));
    }
}

/// `TIDEMILL_SEEDS=100 cargo test -p tidemill-core --release -- --ignored soak_compaction`
#[test]
#[ignore = "runs as long as TIDEMILL_SEEDS says"]
fn soak_compaction() {
    let seeds: u64 = std::env::var("TIDEMILL_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
    let from: u64 = std::env::var("TIDEMILL_FIRST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_000);
    for seed in from..from + seeds {
        println!("{}", crash_everywhere(seed, Lie::None, false).unwrap_or_else(|fault| panic!("{fault}")));
    }
}

fn caught(lie: Lie, early: bool) {
    let fault = (600..620).find_map(|seed| {
        let run = std::panic::catch_unwind(|| crash_everywhere(seed, lie, early));
        run.map_or_else(|_| Some(format!("seed {seed}: a panic")), Result::err)
    });
    println!("{}", fault.expect("goes unnoticed"));
}

#[test]
fn twin_old_files_that_go_before_the_manifest_are_found() {
    caught(Lie::None, true);
}

#[test]
fn twin_new_files_that_are_not_synced_are_found() {
    caught(Lie::CompactedSync, false);
}
