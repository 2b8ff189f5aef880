//! The seam between the log and all that uses it: connectors, jobs and SQL are written against [`Log`], which speaks
//! records, and run unchanged over the embedded engine ([`Embedded`]) or an existing Kafka
//! cluster (`Kafka`, with the feature `kafka`).
//!
//! What holds for every implementation, because the weakest one can give no more:
//! - offsets increase but are not dense: nobody counts or finds the end by subtraction, [`Chunk::next_offset`] tells
//!   where to go on;
//! - a read bounded by `end` is over when `next_offset >= end`;
//! - records that came after those of another's open transaction may be seen only when that has ended; so a transaction
//!   is short ([`TRANSACTION_TIME`]);
//! - a [`Writer`] is fenced: opening an owner refuses what an older writer of that owner still tries to commit;
//! - a commit that failed, or whose future was dropped, ends its writer: only opening the owner anew tells what became of it;
//! - positions are keyed records written in the owner's transaction, read after the fence;
//! - a partition, or a slot of work, is in the hands of one [`Member`] of a group at a time;
//! - every call belongs to a [`Caller`] and passes the [`Gate`].
//!
//! `core/tests/it/contract` states these rules as tests, which every implementation passes.

mod embedded;
mod gate;
#[cfg(feature = "kafka")]
mod kafka;
mod local_member;
mod member;
mod turn;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;

pub use crate::engine::{Bounds, Entry, Table};
pub use embedded::Embedded;
pub use gate::{Action, AllowAll, Caller, Gate};
#[cfg(feature = "kafka")]
pub use kafka::Kafka;
pub use member::{Assignor, Change, GroupOffset, Lease, MAX_OFFSET_METADATA, MAX_SLOTS, Member, MemberOptions};
pub use turn::{Held, Turn};

use crate::{
    Result,
    record::{FetchedRecord, Record, Timestamp},
    topic::{TopicConfig, TopicPartition, TopicSpec},
};

/// How long a transaction may stay open before the log may abort it. The embedded log gives it a minute.
pub const TRANSACTION_TIME: Duration = Duration::from_secs(10);

/// A topic as the seam shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its identity: a topic deleted and made again has another.
    pub id: String,
    /// Number of partitions.
    pub partitions: u32,
}

/// What to change of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicChange {
    /// So many partitions from now on, at least as many as there are: keys are dealt anew.
    pub partitions: Option<u32>,
    /// Settings by name; `None` sets one back to its default.
    pub settings: BTreeMap<String, Option<String>>,
}

/// Where an append went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub first_offset: i64,
    /// Offset of the last record.
    pub last_offset: i64,
}

/// Bounds of one fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchOptions {
    /// About how many bytes of records at most; at least one record comes where there is one.
    pub max_bytes: usize,
    /// How long to wait where there is none.
    pub max_wait: Duration,
    /// Records at this offset and beyond are left out.
    pub end: Option<i64>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self { max_bytes: 1 << 20, max_wait: Duration::ZERO, end: None }
    }
}

/// Records of one partition, and where the next fetch begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Records in offset order. May be empty though `next_offset` advanced.
    pub records: Vec<FetchedRecord>,
    /// The offset to go on from.
    pub next_offset: i64,
}

/// A log, on this machine or another.
#[async_trait]
pub trait Log: Send + Sync {
    /// Opens a session; all further calls are the caller's.
    ///
    /// # Errors
    /// `Denied`, `Unavailable`.
    async fn session(&self, caller: Caller) -> Result<Arc<dyn Session>>;
}

/// What a caller may do with a log.
#[async_trait]
pub trait Session: Send + Sync {
    /// The log's identity; a target remembers which log feeds it.
    fn log_id(&self) -> String;

    /// All topics that users made, by name.
    async fn topics(&self) -> Result<Vec<Topic>>;

    /// One topic, or `None`.
    async fn topic(&self, name: &str) -> Result<Option<Topic>>;

    /// Makes a topic.
    ///
    /// # Errors
    /// `Conflict` where it exists, `Invalid` for its name.
    async fn create_topic(&self, name: &str, spec: &TopicSpec) -> Result<Topic>;

    /// The settings of a topic that are in force. On a cluster they are its own, defaults included.
    ///
    /// # Errors
    /// `NotFound`.
    async fn topic_config(&self, name: &str) -> Result<TopicConfig>;

    /// Changes a topic; settings first, and then partitions.
    ///
    /// # Errors
    /// `NotFound`, `Denied` for the log's own; `Invalid` for fewer partitions, and for a setting that the log does not
    /// know or enforce.
    async fn alter_topic(&self, name: &str, change: &TopicChange) -> Result<()>;

    /// Deletes a topic and its records.
    ///
    /// # Errors
    /// `NotFound`.
    async fn delete_topic(&self, name: &str) -> Result<()>;

