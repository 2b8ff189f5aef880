//! Sessions and writers behind a [`Gate`].

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Action, Caller, Gate};
use crate::{
    Error, ErrorKind, Result,
    log::{
        Appended, Bounds, Change, Chunk, Entry, FetchOptions, GroupOffset, Lease, MAX_SLOTS, Member, MemberOptions,
        Session, Table, Topic, TopicChange, Writer,
    },
    record::{Record, Timestamp},
    topic::{INTERNAL_PREFIX, MAX_NAME_LEN, TopicConfig, TopicPartition, TopicSpec, validate_name},
};

/// Puts a session of the log itself behind the gate.
pub(in crate::log) fn guarded(inner: Arc<dyn Session>, gate: Arc<dyn Gate>, caller: Caller) -> Arc<dyn Session> {
    Arc::new(Guarded { inner, pass: Pass { gate, caller } })
}

/// One caller at the gate.
#[derive(Clone)]
struct Pass {
    gate: Arc<dyn Gate>,
    caller: Caller,
}

impl Pass {
    fn may(&self, action: Action, resource: &str) -> Result<()> {
        self.gate.authorize(&self.caller, action, resource)
    }

    fn may_append(&self, to: &TopicPartition) -> Result<()> {
        self.may(Action::Write, &to.topic)?;
        if to.topic.starts_with(INTERNAL_PREFIX) {
            return Err(Error::new(ErrorKind::Denied, format!("{} is internal", to.topic)));
        }
        Ok(())
    }

    fn charge(&self, action: Action, bytes: usize) -> Result<()> {
        self.gate.charge(&self.caller, action, bytes)
    }
}

fn size_of(records: &[Record]) -> usize {
    records.iter().map(Record::size_bytes).sum()
}

struct Guarded {
    inner: Arc<dyn Session>,
    pass: Pass,
}

#[async_trait]
impl Session for Guarded {
    fn log_id(&self) -> String {
        self.inner.log_id()
    }

    async fn topics(&self) -> Result<Vec<Topic>> {
        let mut topics = self.inner.topics().await?;
        topics.retain(|topic| {
            !topic.name.starts_with(INTERNAL_PREFIX) && self.pass.may(Action::Describe, &topic.name).is_ok()
        });
        Ok(topics)
    }

    async fn topic(&self, name: &str) -> Result<Option<Topic>> {
        self.pass.may(Action::Describe, name)?;
        self.inner.topic(name).await
    }

    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic> {
        self.pass.may(Action::Alter, name)?;
        self.inner.create_topic(name, spec).await
    }

    async fn topic_config(&self, name: &str) -> Result<TopicConfig> {
        self.pass.may(Action::Describe, name)?;
        self.inner.topic_config(name).await
    }

    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()> {
        self.pass.may(Action::Alter, name)?;
        self.inner.alter_topic(name, change).await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.pass.may(Action::Alter, name)?;
        self.inner.delete_topic(name).await
    }

    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended> {
        self.pass.may_append(to)?;
        if records.is_empty() {
            return Err(Error::invalid("an append needs a record"));
        }
        self.pass.charge(Action::Write, size_of(&records))?;
        self.inner.append(to, records).await
    }

    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk> {
        self.pass.may(Action::Read, &from.topic)?;
        let chunk = self.inner.fetch(from, offset, options).await?;
        self.pass.charge(Action::Read, chunk.records.iter().map(|r| r.value.as_ref().map_or(0, Bytes::len)).sum())?;
        Ok(chunk)
    }

    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>> {
        partitions.iter().try_for_each(|p| self.pass.may(Action::Describe, &p.topic))?;
        self.inner.bounds(partitions).await
    }

    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>> {
        self.pass.may(Action::Describe, &of.topic)?;
        self.inner.offset_at_time(of, time).await
    }

    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>> {
        self.pass.may(Action::Write, owner)?;
        let inner = self.inner.writer(owner).await?;
        let (owner, pass) = (owner.to_owned(), self.pass.clone());
        Ok(Box::new(GuardedWriter { inner, pass, owner, state: State::Sound, under_way: None, open: None }))
    }

    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>> {
        self.pass.may(Action::Read, owner)?;
        self.inner.positions(owner).await
    }

    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>> {
        self.pass.may(Action::Read, &table.topic())?;
        self.inner.table(table).await
    }

    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64> {
        self.pass.may(Action::Write, &table.topic())?;
        self.inner.put(table, key, value, expected).await
    }

    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>> {
        let resource = check_group(group)?;
        self.pass.may(Action::Write, &resource)?;
        for topic in topics {
            self.pass.may(Action::Read, topic)?;
            validate_name(topic)?;
            if topic.starts_with(INTERNAL_PREFIX) {
                return Err(Error::new(ErrorKind::Denied, format!("{topic} is internal")));
            }
        }
        if topics.is_empty() {
            return Err(Error::invalid("a member reads at least one topic"));
        }
        options.validate()?;
        let inner = self.inner.join(group, topics, options).await?;
        Ok(Box::new(GuardedMember { inner, pass: self.pass.clone(), resource }))
    }

