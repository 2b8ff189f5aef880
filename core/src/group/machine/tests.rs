//! What a group answers, case by case.

use std::collections::BTreeMap;

use super::*;

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A member that supports `range` and says its name.
fn asks(id: &str, new_id: &str) -> JoinRequest {
    JoinRequest {
        who: Identity { id: id.into(), instance: None },
        new_id: new_id.into(),
        confirm_id: false,
        client_id: "c".into(),
        client_host: "h".into(),
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), bytes(if id.is_empty() { new_id } else { id }))],
        session_time: SESSION,
        rebalance_time: REBALANCE,
        first_delay: Duration::ZERO,
        can_skip: true,
    }
}

fn fixed(instance: &str, new_id: &str) -> JoinRequest {
    let mut request = asks("", new_id);
    request.who.instance = Some(instance.into());
    request.protocols = vec![("range".into(), bytes(instance))];
    request
}

fn who(id: &str) -> Identity {
    Identity { id: id.into(), instance: None }
}

/// A group, and the answers that nobody has looked at.
struct Bed {
    group: Machine,
    answers: BTreeMap<Token, Answer>,
}

impl Bed {
    fn new() -> Self {
        Self { group: Machine::new(Limits::default()), answers: BTreeMap::new() }
    }

    fn take(&mut self, token: Token) -> Option<Answer> {
        self.answers.extend(self.group.take_answers());
        self.answers.remove(&token)
    }

    #[track_caller]
    fn joined(&mut self, token: Token) -> Joined {
        match self.take(token) {
            Some(Answer::Joined(Ok(joined))) => joined,
            other => panic!("{other:?}"),
        }
    }

    fn waits(&mut self, token: Token) -> bool {
        self.take(token).is_none()
    }

    fn refusal(&mut self, token: Token) -> String {
        match self.take(token) {
            Some(Answer::Joined(Err(refusal)) | Answer::Synced(Err(refusal))) => format!("{refusal:?}"),
            other => format!("{other:?}"),
        }
    }

    fn synced(&mut self, token: Token) -> Bytes {
        match self.take(token) {
            Some(Answer::Synced(Ok(synced))) => synced.assignment,
            other => panic!("{other:?}"),
        }
    }

    fn syncs(&mut self, now: Duration, id: &str, all: &[(&str, &str)]) -> Token {
        let assignments = all.iter().map(|(id, own)| ((*id).to_owned(), bytes(own))).collect();
        let generation = self.group.generation();
        self.group.sync(now, SyncRequest { who: who(id), generation, assignments, ..SyncRequest::default() })
    }

    /// A stable group of these members, dynamic ones, of which the first leads.
    fn stable(ids: &[&str]) -> Self {
        let mut bed = Self::new();
        for (i, id) in ids.iter().enumerate() {
            bed.group.join(at(0), asks("", id));
            for known in &ids[..i] {
                bed.group.join(at(0), asks(known, ""));
            }
        }
        assert_eq!(bed.group.leader(), Some(ids[0]));
        for id in ids.iter().rev() {
            let all: Vec<_> = ids.iter().map(|id| (*id, *id)).collect();
            bed.syncs(at(0), id, if *id == ids[0] { &all } else { &[] });
        }
        assert_eq!(bed.group.state(), State::Stable);
        bed.take(Token(0));
        bed.answers.clear();
        bed
    }

    fn completing() -> Self {
        let mut bed = Self::stable(&["a", "b"]);
        bed.group.join(at(0), asks("a", ""));
        bed.group.join(at(0), asks("b", ""));
        assert_eq!(bed.group.state(), State::Completing);
        bed.take(Token(0));
        bed.answers.clear();
        bed
    }

    fn preparing() -> Self {
        let mut bed = Self::stable(&["a", "b"]);
        bed.group.join(at(0), asks("", "c"));
        assert_eq!(bed.group.state(), State::Preparing);
        bed
    }

    fn dead() -> Self {
        let mut bed = Self::new();
        bed.group.kill(at(0)).expect("empty");
        bed
    }
}

