//! Transactions of Kafka's protocol: what is seen of them and when, before and after crashes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    Error, ErrorKind, Reason, Result,
    batch::{Batch, BatchBuilder, Marker},
    engine::{Committed, Config, Engine, Outcome, Produced, ProducerIdentity, Table, TransactionState, Turn},
    log::{Caller, Embedded, FetchOptions, Log},
    record::{Record, Timestamp},
    topic::{PartitionId, TopicPartition},
};

use crate::{
    harness::{Stepped, small},
    producers::{numbered, produce, strip_producers},
    sim::{Keep, Rng, SimClock, SimDisk},
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn init(log: &mut Stepped, id: &str) -> Result<ProducerIdentity> {
    log.run(async |engine| engine.init_producer(Some(id), TIMEOUT, None).await)
}

fn add(log: &mut Stepped, id: &str, producer: ProducerIdentity, partitions: &[PartitionId]) -> Result<()> {
    log.run(async |engine| engine.add_partitions_to_transaction(id, producer, partitions).await)
}

fn end(log: &mut Stepped, id: &str, producer: ProducerIdentity, marker: Marker) -> Result<()> {
    log.run(async |engine| engine.end_transaction(id, producer, marker).await)
}

fn write(log: &mut Stepped, id: PartitionId, producer: ProducerIdentity, sequence: i32) -> Result<Produced> {
    produce(log, id, numbered(producer.id, producer.epoch, sequence, 2, true))
}

fn reason<T: std::fmt::Debug>(result: Result<T>) -> Option<Reason> {
    result.expect_err("refused").reason()
}

/// (durable offset, last stable offset)
fn ends(log: &Stepped, id: PartitionId) -> (i64, i64) {
    let bounds = log.engine.cut(&[id]).expect("there")[0];
    (bounds.durable_offset, bounds.last_stable_offset)
}

/// The values that a reader of committed records is shown.
fn shown(engine: &Engine, id: PartitionId) -> Vec<(i64, String)> {
    let mut offset = engine.cut(&[id]).expect("there")[0].log_start_offset;
    let mut found = Vec::new();
    loop {
        let (batches, next) = engine.read_shown(id, offset, 700, i64::MAX).expect("readable");
        found.extend(batches.iter().flat_map(values));
        if next == offset {
            return found;
        }
        offset = next;
    }
}

fn values(batch: &Batch) -> Vec<(i64, String)> {
    let records = batch.records().map(|record| record.expect("sound"));
    records.map(|r| (r.offset, String::from_utf8_lossy(r.value.expect("a value")).into_owned())).collect()
}

/// What Kafka's consumers make of the same: from its first offset on, a producer's batches are left out until its marker.
fn consumed(engine: &Engine, id: PartitionId, step: usize) -> Vec<(i64, String)> {
    let mut offset = engine.cut(&[id]).expect("there")[0].log_start_offset;
    let mut found = Vec::new();
    loop {
        let Committed { batches, next_offset, mut aborted, .. } =
            engine.read_committed(id, offset, step, i64::MAX).expect("readable");
        aborted.sort_by_key(|a| a.first_offset);
        let (mut aborted, mut left_out) = (aborted.into_iter().peekable(), BTreeSet::new());
        for batch in &batches {
            let header = batch.header();
            let last = header.next_offset() - 1;
            while let Some(a) = aborted.next_if(|a| a.first_offset <= last) {
                left_out.insert(a.producer_id);
            }
            match Marker::of(batch) {
                Some(Marker::Abort) => drop(left_out.remove(&header.producer_id)),
                Some(Marker::Commit) => {}
                None if header.is_transactional() && left_out.contains(&header.producer_id) => {}
                None => found.extend(values(batch)),
            }
        }
        if next_offset == offset {
            return found;
        }
        offset = next_offset;
    }
}

fn open(disk: &SimDisk, clock: &SimClock) -> (Stepped, Vec<PartitionId>) {
    let mut log = Stepped::open(disk, small(), clock).expect("new");
    let ids = log.create("a", 2).expect("topic");
    (log, ids)
}

#[test]
fn a_transaction_is_seen_when_it_is_committed_and_all_of_it() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let p = init(&mut log, "x").expect("opened");
    add(&mut log, "x", p, &ids).expect("added");
    assert_eq!(write(&mut log, ids[0], p, 0).expect("taken").base_offset, 0);
    assert_eq!(write(&mut log, ids[1], p, 0).expect("taken").base_offset, 0);
    // Others' records behind it have to wait.
    assert_eq!(produce(&mut log, ids[0], numbered(-1, -1, -1, 1, false)).expect("taken").base_offset, 2);
    assert_eq!((ends(&log, ids[0]), ends(&log, ids[1])), ((3, 0), (2, 0)));
    assert_eq!(shown(&log.engine, ids[0]), []);
    assert_eq!(log.engine.read(ids[0], 0, 1000, i64::MAX).expect("raw").0.len(), 2, "who asks for all gets all");
    end(&mut log, "x", p, Marker::Commit).expect("committed");
    end(&mut log, "x", p, Marker::Commit).expect("asked again");
    assert_eq!(reason(end(&mut log, "x", p, Marker::Abort)), Some(Reason::InvalidTransactionState));
    assert_eq!((ends(&log, ids[0]), ends(&log, ids[1])), ((4, 4), (3, 3)));
    assert_eq!(shown(&log.engine, ids[0]).len(), 3);
    assert_eq!(shown(&log.engine, ids[1]).len(), 2);
    // The next one goes on with its sequences.
    add(&mut log, "x", p, &ids[..1]).expect("added");
    assert_eq!(write(&mut log, ids[0], p, 2).expect("taken").base_offset, 4);
    assert_eq!(log.engine.transaction("x").expect("known").state, TransactionState::Ongoing);
    end(&mut log, "x", p, Marker::Abort).expect("aborted");
    assert_eq!(shown(&log.engine, ids[0]).len(), 3);
    let aborted = log.engine.aborted(ids[0], 0, 100).expect("there");
    assert_eq!(aborted.len(), 1);
    assert_eq!((aborted[0].first_offset, aborted[0].last_offset), (4, 6));
    assert_eq!(log.engine.aborted(ids[0], 0, 4).expect("there"), []);
    let info = log.engine.transaction("x").expect("known");
    assert_eq!((info.state, info.producer, info.partitions), (TransactionState::Aborted, p, Vec::new()));
}

