//! The follower: opens a source, reads what its triggers wrote, and copies the tables meanwhile.
//!
//! The worker calls `read`, appends the changes and the returned position in one transaction of the log, waits until
//! that is durable, and then calls `confirm` with the position. Every ten seconds or so it calls `prune`. A crash
//! anywhere loses nothing: the next open with the last durable position reads the same changes again.
//!
//! A read holds one read transaction for at most its budget. The captured rows come first; only when none remain does
//! the next chunk of a copy follow, in the same transaction: what it sees is what the journal has led to, so the copy
//! needs no watermarks. Pause at least twice the read's time between reads, and writers hardly notice.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::catalog::{TableInfo, connect};
use super::copy;
use super::guard::{SameFile, UNCONFIRMED, change_mark, header, random_id};
use super::install::{
    has_newer_trigger, has_older_names, install_counter, install_table, installed_tables, remove_all, remove_table,
    renew_triggers, require, verify_table,
};
use super::position::{CopyState, Position, TablePosition};
use super::stop::{Fault, Reason, Stop};
use super::triggers::{Variant, journal_name};
use super::value::{identifier, is_busy, read_row, same_row, sqlite_error};
use crate::change::{Change, Op, Row, TableSchema};
use crate::{Error, Result};

/// How long a read waits for a writer that is committing. A waiting reader holds no lock.
const READ_WAIT: Duration = Duration::from_millis(200);

/// The longest read transaction that leaves writers alone, by measurement.
pub const DEFAULT_BUDGET: Duration = Duration::from_millis(15);

/// What one read found.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// The changes, in order; `Change::table` counts in the list given to `open`.
    pub changes: Vec<Change>,
    /// Where the capture is after them. Make it durable together with them.
    pub position: Position,
    /// Whether there is more to read now, or a lock kept this read from looking.
    pub more: bool,
    /// Rows of each table that this read copied.
    pub copied: Vec<(usize, usize)>,
    /// Tables whose copy this read completed.
    pub finished_tables: Vec<usize>,
}

/// Follows one source file.
#[derive(Debug)]
pub struct Capture {
    pub(super) conn: Connection,
    pub(super) path: PathBuf,
    pub(super) file: SameFile,
    /// In the order of the list given to `open`.
    pub(super) tables: Vec<TableInfo>,
    pub(super) position: Position,
    /// The last position that the worker has made durable.
    pub(super) durable: Option<(i64, String)>,
    /// Whether the mark was changed since the open.
    pub(super) marked: bool,
    schema_version: i64,
    /// A trigger of the application is newer than ours.
    stale: bool,
    variant: Variant,
}

impl Capture {
    /// Opens a source at a position, or installs the capture if there is none.
    ///
    /// Tables of the list that the position does not know are installed and copied; tables of the position that are
    /// not in the list, but still exist, are no longer captured. `recopy` names tables to be put back to "not copied" with
    /// their present columns, whatever is wrong with them; a name that no longer exists is forgotten.
    ///
    /// # Errors
    ///
    /// [`Fault::Stop`] if the source is not what the position says; `Unavailable` while it is locked.
    pub fn open(
        path: &Path,
        tables: Vec<TableSchema>,
        position: Option<Position>,
        recopy: &[String],
    ) -> Result<Self, Fault> {
        Self::open_variant(path, tables, position, recopy, Variant::Exact)
    }

