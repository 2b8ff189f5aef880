//! The process that is killed: an engine with producers of each kind, and pollers, that write what they do into a ledger.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    batch::{Batch, BatchBuilder, Marker},
    clock::SystemClock,
    engine::{Config, Engine, ProducerIdentity},
    record::{Record, Timestamp},
    storage::OsStorage,
    topic::PartitionId,
};

use super::{
    Outcome, Partition, Value,
    ledger::{Ledger, Past},
};
use crate::{harness::small, sim::Rng};

pub const DIR: &str = "TIDEMILL_HISTORY_DIR";
pub const ROUND: &str = "TIDEMILL_HISTORY_ROUND";
pub const TWIN: &str = "TIDEMILL_HISTORY_TWIN";
pub const SEED: &str = "TIDEMILL_HISTORY_SEED";
pub const TOPIC: &str = "history";
pub const PARTITIONS: u32 = 4;
/// Kafka's transactions write into the first partitions only: in the others nothing holds readers back.
const MIXED: u32 = 2;
pub const KAFKA: std::ops::Range<u32> = 6..8;
const POLLERS: std::ops::Range<u32> = 8..11;
const TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than anybody lets it live.
const LIFE: Duration = Duration::from_secs(30);

/// What a worker does wrong, so that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Twin {
    /// Nothing.
    Sound,
    /// It answers before the commit.
    AnswersEarly,
    /// It shows what is not committed.
    ShowsAll,
    /// It drops a batch of a poll.
    Drops,
}

impl Twin {
    pub const ALL: [Self; 4] = [Self::Sound, Self::AnswersEarly, Self::ShowsAll, Self::Drops];
}

pub fn open(dir: &Path) -> Engine {
    let config = Config { commit_log_bytes: 512 << 10, segment_bytes: 32 << 10, ..small() };
    let clock = Arc::new(SystemClock::default());
    Engine::open(&dir.join("data"), config, Arc::new(OsStorage), clock).expect("opens")
}

pub fn transactional_id(process: u32) -> String {
    format!("t{process}")
}

/// The records of a batch: offset and value.
pub fn records(batch: &Batch) -> Vec<(i64, Value)> {
    let value = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).expect("text");
        text.split_once('/').expect("a value").0.parse().expect("a number")
    };
    batch.records().map(|record| record.expect("sound")).map(|r| (r.offset, value(r.value.expect("there")))).collect()
}

fn builder(values: &[Value]) -> BatchBuilder {
    let mut builder = BatchBuilder::default();
    for value in values {
        let text = format!("{value}/{}", "x".repeat((*value % 1500) as usize));
        builder.push(&Record::new(None, Bytes::from(text)), Timestamp(7)).expect("small");
    }
    builder
}

struct Client {
    engine: Arc<Engine>,
    ledger: Arc<Ledger>,
    ids: Vec<PartitionId>,
    process: u32,
    round: u64,
    twin: Twin,
    rng: Rng,
    count: u64,
    cursors: Vec<i64>,
}

/// Values for each of some partitions.
type Sends = Vec<(Partition, Vec<Value>)>;

impl Client {
    fn begin(&mut self, kind: &str) -> u64 {
        self.count += 1;
        let op = self.round << 40 | u64::from(self.process) << 32 | self.count;
        self.ledger.write(&format!("b {op} {} {kind}\n", self.process));
        op
    }

    /// Values for one partition or two of the first `partitions`, noted as about to be sent.
    fn sends(&mut self, op: u64, partitions: u32) -> Sends {
        let first = self.rng.below(partitions as usize) as u32;
        let mut chosen = vec![first];
        if self.rng.coin() {
            chosen.push((first + 1) % partitions);
        }
        let mut next = op << 8;
        let sends = chosen.into_iter().map(|partition| {
            let from = next;
            next += 1 + self.rng.below(3) as u64;
            (partition, (from..next).collect())
        });
        let sends: Sends = sends.collect();
        self.note(op, &sends);
        sends
    }

    fn note(&self, op: u64, sends: &Sends) {
        let mut lines = String::new();
        for (partition, values) in sends {
            values.iter().for_each(|value| writeln!(lines, "s {op} {partition} {value}").expect("text"));
        }
        self.ledger.write(&lines);
    }

    fn batches(&self, sends: &[(Partition, Vec<Value>)]) -> Vec<(PartitionId, Bytes)> {
        sends.iter().map(|(p, values)| (self.ids[*p as usize], builder(values).finish())).collect()
    }

