//! A member of a group in this process.
//!
//! A task of its own does what a client of Kafka does: it joins, deals if it leads, syncs, and gives signs of life. What
//! changes it puts where [`Member::changed`](super::Member::changed) finds it, and it lets go of nothing before that was
//! answered. When the handle is dropped, the task ends and the member leaves; when the task is gone, with its runtime, the
//! member is expelled after its session time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Notify;

use super::{Assignor, Change, GroupOffset, MemberOptions, member::Membership};
use crate::{
    Error, Result,
    group::{
        Groups, Identity, JoinRequest, Joined, NewOffset, Refusal, SyncRequest,
        assign::{self, Assignment, Counts, Deal, Wish, Wishes},
    },
    topic::TopicPartition,
};

/// What kind of group it is: clients of Kafka's protocol do not share one with members of this process.
pub(crate) const PROTOCOL_TYPE: &str = "tidemill";
/// The longest time between two signs of life. The leader also looks at the topics then.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// A group that cannot take a member is asked again after this time.
const PAUSE: Duration = Duration::from_secs(1);

/// What a member wants of its group.
pub(super) struct Plan {
    pub(super) group: String,
    pub(super) client_id: String,
    pub(super) topics: BTreeSet<String>,
    /// Of a lease.
    pub(super) slots: Option<u32>,
    pub(super) options: MemberOptions,
}

/// The handle's end of a member.
pub(super) struct LocalMember {
    common: Arc<Common>,
    task: tokio::task::JoinHandle<()>,
    has_left: bool,
}

/// What handle and task share.
struct Common {
    groups: Groups,
    plan: Plan,
    state: Mutex<State>,
    /// Told when there is something new for the handle.
    told: Notify,
    /// Told when the handle has taken or answered something.
    asked: Notify,
}

#[derive(Default)]
struct State {
    changes: VecDeque<Change>,
    /// The handle knows of a revocation that it has not answered.
    is_unanswered: bool,
    /// The member as the coordinator knows it, once it has asked to join.
    who: Identity,
    /// Its generation, while it has one.
    generation: Option<i32>,
    /// Something that passes, to be told once.
    trouble: Option<Error>,
    /// Why it has ended.
    ended: Option<Error>,
}

impl Common {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: Change) {
        self.state().changes.push_back(change);
        self.told.notify_one();
    }
}

impl LocalMember {
    /// Joins in the background.
    pub(super) fn start(groups: Groups, plan: Plan) -> Self {
        let instance = plan.options.instance.clone();
        let state = State { who: Identity { id: String::new(), instance }, ..State::default() };
        let common =
            Arc::new(Common { groups, plan, state: Mutex::new(state), told: Notify::new(), asked: Notify::new() });
        let task = Task { common: Arc::clone(&common), owned: BTreeSet::new(), dealt: None, was_told: false };
        Self { common, task: tokio::spawn(task.run()), has_left: false }
    }

    fn leave_now(&mut self) -> Result<()> {
        self.task.abort();
        if std::mem::replace(&mut self.has_left, true) || self.common.plan.options.instance.is_some() {
            return Ok(());
        }
        let who = self.common.state().who.clone();
        match self.common.groups.leave(&self.common.plan.group, &who) {
            // It was none, or is none any more.
            Ok(()) | Err(Refusal::UnknownMember) => Ok(()),
            Err(refusal) => Err(refusal.of(&self.common.plan.group)),
        }
    }
}

impl Drop for LocalMember {
    fn drop(&mut self) {
        // Nobody is there to be told.
        let _ = self.leave_now();
    }
}

#[async_trait]
impl Membership for LocalMember {
    async fn change(&mut self, max_wait: Duration) -> Result<Option<Change>> {
        let common = &self.common;
        if std::mem::take(&mut common.state().is_unanswered) {
            common.asked.notify_one();
        }
        let next = async {
            loop {
                {
                    let mut state = common.state();
                    if let Some(change) = state.changes.pop_front() {
                        state.is_unanswered = matches!(change, Change::Revoked(_));
                        common.asked.notify_one();
                        return Ok(Some(change));
                    }
                    if let Some(error) = state.trouble.take().or_else(|| state.ended.as_ref().map(Error::duplicate)) {
                        return Err(error);
                    }
                }
                common.told.notified().await;
            }
        };
        tokio::time::timeout(max_wait, next).await.unwrap_or(Ok(None))
    }

