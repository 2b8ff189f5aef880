//! Applies changes to a target file. Rows and positions are one transaction of the target, so each change counts once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params, params_from_iter};

use super::catalog::{connect, inspect_one, open_source};
use super::sink_table::{add_column_sql, create_sql, delete_sql, found, state, unfit, update_sql, upsert_sql, writers};
use super::value::{Bound, identifier, sqlite_error};
use crate::change::{Change, Op, Row, TableSchema, Value};
use crate::connector::{Finding, Level};
use crate::target::existing::{self, OnExisting, check_kept, refuse_written};
use crate::target::{Existing, POSITIONS, REPLACE};
use crate::types::{Dialect, Kind};
use crate::{Error, ErrorKind, Result};

/// Changes of one topic, in order: topic, table, the schema's id in the log, changes.
pub type TopicChanges<'a> = (&'a str, &'a TableSchema, u64, Vec<Change>);

/// One sync's target file.
///
/// A target made here is in WAL mode, so that programs may read it while changes arrive; an existing file keeps its mode.
///
/// # Durability
///
/// When [`SqliteSink::apply`] returns, rows and positions are on the disk (`synchronous = FULL`).
#[derive(Debug)]
pub struct SqliteSink {
    conn: Connection,
    path: PathBuf,
    sync: String,
    log_id: String,
    on_existing: OnExisting,
}

impl SqliteSink {
    /// Opens the target of a sync; makes the file if there is none.
    ///
    /// # Errors
    ///
    /// `Conflict` if this sync's positions in the file belong to another log; `Unavailable` if it stays locked for 5 s.
    pub fn open(path: &Path, sync_name: &str, log_id: &str) -> Result<Self> {
        let sink = Self::open_any(path, sync_name, log_id)?;
        sink.check_owner()?;
        Ok(sink)
    }

