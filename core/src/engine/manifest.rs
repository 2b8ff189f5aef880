//! The manifest of a checkpoint: which segments hold what, and the catalog, as of the checkpoint.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    catalog::Catalog,
    compact::Compacted,
    partition::{Damage, Partition},
    producers::Snapshot,
    segment::SegmentEntry,
    shared::Shared,
};
use crate::{Error, Result, batch::crc32c, storage::Storage, topic::PartitionId};

const MAGIC: &[u8; 8] = b"TMMANIF1";
const HEADER_LEN: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) catalog: Catalog,
    pub(super) partitions: Vec<PartitionEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartitionEntry {
    pub(super) id: PartitionId,
    pub(super) log_start_offset: i64,
    /// Offset up to which the segments listed hold everything.
    pub(super) written_offset: i64,
    pub(super) segments: Vec<SegmentEntry>,
    /// How far the segments are compacted.
    #[serde(default, skip_serializing_if = "Compacted::is_none")]
    pub(super) compacted: Compacted,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) damage: Vec<Damage>,
    /// Left out where no producer is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) producers: Option<Snapshot>,
}

pub(super) fn path(data_dir: &Path, number: u64) -> PathBuf {
    data_dir.join(format!("manifest-{number:010}"))
}

impl Manifest {
    pub(super) fn empty() -> Self {
        Self { catalog: Catalog::new(), partitions: Vec::new() }
    }

    /// What is durable in segments at this moment, and the catalog, which may be newer.
    pub(super) fn of(shared: &Shared) -> Self {
        let _cut = shared.published();
        let partitions = shared.partitions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut partitions: Vec<_> = partitions.values().map(|partition| entry_of(partition)).collect();
        partitions.sort_unstable_by_key(|entry| entry.id);
        Self { catalog: shared.catalog().clone(), partitions }
    }

    /// The whole file.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let body = serde_json::to_vec(self).map_err(|e| Error::internal("encode the manifest").with_source(e))?;
        let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    pub(super) fn read(storage: &dyn Storage, path: &Path) -> Result<Self> {
        let bad = |what: &str| Error::corrupt(format!("{}: {what}", path.display()));
        let bytes = storage.read(path).map_err(|e| bad(&e.to_string()))?;
        let Some((header, body)) = bytes.split_at_checked(HEADER_LEN) else { return Err(bad("cut in its header")) };
        let sound = &header[..8] == MAGIC
            && header[8..12] == (body.len() as u32).to_le_bytes()
            && header[12..16] == crc32c(body).to_le_bytes();
        if !sound {
            return Err(bad("its checksum does not hold"));
        }
        serde_json::from_slice(body).map_err(|e| bad("not a manifest").with_source(e))
    }
}

fn entry_of(partition: &Partition) -> PartitionEntry {
    let state = partition.state();
    PartitionEntry {
        id: partition.id,
        log_start_offset: state.log_start_offset,
        written_offset: state.synced_offset,
        segments: state.segments.iter().filter_map(|s| s.durable_entry()).collect(),
        compacted: state.compacted,
        damage: state.damage.clone(),
        producers: state.producers.snapshot(state.log_start_offset, state.durable_offset),
    }
}