    async fn commit(&mut self, offsets: BTreeMap<TopicPartition, GroupOffset>) -> Result<()> {
        let Common { groups, plan, .. } = &*self.common;
        let as_new = |(of, offset): (TopicPartition, GroupOffset)| {
            (of, NewOffset { offset: offset.offset, metadata: offset.metadata, ..NewOffset::default() })
        };
        let offsets: BTreeMap<_, _> = offsets.into_iter().map(as_new).collect();
        let begun = groups.now();
        loop {
            let asked = groups.changed(&plan.group);
            let (who, generation) = {
                let state = self.common.state();
                let is_lost = state.changes.iter().any(|change| matches!(change, Change::Lost(_)));
                if is_lost || state.ended.is_some() {
                    return Err(Refusal::UnknownMember.of(&plan.group));
                }
                (state.who.clone(), state.generation)
            };
            let Some(generation) = generation else { return Err(Refusal::UnknownMember.of(&plan.group)) };
            match groups.commit(&plan.group, Some((&who, generation)), offsets.clone()).await {
                Ok(refused) => return refused.into_values().next().map_or(Ok(()), |r| Err(r.of(&plan.group))),
                // Others are joining or being dealt to; what is this member's stays so until it has answered.
                Err(Refusal::RebalanceInProgress | Refusal::IllegalGeneration)
                    if groups.now().saturating_sub(begun) < plan.options.session_time =>
                {
                    let _ = tokio::time::timeout(Duration::from_millis(50), asked).await;
                }
                Err(Refusal::IllegalGeneration) => return Err(Refusal::RebalanceInProgress.of(&plan.group)),
                Err(refusal) => return Err(refusal.of(&plan.group)),
            }
        }
    }

    async fn leave(mut self: Box<Self>) -> Result<()> {
        // Nothing of it must join behind the leaving.
        self.task.abort();
        let _ = (&mut self.task).await;
        self.leave_now()
    }
}

/// Why a member's round ended early.
enum Stop {
    /// It is none any more, or must let go of everything: it begins anew when the handle knows.
    Lost,
    /// It joins again.
    Again,
    /// It has ended.
    Ended(Error),
    /// It tries again later.
    Later(Error),
}

impl Stop {
    fn of(refusal: Refusal, group: &str) -> Self {
        match refusal {
            Refusal::RebalanceInProgress => Self::Again,
            Refusal::UnknownMember | Refusal::IllegalGeneration | Refusal::Dead => Self::Lost,
            Refusal::Full(_) => Self::Later(refusal.of(group)),
            refusal => Self::Ended(refusal.of(group)),
        }
    }
}

/// The member's own task.
struct Task {
    common: Arc<Common>,
    /// What the handle was told, and has not let go of.
    owned: BTreeSet<TopicPartition>,
    /// As the leader: the numbers of partitions that were dealt last.
    dealt: Option<Counts>,
    was_told: bool,
}

impl Task {
    async fn run(mut self) {
        loop {
            match self.membership().await {
                Stop::Again => {}
                Stop::Lost => self.lost().await,
                Stop::Later(error) => {
                    self.common.state().trouble = Some(error);
                    self.common.told.notify_one();
                    tokio::time::sleep(PAUSE).await;
                }
                Stop::Ended(error) => {
                    self.common.state().ended = Some(error);
                    self.common.told.notify_one();
                    return;
                }
            }
        }
    }

    fn cooperates(&self) -> bool {
        self.common.plan.options.assignor == Assignor::CooperativeSticky
    }

    /// Tells that all is lost, and waits until that is known: who is stuck gets nothing more.
    async fn lost(&mut self) {
        {
            let mut state = self.common.state();
            (state.who.id, state.generation) = (String::new(), None);
            state.is_unanswered = false;
        }
        (self.dealt, self.was_told) = (None, false);
        let owned = std::mem::take(&mut self.owned);
        if owned.is_empty() {
            return;
        }
        self.common.tell(Change::Lost(owned));
        loop {
            let asked = self.common.asked.notified();
            if self.common.state().changes.is_empty() {
                return;
            }
            asked.await;
        }
    }

