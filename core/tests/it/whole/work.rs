//! The workload: everything a log does, in an order that a seed decides, and crashes, failing syncs and full disks between.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    Error, ErrorKind, Result as Answer,
    batch::{BatchBuilder, Marker},
    clock::Clock,
    engine::{Engine, Fence, ProducerIdentity, Table, Turn},
    record::{Record, Timestamp},
    topic::{Cleanup, Durability, PartitionId, TimestampType, TopicConfig, TopicSpec},
};

use super::{
    model::{Effect, Fate, Model, Rec, Sent, Transaction},
    view::View,
};
use crate::{
    harness::{Stepped, position_batch, small},
    sim::{EIO, Fault, Keep, Lie, Rng, SimClock, SimDisk},
};

pub type Judged = Result<(), String>;

const TIMEOUT: Duration = Duration::from_secs(60);

/// What the test itself does wrong, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// A record vanishes.
    DropRecord,
    /// What was aborted counts as committed.
    CommitAborted,
    /// A duplicate is answered with another offset.
    ForgetDuplicate,
    /// The log's start goes back to before what was deleted.
    Resurrect,
    /// One batch of a request that nobody answered is overlooked.
    SplitRequest,
}

/// A transaction of the log's own on its way.
struct Local {
    id: u64,
    staged: Vec<Vec<u64>>,
}

/// A transactional id and who writes under it.
struct Client {
    name: String,
    identity: Option<ProducerIdentity>,
    transaction: Option<usize>,
    partitions: Vec<PartitionId>,
    sequences: BTreeMap<PartitionId, i32>,
}

/// An idempotent producer of one partition.
struct Idempotent {
    identity: ProducerIdentity,
    partition: PartitionId,
    sequence: i32,
    /// The newest last.
    sent: Vec<u64>,
    unsure: Option<u64>,
}

pub struct Work {
    pub disk: SimDisk,
    pub clock: SimClock,
    pub rng: Rng,
    pub model: Model,
    pub log: Option<Stepped>,
    pub told: VecDeque<String>,
    pub tally: BTreeMap<&'static str, u64>,
    sabotage: Sabotage,
    tags: u64,
    locals: Vec<Local>,
    clients: Vec<Client>,
    idempotent: Vec<Idempotent>,
    fences: Vec<Fence>,
    /// A crash or a failing sync is on its way.
    may_stop: bool,
    pub stopped: bool,
    full: bool,
    crash_in: Option<usize>,
    /// The disk breaks a promise: the run ends with the first crash.
    pub lie: Lie,
    /// What a lying disk led to.
    pub verdict: Option<&'static str>,
}

impl Work {
    pub fn new(seed: u64, sabotage: Sabotage) -> Self {
        let client = |i: usize| Client {
            name: format!("x{i}"),
            identity: None,
            transaction: None,
            partitions: Vec::new(),
            sequences: BTreeMap::new(),
        };
        Self {
            disk: SimDisk::new(seed),
            clock: SimClock::default(),
            rng: Rng(seed),
            model: Model::default(),
            log: None,
            told: VecDeque::new(),
            tally: BTreeMap::new(),
            sabotage,
            tags: 0,
            locals: Vec::new(),
            clients: (0..2).map(client).collect(),
            idempotent: Vec::new(),
            fences: Vec::new(),
            may_stop: false,
            stopped: false,
            full: false,
            crash_in: None,
            lie: Lie::None,
            verdict: None,
        }
    }

