//! What would go wrong, and the statement that cures it, before anything is installed.

use std::path::Path;

use rusqlite::Connection;

use super::catalog::{TableInfo, inspect_one};
use super::guard::header;
use super::install::{ends_triggers, installed_tables};
use super::value::{identifier, sqlite_error};
use crate::change::TableSchema;
use crate::connector::{Finding, Level};
use crate::{Error, ErrorKind, Result};

/// Examines a source for capturing `tables`. A failure to examine is a finding too.
///
/// # Errors
/// `Unavailable` where the file is locked.
pub fn preflight(conn: &Connection, tables: &[TableSchema]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for examine in [writable, encoding, journal_mode, leftovers] {
        findings.push(examine(conn).or_else(|error| failed("file", error))?);
    }
    findings.extend(preflight_tables(conn, tables)?);
    Ok(findings)
}

fn failed(subject: &str, error: Error) -> Result<Finding> {
    match error.kind() {
        ErrorKind::Unavailable => Err(error),
        _ => Ok(Finding::new(subject, Level::Refuse, error.to_string(), None)),
    }
}

/// Examines tables alone: all that a copy needs which installs nothing.
///
/// # Errors
/// `Unavailable` where the file is locked.
pub fn preflight_tables(conn: &Connection, tables: &[TableSchema]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for table in tables {
        match examine_table(conn, table) {
            Ok(found) if found.is_empty() => {
                findings.push(Finding::new(&table.name, Level::Ok, "can be captured", None));
            }
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(failed(&table.name, error)?),
        }
    }
    Ok(findings)
}

/// Refuses a target that is the source itself, also through a link or another spelling of the path.
pub fn check_target_is_not_source(source: &Path, target: &Path) -> Finding {
    let same = match (source.canonicalize(), target.canonicalize()) {
        (Ok(source), Ok(target)) => source == target || same_inode(&source, &target),
        _ => source == target,
    };
    if same {
        let message = format!("the target {} is the source itself", target.display());
        return Finding::new("target", Level::Refuse, message, Some("name another target file".into()));
    }
    Finding::new("target", Level::Ok, "is not the source", None)
}

#[cfg(unix)]
fn same_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_inode(_: &Path, _: &Path) -> bool {
    false
}

fn writable(conn: &Connection) -> Result<Finding> {
    let read_only = conn.is_readonly("main").map_err(|e| sqlite_error("look at the file", e))?;
    let path = conn.path().unwrap_or_default().to_owned();
    let denied = read_only || std::fs::metadata(&path).is_ok_and(|m| m.permissions().readonly());
    Ok(if denied {
        let cure = format!("give this user the right to write {path} and its folder");
        Finding::new(
            "file",
            Level::Refuse,
            format!("{path} is not writable: the capture needs triggers in it"),
            Some(cure),
        )
    } else {
        Finding::new("file", Level::Ok, format!("{path} is writable"), None)
    })
}

fn encoding(conn: &Connection) -> Result<Finding> {
    let encoding: String =
        conn.query_row("PRAGMA encoding", [], |row| row.get(0)).map_err(|e| sqlite_error("read the encoding", e))?;
    Ok(if encoding == "UTF-8" {
        Finding::new("encoding", Level::Ok, encoding, None)
    } else {
        let cure = "dump it and load it into a file with PRAGMA encoding = 'UTF-8'".to_owned();
        Finding::new(
            "encoding",
            Level::Refuse,
            format!("the file is {encoding}; only UTF-8 is captured byte for byte"),
            Some(cure),
        )
    })
}

