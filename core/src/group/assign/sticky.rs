//! As evenly as possible, with as few moves as possible.
//!
//! Everybody keeps what it has. What nobody has goes to those who have least. Then, as long as somebody can give to
//! somebody who has at least two less, one partition moves: directly, or along a chain of members where not all read the
//! same topics. Where all read the same, no dealing that is as even needs fewer moves.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{ByTopic, Counts, Deal, Wish, Wishes, empty, flat, give, wanted};
use crate::topic::TopicPartition;

/// Deals at once: for members that let go of everything before.
pub fn sticky(wishes: &Wishes, counts: &Counts) -> Deal {
    let wanted = wanted(wishes, counts);
    let mut table = Table::new(wishes);
    let owners = owners(wishes);
    let mut free = Vec::new();
    for of in wanted {
        match owners.get(&of).and_then(|owner| table.index(owner)) {
            Some(member) if table.reads(member, &of.topic) => table.give(member, of),
            _ => free.push(of),
        }
    }
    for of in free {
        if let Some(member) = table.poorest_reader(&of.topic) {
            table.give(member, of);
        }
    }
    table.level();
    table.into_deal(wishes)
}

/// Deals in two rounds, for members that go on working: what another still has is given to nobody yet. Its owner, which
/// does not find it in what it gets, lets go of it and joins again.
pub fn cooperative(wishes: &Wishes, counts: &Counts) -> Deal {
    let mut deal = sticky(wishes, counts);
    let mut claims = BTreeMap::<TopicPartition, Vec<&str>>::new();
    for (id, (_, wish)) in wishes {
        for of in flat(&wish.owned) {
            claims.entry(of).or_default().push(id);
        }
    }
    for (of, owners) in claims {
        for (_, own) in deal.iter_mut().filter(|(id, _)| owners.iter().any(|owner| owner != id)) {
            if let Some(numbers) = own.get_mut(&of.topic) {
                numbers.remove(&of.partition);
            }
        }
    }
    deal.values_mut().for_each(|own| own.retain(|_, numbers| !numbers.is_empty()));
    deal
}

/// Who has what. Of two who claim the same, the one of the later generation has it; of the same generation, neither.
fn owners(wishes: &Wishes) -> BTreeMap<TopicPartition, &str> {
    let mut found = BTreeMap::<TopicPartition, (i32, Option<&str>)>::new();
    for (id, (_, Wish { owned, generation, .. })) in wishes {
        for of in flat(owned) {
            let claim = found.entry(of).or_insert((i32::MIN, None));
            match (*generation).cmp(&claim.0) {
                std::cmp::Ordering::Greater => *claim = (*generation, Some(id)),
                std::cmp::Ordering::Equal => claim.1 = None,
                std::cmp::Ordering::Less => {}
            }
        }
    }
    found.into_iter().filter_map(|(of, (_, owner))| Some((of, owner?))).collect()
}

/// Members by number, and what they have while it is dealt.
struct Table<'a> {
    ids: Vec<&'a str>,
    topics: Vec<&'a BTreeSet<String>>,
    own: Vec<ByTopic>,
    loads: Vec<usize>,
}

impl<'a> Table<'a> {
    fn new(wishes: &'a Wishes) -> Self {
        Self {
            ids: wishes.keys().map(String::as_str).collect(),
            topics: wishes.values().map(|(_, wish)| &wish.topics).collect(),
            own: vec![ByTopic::new(); wishes.len()],
            loads: vec![0; wishes.len()],
        }
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    fn reads(&self, member: usize, topic: &str) -> bool {
        self.topics[member].contains(topic)
    }

    fn give(&mut self, member: usize, of: TopicPartition) {
        self.own[member].entry(of.topic).or_default().insert(of.partition);
        self.loads[member] += 1;
    }

    fn poorest_reader(&self, topic: &str) -> Option<usize> {
        (0..self.ids.len()).filter(|member| self.reads(*member, topic)).min_by_key(|member| self.loads[*member])
    }

    /// Moves partitions until nobody can give to somebody who has at least two less.
    fn level(&mut self) {
        loop {
            let mut members: Vec<_> = (0..self.ids.len()).collect();
            members.sort_by_key(|member| std::cmp::Reverse(self.loads[*member]));
            let poorest = self.loads.iter().min().copied().unwrap_or(0);
            let rich = members.into_iter().take_while(|member| self.loads[*member] >= poorest + 2);
            let Some(chain) = rich.into_iter().find_map(|member| self.chain_from(member)) else { return };
            for (from, to, topic) in chain {
                let Some(number) = self.own[from].get_mut(&topic).and_then(BTreeSet::pop_last) else { return };
                self.loads[from] -= 1;
                self.give(to, TopicPartition { topic, partition: number });
            }
        }
    }

    /// The shortest chain of moves (from, to, topic) that takes one from `first` and leaves one with somebody who has at
    /// least two less.
    fn chain_from(&self, first: usize) -> Option<Vec<(usize, usize, String)>> {
        let mut came = BTreeMap::<usize, (usize, &str)>::new();
        let mut queue = VecDeque::from([first]);
        let mut offered = BTreeSet::<&str>::new();
        while let Some(from) = queue.pop_front() {
            for topic in self.own[from].iter().filter(|(_, all)| !all.is_empty()).map(|(topic, _)| topic.as_str()) {
                // Whoever can take of this topic was found with the first that offered it.
                if !offered.insert(topic) {
                    continue;
                }
                for to in (0..self.ids.len()).filter(|to| *to != first && self.reads(*to, topic)) {
                    if came.contains_key(&to) {
                        continue;
                    }
                    came.insert(to, (from, topic));
                    queue.push_back(to);
                }
            }
        }
        let poor = came.keys().copied().filter(|to| self.loads[*to] + 2 <= self.loads[first]);
        let mut at = poor.min_by_key(|to| self.loads[*to])?;
        let mut chain = Vec::new();
        while at != first {
            let (from, topic) = came[&at];
            chain.push((from, at, topic.to_owned()));
            at = from;
        }
        chain.reverse();
        Some(chain)
    }

    fn into_deal(self, wishes: &Wishes) -> Deal {
        let mut deal = empty(wishes);
        for (id, own) in self.ids.into_iter().zip(&self.own) {
            for of in flat(own) {
                give(&mut deal, id, &of.topic, of.partition);
            }
        }
        deal
    }
}