    /// One generation after the other, until something ends that.
    async fn membership(&mut self) -> Stop {
        loop {
            let joined = match self.join().await {
                Ok(joined) => joined,
                Err(stop) => return stop,
            };
            let round = match self.round(joined).await {
                Ok(()) => self.rest().await,
                Err(stop) => Err(stop),
            };
            match round {
                Err(Stop::Again) | Ok(()) => {}
                Err(stop) => return stop,
            }
            // Who does not cooperate lets go of everything before it joins again.
            if !self.cooperates()
                && let Err(stop) = self.let_go(self.owned.clone()).await
            {
                return stop;
            }
        }
    }

    async fn join(&mut self) -> Result<Joined, Stop> {
        let Common { groups, plan, .. } = &*self.common;
        let (who, new_id, generation) = {
            let mut state = self.common.state();
            let asked = state.who.clone();
            let mut new_id = String::new();
            if asked.id.is_empty() {
                // Known before it is asked for: who leaves in the midst of it must say who it is.
                new_id = groups.new_id(&plan.client_id).map_err(|refusal| Stop::of(refusal, &plan.group))?;
                state.who.id.clone_from(&new_id);
            }
            (asked, new_id, state.generation.unwrap_or(-1))
        };
        let wish =
            Wish { topics: plan.topics.clone(), owned: assign::by_topic(&self.owned), generation, slots: plan.slots };
        let request = JoinRequest {
            who,
            new_id,
            confirm_id: false,
            client_id: plan.client_id.clone(),
            client_host: String::new(),
            protocol_type: PROTOCOL_TYPE.to_owned(),
            protocols: vec![(name_of(plan.options.assignor).to_owned(), encode(&wish).map_err(Stop::Ended)?)],
            session_time: plan.options.session_time,
            rebalance_time: plan.options.rebalance_time,
            first_delay: Duration::ZERO,
            can_skip: true,
        };
        let joined = match groups.join(&plan.group, request).await {
            Ok(joined) => joined,
            Err(refusal) => {
                let stop = Stop::of(refusal, &plan.group);
                if matches!(stop, Stop::Later(_)) {
                    self.common.state().who.id.clear();
                }
                return Err(stop);
            }
        };
        let mut state = self.common.state();
        state.who.id.clone_from(&joined.id);
        state.generation = Some(joined.generation);
        Ok(joined)
    }

    /// Syncs, and tells what that brings and takes.
    async fn round(&mut self, joined: Joined) -> Result<(), Stop> {
        let common = Arc::clone(&self.common);
        let (groups, plan) = (&common.groups, &common.plan);
        let stop = |refusal| Stop::of(refusal, &plan.group);
        self.dealt = None;
        let mut assignments = BTreeMap::new();
        if joined.leader == joined.id {
            let wishes = wishes_of(&joined);
            let counts = self.counts(&wishes);
            if !joined.skip_assignment {
                let deal = deal(plan.options.assignor, &wishes, &counts);
                for (id, assignment) in assign::assignments(&wishes, deal) {
                    assignments.insert(id, encode(&assignment).map_err(Stop::Ended)?);
                }
            }
            self.dealt = Some(counts);
        }
        let who = common.state().who.clone();
        let request =
            SyncRequest { who, generation: joined.generation, protocol_type: None, protocol: None, assignments };
        let synced = groups.sync(&plan.group, request).await.map_err(stop)?;
        let assignment: Assignment = decode(&synced.assignment).unwrap_or_default();
        let own = assign::flat(&assignment.own);
        let taken: BTreeSet<_> = self.owned.difference(&own).cloned().collect();
        let lets_go = assignment.lets_go || !taken.is_empty();
        self.let_go(taken).await?;
        let new: BTreeSet<_> = own.difference(&self.owned).cloned().collect();
        if !new.is_empty() || !self.was_told {
            self.was_told = true;
            self.owned.extend(new.iter().cloned());
            common.tell(Change::Assigned(new));
        }
        // Others wait for what was let go.
        if lets_go { Err(Stop::Again) } else { Ok(()) }
    }

    /// Gives signs of life until the group is dealt anew.
    async fn rest(&mut self) -> Result<(), Stop> {
        loop {
            let changed = self.common.groups.changed(&self.common.plan.group);
            self.sign_of_life()?;
            if let Some(dealt) = &self.dealt
                && self.recount(dealt) != *dealt
            {
                return Ok(());
            }
            let _ = tokio::time::timeout(self.pause(), changed).await;
        }
    }