    /// As [`Capture::open`], with a chosen variant of the triggers: for tests that prove that the others are wrong.
    #[doc(hidden)]
    pub fn open_variant(
        path: &Path,
        tables: Vec<TableSchema>,
        position: Option<Position>,
        recopy: &[String],
        variant: Variant,
    ) -> Result<Self, Fault> {
        let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let file = SameFile::of(path)?;
        // A prune's commit must not pay for checkpointing what applications wrote.
        conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(open_error)?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open_error)?;
        let names: Vec<String> = tables.into_iter().map(|table| table.name).collect();
        let (infos, position) = match position {
            None => install(&tx, path, &names, variant)?,
            Some(position) => resume(&tx, path, &names, position, recopy, variant)?,
        };
        renew_stale(&tx, path, &infos, variant)?;
        let schema_version = schema_version(&tx)?;
        tx.commit().map_err(open_error)?;
        conn.busy_timeout(READ_WAIT).map_err(open_error)?;
        let path = path.to_owned();
        Ok(Self {
            conn,
            path,
            file,
            tables: infos,
            position,
            durable: None,
            marked: false,
            schema_version,
            stale: false,
            variant,
        })
    }

    /// The present position. After an open, make it durable and confirm it before the first read.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The captured tables with their present columns, in the order of the list given to `open`.
    pub fn tables(&self) -> impl Iterator<Item = &TableSchema> {
        self.tables.iter().map(|info| &info.schema)
    }

    /// Tells the capture that `position` is durable. After an open this changes the source's mark; if another program
    /// holds the write lock, a later call does so.
    ///
    /// # Errors
    ///
    /// [`Fault::Stop`] if the source's mark is not ours any more.
    pub fn confirm(&mut self, position: &Position) -> Result<(), Fault> {
        self.durable = Some((position.seq, position.next.clone()));
        if !self.marked {
            self.change_mark()?;
        }
        Ok(())
    }

    /// Puts one table back to "not copied", with its present columns and fresh triggers. A table that no longer exists
    /// is an error here; name it in `recopy` at the next open to forget it.
    pub fn reset_table(&mut self, name: &str) -> Result<(), Fault> {
        let Some(index) = self.tables.iter().position(|info| info.schema.name.eq_ignore_ascii_case(name)) else {
            return Err(Error::not_found(format!("table {name} is not captured")).into());
        };
        self.conn.busy_timeout(Duration::from_secs(5)).map_err(open_error)?;
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open_error)?;
        let info = require(&tx, name)?;
        install_table(&tx, &info, self.variant)?;
        self.schema_version = schema_version(&tx)?;
        tx.commit().map_err(open_error)?;
        self.conn.busy_timeout(READ_WAIT).map_err(open_error)?;
        self.position.tables[index] = TablePosition { schema: info.schema.clone(), copy: CopyState::NotStarted };
        self.tables[index] = info;
        Ok(())
    }

    /// Reads the next changes in one read transaction of at most `budget`, and at most about `max_rows` of them.
    ///
    /// At least one row is read however short the budget, so a slow disk makes progress. A locked source gives an empty
    /// read with `more` set.
    ///
    /// # Errors
    ///
    /// [`Fault::Stop`] if the source is not what it was.
    pub fn read(&mut self, budget: Duration, max_rows: usize) -> Result<Read, Fault> {
        self.file.check()?;
        let mut read = Read {
            changes: Vec::new(),
            position: self.position.clone(),
            more: true,
            copied: Vec::new(),
            finished_tables: Vec::new(),
        };
        let tx = self.conn.unchecked_transaction().map_err(|e| sqlite_error("begin a read", e))?;
        match tx.prepare_cached("SELECT 1 FROM sqlite_schema").and_then(|mut s| s.exists([])) {
            Ok(_) => {}
            Err(error) if is_busy(&error) => return Ok(read),
            Err(error) => return Err(sqlite_error("begin a read", error).into()),
        }
        let limits = Limits { deadline: Instant::now() + budget, max_rows };
        let version = schema_version(&tx)?;
        let mut stale = self.stale;
        if version != self.schema_version {
            for table in &self.position.tables {
                verify_table(&tx, &self.path, &table.schema, self.variant)?;
                stale |= has_newer_trigger(&tx, &table.schema.name)?;
            }
        }
        let head = self.check_header(&tx)?;
        let done = head == self.position.seq || self.read_journal(&tx, &limits, head, &mut read)?;
        if done {
            read.more = self.copy(&tx, &limits, &mut read)?;
        }
        drop(tx);
        self.schema_version = version;
        self.position = read.position.clone();
        self.stale = stale && !self.renew_triggers()?;
        Ok(read)
    }

    /// Makes our triggers the newest again where they are not. False if the source is locked.
    fn renew_triggers(&mut self) -> Result<bool, Fault> {
        let tx = match self.conn.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(tx) => tx,
            Err(error) if is_busy(&error) => return Ok(false),
            Err(error) => return Err(open_error(error).into()),
        };
        renew_stale(&tx, &self.path, &self.tables, self.variant)?;
        let version = schema_version(&tx)?;
        match tx.commit() {
            Ok(()) => {}
            Err(error) if is_busy(&error) => return Ok(false),
            Err(error) => return Err(open_error(error).into()),
        }
        self.schema_version = version;
        Ok(true)
    }

    /// The source's counter, after making sure that it is the file of the position.
    fn check_header(&self, tx: &Connection) -> Result<i64, Fault> {
        let stop = |reason| Stop { file: self.path.clone(), table: None, reason };
        let header = header(tx)?.ok_or_else(|| stop(Reason::ObjectsGone))?;
        if header.source != self.position.source {
            return Err(stop(Reason::Swapped).into());
        }
        if header.n < self.position.seq || header.mark != self.position.mark {
            return Err(stop(Reason::WentBack).into());
        }
        Ok(header.n)
    }

    /// Reads captured rows of all tables in the order of their sequence. True if none remain.
    fn read_journal(&self, tx: &Connection, limits: &Limits, head: i64, read: &mut Read) -> Result<bool, Fault> {
        let fail = |e| sqlite_error("read the journal", e);
        let mut statements = self
            .tables
            .iter()
            .map(|info| tx.prepare_cached(&journal_sql(info)))
            .collect::<rusqlite::Result<Vec<_>>>()
            .map_err(fail)?;
        let mut streams = Vec::with_capacity(statements.len());
        for (statement, info) in statements.iter_mut().zip(&self.tables) {
            let mut stream = Stream { rows: statement.query([self.position.seq]).map_err(fail)?, next: None };
            stream.advance(info)?;
            streams.push(stream);
        }
        loop {
            let first = streams
                .iter()
                .enumerate()
                .filter_map(|(table, stream)| stream.next.as_ref().map(|entry| (entry.seq, table)))
                .min();
            let Some((seq, table)) = first else { break };
            if seq > self.position.seq && !read.changes.is_empty() && limits.reached(read.changes.len()) {
                return Ok(false);
            }
            if let Some(entry) = streams[table].next.take() {
                self.push_change(table, entry, &mut read.changes)?;
                read.position.seq = seq;
            }
            streams[table].advance(&self.tables[table])?;
        }
        // Counted touches without a row of their own (tables reset since) are behind us too.
        read.position.seq = head;
        Ok(true)
    }

    fn push_change(&self, table: usize, entry: Entry, changes: &mut Vec<Change>) -> Result<(), Fault> {
        let schema = &self.tables[table].schema;
        let key = |row: &Row| schema.key_of(row);
        let change = |op, key, before, after| Change { table, op, key, before, after, sequence: entry.seq };
        match (entry.before, entry.after) {
            (None, None) if entry.null_key => {
                let reason = Reason::NullKey;
                return Err(Stop { file: self.path.clone(), table: Some(schema.name.clone()), reason }.into());
            }
            (None, None) => {}
            (None, Some(after)) => changes.push(change(Op::Create, key(&after), None, Some(after))),
            (Some(before), None) => changes.push(change(Op::Delete, key(&before), Some(before), None)),
            (Some(before), Some(after)) => {
                let (old, new) = (key(&before), key(&after));
                if same_row(&before, &after) {
                    return Ok(());
                }
                if same_row(&old, &new) {
                    changes.push(change(Op::Update, new, Some(before), Some(after)));
                } else {
                    changes.push(change(Op::Delete, old, Some(before), None));
                    changes.push(change(Op::Create, new, None, Some(after)));
                }
            }
        }
        Ok(())
    }

    /// Copies on where the position is. True if some table is not yet copied.
    fn copy(&self, tx: &Connection, limits: &Limits, read: &mut Read) -> Result<bool, Fault> {
        for (index, info) in self.tables.iter().enumerate() {
            let state = &mut read.position.tables[index].copy;
            let after = match state {
                CopyState::Done => continue,
                CopyState::NotStarted => None,
                CopyState::After(key) => Some(key.iter().map(Into::into).collect::<Row>()),
            };
            if !read.changes.is_empty() && limits.reached(read.changes.len()) {
                return Ok(true);
            }
            let room = limits.max_rows.saturating_sub(read.changes.len()).max(1);
            let chunk = copy::chunk(tx, info, after.as_ref(), limits.deadline, room)?;
            if !chunk.rows.is_empty() {
                read.copied.push((index, chunk.rows.len()));
            }
            for row in chunk.rows {
                let key = info.schema.key_of(&row);
                if key.contains(&crate::change::Value::Null) {
                    let table = Some(info.schema.name.clone());
                    return Err(Stop { file: self.path.clone(), table, reason: Reason::NullKey }.into());
                }
                *state = CopyState::After(key.iter().map(Into::into).collect());
                read.changes.push(Change {
                    table: index,
                    op: Op::Read,
                    key,
                    before: None,
                    after: Some(row),
                    sequence: 0,
                });
            }
            if !chunk.done {
                return Ok(true);
            }
            *state = CopyState::Done;
            read.finished_tables.push(index);
        }
        Ok(false)
    }

    /// Changes the source's mark if the durable position names the next one. Silent if the source is locked.
    fn change_mark(&mut self) -> Result<(), Fault> {
        if self.durable.as_ref().is_none_or(|(_, next)| *next != self.position.next) {
            return Ok(());
        }
        let tx = match self.conn.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(tx) => tx,
            Err(error) if is_busy(&error) => return Ok(()),
            Err(error) => return Err(open_error(error).into()),
        };
        if !change_mark(&tx, &self.position.mark, &self.position.next)? {
            return Err(Stop { file: self.path.clone(), table: None, reason: Reason::WentBack }.into());
        }
        let fresh = random_id(&tx)?;
        match tx.commit() {
            Ok(()) => {}
            Err(error) if is_busy(&error) => return Ok(()),
            Err(error) => return Err(open_error(error).into()),
        }
        self.mark_changed(fresh);
        Ok(())
    }

    /// The source now carries the mark that was next.
    pub(super) fn mark_changed(&mut self, fresh: String) {
        self.position.mark = std::mem::replace(&mut self.position.next, fresh);
        self.marked = true;
    }
}