    async fn lease(&self, group: &str, slots: u32) -> Result<Lease> {
        let resource = check_group(group)?;
        self.pass.may(Action::Write, &resource)?;
        validate_name(group)?;
        if group.len() > MAX_LEASE_NAME_LEN {
            return Err(Error::invalid(format!(
                "a lease's group name of {} bytes exceeds {MAX_LEASE_NAME_LEN}",
                group.len()
            )));
        }
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(Error::invalid(format!("{slots} slots is not in 1..{MAX_SLOTS}")));
        }
        let lease = self.inner.lease(group, slots).await?;
        let pass = self.pass.clone();
        Ok(lease.map(|inner| Box::new(GuardedMember { inner, pass, resource })))
    }

    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
        self.pass.may(Action::Read, &check_group(group)?)?;
        partitions.iter().try_for_each(|p| self.pass.may(Action::Describe, &p.topic))?;
        self.inner.committed(group, partitions).await
    }
}

/// A lease's group is a part of a topic's name.
const MAX_LEASE_NAME_LEN: usize = 200;

/// Checks a group's name, and gives the name of its resource.
fn check_group(group: &str) -> Result<String> {
    if group.is_empty() || group.len() > MAX_NAME_LEN {
        return Err(Error::invalid(format!("group name of {} bytes is not in 1..{MAX_NAME_LEN}", group.len())));
    }
    if group.starts_with(INTERNAL_PREFIX) {
        return Err(Error::new(ErrorKind::Denied, format!("groups named {INTERNAL_PREFIX}* are the log's own")));
    }
    Ok(format!("group:{group}"))
}

struct GuardedMember {
    inner: Box<dyn Member>,
    pass: Pass,
    /// The group's.
    resource: String,
}

#[async_trait]
impl Member for GuardedMember {
    fn partitions(&self) -> &BTreeSet<TopicPartition> {
        self.inner.partitions()
    }

    async fn changed(&mut self, max_wait: Duration) -> Result<Option<Change>> {
        self.pass.may(Action::Write, &self.resource)?;
        self.inner.changed(max_wait).await
    }

    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        self.pass.may(Action::Write, &self.resource)?;
        self.pass.charge(Action::Write, offsets.values().map(|offset| 8 + offset.metadata.len()).sum())?;
        self.inner.commit(offsets).await
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        self.inner.leave().await
    }
}

/// What a writer may still do.
enum State {
    Sound,
    /// The transaction can only be aborted.
    Broken(String),
    /// For ever.
    Ended(ErrorKind, String),
}

/// A call that changes the transaction. It is remembered over its await: a dropped future leaves it behind.
#[derive(Clone, Copy)]
enum Call {
    Append,
    Commit,
    Abort,
}

struct GuardedWriter {
    inner: Box<dyn Writer>,
    pass: Pass,
    owner: String,
    state: State,
    under_way: Option<Call>,
    /// Bytes of the open transaction's records; `None` where none is open.
    open: Option<usize>,
}

impl GuardedWriter {
    /// What a dropped call left behind counts as a failure.
    fn settle(&mut self) {
        match self.under_way.take() {
            Some(Call::Append) => self.state = State::Broken("its future was dropped".into()),
            Some(call) => {
                let what = if matches!(call, Call::Commit) { "a commit" } else { "an abort" };
                self.state = State::Ended(ErrorKind::Closed, format!("{what} was dropped; open it anew"));
            }
            None => {}
        }
    }

    fn usable(&mut self) -> Result<()> {
        self.settle();
        let owner = &self.owner;
        match &self.state {
            State::Sound => Ok(()),
            State::Broken(why) => Err(Error::new(
                ErrorKind::Closed,
                format!("the transaction of {owner:?} can only be aborted, an append failed: {why}"),
            )),
            State::Ended(kind, why) => Err(Error::new(*kind, format!("the writer of {owner:?} has ended: {why}"))),
        }
    }

    /// Keeps what a failed call means for the next ones.
    fn done<T>(&mut self, call: Call, result: Result<T>) -> Result<T> {
        self.under_way = None;
        let Err(error) = &result else { return result };
        self.state = match (call, error.kind()) {
            (_, ErrorKind::Conflict) => State::Ended(ErrorKind::Conflict, error.to_string()),
            (Call::Append, _) | (Call::Commit, ErrorKind::Invalid) => State::Broken(error.to_string()),
            _ => State::Ended(ErrorKind::Closed, format!("{error}; open it anew")),
        };
        result
    }
}

#[async_trait]
impl Writer for GuardedWriter {
    fn positions(&self) -> &BTreeMap<String, String> {
        self.inner.positions()
    }

    async fn append(&mut self, to: &TopicPartition, records: Vec<Record>) -> Result<()> {
        self.usable()?;
        let bytes = size_of(&records);
        self.under_way = Some(Call::Append);
        let result = match self.pass.may_append(to) {
            Ok(()) => self.inner.append(to, records).await,
            Err(error) => Err(error),
        };
        *self.open.get_or_insert(0) += bytes;
        self.done(Call::Append, result)
    }

    fn set_position(&mut self, name: &str, value: Option<String>) {
        self.open.get_or_insert(0);
        self.inner.set_position(name, value);
    }

    async fn commit(&mut self) -> Result<()> {
        self.usable()?;
        if let Some(bytes) = self.open.take()
            && let Err(refused) = self.pass.charge(Action::Write, bytes)
        {
            self.abort().await?;
            return Err(refused);
        }
        self.under_way = Some(Call::Commit);
        let result = self.inner.commit().await;
        self.done(Call::Commit, result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.settle();
        if matches!(self.state, State::Ended(..)) {
            return self.usable();
        }
        self.open = None;
        self.under_way = Some(Call::Abort);
        let result = self.inner.abort().await;
        self.done(Call::Abort, result)?;
        self.state = State::Sound;
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}
