//! Groups over an engine: offsets over restarts, expiry, resets, lag; members and leases under a clock that a test moves.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tidemill_core::{
    ErrorKind,
    clock::Clock,
    engine::{Config, Engine, Table},
    group::{Groups, Identity, JoinRequest, NewOffset, Refusal, Reset, ResetTo, State, SyncRequest},
    log::{Caller, Change, Embedded, GroupOffset, Lease, Log, Member, MemberOptions, Session},
    record::{Record, Timestamp},
    storage::OsStorage,
    topic::{TopicPartition, TopicSpec},
};

use crate::{
    harness::{Stepped, TempDir, small},
    sim::{Keep, SimClock, SimDisk},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A log on the real disk whose clock stands still.
struct Bed {
    engine: Arc<Engine>,
    groups: Groups,
    clock: SimClock,
    dir: TempDir,
}

fn open(dir: &Path, clock: &SimClock) -> Arc<Engine> {
    Arc::new(Engine::open(dir, Config::default(), Arc::new(OsStorage), Arc::new(clock.clone())).expect("opens"))
}

impl Bed {
    fn new(name: &str) -> Self {
        let (dir, clock) = (TempDir::new(name), SimClock::default());
        let engine = open(&dir.0, &clock);
        Self { groups: Groups::of(&engine), engine, clock, dir }
    }

    fn again(self) -> Self {
        let Self { engine, groups, clock, dir } = self;
        drop(groups);
        engine.close().expect("closes");
        drop(engine);
        let engine = open(&dir.0, &clock);
        Self { groups: Groups::of(&engine), engine, clock, dir }
    }

    async fn session(&self) -> Arc<dyn Session> {
        Embedded::new(Arc::clone(&self.engine)).session(Caller::internal("test")).await.expect("a session")
    }

    /// A topic of one partition with so many records, a second apart.
    async fn topic(&self, name: &str, records: i64) -> TopicPartition {
        self.engine.create_topic(name, &TopicSpec::default()).await.expect("made");
        let of = TopicPartition::new(name, 0);
        let session = self.session().await;
        for i in 0..records {
            let timestamp = Some(Timestamp(self.clock.now().0 + i * 1000));
            let record = Record { timestamp, ..Record::new(None, Some(Bytes::from(i.to_string()))) };
            session.append(&of, vec![record]).await.expect("appended");
        }
        of
    }

    /// A commit of somebody who is no member.
    async fn commit(&self, group: &str, of: &TopicPartition, offset: i64) -> Result<(), Refusal> {
        let new = NewOffset { offset, metadata: "m".into(), leader_epoch: Some(3), expires: None };
        let refused = self.groups.commit(group, None, BTreeMap::from([(of.clone(), new)])).await?;
        refused.into_values().next().map_or(Ok(()), Err)
    }

    fn offset(&self, group: &str, of: &TopicPartition) -> Option<i64> {
        self.groups.offsets(group).get(of).map(|committed| committed.offset)
    }

    /// Moves the clock a little at a time, until something is so.
    async fn until(&self, what: &str, step: Duration, mut is_so: impl AsyncFnMut() -> bool) {
        for _ in 0..4000 {
            if is_so().await {
                return;
            }
            self.clock.advance(step);
            self.groups.look();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        panic!("not so: {what}");
    }
}

fn asks(id: &str) -> JoinRequest {
    JoinRequest {
        who: Identity { id: id.to_owned(), instance: None },
        new_id: String::new(),
        confirm_id: false,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"opaque"))],
        session_time: Duration::from_secs(10),
        rebalance_time: Duration::from_secs(60),
        first_delay: Duration::ZERO,
        can_skip: true,
    }
}

#[tokio::test]
async fn offsets_stand_after_a_restart() {
    let bed = Bed::new("offsets-stand");
    let of = bed.topic("a", 5).await;
    bed.commit("g", &of, 4).await.expect("committed");
    bed.commit("h\u{1f}a\u{1f}0", &of, 2).await.expect("committed");
    let before = bed.groups.offsets("g");
    let bed = bed.again();
    assert_eq!(bed.groups.offsets("g"), before);
    let committed = &before[&of];
    assert_eq!((committed.offset, committed.metadata.as_str(), committed.leader_epoch), (4, "m", Some(3)));
    assert_eq!(bed.offset("h\u{1f}a\u{1f}0", &of), Some(2));
    assert_eq!(bed.offset("h", &of), None, "a group's name may look like a key");
    let names: Vec<_> = bed.groups.list().into_iter().map(|group| group.name).collect();
    assert_eq!(names, ["g", "h\u{1f}a\u{1f}0"]);
}

