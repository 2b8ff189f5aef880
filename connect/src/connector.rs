//! What every connector implements: a source that is polled, a sink that is put to.
//!
//! The worker drives both. A source is told of its position's durability only after the log has it; a sink keeps the
//! next offsets in its target's own transaction, so that what is applied twice has the effect of once.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;

use crate::{
    Result,
    change::{Change, TableSchema},
};

/// What one poll of a source found.
#[derive(Debug, Default)]
pub struct Polled {
    /// The changes, in order; `Change::table` counts in [`Source::tables`].
    pub changes: Vec<Change>,
    /// Parts of the source's position that are new after these changes, by name.
    pub position: Vec<(String, String)>,
    /// Tables whose copy is complete with these changes.
    pub finished_tables: Vec<usize>,
    /// How long the source wants to be left alone.
    pub pause: Duration,
    /// Whether the source had more to give.
    pub more: bool,
    /// Whether a bounded source has given everything.
    pub ended: bool,
}

/// Reads changes of tables from a database.
#[async_trait]
pub trait Source: Send {
    /// The tables, with the columns that the changes have.
    fn tables(&self) -> Vec<TableSchema>;

    /// The parts of the position to be stored before the first poll.
    fn position(&self) -> Vec<(String, String)>;

    /// Whether every table's copy begins anew in each run, so that rows already in the log must be left out.
    fn rereads(&self) -> bool;

    /// The next changes; none where nothing happened.
    ///
    /// # Errors
    /// `Unavailable` may be tried again; anything else needs a person.
    async fn poll(&mut self) -> Result<Polled>;

    /// Everything polled so far is durable, with its position.
    async fn commit(&mut self) -> Result<()>;
}

/// Changes of one topic that belong to one schema, in order.
#[derive(Debug)]
pub struct TopicChanges {
    /// The topic they came from.
    pub topic: String,
    /// The table they apply to.
    pub schema: TableSchema,
    /// The schema's number; another one than the target has means that a whole new copy follows.
    pub schema_id: u64,
    /// The changes; none still makes the table.
    pub changes: Vec<Change>,
}

/// Applies changes to tables of a database.
#[async_trait]
pub trait Sink: Send {
    /// The next offset to apply, by topic, as the target has them.
    async fn positions(&mut self) -> Result<BTreeMap<String, i64>>;

    /// Whether these topics may be applied to their tables.
    ///
    /// # Errors
    /// `Conflict` names all tables that hold what this log did not write.
    async fn check(&mut self, tables: &[(String, TableSchema)]) -> Result<()>;

    /// Applies changes and stores the next offsets in one transaction of the target; durable when it returns.
    ///
    /// # Errors
    /// Nothing is half applied. `Unavailable` may be tried again.
    async fn put(&mut self, changes: Vec<TopicChanges>, next_offsets: Vec<(String, i64)>) -> Result<()>;
}
