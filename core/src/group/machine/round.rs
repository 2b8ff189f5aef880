//! Rounds: how one begins and ends, and what is due when.

use std::{collections::BTreeMap, time::Duration};

use super::{Answer, Machine, Round, State, member::Member};
use crate::group::Refusal;

impl Machine {
    /// Begins a round where none is open.
    pub(super) fn prepare(&mut self, now: Duration, first_delay: Duration) {
        let first = match self.state {
            State::Empty => Some((self.rebalance_time().saturating_sub(first_delay), false)),
            State::Completing | State::Stable => None,
            State::Preparing | State::Dead => return,
        };
        for member in self.members.values_mut() {
            if let Some(waiting) = member.syncing.take() {
                member.deadline = now + member.session_time;
                self.answers.push((waiting, Answer::Synced(Err(Refusal::RebalanceInProgress))));
            }
        }
        let wait = if first.is_some() { first_delay } else { self.rebalance_time() };
        self.round = Some(Round { deadline: now + wait, first });
        self.sync_deadline = None;
        self.state = State::Preparing;
    }

    /// The time of the slowest member.
    fn rebalance_time(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_time).max().unwrap_or_default()
    }

    /// Lets pass what is due at `now`.
    pub fn tick(&mut self, now: Duration) {
        self.given.retain(|_, deadline| *deadline > now);
        let expired = |(id, member): (&String, &Member)| (member.expires()? <= now).then(|| id.clone());
        let expelled: Vec<_> = self.members.iter().filter_map(expired).collect();
        expelled.iter().for_each(|id| self.remove(now, id));
        if self.sync_deadline.is_some_and(|deadline| deadline <= now) {
            self.sync_deadline = None;
            let late = |(id, member): (&String, &Member)| (!member.has_synced).then(|| id.clone());
            let late: Vec<_> = self.members.iter().filter_map(late).collect();
            late.iter().for_each(|id| self.remove(now, id));
        }
        self.pass(now);
    }

    /// When something is due next.
    pub fn next_deadline(&self) -> Option<Duration> {
        let members = self.members.values().filter_map(Member::expires);
        let rounds = self.round.map(|round| round.deadline).into_iter().chain(self.sync_deadline);
        members.chain(self.given.values().copied()).chain(rounds).min()
    }

    /// Ends the open round if all have joined, or its time is over.
    pub(super) fn pass(&mut self, now: Duration) {
        let Some(round) = &mut self.round else { return };
        let is_due = round.deadline <= now;
        let complete = match &mut round.first {
            _ if self.members.is_empty() && self.given.is_empty() => true,
            // Somebody came in the meantime: a little more patience, as far as members allow.
            Some((rest, came)) if is_due && *came && !rest.is_zero() => {
                let more = self.limits.first_delay.min(*rest);
                *rest -= more;
                *came = false;
                round.deadline = now + more;
                more.is_zero()
            }
            Some(_) => is_due,
            None => is_due || (self.given.is_empty() && self.members.values().all(|m| m.joining.is_some())),
        };
        if complete {
            self.complete(now);
        }
    }

    /// Begins the next generation with those who joined.
    fn complete(&mut self, now: Duration) {
        let absent = |(id, member): (&String, &Member)| {
            (member.joining.is_none() && member.instance.is_none()).then(|| id.clone())
        };
        // The round is open: removing begins none.
        let absent: Vec<_> = self.members.iter().filter_map(absent).collect();
        absent.iter().for_each(|id| self.remove(now, id));
        if self.members.is_empty() {
            self.round = None;
            self.generation = next_generation(self.generation);
            self.state = State::Empty;
            (self.protocol_type, self.protocol, self.leader) = (None, None, None);
            return;
        }
        let joined = self.members.iter().filter(|(_, member)| member.joining.is_some());
        let first = joined.min_by_key(|(_, member)| member.turn).map(|(id, _)| id.clone());
        let Some(first) = first else {
            // Static members alone, and none of them is back: their places are kept.
            let wait = self.rebalance_time().max(Duration::from_millis(1));
            self.round = Some(Round { deadline: now + wait, first: None });
            return;
        };
        let leads = |id: &String| self.members.get(id).is_some_and(|member| member.joining.is_some());
        if !self.leader.as_ref().is_some_and(leads) {
            self.leader = Some(first);
        }
        self.round = None;
        self.generation = next_generation(self.generation);
        self.protocol = self.choose_protocol();
        self.state = State::Completing;
        self.sync_deadline = Some(now + self.rebalance_time());
        let ids: Vec<_> = self.members.keys().cloned().collect();
        for id in ids {
            let answer = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            // An absent static member keeps its place and its time.
            member.has_synced = member.joining.is_none();
            if let Some(token) = member.joining.take() {
                member.is_new = false;
                member.deadline = now + member.session_time;
                self.answers.push((token, Answer::Joined(Ok(answer))));
            }
        }
    }

    /// The protocol that all support and most prefer.
    pub(super) fn choose_protocol(&self) -> Option<String> {
        let common = |name: &str| self.members.values().all(|member| member.supports(name));
        let mut votes = BTreeMap::<&str, usize>::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| common(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let best = votes.into_iter().max_by_key(|(name, count)| (*count, std::cmp::Reverse(*name)));
        best.map(|(name, _)| name.to_owned())
    }
}

/// Generations are positive.
fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(1)
}
