//! A step's changelog: how changes become records, when a key group is written whole again, and how state comes back.
//!
//! A key group's changelog grows with every change, and its state does not. Once it has grown by more than twice what
//! the state was at the last snapshot (and 256 KiB), the next epoch writes the key group's whole state, and a position
//! names the offset of it: a restore begins there. So a restore reads at most about three times the state, and a snapshot
//! costs no more than what was written since the last one. Where many are due at once they take turns: an epoch is one
//! transaction, and those have a limit.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use bytes::Bytes;
use tidemill_core::{record::Record, topic::partition_of};

use crate::{
    Result,
    state::{Changes, KEY_GROUPS, KeyGroups, State},
};

/// A changelog grows by this much before it is worth a snapshot.
const SNAPSHOT_BYTES: u64 = 256 << 10;

/// Snapshots of one epoch write about this much, or one key group.
const EPOCH_BYTES: u64 = 8 << 20;

/// The topic of a step's changelog. A step's name has no dots, so two jobs never meet in one.
pub(crate) fn topic(job: &str, step: &str) -> String {
    format!("{job}.{step}.changelog")
}

/// The position that names where a key group's changelog begins.
pub(crate) fn start_position(step: &str, key_group: u32) -> String {
    format!("changelog:{step}:{key_group}")
}

type Entry = (Bytes, Option<Bytes>);

/// How much is in the changelogs, by node and key group.
#[derive(Default)]
pub(super) struct Changelogs {
    sizes: BTreeMap<(usize, u32), Size>,
}

#[derive(Default)]
struct Size {
    /// Bytes of the last snapshot.
    snapshot: u64,
    /// Bytes written since.
    since: u64,
}

impl Size {
    fn limit(&self) -> u64 {
        2 * self.snapshot + SNAPSHOT_BYTES
    }
}

/// What an epoch writes to one partition of a changelog.
pub(crate) struct Part {
    pub(crate) topic: String,
    pub(crate) key_group: u32,
    pub(crate) records: Vec<Record>,
    /// Where these records are all there is of the key group: the position that shall hold the offset of the first.
    pub(crate) start: Option<String>,
}

impl Changelogs {
    /// The records of a step's changes, by key group.
    pub(super) fn parts(
        &mut self,
        job: &str,
        step: &str,
        node: usize,
        state: &dyn State,
        changes: Changes,
    ) -> Result<Vec<Part>> {
        let mut groups = by_key_group(changes);
        for (key_group, entries) in &groups {
            self.sizes.entry((node, *key_group)).or_default().since += entries.iter().map(size_of).sum::<u64>();
        }
        let due = self.due(node);
        if !due.is_empty() {
            let mut whole = Changes::default();
            state.snapshot(&due, &mut whole)?;
            due.iter().for_each(|key_group| drop(groups.insert(*key_group, Vec::new())));
            groups.extend(by_key_group(whole));
        }
        let part = |(key_group, entries): (u32, Vec<Entry>)| {
            let start = due.contains(&key_group).then(|| start_position(step, key_group));
            if start.is_some() {
                let snapshot = entries.iter().map(size_of).sum();
                self.sizes.insert((node, key_group), Size { snapshot, since: 0 });
            }
            let records = entries.into_iter().map(|(key, value)| Record::new(key, value)).collect();
            Part { topic: topic(job, step), key_group, records, start }
        };
        Ok(groups.into_iter().map(part).collect())
    }

    /// Key groups to be written whole now: those that have grown most beyond their limit.
    fn due(&self, node: usize) -> KeyGroups {
        let sizes = self.sizes.range((node, 0)..=(node, KEY_GROUPS));
        let mut due: Vec<_> = sizes.filter(|(_, size)| size.since > size.limit()).collect();
        due.sort_by_key(|(_, size)| Reverse(size.since - size.limit()));
        let mut bytes = 0;
        let fits = |(number, (_, size)): &(usize, (_, &Size))| {
            bytes += size.snapshot + size.since;
            *number == 0 || bytes <= EPOCH_BYTES
        };
        due.into_iter().enumerate().take_while(fits).map(|(_, ((_, key_group), _))| *key_group).collect()
    }

    /// Gives the state what is live of what was read.
    pub(super) fn restore(
        &mut self,
        node: usize,
        key_group: u32,
        entries: Restore,
        state: &mut dyn State,
    ) -> Result<()> {
        let mut live = 0;
        for (key, value) in entries.newest.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            live += (key.len() + value.len()) as u64;
            state.restore(&key, &value)?;
        }
        self.sizes.insert((node, key_group), Size { snapshot: live, since: entries.read.saturating_sub(live) });
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        self.sizes.clear();
    }
}

fn by_key_group(changes: Changes) -> BTreeMap<u32, Vec<Entry>> {
    let mut groups: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (key, value) in changes.entries {
        groups.entry(partition_of(&key, KEY_GROUPS)).or_default().push((key, value));
    }
    groups
}

fn size_of((key, value): &Entry) -> u64 {
    (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64
}

/// Gathers the newest entry of each key while a changelog is read.
#[derive(Default)]
pub(crate) struct Restore {
    newest: HashMap<Bytes, Option<Bytes>>,
    read: u64,
}

impl Restore {
    /// Takes the next record.
    pub(crate) fn add(&mut self, key: Bytes, value: Option<Bytes>) {
        self.read += (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
        self.newest.insert(key, value);
    }
}