/// By time as by offset: what is open, aborted or a marker is passed over.
#[test]
fn a_time_finds_what_is_committed() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let first =
        |log: &Stepped, time| log.engine.shown_offset_at_time(ids[0], time).expect("asked").map(|found| found.0);
    let p = init(&mut log, "x").expect("opened");
    for (sequence, marker) in [(0, Marker::Abort), (2, Marker::Commit)] {
        add(&mut log, "x", p, &ids[..1]).expect("added");
        write(&mut log, ids[0], p, sequence).expect("taken");
        assert_eq!(first(&log, i64::MIN), None, "it is open");
        assert!(log.engine.offset_at_time(ids[0], i64::MIN).expect("asked").is_some());
        end(&mut log, "x", p, marker).expect("ended");
    }
    let wanted = shown(&log.engine, ids[0]);
    assert_eq!((wanted.len(), wanted[0].0), (2, 3));
    assert_eq!(first(&log, i64::MIN), Some(3), "behind the aborted records and their marker");
    assert_eq!(first(&log, i64::MAX), None);
}

#[test]
fn who_may_not_write_is_told_why() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let p = init(&mut log, "x").expect("opened");
    let state = Some(Reason::InvalidTransactionState);
    assert_eq!(reason(write(&mut log, ids[0], p, 0)), state, "nothing is open");
    assert_eq!(reason(end(&mut log, "x", p, Marker::Commit)), state);
    add(&mut log, "x", p, &ids[..1]).expect("added");
    assert_eq!(reason(write(&mut log, ids[1], p, 0)), state, "not in the transaction");
    write(&mut log, ids[0], p, 0).expect("taken");
    let plain = numbered(p.id, p.epoch, 2, 1, false);
    assert_eq!(reason(produce(&mut log, ids[0], plain)), state, "half in a transaction, half not");
    let other = ProducerIdentity { id: p.id + 1, ..p };
    assert_eq!(reason(end(&mut log, "x", other, Marker::Commit)), Some(Reason::InvalidProducerId));
    assert_eq!(reason(end(&mut log, "y", p, Marker::Commit)), Some(Reason::InvalidProducerId));
    let next = init(&mut log, "x").expect("opened anew");
    assert_eq!(next, ProducerIdentity { epoch: p.epoch + 1, ..p });
    assert_eq!(ends(&log, ids[0]), (3, 3), "what was open is aborted");
    assert_eq!(shown(&log.engine, ids[0]), []);
    assert_eq!(reason(write(&mut log, ids[0], p, 2)), Some(Reason::InvalidProducerEpoch));
    assert_eq!(reason(add(&mut log, "x", p, &ids)), Some(Reason::ProducerFenced));
    assert_eq!(reason(end(&mut log, "x", p, Marker::Commit)), Some(Reason::ProducerFenced));
    add(&mut log, "x", next, &ids[..1]).expect("added");
    write(&mut log, ids[0], next, 0).expect("a new epoch begins with 0");
    let internal = add(&mut log, "x", next, &[Table::Groups.partition()]);
    assert_eq!(internal.expect_err("refused").kind(), ErrorKind::Denied);
    let gone = add(&mut log, "x", next, &[PartitionId(999)]);
    assert_eq!(gone.expect_err("refused").kind(), ErrorKind::NotFound);
    let long = log.run(async |engine| engine.init_producer(Some("z"), Duration::from_secs(901), None).await);
    assert_eq!(reason(long), Some(Reason::InvalidTransactionTimeout));
    let put = log.run(async |engine| engine.put(Table::Producers, "t/x", None, None).await);
    assert_eq!(put.expect_err("refused").kind(), ErrorKind::Denied, "nobody else writes there");
}