/// Verifies and renews the triggers of tables on which the application made one after us, and those that another version
/// named.
fn renew_stale(tx: &Connection, path: &Path, tables: &[TableInfo], variant: Variant) -> Result<(), Fault> {
    for info in tables {
        let name = &info.schema.name;
        if has_newer_trigger(tx, name)? || has_older_names(tx, name)? {
            verify_table(tx, path, &info.schema, variant)?;
            renew_triggers(tx, info, variant)?;
        }
    }
    Ok(())
}

fn open_error(error: rusqlite::Error) -> Error {
    sqlite_error("open the source", error)
}

fn schema_version(conn: &Connection) -> Result<i64> {
    conn.prepare_cached("PRAGMA schema_version")
        .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
        .map_err(|e| sqlite_error("read the schema version", e))
}

struct Limits {
    deadline: Instant,
    max_rows: usize,
}

impl Limits {
    fn reached(&self, rows: usize) -> bool {
        rows >= self.max_rows || Instant::now() >= self.deadline
    }
}

/// One row of a journal.
struct Entry {
    seq: i64,
    before: Option<Row>,
    after: Option<Row>,
    null_key: bool,
}

struct Stream<'a> {
    rows: rusqlite::Rows<'a>,
    next: Option<Entry>,
}

impl Stream<'_> {
    fn advance(&mut self, info: &TableInfo) -> Result<()> {
        let fail = |e| sqlite_error("read the journal", e);
        let count = info.schema.columns.len();
        self.next = match self.rows.next().map_err(fail)? {
            None => None,
            Some(row) => {
                let (had, has): (Option<bool>, bool) = (row.get(1).map_err(fail)?, row.get(2).map_err(fail)?);
                Some(Entry {
                    seq: row.get(0).map_err(fail)?,
                    before: had.unwrap_or(false).then(|| read_row(row, 3, count)).transpose()?,
                    after: has.then(|| read_row(row, 3 + count, count)).transpose()?,
                    null_key: had.is_none(),
                })
            }
        };
        Ok(())
    }
}

