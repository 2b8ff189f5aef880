//! Groups and leases of a cluster.

use std::{collections::BTreeMap, sync::Arc};

use rdkafka::{TopicPartitionList, consumer::Consumer};

use super::{
    cluster::{Cluster, REQUEST_TIME, blocking},
    error::from_kafka,
    member::GroupMember,
    native, settings, topics,
};
use crate::{
    Error, Result,
    log::{GroupOffset, Lease, Member, MemberOptions, member::Kept},
    topic::{INTERNAL_PREFIX, TopicPartition},
};

pub(super) async fn join(
    cluster: &Arc<Cluster>,
    group: &str,
    topics: &[String],
    options: &MemberOptions,
) -> Result<Box<dyn Member>> {
    let (this, name) = (Arc::clone(cluster), group.to_owned());
    let (topics, options) = (topics.to_vec(), options.clone());
    let member = blocking(move || GroupMember::start(&this, &name, &topics, &options)).await?;
    Ok(Box::new(Kept::new(group, member)))
}

/// A lease is a member of a group over a topic that nobody writes, with a partition for each slot.
pub(super) async fn lease(cluster: &Arc<Cluster>, group: &str, slots: u32) -> Result<Lease> {
    let name = format!("{INTERNAL_PREFIX}lease.{group}");
    let empty = [("cleanup.policy", "compact")];
    let found = match topics::partitions_of(cluster, &name).await? {
        Some(found) if found > slots && is_deserted(cluster, &name).await? => {
            topics::remove(cluster, &name).await?;
            None
        }
        found => found,
    };
    match found {
        None => {
            topics::make(cluster, &name, slots, &empty).await?;
            topics::seen(cluster, &name).await?;
        }
        Some(found) if found < slots => settings::grow(cluster, &name, slots).await?,
        Some(_) => {}
    }
    // Others may have made it, or let it grow, at the same moment.
    let count = topics::partitions_of(cluster, &name).await?.unwrap_or(0);
    if count > slots {
        return Err(Error::conflict(format!(
            "{group:?} is leased with {count} slots now, which cannot become {slots}"
        )));
    }
    let member = join(cluster, &name, std::slice::from_ref(&name), &MemberOptions::default()).await?;
    Ok(Lease::over(member))
}

/// Whether a group has no member now.
async fn is_deserted(cluster: &Arc<Cluster>, group: &str) -> Result<bool> {
    let (this, name) = (Arc::clone(cluster), group.to_owned());
    blocking(move || {
        let groups = this.asking().fetch_group_list(Some(&name), REQUEST_TIME);
        let groups = groups.map_err(|e| from_kafka(&e, format!("look at group {name:?}")))?;
        Ok(groups.groups().iter().all(|group| group.members().is_empty()))
    })
    .await
}

/// How far a group has committed partitions; an offset beyond the end is the end.
pub(super) async fn committed(
    cluster: &Arc<Cluster>,
    group: &str,
    partitions: &[TopicPartition],
) -> Result<BTreeMap<TopicPartition, GroupOffset>> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let bounds = cluster.bounds(partitions.to_vec()).await?;
    let ends: BTreeMap<_, _> = partitions.iter().cloned().zip(bounds.iter().map(|b| b.durable_offset)).collect();
    let (this, group) = (Arc::clone(cluster), group.to_owned());
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for of in partitions {
        list.add_partition(&of.topic, i32::try_from(of.partition).unwrap_or(i32::MAX));
    }
    let offsets = blocking(move || native::group_offsets(this.admin.inner(), &group, &list, REQUEST_TIME)).await?;
    let clamp = |(of, mut offset): (TopicPartition, GroupOffset)| {
        offset.offset = offset.offset.min(ends.get(&of).copied().unwrap_or(i64::MAX));
        (of, offset)
    };
    Ok(offsets.into_iter().map(clamp).collect())
}