#[test]
fn a_producer_goes_on_after_an_error_and_a_newer_one_fences_it() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let init_as = |log: &mut Stepped, expected| {
        log.run(async |engine| engine.init_producer(Some("x"), TIMEOUT, Some(expected)).await)
    };
    let first = init(&mut log, "x").expect("opened");
    add(&mut log, "x", first, &ids).expect("added");
    let second = init_as(&mut log, first).expect("goes on");
    assert_eq!(second.epoch, first.epoch + 1);
    assert_eq!(init_as(&mut log, first).expect("asked again"), second, "the answer was lost");
    add(&mut log, "x", second, &ids).expect("added");
    assert_eq!(reason(init_as(&mut log, first)), Some(Reason::ProducerFenced), "it had its answer");
    let other = init(&mut log, "x").expect("another process");
    assert_eq!(other.epoch, second.epoch + 1);
    assert_eq!(reason(init_as(&mut log, second)), Some(Reason::ProducerFenced));
}

/// The second version of the protocol: what comes late is of no later transaction.
#[test]
fn an_end_may_give_the_next_identity() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let next = |log: &mut Stepped, producer, marker| {
        log.run(async |engine| engine.end_transaction_with_next("x", producer, marker).await)
    };
    let first = init(&mut log, "x").expect("opened");
    add(&mut log, "x", first, &ids).expect("added");
    write(&mut log, ids[0], first, 0).expect("taken");
    let second = next(&mut log, first, Marker::Commit).expect("committed");
    assert_eq!(second, ProducerIdentity { epoch: first.epoch + 1, ..first });
    assert_eq!(next(&mut log, first, Marker::Commit).expect("asked again"), second);
    assert_eq!(shown(&log.engine, ids[0]).len(), 2);
    add(&mut log, "x", second, &ids).expect("added");
    assert_eq!(reason(write(&mut log, ids[0], first, 2)), Some(Reason::InvalidProducerEpoch), "it comes late");
    assert_eq!(reason(next(&mut log, first, Marker::Commit)), Some(Reason::ProducerFenced), "and so does this");
    write(&mut log, ids[0], second, 0).expect("a new epoch begins with 0");
    let third = next(&mut log, second, Marker::Abort).expect("aborted");
    assert_eq!(reason(next(&mut log, third, Marker::Commit)), Some(Reason::InvalidTransactionState));
    let fourth = next(&mut log, third, Marker::Abort).expect("an abort of nothing");
    assert_eq!(fourth.epoch, 3);
    assert_eq!(shown(&log.engine, ids[0]).len(), 2);
    assert_eq!(consumed(&log.engine, ids[0], 1000), shown(&log.engine, ids[0]));
}

#[test]
fn epochs_end_with_a_new_number() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let first = init(&mut log, "x").expect("opened");
    let mut newest = first;
    for _ in 0..i16::MAX {
        newest = init(&mut log, "x").expect("opened");
    }
    assert!(newest.id > first.id, "{newest:?}");
    assert!(newest.epoch < 3, "{newest:?}");
    add(&mut log, "x", newest, &ids).expect("added");
    write(&mut log, ids[0], newest, 0).expect("taken");
    assert_eq!(reason(end(&mut log, "x", first, Marker::Commit)), Some(Reason::InvalidProducerId));
}

#[test]
fn a_transaction_that_is_open_for_too_long_is_aborted() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let (mut log, ids) = open(&disk, &clock);
    let p = init(&mut log, "x").expect("opened");
    add(&mut log, "x", p, &ids).expect("added");
    write(&mut log, ids[0], p, 0).expect("taken");
    clock.advance(TIMEOUT - Duration::from_millis(1));
    log.stepper.housekeep();
    log.stepper.commit().expect("turn");
    assert_eq!(ends(&log, ids[0]), (2, 0));
    // It is counted from its beginning, whatever is opened in between.
    let mut log = Stepped::open(&disk.image(Keep::Nothing), small(), &clock).expect("again");
    write(&mut log, ids[0], p, 2).expect("still open");
    clock.advance(Duration::from_millis(1));
    for _ in 0..3 {
        log.stepper.housekeep();
    }
    log.stepper.commit().expect("turn");
    assert_eq!(ends(&log, ids[0]), (5, 5));
    assert_eq!(shown(&log.engine, ids[0]), []);
    assert_eq!(reason(write(&mut log, ids[0], p, 4)), Some(Reason::InvalidProducerEpoch));
    assert_eq!(reason(end(&mut log, "x", p, Marker::Commit)), Some(Reason::ProducerFenced), "it must not think so");
    assert_eq!(
        reason(log.run(async |e| e.init_producer(Some("x"), TIMEOUT, Some(p)).await)),
        Some(Reason::ProducerFenced)
    );
    clock.advance(Duration::from_secs(7 * 24 * 60 * 60));
    log.stepper.housekeep();
    log.stepper.commit().expect("turn");
    assert_eq!(log.engine.transactions(), [], "ids that nobody uses are forgotten");
    assert!(init(&mut log, "x").expect("opened").id > p.id);
}