fn journal_sql(info: &TableInfo) -> String {
    let columns =
        |prefix: &str| -> String { (0..info.schema.columns.len()).map(|i| format!(", {prefix}{i}")).collect() };
    format!(
        "SELECT seq, had, has{}{} FROM {} WHERE seq > ?1 ORDER BY seq",
        columns("b"),
        columns("a"),
        identifier(&journal_name(&info.schema.name))
    )
}

type Opened = (Vec<TableInfo>, Position);

/// The first open: puts the capture in. What an open that was never confirmed left is replaced.
fn install(tx: &Connection, path: &Path, names: &[String], variant: Variant) -> Result<Opened, Fault> {
    let file_stop = |reason| Stop { file: path.to_owned(), table: None, reason };
    match header(tx)? {
        Some(header) if header.mark != UNCONFIRMED => return Err(file_stop(Reason::Leftover).into()),
        None if !installed_tables(tx)?.is_empty() => return Err(file_stop(Reason::Leftover).into()),
        _ => remove_all(tx)?,
    }
    install_counter(tx)?;
    let mut position = Position {
        source: header(tx)?.map(|header| header.source).unwrap_or_default(),
        seq: 0,
        mark: UNCONFIRMED.into(),
        next: random_id(tx)?,
        tables: Vec::new(),
    };
    let mut infos = Vec::new();
    for name in names {
        let info = require(tx, name)?;
        install_table(tx, &info, variant)?;
        position.tables.push(TablePosition { schema: info.schema.clone(), copy: CopyState::NotStarted });
        infos.push(info);
    }
    Ok((infos, position))
}

