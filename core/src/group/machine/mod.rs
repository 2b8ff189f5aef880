//! One group as a state machine: no I/O, no clock but the one it is told, the same answers for the same calls.
//!
//! ```text
//!            join                all joined, or time is over          the leader's sync
//!   Empty ─────────▶ Preparing ───────────────────────────▶ Completing ───────────────▶ Stable
//!     ▲                │   ▲                                    │                         │
//!     └────────────────┘   └────────────────────────────────────┴─────────────────────────┘
//!      nobody is left        a member joins, leaves or is expelled, or does not sync in time
//! ```
//!
//! A round begins in `Preparing`: members learn of it by their heartbeats and join again. When all have, or the time of
//! the slowest is over, a new generation begins: the leader is told who the members are and what they support, and syncs
//! with an assignment for each. Metadata and assignments are opaque here.
//!
//! A join or sync that has to wait is known by its [`Token`]; its answer comes out of [`Machine::take_answers`]. Every call
//! first lets pass what is due at its time.
//!
//! # Source
//! Kafka's protocol of classic consumer groups; KIP-394 (ids are given at the first join), KIP-345 (static members),
//! KIP-814 (a static leader that comes back assigns nothing).

mod join;
mod member;
mod round;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;

use self::member::Member;
pub use self::member::{Identity, JoinRequest, Joined, JoinedMember, MemberInfo, SyncRequest, Synced};
use super::{Limits, Refusal};

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No members.
    Empty,
    /// Members join.
    Preparing,
    /// The leader deals.
    Completing,
    /// All is dealt.
    Stable,
    /// Gone.
    Dead,
}

/// Names a join or sync that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What a waiting request gets.
#[derive(Debug)]
pub enum Answer {
    /// To a join.
    Joined(Result<Joined, Refusal>),
    /// To a sync.
    Synced(Result<Synced, Refusal>),
}

/// One group.
#[derive(Debug)]
pub struct Machine {
    limits: Limits,
    state: State,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Static names, and who has them.
    instances: BTreeMap<String, String>,
    /// Ids that were given, and when they are forgotten if nobody joins with them.
    given: BTreeMap<String, Duration>,
    round: Option<Round>,
    /// When who has not synced is expelled.
    sync_deadline: Option<Duration>,
    /// Counts joins: the first to join leads.
    joins: u64,
    tokens: u64,
    answers: Vec<(Token, Answer)>,
}

/// A round that waits for members.
#[derive(Debug, Clone, Copy)]
struct Round {
    deadline: Duration,
    /// Of an empty group's first round, which always waits: how much longer it may be made, and whether somebody came.
    first: Option<(Duration, bool)>,
}