#[test]
fn group_offsets_are_written_with_the_commit_or_never() {
    let (mut disk, clock) = (SimDisk::new(1), SimClock::default());
    let (mut log, ids) = open(&disk, &clock);
    let p = init(&mut log, "x").expect("opened");
    let hold = |log: &mut Stepped, value: &str| {
        let offsets = vec![("g/a/0".to_owned(), Some(value.to_owned()))];
        log.run(async |engine| engine.hold_group_offsets("x", p, "g", offsets).await)
    };
    assert_eq!(reason(hold(&mut log, "1")), Some(Reason::InvalidTransactionState));
    let offset = |log: &Stepped| log.engine.table(Table::Groups).get("g/a/0").map(|entry| entry.value.clone());
    for (marker, wanted) in [(Marker::Abort, None), (Marker::Commit, Some("\"7\"\n".to_owned()))] {
        add(&mut log, "x", p, &ids[..1]).expect("added");
        log.run(async |engine| engine.add_group_to_transaction("x", p, "g").await).expect("added");
        hold(&mut log, "3").expect("held");
        hold(&mut log, "\"7\"\n").expect("held");
        // What is held outlives a crash.
        disk = disk.image(Keep::Nothing);
        log = Stepped::open(&disk, small(), &clock).expect("again");
        assert!(log.engine.is_group_offset_held("g/a/0"));
        assert_eq!(offset(&log), None);
        end(&mut log, "x", p, marker).expect("ended");
        assert!(!log.engine.is_group_offset_held("g/a/0"));
        assert_eq!(offset(&log), wanted);
    }
}

#[test]
fn a_transaction_that_could_not_end_is_not_taken() {
    let mut log = Stepped::open(&SimDisk::new(1), small(), &SimClock::default()).expect("new");
    let ids = log.create("a", 1000).expect("topic");
    let p = init(&mut log, "x").expect("opened");
    let refused = add(&mut log, "x", p, &ids).expect_err("a thousand markers do not fit");
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let most = (0..ids.len()).rev().find(|n| add(&mut log, "x", p, &ids[..*n]).is_ok()).expect("some fit");
    assert!(most > 100, "{most}");
    log.run(async |engine| engine.add_group_to_transaction("x", p, "g").await).expect("a little more fits");
    let large = vec![("g".to_owned(), Some("x".repeat(6000)))];
    let held = log.run(async |engine| engine.hold_group_offsets("x", p, "g", large).await);
    assert_eq!(held.expect_err("refused").kind(), ErrorKind::Invalid);
    end(&mut log, "x", p, Marker::Commit).expect("what was taken can end");
}

/// The seam shows what is committed, and says so.
#[tokio::test]
async fn the_seam_reads_what_is_committed() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let storage: Arc<dyn tidemill_core::storage::Storage> = Arc::new(disk.clone());
    let clock: Arc<dyn tidemill_core::clock::Clock> = Arc::new(clock);
    let engine = Engine::open(std::path::Path::new("/srv/log"), Config::default(), storage, clock).expect("new");
    let engine = Arc::new(engine);
    let session = Embedded::new(Arc::clone(&engine)).session(Caller::internal("test")).await.expect("session");
    session.create_topic("a", &Default::default()).await.expect("topic");
    let (of, id) = (TopicPartition::new("a", 0), engine.topic("a").expect("there").partitions[0]);
    let record = |text: &'static str| vec![Record::new(None, Bytes::from_static(text.as_bytes()))];
    session.append(&of, record("before")).await.expect("appended");
    let p = engine.init_producer(Some("x"), TIMEOUT, None).await.expect("opened");
    engine.add_partitions_to_transaction("x", p, &[id]).await.expect("added");
    let batch = |sequence| numbered(p.id, p.epoch, sequence, 2, true);
    engine.produce(vec![(id, batch(0))]).await.remove(0).expect("taken");
    session.append(&of, record("behind")).await.expect("appended");
    let bounds = session.bounds(std::slice::from_ref(&of)).await.expect("bounds")[0];
    assert_eq!(bounds.durable_offset, 1, "what can be read now");
    let options = FetchOptions::default();
    let chunk = session.fetch(&of, 0, &options).await.expect("fetched");
    assert_eq!((chunk.records.len(), chunk.next_offset), (1, 1));
    let wait = FetchOptions { max_wait: Duration::from_secs(30), ..options };
    let waiting = session.fetch(&of, 1, &wait);
    let ending = engine.end_transaction("x", p, Marker::Abort);
    let (chunk, ended) = tokio::join!(waiting, ending);
    ended.expect("aborted");
    let chunk = chunk.expect("fetched");
    assert_eq!(chunk.records.iter().map(|r| r.offset).collect::<Vec<_>>(), [3], "neither aborted nor markers");
    assert_eq!(chunk.next_offset, 5);
    engine.close().expect("closed");
}

