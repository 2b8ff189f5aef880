//! `orders_per_product` is killed at random moments: while it opens, while it restores, while orders are written and
//! windows close, while it drains. Each order and each result must be there once.
//!
//! `TIDEMILL_ROUNDS=200 TIDEMILL_SEED=3` chooses how long and from where.

use std::time::{Duration, Instant};

use crate::{
    Random,
    checker::{Found, assert_finds_each_fault},
    program::{Folder, Program},
};

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seed = env("TIDEMILL_SEED").unwrap_or(now.as_nanos() as u64 % 1_000_000);
    println!("TIDEMILL_SEED={seed}");
    seed
}

/// What the example says of itself: `2000 orders written, 1980 counted here in 7 epochs`.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    written: u64,
    counted: u64,
    epochs: u64,
}

impl Progress {
    fn of(line: &str) -> Option<Self> {
        let (written, rest) = line.split_once(" orders written, ")?;
        let (counted, rest) = rest.split_once(" counted here in ")?;
        let epochs = rest.strip_suffix(" epochs")?;
        let number = |text: &str| text.parse().ok();
        Some(Self { written: number(written)?, counted: number(counted)?, epochs: number(epochs)? })
    }
}

/// A log, and lives of the example over it.
pub struct Campaign {
    folder: Folder,
    random: Random,
    orders: u64,
    batch: u64,
    /// How long the first life took from its start to its first word.
    opening: Duration,
    tally: Tally,
}

/// Where the kills hit.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Before it said anything: while the log was opened.
    opening: u64,
    /// Before the job had counted anything: while it restored its state.
    restoring: u64,
    /// While there were orders to write.
    working: u64,
    /// After the last order was written.
    draining: u64,
    /// Too late: it had ended.
    ended: u64,
    epochs: u64,
    counted: u64,
}

impl Campaign {
    pub fn new(orders: u64, batch: u64, seed: u64) -> Self {
        let (folder, random) = (Folder::new(), Random(seed));
        Self { folder, random, orders, batch, opening: Duration::from_millis(50), tally: Tally::default() }
    }

    fn start(&self) -> Program {
        let (orders, batch) = (self.orders.to_string(), self.batch.to_string());
        let data_dir = self.folder.path().to_str().unwrap();
        Program::start("orders_per_product", &["--data-dir", data_dir, "--orders", &orders, "--batch", &batch])
    }

    /// A life that is ended while it opens, or some lines of progress later.
    pub fn round(&mut self) {
        let mut program = self.start();
        if self.random.below(4) == 0 {
            let longest = self.opening.as_micros() as u64 * 3 / 2;
            self.kill(program, longest);
            return;
        }
        for line in 0..1 + self.random.below(4) {
            program.line();
            if line == 0 {
                self.opening = program.age();
            }
        }
        self.kill(program, 25_000);
    }

    /// A life that is ended after its last order, so long after it as the whole end may take.
    fn last_round(&mut self, draining: Duration) {
        let mut program = self.start();
        self.wait_for_the_last_order(&mut program);
        self.kill(program, draining.as_micros() as u64);
    }

    fn wait_for_the_last_order(&self, program: &mut Program) {
        while program.line().and_then(Progress::of).is_some_and(|progress| progress.written < self.orders) {}
    }

    fn kill(&mut self, mut program: Program, longest_us: u64) {
        // The random moment is the point; nothing waits for it.
        std::thread::sleep(Duration::from_micros(self.random.below(longest_us)));
        let was_running = program.kill();
        let last = program.said.iter().rev().find_map(|line| Progress::of(line));
        let tally = &mut self.tally;
        match last {
            _ if !was_running => tally.ended += 1,
            None => tally.opening += 1,
            Some(Progress { counted: 0, epochs: 0, .. }) => tally.restoring += 1,
            Some(Progress { written, .. }) if written < self.orders => tally.working += 1,
            Some(_) => tally.draining += 1,
        }
        let last = last.unwrap_or_default();
        tally.epochs += last.epochs;
        tally.counted += last.counted;
    }

