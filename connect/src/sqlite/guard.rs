//! Is this still the file that was captured? Its identity, its mark, and the inode behind the path.
//!
//! A backup restored while nobody looked carries the right identity and, once the application wrote on, a counter that
//! looks right. So a random *mark* in the source changes at each open and each prune. A position names the mark the
//! source has and the one it may get next; the source is changed only after that position is durable. A crash at
//! any point leaves a source whose mark is one of the two, and a restored backup leaves one that is neither.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::catalog::open_source;
use super::stop::{Reason, Stop};
use super::triggers::COUNTER;
use super::value::sqlite_error;
use crate::{Error, Result};

/// The row of the counter table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) n: i64,
    pub(super) source: String,
    pub(super) mark: String,
}

/// The mark of an installation that no durable position knows yet; it may be replaced without asking.
pub(super) const UNCONFIRMED: &str = "";

/// The counter row, or nothing if the capture is not installed.
pub(super) fn header(conn: &Connection) -> Result<Option<Header>> {
    let row = conn.prepare_cached(&format!("SELECT n, source, mark FROM {COUNTER}")).and_then(|mut statement| {
        statement.query_row([], |row| Ok(Header { n: row.get(0)?, source: row.get(1)?, mark: row.get(2)? })).optional()
    });
    match row {
        Ok(header) => Ok(header),
        Err(error) if error.to_string().contains("no such table") => Ok(None),
        Err(error) => Err(sqlite_error("read the capture's counter", error)),
    }
}

/// The capture that a file carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CaptureFound {
    /// None.
    None,
    /// One of this identity that no durable position knows: it never began.
    Unconfirmed(String),
    /// One of this identity.
    Of(String),
}

/// Looks for a capture; a file that is not there has none.
///
/// # Errors
/// `Unavailable` where the file is locked.
pub(crate) fn capture_in(path: &Path) -> Result<CaptureFound> {
    if !path.exists() {
        return Ok(CaptureFound::None);
    }
    Ok(match header(&open_source(path)?)? {
        None => CaptureFound::None,
        Some(header) if header.mark == UNCONFIRMED => CaptureFound::Unconfirmed(header.source),
        Some(header) => CaptureFound::Of(header.source),
    })
}

/// The number of the last change that the capture saw; nothing where none is installed.
///
/// # Errors
/// `Unavailable` where the file is not there or locked.
pub(crate) fn captured_end(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Err(Error::unavailable(format!("source {} does not exist", path.display())));
    }
    Ok(header(&open_source(path)?)?.map(|header| header.n.to_string()))
}

/// Whether a position's number is a captured one's or comes after it.
pub(crate) fn is_reached(position: &str, place: &str) -> bool {
    let number = |text: &str| text.parse::<i64>().ok();
    number(position).zip(number(place)).is_some_and(|(position, place)| position >= place)
}

/// A fresh random identity or mark.
pub(super) fn random_id(conn: &Connection) -> Result<String> {
    conn.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))
        .map_err(|e| sqlite_error("make a random id", e))
}

/// Writes the mark `next` in place of `mark`, inside the caller's transaction. False if the source has another mark.
pub(super) fn change_mark(conn: &Connection, mark: &str, next: &str) -> Result<bool> {
    conn.execute(&format!("UPDATE {COUNTER} SET mark = ?2 WHERE mark = ?1"), [mark, next])
        .map(|changed| changed == 1)
        .map_err(|e| sqlite_error("change the source's mark", e))
}

/// The file behind a path, as it was when opened.
#[derive(Debug)]
pub(super) struct SameFile {
    path: PathBuf,
    id: Option<(u64, u64)>,
}

impl SameFile {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let id = file_id(path).map_err(|e| Error::from(e).context(format!("look at {}", path.display())))?;
        Ok(Self { path: path.to_owned(), id })
    }

    /// Stops if the path now names another file, or none: writers would write there, unseen.
    pub(super) fn check(&self) -> std::result::Result<(), Stop> {
        match file_id(&self.path) {
            Ok(id) if id == self.id => Ok(()),
            _ => Err(Stop { file: self.path.clone(), table: None, reason: Reason::Replaced }),
        }
    }
}

/// Device and inode. It only stats the file: opening and closing it would drop SQLite's locks.
#[cfg(unix)]
fn file_id(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    Ok(Some((metadata.dev(), metadata.ino())))
}

#[cfg(not(unix))]
fn file_id(path: &Path) -> std::io::Result<Option<(u64, u64)>> {
    std::fs::metadata(path).map(|_| None)
}