/// A transaction pins no commit log: its records are in segments, and what is known of it is in the manifest.
#[test]
fn checkpoints_pass_open_transactions() {
    let (disk, clock) = (SimDisk::new(1), SimClock::default());
    let (mut log, ids) = open(&disk, &clock);
    let p = init(&mut log, "x").expect("opened");
    add(&mut log, "x", p, &ids).expect("added");
    write(&mut log, ids[0], p, 0).expect("taken");
    for tag in 0..200 {
        log.append(vec![(ids[1], crate::harness::batch(tag, 1, 4000))]).expect("the commit log is used again");
    }
    log.stepper.checkpoint().expect("checkpoint");
    let before = ends(&log, ids[0]);
    let mut log = Stepped::open(&disk.image(Keep::Nothing), small(), &clock).expect("again");
    assert!(log.engine.recovery().checkpoint_lsn > 400_000, "{:?}", log.engine.recovery());
    assert_eq!(ends(&log, ids[0]), before);
    assert_eq!(before, (2, 0));
    end(&mut log, "x", p, Marker::Abort).expect("aborted");
    assert_eq!(shown(&log.engine, ids[0]), []);
    log.stepper.checkpoint().expect("checkpoint");
    let log = Stepped::open(&disk.image(Keep::Nothing), small(), &clock).expect("the first one again");
    assert_eq!(ends(&log, ids[0]).1, 0);
}

/// A topic that is deleted keeps no transaction from ending.
#[test]
fn a_transaction_ends_without_a_topic_that_is_gone() {
    let (mut log, ids) = open(&SimDisk::new(1), &SimClock::default());
    let other = log.create("b", 1).expect("topic")[0];
    let p = init(&mut log, "x").expect("opened");
    add(&mut log, "x", p, &[ids[0], other]).expect("added");
    write(&mut log, ids[0], p, 0).expect("taken");
    write(&mut log, other, p, 0).expect("taken");
    log.run(async |engine| engine.delete_topic("b").await).expect("deleted");
    end(&mut log, "x", p, Marker::Commit).expect("committed");
    assert_eq!(shown(&log.engine, ids[0]).len(), 2);
}

/// How the log fails its users.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Manifests say nothing of producers.
    NotKept,
    /// A reader takes what is durable for what is committed.
    ReadsAll,
}

/// How a transaction stands with its client.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Open,
    /// The end was asked for; the answer is still to come.
    Ending(Marker),
    Ended(Marker),
    /// Another producer, or the time, will end it.
    Left,
}

#[derive(Debug, Clone)]
struct History {
    fate: Fate,
    /// Partition, offset, and value of each record that was acknowledged.
    records: Vec<(PartitionId, i64, String)>,
    held: Option<String>,
}

/// A client of one transactional id.
struct Client {
    name: String,
    identity: Option<ProducerIdentity>,
    /// Of the present transaction: its number in the history, and its partitions.
    present: Option<(usize, BTreeSet<PartitionId>)>,
    sequences: BTreeMap<PartitionId, i32>,
    /// Sent, and not answered.
    pending: Option<(PartitionId, Bytes, Vec<String>)>,
}

struct Bench {
    disk: SimDisk,
    clock: SimClock,
    rng: Rng,
    log: Stepped,
    ids: Vec<PartitionId>,
    clients: Vec<Client>,
    history: Vec<History>,
    plain: Vec<(PartitionId, i64, String)>,
    stable: BTreeMap<PartitionId, i64>,
    tags: u64,
    fault: Fault,
    crashes: u64,
}

fn batch_of(values: &[String], producer: ProducerIdentity, sequence: i32, transactional: bool) -> Bytes {
    let mut builder = BatchBuilder::default();
    for value in values {
        builder.push(&Record::new(None, Bytes::from(value.clone())), Timestamp(1)).expect("small");
    }
    builder.finish_as(producer.id, producer.epoch, sequence, transactional)
}

