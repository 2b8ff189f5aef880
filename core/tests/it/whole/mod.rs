//! Everything at once: all that a log does, in one run that a seed decides, with crashes, failing syncs and full disks
//! between, compared with a plain model. The faults that the parts' own tests cannot find lie between the parts.

mod model;
mod view;
mod work;

use std::{path::Path, sync::Arc};

use tidemill_core::engine::inspect::verify;

use self::work::{Sabotage, Work};
use crate::{
    harness::{DIR, small},
    sim::Lie,
};

const STEPS: usize = 140;

/// Runs a seed; the first violation is the error, with the last steps.
fn run(seed: u64, steps: usize, sabotage: Sabotage, lie: Lie) -> Result<Work, String> {
    let mut work = Work::new(seed, sabotage);
    work.lie = lie;
    work.disk.lie(lie);
    let judged = run_steps(&mut work, steps);
    judged.map_err(|fault| {
        let told: Vec<_> = work.told.iter().map(String::as_str).collect();
        format!("seed {seed}: {fault}\nthe last steps:\n  {}", told.join("\n  "))
    })?;
    Ok(work)
}

fn run_steps(work: &mut Work, steps: usize) -> Result<(), String> {
    work.reopen(false)?;
    for _ in 0..3 {
        work.create_or_delete()?;
    }
    for step in 0..steps {
        work.step().map_err(|fault| format!("step {step}: {fault}"))?;
        if work.verdict.is_some() {
            return Ok(());
        }
    }
    work.reopen(true).map_err(|fault| format!("at the end: {fault}"))?;
    if work.verdict.is_some() {
        return Ok(());
    }
    work.log = None;
    let (storage, clock) = (Arc::new(work.disk.clone()), Arc::new(work.clock.clone()));
    let verified = verify(Path::new(DIR), small(), storage, clock).map_err(|e| format!("verify: {e:?}"))?;
    if !verified.is_sound() {
        return Err(format!("at the end: {verified:?}"));
    }
    Ok(())
}

fn seeds(range: std::ops::Range<u64>, steps: usize) {
    let mut tally = std::collections::BTreeMap::<_, u64>::new();
    for seed in range.clone() {
        let work = run(seed, steps, Sabotage::None, Lie::None).unwrap_or_else(|fault| panic!("{fault}"));
        for (what, count) in work.tally {
            *tally.entry(what).or_default() += count;
        }
    }
    println!("seeds {range:?}: {tally:?}");
}

#[test]
fn all_at_once_as_the_model_says() {
    seeds(0..120, STEPS);
}

#[test]
fn all_at_once_as_the_model_says_2() {
    seeds(1000..1120, STEPS);
}

/// `TIDEMILL_SEEDS=10000 cargo test -p tidemill-core --release -- --ignored whole::soak`
#[test]
#[ignore = "soak: runs as long as TIDEMILL_SEEDS says"]
fn soak() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (count, first) = (variable("TIDEMILL_SEEDS").unwrap_or(200), variable("TIDEMILL_FIRST_SEED").unwrap_or(10_000));
    let mut from = first;
    while from < first + count {
        let to = (from + 100).min(first + count);
        seeds(from..to, 2 * STEPS);
        from = to;
    }
}

/// Every promise that a disk can break, over a run that mixes everything until the first crash.
#[test]
fn a_disk_that_lies_shows_a_beginning_or_the_loss_is_told() {
    lies(0..15);
}

fn lies(range: std::ops::Range<u64>) {
    let all = [
        Lie::CommitLogSync,
        Lie::LateSync,
        Lie::SuperblockSync,
        Lie::SegmentSync,
        Lie::CompactedSync,
        Lie::ManifestSync,
        Lie::DirSync,
    ];
    for lie in all {
        let mut tally = std::collections::BTreeMap::<_, u64>::new();
        for seed in range.clone() {
            let work = run(seed, STEPS, Sabotage::None, lie).unwrap_or_else(|fault| panic!("{lie:?}, {fault}"));
            *tally.entry(work.verdict.expect("it crashed")).or_default() += 1;
        }
        println!("{lie:?}: {tally:?}");
    }
}

/// A checker that cannot fail would prove nothing: what the test itself does wrong is found, and called by its name.
fn found(sabotage: Sabotage, name: &str) {
    let faults = (0..60).filter_map(|seed| run(seed, STEPS, sabotage, Lie::None).err());
    let mut faults = faults.inspect(|fault| println!("{}", fault.lines().next().unwrap_or_default()));
    assert!(faults.any(|fault| fault.contains(name)), "{sabotage:?} goes unnoticed");
}

#[test]
fn twin_a_record_that_vanishes_is_found() {
    found(Sabotage::DropRecord, "is missing");
}

#[test]
fn twin_an_aborted_transaction_that_counts_is_found() {
    found(Sabotage::CommitAborted, "readers of committed records");
}

#[test]
fn twin_a_duplicate_with_another_offset_is_found() {
    found(Sabotage::ForgetDuplicate, "and was at");
}

#[test]
fn twin_deleted_records_that_come_back_are_found() {
    found(Sabotage::Resurrect, "begins below");
}

#[test]
fn twin_half_a_request_is_found() {
    found(Sabotage::SplitRequest, "half of a request");
}
