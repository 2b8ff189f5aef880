//! Many members with a will of their own, a clock that jumps, requests that come late, twice or never: all from a seed.
//!
//! Each member is a small client that plays by the protocol, in the eager way or the cooperative one, until it crashes. The
//! simulation knows who may work on what: a member from when it is told until it lets go, or until its session is over by
//! the group's own clock; nobody else may be given the same in between.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::group::assign::{self, Assignment, ByTopic, Counts, Wish, Wishes};

const PARTITIONS: u32 = 7;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What is broken, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Twin {
    Honest,
    /// Commits of any generation are let pass.
    OldCommits,
    /// Members do not let go before they join again.
    Hold,
    /// Cooperative members deal as if they did not cooperate.
    DealsAtOnce,
}

#[derive(Debug, Clone, Default)]
struct Client {
    name: String,
    /// A static name, or none.
    instance: Option<String>,
    id: String,
    generation: i32,
    /// What it works on.
    own: BTreeSet<u32>,
    waits: Option<Token>,
    joined: Option<Joined>,
    is_dead: bool,
    /// What it would have to know first is under way: it acts on the past.
    last_sign: Duration,
    /// It was told that it belongs to this generation, long ago or just now.
    past: Vec<(String, i32)>,
}

impl Client {
    fn who(&self) -> Identity {
        Identity { id: self.id.clone(), instance: self.instance.clone() }
    }
}

struct World {
    rng: Rng,
    twin: Twin,
    cooperative: bool,
    /// Answers are lost.
    is_lossy: bool,
    now: Duration,
    group: Machine,
    clients: Vec<Client>,
    ids: u64,
    /// Assignments of each generation, as its leader brought them.
    dealt: BTreeMap<i32, BTreeMap<String, Bytes>>,
    highest_generation: i32,
}

const SESSION: Duration = Duration::from_secs(10);

impl World {
    fn new(seed: u64, twin: Twin) -> Self {
        let mut rng = Rng(seed);
        let cooperative = rng.one_in(2);
        let limits = Limits { first_delay: Duration::from_millis(500), ..Limits::default() };
        let clients = (0..3 + rng.below(4))
            .map(|i| Client {
                name: format!("c{i}"),
                instance: rng.one_in(4).then(|| format!("s{i}")),
                ..Client::default()
            })
            .collect();
        Self {
            rng,
            twin,
            cooperative,
            is_lossy: true,
            now: Duration::from_secs(1),
            group: Machine::new(limits),
            clients,
            ids: 0,
            dealt: BTreeMap::new(),
            highest_generation: 0,
        }
    }

    fn request(&mut self, i: usize) -> JoinRequest {
        self.ids += 1;
        let client = &self.clients[i];
        let owned = if self.cooperative && !client.own.is_empty() {
            ByTopic::from([("t".to_owned(), client.own.clone())])
        } else {
            ByTopic::new()
        };
        let wish = Wish { topics: ["t".to_owned()].into(), owned, generation: client.generation, slots: None };
        JoinRequest {
            who: client.who(),
            new_id: format!("{}-{}", client.name, self.ids),
            confirm_id: self.rng.one_in(2),
            client_id: client.name.clone(),
            client_host: String::new(),
            protocol_type: "consumer".into(),
            protocols: vec![("p".into(), Bytes::from(serde_json::to_vec(&wish).expect("JSON")))],
            session_time: SESSION,
            rebalance_time: Duration::from_secs(20),
            first_delay: Duration::from_millis(self.rng.below(3) * 500),
            can_skip: self.rng.one_in(2),
        }
    }

    /// A member that is told that it is none works on nothing.
    fn lost(&mut self, i: usize) {
        let client = &mut self.clients[i];
        client.own.clear();
        (client.id, client.generation, client.waits, client.joined) = (String::new(), -1, None, None);
    }

    fn join(&mut self, i: usize) {
        if !self.cooperative && self.twin != Twin::Hold {
            self.clients[i].own.clear();
        }
        let request = self.request(i);
        let token = self.group.join(self.now, request);
        self.clients[i].waits = Some(token);
        self.clients[i].joined = None;
    }

    fn refused(&mut self, i: usize, refusal: &Refusal) {
        match refusal {
            Refusal::MemberIdRequired(id) => {
                self.lost(i);
                self.clients[i].id.clone_from(id);
            }
            Refusal::RebalanceInProgress => {
                self.clients[i].waits = None;
                self.clients[i].joined = None;
            }
            _ => self.lost(i),
        }
    }