impl Bench {
    fn new(seed: u64, fault: Fault) -> Result<Self> {
        let (disk, clock) = (SimDisk::new(seed), SimClock::default());
        let mut log = Stepped::open(&disk, small(), &clock)?;
        let ids = log.create("a", 3)?;
        let client = |name: &str| Client {
            name: name.to_owned(),
            identity: None,
            present: None,
            sequences: BTreeMap::new(),
            pending: None,
        };
        Ok(Self {
            disk,
            clock,
            rng: Rng(seed),
            log,
            ids,
            clients: ["x", "y", "z"].map(client).into(),
            history: Vec::new(),
            plain: Vec::new(),
            stable: BTreeMap::new(),
            tags: 0,
            fault,
            crashes: 0,
        })
    }

    /// Calls the log; where the power fails meanwhile, nothing is told and the log is opened anew.
    fn call<T>(&mut self, call: impl AsyncFnOnce(&Engine) -> Result<T>) -> Result<Option<T>, Error> {
        self.crashing(|log| log.run(call))
    }

    fn crashing<T>(&mut self, act: impl FnOnce(&mut Stepped) -> Result<T>) -> Result<Option<T>, Error> {
        let image = Arc::new(Mutex::new(None));
        if self.rng.below(12) == 0 {
            let (slot, at) = (Arc::clone(&image), self.disk.ops() + self.rng.below(4) as u64);
            let seed = self.rng.next();
            let keep = [Keep::Nothing, Keep::Everything, Keep::LastWrite, Keep::Random(seed)][self.rng.below(4)];
            self.disk.observe(move |disk, op| {
                if op == at {
                    *slot.lock().expect("whole") = Some(disk.image(keep));
                }
            });
        }
        let result = act(&mut self.log);
        self.disk.stop_observing();
        let Some(disk) = image.lock().expect("whole").take() else { return result.map(Some) };
        self.disk = disk;
        self.open()?;
        Ok(None)
    }

    fn open(&mut self) -> Result<()> {
        self.crashes += 1;
        if self.fault == Fault::NotKept {
            strip_producers(&self.disk);
        }
        self.log = Stepped::open(&self.disk, small(), &self.clock)?;
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let failed = |e: Error| format!("{e:?}");
        match self.rng.below(40) {
            0 => drop(self.crashing(|log| log.stepper.checkpoint()).map_err(failed)?),
            1 => drop(self.crashing(|log| log.stepper.write_behind(true)).map_err(failed)?),
            2 => self.open().map_err(failed)?,
            3 => {
                self.clock.advance(Duration::from_secs(self.rng.below(25) as u64));
                self.log.stepper.housekeep();
                let _ = self.crashing(|log| log.stepper.commit()).map_err(failed)?;
            }
            4 | 5 => {
                let id = self.ids[self.rng.below(self.ids.len())];
                self.tags += 1;
                let value = format!("plain {}", self.tags);
                let batch = batch_of(std::slice::from_ref(&value), ProducerIdentity { id: -1, epoch: -1 }, -1, false);
                let outcome: Option<Outcome> =
                    self.call(async |engine| engine.append(vec![(id, batch)], None).await).map_err(failed)?;
                self.plain.extend(outcome.map(|outcome| (id, outcome.base_offsets[0], value)));
            }
            _ => {
                let i = self.rng.below(self.clients.len());
                self.client_step(i).map_err(failed)?;
            }
        }
        self.judge()
    }

    /// A client does what it would do next; one that is fenced, or dies, begins anew.
    fn client_step(&mut self, i: usize) -> Result<()> {
        let name = self.clients[i].name.clone();
        let Some(identity) = self.clients[i].identity else {
            if let Some(identity) = self.call(async |engine| engine.init_producer(Some(&name), TIMEOUT, None).await)? {
                self.clients[i].identity = Some(identity);
            }
            return Ok(());
        };
        let done = self.client_call(i, &name, identity);
        match done {
            Err(error)
                if matches!(
                    error.reason(),
                    Some(Reason::ProducerFenced | Reason::InvalidProducerEpoch | Reason::InvalidProducerId)
                ) =>
            {
                // Its transaction took too long.
                self.die(i);
                Ok(())
            }
            done => done,
        }
    }

    fn die(&mut self, i: usize) {
        let client = &mut self.clients[i];
        if let Some((number, _)) = client.present.take()
            && let fate = &mut self.history[number].fate
            && !matches!(fate, Fate::Ended(_))
        {
            // An end that was asked for and then fenced did not come about; what was left is aborted.
            *fate = Fate::Left;
        }
        client.identity = None;
        client.sequences.clear();
        client.pending = None;
    }

