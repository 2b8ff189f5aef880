//! Removes what is durable from the source's journal, in short write transactions that never wait.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::capture::Capture;
use super::catalog::TableInfo;
use super::guard::{change_mark, random_id};
use super::install::raise_top;
use super::stop::{Fault, Reason, Stop};
use super::triggers::{COUNTER, journal_name, states_name};
use super::value::{identifier, is_busy, read_row, same_row, sqlite_error};
use crate::Result;

/// The most rows that one prune removes: it holds the write lock for about a millisecond.
const MAX_ROWS: usize = 500;

/// What a prune did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruned {
    /// Removed this many rows; `more` if there were more than one prune may remove. Prune again soon then (after
    /// some 100 ms), or the journal of a busy source grows.
    Rows {
        /// Rows removed.
        rows: usize,
        /// Whether some are left that could go.
        more: bool,
    },
    /// Another program held the write lock.
    Busy,
    /// The position with the next mark is not durable yet: store `position()` and confirm it first.
    NotDurable,
    /// There was nothing to remove.
    Nothing,
}

impl Capture {
    /// Removes journal rows up to the confirmed position, and captured states. Call it at most every ten seconds, but
    /// sooner after `more`. After it, `position()` has a new mark: make it durable with the next changes, or alone.
    ///
    /// # Errors
    ///
    /// [`Fault::Stop`] if the source's mark is not ours any more.
    pub fn prune(&mut self) -> std::result::Result<Pruned, Fault> {
        let Some((seq, next)) = self.durable.clone() else { return Ok(Pruned::NotDurable) };
        if next != self.position.next {
            return Ok(Pruned::NotDurable);
        }
        self.file.check()?;
        if !self.has_rows(seq)? {
            return Ok(Pruned::Nothing);
        }
        let fail = |e| sqlite_error("prune the journal", e);
        self.conn.busy_timeout(Duration::ZERO).map_err(fail)?;
        let pruned = self.prune_locked(seq);
        self.conn.busy_timeout(Duration::from_millis(200)).map_err(fail)?;
        pruned
    }

    /// Whether anything could go. A read: it leaves writers alone when there is nothing to do.
    fn has_rows(&self, seq: i64) -> std::result::Result<bool, Fault> {
        for info in &self.tables {
            let name = &info.schema.name;
            let sql = format!(
                "SELECT EXISTS (SELECT 1 FROM {} WHERE seq <= ?1) OR EXISTS (SELECT 1 FROM {})",
                identifier(&journal_name(name)),
                identifier(&states_name(name))
            );
            match self.conn.prepare_cached(&sql).and_then(|mut s| s.query_row([seq], |row| row.get::<_, bool>(0))) {
                Ok(false) => {}
                Ok(true) => return Ok(true),
                Err(error) if is_busy(&error) => return Ok(true),
                Err(error) => return Err(sqlite_error("look at the journal", error).into()),
            }
        }
        Ok(false)
    }

    fn prune_locked(&mut self, seq: i64) -> std::result::Result<Pruned, Fault> {
        let fail = |e| sqlite_error("prune the journal", e);
        let tx = match self.conn.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(tx) => tx,
            Err(error) if is_busy(&error) => return Ok(Pruned::Busy),
            Err(error) => return Err(fail(error).into()),
        };
        let mut rows = 0;
        for info in &self.tables {
            repair(&tx, info)?;
            let name = &info.schema.name;
            let (journal, states) = (identifier(&journal_name(name)), identifier(&states_name(name)));
            for (sql, bound) in [
                (
                    format!(
                        "DELETE FROM {journal} WHERE seq IN (SELECT seq FROM {journal} WHERE seq <= ?1 ORDER BY seq LIMIT ?2)"
                    ),
                    seq,
                ),
                (
                    format!(
                        "DELETE FROM {states} WHERE rowid IN (SELECT rowid FROM {states} WHERE ?1 IS NOT NULL ORDER BY rowid LIMIT ?2)"
                    ),
                    0,
                ),
            ] {
                let room = i64::try_from(MAX_ROWS - rows).unwrap_or(0);
                if room > 0 {
                    rows += tx.prepare_cached(&sql).and_then(|mut s| s.execute([bound, room])).map_err(fail)?;
                }
            }
            // States may go only if a rowid without one is known to be old.
            raise_top(&tx, info)?;
        }
        if !change_mark(&tx, &self.position.mark, &self.position.next)? {
            return Err(Stop { file: self.path.clone(), table: None, reason: Reason::WentBack }.into());
        }
        let fresh = random_id(&tx)?;
        match tx.commit() {
            Ok(()) => {}
            Err(error) if is_busy(&error) => return Ok(Pruned::Busy),
            Err(error) => return Err(fail(error).into()),
        }
        self.mark_changed(fresh);
        Ok(Pruned::Rows { rows, more: rows >= MAX_ROWS })
    }
}

/// Journals what triggers missed among the states that this prune may remove.
///
/// A statement can change a row and end without AFTER triggers: UPDATE OR REPLACE displaces a parent, whose foreign key
/// action deletes the row being updated. Its BEFORE trigger has left the states, so the change is found here, with the
/// write lock held and no statement under way.
fn repair(tx: &Connection, info: &TableInfo) -> Result<()> {
    let fail = |e| sqlite_error(format!("repair the journal of {}", info.schema.name), e);
    let (states, table) = (identifier(&states_name(&info.schema.name)), identifier(&info.schema.name));
    let count = info.schema.columns.len();
    let column = |i: usize| format!("t.{}", identifier(&info.schema.columns[i].name));
    let list = |each: &dyn Fn(usize) -> String| (0..count).map(each).collect::<Vec<_>>().join(", ");
    let key: Vec<String> = info.key.iter().map(|(i, coll)| format!("{} COLLATE {coll} = c.c{i}", column(*i))).collect();
    let present = info.key.first().map(|(i, _)| format!("{} IS NOT NULL", column(*i))).unwrap_or_default();
    let images = format!("{}, {}", list(&|i| format!("c.c{i}")), list(&column));
    let join = format!("LEFT JOIN {table} t ON {}", key.join(" AND "));
    let sql = format!(
        "SELECT c.rowid, c.live, {present}, {images} FROM \
         (SELECT rowid, * FROM {states} ORDER BY rowid LIMIT {MAX_ROWS}) c {join}"
    );
    let mut missed = Vec::new();
    let mut statement = tx.prepare_cached(&sql).map_err(fail)?;
    let mut rows = statement.query([]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let (live, there): (bool, bool) = (row.get(1).map_err(fail)?, row.get(2).map_err(fail)?);
        let same = !live || same_row(&read_row(row, 3, count)?, &read_row(row, 3 + count, count)?);
        if live != there || !same {
            missed.push(row.get::<_, i64>(0).map_err(fail)?);
        }
    }
    let journal = identifier(&journal_name(&info.schema.name));
    let into = format!("{}, {}", list(&|i| format!("b{i}")), list(&|i| format!("a{i}")));
    for rowid in missed {
        tx.execute(&format!("UPDATE {COUNTER} SET n = n + 1"), []).map_err(fail)?;
        let sql = format!(
            "INSERT INTO {journal}(seq, had, has, {into}) SELECT s.n, c.live, {present}, {images} \
             FROM {COUNTER} s, {states} c {join} WHERE c.rowid = ?1"
        );
        tx.execute(&sql, [rowid]).map_err(fail)?;
        // Even if the row limit keeps the state from going now, it must not be journalled twice.
        tx.execute(&format!("DELETE FROM {states} WHERE rowid = ?1"), [rowid]).map_err(fail)?;
    }
    Ok(())
}