#[tokio::test]
async fn a_member_of_an_older_generation_commits_nothing() {
    let bed = Bed::new("older-generation");
    let of = bed.topic("a", 5).await;
    let joined = bed.groups.join("g", asks("")).await.expect("joins");
    let who = Identity { id: joined.id.clone(), instance: None };
    let assignments = BTreeMap::from([(joined.id.clone(), Bytes::from_static(b"all"))]);
    let sync = SyncRequest { who: who.clone(), generation: joined.generation, assignments, ..SyncRequest::default() };
    assert_eq!(bed.groups.sync("g", sync).await.expect("synced").assignment, "all");
    let new = |offset| BTreeMap::from([(of.clone(), NewOffset { offset, ..NewOffset::default() })]);
    bed.groups.commit("g", Some((&who, 1)), new(1)).await.expect("committed");
    assert!(matches!(bed.groups.commit("g", Some((&who, 0)), new(2)).await, Err(Refusal::IllegalGeneration)));
    assert!(matches!(bed.groups.commit("g", None, new(3)).await, Err(Refusal::UnknownMember)));
    assert!(matches!(bed.groups.commit("other", Some((&who, 1)), new(3)).await, Err(Refusal::UnknownMember)));
    // It joins again: the old generation is over.
    let again = bed.groups.join("g", asks(&joined.id)).await.expect("joins");
    assert_eq!(again.generation, 2);
    assert!(matches!(bed.groups.commit("g", Some((&who, 1)), new(4)).await, Err(Refusal::IllegalGeneration)));
    assert!(matches!(bed.groups.commit("g", Some((&who, 2)), new(5)).await, Err(Refusal::RebalanceInProgress)));
    assert_eq!(bed.offset("g", &of), Some(1));
    // Its session ends, and with it the group's members: whoever is none may commit.
    bed.clock.advance(Duration::from_secs(10));
    assert!(matches!(bed.groups.commit("g", Some((&who, 2)), new(6)).await, Err(Refusal::UnknownMember)));
    bed.groups.commit("g", None, new(7)).await.expect("committed");
    assert_eq!(bed.offset("g", &of), Some(7));
}

#[tokio::test]
async fn what_is_refused_of_a_commit_leaves_the_rest() {
    let bed = Bed::new("refused-offsets");
    let of = bed.topic("a", 1).await;
    let gone = TopicPartition::new("a", 1);
    let large = NewOffset { metadata: "x".repeat(4097), ..NewOffset::default() };
    let offsets = BTreeMap::from([(of.clone(), NewOffset::default()), (gone.clone(), NewOffset::default())]);
    let refused = bed.groups.commit("g", None, offsets).await.expect("committed");
    assert!(matches!(refused[&gone], Refusal::UnknownPartition) && refused.len() == 1);
    let refused = bed.groups.commit("h", None, BTreeMap::from([(of.clone(), large)])).await.expect("nothing to do");
    assert!(matches!(refused[&of], Refusal::MetadataTooLarge));
    assert_eq!((bed.offset("g", &of), bed.offset("h", &of)), (Some(0), None));
    for bad in ["", &"x".repeat(250)] {
        assert!(matches!(bed.commit(bad, &of, 1).await, Err(Refusal::InvalidGroup)));
    }
}

