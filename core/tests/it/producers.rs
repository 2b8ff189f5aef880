//! Idempotent producers: a batch sent twice is stored once, before and after crashes; what is refused, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    Error, ErrorKind, Reason, Result,
    batch::{Batch, BatchBuilder, Marker, control_batch, crc32c},
    engine::{Config, Engine, Produced, ProducerLimits, Turn},
    record::{Record, Timestamp},
    topic::{PartitionId, TimestampType, TopicConfig, TopicSpec},
};

use crate::{
    harness::{Stepped, poll, read_all, small},
    sim::{Keep, Rng, SimClock, SimDisk},
};

/// A batch of a producer, each record of which tells its sequence.
pub fn numbered(producer: i64, epoch: i16, sequence: i32, records: usize, transactional: bool) -> Bytes {
    let mut builder = BatchBuilder::default();
    for i in 0..records {
        let value = format!("{producer}/{epoch}/{}", (sequence as u32 + i as u32) & 0x7fff_ffff);
        builder.push(&Record::new(None, Bytes::from(value)), Timestamp(7)).expect("small");
    }
    builder.finish_as(producer, epoch, sequence, transactional)
}

pub fn produce(log: &mut Stepped, id: PartitionId, batch: Bytes) -> Result<Produced> {
    log.run(async |engine| Ok(engine.produce(vec![(id, batch)]).await))?.remove(0)
}

fn offset(log: &mut Stepped, id: PartitionId, batch: Bytes) -> i64 {
    produce(log, id, batch).expect("taken").base_offset
}

fn reason(result: Result<Produced>) -> Option<Reason> {
    result.expect_err("refused").reason()
}

fn open(disk: &SimDisk, clock: &SimClock) -> (Stepped, PartitionId) {
    let mut log = Stepped::open(disk, small(), clock).expect("new");
    let id = log.create("a", 1).expect("topic")[0];
    (log, id)
}

#[test]
fn a_duplicate_in_the_same_group_waits_for_the_original() {
    let (mut log, id) = open(&SimDisk::new(1), &SimClock::default());
    let batch = numbered(5, 0, 0, 3, false);
    let Stepped { engine, stepper } = &mut log;
    let mut calls: Vec<_> = (0..3).map(|_| Box::pin(engine.produce(vec![(id, batch.clone())]))).collect();
    let mut next = Box::pin(engine.produce(vec![(id, numbered(5, 0, 3, 1, false))]));
    for call in &mut calls {
        assert!(poll(call).is_none(), "answered before it is durable");
    }
    assert!(poll(&mut next).is_none());
    assert_eq!(stepper.commit().expect("turn"), Turn::Committed(4));
    for call in &mut calls {
        let answers = poll(call).expect("answered");
        assert_eq!(answers[0].as_ref().expect("taken"), &Produced { base_offset: 0, append_time: None });
    }
    assert_eq!(poll(&mut next).expect("answered")[0].as_ref().expect("taken").base_offset, 3);
    drop((calls, next));
    assert_eq!(read_all(&log.engine, id).expect("whole").len(), 2);
    let before = log.engine.cut(&[id]).expect("there");
    assert_eq!(offset(&mut log, id, batch), 0, "and later");
    assert_eq!(log.engine.cut(&[id]).expect("there"), before);
}

