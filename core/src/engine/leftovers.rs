//! What a crash left in the folders: files of segments and topics that were to be removed, and manifests of earlier
//! checkpoints. They are looked for once after an opening, a folder at a time. Files of other names are left alone.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use super::{
    housekeeping::{Chore, Progress},
    manifest,
    partition::Partition,
    segment,
    shared::{Doomed, Shared},
};
use crate::{Result, topic::PartitionId};

/// The chore.
pub(super) struct Leftovers {
    /// The manifest that was in force after recovery: both copies of the superblock name it.
    manifest: u64,
    folders: Option<Vec<String>>,
    over: bool,
}

impl Leftovers {
    pub(super) fn new(manifest: u64) -> Self {
        Self { manifest, folders: None, over: false }
    }
}

impl Chore for Leftovers {
    fn name(&self) -> &'static str {
        "leftovers"
    }

    fn step(&mut self, shared: &Arc<Shared>) -> Result<Progress> {
        if self.over {
            return Ok(Progress::Done);
        }
        let Some(folders) = &mut self.folders else {
            let names = shared.storage.list(&shared.data_dir)?;
            let numbers = names.iter().filter_map(|name| name.strip_prefix("manifest-")?.parse::<u64>().ok());
            for number in numbers.filter(|number| *number < self.manifest) {
                shared.storage.remove(&manifest::path(&shared.data_dir, number))?;
            }
            self.folders = Some(shared.storage.list(&shared.data_dir.join("topics"))?);
            return Ok(Progress::More);
        };
        let Some(name) = folders.pop() else {
            self.over = true;
            shared.leftovers_known.store(true, Ordering::Release);
            return Ok(Progress::Done);
        };
        let Some(id) = number_of(&name, 8) else { return Ok(Progress::More) };
        let found = match shared.partition(PartitionId(id as u32)) {
            Ok(partition) => leftovers_of(shared, &partition),
            // Ids are never used twice.
            Err(_) => vec![Doomed::Folder(shared.data_dir.join("topics").join(&name))],
        };
        if !found.is_empty() {
            // The last manifest may list it though this process knows that it is not needed.
            shared.doom(found);
        }
        Ok(Progress::More)
    }
}

/// Files of segments that the partition does not have. The segment writer makes no new ones below what is written, and
/// compaction begins when all are known: no new file takes the name of one that is to go.
fn leftovers_of(shared: &Shared, partition: &Partition) -> Vec<Doomed> {
    // No folder: nothing was written yet, or it was deleted meanwhile.
    let names = shared.storage.list(&partition.folder).unwrap_or_default();
    let mut state = partition.state_mut();
    let newest = names.iter().filter_map(|name| place_of(name)).map(|(_, generation)| generation).max();
    state.generation = state.generation.max(newest.unwrap_or(0));
    let needed = |(base, generation): (i64, u32)| {
        let listed = state.segments.binary_search_by_key(&base, |s| s.base_offset());
        (generation == 0 && base >= state.written_offset)
            || listed.is_ok_and(|i| state.segments[i].generation() == generation)
    };
    let files = names.iter().filter(|name| place_of(name).is_some_and(|place| !needed(place)));
    files.map(|name| Doomed::File(partition.folder.join(name))).collect()
}

/// Base offset and generation in the name of a segment's file.
fn place_of(name: &str) -> Option<(i64, u32)> {
    let path: &Path = name.as_ref();
    let end = path.extension()?;
    let stem = path.file_stem()?.to_str().filter(|_| end == "log" || end == "index")?;
    let (base, generation) = match stem.split_once('.') {
        Some((base, generation)) => (base, generation.parse().ok()?),
        None => (stem, 0),
    };
    let base_offset = number_of(base, 20)?;
    (stem == segment::stem(base_offset, generation)).then_some((base_offset, generation))
}

fn number_of(name: &str, digits: usize) -> Option<i64> {
    (name.len() == digits && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_ours_count() {
        assert_eq!(place_of("00000000000000000017.log"), Some((17, 0)));
        assert_eq!(place_of("00000000000000000017.3.index"), Some((17, 3)));
        for other in [
            "17.log",
            "00000000000000000017.tmp",
            "0000000000000000001x.log",
            "99999999999999999999.log",
            "log",
            "00000000000000000017.0.log",
            "00000000000000000017.03.log",
        ] {
            assert_eq!(place_of(other), None, "{other}");
        }
    }
}