    /// Lets the last life end by itself, and checks everything.
    pub fn finish(self) -> (Found, Folder) {
        let mut program = self.start();
        let (status, errors) = program.end();
        assert!(status.success(), "{status}: {errors}");
        let last = program.said.iter().rev().find_map(|line| Progress::of(line)).expect("progress");
        let found = Found::read(self.folder.path());
        let (orders, results) = (found.orders.len(), found.results.len());
        println!("the last life: {last:?}; {orders} orders, {results} results");
        let faults = found.faults(self.orders);
        assert!(faults.is_empty(), "{} faults, the first: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
        (found, self.folder)
    }
}

fn rounds_while_working(rounds: u64, orders: u64) {
    let began = Instant::now();
    let mut campaign = Campaign::new(orders, 40, seed());
    for _ in 0..rounds {
        campaign.round();
    }
    println!("killed in {:.1} s: {:?}", began.elapsed().as_secs_f64(), campaign.tally);
    let Tally { opening, restoring, working, .. } = campaign.tally;
    assert!(working > 0 && working + restoring >= rounds / 2, "few kills hit work in flight: {:?}", campaign.tally);
    assert!(opening + restoring > 0, "no kill hit an opening: {:?}", campaign.tally);
    let (found, _folder) = campaign.finish();
    let (first, last, behind) = found.reach();
    println!("{first} orders on the first ms of a window, {last} on the last, up to {behind} ms out of order");
    assert!(first > 0 && last > 0, "no order lies on a boundary");
    assert!((1_900..=2_000).contains(&behind), "orders are up to {behind} ms out of order");
    println!("{:.1} s in all", began.elapsed().as_secs_f64());
}

/// Each round has a log of its own, since a log ends once.
fn rounds_while_draining(rounds: u64) {
    let (orders, mut tally) = (3_000, Tally::default());
    let campaign = Campaign::new(orders, 100, seed());
    let mut program = campaign.start();
    campaign.wait_for_the_last_order(&mut program);
    let written = Instant::now();
    program.end();
    let mut draining = written.elapsed();
    let mut random = campaign.random;
    for _ in 0..rounds {
        let mut campaign = Campaign::new(orders, 100, random.next());
        campaign.tally = tally;
        campaign.last_round(draining);
        if campaign.tally.ended > tally.ended {
            draining = draining * 2 / 3;
        }
        tally = campaign.tally;
        campaign.finish();
    }
    println!("killed at the end, within {draining:?}: {tally:?}");
    assert!(tally.draining + tally.restoring > 0, "no kill hit the end");
}

#[test]
fn each_order_counts_once_however_often_it_is_killed() {
    rounds_while_working(env("TIDEMILL_ROUNDS").unwrap_or(20), 40_000);
}

#[test]
fn windows_close_once_though_it_is_killed_at_the_end() {
    rounds_while_draining(4);
}

#[test]
fn the_checker_finds_each_fault() {
    let (found, _folder) = Campaign::new(2_000, 100, 1).finish();
    assert_finds_each_fault(&found, 2_000);
}

#[test]
#[ignore = "soak: some minutes of kills"]
fn soak_each_order_counts_once() {
    let rounds = env("TIDEMILL_ROUNDS").unwrap_or(200);
    rounds_while_working(rounds, rounds * 5_000);
    rounds_while_draining(rounds);
}

#[test]
fn a_second_program_is_told_who_owns_the_log() {
    let campaign = Campaign::new(10_000_000, 100, 1);
    let mut owner = campaign.start();
    owner.line();
    let (status, errors) = campaign.start().end();
    assert_eq!(status.code(), Some(4), "{errors}");
    assert!(errors.contains("is owned by another process: pid") && errors.contains("orders_per_product"), "{errors}");
    owner.kill();
}