#[test]
fn each_refusal_has_its_reason() {
    let clock = SimClock::default();
    let (mut log, id) = open(&SimDisk::new(1), &clock);
    for i in 0..7 {
        assert_eq!(offset(&mut log, id, numbered(5, 0, i * 2, 2, false)), i64::from(i) * 2);
    }
    assert_eq!(reason(produce(&mut log, id, numbered(5, 0, 2, 2, false))), Some(Reason::DuplicateSequence));
    assert_eq!(reason(produce(&mut log, id, numbered(5, 0, 16, 1, false))), Some(Reason::OutOfOrderSequence));
    assert_eq!(reason(produce(&mut log, id, numbered(5, 1, 3, 1, false))), Some(Reason::OutOfOrderSequence));
    assert_eq!(offset(&mut log, id, numbered(5, 1, 0, 1, false)), 14, "a new epoch begins with 0");
    assert_eq!(reason(produce(&mut log, id, numbered(5, 0, 14, 1, false))), Some(Reason::InvalidProducerEpoch));
    assert_eq!(offset(&mut log, id, numbered(6, 0, 77, 1, false)), 15, "one that is not known begins anywhere");
    let top = i32::MAX;
    assert_eq!(offset(&mut log, id, numbered(7, 0, top, 2, false)), 16);
    assert_eq!(offset(&mut log, id, numbered(7, 0, 1, 1, false)), 18, "sequences go on at 0");
    assert_eq!(reason(produce(&mut log, id, numbered(8, 0, 0, 1, true))), Some(Reason::InvalidTransactionState));
    let marker = control_batch(5, 1, Marker::Abort, Timestamp(0)).expect("small");
    assert_eq!(reason(produce(&mut log, id, marker.clone())), Some(Reason::InvalidRecord));
    assert_eq!(log.append(vec![(id, marker)]).expect_err("refused").kind(), ErrorKind::Invalid);
    assert_eq!(log.append(vec![(id, numbered(5, 0, 14, 1, false))]).expect_err("refused").kind(), ErrorKind::Conflict);
    let large = produce(&mut log, id, numbered(9, 0, 0, 9000, false));
    assert_eq!(reason(large), Some(Reason::BatchTooLarge));
    let internal = tidemill_core::engine::Table::Groups.partition();
    let denied = produce(&mut log, internal, numbered(9, 0, 0, 1, false));
    assert_eq!(denied.expect_err("refused").kind(), ErrorKind::Denied);
    // A transaction of the log's own holds no such batches: their sequences would be judged too early.
    let transaction = log.engine.begin_transaction();
    let staged = log.run(async |engine| engine.stage(transaction, vec![(id, numbered(9, 0, 0, 1, false))]).await);
    assert_eq!(staged.expect_err("refused").kind(), ErrorKind::Invalid);
    let config = |c: &mut TopicConfig| c.set("max.message.bytes", "1024");
    log.run(async |engine| engine.alter_topic("a", config).await).expect("altered");
    assert_eq!(reason(produce(&mut log, id, numbered(9, 0, 0, 200, false))), Some(Reason::BatchTooLarge));
}

/// One call may hold more than the queue: it does not wait for itself.
#[test]
fn more_is_produced_at_once_than_the_queue_holds() {
    let config = Config { queue_bytes: 64 << 10, ..small() };
    let mut log = Stepped::open(&SimDisk::new(1), config, &SimClock::default()).expect("new");
    let ids = log.create("a", 12).expect("topic");
    for round in 0..3 {
        let batches: Vec<_> = ids.iter().map(|id| (*id, numbered(5, 0, round * 900, 900, false))).collect();
        assert!(batches.iter().map(|(_, batch)| batch.len()).sum::<usize>() > 128 << 10);
        let answers = log.run(async |engine| Ok(engine.produce(batches.clone()).await)).expect("answered");
        let offsets: Vec<_> = answers.into_iter().map(|answer| answer.expect("taken").base_offset).collect();
        assert_eq!(offsets, vec![i64::from(round) * 900; 12]);
    }
}