/// An open at a position: verifies everything before anything is changed.
fn resume(
    tx: &Connection,
    path: &Path,
    names: &[String],
    mut position: Position,
    recopy: &[String],
    variant: Variant,
) -> Result<Opened, Fault> {
    let stop =
        |table: Option<&str>, reason| Fault::from(Stop { file: path.to_owned(), table: table.map(Into::into), reason });
    let header = header(tx)?.ok_or_else(|| stop(None, Reason::ObjectsGone))?;
    if header.source != position.source {
        return Err(stop(None, Reason::Swapped));
    }
    let known = header.mark == position.mark || header.mark == position.next;
    if !known || header.n < position.seq {
        return Err(stop(None, Reason::WentBack));
    }
    position.mark = header.mark;
    position.next = random_id(tx)?;
    let wanted = |name: &str, list: &[String]| list.iter().any(|other| other.eq_ignore_ascii_case(name));
    let mut kept = Vec::new();
    for table in std::mem::take(&mut position.tables) {
        let name = &table.schema.name;
        let exists = super::catalog::inspect_one(tx, name)?.is_some();
        if wanted(name, recopy) || (exists && !wanted(name, names)) {
            remove_table(tx, name)?;
        } else {
            kept.push((verify_table(tx, path, &table.schema, variant)?, table));
        }
    }
    let mut infos = Vec::new();
    for name in names {
        let found = kept.iter().position(|(info, _)| info.schema.name.eq_ignore_ascii_case(name));
        let (info, table) = match found {
            Some(at) => kept.swap_remove(at),
            None => {
                let info = require(tx, name)?;
                install_table(tx, &info, variant)?;
                let table = TablePosition { schema: info.schema.clone(), copy: CopyState::NotStarted };
                (info, table)
            }
        };
        infos.push(info);
        position.tables.push(table);
    }
    Ok((infos, position))
}
