//! Members of groups, their offsets, and leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tidemill_core::{
    ErrorKind, Result,
    log::{Assignor, Change, GroupOffset, Lease, Member, MemberOptions, Session},
    topic::{TopicPartition, TopicSpec},
};

use super::bed::{Bed, LATE, refused, soon};

type Members = Vec<Box<dyn Member>>;

/// A moment in which nothing should happen.
const MOMENT: Duration = Duration::from_millis(300);

fn of(assignor: Assignor) -> MemberOptions {
    MemberOptions { assignor, ..MemberOptions::default() }
}

fn fixed(instance: &str) -> MemberOptions {
    MemberOptions { instance: Some(instance.to_owned()), ..MemberOptions::default() }
}

async fn join(session: &Arc<dyn Session>, bed: &Bed, topic: &str, options: &MemberOptions) -> Box<dyn Member> {
    session.join(&bed.name("g"), &[bed.name(topic)], options).await.expect("joins")
}

/// What changes next.
async fn next(member: &mut dyn Member) -> Change {
    let change = async {
        loop {
            if let Some(change) = member.changed(Duration::from_secs(1)).await.expect("a member") {
                return change;
            }
        }
    };
    soon("a change", change).await
}

/// The next change that is more than "nothing for you".
async fn gets(member: &mut dyn Member) -> BTreeSet<TopicPartition> {
    loop {
        match next(member).await {
            Change::Assigned(new) if new.is_empty() => {}
            Change::Assigned(new) => return new,
            other => panic!("{other:?} instead of partitions"),
        }
    }
}

/// Lets the members take and give until each has as many partitions as wanted. No partition is ever with two of them.
async fn settle(members: &mut Members, wanted: &[usize]) {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    let deadline = tokio::time::Instant::now() + LATE;
    loop {
        for i in 0..members.len() {
            let _ = members[i].changed(Duration::from_millis(50)).await.expect("a member");
            let mut seen = BTreeSet::new();
            for member in members.iter() {
                member.partitions().iter().for_each(|p| assert!(seen.insert(p.clone()), "{p} is with two members"));
            }
        }
        let mut counts: Vec<_> = members.iter().map(|m| m.partitions().len()).collect();
        counts.sort_unstable();
        if counts == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "they have {counts:?}, not {wanted:?}");
    }
}

async fn commit(member: &mut dyn Member, of: &TopicPartition, offset: i64, metadata: &str) -> Result<()> {
    let offset = GroupOffset { offset, metadata: metadata.to_owned() };
    soon("a commit", member.commit(BTreeMap::from([(of.clone(), offset)]))).await
}

async fn committed(session: &Arc<dyn Session>, bed: &Bed, of: &TopicPartition) -> Option<GroupOffset> {
    session.committed(&bed.name("g"), std::slice::from_ref(of)).await.expect("read").remove(of)
}

/// A partition with records, so that offsets lie within it.
async fn filled(bed: &Bed, topic: &str, partitions: u32) -> Vec<TopicPartition> {
    let (all, session) = (bed.partitions(topic, partitions).await, bed.session().await);
    for of in &all {
        session.append(of, (0..20).map(|i| super::bed::text(i.to_string())).collect()).await.expect("appended");
    }
    all
}

pub async fn a_lone_member_gets_everything(bed: Bed) {
    let all = bed.partitions("a", 5).await;
    for assignor in [Assignor::Range, Assignor::RoundRobin, Assignor::CooperativeSticky] {
        let mut member = join(&bed.session().await, &bed, "a", &of(assignor)).await;
        assert!(member.partitions().is_empty(), "nothing is told before it is asked for");
        assert_eq!(gets(&mut *member).await, all.iter().cloned().collect());
        assert_eq!(*member.partitions(), all.iter().cloned().collect());
        soon("leaving", member.leave()).await.expect("left");
    }
}

pub async fn two_members_share_and_who_leaves_gives_back(bed: Bed) {
    bed.partitions("a", 5).await;
    for assignor in [Assignor::Range, Assignor::RoundRobin, Assignor::CooperativeSticky] {
        let mut members = vec![join(&bed.session().await, &bed, "a", &of(assignor)).await];
        settle(&mut members, &[5]).await;
        members.push(join(&bed.other_session().await, &bed, "a", &of(assignor)).await);
        settle(&mut members, &[3, 2]).await;
        members.push(join(&bed.session().await, &bed, "a", &of(assignor)).await);
        settle(&mut members, &[2, 2, 1]).await;
        let gone = members.remove(0);
        soon("leaving", gone.leave()).await.expect("left");
        settle(&mut members, &[3, 2]).await;
        drop(members.remove(1));
        settle(&mut members, &[5]).await;
        soon("leaving", members.remove(0).leave()).await.expect("left");
    }
}