    fn client_call(&mut self, i: usize, name: &str, identity: ProducerIdentity) -> Result<()> {
        if self.rng.below(30) == 0
            && self.clients[i].present.as_ref().is_none_or(|(n, _)| self.history[*n].fate == Fate::Open)
        {
            self.die(i);
            return Ok(());
        }
        let Some((number, partitions)) = self.clients[i].present.clone() else {
            let partitions: BTreeSet<_> = self.ids.iter().copied().filter(|_| self.rng.coin()).collect();
            let asked: Vec<_> = partitions.iter().copied().collect();
            if asked.is_empty() {
                return Ok(());
            }
            let added = self.call(async |engine| engine.add_partitions_to_transaction(name, identity, &asked).await)?;
            if added.is_some() {
                self.clients[i].present = Some((self.history.len(), partitions));
                self.history.push(History { fate: Fate::Open, records: Vec::new(), held: None });
            }
            return Ok(());
        };
        if let Fate::Ending(marker) = self.history[number].fate {
            return self.end(i, name, identity, number, marker);
        }
        if self.clients[i].pending.is_some() || self.rng.below(5) > 0 {
            return self.send(i, identity, number, &partitions);
        }
        if self.rng.below(3) == 0 {
            self.tags += 1;
            let value = format!("at {}", self.tags);
            let offsets = vec![("g".to_owned(), Some(value.clone()))];
            if self.call(async |engine| engine.add_group_to_transaction(name, identity, "g").await)?.is_none() {
                return Ok(());
            }
            // Whether it is held or not: it is asked again until it is known.
            while self
                .call(async |engine| engine.hold_group_offsets(name, identity, "g", offsets.clone()).await)?
                .is_none()
            {}
            self.history[number].held = Some(value);
            return Ok(());
        }
        let marker = if self.rng.coin() { Marker::Commit } else { Marker::Abort };
        self.history[number].fate = Fate::Ending(marker);
        self.end(i, name, identity, number, marker)
    }

    fn end(&mut self, i: usize, name: &str, identity: ProducerIdentity, number: usize, marker: Marker) -> Result<()> {
        let ended = if name == "z" {
            // The second version of the protocol.
            let next = self.call(async |engine| engine.end_transaction_with_next(name, identity, marker).await)?;
            if next.is_some() {
                self.clients[i].identity = next;
                self.clients[i].sequences.clear();
            }
            next.is_some()
        } else {
            self.call(async |engine| engine.end_transaction(name, identity, marker).await)?.is_some()
        };
        if ended {
            self.history[number].fate = Fate::Ended(marker);
            self.clients[i].present = None;
        }
        Ok(())
    }

    fn send(
        &mut self,
        i: usize,
        identity: ProducerIdentity,
        number: usize,
        in_it: &BTreeSet<PartitionId>,
    ) -> Result<()> {
        let (id, batch, values) = match self.clients[i].pending.clone() {
            Some(pending) => pending,
            None => {
                let id = *in_it.iter().nth(self.rng.below(in_it.len())).expect("one");
                let values: Vec<_> = (0..1 + self.rng.below(3))
                    .map(|_| {
                        self.tags += 1;
                        format!("{number}/{}", self.tags)
                    })
                    .collect();
                let sequence = self.clients[i].sequences.entry(id).or_default();
                let batch = batch_of(&values, identity, *sequence, true);
                *sequence += values.len() as i32;
                (id, batch, values)
            }
        };
        self.clients[i].pending = Some((id, batch.clone(), values.clone()));
        let answer = self.call(async |engine| engine.produce(vec![(id, batch)]).await.remove(0))?;
        if let Some(Produced { base_offset, .. }) = answer {
            self.clients[i].pending = None;
            let records = values.into_iter().enumerate().map(|(n, value)| (id, base_offset + n as i64, value));
            self.history[number].records.extend(records);
        }
        Ok(())
    }

    /// What is shown below the last stable offset is what was committed, all of it and nothing else, whole transactions.
    fn judge(&mut self) -> Result<(), String> {
        let bounds = self.log.engine.cut(&self.ids).map_err(|e| format!("{e:?}"))?;
        let stable: BTreeMap<_, _> =
            self.ids.iter().copied().zip(bounds.iter().map(|b| b.last_stable_offset)).collect();
        let mut found: BTreeSet<(PartitionId, i64, String)> = BTreeSet::new();
        for id in &self.ids {
            if self.stable.get(id).is_some_and(|before| stable[id] < *before) {
                return Err(format!("the last stable offset of {} went back", id.0));
            }
            let all = if self.fault == Fault::ReadsAll {
                let batches = self.log.engine.read(*id, 0, usize::MAX, i64::MAX).map_err(|e| format!("{e:?}"))?.0;
                batches.iter().filter(|b| !b.header().is_control()).flat_map(values).collect()
            } else {
                let shown = shown(&self.log.engine, *id);
                let step = [1, 300, 5000][self.rng.below(3)];
                if consumed(&self.log.engine, *id, step) != shown {
                    return Err(format!("a consumer of Kafka's makes something else of {}", id.0));
                }
                shown
            };
            found.extend(all.into_iter().map(|(offset, value)| (*id, offset, value)));
        }
        self.stable = stable.clone();
        for (id, offset, value) in self.plain.iter().filter(|(id, offset, _)| *offset < stable[id]) {
            if !found.remove(&(*id, *offset, value.clone())) {
                return Err(format!("{value} is not shown at {}@{offset}", id.0));
            }
        }
        for (number, History { fate, records, .. }) in self.history.iter().enumerate() {
            let below: Vec<_> = records.iter().filter(|(id, offset, _)| *offset < stable[id]).collect();
            let seen = below.iter().filter(|record| found.remove(record)).count();
            let right = match fate {
                Fate::Open | Fate::Left | Fate::Ended(Marker::Abort) | Fate::Ending(Marker::Abort) => seen == 0,
                Fate::Ended(Marker::Commit) => seen == below.len(),
                // It is not known yet whether it is; whole it is in any case.
                Fate::Ending(Marker::Commit) => seen == 0 || seen == below.len(),
            };
            if !right {
                return Err(format!("transaction {number} ({fate:?}): {seen} of {} records are shown", below.len()));
            }
        }
        // What is left may be a batch whose answer was lost, of a transaction that was committed: there is none, since each
        // client asks again before it ends; or an append whose answer was lost.
        match found.into_iter().find(|(_, _, value)| !value.starts_with("plain ")) {
            Some(wrong) => Err(format!("{wrong:?} is shown, and was not committed")),
            None => Ok(()),
        }
    }

