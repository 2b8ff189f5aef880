//! What a crash left in the folders: files of segments and topics that were to be removed, and manifests of earlier
//! checkpoints. They are looked for once after an opening, a folder at a time. Files of other names are left alone.

use std::{path::Path, sync::Arc};

use super::{
    housekeeping::{Chore, Progress},
    manifest,
    partition::Partition,
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

/// Files of segments that the partition does not have. The segment writer makes no new ones below what is written.
fn leftovers_of(shared: &Shared, partition: &Partition) -> Vec<Doomed> {
    // No folder: nothing was written yet, or it was deleted meanwhile.
    let names = shared.storage.list(&partition.folder).unwrap_or_default();
    let state = partition.state();
    let needed = |base: i64| {
        base >= state.written_offset || state.segments.binary_search_by_key(&base, |s| s.base_offset()).is_ok()
    };
    let files = names.iter().filter(|name| base_offset_of(name).is_some_and(|base| !needed(base)));
    files.map(|name| Doomed::File(partition.folder.join(name))).collect()
}

fn base_offset_of(name: &str) -> Option<i64> {
    let path: &Path = name.as_ref();
    let end = path.extension()?;
    (end == "log" || end == "index").then(|| number_of(&path.file_stem()?.to_string_lossy(), 20)).flatten()
}

fn number_of(name: &str, digits: usize) -> Option<i64> {
    (name.len() == digits && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_ours_count() {
        assert_eq!(base_offset_of("00000000000000000017.log"), Some(17));
        assert_eq!(base_offset_of("00000000000000000017.index"), Some(17));
        for other in
            ["17.log", "00000000000000000017.tmp", "0000000000000000001x.log", "99999999999999999999.log", "log"]
        {
            assert_eq!(base_offset_of(other), None, "{other}");
        }
    }
}