    /// Appends records in order; they are durable when this returns. Others see them at once, unless a transaction is
    /// open in the partition: then, on a cluster, when it ends.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` (too large), `Corrupt` (read-only partition), `Closed`, `Denied` for the log's own topics.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open how many of the records were appended.
    async fn append(&self, to: &TopicPartition, records: Vec<Record>) -> Result<Appended>;

    /// Reads records from `offset` on.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an offset out of range; `Corrupt` where records are lost: nothing is skipped silently.
    async fn fetch(&self, from: &TopicPartition, offset: i64, options: &FetchOptions) -> Result<Chunk>;

    /// Bounds of partitions: of what can be read now. On the embedded log they are one consistent cut over all of them;
    /// on a cluster each is taken by itself.
    async fn bounds(&self, partitions: &[TopicPartition]) -> Result<Vec<Bounds>>;

    /// The offset of the first record whose time is `time` or later, first in the order of offsets; `None` where there is
    /// no such record now. Times need not follow offsets: records of earlier times may come after it.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where records that have to be asked are lost.
    async fn offset_at_time(&self, of: &TopicPartition, time: Timestamp) -> Result<Option<i64>>;

    /// Opens the owner's writer and fences an older one: what that left open is aborted, what it had committed stands in
    /// [`Writer::positions`].
    ///
    /// # Errors
    /// `Unavailable`, also where transactions of others keep the positions from being read for long; `Conflict` where
    /// another opens the owner at the same moment.
    async fn writer(&self, owner: &str) -> Result<Box<dyn Writer>>;

    /// The positions an owner has committed, by name; without fencing.
    async fn positions(&self, owner: &str) -> Result<BTreeMap<String, String>>;

    /// The newest record of each key of an internal table.
    async fn table(&self, table: Table) -> Result<BTreeMap<String, Entry>>;

    /// Replaces a metadata record whose version is `expected` (`None`: absent); a `None` value deletes it. Returns the
    /// new version.
    ///
    /// # Errors
    /// `Conflict` where the version is another.
    async fn put(&self, table: Table, key: &str, value: Option<String>, expected: Option<i64>) -> Result<i64>;

    /// Becomes a member of `group` that reads `topics` together with the others. What is its own is told later, by
    /// [`Member::changed`].
    ///
    /// # Errors
    /// `Invalid` for names or options, `Conflict` where the group's members deal in another way, `Unavailable` where a
    /// limit of groups or members is reached or the group cannot be reached.
    async fn join(&self, group: &str, topics: &[String], options: &MemberOptions) -> Result<Box<dyn Member>>;

    /// Shares the slots `0..slots` of `group` with all who lease of it. The session time is 10 s. Leases and members of
    /// the same name do not meet.
    ///
    /// # Errors
    /// `Invalid` for a name that is no topic's or longer than 200 bytes, or slots not in 1..[`MAX_SLOTS`]; `Conflict` for
    /// fewer slots than others lease of the group now: their number only grows; `Unavailable`.
    async fn lease(&self, group: &str, slots: u32) -> Result<Lease>;

    /// How far a group has committed partitions, without joining it; those without an offset are left out. An offset
    /// beyond the end of its partition is told as the end.
    ///
    /// # Errors
    /// `Invalid` for the group's name, `NotFound` for a partition that does not exist.
    async fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, GroupOffset>>;
}

/// A fenced writer: transactions of records and positions, one at a time. What is appended is seen by nobody before it is
/// committed, and then all of it or nothing.
///
/// After an append that failed, or whose future was dropped, the transaction can only be aborted. After a commit that
/// failed or was dropped, and once fenced, the writer has ended: every further call says so. Only `Invalid`, and a
/// refusal of the [`Gate`], leave it as it is after an abort.
#[async_trait]
pub trait Writer: Send {
    /// The positions committed last, by name.
    fn positions(&self) -> &BTreeMap<String, String>;

    /// Adds records to the open transaction; the first call opens it.
    ///
    /// # Errors
    /// `Invalid` where a record or the transaction grows beyond its limit; `Conflict` once fenced, at the latest in the
    /// commit; `Closed` after a failure.
    async fn append(&mut self, to: &TopicPartition, records: Vec<Record>) -> Result<()>;

    /// Sets a position in the open transaction; `None` deletes it.
    fn set_position(&mut self, name: &str, value: Option<String>);

    /// Makes the transaction durable. Readers see it, all of it, when this returns; on a cluster, its positions a moment
    /// later, and records behind an open transaction of another when that has ended.
    ///
    /// # Errors
    /// `Conflict` where a newer writer of this owner was opened: nothing of it is visible, ever.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the transaction is committed, and ends the writer.
    async fn commit(&mut self) -> Result<()>;

    /// Drops the open transaction.
    async fn abort(&mut self) -> Result<()>;

    /// Drops the open transaction and lets go of what the writer holds; returns when that is done. Dropping a writer does
    /// the same in its own time.
    async fn close(self: Box<Self>) -> Result<()>;
}
