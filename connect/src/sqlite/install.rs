//! Puts the capture's objects into a source, verifies them, and takes them out again.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::catalog::{TableInfo, connect, inspect_one, is_reserved};
use super::guard::UNCONFIRMED;
use super::stop::{Fault, Reason, Stop};
use super::triggers::{COUNTER, CURE, NO_ROWID, Variant, journal_name, objects, states_name, top_name};
use super::value::{identifier, sqlite_error};
use crate::change::TableSchema;
use crate::{Error, Result};
use tidemill_core::suggest::nearest;

/// Makes the counter row with a fresh identity and no confirmed mark.
pub(super) fn install_counter(conn: &Connection) -> Result<()> {
    conn.execute_batch(&format!(
        "CREATE TABLE {COUNTER}(n INTEGER, source TEXT, mark TEXT); \
         INSERT INTO {COUNTER} VALUES (0, lower(hex(randomblob(16))), '{UNCONFIRMED}')"
    ))
    .map_err(|e| sqlite_error("install the capture's counter", e))
}

/// Makes the objects of one table, after removing what an earlier capture of it left.
pub(super) fn install_table(conn: &Connection, info: &TableInfo, variant: Variant) -> Result<()> {
    let name = &info.schema.name;
    if let Some(refusal) = info.refusals.first() {
        return Err(Error::new(crate::ErrorKind::Unsupported, format!("{}; {}", refusal.message, refusal.cure)));
    }
    remove_table(conn, name)?;
    for object in objects(info, variant) {
        conn.execute_batch(&object.sql).map_err(|e| sqlite_error(format!("install the capture of table {name}"), e))?;
    }
    raise_top(conn, info)
}

/// Notes the greatest rowid of a rowid table, with the write lock held and no statement under way.
pub(super) fn raise_top(conn: &Connection, info: &TableInfo) -> Result<()> {
    let Some((alias, _)) = info.key.first().filter(|_| info.rowid_alias) else { return Ok(()) };
    let name = &info.schema.name;
    let (top, table, column) =
        (identifier(&top_name(name)), identifier(name), identifier(&info.schema.columns[*alias].name));
    let fail = |e| sqlite_error(format!("note the greatest rowid of {name}"), e);
    conn.execute(&format!("DELETE FROM {top}"), []).map_err(fail)?;
    conn.execute(&format!("INSERT INTO {top}(id) SELECT ifnull(max(t.{column}), {NO_ROWID}) FROM {table} t"), [])
        .map_err(fail)?;
    Ok(())
}

/// Removes the objects of one table; the table itself may be gone or renamed.
pub(super) fn remove_table(conn: &Connection, name: &str) -> Result<()> {
    let fail = |e| sqlite_error(format!("remove the capture of table {name}"), e);
    let mut statement = conn
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND substr(name, 1, 4) = '_tm_' \
             AND (tbl_name = ?1 COLLATE NOCASE OR name LIKE '_tm___\\_' || replace(replace(replace(?1, '\\', '\\\\'), '%', '\\%'), '_', '\\_') || ' (%' ESCAPE '\\')",
        )
        .map_err(fail)?;
    let triggers = statement
        .query_map([name], |row| row.get::<_, String>(0))
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<_>>>()
        .map_err(fail)?;
    for trigger in triggers {
        conn.execute_batch(&format!("DROP TRIGGER IF EXISTS {}", identifier(&trigger))).map_err(fail)?;
    }
    for table in [journal_name(name), states_name(name), top_name(name)] {
        conn.execute_batch(&format!("DROP TABLE IF EXISTS {}", identifier(&table))).map_err(fail)?;
    }
    Ok(())
}

/// Removes every object of ours.
pub(super) fn remove_all(conn: &Connection) -> Result<()> {
    let fail = |e| sqlite_error("remove the capture", e);
    let mut statement = conn
        .prepare(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'table') AND substr(name, 1, 4) = '_tm_' \
             ORDER BY type DESC",
        )
        .map_err(fail)?;
    let found = statement
        .query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<_>>>()
        .map_err(fail)?;
    for (kind, name) in found {
        conn.execute_batch(&format!("DROP {kind} IF EXISTS {}", identifier(&name))).map_err(fail)?;
    }
    Ok(())
}