/// A request is refused as a whole: what it planned before its fault is forgotten.
#[test]
fn a_refused_request_leaves_nothing_planned() {
    let (mut log, id) = open(&SimDisk::new(1), &SimClock::default());
    let good = numbered(5, 0, 0, 2, false);
    let Stepped { engine, stepper } = &mut log;
    let bad = vec![(id, good.clone()), (id, numbered(5, 0, 9, 1, false))];
    let mut refused = Box::pin(engine.append(bad, None));
    let mut taken = Box::pin(engine.append(vec![(id, good.clone()), (id, numbered(5, 0, 2, 1, false))], None));
    assert!(poll(&mut refused).is_none() && poll(&mut taken).is_none());
    stepper.commit().expect("turn");
    let error = poll(&mut refused).expect("answered").expect_err("out of order");
    assert_eq!(error.reason(), Some(Reason::OutOfOrderSequence));
    assert_eq!(poll(&mut taken).expect("answered").expect("taken").base_offsets, [0, 2]);
    drop((refused, taken));
    assert_eq!(read_all(&log.engine, id).expect("whole").len(), 2);
}

#[test]
fn the_logs_own_time_is_written_in() {
    let clock = SimClock::default();
    let disk = SimDisk::new(1);
    let mut log = Stepped::open(&disk, small(), &clock).expect("new");
    let spec = TopicSpec {
        partitions: 1,
        config: TopicConfig { timestamp_type: TimestampType::LogAppendTime, ..TopicConfig::default() },
    };
    let id = log.run(async |engine| engine.create_topic("a", &spec).await).expect("topic").partitions[0];
    clock.advance(Duration::from_secs(1000));
    let now = tidemill_core::clock::Clock::now(&clock);
    let wanted = Produced { base_offset: 0, append_time: Some(now) };
    assert_eq!(produce(&mut log, id, numbered(5, 0, 0, 2, false)).expect("taken"), wanted);
    let transaction = log.engine.begin_transaction();
    let staged = numbered(-1, -1, -1, 1, false);
    log.run(async |engine| engine.stage(transaction, vec![(id, staged)]).await).expect("staged");
    clock.advance(Duration::from_secs(10));
    assert_eq!(produce(&mut log, id, numbered(5, 0, 0, 2, false)).expect("known"), wanted, "that of the original");
    let last = numbered(-1, -1, -1, 1, false);
    log.run(async |engine| engine.commit(transaction, 1, vec![(id, last)], None).await).expect("committed");
    let times = |log: &Stepped| -> Vec<i64> {
        let batches = log.engine.read(id, 0, 1 << 20, i64::MAX).expect("readable").0;
        let whole: Vec<_> = batches.iter().map(|b| Batch::parse(b.bytes()).expect("its crc is anew")).collect();
        whole.iter().flat_map(|b| b.records().map(|r| r.expect("sound").timestamp).collect::<Vec<_>>()).collect()
    };
    let wanted = [now.0, now.0, now.0, now.0 + 10_000];
    assert_eq!(times(&log), wanted);
    let again = Stepped::open(&disk.image(Keep::Nothing), small(), &clock).expect("again");
    assert_eq!(times(&again), wanted);
    assert_eq!(again.engine.recovery().damage, []);
}

fn limited(producers: ProducerLimits) -> Config {
    Config { producers, ..small() }
}

#[test]
fn producers_are_forgotten_by_number_and_by_age() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let limits = ProducerLimits { per_partition: 16, in_all: 40, ..ProducerLimits::default() };
    let mut log = Stepped::open(&disk, limited(limits), &clock).expect("new");
    let ids = log.create("a", 4).expect("topic");
    for producer in 0..17 {
        offset(&mut log, ids[0], numbered(producer, 0, 0, 1, false));
        clock.advance(Duration::from_millis(1));
    }
    let known = |log: &Stepped, id| -> Vec<i64> {
        log.engine.producers(id).expect("there").iter().map(|p| p.producer_id).collect()
    };
    assert_eq!(known(&log, ids[0]), (3..17).collect::<Vec<_>>(), "those idle for longest go first");
    for id in &ids[1..] {
        for producer in 20..33 {
            offset(&mut log, *id, numbered(producer, 0, 0, 1, false));
            clock.advance(Duration::from_millis(1));
        }
    }
    let stats = log.engine.producer_stats();
    assert!(stats.known <= 40 && stats.evicted > 3, "{stats:?}");
    assert!(known(&log, ids[0]).len() < 14 && known(&log, ids[3]).len() == 13, "the oldest of all went");
    // What is forgotten may come again: that is told by nobody. What is known may not.
    assert_eq!(offset(&mut log, ids[3], numbered(32, 0, 0, 1, false)), 12);
    clock.advance(Duration::from_secs(24 * 60 * 60));
    log.stepper.housekeep();
    let stats = log.engine.producer_stats();
    assert_eq!((stats.known, stats.expired > 0), (0, true), "{stats:?}");
    assert_eq!(offset(&mut log, ids[3], numbered(32, 0, 1, 1, false)), 13, "goes on where it was");
    log.run(async |engine| engine.delete_topic("a").await).expect("deleted");
    assert_eq!(log.engine.producer_stats().known, 0);
}