#[tokio::test]
async fn offsets_of_idle_groups_expire_and_no_others() {
    let bed = Bed::new("expiry");
    let of = bed.topic("a", 5).await;
    bed.commit("idle", &of, 1).await.expect("committed");
    bed.commit("busy", &of, 2).await.expect("committed");
    let joined = bed.groups.join("busy", asks("")).await.expect("joins");
    let who = Identity { id: joined.id, instance: None };
    let sync = SyncRequest { who: who.clone(), generation: joined.generation, ..SyncRequest::default() };
    bed.groups.sync("busy", sync).await.expect("synced");
    // A wish of its own counts from the commit.
    let soon = NewOffset { offset: 3, expires: Some(Timestamp(bed.clock.now().0 + 1000)), ..NewOffset::default() };
    bed.groups.commit("soon", None, BTreeMap::from([(of.clone(), soon)])).await.expect("committed");
    let settled = async || {
        // What was written without waiting is there when something behind it is.
        bed.commit("last", &of, 9).await.expect("committed");
    };
    assert_eq!(bed.groups.expire(), 0);
    bed.clock.advance(Duration::from_secs(5));
    assert_eq!(bed.groups.expire(), 1);
    settled().await;
    assert_eq!((bed.offset("soon", &of), bed.offset("idle", &of)), (None, Some(1)));
    for _ in 0..8 * 24 * 600 {
        bed.groups.heartbeat("busy", &who, joined.generation).expect("a member");
        bed.clock.advance(Duration::from_secs(6));
    }
    // Eight days old.
    assert_eq!(bed.groups.expire(), 1);
    settled().await;
    assert_eq!((bed.offset("idle", &of), bed.offset("busy", &of)), (None, Some(2)));
    // The group loses its members; from then on it has its time, over a restart, too.
    bed.groups.leave("busy", &who).expect("it goes");
    bed.groups.expire();
    settled().await;
    bed.clock.advance(4 * DAY);
    let bed = bed.again();
    bed.groups.expire();
    bed.commit("last", &of, 9).await.expect("committed");
    assert_eq!(bed.offset("busy", &of), Some(2), "of a group that was idle for four days");
    bed.clock.advance(3 * DAY);
    assert_eq!(bed.groups.expire(), 1);
    bed.commit("last", &of, 9).await.expect("committed");
    assert_eq!(bed.offset("busy", &of), None);
    bed.groups.expire();
    bed.commit("last", &of, 9).await.expect("committed");
    let left: Vec<_> = bed.engine.table(Table::Groups).into_keys().collect();
    assert_eq!(left, ["last\u{1f}", "last\u{1f}a\u{1f}0"], "nothing is left of the others");
}

#[tokio::test]
async fn a_topic_that_is_deleted_takes_its_offsets_with_it() {
    let bed = Bed::new("deleted-topic");
    let of = bed.topic("a", 5).await;
    bed.commit("g", &of, 4).await.expect("committed");
    bed.engine.delete_topic("a").await.expect("deleted");
    assert_eq!(bed.offset("g", &of), None);
    assert_eq!(bed.groups.list(), []);
    let of = bed.topic("a", 1).await;
    assert_eq!(bed.offset("g", &of), None, "the topic is another");
    bed.commit("h", &of, 1).await.expect("committed");
    assert_eq!(bed.groups.expire(), 1);
    bed.commit("h", &of, 1).await.expect("committed");
    assert!(!bed.engine.table(Table::Groups).contains_key("g\u{1f}a\u{1f}0"));
    // One that was looked at before it is committed anew is not taken for the old one.
    assert_eq!(bed.offset("h", &of), Some(1));
}

