//! Joining: who is let in, and whether that begins a round.

use std::time::Duration;

use super::{
    Answer, Identity, JoinRequest, Joined, Machine, State, Token,
    member::{Member, protocol_bytes},
};
use crate::group::Refusal;

impl Machine {
    /// A member joins, for the first time or again; the answer comes with the token.
    pub fn join(&mut self, now: Duration, request: JoinRequest) -> Token {
        self.tick(now);
        let token = self.token();
        match self.take_join(now, token, request) {
            Ok(None) => self.pass(now),
            Ok(Some(joined)) => self.answers.push((token, Answer::Joined(Ok(joined)))),
            Err(refusal) => self.answers.push((token, Answer::Joined(Err(refusal)))),
        }
        token
    }

    /// The answer, where it does not wait for others.
    fn take_join(&mut self, now: Duration, token: Token, request: JoinRequest) -> Result<Option<Joined>, Refusal> {
        if self.state == State::Dead {
            return Err(Refusal::Dead);
        }
        if !(self.limits.min_session_time..=self.limits.max_session_time).contains(&request.session_time) {
            return Err(Refusal::InvalidSessionTime);
        }
        self.check_protocols(&request)?;
        let known = request.who.instance.as_ref().and_then(|instance| self.instances.get(instance)).cloned();
        match (request.who.id.is_empty(), known) {
            (true, Some(old)) => self.replace_static(now, token, &old, request),
            (true, None) => self.join_anew(now, token, request).map(|()| None),
            (false, _) => self.join_again(now, token, request),
        }
    }

    /// There is a way to deal that all support.
    fn check_protocols(&self, request: &JoinRequest) -> Result<(), Refusal> {
        let own = &request.protocols;
        let same_type = self.members.is_empty() || self.protocol_type.as_ref() == Some(&request.protocol_type);
        let common = own.iter().any(|(name, _)| self.members.values().all(|member| member.supports(name)));
        if request.protocol_type.is_empty() || !same_type || !common {
            return Err(Refusal::InconsistentProtocol);
        }
        let others = self.members.iter().filter(|(id, _)| **id != request.who.id);
        let kept: usize = others.map(|(_, member)| member.asked_bytes() + member.assignment.len()).sum();
        let names = request.client_id.len() + request.client_host.len();
        self.check_bytes(kept + names + protocol_bytes(own))
    }

    fn join_anew(&mut self, now: Duration, token: Token, request: JoinRequest) -> Result<(), Refusal> {
        let limit = self.limits.members;
        if self.members.len() + self.given.len() >= limit {
            return Err(Refusal::Full(format!("it has {limit} members already")));
        }
        let id = request.new_id.clone();
        if request.confirm_id && request.who.instance.is_none() {
            self.given.insert(id.clone(), now + request.session_time);
            return Err(Refusal::MemberIdRequired(id));
        }
        self.add(now, token, id, request);
        Ok(())
    }

    fn join_again(&mut self, now: Duration, token: Token, request: JoinRequest) -> Result<Option<Joined>, Refusal> {
        let id = request.who.id.clone();
        if request.who.instance.is_none() && self.given.remove(&id).is_some() {
            self.add(now, token, id, request);
            return Ok(None);
        }
        self.check_member(&request.who)?;
        let same = self.members.get(&id).is_some_and(|member| member.protocols == request.protocols);
        let leads = self.leader.as_ref() == Some(&id);
        let settled = match self.state {
            State::Completing => same,
            // A leader that joins again wants to deal anew.
            State::Stable => same && !leads,
            _ => false,
        };
        if settled {
            self.renew(now, &id);
            return Ok(Some(self.joined(&id)));
        }
        self.update(now, token, &id, request);
        self.prepare(now, Duration::ZERO);
        Ok(None)
    }

