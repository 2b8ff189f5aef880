//! Offsets of groups: committed, read, forgotten.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Groups, Identity, Refusal,
    coordinator::Cell,
    offset::{self, Committed, NewOffset},
};
use crate::{
    Error, Result,
    engine::{Engine, ProducerIdentity, Table},
    topic::TopicPartition,
};

/// A commit on its way. One whose future is dropped counts for ever: then the group's offsets do not expire while this
/// process runs, since nobody knows any more when it has arrived.
struct UnderWay<'a>(&'a Cell);

impl UnderWay<'_> {
    fn arrived(self) {
        self.0.lock().commits -= 1;
    }
}

impl Groups {
    /// Commits offsets, all as one: by a member under its generation, or, as `None`, by somebody who is none while the
    /// group has no members. Durable when it returns. Offsets that are refused by themselves are in the answer, by their
    /// partition; the others are committed.
    ///
    /// # Errors
    /// `UnknownMember`, `IllegalGeneration`, `FencedInstance` from who is not, or no longer, a member; `Log`.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the offsets are committed.
    pub async fn commit(
        &self,
        group: &str,
        who: Option<(&Identity, i32)>,
        offsets: BTreeMap<TopicPartition, NewOffset>,
    ) -> Result<BTreeMap<TopicPartition, Refusal>, Refusal> {
        let (records, refused) = self.records(group, offsets)?;
        loop {
            let cell = match who {
                None => self.make(group)?,
                Some(_) => self.find(group).ok_or(Refusal::UnknownMember)?,
            };
            let written = self.write(&cell, records.clone(), |inner, now| inner.machine.check_commit(now, who)).await;
            match (written, who) {
                // It was reaped meanwhile.
                (Err(Refusal::Dead), None) => {}
                (Err(Refusal::Dead), Some(_)) => return Err(Refusal::UnknownMember),
                (written, _) => {
                    if who.is_none() {
                        self.registry().reap_one(group, self.now());
                    }
                    return written.map(|()| refused);
                }
            }
        }
    }

    /// Commits offsets with a transaction of Kafka's protocol: they are written when it is committed, and forgotten when it
    /// is aborted. Offsets that are refused by themselves are in the answer.
    ///
    /// # Errors
    /// As [`Groups::commit`]; `Log` with what the transaction refuses.
    pub async fn commit_in_transaction(
        &self,
        transactional_id: &str,
        producer: ProducerIdentity,
        group: &str,
        who: Option<(&Identity, i32)>,
        offsets: BTreeMap<TopicPartition, NewOffset>,
    ) -> Result<BTreeMap<TopicPartition, Refusal>, Refusal> {
        let (records, refused) = self.records(group, offsets)?;
        if let Some(who) = who {
            let cell = self.find(group).ok_or(Refusal::UnknownMember)?;
            self.call(&cell, |inner, now| inner.machine.check_commit(now, Some(who)))?;
        }
        if !records.is_empty() {
            self.engine.hold_group_offsets(transactional_id, producer, group, records).await?;
        }
        Ok(refused)
    }

    /// Whether an open transaction may yet change what a group has committed of a partition.
    pub fn is_unstable(&self, group: &str, of: &TopicPartition) -> bool {
        self.engine.is_group_offset_held(&offset::key(group, of))
    }

    /// What is written of offsets, and which of them are refused by themselves.
    fn records(
        &self,
        group: &str,
        offsets: BTreeMap<TopicPartition, NewOffset>,
    ) -> Result<(Vec<offset::Written>, BTreeMap<TopicPartition, Refusal>), Refusal> {
        let (mut records, mut refused) = (Vec::new(), BTreeMap::new());
        let (now, mut places) = (self.engine.clock().now(), self.engine.books().places());
        for (of, new) in offsets {
            if new.metadata.len() > self.limits().offset_metadata_bytes {
                refused.insert(of, Refusal::MetadataTooLarge);
                continue;
            }
            let Some(partition) = places.find(&of) else {
                refused.insert(of, Refusal::UnknownPartition);
                continue;
            };
            let committed = Committed {
                offset: new.offset,
                partition,
                at_ms: now.0,
                leader_epoch: new.leader_epoch,
                metadata: new.metadata,
                expires_ms: new.expires.map(|at| at.0),
                lost_from: None,
            };
            records.push(offset::written(offset::key(group, &of), &committed)?);
        }
        Ok((records, refused))
    }

    /// Writes records under the group's lock: what was checked by `check` still holds when they get their place in the log,
    /// and of two commits the one that was let pass later is the one that counts.
    pub(super) async fn write(
        &self,
        cell: &Arc<Cell>,
        records: Vec<offset::Written>,
        check: impl FnOnce(&mut super::coordinator::Inner, std::time::Duration) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let batches = offset::batch(records, self.engine.clock().now())?;
        if batches.is_empty() {
            return self.call(cell, check);
        }
        let (mut refusal, mut under_way) = (None, None);
        let enter = || {
            let mut inner = cell.lock();
            if let Err(error) = cell.act(&mut inner, |inner| check(inner, self.now())) {
                refusal = Some(error);
                return Err(Error::conflict("refused"));
            }
            inner.commits += 1;
            under_way = Some(UnderWay(cell));
            Ok(inner)
        };
        let written = self.engine.append_under(batches, enter).await;
        if let Some(under_way) = under_way {
            under_way.arrived();
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(written.map(drop)?),
        }
    }

    /// What a group has committed, by partition.
    pub fn offsets(&self, group: &str) -> BTreeMap<TopicPartition, Committed> {
        offset::of_group(self.engine.books(), group)
    }

    /// What a group has committed of some partitions.
    pub fn offsets_of(&self, group: &str, partitions: &[TopicPartition]) -> BTreeMap<TopicPartition, Committed> {
        let books = self.engine.books();
        let mut places = books.places();
        let find = |of: &TopicPartition| {
            let committed = offset::parse(&books.entry(Table::Groups, &offset::key(group, of))?.value)?;
            (places.find(of) == Some(committed.partition)).then(|| (of.clone(), committed))
        };
        partitions.iter().filter_map(find).collect()
    }
}

/// Sets offsets that lie beyond the end of their partition to that end, before anything is appended: when records that were
/// read once are lost, those that take their offsets later must not be taken for read.
pub(crate) fn clamp(engine: &Engine) {
    let books = engine.books();
    let (mut records, mut places) = (Vec::new(), books.places());
    offset::walk(books, "", |key, entry| {
        let Some((group, of)) = offset::parse_key(key) else { return true };
        let found = offset::parse(&entry.value).filter(|found| places.find(&of) == Some(found.partition));
        let Some(committed) = found else { return true };
        let end = engine.cut(&[committed.partition]).ok().and_then(|bounds| Some(bounds.first()?.durable_offset));
        if let Some(end) = end.filter(|end| *end < committed.offset) {
            let (topic, partition, offset) = (of.topic.as_str(), of.partition, committed.offset);
            tracing::warn!(group, topic, partition, offset, end, "offset of a group beyond the end set to the end");
            let lost_from = Some(committed.offset);
            records.extend(offset::written(key.to_owned(), &Committed { offset: end, lost_from, ..committed }).ok());
        }
        true
    });
    offset::write_soon(books, records);
}