#[tokio::test]
async fn a_reset_moves_a_group_without_members() {
    let bed = Bed::new("reset");
    let (a, b) = (bed.topic("a", 10).await, bed.topic("b", 0).await);
    bed.commit("g", &a, 4).await.expect("committed");
    let all = [a.clone(), b.clone()];
    let at = |seconds: i64| ResetTo::Time(Timestamp(bed.clock.now().0 + seconds * 1000));
    let cases = [
        (ResetTo::Earliest, 0),
        (ResetTo::Latest, 10),
        (ResetTo::Offset(7), 7),
        (ResetTo::Offset(70), 10),
        (ResetTo::Offset(-7), 0),
        (ResetTo::Shift(3), 7),
        (ResetTo::Shift(-9), 0),
        (ResetTo::Shift(i64::MAX), 10),
        (at(-5), 0),
        (at(3), 3),
        (at(100), 10),
    ];
    for (to, wanted) in cases {
        let plan = bed.groups.reset("g", &all, to, true).await.expect("planned");
        assert_eq!(plan[&a], Reset { from: Some(4), to: wanted }, "{to:?}");
        assert_eq!(plan[&b], Reset { from: None, to: 0 });
        assert_eq!((bed.offset("g", &a), bed.offset("g", &b)), (Some(4), None), "nothing was done");
        assert_eq!(bed.groups.reset("g", &all, to, false).await.expect("done"), plan);
        assert_eq!((bed.offset("g", &a), bed.offset("g", &b)), (Some(wanted), Some(0)));
        bed.commit("g", &a, 4).await.expect("committed");
        bed.groups.delete_offsets("g", std::slice::from_ref(&b)).await.expect("forgotten");
    }
    let missing = bed.groups.reset("g", &[TopicPartition::new("c", 0)], ResetTo::Earliest, true).await;
    assert_eq!(missing.expect_err("not there").kind(), ErrorKind::NotFound);
    let joined = bed.groups.join("g", asks("")).await.expect("joins");
    for dry_run in [true, false] {
        let refused = bed.groups.reset("g", &all, ResetTo::Earliest, dry_run).await.expect_err("it has members");
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    }
    assert!(matches!(bed.groups.delete("g").await, Err(Refusal::NotEmpty)));
    assert!(matches!(bed.groups.delete_offsets("g", &all).await, Err(Refusal::Subscribed)));
    bed.groups.leave("g", &Identity { id: joined.id, instance: None }).expect("it goes");
    bed.groups.delete("g").await.expect("deleted");
    assert_eq!((bed.offset("g", &a), bed.groups.list()), (None, vec![]));
    assert!(matches!(bed.groups.delete("g").await, Err(Refusal::UnknownGroup)));
}

#[tokio::test]
async fn a_group_is_described_with_its_lag() {
    let bed = Bed::new("lag");
    let (a, b) = (bed.topic("a", 10).await, bed.topic("b", 3).await);
    assert_eq!(bed.groups.describe("g").expect_err("not there").kind(), ErrorKind::NotFound);
    bed.commit("g", &a, 4).await.expect("committed");
    bed.commit("g", &b, 3).await.expect("committed");
    bed.clock.advance(Duration::from_secs(60));
    let found = bed.groups.describe("g").expect("described");
    assert_eq!((found.state, found.members.len()), (State::Empty, 0));
    let (in_a, in_b) = (&found.offsets[&a], &found.offsets[&b]);
    // The fifth record is of the fourth second.
    assert_eq!((in_a.lag, in_a.lag_time), (Some(6), Some(Duration::from_secs(56))));
    assert_eq!((in_b.lag, in_b.lag_time), (Some(0), None));
    let joined = bed.groups.join("g", asks("")).await.expect("joins");
    let found = bed.groups.describe("g").expect("described");
    assert_eq!((found.state, found.generation, found.protocol.as_deref()), (State::Completing, 1, Some("range")));
    assert_eq!((found.leader.as_ref(), found.members[0].client_host.as_str()), (Some(&joined.id), "/127.0.0.1"));
    assert_eq!(bed.groups.list()[0].members, 1);
}