    fn deal(&self, joined: &Joined) -> BTreeMap<String, Bytes> {
        let wish = |m: &JoinedMember| serde_json::from_slice(&m.metadata).expect("a wish");
        let wishes: Wishes = joined.members.iter().map(|m| (m.id.clone(), (m.instance.clone(), wish(m)))).collect();
        let counts = Counts::from([("t".to_owned(), PARTITIONS)]);
        let deal = match self.cooperative && self.twin != Twin::DealsAtOnce {
            true => assign::cooperative(&wishes, &counts),
            false => assign::sticky(&wishes, &counts),
        };
        let encode = |part: &Assignment| Bytes::from(serde_json::to_vec(part).expect("JSON"));
        assign::assignments(&wishes, deal).into_iter().map(|(id, part)| (id, encode(&part))).collect()
    }

    fn sync(&mut self, i: usize, joined: Joined) {
        let leads = joined.leader == joined.id && !joined.skip_assignment;
        let assignments = if leads { self.deal(&joined) } else { BTreeMap::new() };
        let request = SyncRequest {
            who: self.clients[i].who(),
            generation: joined.generation,
            assignments: assignments.clone(),
            ..SyncRequest::default()
        };
        let token = self.group.sync(self.now, request);
        if leads && self.group.state() == State::Stable {
            self.dealt.entry(joined.generation).or_insert(assignments);
        }
        self.clients[i].waits = Some(token);
        self.clients[i].joined = Some(joined);
    }

    /// A member learns what it has: first it lets go, then it takes.
    fn take(&mut self, i: usize, assignment: &Bytes) {
        let part: Assignment = serde_json::from_slice(assignment).unwrap_or_default();
        let own = part.own.get("t").cloned().unwrap_or_default();
        let client = &mut self.clients[i];
        let lets_go = part.lets_go || client.own.difference(&own).count() > 0;
        let generation = client.generation;
        client.own = own;
        client.past.push((client.id.clone(), generation));
        let own = client.own.clone();
        for (j, other) in self.clients.iter().enumerate().filter(|(j, _)| *j != i) {
            let both: Vec<_> = other.own.intersection(&own).collect();
            // A crashed member, or one that has not heard, works on until its session is over; then it must stop by itself.
            let expelled = self.now >= other.last_sign + SESSION || !self.group.is_known(&other.who());
            assert!(both.is_empty() || expelled, "{both:?} is with {j} and {i}, at {:?}", self.now);
        }
        if self.cooperative && lets_go {
            self.join(i);
        }
    }

    /// Gives members the answers that they wait for; some are lost on the way.
    fn deliver(&mut self) {
        for (token, answer) in self.group.take_answers() {
            let Some(i) = self.clients.iter().position(|c| c.waits == Some(token) && !c.is_dead) else { continue };
            if self.is_lossy && self.rng.one_in(40) {
                // It never hears of it, and asks again.
                self.clients[i].waits = None;
                continue;
            }
            self.clients[i].waits = None;
            match answer {
                Answer::Joined(Ok(joined)) => {
                    assert!(joined.generation >= self.highest_generation, "a generation comes back");
                    self.highest_generation = joined.generation;
                    let client = &mut self.clients[i];
                    (client.id, client.generation) = (joined.id.clone(), joined.generation);
                    client.last_sign = self.now;
                    self.clients[i].joined = Some(joined);
                }
                Answer::Synced(Ok(synced)) => {
                    self.clients[i].last_sign = self.now;
                    self.clients[i].joined = None;
                    // One generation, one dealing: whoever asks, and whenever, gets its part of that.
                    let client = &self.clients[i];
                    if let Some(part) = self.dealt.get(&client.generation).and_then(|all| all.get(&client.id)) {
                        assert_eq!(*part, synced.assignment, "of generation {}", client.generation);
                    }
                    self.take(i, &synced.assignment);
                }
                Answer::Joined(Err(refusal)) | Answer::Synced(Err(refusal)) => self.refused(i, &refusal),
            }
        }
    }

    /// A member whose session is over by its own count stops by itself.
    fn stop_the_late(&mut self) {
        for i in 0..self.clients.len() {
            let is_late = self.now >= self.clients[i].last_sign + SESSION;
            let works = !self.clients[i].own.is_empty();
            if is_late && works && self.clients[i].waits.is_none() {
                self.lost(i);
            }
        }
    }