    /// All clients come to their end: then nothing is open, and the group is where the last commit left it.
    fn finish(&mut self) -> Result<(), String> {
        for i in 0..self.clients.len() {
            while self.clients[i].present.is_some() {
                self.client_step(i).map_err(|e| format!("{e:?}"))?;
                self.judge()?;
            }
        }
        self.clock.advance(Duration::from_secs(901));
        self.log.stepper.housekeep();
        loop {
            match self.log.stepper.commit().map_err(|e| format!("{e:?}"))? {
                Turn::Idle => break,
                Turn::Committed(_) => {}
                Turn::Blocked => self.log.stepper.write_behind(true).map_err(|e| format!("{e:?}"))?,
            }
        }
        self.judge()?;
        let bounds = self.log.engine.cut(&self.ids).map_err(|e| format!("{e:?}"))?;
        if let Some(open) = bounds.iter().find(|b| b.last_stable_offset != b.durable_offset) {
            return Err(format!("a transaction is open for ever: {open:?}"));
        }
        let held: BTreeSet<_> = self
            .history
            .iter()
            .filter(|h| h.fate == Fate::Ended(Marker::Commit))
            .filter_map(|h| h.held.clone())
            .collect();
        let offset = self.log.engine.table(Table::Groups).get("g").map(|entry| entry.value.clone());
        match offset {
            Some(offset) if !held.contains(&offset) => Err(format!("the group is {offset}, committed were {held:?}")),
            None if !held.is_empty() => Err(format!("the group is nowhere, committed were {held:?}")),
            _ => Ok(()),
        }
    }
}

fn run(seed: u64, fault: Fault, steps: usize) -> Result<(u64, usize), String> {
    let mut bench = Bench::new(seed, fault).map_err(|e| format!("{e:?}"))?;
    let told = |e: String| format!("seed {seed}: {e}");
    for _ in 0..steps {
        bench.step().map_err(told)?;
    }
    bench.finish().map_err(told)?;
    let committed = bench.history.iter().filter(|h| h.fate == Fate::Ended(Marker::Commit)).count();
    Ok((bench.crashes, committed))
}

#[test]
fn nobody_reads_what_is_aborted_wherever_it_crashes() {
    let (mut crashes, mut committed) = (0, 0);
    for seed in 0..20 {
        let told = run(seed, Fault::None, 250).unwrap_or_else(|fault| panic!("{fault}"));
        (crashes, committed) = (crashes + told.0, committed + told.1);
    }
    println!("{crashes} crashes, {committed} transactions committed");
    assert!(crashes > 200 && committed > 100, "{crashes} crashes, {committed} transactions committed");
}

/// `TIDEMILL_SEEDS=1000 cargo test -p tidemill-core --release -- --ignored soak`
#[test]
#[ignore = "runs as long as TIDEMILL_SEEDS says"]
fn soak() {
    let number = |name: &str, usual: u64| std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(usual);
    let from = number("TIDEMILL_FIRST_SEED", 10_000);
    for seed in from..from + number("TIDEMILL_SEEDS", 100) {
        run(seed, Fault::None, 400).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

/// A log that fails must turn the test red.
fn caught(fault: Fault) {
    let found = (0..20).find_map(|seed| run(seed, fault, 250).err());
    println!("{}", found.expect("the fault goes unnoticed"));
}

#[test]
fn twin_manifests_say_nothing_of_transactions() {
    caught(Fault::NotKept);
}

#[test]
fn twin_readers_take_all_that_is_durable() {
    caught(Fault::ReadsAll);
}