/// Removes the capture from a source: of the named tables, or all of it if `tables` is `None`.
///
/// When the last table's capture is gone, the counter goes too; `sqlite_schema` is then as before.
///
/// # Errors
///
/// `NotFound` without the file, `Unavailable` while another program holds the write lock for more than 5 s.
pub fn uninstall(path: &Path, tables: Option<&[String]>) -> Result<()> {
    let fail = |e| sqlite_error("remove the capture", e);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    match tables {
        None => remove_all(&tx)?,
        Some(names) => {
            for name in names {
                remove_table(&tx, name)?;
            }
            let left: i64 = tx
                .query_row(
                    "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 8) = '_tm_cap_'",
                    [],
                    |row| row.get(0),
                )
                .map_err(fail)?;
            if left == 0 {
                remove_all(&tx)?;
            }
        }
    }
    tx.commit().map_err(fail)
}

/// Removes the triggers and the journal of one table, so that it can be altered. The rest of the capture stays, and
/// stops at this table until it is copied anew. The table's name as it was captured.
///
/// # Errors
///
/// `NotFound` where the file or a capture of the table is not there; `Unavailable` while another program holds the write
/// lock for more than 5 s.
pub fn release(path: &Path, table: &str) -> Result<String> {
    let fail = |e| sqlite_error(format!("release table {table}"), e);
    let mut conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    let captured = installed_tables(&tx)?;
    let Some(name) = captured.iter().find(|name| name.eq_ignore_ascii_case(table)) else {
        let hint = nearest(table, captured.iter().map(String::as_str));
        let hint = hint.map(|name| format!("; the nearest is {name}")).unwrap_or_default();
        return Err(Error::not_found(format!("no capture of table {table} in {}{hint}", path.display())));
    };
    remove_table(&tx, name)?;
    tx.commit().map_err(fail)?;
    Ok(name.clone())
}

/// Verifies that a captured table is as the position has it and that its triggers are ours, unchanged.
pub(super) fn verify_table(
    conn: &Connection,
    file: &Path,
    captured: &TableSchema,
    variant: Variant,
) -> std::result::Result<TableInfo, Fault> {
    let name = &captured.name;
    let stop = |reason| Fault::from(Stop { file: file.to_owned(), table: Some(name.clone()), reason });
    let Some(info) = inspect_one(conn, name)? else { return Err(stop(Reason::TableDropped)) };
    if info.schema != *captured {
        return Err(stop(Reason::ColumnsChanged(captured.changes_to(&info.schema))));
    }
    if let Some(refusal) = info.refusals.first() {
        return Err(stop(Reason::Refused(refusal.message.clone())));
    }
    let fail = |e| sqlite_error(format!("verify the capture of table {name}"), e);
    let mut statement = conn
        .prepare_cached(
            "SELECT name, sql FROM sqlite_schema WHERE type = ?1 AND CASE type WHEN 'trigger' \
             THEN substr(name, 1, length(?3)) = ?3 AND tbl_name = ?4 COLLATE NOCASE ELSE name = ?2 END",
        )
        .map_err(fail)?;
    let mut missing = false;
    let mut changed = false;
    for object in objects(&info, variant) {
        let mut rows = statement.query(params![object.kind, object.name, object.stem, name]).map_err(fail)?;
        match rows.next().map_err(fail)? {
            None => missing |= object.kind != "index",
            Some(row) => {
                let (found, sql): (String, String) = (row.get(0).map_err(fail)?, row.get(1).map_err(fail)?);
                changed |= sql != object.sql_as(&found);
            }
        }
        changed |= missing;
    }
    if missing {
        return Err(stop(Reason::TriggersGone));
    }
    if changed || !indexes_fit(conn, &info, variant)? {
        return Err(stop(Reason::IndexesChanged));
    }
    Ok(info)
}