/// Records that a group had read are lost. What takes their offsets later must not be taken for read.
#[test]
fn an_offset_beyond_the_end_is_set_to_the_end_before_anything_is_appended() {
    let (disk, clock) = (SimDisk::new(7), SimClock::default());
    let mut log = Stepped::open(&disk, small(), &clock).expect("opens");
    let id = log.create("a", 1).expect("made")[0];
    log.append(vec![(id, crate::harness::batch(1, 5, 200))]).expect("appended");
    // As a loss would leave it: the offset is of a time when there were more records.
    let key = "g\u{1f}a\u{1f}0";
    let value = format!(r#"{{"offset":9,"id":{},"at_ms":5,"metadata":"m"}}"#, id.0);
    log.run(async |engine| engine.put(Table::Groups, key, Some(value), None).await).expect("written");
    drop(log);
    let mut log = Stepped::open(&disk.image(Keep::Nothing), small(), &clock).expect("opens");
    log.append(vec![(id, crate::harness::batch(2, 20, 200))]).expect("appended");
    let value = log.engine.table(Table::Groups)[key].value.clone();
    assert_eq!(value, format!(r#"{{"offset":5,"id":{},"at_ms":5,"metadata":"m","lost_from":9}}"#, id.0));
}

fn partitions(member: &dyn Member) -> usize {
    member.partitions().len()
}

/// A member whose process is gone gives no more signs of life: after its session time, and not before, others have what it
/// had, and what it commits is refused.
#[tokio::test]
async fn a_member_without_signs_of_life_is_expelled() {
    let bed = Bed::new("expelled");
    bed.engine.create_topic("a", &TopicSpec { partitions: 4, ..TopicSpec::default() }).await.expect("made");
    let session = bed.session().await;
    // Its task lives in a runtime of its own, which goes.
    let gone = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (topics, options) = (["a".to_owned()], MemberOptions::default());
    let there = Arc::clone(&session);
    let joins = gone.spawn(async move { there.join("g", &["a".to_owned()], &MemberOptions::default()).await });
    let mut first = joins.await.expect("joined").expect("a member");
    let moment = Duration::from_millis(1);
    bed.until("the first has all", moment, async || {
        first.changed(moment).await.expect("a member");
        partitions(&*first) == 4
    })
    .await;
    let mut second = session.join("g", &topics, &options).await.expect("a member");
    bed.until("they share", moment, async || {
        first.changed(moment).await.expect("a member");
        second.changed(moment).await.expect("a member");
        partitions(&*first) == 2 && partitions(&*second) == 2
    })
    .await;
    gone.shutdown_background();
    let begun = bed.clock.monotonic();
    bed.until("the second has all", Duration::from_millis(500), async || {
        second.changed(moment).await.expect("a member");
        partitions(&*second) == 4
    })
    .await;
    let waited = bed.clock.monotonic() - begun;
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&waited), "after {waited:?}");
    let own = first.partitions().first().expect("it knows nothing of it").clone();
    let late = first.commit(BTreeMap::from([(own, GroupOffset::at(1))])).await.expect_err("it is expelled");
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
}

fn held(leases: &[Lease]) -> Vec<u32> {
    let mut held: Vec<_> = leases.iter().flat_map(|lease| lease.held().iter().copied()).collect();
    held.sort_unstable();
    held
}

/// Slots go from who dies, or leaves, to the others; a slot is never held twice.
#[tokio::test]
async fn slots_of_who_is_gone_go_to_others_after_the_session_time() {
    let bed = Bed::new("leases");
    let session = bed.session().await;
    let moment = Duration::from_millis(1);
    let gone = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let there = Arc::clone(&session);
    let first = gone.spawn(async move { there.lease("job", 4).await }).await.expect("joined").expect("a lease");
    let mut leases = vec![first, session.lease("job", 4).await.expect("a lease")];
    bed.until("they share", moment, async || {
        for lease in &mut leases {
            lease.changed(moment).await.expect("a lease");
        }
        let all = held(&leases);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "held twice: {all:?}");
        leases.iter().all(|lease| lease.held().len() == 2)
    })
    .await;
    gone.shutdown_background();
    let begun = bed.clock.monotonic();
    bed.until("the second holds all", Duration::from_millis(500), async || {
        leases[1].changed(moment).await.expect("a lease");
        leases[1].held().len() == 4
    })
    .await;
    let waited = bed.clock.monotonic() - begun;
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&waited), "after {waited:?}");
    // Who hears of it late is told that all is lost, and shares again.
    let mut told = Vec::new();
    let second = leases.pop().expect("two");
    second.release().await.expect("released");
    let mut third = session.lease("job", 4).await.expect("a lease");
    bed.until("the third holds all", moment, async || {
        told.extend(third.changed(moment).await.expect("a lease"));
        third.held().len() == 4
    })
    .await;
    assert_eq!(told, [Change::Assigned(BTreeSet::from([0, 1, 2, 3]))]);
}

/// Groups that nobody uses any more are not kept, and there are no more than a bound allows.
#[tokio::test]
async fn groups_do_not_pile_up() {
    let bed = Bed::new("pile");
    for i in 0..bed.groups.limits().groups {
        let refused = bed.groups.join(&format!("g{i}"), JoinRequest { confirm_id: true, ..asks("") }).await;
        assert!(matches!(refused, Err(Refusal::MemberIdRequired(_))));
    }
    let full = bed.groups.join("one more", asks("")).await;
    assert!(matches!(full, Err(Refusal::Full(_))), "{full:?}");
    bed.clock.advance(Duration::from_secs(10));
    bed.groups.join("one more", asks("")).await.expect("the others are forgotten");
    assert_eq!(bed.groups.list().len(), 1);
}
