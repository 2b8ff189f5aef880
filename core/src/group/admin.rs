//! Groups as people see and change them: listed, described, set to other offsets, deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Committed, Groups, MemberInfo, Refusal, State,
    offset::{self, Written},
};
use crate::{
    Error, Result,
    engine::Bounds,
    record::Timestamp,
    topic::{PartitionId, TopicPartition},
};

/// A group in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSummary {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// What kind of group it is, as its members say.
    pub protocol_type: Option<String>,
    /// How many members it has.
    pub members: usize,
}

/// A group, described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// What kind of group it is, as its members say.
    pub protocol_type: Option<String>,
    /// How it is dealt.
    pub protocol: Option<String>,
    /// How often it was dealt.
    pub generation: i32,
    /// Who deals.
    pub leader: Option<String>,
    /// Its members, by id. Metadata and assignments are as they wrote them.
    pub members: Vec<MemberInfo>,
    /// How far it is, by partition.
    pub offsets: BTreeMap<TopicPartition, Progress>,
}

/// How far a group is in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it has committed, if anything.
    pub committed: Option<Committed>,
    /// What can be read.
    pub bounds: Bounds,
    /// Offsets that are still to be read: as many records, unless offsets have gaps. Of a group that has committed nothing,
    /// none are known.
    pub lag: Option<i64>,
    /// For how long the next record has been waiting to be read; nothing where all is read.
    pub lag_time: Option<Duration>,
}

/// Where a reset goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// The first record that is kept.
    Earliest,
    /// The end.
    Latest,
    /// This offset, or the nearest one that there is.
    Offset(i64),
    /// The first record of this time or later; the end where there is none.
    Time(Timestamp),
    /// So much on, or back, from what is committed; from the beginning where nothing is.
    Shift(i64),
}

/// What a reset does, or would do, to one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// What was committed.
    pub from: Option<i64>,
    /// What is committed now.
    pub to: i64,
}

impl Groups {
    /// All groups that have members or offsets, by name.
    pub fn list(&self) -> Vec<GroupSummary> {
        let books = self.engine.books();
        let mut places = books.places();
        let mut names: BTreeSet<_> = self.registry().names().into_iter().collect();
        offset::walk(books, "", |key, entry| {
            if let Some((group, of)) = offset::parse_key(key)
                && !names.contains(group)
                && offset::parse(&entry.value).is_some_and(|committed| places.find(&of) == Some(committed.partition))
            {
                names.insert(group.to_owned());
            }
            true
        });
        let summary = |name: String| {
            let (state, protocol_type, members) = self.look_at(&name, |machine| {
                (machine.state(), machine.protocol_type().map(str::to_owned), machine.members().len())
            });
            GroupSummary { name, state, protocol_type, members }
        };
        names.into_iter().map(summary).collect()
    }

    /// A group with its members, and how far it is. Reads the disk where the next record to read is no longer in memory:
    /// call it where one may wait.
    ///
    /// # Errors
    /// `NotFound`; those of reading.
    pub fn describe(&self, group: &str) -> Result<GroupDescription> {
        let found = self.look_at(group, |machine| GroupDescription {
            name: group.to_owned(),
            state: machine.state(),
            protocol_type: machine.protocol_type().map(str::to_owned),
            protocol: machine.protocol().map(str::to_owned),
            generation: machine.generation(),
            leader: machine.leader().map(str::to_owned),
            members: machine.members(),
            offsets: BTreeMap::new(),
        });
        let offsets = self.offsets(group);
        if found.members.is_empty() && offsets.is_empty() && found.state == State::Empty {
            return Err(Refusal::UnknownGroup.of(group));
        }
        let offsets = offsets.into_iter().map(|(of, committed)| Ok((of, self.progress(committed)?)));
        Ok(GroupDescription { offsets: offsets.collect::<Result<_>>()?, ..found })
    }

    fn progress(&self, committed: Committed) -> Result<Progress> {
        let id = committed.partition;
        let bounds = self.bounds(id)?;
        let next = committed.offset.clamp(bounds.log_start_offset, bounds.durable_offset);
        let lag_time = match next < bounds.durable_offset {
            true => self.time_at(id, next)?.map(|time| {
                let waits = self.engine.clock().now().0.saturating_sub(time);
                Duration::from_millis(u64::try_from(waits).unwrap_or(0))
            }),
            false => None,
        };
        Ok(Progress { lag: Some(bounds.durable_offset - next), committed: Some(committed), bounds, lag_time })
    }

    fn bounds(&self, id: PartitionId) -> Result<Bounds> {
        let bounds = self.engine.cut(&[id])?;
        bounds.first().copied().ok_or_else(|| Error::internal("bounds of a partition"))
    }

    /// The time of the record at an offset, or of the next one.
    fn time_at(&self, id: PartitionId, offset: i64) -> Result<Option<i64>> {
        let (batches, _) = self.engine.read(id, offset, 1, i64::MAX)?;
        let Some(batch) = batches.first() else { return Ok(None) };
        for record in batch.records() {
            match record {
                Ok(record) if record.offset >= offset => return Ok(Some(record.timestamp)),
                Ok(_) => {}
                // Compressed: the batch tells about when.
                Err(_) => break,
            }
        }
        Ok(Some(batch.header().max_timestamp))
    }