    fn pause(&self) -> Duration {
        SIGN_OF_LIFE.min(self.common.plan.options.session_time / 3)
    }

    fn sign_of_life(&self) -> Result<(), Stop> {
        let Common { groups, plan, .. } = &*self.common;
        let (who, generation) = {
            let state = self.common.state();
            (state.who.clone(), state.generation.unwrap_or(-1))
        };
        groups.heartbeat(&plan.group, &who, generation).map_err(|refusal| Stop::of(refusal, &plan.group))
    }

    /// Has the handle let go, giving signs of life meanwhile. Who takes too long leaves.
    async fn let_go(&mut self, taken: BTreeSet<TopicPartition>) -> Result<(), Stop> {
        if taken.is_empty() {
            return Ok(());
        }
        let common = Arc::clone(&self.common);
        let begun = common.groups.now();
        common.tell(Change::Revoked(taken.clone()));
        loop {
            let asked = common.asked.notified();
            let is_answered = {
                let state = common.state();
                state.changes.is_empty() && !state.is_unanswered
            };
            // Also after the answer: one that comes too late is told so.
            match self.sign_of_life() {
                Ok(()) | Err(Stop::Again) => {}
                Err(stop) => return Err(stop),
            }
            if is_answered {
                break;
            }
            let spent = common.groups.now().saturating_sub(begun);
            let Some(rest) = common.plan.options.rebalance_time.checked_sub(spent).filter(|rest| !rest.is_zero())
            else {
                let who = common.state().who.clone();
                let _ = common.groups.leave(&common.plan.group, &who);
                return Err(Stop::Lost);
            };
            let changed = common.groups.changed(&common.plan.group);
            let pause = self.pause().min(rest);
            tokio::select! { () = asked => {}, () = changed => {}, () = tokio::time::sleep(pause) => {} }
        }
        self.owned.retain(|of| !taken.contains(of));
        Ok(())
    }

    fn counts(&self, wishes: &Wishes) -> Counts {
        let slots = wishes.values().filter_map(|(_, wish)| wish.slots).max();
        let topics: BTreeSet<_> = wishes.values().flat_map(|(_, wish)| &wish.topics).cloned().collect();
        topics
            .into_iter()
            .map(|topic| (slots.unwrap_or_else(|| self.count(&topic)), topic))
            .map(|(n, t)| (t, n))
            .collect()
    }

    /// The same topics as they are now.
    fn recount(&self, dealt: &Counts) -> Counts {
        if self.common.plan.slots.is_some() {
            return dealt.clone();
        }
        dealt.keys().map(|topic| (topic.clone(), self.count(topic))).collect()
    }

    fn count(&self, topic: &str) -> u32 {
        self.common.groups.engine().topic(topic).map_or(0, |info| info.partitions.len() as u32)
    }
}

/// Kafka's names.
fn name_of(assignor: Assignor) -> &'static str {
    match assignor {
        Assignor::Range => "range",
        Assignor::RoundRobin => "roundrobin",
        Assignor::CooperativeSticky => "cooperative-sticky",
    }
}

fn deal(assignor: Assignor, wishes: &Wishes, counts: &Counts) -> Deal {
    match assignor {
        Assignor::Range => assign::range(wishes, counts),
        Assignor::RoundRobin => assign::round_robin(wishes, counts),
        Assignor::CooperativeSticky => assign::cooperative(wishes, counts),
    }
}

fn wishes_of(joined: &Joined) -> Wishes {
    let wish = |metadata: &Bytes| decode(metadata).unwrap_or_default();
    joined.members.iter().map(|m| (m.id.clone(), (m.instance.clone(), wish(&m.metadata)))).collect()
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Bytes> {
    let bytes = serde_json::to_vec(value);
    Ok(Bytes::from(bytes.map_err(|e| Error::internal("encode a member's wish").with_source(e))?))
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// The most slots that members of a group know of.
pub(super) fn slots_of(groups: &Groups, group: &str) -> Option<u32> {
    let members = groups.members(group);
    members.iter().filter_map(|member| decode::<Wish>(&member.metadata)?.slots).max()
}