    fn open_any(path: &Path, sync_name: &str, log_id: &str) -> Result<Self> {
        let fail = |e| sqlite_error(format!("open target {}", path.display()), e);
        let fresh = !path.exists();
        let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
        if fresh {
            conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).map_err(fail)?;
        }
        conn.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        // A target's own foreign keys would refuse rows that arrive topic by topic.
        conn.pragma_update(None, "foreign_keys", false).map_err(fail)?;
        let on_existing = OnExisting::Refuse;
        Ok(Self { conn, path: path.to_owned(), sync: sync_name.to_owned(), log_id: log_id.to_owned(), on_existing })
    }

    /// The same, which does this with tables that exist.
    pub fn with_existing(self, on_existing: OnExisting) -> Self {
        Self { on_existing, ..self }
    }

    fn has_positions(&self) -> Result<bool> {
        Ok(state(&self.conn, POSITIONS)? != Existing::No)
    }

    fn check_owner(&self) -> Result<()> {
        if !self.has_positions()? {
            return Ok(());
        }
        let other: Option<String> = self
            .conn
            .query_row(
                &format!("SELECT log_id FROM {POSITIONS} WHERE sync = ?1 AND log_id <> ?2 LIMIT 1"),
                params![self.sync, self.log_id],
                |row| row.get(0),
            )
            .optional()
            .map_err(|e| sqlite_error("read the target's positions", e))?;
        match other {
            None => Ok(()),
            Some(other) => Err(Error::conflict(format!(
                "target {} was filled by sync {} from another log ({other}, this is {}): use the old data directory, or name a new \
                 target file, or drop the sync's tables there and copy them anew: {REPLACE}",
                self.path.display(),
                self.sync,
                self.log_id
            ))),
        }
    }

    /// The next offset to apply, by topic.
    pub fn positions(&self) -> Result<BTreeMap<String, i64>> {
        if !self.has_positions()? {
            return Ok(BTreeMap::new());
        }
        let fail = |e| sqlite_error("read the target's positions", e);
        let mut statement = self
            .conn
            .prepare_cached(&format!("SELECT topic, next_offset FROM {POSITIONS} WHERE sync = ?1"))
            .map_err(fail)?;
        let rows = statement.query_map([&self.sync], |row| Ok((row.get(0)?, row.get(1)?))).map_err(fail)?;
        rows.collect::<rusqlite::Result<_>>().map_err(fail)
    }

    /// Whether topics may be applied to their tables. Call it before the first `apply` of a topic.
    ///
    /// # Errors
    ///
    /// `Conflict` names all tables that hold rows which this log did not write, or are empty but of another shape.
    pub fn check_targets(&self, tables: &[(String, TableSchema)]) -> Result<()> {
        let known = self.has_positions()?;
        let (mut filled, mut unfit) = (Vec::new(), Vec::new());
        let writers = writers(&self.conn)?;
        for (topic, schema) in tables {
            if stored_schema(&self.conn, &self.sync, topic, known)?.is_some() {
                continue;
            }
            let existing = state(&self.conn, &schema.name)?;
            if existing != Existing::No {
                let own = (self.sync.as_str(), topic.as_str());
                refuse_written(self.on_existing, &self.log_id, Dialect::Sqlite, own, schema, &writers)?;
            }
            if self.on_existing.refuses(existing) {
                filled.push(schema.name.as_str());
            } else if self.on_existing.keeps(existing)
                && let Some(why) = self.misfit(schema)?
            {
                if self.on_existing == OnExisting::Merge {
                    return Err(Error::conflict(format!(
                        "target table {} in {} does not fit the source and cannot be merged into: it {why}; change it, leave \
                         it out, or drop it and copy it anew: {REPLACE}",
                        schema.name,
                        self.path.display()
                    )));
                }
                unfit.push(schema.name.as_str());
            }
        }
        if filled.is_empty() && unfit.is_empty() {
            return Ok(());
        }
        let path = self.path.display();
        let mut faults = Vec::new();
        match filled[..] {
            [] => {}
            [one] => {
                faults.push(format!("target table {one} in {path} exists and holds rows that this log did not write"))
            }
            _ => faults.push(format!(
                "target tables {} in {path} exist and hold rows that this log did not write",
                filled.join(", ")
            )),
        }
        match unfit[..] {
            [] => {}
            [one] => faults.push(format!(
                "target table {one} in {path} is empty but has other columns, types or another key than the source"
            )),
            _ => faults.push(format!(
                "target tables {} in {path} are empty but have other columns, types or another key than the source",
                unfit.join(", ")
            )),
        }
        let them = if filled.len() + unfit.len() == 1 { "it" } else { "them" };
        Err(Error::conflict(format!(
            "{}; name another target file, leave {them} out, or drop {them} and copy {them} anew: {REPLACE}",
            faults.join("; ")
        )))
    }

    /// Drops the tables that a sync would write, whoever wrote them, and forgets what the file knows of the sync: it then
    /// is filled anew. Tells which tables were dropped.
    ///
    /// # Errors
    ///
    /// `Conflict` where another sync of the same log writes one of the tables, or a view has its name. Nothing is dropped
    /// then.
    pub fn replace(path: &Path, sync: &str, log_id: &str, tables: &[(String, TableSchema)]) -> Result<Vec<String>> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let mut sink = Self::open_any(path, sync, log_id)?;
        let known = sink.has_positions()?;
        let fail = |e| sqlite_error(format!("replace tables of target {}", path.display()), e);
        let tx = sink.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let mut dropped = Vec::new();
        for (topic, schema) in tables {
            if known {
                give_up_rows_of_others(&tx, sync, log_id, topic, schema)?;
            }
            if state(&tx, &schema.name)? != Existing::No {
                tx.execute_batch(&format!("DROP TABLE {}", identifier(&schema.name))).map_err(fail)?;
                dropped.push(schema.name.clone());
            }
        }
        if known {
            tx.execute(&format!("DELETE FROM {POSITIONS} WHERE sync = ?1"), [sync]).map_err(fail)?;
        }
        tx.commit().map_err(fail)?;
        Ok(dropped)
    }

    /// What becomes of each table of the target, for people.
    ///
    /// # Errors
    /// `Unavailable` where the file cannot be read.
    pub fn findings(
        path: &Path,
        (sync, log_id): (&str, &str),
        on_existing: OnExisting,
        tables: &[(String, TableSchema)],
    ) -> Result<Vec<Finding>> {
        if !path.exists() {
            let made = |(_, schema): &(String, TableSchema)| {
                existing::finding(on_existing, Existing::No, schema, None, Ok(()))
            };
            return Ok(tables.iter().map(made).collect());
        }
        let conn = open_source(path)?;
        let known = state(&conn, POSITIONS)? != Existing::No;
        let writers = writers(&conn)?;
        let sink = Self { conn, path: path.to_owned(), sync: sync.to_owned(), log_id: log_id.to_owned(), on_existing };
        let finding = |(topic, schema): &(String, TableSchema)| {
            if stored_schema(&sink.conn, sync, topic, known)?.is_some() {
                return Ok(existing::own(schema));
            }
            let existing = match state(&sink.conn, &schema.name) {
                Ok(existing) => existing,
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    return Ok(Finding::new(&schema.name, Level::Refuse, error.to_string(), None));
                }
                Err(error) => return Err(error),
            };
            let misfit = if existing == Existing::No { None } else { sink.misfit(schema)? };
            let written = refuse_written(on_existing, log_id, Dialect::Sqlite, (sync, topic), schema, &writers);
            let mut finding = existing::finding(on_existing, existing, schema, misfit, written);
            if finding.level == Level::Refuse
                && let Some(said) = finding.message.strip_prefix("it ")
            {
                finding.message = format!("target table {} in {} {said}", schema.name, path.display());
            }
            Ok(finding)
        };
        tables.iter().map(finding).collect()
    }

    /// An empty table that somebody made beforehand is used if it has the same columns and key; one to merge into may have
    /// more columns, which need no value.
    fn misfit(&self, schema: &TableSchema) -> Result<Option<String>> {
        if self.on_existing == OnExisting::Merge {
            return unfit(&self.conn, schema);
        }
        let shape = |schema: &TableSchema| -> Vec<(String, String, Option<u32>)> {
            let lower = |text: &str| text.to_ascii_lowercase();
            let mut all: Vec<_> =
                schema.columns.iter().map(|c| (lower(&c.name), lower(&c.declared_type), c.key)).collect();
            all.sort();
            all
        };
        let same = inspect_one(&self.conn, &schema.name)?.is_some_and(|found| shape(&found.schema) == shape(schema));
        Ok((!same).then(|| "has other columns, types or another key than the source".to_owned()))
    }

    /// Applies changes and stores the next offsets in one transaction.
    ///
    /// Missing tables are made. A table whose stored schema id differs is dropped and made anew: its topic then carries a
    /// whole new copy. Changes of a topic are applied in order; a topic may come more than once.
    ///
    /// # Errors
    ///
    /// Nothing is half applied. `Unavailable` if the target stays locked for 5 s or its disk is full; `Conflict` as
    /// [`SqliteSink::check_targets`], or if the target's own constraints refuse a row.
    pub fn apply(&mut self, changes: &[TopicChanges<'_>], next_offsets: &[(&str, i64)]) -> Result<()> {
        let fail = |e| sqlite_error(format!("apply to target {}", self.path.display()), e);
        let tx = rusqlite::Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(fail)?;
        tx.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {POSITIONS}(sync TEXT NOT NULL, log_id TEXT NOT NULL, topic TEXT NOT NULL, \
             next_offset INTEGER NOT NULL, schema INTEGER, PRIMARY KEY(sync, topic))"
        ))
        .map_err(fail)?;
        for (topic, schema, schema_id, rows) in changes {
            self.prepare_table(&tx, topic, schema, *schema_id)?;
            apply_rows(&tx, schema, rows)?;
        }
        let mut statement = tx
            .prepare_cached(&format!(
                "INSERT INTO {POSITIONS}(sync, log_id, topic, next_offset) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT(sync, topic) DO UPDATE SET next_offset = excluded.next_offset"
            ))
            .map_err(fail)?;
        for (topic, next) in next_offsets {
            statement.execute(params![self.sync, self.log_id, topic, next]).map_err(fail)?;
        }
        drop(statement);
        tx.commit().map_err(fail)
    }

    /// Makes the topic's table be there with this schema.
    fn prepare_table(&self, tx: &Connection, topic: &str, schema: &TableSchema, schema_id: u64) -> Result<()> {
        let fail = |e| sqlite_error(format!("make target table {}", schema.name), e);
        // SQLite has no unsigned integers: the id is kept by its bits.
        let id = schema_id.cast_signed();
        let stored = stored_schema(tx, &self.sync, topic, true)?;
        if stored == Some(Some(id)) {
            return add_columns(tx, schema);
        }
        let ours = matches!(stored, Some(Some(_)));
        if !ours {
            self.check_targets(&[(topic.to_owned(), schema.clone())])?;
        }
        let present = if ours { found(tx, schema)? } else { None };
        if let Some(present) = present.filter(|_| self.on_existing == OnExisting::Merge) {
            // Another copy begins. Rows that only the target has would go with the table.
            let optional = |name: &str| present.optional.iter().any(|own| own.eq_ignore_ascii_case(name));
            check_kept(schema, &present.table, optional)?;
            add_columns(tx, schema)?;
        } else if ours || self.on_existing == OnExisting::Replace {
            tx.execute_batch(&format!("DROP TABLE IF EXISTS {}", identifier(&schema.name))).map_err(fail)?;
        }
        if !ours && self.on_existing == OnExisting::Replace {
            // What is left of writers are those of other logs.
            let writers = writers(tx)?;
            for other in existing::same_table(Dialect::Sqlite, (&self.sync, topic), &writers) {
                let forget = format!("DELETE FROM {POSITIONS} WHERE sync = ?1 AND topic = ?2");
                tx.execute(&forget, params![other.sync, other.topic]).map_err(fail)?;
            }
        }
        if state(tx, &schema.name)? == Existing::No {
            tx.execute_batch(&create_sql(schema)).map_err(fail)?;
        }
        tx.execute(
            &format!(
                "INSERT INTO {POSITIONS}(sync, log_id, topic, next_offset, schema) VALUES (?1, ?2, ?3, 0, ?4) \
                 ON CONFLICT(sync, topic) DO UPDATE SET schema = excluded.schema"
            ),
            params![self.sync, self.log_id, topic, id],
        )
        .map_err(fail)?;
        Ok(())
    }

    /// Forgets this sync's positions; its tables stay. Our own table goes when no sync is left in it.
    pub fn forget(&mut self, sync: &str) -> Result<()> {
        if !self.has_positions()? {
            return Ok(());
        }
        let fail = |e| sqlite_error("forget the sync's positions", e);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        tx.execute(&format!("DELETE FROM {POSITIONS} WHERE sync = ?1"), [sync]).map_err(fail)?;
        if state(&tx, POSITIONS)? == Existing::Empty {
            tx.execute_batch(&format!("DROP TABLE {POSITIONS}")).map_err(fail)?;
        }
        tx.commit().map_err(fail)
    }
}