/// Whether the states table has exactly the indexes that the unique indexes ask for.
fn indexes_fit(conn: &Connection, info: &TableInfo, variant: Variant) -> Result<bool> {
    let expected = objects(info, variant).iter().filter(|object| object.kind == "index").count();
    let found: i64 = conn
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?1 AND sql IS NOT NULL",
            [states_name(&info.schema.name)],
            |row| row.get(0),
        )
        .map_err(|e| sqlite_error("count the capture's indexes", e))?;
    Ok(usize::try_from(found) == Ok(expected))
}

/// Whether the application made a trigger after ours. The newest fires first, and one that fails under OR FAIL, or calls
/// RAISE(IGNORE), would keep ours from firing although the row stays changed. Ours must be the newest.
pub(super) fn has_newer_trigger(conn: &Connection, table: &str) -> Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
         AND substr(name, 1, 4) <> '_tm_' AND rowid > (SELECT min(rowid) FROM sqlite_schema \
         WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND substr(name, 1, 4) = '_tm_'))",
    )
    .and_then(|mut statement| statement.query_row([table], |row| row.get(0)))
    .map_err(|e| sqlite_error("look at the application's triggers", e))
}

/// Whether another version of this program named our triggers: the cure in their names is not this version's.
pub(super) fn has_older_names(conn: &Connection, table: &str) -> Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE \
         AND substr(name, 1, 4) = '_tm_' AND instr(name, ?2) = 0)",
    )
    .and_then(|mut statement| statement.query_row([table, CURE], |row| row.get(0)))
    .map_err(|e| sqlite_error("look at the names of the triggers", e))
}

/// Makes our triggers anew, so that they are the newest and fire first. The journal and the states stay.
pub(super) fn renew_triggers(conn: &Connection, info: &TableInfo, variant: Variant) -> Result<()> {
    let name = &info.schema.name;
    let fail = |e| sqlite_error(format!("renew the triggers of table {name}"), e);
    for trigger in triggers_of(conn, name)? {
        conn.execute_batch(&format!("DROP TRIGGER {}", identifier(&trigger))).map_err(fail)?;
    }
    for object in objects(info, variant).iter().filter(|object| object.kind == "trigger") {
        conn.execute_batch(&object.sql).map_err(fail)?;
    }
    Ok(())
}

/// The names of our triggers on a table.
fn triggers_of(conn: &Connection, table: &str) -> Result<Vec<String>> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND substr(name, 1, 4) = '_tm_'";
    let fail = |e| sqlite_error(format!("list the triggers of table {table}"), e);
    let mut statement = conn.prepare_cached(sql).map_err(fail)?;
    let names = statement.query_map([table], |row| row.get(0)).map_err(fail)?;
    names.collect::<rusqlite::Result<_>>().map_err(fail)
}

/// Whether an AFTER trigger's text holds RAISE(IGNORE) or RAISE(FAIL).
pub(super) fn ends_triggers(sql: &str) -> bool {
    let text: String = sql.to_ascii_lowercase().split_whitespace().collect();
    let head = text.split("begin").next().unwrap_or_default();
    !head.contains("before") && (text.contains("raise(ignore") || text.contains("raise(fail"))
}

/// The names of tables for which a journal is installed.
pub(super) fn installed_tables(conn: &Connection) -> Result<Vec<String>> {
    let fail = |e| sqlite_error("list the captured tables", e);
    let mut statement = conn
        .prepare("SELECT substr(name, 9) FROM sqlite_schema WHERE type = 'table' AND substr(name, 1, 8) = '_tm_cap_'")
        .map_err(fail)?;
    let names = statement
        .query_map([], |row| row.get(0))
        .map_err(fail)?
        .collect::<rusqlite::Result<Vec<String>>>()
        .map_err(fail)?;
    Ok(names)
}

/// Inspects a table that is to be captured.
pub(super) fn require(conn: &Connection, name: &str) -> Result<TableInfo> {
    let found = if is_reserved(name) { None } else { inspect_one(conn, name)? };
    found.ok_or_else(|| Error::not_found(format!("the source has no table {name}")))
}
