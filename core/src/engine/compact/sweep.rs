//! Removes what a crash left of compaction: files of segments that no list names.

use std::sync::Arc;

use super::{
    super::{partition::Partition, segment::stem, shared::Shared},
    Compactor,
    choice::compacted_partitions,
};

impl Compactor {
    /// Looks through the folder of one partition that was not looked at since the log was opened, before the first pass over
    /// it. Whether there was one.
    pub(super) fn sweep(&mut self, shared: &Shared) -> bool {
        let is_next = |p: &Arc<Partition>| !self.swept.contains(&p.id) && !p.state().segments.is_empty();
        let Some(partition) = compacted_partitions(shared).into_iter().find(is_next) else { return false };
        self.swept.insert(partition.id);
        sweep_folder(shared, &partition);
        true
    }
}

fn sweep_folder(shared: &Shared, partition: &Partition) {
    // A partition without segments may have no folder.
    let Ok(names) = shared.storage.list(&partition.folder) else { return };
    for name in names {
        let Some((base_offset, generation)) = parse(&name) else { continue };
        if is_left(partition, &name, base_offset, generation) {
            let path = partition.folder.join(&name);
            tracing::debug!(file = %path.display(), "leaving of a crash removed");
            let _ = shared.storage.remove(&path);
        }
    }
}

/// What lies before the first segment is not judged: retention may have files there that a manifest still lists. Behind what
/// is durable the segment writer makes new ones, of the first generation.
fn is_left(partition: &Partition, name: &str, base_offset: i64, generation: u32) -> bool {
    let state = partition.state();
    let Some(first) = state.segments.first() else { return false };
    let segment = stem(base_offset, generation);
    let listed = state.segments.iter().any(|s| s.path().file_stem().is_some_and(|stem| *stem == *segment));
    !state.deleted
        && state.damage.is_empty()
        && base_offset >= first.base_offset()
        && (generation > 0 || base_offset < state.synced_offset)
        && (!listed || name.ends_with(".tmp"))
}

/// Base offset and generation in the name of a segment's file.
fn parse(name: &str) -> Option<(i64, u32)> {
    let (stem, extension) = name.rsplit_once('.')?;
    if !matches!(extension, "log" | "index" | "tmp") {
        return None;
    }
    let (base, generation) = match stem.split_once('.') {
        Some((base, generation)) => (base, generation.parse().ok().filter(|generation| *generation > 0)?),
        None => (stem, 0),
    };
    let base_offset = base.parse().ok().filter(|_| base.len() == 20 && base.bytes().all(|b| b.is_ascii_digit()))?;
    Some((base_offset, generation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments_are_read() {
        for (base, generation) in [(0, 0), (7, 1), (123_456_789_012, 40)] {
            for extension in ["log", "index", "tmp"] {
                assert_eq!(parse(&format!("{}.{extension}", stem(base, generation))), Some((base, generation)));
            }
        }
        for other in [
            "x.log",
            "7.log",
            "00000000000000000007.0.log",
            "00000000000000000007.txt",
            ".log",
            "0000000000000000000a.log",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