pub async fn nobody_gets_what_another_has_not_let_go(bed: Bed) {
    filled(&bed, "a", 2).await;
    let (one, two) = (bed.session().await, bed.other_session().await);
    for assignor in [Assignor::Range, Assignor::CooperativeSticky] {
        let mut first = join(&one, &bed, "a", &of(assignor)).await;
        assert_eq!(gets(&mut *first).await.len(), 2);
        let mut second = join(&two, &bed, "a", &of(assignor)).await;
        let Change::Revoked(taken) = next(&mut *first).await else { panic!("nothing is taken from the first") };
        assert!(!taken.is_empty());
        // It has not let go: it may finish its work, and nobody else has begun.
        assert_eq!(first.partitions().len(), 2, "what is revoked is its own until it answers");
        match second.changed(MOMENT).await.expect("a member") {
            None => {}
            Some(Change::Assigned(new)) => assert_eq!(new, BTreeSet::new()),
            Some(other) => panic!("{other:?}"),
        }
        let of = taken.first().expect("one").clone();
        commit(&mut *first, &of, 7, "last").await.expect("it may still commit");
        let mut members = vec![first, second];
        settle(&mut members, &[1, 1]).await;
        assert_eq!(committed(&two, &bed, &of).await, Some(GroupOffset { offset: 7, metadata: "last".into() }));
        let (with, without) = if members[0].partitions().contains(&of) { (0, 1) } else { (1, 0) };
        refused(commit(&mut *members[without], &of, 8, "").await, ErrorKind::Conflict);
        commit(&mut *members[with], &of, 9, "").await.expect("its own");
        for member in members {
            soon("leaving", member.leave()).await.expect("left");
        }
    }
}

pub async fn offsets_come_back_with_their_metadata(bed: Bed) {
    let all = filled(&bed, "a", 3).await;
    let (one, two) = (bed.session().await, bed.other_session().await);
    assert_eq!(committed(&one, &bed, &all[0]).await, None);
    let mut member = join(&one, &bed, "a", &MemberOptions::default()).await;
    gets(&mut *member).await;
    let text = "ä \u{1f} \"\n\0 ".repeat(100);
    let wanted = BTreeMap::from([
        (all[0].clone(), GroupOffset { offset: 5, metadata: text }),
        (all[2].clone(), GroupOffset::at(0)),
    ]);
    member.commit(wanted.clone()).await.expect("committed");
    for session in [&one, &two] {
        assert_eq!(session.committed(&bed.name("g"), &all).await.expect("read"), wanted);
        assert_eq!(session.committed(&bed.name("other"), &all).await.expect("read"), BTreeMap::new());
    }
    member.commit(BTreeMap::new()).await.expect("nothing to do");
    // Backwards, too: the group decides.
    commit(&mut *member, &all[0], 3, "").await.expect("committed");
    assert_eq!(committed(&two, &bed, &all[0]).await, Some(GroupOffset::at(3)));
    member.leave().await.expect("left");
    // Who comes later goes on from there.
    let mut later = join(&two, &bed, "a", &MemberOptions::default()).await;
    gets(&mut *later).await;
    assert_eq!(committed(&two, &bed, &all[0]).await, Some(GroupOffset::at(3)));
    commit(&mut *later, &all[0], 4, "").await.expect("committed");
    assert_eq!(committed(&one, &bed, &all[0]).await, Some(GroupOffset::at(4)));
}

pub async fn bad_commits_are_refused(bed: Bed) {
    let all = filled(&bed, "a", 1).await;
    let session = bed.session().await;
    let mut member = join(&session, &bed, "a", &MemberOptions::default()).await;
    refused(commit(&mut *member, &all[0], 1, "").await, ErrorKind::Conflict);
    gets(&mut *member).await;
    refused(commit(&mut *member, &all[0], -1, "").await, ErrorKind::Invalid);
    refused(commit(&mut *member, &all[0], 1, &"x".repeat(4097)).await, ErrorKind::Invalid);
    refused(commit(&mut *member, &TopicPartition::new(bed.name("b"), 0), 1, "").await, ErrorKind::Conflict);
    commit(&mut *member, &all[0], 1, &"x".repeat(4095)).await.expect("small enough");
}