    fn look_at<T>(&self, group: &str, look: impl FnOnce(&super::Machine) -> T) -> T {
        match self.find(group) {
            Some(cell) => self.call(&cell, |inner, now| {
                inner.machine.tick(now);
                look(&inner.machine)
            }),
            None => look(&super::Machine::new(*self.limits())),
        }
    }

    /// Sets a group's offsets of these partitions, all or none, and tells what changed; with `dry_run` what would. Reads the
    /// disk to find a time. Durable when it returns.
    ///
    /// # Errors
    /// `Conflict` where the group has members; `NotFound` for a partition; `Invalid` for the group's name.
    pub async fn reset(
        &self,
        group: &str,
        partitions: &[TopicPartition],
        to: ResetTo,
        dry_run: bool,
    ) -> Result<BTreeMap<TopicPartition, Reset>> {
        let cell = self.make(group).map_err(|refusal| refusal.of(group))?;
        let now = self.engine.clock().now();
        let committed = self.offsets_of(group, partitions);
        let (mut resets, mut records) = (BTreeMap::new(), Vec::<Written>::new());
        for of in partitions {
            let id = self.engine.books().places().find(of);
            let id = id.ok_or_else(|| Error::not_found(format!("{of} does not exist")))?;
            let known = committed.get(of).map(|committed| committed.offset);
            let target = self.target(id, known, to).await?;
            let written = Committed {
                offset: target,
                partition: id,
                at_ms: now.0,
                leader_epoch: None,
                metadata: String::new(),
                expires_ms: None,
                lost_from: None,
            };
            records.push(offset::written(offset::key(group, of), &written)?);
            resets.insert(of.clone(), Reset { from: known, to: target });
        }
        if dry_run {
            records.clear();
        }
        let done = self.write(&cell, records, |inner, now| inner.machine.check_empty(now)).await;
        self.registry().reap_one(group, self.now());
        done.map_err(|refusal| refusal.of(group))?;
        Ok(resets)
    }

    async fn target(&self, id: PartitionId, known: Option<i64>, to: ResetTo) -> Result<i64> {
        let bounds = self.bounds(id)?;
        let target = match to {
            ResetTo::Earliest => bounds.log_start_offset,
            ResetTo::Latest => bounds.durable_offset,
            ResetTo::Offset(offset) => offset,
            ResetTo::Shift(by) => known.unwrap_or(bounds.log_start_offset).saturating_add(by),
            ResetTo::Time(time) => {
                let engine = Arc::clone(&self.engine);
                let found = tokio::task::spawn_blocking(move || engine.offset_at_time(id, time.0)).await;
                let found = found.map_err(|e| Error::internal("find a time").with_source(e))??;
                found.map_or(bounds.durable_offset, |(offset, _)| offset)
            }
        };
        Ok(target.clamp(bounds.log_start_offset, bounds.durable_offset))
    }

    /// Deletes a group and its offsets.
    ///
    /// # Errors
    /// `NotEmpty`, `UnknownGroup`; `Log`.
    pub async fn delete(&self, group: &str) -> Result<(), Refusal> {
        let keys = self.keys(group, |_| true);
        if keys.is_empty() && self.find(group).is_none() {
            return Err(Refusal::UnknownGroup);
        }
        let deleted = self.forget(group, keys, |inner, now| inner.machine.check_empty(now)).await;
        self.registry().reap_one(group, self.now());
        deleted
    }

    /// Forgets a group's offsets of some partitions.
    ///
    /// # Errors
    /// `UnknownGroup`; `Subscribed` where the group has members: of those that do not speak our protocol nobody here can say
    /// what they read, so none of theirs is forgotten; `Log`.
    pub async fn delete_offsets(&self, group: &str, partitions: &[TopicPartition]) -> Result<(), Refusal> {
        if self.offsets(group).is_empty() && self.find(group).is_none() {
            return Err(Refusal::UnknownGroup);
        }
        let keys = self.keys(group, |of| partitions.contains(of));
        let check = |inner: &mut super::coordinator::Inner, now| {
            inner.machine.check_empty(now).map_err(|refusal| match refusal {
                Refusal::NotEmpty => Refusal::Subscribed,
                other => other,
            })
        };
        let deleted = self.forget(group, keys, check).await;
        self.registry().reap_one(group, self.now());
        deleted
    }

    /// Keys of a group's offsets, also of those that count no more.
    fn keys(&self, group: &str, wanted: impl Fn(&TopicPartition) -> bool) -> Vec<String> {
        let (mut keys, prefix) = (Vec::new(), offset::prefix(group));
        offset::walk(self.engine.books(), &prefix, |key, _| {
            match offset::parse_key(key) {
                Some((name, of)) if name == group && wanted(&of) => keys.push(key.to_owned()),
                _ => {}
            }
            key.starts_with(&prefix)
        });
        keys
    }

    async fn forget(
        &self,
        group: &str,
        keys: Vec<String>,
        check: impl FnOnce(&mut super::coordinator::Inner, Duration) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let cell = self.make(group)?;
        let records = keys.into_iter().map(|key| (key, None)).collect();
        self.write(&cell, records, |inner, now| {
            check(inner, now)?;
            // What is under way would come after, as if nothing had been deleted.
            if inner.commits > 0 {
                return Err(Refusal::Log(Error::unavailable("offsets of the group are being committed")));
            }
            Ok(())
        })
        .await
    }
}