    fn commit(&mut self, i: usize) {
        let pasts = self.clients[i].past.clone();
        if pasts.is_empty() {
            return;
        }
        let (id, generation) = pasts[self.rng.below(pasts.len() as u64) as usize].clone();
        let who = Identity { id, instance: None };
        let checked = match self.twin {
            Twin::OldCommits => self.group.check_commit(self.now, Some((&who, self.group.generation()))),
            _ => self.group.check_commit(self.now, Some((&who, generation))),
        };
        if checked.is_ok() {
            assert_eq!(generation, self.group.generation(), "a commit of generation {generation} is let pass");
            // It counts as a sign of life, of the present one of that id.
            self.clients.iter_mut().filter(|c| c.id == who.id).for_each(|c| c.last_sign = self.now);
        }
    }

    fn step(&mut self) {
        let i = self.rng.below(self.clients.len() as u64) as usize;
        match self.rng.below(100) {
            0..2 => {
                // It crashes; what it works on ends with it. It may come back as a new one.
                let client = &mut self.clients[i];
                client.is_dead = !client.is_dead;
                client.own.clear();
                (client.id, client.generation, client.waits, client.joined) = (String::new(), -1, None, None);
            }
            2..4 => {
                let who = self.clients[i].who();
                let _ = self.group.leave(self.now, &who);
                self.lost(i);
            }
            4..6 => self.now += Duration::from_secs(self.rng.below(30)),
            6..30 => self.now += Duration::from_millis(self.rng.below(900)),
            30..40 => self.commit(i),
            _ if self.clients[i].is_dead => {}
            _ => self.act(i),
        }
        self.group.tick(self.now);
        self.stop_the_late();
        self.deliver();
    }

    /// A member does what is its turn.
    fn act(&mut self, i: usize) {
        let client = &self.clients[i];
        if client.waits.is_some() {
            // It asks again now and then: the first request was lost, or it was not.
            if self.is_lossy && self.rng.one_in(50) {
                self.join(i);
            }
            return;
        }
        if let Some(joined) = client.joined.clone() {
            self.sync(i, joined);
            return;
        }
        if client.id.is_empty() || client.generation < 0 {
            self.join(i);
            return;
        }
        let (who, generation) = (client.who(), client.generation);
        match self.group.heartbeat(self.now, &who, generation) {
            Ok(()) => self.clients[i].last_sign = self.now,
            Err(Refusal::RebalanceInProgress) => {
                self.clients[i].last_sign = self.now;
                self.join(i);
            }
            Err(refusal) => self.refused(i, &refusal),
        }
    }

    /// When nobody crashes any more and time passes, all is dealt, once.
    fn comes_to_rest(&mut self) {
        self.is_lossy = false;
        for client in &mut self.clients {
            client.is_dead = false;
        }
        for round in 0..400 {
            self.now += Duration::from_millis(200);
            for i in 0..self.clients.len() {
                // An answer may have been lost.
                if round % 100 == 99 {
                    self.clients[i].waits = None;
                }
                self.act(i);
                self.group.tick(self.now);
                self.stop_the_late();
                self.deliver();
            }
            let owned: Vec<_> = self.clients.iter().flat_map(|client| client.own.iter().copied()).collect();
            let once: BTreeSet<_> = owned.iter().copied().collect();
            let all_in = self.clients.iter().all(|client| self.group.is_known(&client.who()));
            let is_quiet = self.clients.iter().all(|client| client.waits.is_none() && client.joined.is_none());
            let is_dealt = owned.len() == PARTITIONS as usize && once.len() == owned.len();
            if self.group.state() == State::Stable && all_in && is_quiet && is_dealt {
                return;
            }
        }
        panic!("the group does not come to rest: {:?}, {:#?}", self.clients, self.group);
    }
}

fn run(seed: u64, twin: Twin) {
    let mut world = World::new(seed, twin);
    for _ in 0..600 {
        world.step();
    }
    world.comes_to_rest();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn members_that_crash_and_come_late_share_without_overlap() {
    let first = number("TIDEMILL_FIRST_SEED", 1);
    for seed in first..first + number("TIDEMILL_SEEDS", 300) {
        if std::panic::catch_unwind(|| run(seed, Twin::Honest)).is_err() {
            panic!("seed {seed}");
        }
    }
}

/// Each fault is found within a few seeds.
#[test]
fn broken_groups_are_found() {
    for twin in [Twin::OldCommits, Twin::Hold, Twin::DealsAtOnce] {
        let found = (1..200).any(|seed| std::panic::catch_unwind(|| run(seed, twin)).is_err());
        assert!(found, "{twin:?} is not found");
    }
}