    fn asks(&self, op: u64) {
        self.ledger.write(&format!("c {op}\n"));
    }

    fn offsets(op: u64, sends: &[(Partition, Vec<Value>)], base_offsets: &[i64]) -> String {
        let mut lines = String::new();
        for ((_, values), base) in sends.iter().zip(base_offsets) {
            for (value, offset) in values.iter().zip(*base..) {
                writeln!(lines, "o {op} {value} {offset}").expect("text");
            }
        }
        lines
    }

    fn ends(&self, op: u64, before: &str, how: &str) {
        self.ledger.write(&format!("{before}e {op} {how}\n"));
    }

    /// Appends to several partitions at once.
    async fn append(mut self) {
        loop {
            let op = self.begin("at-once");
            let sends = self.sends(op, PARTITIONS);
            self.asks(op);
            if self.twin == Twin::AnswersEarly {
                self.ends(op, "", "ok");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let outcome = self.engine.append(self.batches(&sends), None).await.expect("appended");
            if self.twin != Twin::AnswersEarly {
                self.ends(op, &Self::offsets(op, &sends, &outcome.base_offsets), "ok");
            }
        }
    }

    /// An idempotent producer, which sends again what was not answered, also over kills.
    async fn produce(mut self, past: Arc<Past>) {
        let partition = self.process % PARTITIONS;
        let id = self.ids[partition as usize];
        let (mut sequence, mut pending) = (0, None);
        for (op, name) in past.history.ops.iter().zip(&past.names).filter(|(op, _)| op.process == self.process) {
            match op.outcome {
                Outcome::Ok => sequence += op.sends.len() as i32,
                Outcome::Unknown => pending = Some((*name, op.sends.iter().map(|send| send.value).collect::<Vec<_>>())),
                Outcome::Failed => {}
            }
        }
        let (producer, epoch) = match past.identities.get(&self.process) {
            Some(identity) => *identity,
            None => {
                let ProducerIdentity { id, epoch } = self.engine.init_producer(None, TIMEOUT, None).await.expect("new");
                self.ledger.write(&format!("i {} {id} {epoch}\n", self.process));
                (id, epoch)
            }
        };
        loop {
            let (op, values) = match pending.take() {
                Some(pending) => pending,
                None => {
                    let op = self.begin("plain");
                    let values: Vec<_> = (op << 8..(op << 8) + 1 + self.rng.below(3) as u64).collect();
                    self.note(op, &vec![(partition, values.clone())]);
                    (op, values)
                }
            };
            self.asks(op);
            let batch = builder(&values).finish_as(producer, epoch, sequence, false);
            let send =
                async || self.engine.produce(vec![(id, batch.clone())]).await.remove(0).expect("produced").base_offset;
            let offset = send().await;
            if self.rng.below(4) == 0 {
                assert_eq!(send().await, offset, "sent again");
            }
            sequence += values.len() as i32;
            self.ends(op, &Self::offsets(op, &[(partition, values)], &[offset]), "ok");
        }
    }

    /// Transactions of the log's own.
    async fn transact(mut self) {
        loop {
            let op = self.begin("at-once");
            if self.rng.coin() {
                self.poll(op, false);
            }
            let sends = self.sends(op, PARTITIONS);
            let transaction = self.engine.begin_transaction();
            let (staged, rest) = sends.split_at(self.rng.below(sends.len() + 1));
            for send in self.batches(staged) {
                self.engine.stage(transaction, vec![send]).await.expect("staged");
            }
            if self.rng.below(4) == 0 {
                self.engine.abort(transaction);
                self.ends(op, "", "failed");
                continue;
            }
            self.asks(op);
            let committed = self.engine.commit(transaction, staged.len(), self.batches(rest), None).await;
            self.ends(op, &Self::offsets(op, rest, &committed.expect("committed").base_offsets), "ok");
        }
    }

    /// Transactions of Kafka's protocol. The identity is new in each process: what an earlier one left open is aborted.
    async fn transact_as_kafka(mut self, producer: ProducerIdentity) {
        let id = transactional_id(self.process);
        let mut sequences = [0; MIXED as usize];
        loop {
            let op = self.begin("kafka");
            if self.rng.coin() {
                self.poll(op, false);
            }
            let sends = self.sends(op, MIXED);
            let ids: Vec<_> = sends.iter().map(|(p, _)| self.ids[*p as usize]).collect();
            self.engine.add_partitions_to_transaction(&id, producer, &ids).await.expect("added");
            for send in &sends {
                let sequence = &mut sequences[send.0 as usize];
                let batch = builder(&send.1).finish_as(producer.id, producer.epoch, *sequence, true);
                *sequence += send.1.len() as i32;
                let produced = self.engine.produce(vec![(self.ids[send.0 as usize], batch)]).await.remove(0);
                let offset = produced.expect("produced").base_offset;
                self.ledger.write(&Self::offsets(op, std::slice::from_ref(send), &[offset]));
            }
            let marker = if self.rng.below(4) == 0 { Marker::Abort } else { Marker::Commit };
            if marker == Marker::Commit {
                self.asks(op);
            }
            self.engine.end_transaction(&id, producer, marker).await.expect("ended");
            self.ends(op, "", if marker == Marker::Commit { "ok" } else { "failed" });
        }
    }

    /// Reads on in some partition, a little or to its end.
    fn poll(&mut self, op: u64, to_end: bool) -> usize {
        let partition = self.rng.below(PARTITIONS as usize);
        let from = self.cursors[partition];
        let (mut next, mut found) = (from, Vec::new());
        let reached = loop {
            let (mut batches, to) = match self.twin {
                Twin::ShowsAll => self.engine.read(self.ids[partition], next, 8000, i64::MAX).expect("readable"),
                _ => self.engine.read_shown(self.ids[partition], next, 8000, i64::MAX).expect("readable"),
            };
            batches.retain(|batch| !batch.header().is_control());
            if self.twin == Twin::Drops && !batches.is_empty() && self.rng.below(5) == 0 {
                batches.remove(0);
            }
            found.extend(batches.iter().flat_map(records).filter(|(offset, _)| *offset >= next));
            let is_end = to == next;
            next = to;
            if is_end || !to_end {
                break is_end;
            }
        };
        self.cursors[partition] = next;
        let list: Vec<_> = found.iter().map(|(offset, value)| format!("{offset}:{value}")).collect();
        self.ledger.write(&format!("r {op} {partition} {from} {next} {reached} {}\n", list.join(",")));
        found.len()
    }

    async fn consume(mut self) {
        loop {
            let op = self.begin("plain");
            if self.poll(op, true) == 0 {
                let id = self.ids[self.rng.below(self.ids.len())];
                let waited = self.engine.wait_for_committed(id, self.cursors[0], Duration::from_millis(2)).await;
                waited.expect("alive");
            }
        }
    }
}

/// Not a test: the process that the runs start and kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "soak: only as a process of another test"]
async fn worker() {
    let Ok(dir) = std::env::var(DIR).map(PathBuf::from) else { return };
    let number = |name| -> u64 { std::env::var(name).expect("set").parse().expect("a number") };
    let (round, seed, twin) = (number(ROUND), number(SEED), Twin::ALL[number(TWIN) as usize]);
    let past = Arc::new(Past::load(&dir, round));
    let engine = Arc::new(open(&dir));
    let ids = engine.topic(TOPIC).expect("made").partitions;
    let mut producers = Vec::new();
    // Before anybody reads: they abort what the last process left open.
    for process in KAFKA {
        let id = transactional_id(process);
        producers.push(engine.init_producer(Some(&id), TIMEOUT, None).await.expect("opened"));
    }
    let ledger = Arc::new(Ledger::open(&dir, round));
    let client = |process: u32| Client {
        engine: Arc::clone(&engine),
        ledger: Arc::clone(&ledger),
        ids: ids.clone(),
        process,
        round,
        twin,
        rng: Rng(seed << 32 | round << 8 | u64::from(process)),
        count: 0,
        cursors: (0..PARTITIONS).map(|p| past.cursors.get(&(process, p)).copied().unwrap_or(0)).collect(),
    };
    let mut tasks = tokio::task::JoinSet::new();
    for process in 0..2 {
        tasks.spawn(client(process).append());
        tasks.spawn(client(process + 2).produce(Arc::clone(&past)));
        tasks.spawn(client(process + 4).transact());
    }
    for (process, producer) in KAFKA.zip(producers) {
        tasks.spawn(client(process).transact_as_kafka(producer));
    }
    for process in POLLERS {
        tasks.spawn(client(process).consume());
    }
    // Where the test ended before it, nobody kills it.
    let ended = tokio::time::timeout(LIFE, tasks.join_next()).await.expect("killed by now");
    ended.expect("some").expect("they go on until they are killed");
}
