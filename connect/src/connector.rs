//! What every connector implements: a database as a source that is polled, a database as a sink that is put to.
//!
//! The worker drives both. A source is told of its position's durability only after the log has it; a sink keeps the
//! next offsets in its target's own transaction, so that what is applied twice has the effect of once.
//!
//! [`SourceConnector`] and [`SinkConnector`] stand for a database as a sync file names it: they connect when asked, and
//! are cheap to make. [`Source`] and [`Sink`] are at work.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    change::{Change, Row, TableSchema},
    converter::TopicSchema,
    target::lanes::{Lane, Positions},
    types::Dialect,
};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, but somebody should know.
    Warn,
    /// The sync cannot run like this.
    Refuse,
}

/// One line of a preflight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The table, or the setting of the server it concerns.
    pub subject: String,
    /// Whether the sync can run: true unless the level is `Refuse`.
    pub ok: bool,
    /// How grave it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do: a statement to type where one does it.
    pub cure: Option<String>,
}

impl Finding {
    /// A finding of a level.
    pub fn new(subject: impl Into<String>, level: Level, message: impl Into<String>, cure: Option<String>) -> Self {
        Self { subject: subject.into(), ok: level != Level::Refuse, level, message: message.into(), cure }
    }
}

/// What a source is opened with to be followed.
#[derive(Debug, Clone)]
pub struct Follow {
    /// The sync's name; what is made in the source is named after it.
    pub sync: String,
    /// The log's identity, so that two logs that follow one database do not take each other's slot.
    pub log_id: String,
    /// The tables, as [`SourceConnector::tables`] found them.
    pub tables: Vec<TableSchema>,
    /// The position's parts as the log has them; empty at the first start.
    pub stored: BTreeMap<String, String>,
    /// Full names of tables to copy anew.
    pub recopy: Vec<String>,
    /// Whether to end when all that was there at the start has been read.
    pub once: bool,
}

/// How far the copy of a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It has not begun.
    NotStarted,
    /// It has begun; some rows are in the log.
    Begun,
    /// It is complete.
    Done,
}

/// The state of a table in a source's position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableState {
    /// The table's full name.
    pub table: String,
    /// How far its copy is.
    pub copied: Copied,
    /// Whether the stored position knows the table and it is not copied anew: what its topic holds then came from this
    /// capture.
    pub known: bool,
}

/// A database that a sync reads.
#[async_trait]
pub trait SourceConnector: Send + Sync {
    /// Which kind of database it is.
    fn dialect(&self) -> Dialect;

    /// The tables that patterns name now, with their columns.
    ///
    /// # Errors
    /// `Unavailable` where the database is not there, `Denied` where it refuses us, `NotFound` for a pattern that matches
    /// nothing, with the nearest table.
    async fn tables(&self, patterns: &[String]) -> Result<Vec<TableSchema>>;

    /// What would go wrong, and its cure: rights, settings, tables. Changes nothing. `once` asks for a copy alone. `log_id`
    /// is empty where no log is known.
    ///
    /// # Errors
    /// As [`SourceConnector::tables`]. What is amiss is a finding, not an error.
    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TableSchema], once: bool) -> Result<Vec<Finding>>;

    /// What following it makes there, a line each; for `sync plan`.
    fn makes(&self, sync: &str, tables: &[TableSchema]) -> Vec<String>;

    /// About how many rows each table has; for progress only.
    async fn row_counts(&self, tables: &[TableSchema]) -> Vec<u64>;

    /// Opens it at a stored position, or at its present end, making there what it needs (triggers, slot, publication).
    ///
    /// # Errors
    /// `Conflict` where the source is not what the position says, with the way out.
    async fn follow(&self, follow: Follow) -> Result<Box<dyn Source>>;

    /// Opens it for one copy that installs nothing; its position is empty and each run begins anew.
    ///
    /// # Errors
    /// `Unsupported` for a table without a key.
    async fn read(&self, tables: Vec<TableSchema>) -> Result<Box<dyn Source>>;

    /// Full names of the tables that a stored position knows.
    ///
    /// # Errors
    /// `Corrupt` where the parts are malformed.
    fn captured(&self, stored: &BTreeMap<String, String>) -> Result<Vec<String>>;

    /// Removes from the source what a sync made there; tells what was done, a line each. `stored` is the position's parts,
    /// empty where the log knows nothing of it.
    ///
    /// # Errors
    /// `Conflict` where it carries what this log did not make, unless `force`; `Unavailable` where it is not there.
    async fn remove(
        &self,
        sync: &str,
        log_id: &str,
        stored: &BTreeMap<String, String>,
        force: bool,
    ) -> Result<Vec<String>>;

    /// Opens it for comparing.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn reader(&self) -> Result<Box<dyn TableReader>>;
}

/// A database that a sync writes.
#[async_trait]
pub trait SinkConnector: Send + Sync {
    /// Which kind of database it is.
    fn dialect(&self) -> Dialect;

    /// What would go wrong, and its cure: rights, settings, tables that stand in the way. Changes nothing. `log_id` is empty
    /// where no log is known: then nothing is said of whose the target is.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>>;

    /// What becomes of each table, for people, where `preflight` does not tell.
    ///
    /// # Errors
    /// `Unavailable`.
    async fn existing(&self, _sync: &str, _log_id: &str, _tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    /// Opens the target of a sync.
    ///
    /// # Errors
    /// `Conflict` where the sync's positions in it belong to another log.
    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>>;

    /// As [`SinkConnector::open`], after dropping what the target holds under the names of `tables`. Tells which were
    /// dropped.
    ///
    /// # Errors
    /// `Conflict` where another sync of the same log writes one of the tables; nothing is dropped then.
    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)>;

