//! A member of a group of the cluster: a consumer of librdkafka that subscribes, but reads nothing. It is polled by a
//! thread of its own, which answers for the member; librdkafka's own thread gives the signs of life.
//!
//! What librdkafka assigns and revokes is kept as changes to be told, in order. A revocation is answered, and so others
//! can have the partitions, when the member has asked for what comes after it, or was never told of them. Who takes too
//! long is taken out of the group here: librdkafka has no time for this that is shorter than the session's.
//!
//! The assignment that librdkafka itself is given is always empty: then it fetches nothing. What the group has assigned
//! it knows apart from that.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{
    ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::{RDKafkaErrorCode as Code, RDKafkaRespErr},
};
use tokio::sync::oneshot;

use super::{
    cluster::{Cluster, Context, REQUEST_TIME},
    error::{coded, from_kafka, kind_of},
    native::Commits,
    rebalance::{Due, Told},
};
use crate::{
    Error, ErrorKind, Result,
    log::{Assignor, Change, GroupOffset, MemberOptions, member::Membership},
    topic::TopicPartition,
};

/// How often the thread looks by itself; what comes wakes it.
const TURN: Duration = Duration::from_millis(100);
/// The same while a commit is under way: its answer wakes nobody.
const COMMIT_TURN: Duration = Duration::from_millis(1);
/// How often librdkafka tells the group that the member lives, and so hears of what changes.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often it looks for topics that come, go or grow.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

enum Work {
    Wake,
    Commit(BTreeMap<TopicPartition, GroupOffset>, oneshot::Sender<Result<(), Code>>),
    Leave(oneshot::Sender<()>),
}

/// What librdkafka calls.
struct Events {
    told: Arc<Told>,
    cooperative: bool,
}

impl Events {
    /// Says that a revocation is done.
    fn let_go(&self, consumer: &BaseConsumer<Self>) {
        let done = match self.cooperative {
            true => consumer.incremental_unassign(&TopicPartitionList::new()),
            false => consumer.unassign(),
        };
        if let Err(error) = done {
            tracing::debug!(%error, "librdkafka does not take the end of a revocation");
        }
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        Context.log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Context.error(error, reason);
    }
}

impl ConsumerContext for Events {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let of = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
            TopicPartition::new(e.topic(), u32::try_from(e.partition()).unwrap_or(u32::MAX))
        };
        let partitions = list.elements().iter().map(of).collect();
        if event != RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if !self.told.revoked(partitions, consumer.assignment_lost()) {
                self.let_go(consumer);
            }
            return;
        }
        let empty = TopicPartitionList::new();
        let taken = match self.cooperative {
            true => consumer.incremental_assign(&empty),
            false => consumer.assign(&empty),
        };
        match taken {
            Ok(()) => self.told.assigned(partitions),
            Err(error) => tracing::debug!(%error, "librdkafka does not take what it has assigned"),
        }
    }
}

/// A member as the seam's `Kept` has it.
pub(super) struct GroupMember {
    group: String,
    told: Arc<Told>,
    work: Sender<Work>,
}