/// Forgets that syncs of other logs wrote a table that is about to go; refuses where one of this log does.
fn give_up_rows_of_others(tx: &Connection, sync: &str, log_id: &str, topic: &str, schema: &TableSchema) -> Result<()> {
    let fail = |e| sqlite_error("read the target's positions", e);
    let name = &schema.name;
    let suffix = topic.strip_prefix(sync).unwrap_or(topic);
    let others = format!("FROM {POSITIONS} WHERE sync <> ?1 AND topic = sync || ?2");
    let own: Option<String> = tx
        .query_row(&format!("SELECT sync {others} AND log_id = ?3 LIMIT 1"), [sync, suffix, log_id], |row| row.get(0))
        .optional()
        .map_err(fail)?;
    if let Some(other) = own {
        return Err(Error::conflict(format!(
            "target table {name} is written by sync {other} of this log: remove that one first"
        )));
    }
    tx.execute(&format!("DELETE {others}"), [sync, suffix]).map(drop).map_err(fail)
}

/// The schema id stored for a topic: none without a row, an inner none for a row without a table.
fn stored_schema(conn: &Connection, sync: &str, topic: &str, exists: bool) -> Result<Option<Option<i64>>> {
    if !exists {
        return Ok(None);
    }
    conn.prepare_cached(&format!("SELECT schema FROM {POSITIONS} WHERE sync = ?1 AND topic = ?2"))
        .and_then(|mut statement| statement.query_row([sync, topic], |row| row.get(0)).optional())
        .map_err(|e| sqlite_error("read the target's positions", e))
}