/// What a manifest says of producers, whatever crashes or is closed afterwards.
#[test]
fn a_checkpoint_keeps_what_is_known() {
    for crash in [false, true] {
        let (disk, clock) = (SimDisk::new(1), SimClock::default());
        let (mut log, id) = open(&disk, &clock);
        offset(&mut log, id, numbered(5, 3, 0, 2, false));
        log.stepper.checkpoint().expect("checkpoint");
        // Replay sees these, and the one before them not.
        offset(&mut log, id, numbered(5, 3, 2, 2, false));
        let before = log.engine.producers(id).expect("there");
        let disk = if crash {
            disk.image(Keep::Nothing)
        } else {
            log.stepper.close().expect("closed");
            disk
        };
        let mut log = Stepped::open(&disk, small(), &clock).expect("again");
        let after = log.engine.producers(id).expect("there");
        let told = |p: &tidemill_core::engine::ProducerInfo| (p.producer_id, p.epoch, p.last_sequence);
        assert_eq!(after.iter().map(told).collect::<Vec<_>>(), before.iter().map(told).collect::<Vec<_>>());
        assert_eq!(offset(&mut log, id, numbered(5, 3, 0, 2, false)), 0);
        assert_eq!(offset(&mut log, id, numbered(5, 3, 2, 2, false)), 2);
        assert_eq!(offset(&mut log, id, numbered(5, 3, 4, 2, false)), 4);
        assert_eq!(log.engine.producer_stats().known, 1);
    }
}

/// Takes what it says of producers out of each manifest.
pub fn strip_producers(disk: &SimDisk) {
    for (path, _) in disk.files().into_iter().filter(|(path, _)| path.to_string_lossy().contains("manifest-")) {
        disk.edit(&path, |bytes| {
            let Ok(mut manifest) = serde_json::from_slice::<serde_json::Value>(&bytes[16..]) else { return };
            for entry in manifest["partitions"].as_array_mut().expect("partitions") {
                entry.as_object_mut().expect("an entry").remove("producers");
            }
            let body = serde_json::to_vec(&manifest).expect("json");
            bytes.truncate(8);
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
            bytes.extend_from_slice(&body);
        });
    }
}

/// How the log, or what stands for it, fails its producers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Manifests say nothing of producers.
    NotKept,
    /// A duplicate is answered as soon as the original is planned.
    AnsweredEarly,
}

/// One producer and one partition, as the client sees it.
#[derive(Default)]
struct Lane {
    next_sequence: i32,
    /// Sequence, records, offset once that was told; the newest last.
    sent: Vec<(i32, usize, Option<i64>)>,
}

/// Clients that send and send again, over a disk that crashes.
struct Clients {
    disk: SimDisk,
    clock: SimClock,
    rng: Rng,
    log: Stepped,
    ids: Vec<PartitionId>,
    /// Producer ids ever told.
    given: BTreeSet<i64>,
    producers: Vec<i64>,
    lanes: BTreeMap<(i64, PartitionId), Lane>,
    fault: Fault,
    crashes: u64,
    duplicates: u64,
}