impl GroupMember {
    /// Becomes a member; what it gets comes later.
    pub(super) fn start(cluster: &Cluster, group: &str, topics: &[String], options: &MemberOptions) -> Result<Self> {
        let mut config = cluster.config();
        let millis = |time: Duration| time.as_millis().to_string();
        config
            .set("group.id", group)
            .set("session.timeout.ms", millis(options.session_time))
            .set("heartbeat.interval.ms", millis(HEARTBEAT.min(options.session_time / 3)))
            // It is also the time that the group gives its members to come back in a rebalance; never below the other.
            .set("max.poll.interval.ms", millis(options.rebalance_time.max(options.session_time)))
            .set("partition.assignment.strategy", strategy(options.assignor))
            .set("topic.metadata.refresh.interval.ms", millis(LOOK_AGAIN))
            .set("socket.timeout.ms", millis(options.session_time.min(REQUEST_TIME)))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false");
        if let Some(instance) = &options.instance {
            config.set("group.instance.id", instance);
        }
        let (work, inbox) = channel();
        let told = Arc::new(Told::default());
        let cooperative = options.assignor == Assignor::CooperativeSticky;
        let events = Events { told: Arc::clone(&told), cooperative };
        let consumer: BaseConsumer<Events> =
            config.create_with_context(events).map_err(|e| from_kafka(&e, format!("join group {group:?}")))?;
        let (wake, topics, patience) = (work.clone(), topics.to_vec(), options.rebalance_time);
        let serve = move || {
            let commits = Commits::of(consumer.client());
            Serving { commits, consumer, topics, patience, commit: None }.run(&inbox, &wake);
        };
        let thread = std::thread::Builder::new().name("tm-kafka-member".into()).spawn(serve);
        thread.map_err(|e| Error::unavailable("start a thread").with_source(e))?;
        Ok(Self { group: group.to_owned(), told, work })
    }

    fn give(&self, work: Work) -> Result<()> {
        self.work.send(work).map_err(|_| Error::closed(format!("the member of group {:?} has ended", self.group)))
    }
}

fn strategy(assignor: Assignor) -> &'static str {
    match assignor {
        Assignor::Range => "range",
        Assignor::RoundRobin => "roundrobin",
        Assignor::CooperativeSticky => "cooperative-sticky",
    }
}

#[async_trait]
impl Membership for GroupMember {
    async fn change(&mut self, max_wait: Duration) -> Result<Option<Change>> {
        let deadline = tokio::time::Instant::now() + max_wait;
        if self.told.answer() {
            self.give(Work::Wake)?;
        }
        loop {
            let come = self.told.come.notified();
            match self.told.next() {
                Ok(Some(change)) => {
                    if matches!(change, Change::Lost(_)) {
                        self.give(Work::Wake)?;
                    }
                    return Ok(Some(change));
                }
                Ok(None) => {}
                Err((kind, why)) => return Err(Error::new(kind, format!("group {:?}: {why}", self.group))),
            }
            if tokio::time::timeout_at(deadline, come).await.is_err() {
                return Ok(None);
            }
        }
    }

    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        let deadline = Instant::now() + REQUEST_TIME;
        loop {
            let (done, answer) = oneshot::channel();
            self.give(Work::Commit(offsets.clone(), done))?;
            let outcome = answer.await.unwrap_or(Err(Code::UnknownMemberId));
            let code = match outcome {
                Ok(()) => return Ok(()),
                Err(code) => code,
            };
            // The group deals anew: its next generation, or the loss of this member, is known soon.
            let moves = matches!(code, Code::RebalanceInProgress | Code::IllegalGeneration);
            if moves && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            let what = format!("commit offsets of group {:?}", self.group);
            return Err(match kind_of(code) {
                ErrorKind::Conflict if moves => Error::unavailable(format!("{what}: {code}")),
                ErrorKind::Conflict => Error::conflict(format!("{what}: this member was expelled")),
                _ => coded(code, what),
            });
        }
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        let (left, done) = oneshot::channel();
        self.give(Work::Leave(left))?;
        let late = || Error::unavailable(format!("group {:?} does not answer; it is left in its own time", self.group));
        tokio::time::timeout(REQUEST_TIME, done).await.map(drop).map_err(|_| late())
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let (left, _) = oneshot::channel();
        let _ = self.work.send(Work::Leave(left));
    }
}

/// The thread of a member.
struct Serving {
    commits: Commits,
    consumer: BaseConsumer<Events>,
    topics: Vec<String>,
    /// How long a member may take to let go.
    patience: Duration,
    /// The commit that is under way.
    commit: Option<oneshot::Sender<Result<(), Code>>>,
}