fn apply_rows(tx: &Connection, schema: &TableSchema, changes: &[Change]) -> Result<()> {
    let fail = |e: rusqlite::Error| {
        let failed = sqlite_error(format!("apply to target table {}", schema.name), e);
        if failed.kind() == ErrorKind::Conflict {
            return failed.context("the target's own columns or constraints refuse a row of the source");
        }
        failed
    };
    let mut upsert = tx.prepare_cached(&upsert_sql(schema)).map_err(fail)?;
    let mut delete = tx.prepare_cached(&delete_sql(schema)).map_err(fail)?;
    let mut changes = changes.iter().peekable();
    while let Some(change) = changes.next() {
        match &change.after {
            Some(row) if row.contains(&Value::Unchanged) => {
                check_width(schema, row)?;
                update_told(tx, schema, &change.key, row).map_err(fail)?;
            }
            Some(row) => {
                check_width(schema, row)?;
                upsert.execute(params_from_iter(row.iter().map(Bound))).map_err(fail)?;
            }
            None => {
                // The row gets another key, and keeps what is not told.
                let moved = changes.peek().filter(|next| next.op == Op::Create && next.sequence == change.sequence);
                let moved = moved.and_then(|next| next.after.as_ref()).filter(|row| row.contains(&Value::Unchanged));
                if let Some(row) = moved {
                    check_width(schema, row)?;
                    update_told(tx, schema, &change.key, row).map_err(fail)?;
                    changes.next();
                    continue;
                }
                delete.execute(params_from_iter(change.key.iter().map(Bound))).map_err(fail)?;
            }
        }
    }
    Ok(())
}