impl Clients {
    fn new(seed: u64, fault: Fault) -> Result<Self> {
        let (disk, clock) = (SimDisk::new(seed), SimClock::default());
        let mut log = Stepped::open(&disk, small(), &clock)?;
        let ids = log.create("a", 2)?;
        let (rng, given, lanes) = (Rng(seed), BTreeSet::new(), BTreeMap::new());
        let producers = Vec::new();
        Ok(Self { disk, clock, rng, log, ids, given, producers, lanes, fault, crashes: 0, duplicates: 0 })
    }

    /// Does something, during which the power may fail: then nothing is told, and the log is opened anew.
    fn crashing<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<Option<T>, String> {
        let image = Arc::new(Mutex::new(None));
        if self.rng.below(4) == 0 {
            let (slot, at) = (Arc::clone(&image), self.disk.ops() + self.rng.below(5) as u64);
            let seed = self.rng.next();
            let keep = [Keep::Nothing, Keep::Everything, Keep::LastWrite, Keep::Random(seed)][self.rng.below(4)];
            self.disk.observe(move |disk, op| {
                if op == at {
                    *slot.lock().expect("whole") = Some(disk.image(keep));
                }
            });
        }
        let result = act(self)?;
        self.disk.stop_observing();
        let Some(disk) = image.lock().expect("whole").take() else { return Ok(Some(result)) };
        self.crashes += 1;
        self.disk = disk;
        self.open()?;
        Ok(None)
    }

    fn open(&mut self) -> Result<(), String> {
        if self.fault == Fault::NotKept {
            strip_producers(&self.disk);
        }
        self.log = Stepped::open(&self.disk, small(), &self.clock).map_err(|e| format!("open: {e:?}"))?;
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let failed = |e: Error| format!("{e:?}");
        match self.rng.below(20) {
            0 | 1 => {
                let init = |this: &mut Self| {
                    let init = async |engine: &Engine| engine.init_producer(None, Duration::ZERO, None).await;
                    this.log.run(init).map_err(failed)
                };
                if let Some(identity) = self.crashing(init)? {
                    if !self.given.insert(identity.id) {
                        return Err(format!("producer id {} was given twice", identity.id));
                    }
                    self.producers.push(identity.id);
                    self.producers.truncate(3);
                }
            }
            2 => drop(self.crashing(|this| this.log.stepper.checkpoint().map_err(failed))?),
            3 => drop(self.crashing(|this| this.log.stepper.write_behind(true).map_err(failed))?),
            4 => drop(self.crashing(|this| this.log.stepper.note().map_err(failed))?),
            5 => {
                // The process ends; what the system has stays.
                self.open()?;
                self.crashes += 1;
            }
            _ if self.producers.is_empty() => {}
            _ => self.round()?,
        }
        Ok(())
    }