pub async fn bad_names_and_options_are_refused(bed: Bed) {
    bed.partition("a").await;
    let (session, topics) = (bed.session().await, [bed.name("a")]);
    let options = MemberOptions::default();
    for bad in ["", &"x".repeat(250)] {
        refused(session.join(bad, &topics, &options).await, ErrorKind::Invalid);
        refused(session.committed(bad, &[]).await, ErrorKind::Invalid);
        refused(session.lease(bad, 1).await, ErrorKind::Invalid);
    }
    refused(session.join("_tidemill.g", &topics, &options).await, ErrorKind::Denied);
    refused(session.join("g", &["_tidemill.topics".to_owned()], &options).await, ErrorKind::Denied);
    refused(session.join("g", &["a b".to_owned()], &options).await, ErrorKind::Invalid);
    refused(session.join("g", &[], &options).await, ErrorKind::Invalid);
    for session_time in [Duration::from_secs(5), Duration::from_secs(1801)] {
        let options = MemberOptions { session_time, ..MemberOptions::default() };
        refused(session.join("g", &topics, &options).await, ErrorKind::Invalid);
    }
    refused(session.lease("g", 0).await, ErrorKind::Invalid);
    refused(session.lease("g", 1001).await, ErrorKind::Invalid);
    refused(session.lease("a b", 1).await, ErrorKind::Invalid);
}

pub async fn who_does_not_let_go_is_expelled(bed: Bed) {
    let all = filled(&bed, "a", 2).await;
    let (one, two) = (bed.session().await, bed.other_session().await);
    for assignor in [Assignor::RoundRobin, Assignor::CooperativeSticky] {
        let options = MemberOptions { rebalance_time: Duration::from_secs(1), ..of(assignor) };
        let mut slow = join(&one, &bed, "a", &options).await;
        assert_eq!(gets(&mut *slow).await.len(), 2);
        let quick = join(&two, &bed, "a", &options).await;
        let Change::Revoked(_) = next(&mut *slow).await else { panic!("nothing is taken from the slow one") };
        // It does not answer. The other gets all.
        let mut members = vec![quick];
        settle(&mut members, &[2]).await;
        for of in &all {
            refused(commit(&mut *slow, of, 1, "").await, ErrorKind::Conflict);
        }
        assert!(matches!(next(&mut *slow).await, Change::Lost(_)), "it is told");
        assert!(slow.partitions().is_empty());
        // It is back by itself.
        members.push(slow);
        settle(&mut members, &[1, 1]).await;
        for member in members {
            soon("leaving", member.leave()).await.expect("left");
        }
    }
}

pub async fn a_static_member_comes_back_to_what_it_had(bed: Bed) {
    bed.partitions("a", 4).await;
    let session = bed.session().await;
    let first = join(&session, &bed, "a", &fixed("one")).await;
    let mut members = vec![first];
    settle(&mut members, &[4]).await;
    members.push(join(&session, &bed, "a", &fixed("two")).await);
    settle(&mut members, &[2, 2]).await;
    let had = members[1].partitions().clone();
    let kept = members[0].partitions().clone();
    soon("leaving", members.remove(1).leave()).await.expect("left");
    assert_eq!(members[0].changed(MOMENT).await.expect("a member"), None, "its place is kept");
    let mut back = join(&bed.other_session().await, &bed, "a", &fixed("two")).await;
    assert_eq!(gets(&mut *back).await, had);
    assert_eq!(members[0].changed(MOMENT).await.expect("a member"), None, "nobody is disturbed");
    assert_eq!(*members[0].partitions(), kept);
    // Another of its name takes its place.
    let mut other = join(&session, &bed, "a", &fixed("two")).await;
    assert_eq!(gets(&mut *other).await, had);
    let fenced = async {
        loop {
            match back.changed(Duration::from_secs(1)).await {
                Ok(_) => {}
                Err(error) => return error.kind(),
            }
        }
    };
    assert_eq!(soon("being fenced", fenced).await, ErrorKind::Conflict);
    refused(commit(&mut *back, had.first().expect("one"), 1, "").await, ErrorKind::Conflict);
}

pub async fn who_deals_otherwise_is_refused(bed: Bed) {
    bed.partitions("a", 2).await;
    let session = bed.session().await;
    let mut member = join(&session, &bed, "a", &of(Assignor::Range)).await;
    gets(&mut *member).await;
    let other = async {
        let mut other = session.join(&bed.name("g"), &[bed.name("a")], &of(Assignor::RoundRobin)).await?;
        loop {
            if other.changed(Duration::from_secs(1)).await?.is_some() {
                return Ok(());
            }
        }
    };
    refused(soon("the other", other).await, ErrorKind::Conflict);
    assert_eq!(member.partitions().len(), 2);
}