    fn tell(&mut self, text: String) {
        if self.told.len() == 14 {
            self.told.pop_front();
        }
        self.told.push_back(text);
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn log(&mut self) -> &mut Stepped {
        self.log.as_mut().expect("open")
    }

    fn now(&self) -> i64 {
        self.clock.now().0
    }

    /// Has the log answer. Nothing where the log stopped meanwhile.
    fn drive<T>(&mut self, call: impl AsyncFnOnce(&Engine) -> Answer<T>) -> Result<Option<Answer<T>>, String> {
        let Stepped { engine, stepper } = self.log.as_mut().expect("open");
        let mut future = pin!(call(engine));
        for turn in 0..400 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                if output.is_err() && stepper.commit().is_err() {
                    self.stopped = true;
                    return Ok(None);
                }
                return Ok(Some(output));
            }
            match stepper.commit() {
                // What goes wrong here stops the log, or the disk is full.
                Ok(Turn::Blocked) => drop(stepper.write_behind(true)),
                Ok(_) => {}
                Err(_) => {
                    self.stopped = true;
                    return Ok(None);
                }
            }
            if turn > 20 {
                if self.full {
                    self.disk.set_capacity(None);
                    self.full = false;
                }
                // Some is tried again after a while only.
                self.clock.advance(Duration::from_millis(500));
            }
        }
        let (full, why) = (engine.is_disk_full(), stepper.write_behind(true));
        Err(format!("a request waits for ever; disk full: {full}, {:?}, {why:?}", stepper.commit()))
    }

    /// A request whose effects are all there or none.
    fn unit<T>(
        &mut self,
        effects: Vec<Effect>,
        call: impl AsyncFnOnce(&Engine) -> Answer<T>,
    ) -> Result<Option<Answer<T>>, String> {
        self.model.ask(effects);
        let outcome = self.drive(call)?;
        if let Some(answer) = &outcome {
            let effects = self.model.pending.pop().expect("just asked");
            if answer.is_ok() {
                effects.iter().for_each(|effect| self.model.apply(effect));
            }
        }
        Ok(outcome)
    }

    /// A refusal must be one of these, or tell of the full disk.
    fn expect_refusal(&mut self, error: &Error, kinds: &[ErrorKind]) -> Judged {
        self.count("refused");
        // Since it was said, the writer may have found that there is room again.
        let was_full = error.is_disk_full() && self.tally.contains_key("disk filled");
        if kinds.contains(&error.kind()) || was_full {
            return Ok(());
        }
        Err(format!("refused without a reason: {error:?}"))
    }

    /// Makes a batch and notes it as sent. Its first record tells what it is.
    fn make(&mut self, partition: PartitionId, producer: Option<(ProducerIdentity, i32, Option<usize>)>) -> u64 {
        self.tags += 1;
        let tag = self.tags;
        let size = [40, 200, 900, 2500, 6000][self.rng.below(5)];
        let time = self.now();
        let mut builder = BatchBuilder::default();
        let mut records = Vec::new();
        for number in 0..1 + self.rng.below(4) {
            let key = format!("k{}", self.rng.below(7));
            let value = (number == 0 || self.rng.below(4) > 0).then(|| {
                let mut value = format!("{tag}/{number}/");
                while value.len() < size {
                    value.push(char::from(b'a' + self.rng.below(26) as u8));
                }
                value
            });
            let record = Record::new(Bytes::from(key.clone()), value.clone().map(Bytes::from));
            builder.push(&record, Timestamp(time)).expect("small");
            records.push(Rec { key, value, time });
        }
        let bytes = match producer {
            Some((of, sequence, transaction)) => builder.finish_as(of.id, of.epoch, sequence, transaction.is_some()),
            None => builder.finish(),
        };
        let transaction = producer.and_then(|(_, _, transaction)| transaction);
        self.model.sent.insert(tag, Sent { partition, records, bytes, transaction, base: None });
        tag
    }

    fn any_partition(&mut self) -> Option<PartitionId> {
        let ids: Vec<_> = self.model.partitions.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.rng.below(ids.len())])
    }

    fn some_batches(&mut self, most: usize) -> Vec<u64> {
        (0..1 + self.rng.below(most)).filter_map(|_| self.any_partition().map(|id| self.make(id, None))).collect()
    }

    fn payload(&self, tags: &[u64]) -> Vec<(PartitionId, Bytes)> {
        tags.iter().map(|tag| (self.model.sent[tag].partition, self.model.sent[tag].bytes.clone())).collect()
    }

    pub fn step(&mut self) -> Judged {
        match self.rng.below(120) {
            0..28 => self.append()?,
            28..36 => self.local_step()?,
            36..48 => self.idempotent_step()?,
            48..64 => self.client_step()?,
            64..67 => self.create_or_delete()?,
            67..70 => self.alter()?,
            70..71 => self.grow()?,
            71..74 => self.delete_records()?,
            74..76 => self.put()?,
            76..78 => self.open_writer()?,
            78..84 => self.chore("write behind", |log| drop(log.stepper.write_behind(false)))?,
            84..88 => self.chore("write all", |log| drop(log.stepper.write_behind(true)))?,
            88..90 => self.chore("checkpoint", |log| drop(log.stepper.checkpoint()))?,
            90..93 => {
                let steps = 1 + self.rng.below(10);
                self.chore("checkpoint steps", |log| {
                    // What failed is not gone on with.
                    let _ = (0..steps).all(|_| log.stepper.checkpoint_step().is_ok());
                })?
            }
            93..97 => self.chore("housekeep", |log| log.stepper.housekeep())?,
            97..101 => {
                let steps = 1 + self.rng.below(12);
                self.chore("housekeep steps", |log| (0..steps).for_each(|_| _ = log.stepper.housekeep_step()))?
            }
            101..103 => self.chore("note", |log| drop(log.stepper.note()))?,
            103..107 => {
                let seconds = [1, 5, 20, 70][self.rng.below(4)];
                self.tell(format!("{seconds} s later"));
                self.clock.advance(Duration::from_secs(seconds));
            }
            107..109 => self.change_room(),
            109..110 => self.fail_a_sync(),
            110..113 => self.schedule_crash(),
            113..114 => self.close()?,
            _ => self.look()?,
        }
        self.pass_crash()
    }

    /// After each step: a crash that is due, and a log that stopped.
    fn pass_crash(&mut self) -> Judged {
        if let Some(left) = &mut self.crash_in {
            *left = left.saturating_sub(1);
            if self.stopped || *left == 0 {
                self.crash_in = None;
                return self.reopen(true);
            }
        }
        if !self.stopped {
            return Ok(());
        }
        if !self.may_stop {
            let why = self.log().drive_failure();
            return Err(format!("the log stopped on a disk that is sound: {why}"));
        }
        // After a failed sync, the machine may live on or not.
        let crash = self.rng.coin();
        self.reopen(crash)
    }

    fn chore(&mut self, what: &'static str, chore: impl FnOnce(&mut Stepped)) -> Judged {
        self.tell(what.to_owned());
        self.count(what);
        chore(self.log());
        self.drain()
    }

    /// Has done what the log asks of itself.
    fn drain(&mut self) -> Judged {
        let Stepped { stepper, .. } = self.log.as_mut().expect("open");
        for turn in 0..100 {
            match stepper.commit() {
                Ok(Turn::Idle) => return Ok(()),
                Ok(Turn::Committed(_)) => {}
                Ok(Turn::Blocked) => drop(stepper.write_behind(true)),
                Err(_) => {
                    self.stopped = true;
                    return Ok(());
                }
            }
            if turn > 20 {
                if self.full {
                    self.disk.set_capacity(None);
                    self.full = false;
                }
                self.clock.advance(Duration::from_millis(500));
            }
        }
        Err("the log does not come to rest".to_owned())
    }

    fn schedule_crash(&mut self) {
        if self.crash_in.is_none() {
            let after = self.rng.below(50) as u64;
            self.disk.crash_at(self.disk.ops() + after);
            self.crash_in = Some(1 + self.rng.below(12));
            self.may_stop = true;
            self.tell(format!("crash after {after} calls"));
        }
    }

    fn fail_a_sync(&mut self) {
        let path = ["/commitlog/", "/topics/", "/manifest", "/superblock"][self.rng.below(4)];
        let after = self.rng.below(6);
        self.disk.inject(Fault { operation: "sync", path, after, error: EIO, forever: false });
        self.may_stop = true;
        self.tell(format!("a sync of {path} fails after {after}"));
        self.count("failing sync");
    }

    fn change_room(&mut self) {
        self.full = !self.full;
        let room = self.full.then(|| self.disk.used() + self.rng.below(20_000));
        self.disk.set_capacity(room);
        if room.is_some() {
            self.count("disk filled");
        }
        self.tell(format!("room: {room:?}"));
        self.count("full disk");
    }

    fn close(&mut self) -> Judged {
        self.tell("close".to_owned());
        self.disk.set_capacity(None);
        self.full = false;
        // What goes wrong at the end costs nothing.
        drop(self.log().stepper.close());
        let crash = self.may_stop || self.rng.coin();
        self.reopen(crash)
    }

    fn keep(&mut self) -> Keep {
        match self.rng.below(6) {
            0 => Keep::Nothing,
            1 => Keep::Everything,
            2 => Keep::LastWrite,
            _ => Keep::Random(self.rng.next()),
        }
    }

    /// Opens the log again, as a crash leaves it or after the process alone has ended.
    pub fn reopen(&mut self, crash: bool) -> Judged {
        self.log = None;
        self.locals.clear();
        if crash {
            let keep = self.keep();
            self.disk = self.disk.image(keep);
            self.tell(format!("crash, {keep:?}"));
            self.count("crash");
        }
        self.disk.heal();
        self.disk.set_capacity(None);
        (self.full, self.stopped, self.may_stop, self.crash_in) = (false, false, false, None);
        if crash && self.rng.below(4) == 0 {
            // The recovery crashes as well.
            self.disk.crash_at(self.disk.ops() + self.rng.below(30) as u64);
            drop(Stepped::open(&self.disk, small(), &self.clock));
            let keep = self.keep();
            self.disk = self.disk.image(keep);
            self.tell(format!("crash of the recovery, {keep:?}"));
        }
        if crash && self.lie != Lie::None {
            return self.judge_lie();
        }
        let log = Stepped::open(&self.disk, small(), &self.clock).map_err(|e| format!("open failed: {e:?}"))?;
        let damage = (&log.engine.recovery().damage, log.engine.damage());
        if !damage.0.is_empty() || !damage.1.is_empty() {
            return Err(format!("an honest crash was called damage: {damage:?}"));
        }
        self.log = Some(log);
        self.look()
    }

    /// After the crash of a disk that lied: what is lost may be the end, or is told; nothing is invented.
    fn judge_lie(&mut self) -> Judged {
        let Ok(log) = Stepped::open(&self.disk, small(), &self.clock) else {
            self.verdict = Some("refused");
            return Ok(());
        };
        let told = !log.engine.recovery().damage.is_empty() || !log.engine.damage().is_empty();
        let mut rng = self.rng.clone();
        let view = match View::of(&log.engine, &mut rng) {
            Ok(view) => view,
            Err(fault) if told || fault.contains("Corrupt") => {
                self.verdict = Some("told");
                return Ok(());
            }
            Err(fault) => return Err(fault),
        };
        self.verdict = Some(if told { "told" } else { "a beginning" });
        let judged = self.model.check_prefix(&view, told);
        drop(log);
        judged
    }

    /// Compares all that is shown with the model.
    pub fn look(&mut self) -> Judged {
        self.count("look");
        let mut rng = self.rng.clone();
        let mut view = View::of(&self.log.as_ref().expect("open").engine, &mut rng)?;
        self.rng = rng;
        self.spoil(&mut view);
        let before = self.model.pending.len();
        self.model.learn(&view)?;
        if before > 0 {
            self.count("unanswered");
        }
        let unsure: Vec<usize> = (0..self.clients.len()).filter(|_| before > 0).collect();
        for i in unsure {
            // It asks for a new identity: nobody knows how far the old one got.
            self.clients[i].identity = None;
        }
        self.model.check(&view)
    }

    fn spoil(&mut self, view: &mut View) {
        match self.sabotage {
            Sabotage::DropRecord => {
                let plain = |config: &TopicConfig| config.cleanup == Cleanup::Delete && config.retention.is_none();
                let ids: Vec<_> = view.topics.values().filter(|t| plain(&t.1)).flat_map(|t| t.0.clone()).collect();
                for id in ids {
                    let partition = view.partitions.get_mut(&id).expect("listed");
                    if let Some(i) = partition.raw.iter().rposition(|found| !found.control) {
                        let gone = partition.raw.remove(i).offset;
                        partition.shown.retain(|offset| *offset != gone);
                        return;
                    }
                }
            }
            Sabotage::Resurrect => {
                for (id, partition) in &mut view.partitions {
                    if self.model.partitions.get(id).is_some_and(|own| own.floor > 0) {
                        partition.start = 0;
                    }
                }
            }
            Sabotage::SplitRequest => {
                let split = self.model.pending.iter().find(|unit| unit.len() > 1);
                if let Some(Effect::Batch(tag)) = split.and_then(|unit| unit.first())
                    && let Some((id, base)) = view.places().get(tag)
                {
                    let partition = view.partitions.get_mut(id).expect("there");
                    partition.raw.retain(|found| found.offset < *base);
                }
            }
            _ => {}
        }
    }

    /// Several requests at once, so that groups have several frames.
    fn append(&mut self) -> Judged {
        let requests: Vec<Vec<u64>> = (0..1 + self.rng.below(4)).map(|_| self.some_batches(2)).collect();
        let requests: Vec<_> = requests.into_iter().filter(|tags| !tags.is_empty()).collect();
        self.tell(format!("append {requests:?}"));
        let mut payloads = Vec::new();
        for tags in &requests {
            self.model.ask(tags.iter().map(|tag| Effect::Batch(*tag)).collect());
            payloads.push(self.payload(tags));
        }
        let before = self.model.pending.len() - requests.len();
        let outcome = self.drive(async |engine| {
            let calls: Vec<_> = payloads.into_iter().map(|batches| engine.enqueue(batches)).collect();
            let mut answers = Vec::new();
            for call in calls {
                answers.push(match call {
                    Ok(answer) => answer.await.unwrap_or_else(|_| Err(Error::closed("stopped"))),
                    Err(error) => Err(error),
                });
            }
            // Where one of them tells that the log stopped, the others are open as well.
            match answers.iter().position(|a| a.as_ref().is_err_and(|e| e.kind() == ErrorKind::Closed)) {
                Some(_) => Err(Error::closed("stopped")),
                None => Ok(answers),
            }
        })?;
        let Some(answers) = outcome else { return Ok(()) };
        self.model.pending.truncate(before);
        for (tags, answer) in requests.iter().zip(answers.map_err(|e| format!("append: {e:?}"))?) {
            match answer {
                Ok(outcome) => {
                    for (tag, base) in tags.iter().zip(outcome.base_offsets) {
                        self.model.place(*tag, base)?;
                    }
                    self.count("append");
                }
                Err(error) => self.expect_refusal(&error, &[])?,
            }
        }
        Ok(())
    }

    fn local_step(&mut self) -> Judged {
        if self.model.partitions.is_empty() {
            return Ok(());
        }
        if self.locals.len() < 2 && self.rng.coin() {
            let id = self.log().engine.begin_transaction();
            self.locals.push(Local { id, staged: Vec::new() });
        }
        if self.locals.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.locals.len());
        match self.rng.below(7) {
            0 => {
                let gone = self.locals.swap_remove(i);
                self.log().engine.abort(gone.id);
                self.tell(format!("abort local {}", gone.id));
                self.drain()
            }
            1..4 => {
                let local = self.locals.swap_remove(i);
                self.commit_local(local)
            }
            _ => {
                let tags = self.some_batches(3);
                let (id, batches) = (self.locals[i].id, self.payload(&tags));
                self.tell(format!("stage {tags:?} of local {id}"));
                match self.drive(async |engine| engine.stage(id, batches).await)? {
                    Some(Ok(())) => self.locals[i].staged.push(tags),
                    Some(Err(error)) => {
                        self.expect_refusal(&error, &[ErrorKind::Invalid])?;
                        let gone = self.locals.swap_remove(i);
                        self.log().engine.abort(gone.id);
                        self.drain()?;
                    }
                    None => {}
                }
                Ok(())
            }
        }
    }

    fn commit_local(&mut self, local: Local) -> Judged {
        let inline = self.some_batches(2);
        let mut tags: Vec<u64> = local.staged.iter().flatten().copied().collect();
        tags.extend(&inline);
        self.tags += 1;
        let (owner, value) = (format!("o{}", self.rng.below(2)), format!("at {}", self.tags));
        let mut batches = self.payload(&inline);
        batches.push((Table::Positions.partition(), position_batch(&owner, "p", &value)));
        let key = String::from_utf8_lossy(&Engine::position_key(&owner, "p")).into_owned();
        let fence = (!self.fences.is_empty() && self.rng.coin()).then(|| self.fences[0].clone());
        self.tell(format!("commit local {} with {tags:?}", local.id));
        let mut effects: Vec<_> = tags.iter().map(|tag| Effect::Batch(*tag)).collect();
        effects.push(Effect::Table(Table::Positions, key, Some(value)));
        // Its batches get the next offsets, in this order.
        let mut ends = BTreeMap::new();
        for id in self.model.partitions.keys() {
            let bounds = self.log.as_ref().expect("open").engine.cut(&[*id]).map_err(|e| format!("{e:?}"))?;
            ends.insert(*id, bounds[0].durable_offset);
        }
        let (id, count) = (local.id, local.staged.len());
        match self.unit(effects, async |engine| engine.commit(id, count, batches, fence).await)? {
            Some(Ok(_)) => {
                for tag in tags {
                    let sent = &self.model.sent[&tag];
                    let end = ends.get_mut(&sent.partition).ok_or("committed to a topic that was deleted")?;
                    let base = *end;
                    *end += sent.records.len() as i64;
                    self.model.place(tag, base)?;
                }
                self.count("local commit");
                Ok(())
            }
            // For its age, to free the commit log, or a topic of it is gone.
            Some(Err(error)) => {
                self.expect_refusal(&error, &[ErrorKind::Conflict, ErrorKind::NotFound, ErrorKind::Invalid])
            }
            None => Ok(()),
        }
    }

    fn idempotent_step(&mut self) -> Judged {
        let live = &self.model.partitions;
        self.idempotent.retain(|own| live.contains_key(&own.partition));
        if self.idempotent.len() < 3 && self.rng.coin() {
            let Some(partition) = self.any_partition() else { return Ok(()) };
            match self.drive(async |engine| engine.init_producer(None, TIMEOUT, None).await)? {
                Some(Ok(identity)) => {
                    let own = Idempotent { identity, partition, sequence: 0, sent: Vec::new(), unsure: None };
                    self.idempotent.push(own);
                }
                Some(Err(error)) => return self.expect_refusal(&error, &[]),
                None => return Ok(()),
            }
        }
        if self.idempotent.is_empty() {
            return Ok(());
        }
        let i = self.rng.below(self.idempotent.len());
        let own = &self.idempotent[i];
        if let Some(tag) = own.unsure {
            return self.send(i, tag, "again");
        }
        if !own.sent.is_empty() && self.rng.below(3) == 0 {
            let recent = own.sent.len().saturating_sub(5);
            let tag = own.sent[recent + self.rng.below(own.sent.len() - recent)];
            return self.send(i, tag, "once more");
        }
        let (partition, identity, sequence) = (own.partition, own.identity, own.sequence);
        let tag = self.make(partition, Some((identity, sequence, None)));
        self.send(i, tag, "send")
    }

    /// Sends a batch of an idempotent producer, perhaps not for the first time.
    fn send(&mut self, i: usize, tag: u64, what: &str) -> Judged {
        let known = self.model.sent[&tag].base;
        let mut payload = self.payload(&[tag]);
        if self.rng.below(4) == 0 {
            payload.push(payload[0].clone());
        }
        self.tell(format!("{what} {tag} by {:?}, known at {known:?}", self.idempotent[i].identity));
        self.idempotent[i].unsure = Some(tag);
        let effects = known.map_or(vec![Effect::Batch(tag)], |_| Vec::new());
        let outcome = self.unit(effects, async |engine| {
            // Sent twice at once, either may be refused where the disk is full.
            let answers = engine.produce(payload).await;
            let bases: BTreeSet<_> = answers.iter().flatten().map(|produced| produced.base_offset).collect();
            assert!(bases.len() < 2, "twice in one call, at {bases:?}");
            bases.first().map_or_else(|| Err(answers.into_iter().find_map(Answer::err).expect("one")), |base| Ok(*base))
        })?;
        match outcome {
            Some(Ok(base)) => {
                let spoil = known.is_some() && self.sabotage == Sabotage::ForgetDuplicate;
                self.model.place(tag, base + i64::from(spoil))?;
                self.count(if known.is_some() { "duplicate" } else { "idempotent" });
                let own = &mut self.idempotent[i];
                own.unsure = None;
                if !own.sent.contains(&tag) {
                    own.sent.push(tag);
                    own.sequence += self.model.sent[&tag].records.len() as i32;
                }
                Ok(())
            }
            Some(Err(error)) => self.expect_refusal(&error, &[]),
            None => Ok(()),
        }
    }

    fn client_step(&mut self) -> Judged {
        let i = self.rng.below(self.clients.len());
        let (name, identity) = (self.clients[i].name.clone(), self.clients[i].identity);
        let Some(identity) = identity.filter(|_| self.rng.below(25) > 0) else { return self.init_client(i) };
        let open = self.clients[i].transaction.filter(|number| self.model.transactions[*number].fate == Fate::Open);
        let Some(number) = open else { return self.begin(i, &name, identity) };
        match self.rng.below(10) {
            0..2 => self.end(i, &name, identity, number, Marker::Commit),
            2 => self.end(i, &name, identity, number, Marker::Abort),
            3 => {
                self.tags += 1;
                let (key, value) = (format!("g/{}", self.rng.below(3)), format!("\"{}\"\n", self.tags));
                self.tell(format!("hold {key} = {value:?} for {name}"));
                let offsets = vec![(key.clone(), Some(value.clone()))];
                let held = self.unit(Vec::new(), async |engine| {
                    engine.add_group_to_transaction(&name, identity, "g").await?;
                    engine.hold_group_offsets(&name, identity, "g", offsets).await
                })?;
                match held {
                    Some(Ok(())) => drop(self.model.transactions[number].held.insert(key, value)),
                    Some(Err(error)) => return self.refuse_client(i, &error),
                    None => {}
                }
                Ok(())
            }
            _ => {
                let partitions = &self.clients[i].partitions;
                let partition = partitions[self.rng.below(partitions.len())];
                let sequence = self.clients[i].sequences.get(&partition).copied().unwrap_or(0);
                let tag = self.make(partition, Some((identity, sequence, Some(number))));
                let payload = self.payload(&[tag]);
                self.tell(format!("{tag} to {partition:?} in {name}'s transaction {number}"));
                let sent =
                    self.unit(vec![Effect::Batch(tag)], async |engine| engine.produce(payload).await.remove(0))?;
                match sent {
                    Some(Ok(produced)) => {
                        self.model.place(tag, produced.base_offset)?;
                        let next = sequence + self.model.sent[&tag].records.len() as i32;
                        self.clients[i].sequences.insert(partition, next);
                        self.count("in transaction");
                        Ok(())
                    }
                    Some(Err(error)) => self.refuse_client(i, &error),
                    None => Ok(()),
                }
            }
        }
    }

    fn refuse_client(&mut self, i: usize, error: &Error) -> Judged {
        self.clients[i].identity = None;
        self.expect_refusal(error, &[ErrorKind::Conflict, ErrorKind::NotFound])
    }

    fn init_client(&mut self, i: usize) -> Judged {
        let name = self.clients[i].name.clone();
        let open = |t: &Transaction| t.name == name && t.fate == Fate::Open;
        let open = self.model.transactions.iter().rposition(open);
        let effects = open.map(|number| Effect::End(number, Marker::Abort)).into_iter().collect();
        self.tell(format!("init {name}, open is {open:?}"));
        match self.unit(effects, async |engine| engine.init_producer(Some(&name), TIMEOUT, None).await)? {
            Some(Ok(identity)) => {
                let client = &mut self.clients[i];
                (client.identity, client.transaction) = (Some(identity), None);
                client.sequences.clear();
                Ok(())
            }
            Some(Err(error)) => self.expect_refusal(&error, &[]),
            None => Ok(()),
        }
    }

    fn begin(&mut self, i: usize, name: &str, identity: ProducerIdentity) -> Judged {
        let mut partitions: Vec<_> = (0..2).filter_map(|_| self.any_partition()).collect();
        partitions.sort_unstable_by_key(|id| id.0);
        partitions.dedup();
        if partitions.is_empty() {
            return Ok(());
        }
        self.tell(format!("begin {name} in {partitions:?}"));
        let deadline = self.now() + TIMEOUT.as_millis() as i64;
        let added = partitions.clone();
        let add =
            self.unit(Vec::new(), async |engine| engine.add_partitions_to_transaction(name, identity, &added).await)?;
        match add {
            Some(Ok(())) => {
                let transaction =
                    Transaction { name: name.to_owned(), fate: Fate::Open, deadline, held: BTreeMap::new() };
                self.model.transactions.push(transaction);
                self.clients[i].transaction = Some(self.model.transactions.len() - 1);
                self.clients[i].partitions = partitions;
                Ok(())
            }
            Some(Err(error)) => self.refuse_client(i, &error),
            None => Ok(()),
        }
    }

    fn end(&mut self, i: usize, name: &str, identity: ProducerIdentity, number: usize, marker: Marker) -> Judged {
        self.tell(format!("end {name}'s transaction {number}: {marker:?}"));
        let effects = vec![Effect::End(number, marker)];
        match self.unit(effects, async |engine| engine.end_transaction(name, identity, marker).await)? {
            Some(Ok(())) => {
                self.clients[i].transaction = None;
                if self.sabotage == Sabotage::CommitAborted {
                    self.model.transactions[number].fate = Fate::Committed;
                }
                self.count("end");
                Ok(())
            }
            Some(Err(error)) => self.refuse_client(i, &error),
            None => Ok(()),
        }
    }

    fn config(&mut self) -> TopicConfig {
        let rng = &mut self.rng;
        let seconds = |s: u64| Duration::from_secs(s);
        TopicConfig {
            cleanup: [Cleanup::Delete, Cleanup::Delete, Cleanup::Compact, Cleanup::CompactDelete][rng.below(4)],
            retention: [None, None, Some(seconds(30)), Some(seconds(200))][rng.below(4)],
            retention_bytes: [None, None, Some(8 << 10), Some(40 << 10)][rng.below(4)],
            segment_bytes: [None, Some(4 << 10), Some(8 << 10)][rng.below(3)],
            segment_age: [seconds(3600), seconds(15)][rng.below(2)],
            timestamp_type: [TimestampType::CreateTime, TimestampType::LogAppendTime][rng.below(2)],
            tombstone_delay: [seconds(0), seconds(60), seconds(3600)][rng.below(3)],
            min_compaction_lag: [seconds(0), seconds(0), seconds(20)][rng.below(3)],
            dirty_percent: [0, 10, 50][rng.below(3)],
            durability: [Durability::Commit, Durability::Interval, Durability::Os][rng.below(3)],
            ..TopicConfig::default()
        }
    }

    pub fn create_or_delete(&mut self) -> Judged {
        let name = ["a", "b", "c", "d"][self.rng.below(4)].to_owned();
        if self.model.topics.contains_key(&name) {
            self.tell(format!("delete {name}"));
            let effects = vec![Effect::Delete(name.clone())];
            if let Some(Err(error)) = self.unit(effects, async |engine| engine.delete_topic(&name).await)? {
                self.expect_refusal(&error, &[])?;
            }
            return Ok(());
        }
        let (partitions, config) = (1 + self.rng.below(2) as u32, self.config());
        self.tell(format!("create {name}: {partitions}, {config:?}"));
        let effects = vec![Effect::Create(name.clone())];
        let spec = TopicSpec { partitions, config };
        match self.unit(effects, async |engine| engine.create_topic(&name, &spec).await)? {
            Some(Ok(info)) => self.model.settle(&name, &info.partitions, &info.config),
            Some(Err(error)) => self.expect_refusal(&error, &[]),
            None => Ok(()),
        }
    }

    fn any_topic(&mut self) -> Option<String> {
        let names: Vec<_> = self.model.topics.keys().cloned().collect();
        (!names.is_empty()).then(|| names[self.rng.below(names.len())].clone())
    }

    fn alter(&mut self) -> Judged {
        let Some(name) = self.any_topic() else { return Ok(()) };
        let config = self.config();
        self.tell(format!("alter {name}: {config:?}"));
        let effects = vec![Effect::Alter(name.clone(), config.clone())];
        let change = move |own: &mut TopicConfig| {
            *own = config;
            Ok(())
        };
        if let Some(Err(error)) = self.unit(effects, async |engine| engine.alter_topic(&name, change).await)? {
            self.expect_refusal(&error, &[])?;
        }
        Ok(())
    }

    fn grow(&mut self) -> Judged {
        let Some(name) = self.any_topic() else { return Ok(()) };
        let count = self.model.topics[&name].partitions.len() as u32 + 1;
        self.tell(format!("grow {name} to {count}"));
        let effects = vec![Effect::Grow(name.clone(), count)];
        match self.unit(effects, async |engine| engine.add_partitions(&name, count).await)? {
            Some(Ok(info)) => self.model.settle(&name, &info.partitions, &info.config),
            Some(Err(error)) => self.expect_refusal(&error, &[]),
            None => Ok(()),
        }
    }

    fn delete_records(&mut self) -> Judged {
        let Some(id) = self.any_partition() else { return Ok(()) };
        let bounds = self.log().engine.cut(&[id]).map_err(|e| format!("{e:?}"))?[0];
        let span = (bounds.durable_offset - bounds.log_start_offset) as usize;
        let to = bounds.log_start_offset + self.rng.below(span + 1) as i64;
        self.tell(format!("delete records of {id:?} below {to} of {bounds:?}"));
        let effects = vec![Effect::Floor(id, to)];
        match self.unit(effects, async |engine| engine.delete_records(id, Some(to)).await)? {
            Some(Ok(start)) if start < to => Err(format!("records below {to} were deleted, and the start is {start}")),
            Some(Ok(_)) => {
                self.count("delete records");
                Ok(())
            }
            Some(Err(error)) => self.expect_refusal(&error, &[ErrorKind::Invalid]),
            None => Ok(()),
        }
    }

    fn put(&mut self) -> Judged {
        let key = format!("s{}", self.rng.below(4));
        self.tags += 1;
        let value = (self.rng.below(4) > 0).then(|| format!("v{}", self.tags));
        self.tell(format!("put {key} = {value:?}"));
        let expected = self.log().engine.table(Table::Schemas).get(&key).map(|entry| entry.version);
        let effects = vec![Effect::Table(Table::Schemas, key.clone(), value.clone())];
        let put = async |engine: &Engine| engine.put(Table::Schemas, &key, value, expected).await;
        if let Some(Err(error)) = self.unit(effects, put)? {
            self.expect_refusal(&error, &[])?;
        }
        Ok(())
    }

    /// Opens a writer, and lets an older one try to write.
    fn open_writer(&mut self) -> Judged {
        let owner = format!("w{}", self.rng.below(2));
        let before = self.model.tables.get(&(Table::Writers as u32, owner.clone()));
        let epoch: u64 = before.map_or(0, |text| text.parse().expect("a number"));
        self.tell(format!("open writer {owner}"));
        let effects = vec![Effect::Table(Table::Writers, owner.clone(), Some((epoch + 1).to_string()))];
        match self.unit(effects, async |engine| engine.open_writer(&owner).await)? {
            Some(Ok(fence)) if fence.epoch == epoch + 1 => {
                self.fences.retain(|other| other.owner != fence.owner);
                self.fences.push(fence);
            }
            Some(Ok(fence)) => return Err(format!("{fence:?} after {epoch}")),
            Some(Err(error)) => return self.expect_refusal(&error, &[]),
            None => return Ok(()),
        }
        let tags = self.some_batches(1);
        let (payload, stale) = (self.payload(&tags), Fence { owner, epoch });
        match self.drive(async |engine| engine.append(payload, Some(stale)).await)? {
            Some(Ok(_)) if !tags.is_empty() => Err("a fenced writer wrote".to_owned()),
            Some(Err(error)) => self.expect_refusal(&error, &[ErrorKind::Conflict, ErrorKind::Invalid]),
            _ => Ok(()),
        }
    }
}

impl Stepped {
    /// Why the log stopped.
    fn drive_failure(&mut self) -> String {
        self.stepper.commit().map_or_else(|error| format!("{error:?}"), |turn| format!("{turn:?}"))
    }
}