/// Each state and each request: what comes, and what the state is then.
#[test]
fn every_request_in_every_state() {
    type Make = fn() -> Bed;
    let states: [(&str, Make); 5] = [
        ("empty", Bed::new),
        ("preparing", Bed::preparing),
        ("completing", Bed::completing),
        ("stable", || Bed::stable(&["a", "b"])),
        ("dead", Bed::dead),
    ];
    let token = |bed: &mut Bed, token| match bed.take(token) {
        None => "waits".to_owned(),
        Some(Answer::Joined(Ok(joined))) => format!("joined {} of {}", joined.members.len(), joined.leader),
        Some(Answer::Synced(Ok(synced))) => format!("synced {:?}", synced.assignment),
        Some(Answer::Joined(Err(refusal)) | Answer::Synced(Err(refusal))) => format!("{refusal:?}"),
    };
    let plain =
        |result: Result<(), Refusal>| result.map_or_else(|refusal| format!("{refusal:?}"), |()| "ok".to_owned());
    let changed = |id: &str| {
        let mut request = asks(id, "");
        request.protocols = vec![("range".into(), bytes("other"))];
        request
    };
    type Event<'a> = (&'a str, Box<dyn Fn(&mut Bed) -> String + 'a>);
    let events: Vec<Event<'_>> = vec![
        (
            "join anew",
            Box::new(move |bed| {
                let t = bed.group.join(at(1), asks("", "n"));
                token(bed, t)
            }),
        ),
        (
            "join of unknown",
            Box::new(move |bed| {
                let t = bed.group.join(at(1), asks("x", ""));
                token(bed, t)
            }),
        ),
        (
            "join of leader",
            Box::new(move |bed| {
                let t = bed.group.join(at(1), asks("a", ""));
                token(bed, t)
            }),
        ),
        (
            "join of follower",
            Box::new(move |bed| {
                let t = bed.group.join(at(1), asks("b", ""));
                token(bed, t)
            }),
        ),
        (
            "join of changed follower",
            Box::new(move |bed| {
                let t = bed.group.join(at(1), changed("b"));
                token(bed, t)
            }),
        ),
        (
            "sync of leader",
            Box::new(move |bed| {
                let t = bed.syncs(at(1), "a", &[("a", "1"), ("b", "2")]);
                token(bed, t)
            }),
        ),
        (
            "sync of follower",
            Box::new(move |bed| {
                let t = bed.syncs(at(1), "b", &[]);
                token(bed, t)
            }),
        ),
        (
            "heartbeat",
            Box::new(move |bed| {
                let generation = bed.group.generation();
                plain(bed.group.heartbeat(at(1), &who("b"), generation))
            }),
        ),
        (
            "old heartbeat",
            Box::new(move |bed| {
                let generation = bed.group.generation() - 1;
                plain(bed.group.heartbeat(at(1), &who("b"), generation))
            }),
        ),
        (
            "commit",
            Box::new(move |bed| {
                let generation = bed.group.generation();
                plain(bed.group.check_commit(at(1), Some((&who("b"), generation))))
            }),
        ),
        (
            "old commit",
            Box::new(move |bed| {
                let generation = bed.group.generation() - 1;
                plain(bed.group.check_commit(at(1), Some((&who("b"), generation))))
            }),
        ),
        ("commit of nobody", Box::new(move |bed| plain(bed.group.check_commit(at(1), None)))),
        ("leave", Box::new(move |bed| plain(bed.group.leave(at(1), &who("b"))))),
        ("kill", Box::new(move |bed| plain(bed.group.kill(at(1))))),
        (
            "session over",
            Box::new(move |bed| {
                bed.group.tick(at(10));
                String::new()
            }),
        ),
        (
            "round over",
            Box::new(move |bed| {
                for second in (0..60).step_by(5) {
                    let generation = bed.group.generation();
                    for id in ["a", "b"] {
                        let _ = bed.group.heartbeat(at(second), &who(id), generation);
                    }
                }
                bed.group.tick(at(60));
                String::new()
            }),
        ),
    ];
    let mut found = String::new();
    for (event, call) in &events {
        for (state, make) in &states {
            let mut bed = make();
            let answer = call(&mut bed);
            found.push_str(&format!("{state}, {event}: {answer} {:?}\n", bed.group.state()));
        }
    }
    let wanted = include_str!("table.txt");
    let differ = found.lines().zip(wanted.lines()).find(|(a, b)| a != b);
    assert!(found == wanted, "differs first in {differ:?}; all:\n{found}");
}

