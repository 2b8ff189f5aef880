//! Kills the worker at random moments, starts it again on the same folder, reads all to the end, and checks what was seen.

use std::{
    collections::BTreeSet,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tidemill_core::topic::TopicSpec;

use super::{
    Anomaly, Finding, History, Kind, Op, Outcome, Poll,
    ledger::{self, Past},
    worker::{self, DIR, KAFKA, PARTITIONS, ROUND, SEED, TOPIC, TWIN, Twin},
};
use crate::{harness::TempDir, sim::Rng};

const LATE: Duration = Duration::from_secs(60);

fn start(dir: &Path, round: u64, twin: Twin, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", "history::worker::worker", "--ignored", "--nocapture"]);
    let twin = Twin::ALL.iter().position(|t| *t == twin).expect("listed");
    command.env(DIR, dir).env(ROUND, round.to_string()).env(TWIN, twin.to_string()).env(SEED, seed.to_string());
    let told = File::create(dir.join("told")).expect("a file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(told).spawn().expect("started")
}

fn check_alive(child: &mut Child, dir: &Path) {
    if let Some(status) = child.try_wait().expect("asked") {
        panic!(
            "the worker ended by itself: {status}\n{}",
            std::fs::read_to_string(dir.join("told")).unwrap_or_default()
        );
    }
}

/// Lets it live until `moment`, counted from its first line, or in one round of five from its start: then recovery is killed.
fn live_and_die(mut child: Child, dir: &Path, round: u64, moment: Duration) {
    let begun = Instant::now();
    while round % 5 != 4 && std::fs::metadata(ledger::path(dir, round)).map_or(0, |file| file.len()) == 0 {
        check_alive(&mut child, dir);
        assert!(begun.elapsed() < LATE, "the worker does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(moment);
    check_alive(&mut child, dir);
    child.kill().expect("killed");
    child.wait().expect("gone");
}

/// Reads all partitions to their ends, as a process of its own.
async fn read_all(dir: &Path, process: u32, begun: u64) -> Op {
    let engine = worker::open(dir);
    assert_eq!(engine.recovery().damage, [], "a kill damages nothing");
    for process in KAFKA {
        engine.init_producer(Some(&worker::transactional_id(process)), LATE, None).await.expect("opened");
    }
    let mut polls = Vec::new();
    for (partition, id) in (0..).zip(engine.topic(TOPIC).expect("made").partitions) {
        let (mut next, mut records) = (0, Vec::new());
        loop {
            let (batches, to) = engine.read_shown(id, next, 20_000, i64::MAX).expect("readable");
            records.extend(batches.iter().flat_map(worker::records));
            if to == next {
                break;
            }
            next = to;
        }
        polls.push(Poll { partition, from: 0, next, records, to_end: true, at: begun + 1 });
    }
    engine.close().expect("in order");
    let (kind, outcome) = (Kind::Plain, Outcome::Ok);
    Op { process, kind, outcome, begun, asked: None, ended: begun + 1, sends: Vec::new(), polls }
}

async fn run(name: &str, twin: Twin, rounds: u64, seed: u64) -> (History, Vec<Finding>) {
    let dir = TempDir::new(name);
    let engine = worker::open(&dir.0);
    engine.create_topic(TOPIC, &TopicSpec::partitions(PARTITIONS)).await.expect("made");
    engine.close().expect("in order");
    drop(engine);
    let mut rng = Rng(seed);
    // A twin has time to show what it does.
    let least_ms = if twin == Twin::Sound { 50 } else { 400 };
    for round in 0..rounds {
        let moment = Duration::from_millis((least_ms + rng.below(500 - least_ms)) as u64);
        live_and_die(start(&dir.0, round, twin, seed), &dir.0, round, moment);
    }
    let Past { mut history, sent_again, .. } = Past::load(&dir.0, rounds);
    let now = history.ops.iter().map(|op| op.ended).max().unwrap_or(0);
    // Twice: as the last kill left it, and after a clean stop.
    for again in 0..2 {
        history.ops.push(read_all(&dir.0, 1000 + again, now + 1 + 2 * u64::from(again)).await);
    }
    history.is_read_to_the_end = true;
    let findings = history.findings();
    let seen: BTreeSet<_> =
        history.ops.iter().flat_map(|op| &op.polls).flat_map(|poll| &poll.records).map(|r| r.1).collect();
    let in_doubt = history.ops.iter().filter(|op| op.outcome == Outcome::Unknown);
    let happened = in_doubt.filter(|op| op.sends.iter().any(|send| seen.contains(&send.value))).count();
    let count = |outcome| history.ops.iter().filter(|op| !op.sends.is_empty() && op.outcome == outcome).count();
    println!(
        "{name}: seed {seed}, {rounds} kills, {} sends acknowledged, {} failed, {} in doubt ({happened} happened, \
         {sent_again} more were sent again), {} polls, {} findings",
        count(Outcome::Ok),
        count(Outcome::Failed),
        count(Outcome::Unknown),
        history.ops.iter().map(|op| op.polls.len()).sum::<usize>(),
        findings.len()
    );
    (history, findings)
}

async fn is_sound(name: &str, rounds: u64, seed: u64) {
    let (history, findings) = run(name, Twin::Sound, rounds, seed).await;
    for finding in findings.iter().take(5) {
        println!("{finding:?}");
        finding.ops.iter().for_each(|i| println!("  {i}: {:?}", history.ops[*i]));
    }
    assert!(findings.is_empty(), "{} findings, seed {seed}", findings.len());
    for kind in [Kind::Plain, Kind::AtOnce, Kind::AsTheyCome] {
        let done = history.ops.iter().any(|op| op.kind == kind && !op.sends.is_empty() && op.outcome == Outcome::Ok);
        assert!(done, "nothing was done: {kind:?}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn histories_over_kills_are_sound() {
    is_sound("history", 8, number("TIDEMILL_SEED", 1)).await;
}

/// `TIDEMILL_ROUNDS=100 cargo test -p tidemill-core --test it -- --ignored --nocapture soak_history`
#[tokio::test]
#[ignore = "soak: runs as long as TIDEMILL_ROUNDS says"]
async fn soak_history() {
    is_sound("history-soak", number("TIDEMILL_ROUNDS", 100), number("TIDEMILL_SEED", 1)).await;
}

async fn anomalies(name: &str, twin: Twin) -> BTreeSet<Anomaly> {
    let (_, findings) = run(name, twin, 2, 1).await;
    findings.into_iter().map(|finding| finding.anomaly).collect()
}

#[tokio::test]
async fn a_log_that_answers_early_is_found() {
    let found = anomalies("history-early", Twin::AnswersEarly).await;
    assert!(found.contains(&Anomaly::Unseen) && found.contains(&Anomaly::Stale), "{found:?}");
}

#[tokio::test]
async fn a_log_that_shows_what_is_aborted_is_found() {
    let found = anomalies("history-shows", Twin::ShowsAll).await;
    assert!(found.contains(&Anomaly::AbortedRead), "{found:?}");
}

#[tokio::test]
async fn a_log_that_drops_a_batch_is_found() {
    let found = anomalies("history-drops", Twin::Drops).await;
    assert_eq!(found, BTreeSet::from([Anomaly::SkippedPoll]));
}
