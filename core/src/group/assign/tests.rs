use proptest::prelude::*;

use super::*;

fn wish(topics: &[&str]) -> Wish {
    Wish { topics: topics.iter().map(|t| (*t).to_owned()).collect(), ..Wish::default() }
}

fn wishes(members: &[(&str, Option<&str>, &[&str])]) -> Wishes {
    members.iter().map(|(id, name, topics)| ((*id).to_owned(), (name.map(str::to_owned), wish(topics)))).collect()
}

fn counts(all: &[(&str, u32)]) -> Counts {
    all.iter().map(|(topic, count)| ((*topic).to_owned(), *count)).collect()
}

fn shown(deal: &Deal) -> Vec<String> {
    let one = |(id, own): (&String, &ByTopic)| {
        let of: Vec<_> = flat(own).iter().map(|of| format!("{}{}", of.topic, of.partition)).collect();
        format!("{id}: {}", of.join(" "))
    };
    deal.iter().map(one).collect()
}

/// The examples of the documentation of Kafka's assignors.
#[test]
fn range_and_round_robin_deal_as_kafka_says() {
    let both = wishes(&[("C0", None, &["t", "u"]), ("C1", None, &["t", "u"])]);
    let three = counts(&[("t", 3), ("u", 3)]);
    assert_eq!(shown(&range(&both, &three)), ["C0: t0 t1 u0 u1", "C1: t2 u2"]);
    assert_eq!(shown(&round_robin(&both, &three)), ["C0: t0 t2 u1", "C1: t1 u0 u2"]);
    let different = wishes(&[("C0", None, &["t"]), ("C1", None, &["t", "u"]), ("C2", None, &["t", "u", "v"])]);
    let growing = counts(&[("t", 1), ("u", 2), ("v", 3)]);
    assert_eq!(shown(&round_robin(&different, &growing)), ["C0: t0", "C1: u0", "C2: u1 v0 v1 v2"]);
    // Static members come first, by their names; a topic that nobody reads is left out, and one that is not there.
    let fixed = wishes(&[("z", Some("a"), &["t", "gone"]), ("a", None, &["t"]), ("y", Some("b"), &["t"])]);
    let four = counts(&[("t", 4), ("unread", 2)]);
    assert_eq!(shown(&range(&fixed, &four)), ["a: t3", "y: t2", "z: t0 t1"]);
    assert_eq!(shown(&round_robin(&fixed, &four)), ["a: t2", "y: t1", "z: t0 t3"]);
}

#[test]
fn of_two_who_claim_the_same_the_later_one_has_it() {
    let mut all = wishes(&[("a", None, &["t"]), ("b", None, &["t"])]);
    let owned = ByTopic::from([("t".to_owned(), BTreeSet::from([0, 1]))]);
    for (id, generation) in [("a", 3), ("b", 4)] {
        let wish = &mut all.get_mut(id).unwrap().1;
        (wish.owned, wish.generation) = (owned.clone(), generation);
    }
    let two = counts(&[("t", 2)]);
    assert_eq!(shown(&sticky(&all, &two)), ["a: t1", "b: t0"]);
    // As long as both claim both, neither gets what is not its own by all means: nothing is given twice.
    assert_eq!(shown(&cooperative(&all, &two)), ["a: ", "b: "]);
}

#[derive(Debug, Clone)]
struct Case {
    wishes: Wishes,
    counts: Counts,
}

fn cases(same: bool) -> impl Strategy<Value = Case> {
    let topics = proptest::collection::vec(0..9u32, 1..5);
    let members = proptest::collection::vec((any::<u8>(), any::<u16>(), any::<bool>()), 1..9);
    (topics, members).prop_map(move |(topics, members)| {
        let names: Vec<_> = (0..topics.len()).map(|i| format!("t{i}")).collect();
        let counts: Counts = names.iter().cloned().zip(topics).collect();
        let mut taken = BTreeSet::new();
        let mut wishes = Wishes::new();
        for (i, (reads, owns, fixed)) in members.into_iter().enumerate() {
            let read = |n: usize| same || reads >> (n % 8) & 1 == 1;
            let topics: BTreeSet<_> =
                names.iter().enumerate().filter(|(n, _)| read(*n)).map(|(_, t)| t.clone()).collect();
            let all = counts.iter().flat_map(|(t, count)| (0..*count).map(move |p| TopicPartition::new(t, p)));
            // Of what is not taken, also of topics that it no longer reads.
            let owned: BTreeSet<_> = all
                .enumerate()
                .filter(|(n, of)| owns >> (n % 16) & 1 == 1 && taken.insert(of.clone()))
                .map(|(_, of)| of)
                .collect();
            let wish = Wish { topics, owned: by_topic(&owned), generation: 1, slots: None };
            wishes.insert(format!("m{i}"), (fixed.then(|| format!("s{i}")), wish));
        }
        Case { wishes, counts }
    })
}

fn loads(deal: &Deal) -> BTreeMap<&str, usize> {
    deal.iter().map(|(id, own)| (id.as_str(), own.values().map(BTreeSet::len).sum())).collect()
}

