//! Groups at the seam: a [`Member`] shares the partitions of topics with the other members of its group, a [`Lease`]
//! shares numbered slots of work.
//!
//! What holds for every implementation:
//! - a partition is in the hands of one member of its group at a time: nobody is told that it has it before its former
//!   member has let go of it, has left, or was expelled;
//! - a member is told what it gets and loses by [`Member::changed`], and only there. It keeps what is taken from it until
//!   it calls [`Member::changed`] again: that call is the answer, before which it finishes its work and commits;
//! - who does not answer within [`MemberOptions::rebalance_time`] is expelled, and so is who gives no sign of life for
//!   [`MemberOptions::session_time`]. Signs of life are given in the background, while the member exists: work that blocks
//!   does not cost membership, a process that dies does;
//! - who was expelled is told [`Change::Lost`], and joins again by itself; what it commits before it knows is refused;
//! - topics that are not there yet count as empty; that they come, go or grow is noticed within seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;

use crate::{Error, Result, topic::TopicPartition};

/// Most bytes of what a member commits beside an offset.
pub const MAX_OFFSET_METADATA: usize = 4096;

/// Most slots that a group can lease.
pub const MAX_SLOTS: u32 = 1000;

/// How partitions are dealt to the members of a group. All members of a group name the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignor {
    /// Of each topic by itself, each member gets a run of neighbours: the same of topics that are partitioned alike.
    Range,
    /// One by one over all topics.
    RoundRobin,
    /// As evenly as possible with as few moves as possible. Members keep working on what does not move.
    #[default]
    CooperativeSticky,
}

/// How to be a member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberOptions {
    /// How partitions are dealt.
    pub assignor: Assignor,
    /// The name of a static member. Who leaves, or dies, and comes back under its name within the session time gets back
    /// what it had, and nobody else is disturbed. A second one of the name fences the first.
    pub instance: Option<String>,
    /// Without a sign of life for this long a member is expelled: 6 s to 30 min.
    pub session_time: Duration,
    /// How long a member may take to let go of what is taken from it: up to 30 min.
    pub rebalance_time: Duration,
}

impl Default for MemberOptions {
    fn default() -> Self {
        Self {
            assignor: Assignor::default(),
            instance: None,
            session_time: Duration::from_secs(10),
            rebalance_time: Duration::from_secs(60),
        }
    }
}

impl MemberOptions {
    /// Checks the bounds.
    ///
    /// # Errors
    /// `Invalid` names what is out of its bounds.
    pub fn validate(&self) -> Result<()> {
        let longest = Duration::from_secs(30 * 60);
        if !(Duration::from_secs(6)..=longest).contains(&self.session_time) {
            return Err(Error::invalid(format!("session_time {:?} is not in 6 s..30 min", self.session_time)));
        }
        if !(Duration::from_millis(1)..=longest).contains(&self.rebalance_time) {
            return Err(Error::invalid(format!("rebalance_time {:?} is not in 1 ms..30 min", self.rebalance_time)));
        }
        if self.instance.as_ref().is_some_and(|name| name.is_empty() || name.len() > 249) {
            return Err(Error::invalid("the name of a static member has 1 to 249 bytes"));
        }
        Ok(())
    }
}

/// What a member gets or loses: partitions, or slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<T = TopicPartition> {
    /// These are the member's from now on. May be none: the group has come to rest, and there is nothing for this member.
    Assigned(BTreeSet<T>),
    /// These are taken away. They are the member's until it asks for the next change.
    Revoked(BTreeSet<T>),
    /// The member was expelled and these are no longer its own; others may have them. It joins again by itself.
    Lost(BTreeSet<T>),
}

impl<T> Change<T> {
    /// The same of something else.
    fn map<U: Ord>(self, of: impl Fn(T) -> U) -> Change<U> {
        match self {
            Self::Assigned(all) => Change::Assigned(all.into_iter().map(of).collect()),
            Self::Revoked(all) => Change::Revoked(all.into_iter().map(of).collect()),
            Self::Lost(all) => Change::Lost(all.into_iter().map(of).collect()),
        }
    }
}

/// How far a group has read a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupOffset {
    /// The offset to go on from.
    pub offset: i64,
    /// What the member wants to remember beside it, at most [`MAX_OFFSET_METADATA`] bytes.
    pub metadata: String,
}

impl GroupOffset {
    /// An offset without metadata.
    pub fn at(offset: i64) -> Self {
        Self { offset, metadata: String::new() }
    }
}

/// A member of a group. Dropping it leaves the group in its own time, at the latest after the session time.
#[async_trait]
pub trait Member: Send {
    /// The partitions that are the member's, by what it was told.
    fn partitions(&self) -> &BTreeSet<TopicPartition>;

    /// Waits for the next change, `max_wait` at most. If the last one was [`Change::Revoked`], this call says that the
    /// member has let go.
    ///
    /// # Errors
    /// `Conflict` where another member has taken its static name, or the group deals in another way than this member:
    /// the member has ended. `Unavailable` where the group cannot be reached: ask again.
    ///
    /// # Cancel safety
    /// A dropped future loses no change.
    async fn changed(&mut self, max_wait: Duration) -> Result<Option<Change>>;

