//! How partitions are dealt to members: pure functions, for members that do not speak Kafka's protocol. Clients that do
//! deal by themselves.
//!
//! # Source
//! `range` and `round_robin` give what Kafka's assignors of these names give (without racks), members in the order of
//! Kafka's `MemberInfo`. `sticky` and `cooperative` follow KIP-54 and KIP-429, with a method of their own.

mod sticky;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use sticky::{cooperative, sticky};

use crate::topic::TopicPartition;

/// Partitions by topic.
pub type ByTopic = BTreeMap<String, BTreeSet<u32>>;

/// Number of partitions by topic.
pub type Counts = BTreeMap<String, u32>;

/// What a member wants, and what it has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The topics that it reads.
    pub topics: BTreeSet<String>,
    /// What it has not let go of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub owned: ByTopic,
    /// The generation that gave it this.
    #[serde(default)]
    pub generation: i32,
    /// Of a lease: how many slots it knows of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
}

/// Members by id, with their static names.
pub type Wishes = BTreeMap<String, (Option<String>, Wish)>;

/// What each member gets, by its id.
pub type Deal = BTreeMap<String, ByTopic>;

/// A member's part of a deal, as the leader sends it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// What it gets, or keeps.
    pub own: ByTopic,
    /// Others wait for what it said that it had: it joins again when it has let go of that. One that began anew since does
    /// not have it any more, and must know all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lets_go: bool,
}

/// What the leader sends, by the members' ids.
pub fn assignments(wishes: &Wishes, deal: Deal) -> BTreeMap<String, Assignment> {
    let of = |(id, own): (String, ByTopic)| {
        let had = wishes.get(&id).map(|(_, wish)| flat(&wish.owned)).unwrap_or_default();
        let lets_go = !had.is_subset(&flat(&own));
        (id, Assignment { own, lets_go })
    };
    deal.into_iter().map(of).collect()
}

/// Of each topic by itself, each member gets a run of neighbours; the first ones one more where it does not come out even.
pub fn range(wishes: &Wishes, counts: &Counts) -> Deal {
    let mut deal = empty(wishes);
    for (topic, count) in counts {
        let members: Vec<_> = in_order(wishes).into_iter().filter(|(_, wish)| wish.topics.contains(topic)).collect();
        let Some(share) = count.checked_div(members.len() as u32) else { continue };
        let (mut next, mut more) = (0, count % members.len() as u32);
        for (id, _) in members {
            let end = next + share + u32::from(more > 0);
            more = more.saturating_sub(1);
            (next..end).for_each(|partition| give(&mut deal, id, topic, partition));
            next = end;
        }
    }
    deal
}

/// One by one over all topics, to the members in turn.
pub fn round_robin(wishes: &Wishes, counts: &Counts) -> Deal {
    let (mut deal, members) = (empty(wishes), in_order(wishes));
    let mut turn = 0;
    for of in wanted(wishes, counts) {
        while !members[turn].1.topics.contains(&of.topic) {
            turn = (turn + 1) % members.len();
        }
        give(&mut deal, members[turn].0, &of.topic, of.partition);
        turn = (turn + 1) % members.len();
    }
    deal
}

/// Members in the order of Kafka's `MemberInfo`: static ones first, by name; then by id.
fn in_order(wishes: &Wishes) -> Vec<(&str, &Wish)> {
    let mut members: Vec<_> = wishes.iter().collect();
    members.sort_by(|(a, (a_name, _)), (b, (b_name, _))| match (a_name, b_name) {
        (Some(a), Some(b)) => a.cmp(b),
        (None, None) => a.cmp(b),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    members.into_iter().map(|(id, (_, wish))| (id.as_str(), wish)).collect()
}

/// All partitions that somebody reads, in order.
fn wanted(wishes: &Wishes, counts: &Counts) -> Vec<TopicPartition> {
    let read = counts.iter().filter(|(topic, _)| wishes.values().any(|(_, wish)| wish.topics.contains(*topic)));
    read.flat_map(|(topic, count)| (0..*count).map(move |number| TopicPartition::new(topic, number))).collect()
}

fn empty(wishes: &Wishes) -> Deal {
    wishes.keys().map(|id| (id.clone(), ByTopic::new())).collect()
}

fn give(deal: &mut Deal, id: &str, topic: &str, partition: u32) {
    if let Some(own) = deal.get_mut(id) {
        own.entry(topic.to_owned()).or_default().insert(partition);
    }
}

/// The partitions of all topics.
pub fn flat(by_topic: &ByTopic) -> BTreeSet<TopicPartition> {
    by_topic.iter().flat_map(|(topic, all)| all.iter().map(move |number| TopicPartition::new(topic, *number))).collect()
}

/// The reverse of [`flat`].
pub fn by_topic(partitions: &BTreeSet<TopicPartition>) -> ByTopic {
    let mut all = ByTopic::new();
    for of in partitions {
        all.entry(of.topic.clone()).or_default().insert(of.partition);
    }
    all
}