    /// Forgets a sync's positions; its tables stay. `None` where the target is not there or knows nothing of it.
    ///
    /// # Errors
    /// `Conflict` where the positions belong to another log.
    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>>;

    /// Opens it for comparing.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn reader(&self) -> Result<Box<dyn TableReader>>;
}

/// Reads rows of tables for comparing, values as [`Kind`](crate::types::Kind) spells them.
#[async_trait]
pub trait TableReader: Send {
    /// The table as the database declares it, or `None`. A name without a schema means the default one.
    async fn table(&mut self, schema: Option<&str>, name: &str) -> Result<Option<TableSchema>>;

    /// At most `limit` rows whose keys come after `after`, in the database's own order of keys. Fewer where they are large,
    /// and none only at the end.
    async fn rows(&mut self, table: &TableSchema, after: Option<&Row>, limit: usize) -> Result<Vec<Row>>;

    /// The rows of some keys, in the keys' order.
    async fn find(&mut self, table: &TableSchema, keys: &[Row]) -> Result<Vec<Option<Row>>>;
}

/// What one poll of a source found.
#[derive(Debug, Default)]
pub struct Polled {
    /// Tables whose columns are now these: added or widened. They hold for the changes of this poll and all later ones.
    pub evolved: Vec<(usize, TableSchema)>,
    /// Tables whose rows are read once more from here on, since no event tells what a change of columns made of them.
    pub copied_again: Vec<usize>,
    /// The changes, in order; `Change::table` counts in [`Source::tables`].
    pub changes: Vec<Change>,
    /// Tables that the source emptied, before the changes of this poll.
    pub truncated: Vec<usize>,
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

/// How far the source's own log is ahead of what was read, and what the source keeps for us.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceLag {
    /// The position, as the source writes it.
    pub position: Option<String>,
    /// Bytes of the source's log that were not read.
    pub behind_bytes: Option<u64>,
    /// Bytes of its log that the source keeps because of us.
    pub retained_bytes: Option<u64>,
}

/// Reads changes of tables from a database.
///
/// Every future may be dropped at any await; the source is then dropped too, and opened anew at its stored position.
#[async_trait]
pub trait Source: Send {
    /// The tables, with the columns that the changes have.
    fn tables(&self) -> Vec<TableSchema>;

    /// The parts of the position to be stored before the first poll.
    fn position(&self) -> Vec<(String, String)>;

    /// Whether every table's copy begins anew in each run, so that rows already in the log must be left out.
    fn rereads(&self) -> bool;

    /// How far the copy of each table is.
    fn states(&self) -> Vec<TableState>;

    /// Lets the copies of tables begin again, by full name.
    ///
    /// # Errors
    /// `Closed` after a call that was given up.
    async fn restart_copies(&mut self, tables: &[String]) -> Result<()>;

    /// The next changes; none where nothing happened. A source that is told of changes waits for them, for at most
    /// 100 ms.
    ///
    /// # Errors
    /// `Unavailable` may be tried again, on the same source; anything else needs a person.
    async fn poll(&mut self) -> Result<Polled>;

    /// Takes what the server sends while nobody polls, within a bound; the next polls give it. May return at any time.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn read_ahead(&mut self) {}

    /// Everything polled so far is durable, with its position.
    ///
    /// # Errors
    /// `Unavailable` where the source is busy: it is told again later.
    async fn commit(&mut self) -> Result<()>;

    /// How far behind the source this is. Asked for every few seconds.
    ///
    /// # Errors
    /// `Unavailable`; it is asked again later.
    async fn lag(&mut self) -> Result<SourceLag> {
        Ok(SourceLag::default())
    }
}

/// Changes of one topic that belong to one schema, in order.
#[derive(Debug)]
pub struct TopicChanges {
    /// The schema they were written with: topic, table, kinds. Another [`copy_id`](TopicSchema::copy_id) than the target
    /// has means that a whole new copy follows; the same with other columns, that columns were added or widened.
    pub schema: Arc<TopicSchema>,
    /// The changes; none still makes the table.
    pub changes: Vec<Change>,
}

/// Applies changes to tables of a database.
///
/// Every future may be dropped at any await; the sink is then dropped too.
#[async_trait]
pub trait Sink: Send {
    /// How far the target is. What an earlier connection still does is waited for.
    async fn positions(&mut self) -> Result<Positions>;

    /// Whether these topics may be applied to their tables.
    ///
    /// # Errors
    /// `Conflict` names all tables that hold what this log did not write.
    async fn check(&mut self, tables: &[TopicSchema]) -> Result<()>;

    /// Applies changes and stores the next offsets in one transaction of the target; durable when it returns.
    ///
    /// # Errors
    /// Nothing is half applied. `Unavailable` may be tried again, on the same sink.
    async fn put(&mut self, changes: Vec<TopicChanges>, next_offsets: Vec<(String, i64)>) -> Result<()>;

    /// Whether changes of this schema may be applied by lanes: its table is ready, and nothing in it ties rows of two keys
    /// together.
    fn may_be_dealt(&self, _schema: &TopicSchema) -> bool {
        false
    }

    /// Opens a lane of this sink: its [`Sink::put`] gets changes of the lane's keys, and stores how far the lane is.
    ///
    /// # Errors
    /// `Unsupported` where the target is written by one connection.
    async fn lane(&mut self, _lane: Lane) -> Result<Box<dyn Sink>> {
        Err(Error::unsupported("this target is written by one connection"))
    }
}