    /// Commits how far partitions of this member are read; durable when this returns.
    ///
    /// # Errors
    /// `Conflict` where a partition is not, or no longer, the member's: nothing is committed. `Invalid` for a negative
    /// offset or too much metadata. `Unavailable` where the group does not come to rest in time: commit again.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the offsets are committed.
    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()>;

    /// Leaves the group; when this returns its partitions are free for others. A static member keeps its place for its
    /// session time.
    async fn leave(self: Box<Self>) -> Result<()>;
}

/// What an implementation has to give for a [`Member`]; `Kept` does the rest.
#[async_trait]
pub(in crate::log) trait Membership: Send {
    /// Waits for the next change, `max_wait` at most. A revocation that it has returned is answered by the next call.
    /// What it returns is what is then the member's own: `Lost` names any set, `Kept` knows better.
    async fn change(&mut self, max_wait: Duration) -> Result<Option<Change>>;

    /// Commits offsets that were checked; `Conflict` where the member was expelled since, whether told or not.
    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()>;

    /// Leaves the group.
    async fn leave(self: Box<Self>) -> Result<()>;
}

/// A [`Member`] that knows what it was told.
pub(in crate::log) struct Kept<M> {
    group: String,
    membership: Box<M>,
    own: BTreeSet<TopicPartition>,
    /// Of these, what is taken away.
    revoked: BTreeSet<TopicPartition>,
}

impl<M: Membership> Kept<M> {
    pub(in crate::log) fn new(group: &str, membership: M) -> Self {
        let (own, revoked) = (BTreeSet::new(), BTreeSet::new());
        Self { group: group.to_owned(), membership: Box::new(membership), own, revoked }
    }

    fn check(&self, offsets: &BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        for (of, GroupOffset { offset, metadata }) in offsets {
            if *offset < 0 {
                return Err(Error::invalid(format!("offset {offset} of {of} is negative")));
            }
            if metadata.len() > MAX_OFFSET_METADATA {
                let len = metadata.len();
                return Err(Error::invalid(format!(
                    "metadata of {len} bytes beside an offset exceeds {MAX_OFFSET_METADATA}"
                )));
            }
            if !self.own.contains(of) {
                return Err(Error::conflict(format!("{of} is not this member's of group {:?}", self.group)));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl<M: Membership> Member for Kept<M> {
    fn partitions(&self) -> &BTreeSet<TopicPartition> {
        &self.own
    }

    async fn changed(&mut self, max_wait: Duration) -> Result<Option<Change>> {
        for of in std::mem::take(&mut self.revoked) {
            self.own.remove(&of);
        }
        let mut change = self.membership.change(max_wait).await?;
        match &mut change {
            Some(Change::Assigned(new)) => self.own.extend(new.iter().cloned()),
            Some(Change::Revoked(taken)) => self.revoked = taken.clone(),
            Some(Change::Lost(lost)) => *lost = std::mem::take(&mut self.own),
            None => {}
        }
        Ok(change)
    }

    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        self.check(&offsets)?;
        if offsets.is_empty() {
            return Ok(());
        }
        self.membership.commit(offsets).await
    }

    async fn leave(self: Box<Self>) -> Result<()> {
        self.membership.leave().await
    }
}

/// Slots of work that this process holds: of each group's slots `0..slots`, each is held by one lease at a time. A task
/// takes the slot's work by hand; what it has done it commits in its writer's transactions, whose fence is what keeps a
/// process that does not know yet that it lost the slot from doing harm.
///
/// It is a [`Member`] over a topic of the log's own with a partition for each slot, and follows its rules. Dropping it
/// releases its slots in its own time.
pub struct Lease {
    member: Box<dyn Member>,
    held: BTreeSet<u32>,
}

impl Lease {
    /// The lease of a member whose partitions are the slots.
    pub(in crate::log) fn over(member: Box<dyn Member>) -> Self {
        Self { member, held: BTreeSet::new() }
    }

    /// The same behind another member.
    pub(in crate::log) fn map(self, behind: impl FnOnce(Box<dyn Member>) -> Box<dyn Member>) -> Self {
        Self { member: behind(self.member), held: self.held }
    }

    /// The slots that are held, by what was told.
    pub fn held(&self) -> &BTreeSet<u32> {
        &self.held
    }

    /// Waits for the next change of what is held, `max_wait` at most. If the last one was [`Change::Revoked`], this call
    /// says that the slots are let go.
    ///
    /// # Errors
    /// As [`Member::changed`].
    ///
    /// # Cancel safety
    /// A dropped future loses no change.
    pub async fn changed(&mut self, max_wait: Duration) -> Result<Option<Change<u32>>> {
        let change = self.member.changed(max_wait).await;
        self.held = self.member.partitions().iter().map(|of| of.partition).collect();
        Ok(change?.map(|change| change.map(|of| of.partition)))
    }

    /// Releases all slots; when this returns they are free for others.
    ///
    /// # Errors
    /// `Unavailable`; then they are free after the session time.
    pub async fn release(self) -> Result<()> {
        self.member.leave().await
    }
}