pub async fn ranges_are_the_same_in_each_topic(bed: Bed) {
    let (a, b) = (bed.partitions("a", 3).await, bed.partitions("b", 3).await);
    let topics = [bed.name("a"), bed.name("b")];
    let mut members = Vec::new();
    for _ in 0..2 {
        let options = of(Assignor::Range);
        members.push(bed.session().await.join(&bed.name("g"), &topics, &options).await.expect("joins"));
    }
    settle(&mut members, &[4, 2]).await;
    let large: BTreeSet<_> = [&a[0], &a[1], &b[0], &b[1]].into_iter().cloned().collect();
    let small: BTreeSet<_> = [&a[2], &b[2]].into_iter().cloned().collect();
    let found: BTreeSet<_> = members.iter().map(|m| m.partitions().clone()).collect();
    assert_eq!(found, BTreeSet::from([large, small]));
}

pub async fn a_topic_that_comes_later_is_dealt(bed: Bed) {
    let session = bed.session().await;
    let mut member = join(&session, &bed, "late", &MemberOptions::default()).await;
    match member.changed(MOMENT).await.expect("a member") {
        None => {}
        Some(change) => assert_eq!(change, Change::Assigned(BTreeSet::new())),
    }
    session.create_topic(&bed.name("late"), &TopicSpec { partitions: 2, ..TopicSpec::default() }).await.expect("made");
    assert_eq!(gets(&mut *member).await.len(), 2);
}

pub async fn a_deleted_topics_offsets_are_forgotten(bed: Bed) {
    let all = filled(&bed, "a", 1).await;
    let session = bed.session().await;
    let mut member = join(&session, &bed, "a", &MemberOptions::default()).await;
    gets(&mut *member).await;
    commit(&mut *member, &all[0], 5, "").await.expect("committed");
    member.leave().await.expect("left");
    session.delete_topic(&all[0].topic).await.expect("deleted");
    refused(session.committed(&bed.name("g"), &all).await, ErrorKind::NotFound);
    filled(&bed, "a", 1).await;
    let forgotten = async {
        while committed(&session, &bed, &all[0]).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    soon("forgetting", forgotten).await;
}

/// Lets leases take and give until each has as many slots as wanted. No slot is ever with two of them.
async fn settle_leases(leases: &mut [Lease], wanted: &[usize]) {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    let deadline = tokio::time::Instant::now() + LATE;
    loop {
        for i in 0..leases.len() {
            let _ = leases[i].changed(Duration::from_millis(50)).await.expect("a lease");
            let mut seen = BTreeSet::new();
            leases.iter().flat_map(Lease::held).for_each(|slot| assert!(seen.insert(*slot), "{slot} is held twice"));
        }
        let mut counts: Vec<_> = leases.iter().map(|lease| lease.held().len()).collect();
        counts.sort_unstable();
        if counts == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "they hold {counts:?}, not {wanted:?}");
    }
}

pub async fn slots_are_shared_and_released(bed: Bed) {
    let name = bed.name("job");
    let mut leases = vec![bed.session().await.lease(&name, 3).await.expect("a lease")];
    settle_leases(&mut leases, &[3]).await;
    assert_eq!(*leases[0].held(), BTreeSet::from([0, 1, 2]));
    for _ in 0..3 {
        leases.push(bed.other_session().await.lease(&name, 3).await.expect("a lease"));
    }
    settle_leases(&mut leases, &[1, 1, 1, 0]).await;
    soon("releasing", leases.remove(0).release()).await.expect("released");
    settle_leases(&mut leases, &[1, 1, 1]).await;
    drop(leases.remove(0));
    settle_leases(&mut leases, &[2, 1]).await;
    let topics = bed.session().await.topics().await.expect("listed");
    assert!(topics.iter().all(|topic| !topic.name.contains("job")), "its slots are not a topic of the users'");
}

pub async fn the_number_of_slots_only_grows(bed: Bed) {
    let (session, name) = (bed.session().await, bed.name("job"));
    let mut leases = vec![session.lease(&name, 2).await.expect("a lease")];
    settle_leases(&mut leases, &[2]).await;
    refused(bed.other_session().await.lease(&name, 1).await, ErrorKind::Conflict);
    leases.push(bed.other_session().await.lease(&name, 4).await.expect("a lease"));
    settle_leases(&mut leases, &[2, 2]).await;
}