fn journal_mode(conn: &Connection) -> Result<Finding> {
    let mode: String = conn
        .query_row("PRAGMA journal_mode", [], |row| row.get(0))
        .map_err(|e| sqlite_error("read the journal mode", e))?;
    Ok(match mode.as_str() {
        "wal" => Finding::new(
            "journal mode",
            Level::Ok,
            "wal: reads add no wait; a program that reads, then writes in one transaction may get SQLITE_BUSY when a prune \
             falls between (BEGIN IMMEDIATE avoids it)",
            None,
        ),
        "off" | "memory" => Finding::new(
            "journal mode",
            Level::Warn,
            format!("{mode}: a crash of a writer can damage the file"),
            Some("PRAGMA journal_mode = WAL".into()),
        ),
        _ => Finding::new(
            "journal mode",
            Level::Warn,
            format!(
                "{mode}: a writer may wait some 20 ms for a read of ours; one with a busy time-out of 0 will at times get SQLITE_BUSY"
            ),
            Some("PRAGMA journal_mode = WAL".into()),
        ),
    })
}

fn leftovers(conn: &Connection) -> Result<Finding> {
    let installed = installed_tables(conn)?;
    Ok(match header(conn)? {
        Some(header) if header.mark.is_empty() => {
            Finding::new("capture", Level::Ok, "a capture that never began will be replaced", None)
        }
        Some(_) => Finding::new(
            "capture",
            Level::Warn,
            format!("a capture is installed ({}): right if it is this sync's", installed.join(", ")),
            Some("if no sync uses it: tidemill sync rm FILE".into()),
        ),
        None if !installed.is_empty() => Finding::new(
            "capture",
            Level::Refuse,
            format!("leftovers of a capture without its counter ({})", installed.join(", ")),
            Some("tidemill sync rm FILE".into()),
        ),
        None => Finding::new("capture", Level::Ok, "none installed", None),
    })
}

fn examine_table(conn: &Connection, table: &TableSchema) -> Result<Vec<Finding>> {
    let name = &table.name;
    let info = inspect_one(conn, name)?.ok_or_else(|| Error::not_found(format!("the source has no table {name}")))?;
    let mut found: Vec<Finding> = info
        .refusals
        .iter()
        .map(|refusal| Finding::new(name, Level::Refuse, &refusal.message, Some(refusal.cure.clone())))
        .collect();
    found.extend(null_keys(conn, &info)?);
    let fail = |e| sqlite_error("look at the triggers", e);
    let mut statement = conn
        .prepare_cached(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = ?1 COLLATE NOCASE AND substr(name, 1, 4) <> '_tm_'",
        )
        .map_err(fail)?;
    let mut rows = statement.query([name]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let (trigger, sql): (String, String) = (row.get(0).map_err(fail)?, row.get(1).map_err(fail)?);
        if ends_triggers(&sql) {
            let message = format!(
                "trigger {trigger} of {name} ends other triggers with RAISE(IGNORE) or RAISE(FAIL) after the change: exact as long \
                 as the capture's triggers are newer; the capture renews them when it sees a newer one"
            );
            let cure = "make it a BEFORE trigger, and do not make it anew while the sync runs".to_owned();
            found.push(Finding::new(name, Level::Warn, message, Some(cure)));
        }
    }
    Ok(found)
}

fn null_keys(conn: &Connection, info: &TableInfo) -> Result<Option<Finding>> {
    let name = &info.schema.name;
    if info.rowid_alias || info.key.is_empty() {
        return Ok(None);
    }
    let condition: Vec<String> =
        info.key.iter().map(|(i, _)| format!("{} IS NULL", identifier(&info.schema.columns[*i].name))).collect();
    let condition = format!("FROM {} WHERE {}", identifier(name), condition.join(" OR "));
    let count: i64 = conn
        .query_row(&format!("SELECT count(*) {condition}"), [], |row| row.get(0))
        .map_err(|e| sqlite_error(format!("look for NULL in the key of {name}"), e))?;
    Ok((count > 0).then(|| {
        let message = format!("{count} rows of table {name} have NULL in their primary key");
        Finding::new(name, Level::Refuse, message, Some(format!("find them: SELECT * {condition}")))
    }))
}