impl Machine {
    /// An empty group.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            given: BTreeMap::new(),
            round: None,
            sync_deadline: None,
            joins: 0,
            tokens: 0,
            answers: Vec::new(),
        }
    }

    /// Where the group stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// How often it was dealt.
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// What kind of group it is, as its members say.
    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// How it is dealt.
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Who deals.
    pub fn leader(&self) -> Option<&str> {
        self.leader.as_deref()
    }

    /// The members, by id.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.members.iter().map(|(id, member)| member.info(id, self.protocol.as_deref())).collect()
    }

    /// Whether it holds nothing that anybody could ask for.
    pub fn is_idle(&self) -> bool {
        self.state == State::Empty && self.given.is_empty() && self.answers.is_empty()
    }

    /// The answers of requests that waited, in the order in which they were found.
    pub fn take_answers(&mut self) -> Vec<(Token, Answer)> {
        std::mem::take(&mut self.answers)
    }

    /// Ends an empty group. Whoever still has it is told to look again.
    ///
    /// # Errors
    /// `NotEmpty`.
    pub fn kill(&mut self, now: Duration) -> Result<(), Refusal> {
        self.tick(now);
        match self.state {
            State::Empty => {}
            State::Dead => return Err(Refusal::Dead),
            _ => return Err(Refusal::NotEmpty),
        }
        self.given.clear();
        self.state = State::Dead;
        Ok(())
    }

    /// Whether the group has no members.
    ///
    /// # Errors
    /// `NotEmpty`, `Dead`.
    pub fn check_empty(&mut self, now: Duration) -> Result<(), Refusal> {
        self.tick(now);
        match self.state {
            State::Dead => Err(Refusal::Dead),
            _ if self.members.is_empty() => Ok(()),
            _ => Err(Refusal::NotEmpty),
        }
    }

    /// Hands over a leader's assignment, or asks for one's own; the answer comes with the token.
    pub fn sync(&mut self, now: Duration, request: SyncRequest) -> Token {
        self.tick(now);
        let token = self.token();
        match self.take_sync(now, token, request) {
            Ok(None) => {}
            Ok(Some(synced)) => self.answers.push((token, Answer::Synced(Ok(synced)))),
            Err(refusal) => self.answers.push((token, Answer::Synced(Err(refusal)))),
        }
        token
    }

    fn take_sync(&mut self, now: Duration, token: Token, request: SyncRequest) -> Result<Option<Synced>, Refusal> {
        let id = request.who.id.clone();
        self.check_member(&request.who)?;
        self.check_generation(request.generation)?;
        let is_other = |named: &Option<String>, own: &Option<String>| named.is_some() && named != own;
        if is_other(&request.protocol_type, &self.protocol_type) || is_other(&request.protocol, &self.protocol) {
            return Err(Refusal::InconsistentProtocol);
        }
        match self.state {
            State::Empty | State::Dead => Err(Refusal::UnknownMember),
            State::Preparing => Err(Refusal::RebalanceInProgress),
            State::Completing => {
                let leads = self.leader.as_deref() == Some(&id);
                if leads {
                    self.take_assignments(request.assignments)?;
                }
                self.renew(now, &id);
                let member = self.members.get_mut(&id).ok_or(Refusal::UnknownMember)?;
                member.has_synced = true;
                if let Some(older) = member.syncing.replace(token) {
                    self.answers.push((older, Answer::Synced(Err(Refusal::RebalanceInProgress))));
                }
                if leads {
                    self.state = State::Stable;
                    self.answer_syncs(now);
                }
                self.end_of_syncs();
                Ok(None)
            }
            State::Stable => {
                self.renew(now, &id);
                let member = self.members.get_mut(&id).ok_or(Refusal::UnknownMember)?;
                member.has_synced = true;
                let assignment = member.assignment.clone();
                self.end_of_syncs();
                Ok(Some(self.synced(assignment)))
            }
        }
    }

    fn synced(&self, assignment: Bytes) -> Synced {
        Synced { protocol_type: self.protocol_type.clone(), protocol: self.protocol.clone(), assignment }
    }

    fn take_assignments(&mut self, mut assignments: BTreeMap<String, Bytes>) -> Result<(), Refusal> {
        let known = assignments.iter().filter(|(id, _)| self.members.contains_key(*id));
        let bytes: usize = known.map(|(_, bytes)| bytes.len()).sum();
        let asked: usize = self.members.values().map(Member::asked_bytes).sum();
        self.check_bytes(asked + bytes)?;
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
        }
        Ok(())
    }

    fn answer_syncs(&mut self, now: Duration) {
        let (kind, protocol) = (self.protocol_type.clone(), self.protocol.clone());
        for member in self.members.values_mut() {
            let Some(token) = member.syncing.take() else { continue };
            member.deadline = now + member.session_time;
            let (protocol_type, protocol) = (kind.clone(), protocol.clone());
            let synced = Synced { protocol_type, protocol, assignment: member.assignment.clone() };
            self.answers.push((token, Answer::Synced(Ok(synced))));
        }
    }

    /// Nobody is waited for any more.
    fn end_of_syncs(&mut self) {
        if self.state == State::Stable && self.members.values().all(|member| member.has_synced) {
            self.sync_deadline = None;
        }
    }

    /// A sign of life.
    ///
    /// # Errors
    /// `RebalanceInProgress` tells the member to join again, `UnknownMember`, `FencedInstance` and `IllegalGeneration` that
    /// it is none.
    pub fn heartbeat(&mut self, now: Duration, who: &Identity, generation: i32) -> Result<(), Refusal> {
        self.tick(now);
        self.check_member(who)?;
        self.check_generation(generation)?;
        self.renew(now, &who.id);
        match self.state {
            State::Preparing => Err(Refusal::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// A member goes. One that names itself by its static name alone is found by that.
    ///
    /// # Errors
    /// `UnknownMember`, `FencedInstance`.
    pub fn leave(&mut self, now: Duration, who: &Identity) -> Result<(), Refusal> {
        self.tick(now);
        if self.given.remove(&who.id).is_some() {
            self.pass(now);
            return Ok(());
        }
        let id = match (&who.instance, who.id.is_empty()) {
            (Some(instance), true) => self.instances.get(instance).cloned().ok_or(Refusal::UnknownMember)?,
            _ => {
                self.check_member(who)?;
                who.id.clone()
            }
        };
        self.remove(now, &id);
        self.pass(now);
        Ok(())
    }

    /// Whether offsets may be committed: by a member under its generation, or, as `None`, by somebody who is none while the
    /// group has no members. Counts as a sign of life.
    ///
    /// # Errors
    /// As a heartbeat; but a round that has only begun lets pass, so that members can commit what they have done.
    pub fn check_commit(&mut self, now: Duration, who: Option<(&Identity, i32)>) -> Result<(), Refusal> {
        self.tick(now);
        let Some((who, generation)) = who else {
            return match self.state {
                State::Dead => Err(Refusal::Dead),
                _ if self.members.is_empty() => Ok(()),
                _ => Err(Refusal::UnknownMember),
            };
        };
        self.check_member(who)?;
        self.check_generation(generation)?;
        self.renew(now, &who.id);
        match self.state {
            State::Completing => Err(Refusal::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    fn check_member(&self, who: &Identity) -> Result<(), Refusal> {
        if self.state == State::Dead {
            return Err(Refusal::Dead);
        }
        if let Some(instance) = &who.instance {
            let id = self.instances.get(instance).ok_or(Refusal::UnknownMember)?;
            if *id != who.id {
                return Err(Refusal::FencedInstance);
            }
        }
        self.members.get(&who.id).map(drop).ok_or(Refusal::UnknownMember)
    }

    fn check_generation(&self, generation: i32) -> Result<(), Refusal> {
        if generation == self.generation { Ok(()) } else { Err(Refusal::IllegalGeneration) }
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), Refusal> {
        let limit = self.limits.group_bytes;
        if bytes <= limit {
            return Ok(());
        }
        Err(Refusal::Full(format!("its metadata of {bytes} bytes exceeds {limit}")))
    }

    fn renew(&mut self, now: Duration, id: &str) {
        // One that has never been in a generation has the time of a new member.
        if let Some(member) = self.members.get_mut(id).filter(|member| !member.is_new) {
            member.deadline = now + member.session_time;
        }
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }
}