    /// Several batches at once, new ones and old ones. What was not answered before comes first, in its order.
    fn round(&mut self) -> Result<(), String> {
        let key = (self.producers[self.rng.below(self.producers.len())], self.ids[self.rng.below(self.ids.len())]);
        let mut rng = self.rng.clone();
        let lane = self.lanes.entry(key).or_default();
        let unknown = lane.sent.iter().position(|sent| sent.2.is_none());
        let mut asked: Vec<usize> = unknown.map_or(Vec::new(), |first| (first..lane.sent.len()).collect());
        while asked.is_empty() || (rng.below(3) > 0 && asked.len() < 9) {
            let open = lane.sent.iter().filter(|sent| sent.2.is_none()).count();
            if rng.coin() && open < 5 {
                let records = 1 + rng.below(4);
                lane.sent.push((lane.next_sequence, records, None));
                lane.next_sequence += records as i32;
                asked.push(lane.sent.len() - 1);
            } else if !lane.sent.is_empty() {
                asked.push(lane.sent.len() - 1 - rng.below(lane.sent.len().min(5)));
            }
        }
        self.rng = rng;
        let batches: Vec<_> = asked
            .iter()
            .map(|at| {
                let (sequence, records, _) = self.lanes[&key].sent[*at];
                (key.1, numbered(key.0, 0, sequence, records, false))
            })
            .collect();
        let fault = self.fault;
        let mut early = Vec::new();
        let answers = self.crashing(|this| {
            let Stepped { engine, stepper } = &mut this.log;
            let end = engine.cut(&[key.1]).map_err(|e| format!("{e:?}"))?[0].durable_offset;
            let mut calls: Vec<_> = batches.iter().map(|batch| Box::pin(engine.produce(vec![batch.clone()]))).collect();
            calls.iter_mut().for_each(|call| assert!(poll(call).is_none(), "answered before anything was written"));
            if fault == Fault::AnsweredEarly {
                early.extend(asked.first().filter(|first| asked[1..].contains(first)).map(|first| (*first, end)));
            }
            let mut answers = Vec::new();
            for call in &mut calls {
                let mut turns = 0;
                let answer = loop {
                    if let Some(mut answer) = poll(call) {
                        break answer.remove(0);
                    }
                    turns += 1;
                    assert!(turns < 200, "a batch waits for ever");
                    if stepper.commit().map_err(|e| format!("{e:?}"))? == Turn::Blocked {
                        stepper.write_behind(true).map_err(|e| format!("{e:?}"))?;
                    }
                };
                answers.push(answer.map_err(|e| format!("{key:?}: {e:?}"))?.base_offset);
            }
            Ok(answers)
        })?;
        let lane = self.lanes.get_mut(&key).expect("just made");
        for (at, offset) in early {
            lane.sent[at].2.get_or_insert(offset);
        }
        for (at, offset) in asked.into_iter().zip(answers.unwrap_or_default()) {
            let told = lane.sent[at].2.replace(offset);
            self.duplicates += u64::from(told.is_some());
            if told.is_some_and(|told| told != offset) {
                return Err(format!("{key:?}: batch {at} was at {told:?}, is at {offset} now"));
            }
        }
        Ok(())
    }

    /// Each batch that was answered is there once, at its offset; no other is there twice; all in their order.
    fn judge(&self) -> Result<(), String> {
        for id in &self.ids {
            let mut found: BTreeMap<i64, Vec<(i32, i64)>> = BTreeMap::new();
            for (offset, bytes) in read_all(&self.log.engine, *id).map_err(|e| format!("{e:?}"))? {
                let header = *Batch::parse(&bytes).map_err(|e| format!("{e:?}"))?.header();
                found.entry(header.producer_id).or_default().push((header.base_sequence, offset));
            }
            for ((producer, _), lane) in self.lanes.iter().filter(|((_, partition), _)| partition == id) {
                let found = found.remove(producer).unwrap_or_default();
                let sent = lane.sent.iter().take(found.len());
                let same =
                    sent.zip(&found).all(|(sent, found)| sent.0 == found.0 && sent.2.is_none_or(|o| o == found.1));
                let answered = lane.sent.iter().filter(|sent| sent.2.is_some()).count();
                if !same || found.len() > lane.sent.len() || found.len() < answered {
                    return Err(format!("producer {producer}, partition {}: {found:?}, sent {:?}", id.0, lane.sent));
                }
            }
            if !found.is_empty() {
                return Err(format!("partition {} has batches that nobody sent: {found:?}", id.0));
            }
        }
        Ok(())
    }
}

fn clients(seed: u64, fault: Fault, steps: usize) -> Result<(u64, u64), String> {
    let mut clients = Clients::new(seed, fault).map_err(|e| format!("{e:?}"))?;
    for step in 0..steps {
        let told = |e: String| format!("seed {seed} step {step}: {e}");
        clients.step().map_err(told)?;
        clients.judge().map_err(told)?;
    }
    Ok((clients.crashes, clients.duplicates))
}