/// Every partition that somebody reads is with exactly one who reads it.
fn check_complete(case: &Case, deal: &Deal) {
    let mut seen = BTreeSet::new();
    for (id, own) in deal {
        for of in flat(own) {
            assert!(case.wishes[id].1.topics.contains(&of.topic), "{id} does not read {of}");
            assert!(seen.insert(of), "dealt twice");
        }
    }
    assert_eq!(seen, wanted(&case.wishes, &case.counts).into_iter().collect());
}

fn check_within_one(deal: &Deal) {
    let loads = loads(deal);
    let (most, least) = (loads.values().max().copied(), loads.values().min().copied());
    assert!(most.unwrap_or(0) <= least.unwrap_or(0) + 1, "{loads:?}");
}

/// Partitions that had an owner who may keep them, and have another.
fn moves(case: &Case, deal: &Deal) -> usize {
    let moved = |(id, (_, wish)): (&String, &(Option<String>, Wish))| {
        flat(&wish.owned)
            .into_iter()
            .filter(|of| wish.topics.contains(&of.topic) && !flat(&deal[id]).contains(of))
            .count()
    };
    case.wishes.iter().map(moved).sum()
}

proptest! {
    #[test]
    fn every_partition_is_dealt_once(case in cases(false)) {
        for dealt in [range, round_robin, sticky] {
            check_complete(&case, &dealt(&case.wishes, &case.counts));
        }
    }

    #[test]
    fn where_all_read_the_same_nobody_has_two_more(case in cases(true)) {
        check_within_one(&round_robin(&case.wishes, &case.counts));
        check_within_one(&sticky(&case.wishes, &case.counts));
        for (topic, count) in &case.counts {
            let one = Counts::from([(topic.clone(), *count)]);
            check_within_one(&range(&case.wishes, &one));
        }
    }

    /// Each keeps what its share allows; the larger shares go to those who can fill them.
    #[test]
    fn where_all_read_the_same_no_move_is_needless(case in cases(true)) {
        let deal = sticky(&case.wishes, &case.counts);
        let total: usize = loads(&deal).values().sum();
        let (share, mut larger) = (total / case.wishes.len(), total % case.wishes.len());
        let mut had: Vec<usize> = case.wishes.values().map(|(_, wish)| flat(&wish.owned).len()).collect();
        had.sort_unstable_by(|a, b| b.cmp(a));
        let mut needed = 0;
        for own in had {
            let quota = share + usize::from(larger > 0 && own > share);
            larger -= quota - share;
            needed += own.saturating_sub(quota);
        }
        prop_assert_eq!(moves(&case, &deal), needed);
    }

    /// Nobody can give one to somebody who has at least two less, not even along others.
    #[test]
    fn where_they_read_different_topics_it_is_as_even_as_can_be(case in cases(false)) {
        let deal = sticky(&case.wishes, &case.counts);
        let loads = loads(&deal);
        for first in case.wishes.keys() {
            let mut reached = BTreeSet::from([first.as_str()]);
            loop {
                let topics: BTreeSet<_> = reached.iter().flat_map(|id| deal[*id].keys()).collect();
                let more: Vec<_> = case.wishes.iter().filter(|(_, (_, wish))| topics.iter().any(|t| wish.topics.contains(*t))).collect();
                let before = reached.len();
                reached.extend(more.into_iter().map(|(id, _)| id.as_str()));
                if reached.len() == before {
                    break;
                }
            }
            for other in reached {
                prop_assert!(loads[other] + 2 > loads[first.as_str()], "{} could give to {}: {:?}", first, other, loads);
            }
        }
    }

    #[test]
    fn what_is_dealt_well_stays(case in cases(false)) {
        let mut again = case.clone();
        let deal = sticky(&case.wishes, &case.counts);
        for (id, own) in &deal {
            again.wishes.get_mut(id).unwrap().1.owned = own.clone();
        }
        prop_assert_eq!(&sticky(&again.wishes, &again.counts), &deal);
        prop_assert_eq!(&cooperative(&again.wishes, &again.counts), &deal);
    }

    /// Nothing goes to a new owner before the old one has let go; after a few rounds all is dealt.
    #[test]
    fn cooperative_dealing_waits_for_who_has_it(case in cases(false)) {
        prop_assert!(rounds(case) <= 4);
    }

    /// Where all read the same, one round takes and one gives.
    #[test]
    fn cooperative_dealing_takes_two_rounds(case in cases(true)) {
        prop_assert!(rounds(case) <= 2);
    }
}

/// How many rounds it takes until all is dealt.
fn rounds(mut case: Case) -> usize {
    for round in 1..10 {
        let deal = cooperative(&case.wishes, &case.counts);
        for (id, own) in &deal {
            for of in flat(own) {
                let other =
                    case.wishes.iter().find(|(owner, (_, wish))| *owner != id && flat(&wish.owned).contains(&of));
                assert!(other.is_none(), "{of} is dealt to {id}, {other:?} has it");
            }
        }
        let is_done = deal.iter().all(|(id, own)| flat(own).is_superset(&flat(&case.wishes[id].1.owned)));
        for (id, own) in &deal {
            let wish = &mut case.wishes.get_mut(id).unwrap().1;
            (wish.owned, wish.generation) = (own.clone(), round as i32 + 1);
        }
        if is_done {
            check_complete(&case, &deal);
            return round;
        }
    }
    panic!("it does not come to rest");
}
