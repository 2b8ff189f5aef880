//! Bounds of groups.

use std::time::Duration;

/// What the coordinator keeps at most, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Groups with members at a time.
    pub groups: usize,
    /// Members of one group.
    pub members: usize,
    /// Bytes of metadata and assignments of one group.
    pub group_bytes: usize,
    /// Bytes beside one offset.
    pub offset_metadata_bytes: usize,
    /// Shortest session time.
    pub min_session_time: Duration,
    /// Longest session time.
    pub max_session_time: Duration,
    /// How much longer the first round of an empty group waits while members come.
    pub first_delay: Duration,
    /// How long a new member may wait for its first generation.
    pub new_member_time: Duration,
    /// How long offsets of a group without members are kept.
    pub offset_retention: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            groups: 10_000,
            members: 1000,
            group_bytes: 16 << 20,
            offset_metadata_bytes: 4096,
            min_session_time: Duration::from_secs(6),
            max_session_time: Duration::from_secs(30 * 60),
            first_delay: Duration::from_secs(3),
            new_member_time: Duration::from_secs(5 * 60),
            offset_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}
