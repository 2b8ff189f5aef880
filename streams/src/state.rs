//! State that survives: what a stateful step writes to its changelog, and how it gets it back.
//!
//! A step's changelog is the topic `<job>.<step>.changelog` of [`KEY_GROUPS`] partitions. A record sets an entry of the
//! state, a null deletes one, and the newest record of a key holds. The records of an epoch are in the epoch's own
//! transaction, so state, input offsets and output never disagree.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::Result;

/// Partitions of each changelog: an entry is in the partition that murmur2 gives its key. Fixed, so that work can move
/// between workers by whole partitions.
pub const KEY_GROUPS: u32 = 64;

/// Some of the key groups.
pub type KeyGroups = BTreeSet<u32>;

/// What an epoch changes in a step's state.
#[derive(Debug, Default)]
pub struct Changes {
    /// Key and new value of each entry; `None` deletes it.
    pub entries: Vec<(Bytes, Option<Bytes>)>,
}

impl Changes {
    /// Sets an entry.
    pub fn set(&mut self, key: Bytes, value: Bytes) {
        self.entries.push((key, Some(value)));
    }

    /// Deletes an entry.
    pub fn delete(&mut self, key: Bytes) {
        self.entries.push((key, None));
    }
}

/// The state of a step.
pub trait State: Send {
    /// What the state is of, in words. Stored with a job: code whose state is described otherwise does not fit it.
    fn describe(&self) -> String;

    /// Writes what changed since the last barrier.
    ///
    /// # Errors
    /// `Invalid` for a key or a state that cannot be encoded.
    fn barrier(&mut self, changes: &mut Changes) -> Result<()>;

    /// Writes all entries of these key groups, as of the last barrier.
    ///
    /// # Errors
    /// As [`State::barrier`].
    fn snapshot(&self, key_groups: &KeyGroups, changes: &mut Changes) -> Result<()>;

    /// Sets an entry that the changelog has. Each key comes once, with its newest value.
    ///
    /// # Errors
    /// `Corrupt` where it does not fit.
    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// The watermark to come back to: windows that it closes were closed, or never had a row.
    fn watermark(&self) -> i64;

    /// Sets the watermark that held when the state was written.
    fn set_watermark(&mut self, watermark: i64);

    /// Forgets everything.
    fn clear(&mut self);
}