#[test]
fn no_batch_is_lost_or_doubled_however_often_it_is_sent() {
    let (mut crashes, mut duplicates) = (0, 0);
    for seed in 0..20 {
        let told = clients(seed, Fault::None, 120).unwrap_or_else(|fault| panic!("{fault}"));
        (crashes, duplicates) = (crashes + told.0, duplicates + told.1);
    }
    println!("{crashes} crashes, {duplicates} duplicates");
    assert!(crashes > 300 && duplicates > 1000, "{crashes} crashes, {duplicates} duplicates");
}

/// `TIDEMILL_SEEDS=1000 cargo test -p tidemill-core --release -- --ignored soak`
#[test]
#[ignore = "runs as long as TIDEMILL_SEEDS says"]
fn soak() {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(usual);
    let from = number("TIDEMILL_FIRST_SEED", 10_000);
    for seed in from..from + number("TIDEMILL_SEEDS", 100) {
        clients(seed, Fault::None, 200).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// A log that fails must turn the test red.
fn caught(fault: Fault) {
    let found = (0..20).find_map(|seed| clients(seed, fault, 120).err());
    println!("{}", found.expect("the fault goes unnoticed"));
}

#[test]
fn twin_manifests_say_nothing_of_producers() {
    caught(Fault::NotKept);
}

#[test]
fn twin_duplicates_are_answered_when_planned() {
    caught(Fault::AnsweredEarly);
}

/// Real threads: producers that send everything twice, and transactions beside them, some of which their time ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn producers_and_transactions_at_once() {
    let dir = crate::harness::TempDir::new("numbered");
    let storage = Arc::new(tidemill_core::storage::OsStorage);
    let clock: Arc<dyn tidemill_core::clock::Clock> = Arc::new(tidemill_core::clock::SystemClock::default());
    let engine = Arc::new(Engine::open(&dir.0, small(), storage, clock).expect("new"));
    let spec = TopicSpec { partitions: 3, ..TopicSpec::default() };
    let ids = engine.create_topic("a", &spec).await.expect("topic").partitions;
    let mut tasks = Vec::new();
    for n in 0..3 {
        let (engine, ids) = (Arc::clone(&engine), ids.clone());
        tasks.push(tokio::spawn(async move {
            let own = engine.init_producer(None, Duration::ZERO, None).await.expect("identity");
            for sequence in 0..60 {
                let batch = numbered(own.id, own.epoch, sequence * 3, 3, false);
                let batches = vec![(ids[0], batch.clone()), (ids[1], batch)];
                let (first, second) = tokio::join!(engine.produce(batches.clone()), engine.produce(batches));
                for (first, second) in first.into_iter().zip(second) {
                    assert_eq!(first.expect("taken"), second.expect("known"));
                }
            }
            let id = format!("t{n}");
            let own = engine.init_producer(Some(&id), Duration::from_secs(60), None).await.expect("opened");
            for round in 0..30 {
                engine.add_partitions_to_transaction(&id, own, &ids).await.expect("added");
                let batches = ids.iter().map(|id| (*id, numbered(own.id, own.epoch, round * 2, 2, true)));
                for produced in engine.produce(batches.collect()).await {
                    produced.expect("taken");
                }
                let marker = if round % 3 == 0 { Marker::Abort } else { Marker::Commit };
                engine.end_transaction(&id, own, marker).await.expect("ended");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let count = |id, shown: bool| {
        let mut found = (0, 0);
        while found.1 < engine.cut(&[id]).expect("there")[0].durable_offset {
            let read = if shown { Engine::read_shown } else { Engine::read };
            let (batches, next) = read(&engine, id, found.1, 20_000, i64::MAX).expect("readable");
            found = (found.0 + batches.iter().map(|b| b.header().record_count as usize).sum::<usize>(), next);
        }
        found.0
    };
    assert_eq!(count(ids[0], true), 3 * (60 * 3 + 20 * 2));
    assert_eq!(count(ids[2], true), 3 * 20 * 2);
    assert_eq!(count(ids[2], false), 3 * 30 * (2 + 1), "with markers and what was aborted");
    engine.close().expect("closed");
}
