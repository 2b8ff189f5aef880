//! What coordinators keep in the log's own topics: read, and written so that what was checked still holds when it gets its
//! place.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use super::{
    Engine, Entry, Outcome, Table,
    housekeeping::{Chore, Progress},
    queue::Work,
    shared::Shared,
};
use crate::{
    Error, Result,
    clock::Clock,
    group::{self, Registry},
    topic::{PartitionId, TopicPartition},
};

/// The log's own topics, as coordinators see them.
#[derive(Clone, Copy)]
pub(crate) struct Books<'a>(&'a Shared);

impl<'a> Books<'a> {
    /// The groups of this engine.
    pub(crate) fn groups(self) -> &'a Registry {
        &self.0.groups
    }

    pub(crate) fn clock(self) -> &'a dyn Clock {
        &*self.0.clock
    }

    /// The records of a table from a key on, at most so many.
    pub(crate) fn range(self, table: Table, from: &str, limit: usize) -> Vec<(String, Entry)> {
        let catalog = self.0.catalog();
        let range = catalog.table(table).range(from.to_owned()..).take(limit);
        range.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    pub(crate) fn entry(self, table: Table, key: &str) -> Option<Entry> {
        self.0.catalog().table(table).get(key).cloned()
    }

    /// Writes small batches without waiting for room or the disk. Nobody hears what becomes of them: what a coordinator
    /// would do again.
    pub(crate) fn append_soon(self, batches: Result<Vec<(PartitionId, Bytes)>>) {
        match batches {
            Ok(batches) if batches.is_empty() => {}
            Ok(batches) => drop(self.0.queue.push(Work::Append { batches, fence: None })),
            Err(error) => tracing::error!(error = %error, "records of a coordinator not written"),
        }
    }

    /// Which partitions there are now.
    pub(crate) fn places(self) -> Places<'a> {
        Places { shared: self.0, topics: HashMap::new() }
    }
}

/// The ids of partitions, each topic looked up once.
pub(crate) struct Places<'a> {
    shared: &'a Shared,
    topics: HashMap<String, Vec<PartitionId>>,
}

impl Places<'_> {
    /// The id of a partition that exists.
    pub(crate) fn find(&mut self, of: &TopicPartition) -> Option<PartitionId> {
        if !self.topics.contains_key(&of.topic) {
            let found = self.shared.catalog().topic(&of.topic);
            self.topics.insert(of.topic.clone(), found.map(|info| info.partitions).unwrap_or_default());
        }
        self.topics.get(&of.topic)?.get(of.partition as usize).copied()
    }
}

impl Engine {
    pub(crate) fn books(&self) -> Books<'_> {
        Books(&self.shared)
    }

    pub(crate) fn groups(&self) -> &Registry {
        &self.shared.groups
    }

    /// Something that nobody can guess.
    pub(crate) fn random(&self) -> Result<u128> {
        Ok(self.shared.storage.random()?)
    }

    /// Appends batches. `enter` is called when there is room: it may refuse, and what it returns is held until the batches
    /// have their place. So what is entered under one lock is in the log in the order of entering.
    ///
    /// # Errors
    /// As [`Engine::append`], and those of `enter`.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the append happens.
    pub(crate) async fn append_under<G>(
        &self,
        batches: Vec<(PartitionId, Bytes)>,
        enter: impl FnOnce() -> Result<G>,
    ) -> Result<Outcome> {
        let work = Work::Append { batches, fence: None };
        self.check(&work)?;
        let permit = self.permits.acquire_many(self.permits_of(&work)).await;
        let _permit = permit.map_err(|_| Error::closed("the log was closed"))?;
        let answer = {
            let _entered = enter()?;
            self.shared.queue.push(work)
        };
        answer.await.map_err(|_| Error::closed("the log has stopped"))?
    }
}

/// Lets groups pass what is due, and forgets their old offsets.
#[derive(Default)]
pub(super) struct Groups {
    cursor: group::Cursor,
}

impl Chore for Groups {
    fn name(&self) -> &'static str {
        "groups"
    }

    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        Ok(match self.cursor.step(Books(shared)) {
            true => Progress::More,
            false => Progress::Done,
        })
    }
}
