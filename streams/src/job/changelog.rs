//! A step's changelog: how changes become records, when a key group is written whole again, and how state comes back.
//!
//! A key group's changelog grows with every change, and its state does not. Once it has grown by more than twice what
//! the state was at the last snapshot (and 256 KiB), the next epoch writes the key group's whole state, and a position
//! names the offset of it: a restore begins there. So a restore reads at most about three times the state, and a
//! snapshot costs no more than what was written since the last one.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use tidemill_core::{record::Record, topic::partition_of};

use super::task::Task;
use crate::{
    Result,
    state::{Changes, KEY_GROUPS, State},
};

/// A changelog grows by this much before it is worth a snapshot.
const SNAPSHOT_BYTES: u64 = 256 << 10;

/// The topic of a step's changelog.
pub(crate) fn topic(job: &str, step: &str) -> String {
    format!("{job}.{step}.changelog")
}

/// The position that names where a key group's changelog begins.
pub(crate) fn start_position(step: &str, key_group: u32) -> String {
    format!("changelog:{step}:{key_group}")
}

/// Sizes of changelogs by node and key group.
#[derive(Default)]
pub(crate) struct Changelogs {
    sizes: HashMap<(usize, u32), Size>,
}

#[derive(Default)]
struct Size {
    /// Bytes of the last snapshot.
    snapshot: u64,
    /// Bytes written since.
    since: u64,
}

/// What an epoch writes to one partition of a changelog.
pub(crate) struct Part {
    pub(crate) key_group: u32,
    pub(crate) records: Vec<Record>,
    /// Whether these records are all there is of the key group.
    pub(crate) is_snapshot: bool,
}

impl Changelogs {
    /// The records of a step's changes, by key group.
    pub(crate) fn parts(&mut self, task: &mut Task, node: usize, changes: Changes) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        for (key_group, mut entries) in by_key_group(changes) {
            let size = self.sizes.entry((node, key_group)).or_default();
            size.since += entries.iter().map(size_of).sum::<u64>();
            let is_snapshot = size.since > 2 * size.snapshot + SNAPSHOT_BYTES;
            if is_snapshot {
                let mut whole = Changes::default();
                task.graph.state(node)?.snapshot(key_group, &mut whole)?;
                // An empty state still needs a record: the partition must have one at the offset that is noted.
                entries.retain(|(_, value)| value.is_none());
                entries.truncate(usize::from(whole.entries.is_empty()));
                entries.append(&mut whole.entries);
                *size = Size { snapshot: entries.iter().map(size_of).sum(), since: 0 };
            }
            let records = entries.into_iter().map(|(key, value)| Record::new(key, value)).collect();
            parts.push(Part { key_group, records, is_snapshot });
        }
        Ok(parts)
    }

    /// Takes what a restore found: bytes read, and bytes of what was live in them.
    pub(crate) fn restored(&mut self, node: usize, key_group: u32, read: u64, live: u64) {
        self.sizes.insert((node, key_group), Size { snapshot: live, since: read.saturating_sub(live) });
    }

    pub(crate) fn clear(&mut self) {
        self.sizes.clear();
    }
}

fn by_key_group(changes: Changes) -> BTreeMap<u32, Vec<(Bytes, Option<Bytes>)>> {
    let mut groups: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (key, value) in changes.entries {
        groups.entry(partition_of(&key, KEY_GROUPS)).or_default().push((key, value));
    }
    groups
}

fn size_of((key, value): &(Bytes, Option<Bytes>)) -> u64 {
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
        self.read += size_of(&(key.clone(), value.clone()));
        self.newest.insert(key, value);
    }

    /// Gives the state what is live.
    pub(crate) fn finish(
        self,
        logs: &mut Changelogs,
        node: usize,
        key_group: u32,
        state: &mut dyn State,
    ) -> Result<()> {
        let mut live = 0;
        for (key, value) in self.newest.into_iter().filter_map(|(key, value)| Some((key, value?))) {
            live += (key.len() + value.len()) as u64;
            state.restore(&key, &value)?;
        }
        logs.restored(node, key_group, self.read, live);
        Ok(())
    }
}
