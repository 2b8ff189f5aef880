//! Why a capture stops: the source is not what the position says. It never guesses; a person decides.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, command::shell_word};

/// The commands that begin a sync anew: what it made goes, then everything is copied.
const ANEW: &str = "tidemill sync rm FILE, then tidemill sync run FILE --replace";

/// A reason to stop, with the table it concerns, if it concerns one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The source file.
    pub file: PathBuf,
    /// The table to copy anew; `None` where the whole file is in doubt.
    pub table: Option<String>,
    /// What is wrong.
    pub reason: Reason,
}

/// What is wrong with the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Another file lies at the path: its identity is not the one captured.
    Swapped,
    /// The file at the path was replaced while the capture ran.
    Replaced,
    /// The file's counter or mark is older than the position: it was restored from a backup.
    WentBack,
    /// The capture's own tables are gone.
    ObjectsGone,
    /// A capture that no position knows is installed.
    Leftover,
    /// The table does not exist any more.
    TableDropped,
    /// The table's columns are not those captured; the text says which.
    ColumnsChanged(String),
    /// Triggers or journal of the table are gone: it was rebuilt, or somebody dropped them.
    TriggersGone,
    /// A unique index was made or dropped, so the triggers no longer fit.
    IndexesChanged,
    /// A row has NULL in its key.
    NullKey,
    /// The table can no longer be captured; the text says why.
    Refused(String),
}

impl Stop {
    /// The table to name after `--recopy`, if copying it anew is the way out.
    pub fn recopy_table(&self) -> Option<&str> {
        self.table.as_deref()
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        if let Some(table) = &self.table {
            match &self.reason {
                Reason::TableDropped => write!(f, "table {table} no longer exists in {file}")?,
                Reason::ColumnsChanged(what) => write!(f, "the columns of table {table} in {file} changed: {what}")?,
                Reason::TriggersGone => write!(
                    f,
                    "the capture triggers of table {table} in {file} are gone, as after a rebuild: changes may have been missed"
                )?,
                Reason::IndexesChanged => {
                    write!(f, "the capture triggers of table {table} in {file} no longer fit its unique indexes")?;
                }
                Reason::NullKey => {
                    write!(f, "table {table} in {file} has a row with NULL in its primary key; mend the row")?
                }
                Reason::Refused(why) => write!(f, "table {table} in {file} can no longer be captured: {why}")?,
                other => write!(f, "table {table} in {file}: {other:?}")?,
            }
            return write!(f, "; to copy the table anew: tidemill sync run FILE --recopy {}", shell_word(table));
        }
        match &self.reason {
            Reason::Swapped => {
                write!(f, "{file} is not the file that was captured: put the right file back, or begin anew: {ANEW}")
            }
            Reason::Replaced => {
                write!(f, "{file} was replaced by another file while it was followed: start again to have it examined")
            }
            Reason::WentBack => write!(
                f,
                "{file} went backwards: it was restored from a backup, or another worker follows it; what was captured since is \
                 not in it; to begin anew: {ANEW}"
            ),
            Reason::ObjectsGone => write!(
                f,
                "the capture tables in {file} are gone, or it is another file: put the right file back, or begin anew: {ANEW}"
            ),
            Reason::Leftover => write!(
                f,
                "{file} already carries a capture, of another sync or of one whose position is lost; if nothing follows it any \
                 more: tidemill sync rm FILE --force, then tidemill sync run FILE --replace"
            ),
            other => write!(f, "{file}: {other:?}"),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::conflict(stop.to_string())
    }
}

/// How a capture call fails: it must stop, or something outside failed.
#[derive(Debug)]
pub enum Fault {
    /// A person must decide.
    Stop(Stop),
    /// Everything else; `Unavailable` may be tried again.
    Other(Error),
}

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Stop(stop) => stop.into(),
            Fault::Other(error) => error,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(stop) => stop.fmt(f),
            Self::Other(error) => error.fmt(f),
        }
    }
}