    /// A static member has come back without its id: it takes the place of the old one, which is fenced.
    fn replace_static(
        &mut self,
        now: Duration,
        token: Token,
        old: &str,
        request: JoinRequest,
    ) -> Result<Option<Joined>, Refusal> {
        let id = request.new_id.clone();
        let Some(mut member) = self.members.remove(old) else { return Err(Refusal::UnknownMember) };
        if let Some(waiting) = member.joining.take() {
            self.answers.push((waiting, Answer::Joined(Err(Refusal::FencedInstance))));
        }
        if let Some(waiting) = member.syncing.take() {
            self.answers.push((waiting, Answer::Synced(Err(Refusal::FencedInstance))));
        }
        let led = self.leader.as_deref() == Some(old);
        if led {
            self.leader = Some(id.clone());
        }
        member.instance.iter().for_each(|name| drop(self.instances.insert(name.clone(), id.clone())));
        self.members.insert(id.clone(), member);
        let can_skip = request.can_skip;
        self.update(now, token, &id, request);
        if self.state == State::Stable && self.protocol == self.choose_protocol() {
            // What it had is its own again; nobody else hears of it.
            if let Some(member) = self.members.get_mut(&id) {
                member.joining = None;
                member.has_synced = true;
            }
            let mut joined = self.joined(&id);
            joined.skip_assignment = led && can_skip;
            if led && !can_skip {
                // One that cannot skip must not take itself for the leader: it would deal.
                joined.leader = old.to_owned();
                joined.members.clear();
            }
            return Ok(Some(joined));
        }
        self.prepare(now, Duration::ZERO);
        Ok(None)
    }

    fn add(&mut self, now: Duration, token: Token, id: String, request: JoinRequest) {
        let delay = request.first_delay;
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        self.joins += 1;
        let member = Member {
            instance: request.who.instance,
            client_id: request.client_id,
            client_host: request.client_host,
            protocols: request.protocols,
            session_time: request.session_time,
            rebalance_time: request.rebalance_time,
            assignment: Default::default(),
            deadline: now + self.limits.new_member_time,
            is_new: true,
            turn: self.joins,
            joining: Some(token),
            syncing: None,
            has_synced: false,
        };
        member.instance.iter().for_each(|name| drop(self.instances.insert(name.clone(), id.clone())));
        self.members.insert(id, member);
        if let Some((_, came)) = self.round.as_mut().and_then(|round| round.first.as_mut()) {
            *came = true;
        }
        self.prepare(now, delay);
    }

    fn update(&mut self, now: Duration, token: Token, id: &str, request: JoinRequest) {
        let Some(member) = self.members.get_mut(id) else { return };
        member.protocols = request.protocols;
        member.client_id = request.client_id;
        member.client_host = request.client_host;
        member.session_time = request.session_time;
        member.rebalance_time = request.rebalance_time;
        member.deadline = now + if member.is_new { self.limits.new_member_time } else { member.session_time };
        if let Some(older) = member.joining.replace(token) {
            self.answers.push((older, Answer::Joined(Err(Refusal::RebalanceInProgress))));
        }
    }

    /// What a member is told of the present generation.
    pub(super) fn joined(&self, id: &str) -> Joined {
        let leader = self.leader.clone().unwrap_or_default();
        let protocol = self.protocol.as_deref();
        let seen = |(id, member): (&String, &Member)| super::JoinedMember {
            id: id.clone(),
            instance: member.instance.clone(),
            metadata: member.metadata(protocol),
        };
        let members = if leader == id { self.members.iter().map(seen).collect() } else { Vec::new() };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader,
            id: id.to_owned(),
            members,
            skip_assignment: false,
        }
    }

    /// Expels a member, or lets it go. What waits of it is answered.
    pub(super) fn remove(&mut self, now: Duration, id: &str) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(waiting) = member.joining {
            self.answers.push((waiting, Answer::Joined(Err(Refusal::UnknownMember))));
        }
        if let Some(waiting) = member.syncing {
            self.answers.push((waiting, Answer::Synced(Err(Refusal::UnknownMember))));
        }
        if let Some(instance) = &member.instance {
            self.instances.remove(instance);
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
        self.prepare(now, Duration::ZERO);
    }

    /// Whose id is this: a member, an id that was given, or nobody.
    pub fn is_known(&self, who: &Identity) -> bool {
        self.given.contains_key(&who.id) || self.check_member(who).is_ok()
    }
}