#[test]
fn the_first_round_waits_for_more_members_and_is_made_longer_while_they_come() {
    let mut bed = Bed::new();
    let join = |id: &str| JoinRequest { first_delay: at(3), ..asks("", id) };
    let a = bed.group.join(at(0), join("a"));
    assert_eq!(bed.group.next_deadline(), Some(at(3)));
    let b = bed.group.join(at(1), join("b"));
    bed.group.tick(at(3));
    assert!(bed.waits(a) && bed.waits(b), "somebody came");
    assert_eq!(bed.group.next_deadline(), Some(at(6)));
    bed.group.tick(at(6));
    let joined = bed.joined(a);
    assert_eq!((joined.generation, joined.leader.as_str(), joined.members.len()), (1, "a", 2));
    assert_eq!(bed.joined(b).members, []);
}

#[test]
fn an_id_that_was_given_is_sent_back_or_forgotten() {
    let mut bed = Bed::new();
    let token = bed.group.join(at(0), JoinRequest { confirm_id: true, ..asks("", "a") });
    assert_eq!(bed.refusal(token), r#"MemberIdRequired("a")"#);
    assert!(!bed.group.is_idle());
    let token = bed.group.join(at(9), asks("a", ""));
    assert_eq!(bed.joined(token).id, "a");
    let token = bed.group.join(at(9), JoinRequest { confirm_id: true, ..asks("", "b") });
    assert_eq!(bed.refusal(token), r#"MemberIdRequired("b")"#);
    bed.group.tick(at(19));
    let token = bed.group.join(at(19), asks("b", ""));
    assert_eq!(bed.refusal(token), "UnknownMember");
}

/// A round waits for those whose ids were given, too, since they are about to join.
#[test]
fn a_round_ends_when_the_slowest_has_had_its_time() {
    let mut bed = Bed::stable(&["a", "b"]);
    let c = bed.group.join(at(1), JoinRequest { rebalance_time: at(20), ..asks("", "c") });
    let a = bed.group.join(at(2), asks("a", ""));
    let mut now = 5;
    while now < 61 {
        let generation = bed.group.generation();
        let beat = bed.group.heartbeat(at(now), &who("b"), generation);
        assert!(matches!(beat, Err(Refusal::RebalanceInProgress)), "b is told to join again at {now}: {beat:?}");
        now += 5;
    }
    assert!(bed.waits(a) && bed.waits(c));
    bed.group.tick(at(61));
    assert_eq!(bed.joined(a).members.len(), 2, "b is out");
    assert_eq!(bed.joined(c).generation, 3);
    let generation = bed.group.generation();
    assert!(matches!(bed.group.heartbeat(at(61), &who("b"), generation), Err(Refusal::UnknownMember)));
}

#[test]
fn who_does_not_sync_is_expelled() {
    let mut bed = Bed::completing();
    let a = bed.syncs(at(1), "a", &[("a", "1")]);
    assert_eq!(bed.synced(a), "1");
    for now in (5..60).step_by(5) {
        let generation = bed.group.generation();
        bed.group.heartbeat(at(now), &who("a"), generation).expect("stable");
        bed.group.heartbeat(at(now), &who("b"), generation).expect("it lives, but does not sync");
    }
    bed.group.tick(at(60));
    assert_eq!(bed.group.members().len(), 1);
    assert_eq!(bed.group.state(), State::Preparing);
}

#[test]
fn the_way_to_deal_is_what_all_support_and_most_prefer() {
    let mut bed = Bed::new();
    let join = |id: &str, names: &[&str]| JoinRequest {
        protocols: names.iter().map(|name| ((*name).to_owned(), Bytes::new())).collect(),
        ..asks("", id)
    };
    bed.group.join(at(0), join("a", &["x", "range", "sticky"]));
    let token = bed.group.join(at(0), join("z", &["y"]));
    assert_eq!(bed.refusal(token), "InconsistentProtocol");
    bed.group.join(at(0), join("b", &["sticky", "range"]));
    bed.group.join(at(0), join("c", &["sticky", "range", "y"]));
    bed.group.tick(at(60));
    assert_eq!(bed.group.protocol(), Some("sticky"));
    let token = bed.group.join(at(60), JoinRequest { protocol_type: "connect".into(), ..asks("", "d") });
    assert_eq!(bed.refusal(token), "InconsistentProtocol");
    let token = bed.group.join(at(60), JoinRequest { protocols: Vec::new(), ..asks("", "d") });
    assert_eq!(bed.refusal(token), "InconsistentProtocol");
}

#[test]
fn a_static_member_that_comes_back_disturbs_nobody_and_fences_its_old_self() {
    let mut bed = Bed::new();
    bed.group.join(at(0), fixed("one", "s1"));
    let two = bed.group.join(at(0), fixed("two", "s2"));
    bed.group
        .join(at(0), JoinRequest { who: Identity { id: "s1".into(), instance: Some("one".into()) }, ..asks("", "") });
    assert_eq!(bed.joined(two).generation, 2);
    bed.syncs(at(0), "s2", &[]);
    bed.syncs(at(0), "s1", &[("s1", "1"), ("s2", "2")]);
    assert_eq!(bed.group.state(), State::Stable);
    // A follower.
    let back = bed.group.join(at(5), fixed("two", "s3"));
    let joined = bed.joined(back);
    assert_eq!((joined.generation, joined.id.as_str(), joined.leader.as_str()), (2, "s3", "s1"));
    assert_eq!(bed.group.state(), State::Stable);
    let sync = bed.syncs(at(5), "s3", &[]);
    assert_eq!(bed.synced(sync), "2", "it has what it had");
    let old = Identity { id: "s2".into(), instance: Some("two".into()) };
    assert!(matches!(bed.group.heartbeat(at(5), &old, 2), Err(Refusal::FencedInstance)));
    assert!(matches!(bed.group.check_commit(at(5), Some((&old, 2))), Err(Refusal::FencedInstance)));
    assert!(matches!(bed.group.heartbeat(at(5), &who("s2"), 2), Err(Refusal::UnknownMember)));
    assert!(matches!(bed.group.leave(at(5), &old), Err(Refusal::FencedInstance)));
    // The leader: it knows all, and assigns nothing; one that cannot skip takes itself for a follower.
    let back = bed.group.join(at(6), fixed("one", "s4"));
    let joined = bed.joined(back);
    assert!(joined.skip_assignment && joined.leader == "s4" && joined.members.len() == 2);
    let back = bed.group.join(at(7), JoinRequest { can_skip: false, ..fixed("one", "s5") });
    let joined = bed.joined(back);
    assert!(!joined.skip_assignment && joined.leader == "s4" && joined.members.is_empty());
    let sync = bed.syncs(at(7), "s5", &[("s5", "x"), ("s3", "y")]);
    assert_eq!(bed.synced(sync), "1");
    assert_eq!(bed.group.leader(), Some("s5"));
    // It is expelled like any other, and goes by its name alone.
    let by_name = Identity { id: String::new(), instance: Some("two".into()) };
    bed.group.leave(at(7), &by_name).expect("it goes");
    assert!(matches!(bed.group.leave(at(7), &by_name), Err(Refusal::UnknownMember)));
    bed.group.tick(at(17));
    assert_eq!(bed.group.state(), State::Empty);
}

#[test]
fn what_waits_of_a_fenced_member_is_answered() {
    let mut bed = Bed::new();
    bed.group.join(at(0), asks("", "a"));
    let first = bed.group.join(at(0), fixed("one", "s1"));
    assert!(bed.waits(first));
    let second = bed.group.join(at(0), fixed("one", "s2"));
    assert_eq!(bed.refusal(first), "FencedInstance");
    assert!(bed.waits(second));
    bed.group.join(at(0), asks("a", ""));
    assert_eq!(bed.joined(second).generation, 2);
}

#[test]
fn an_absent_static_member_keeps_its_place_for_its_session() {
    let mut bed = Bed::new();
    bed.group.join(at(0), fixed("one", "s1"));
    bed.syncs(at(0), "s1", &[("s1", "1")]);
    let a = bed.group.join(at(0), JoinRequest { rebalance_time: at(4), ..asks("", "a") });
    bed.group.tick(at(60));
    // Its session was over before the round was.
    assert_eq!(bed.joined(a).members.len(), 1);
    let mut bed = Bed::new();
    let long = |request: JoinRequest| JoinRequest { session_time: at(100), rebalance_time: at(4), ..request };
    bed.group.join(at(0), long(fixed("one", "s1")));
    bed.syncs(at(0), "s1", &[("s1", "1")]);
    let a = bed.group.join(at(0), long(asks("", "a")));
    bed.group.tick(at(4));
    let joined = bed.joined(a);
    assert_eq!((joined.members.len(), joined.leader.as_str()), (2, "a"), "who is there leads");
    let sync = bed.syncs(at(4), "a", &[("s1", "1"), ("a", "2")]);
    assert_eq!(bed.synced(sync), "2");
    bed.group.tick(at(8));
    assert_eq!(bed.group.state(), State::Stable, "nobody waits for its sync");
    let back = bed.group.join(at(50), fixed("one", "s2"));
    assert_eq!(bed.joined(back).generation, joined.generation);
}

#[test]
fn an_older_request_that_still_waits_is_answered() {
    let mut bed = Bed::stable(&["a", "b"]);
    let first = bed.group.join(at(1), asks("a", ""));
    let again = bed.group.join(at(2), asks("a", ""));
    assert_eq!(bed.refusal(first), "RebalanceInProgress");
    assert!(bed.waits(again));
    bed.group.join(at(2), asks("b", ""));
    bed.joined(again);
    let first = bed.syncs(at(3), "b", &[]);
    let again = bed.syncs(at(3), "b", &[]);
    assert_eq!(bed.refusal(first), "RebalanceInProgress");
    bed.group.leave(at(3), &who("b")).expect("it goes");
    assert_eq!(bed.refusal(again), "UnknownMember");
}

#[test]
fn bounds_hold() {
    let limits = Limits { members: 2, group_bytes: 100, ..Limits::default() };
    let mut bed = Bed { group: Machine::new(limits), answers: BTreeMap::new() };
    for bad in [Duration::from_secs(5), Duration::from_secs(3600)] {
        let token = bed.group.join(at(0), JoinRequest { session_time: bad, ..asks("", "a") });
        assert_eq!(bed.refusal(token), "InvalidSessionTime");
    }
    let large = vec![("range".to_owned(), Bytes::from(vec![0; 100]))];
    let token = bed.group.join(at(0), JoinRequest { protocols: large, ..asks("", "a") });
    assert!(bed.refusal(token).contains("exceeds 100"));
    bed.group.join(at(0), asks("", "a"));
    let sync = bed.syncs(at(0), "a", &[("a", &"x".repeat(100)), ("nobody", "y")]);
    assert!(bed.refusal(sync).contains("exceeds 100"));
    let sync = bed.syncs(at(0), "a", &[("a", "x"), ("nobody", &"y".repeat(1000))]);
    assert_eq!(bed.synced(sync), "x");
    let token = bed.group.join(at(0), JoinRequest { confirm_id: true, ..asks("", "b") });
    assert_eq!(bed.refusal(token), r#"MemberIdRequired("b")"#);
    let token = bed.group.join(at(0), asks("", "c"));
    assert!(bed.refusal(token).contains("2 members already"), "an id that was given has its place");
    let token = bed.group.join(at(0), asks("b", ""));
    assert!(bed.waits(token));
}
