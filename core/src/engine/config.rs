//! Settings of the log engine.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Sizes and budgets of one log. All are enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size of one file of the commit log, 64 KiB to 64 MiB.
    pub commit_file_bytes: usize,
    /// What all files of the commit log may take together; a checkpoint starts at half of it.
    pub commit_log_bytes: usize,
    /// Memory for the newest records; appends wait when it is full of what segments do not hold yet.
    pub ring_bytes: usize,
    /// Requests waiting for the committer, in bytes; a producer waits beyond.
    pub queue_bytes: usize,
    /// Most bytes in one group.
    pub group_bytes: usize,
    /// Most bytes one transaction may stage.
    pub transaction_bytes: usize,
    /// A segment is sealed at this size.
    pub segment_bytes: u64,
    /// Memory for what a pass of compaction knows of keys, 24 bytes for each and a third more. A partition with more keys
    /// takes several passes.
    pub compaction_map_bytes: usize,
    /// What compaction may read and write together in a second.
    pub compaction_bytes_per_second: u64,
    /// What is kept of producers, and for how long.
    pub producers: ProducerLimits,
}

/// What is kept of producers, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProducerLimits {
    /// Producers that one partition knows; beyond, those idle for longest are forgotten.
    pub per_partition: usize,
    /// Producers that all partitions know together.
    pub in_all: usize,
    /// A producer idle for so long is forgotten by a partition.
    pub producer_idle_ms: u64,
    /// A transactional id idle for so long is forgotten.
    pub transactional_id_idle_ms: u64,
    /// The longest time-out that a transaction may ask for.
    pub max_transaction_timeout_ms: u64,
}

impl Default for ProducerLimits {
    fn default() -> Self {
        const DAY_MS: u64 = 24 * 60 * 60 * 1000;
        Self {
            per_partition: 10_000,
            in_all: 100_000,
            producer_idle_ms: DAY_MS,
            transactional_id_idle_ms: 7 * DAY_MS,
            max_transaction_timeout_ms: 15 * 60 * 1000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            commit_file_bytes: 16 << 20,
            commit_log_bytes: 256 << 20,
            ring_bytes: 128 << 20,
            queue_bytes: 32 << 20,
            group_bytes: 4 << 20,
            transaction_bytes: 64 << 20,
            segment_bytes: 256 << 20,
            compaction_map_bytes: 32 << 20,
            compaction_bytes_per_second: 64 << 20,
            producers: ProducerLimits::default(),
        }
    }
}

impl Config {
    /// Checks all settings against each other.
    ///
    /// # Errors
    /// `Invalid` lists every fault with the setting's name.
    pub fn validate(&self) -> Result<()> {
        let mut faults = Vec::new();
        let mut check = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault);
            }
        };
        let file = self.commit_file_bytes;
        check((64 << 10..=64 << 20).contains(&file), format!("commit_file_bytes {file} is not in 64 KiB..64 MiB"));
        check(file.is_multiple_of(4096), format!("commit_file_bytes {file} is not a multiple of 4096"));
        check(
            self.commit_log_bytes >= 4 * file,
            format!("commit_log_bytes {} is below 4 files", self.commit_log_bytes),
        );
        check(
            self.transaction_bytes <= self.commit_log_bytes / 4,
            "transaction_bytes exceeds a quarter of commit_log_bytes".into(),
        );
        check(self.group_bytes >= 4096, format!("group_bytes {} is below 4096", self.group_bytes));
        check(
            self.segment_bytes >= 4096 && self.segment_bytes <= 1 << 30,
            format!("segment_bytes {} is not in 4 KiB..1 GiB", self.segment_bytes),
        );
        check(
            self.ring_bytes >= self.commit_file_bytes / 2,
            format!("ring_bytes {} is below half a commit file", self.ring_bytes),
        );
        check(
            self.compaction_map_bytes >= 1 << 10,
            format!("compaction_map_bytes {} is below 1 KiB", self.compaction_map_bytes),
        );
        check(
            self.compaction_bytes_per_second >= 4096,
            format!("compaction_bytes_per_second {} is below 4 KiB", self.compaction_bytes_per_second),
        );
        let ProducerLimits { per_partition, in_all, .. } = self.producers;
        check(per_partition > 0 && in_all > 0, "producers: a log that knows no producer finds no duplicate".into());
        if faults.is_empty() { Ok(()) } else { Err(Error::invalid(faults.join("; "))) }
    }

    /// Most bytes a group may take: it must fit into one file beside the opening note.
    pub(super) fn group_limit(&self) -> usize {
        self.group_bytes.min(self.commit_file_bytes - 8192)
    }

    /// Most payload bytes of one request. One that is larger than a group is a group of its own, and must fit into one file
    /// beside the opening note.
    pub fn request_limit(&self) -> usize {
        self.commit_file_bytes - 8192 - 4096
    }

    /// Most bytes of one record of a transaction: its positions go beside it.
    pub fn record_limit(&self) -> usize {
        self.request_limit() / 2
    }
}
