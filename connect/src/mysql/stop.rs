//! Why a follower stops: the server is not what the position says. It never guesses; a person decides.

use std::fmt;

use super::position::Flavour;
use crate::{Error, command::shell_word};

/// The commands that begin a sync anew.
const ANEW: &str = "tidemill sync rm FILE, then tidemill sync run FILE --replace";

/// What is wrong with the server or a table of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// Another server answers.
    OtherServer { is: String, was: String },
    /// Another kind of server answers.
    OtherFlavour { is: Flavour },
    /// The server has not seen what the position has.
    WentBack { has: String, position: String },
    /// At the position lies another transaction.
    OtherHistory { file: String, position: u64, has: String, was: String },
    /// The binlog no longer has the position; what the server says.
    Purged(String),
    /// The binlog is off.
    NoBinlog,
    /// A table's columns changed in a way that cannot be followed; which.
    ColumnsChanged { table: String, what: String },
    /// A table went or came without events for its rows; by which statement.
    RowsLost { table: String, statement: String },
    /// The binlog does not name columns, and they are not those of the catalog.
    NoNames { table: String },
    /// A column cannot be read; why.
    Unreadable { table: String, column: String, why: String },
    /// Rows are not whole.
    NotFull { table: String },
    /// Rows have parts of JSON documents.
    Parts { table: String },
    /// A statement tells of rows.
    Statement { table: String },
    /// A transaction was undone after its rows were delivered.
    Undone { tables: Vec<String> },
    /// Rows of a transaction that may yet be undone.
    Prepared { table: String },
}

impl Stop {
    fn table(&self) -> Option<&str> {
        match self {
            Self::ColumnsChanged { table, .. }
            | Self::RowsLost { table, .. }
            | Self::NoNames { table }
            | Self::Unreadable { table, .. }
            | Self::NotFull { table }
            | Self::Parts { table }
            | Self::Statement { table }
            | Self::Prepared { table } => Some(table),
            Self::Undone { tables } => tables.first().map(String::as_str),
            _ => None,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherServer { is, was } => {
                write!(f, "the server is another one: it is {is}, and {was} was followed; name the right server")?;
            }
            Self::OtherFlavour { is } => write!(f, "the server is another one: it is {is:?}")?,
            Self::WentBack { has, position } => write!(
                f,
                "the server went backwards, as after a restore: its binlog is at {has}, and {position} was followed"
            )?,
            Self::OtherHistory { file, position, has, was } => write!(
                f,
                "the server's history is another one, as after a restore: at {file}:{position} it has {has:?}, and {was:?} \
                 was followed"
            )?,
            Self::Purged(said) => write!(
                f,
                "the server no longer has the binlog from where the sync stands: {said}; let it keep more (SET GLOBAL \
                 binlog_expire_logs_seconds = 604800)"
            )?,
            Self::NoBinlog => write!(f, "the server writes no binlog: set log_bin in its configuration")?,
            Self::ColumnsChanged { table, what } => write!(f, "the columns of table {table} changed: {what}")?,
            Self::RowsLost { table, statement } => {
                write!(f, "rows of table {table} went or came by a statement that tells none of them: {statement}")?;
            }
            Self::NoNames { table } => write!(
                f,
                "the columns of table {table} changed, and the binlog does not name them: SET GLOBAL \
                 binlog_row_metadata = 'FULL'"
            )?,
            Self::Unreadable { table, column, why } => {
                write!(f, "column {column} of table {table} cannot be read: {why}")?;
            }
            Self::NotFull { table } => write!(
                f,
                "the binlog has rows of table {table} without all columns: SET GLOBAL binlog_row_image = 'FULL', and have \
                 sessions begin anew"
            )?,
            Self::Parts { table } => write!(
                f,
                "the binlog has parts of JSON documents of table {table}: SET GLOBAL binlog_row_value_options = '', and \
                 have sessions begin anew"
            )?,
            Self::Statement { table } => write!(
                f,
                "the binlog has a statement where rows of table {table} are needed: SET GLOBAL binlog_format = 'ROW', and \
                 have sessions begin anew"
            )?,
            Self::Undone { tables } => write!(
                f,
                "a transaction that also wrote a table without transactions was rolled back after changes of {} were \
                 delivered",
                tables.join(", ")
            )?,
            Self::Prepared { table } => {
                write!(f, "an XA transaction changed table {table}: whether its rows stay is not known")?;
            }
        }
        match self.table() {
            Some(table) => write!(f, "; to copy the table anew: tidemill sync run FILE --recopy {}", shell_word(table)),
            None => write!(f, "; or begin anew: {ANEW}"),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::conflict(stop.to_string())
    }
}