impl Serving {
    fn run(mut self, inbox: &Receiver<Work>, wake: &Sender<Work>) {
        let come = wake.clone();
        self.consumer.set_nonempty_callback(move || drop(come.send(Work::Wake)));
        self.subscribe();
        let mut waiting = std::collections::VecDeque::new();
        loop {
            match inbox.recv_timeout(if self.commit.is_some() { COMMIT_TURN } else { TURN }) {
                Ok(Work::Commit(offsets, done)) => waiting.push_back((offsets, done)),
                Ok(Work::Leave(left)) => {
                    self.leave();
                    let _ = left.send(());
                    return;
                }
                Ok(Work::Wake) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.leave(),
            }
            self.poll();
            self.answer_commit();
            self.turn();
            while self.commit.is_none()
                && let Some((offsets, done)) = waiting.pop_front()
            {
                self.begin_commit(&offsets, done);
            }
        }
    }

    fn told(&self) -> &Told {
        &self.consumer.client().context().told
    }

    fn subscribe(&self) {
        let topics: Vec<_> = self.topics.iter().map(String::as_str).collect();
        if let Err(error) = self.consumer.subscribe(&topics) {
            self.told().end(ErrorKind::Invalid, format!("subscribe to {topics:?}: {error}"));
        }
    }

    /// Takes what librdkafka has; what it calls is called here.
    fn poll(&self) {
        // It does not say when it has nothing more; what is left wakes the thread, or is found in the next turn.
        for _ in 0..16 {
            let Some(Err(error)) = self.consumer.poll(Duration::ZERO) else { continue };
            let fatal = self.consumer.client().fatal_error().map(|(code, _)| code);
            let code = fatal.or_else(|| error.rdkafka_error_code()).unwrap_or(Code::Fail);
            match code {
                Code::FencedInstanceId => {
                    self.told().end(ErrorKind::Conflict, "another member has taken this one's static name".into());
                }
                Code::InconsistentGroupProtocol => {
                    self.told().end(ErrorKind::Conflict, "its members deal in another way".into());
                    self.consumer.unsubscribe();
                }
                _ if fatal.is_some() || matches!(kind_of(code), ErrorKind::Denied | ErrorKind::Invalid) => {
                    self.told().end(kind_of(code), code.to_string());
                }
                _ => tracing::debug!(%error, "a member of a group reports an error"),
            }
        }
    }

    /// Answers a revocation where that is due, and comes back where the member knows that it was out.
    fn turn(&self) {
        let lost = self.consumer.assignment_lost();
        match self.told().due(lost, self.patience, self.commit.is_some()) {
            Due::Nothing => {}
            Due::LetGo => self.consumer.client().context().let_go(&self.consumer),
            Due::Expel => {
                self.consumer.unsubscribe();
                self.consumer.client().context().let_go(&self.consumer);
            }
            Due::Return => self.subscribe(),
        }
    }

    fn begin_commit(
        &mut self,
        offsets: &BTreeMap<TopicPartition, GroupOffset>,
        done: oneshot::Sender<Result<(), Code>>,
    ) {
        // Who was expelled and has come back must not commit what others may have.
        if !self.told().owns(offsets.keys()) {
            let _ = done.send(Err(Code::UnknownMemberId));
            return;
        }
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (of, GroupOffset { offset, metadata }) in offsets {
            let mut entry = list.add_partition(&of.topic, i32::try_from(of.partition).unwrap_or(i32::MAX));
            let _ = entry.set_offset(Offset::Offset(*offset));
            if !metadata.is_empty() {
                entry.set_metadata(metadata);
            }
        }
        match self.commits.send(self.consumer.client(), &list) {
            Ok(()) => self.commit = Some(done),
            Err(code) => drop(done.send(Err(code))),
        }
    }

    fn answer_commit(&mut self) {
        if self.commit.is_some()
            && let Some(outcome) = self.commits.take()
            && let Some(done) = self.commit.take()
        {
            let _ = done.send(outcome);
        }
    }

    /// Leaves the group; when this returns it has been told.
    fn leave(self) {
        if self.told().close() {
            self.consumer.client().context().let_go(&self.consumer);
        }
        drop(self.commits);
        drop(self.consumer);
    }
}