/// Updates the columns of a row whose values are told.
fn update_told(tx: &Connection, schema: &TableSchema, key: &Row, row: &Row) -> rusqlite::Result<()> {
    let told: Vec<usize> = (0..row.len()).filter(|&i| row[i] != Value::Unchanged).collect();
    let values = told.iter().map(|&i| &row[i]).chain(key);
    let updated = tx.prepare_cached(&update_sql(schema, &told))?.execute(params_from_iter(values.map(Bound)))?;
    if updated == 0 {
        tracing::warn!(table = schema.name, "an update of a row that the target does not have");
    }
    Ok(())
}

/// Adds columns that a table does not have yet. What SQLite cannot change about the others is refused.
fn add_columns(tx: &Connection, schema: &TableSchema) -> Result<()> {
    let fail = |e| sqlite_error(format!("change the columns of target table {}", schema.name), e);
    let mut statement = tx.prepare_cached("SELECT name, type FROM pragma_table_info(?1)").map_err(fail)?;
    let rows = statement.query_map([&schema.name], |row| Ok((row.get(0)?, row.get(1)?))).map_err(fail)?;
    let found: Vec<(String, String)> = rows.collect::<rusqlite::Result<_>>().map_err(fail)?;
    for column in &schema.columns {
        match found.iter().find(|(name, _)| name.eq_ignore_ascii_case(&column.name)) {
            None => tx.execute_batch(&add_column_sql(schema, column)).map_err(fail)?,
            Some((_, declared)) if Kind::of_sqlite(declared) != Kind::of_sqlite(&column.declared_type) => {
                return Err(Error::conflict(format!(
                    "column {} of target table {} is {declared} and should be {}, which SQLite cannot change; to copy the \
                     table anew: tidemill sync run FILE --recopy {}",
                    column.name, schema.name, column.declared_type, schema.name
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn check_width(schema: &TableSchema, row: &Row) -> Result<()> {
    if row.len() == schema.columns.len() {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a row of {} has {} values, the table {} columns",
        schema.name,
        row.len(),
        schema.columns.len()
    )))
}
