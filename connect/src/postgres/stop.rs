//! Why a source stops: the database is not what the position says. It never guesses; a person decides.

use std::fmt;

use crate::{Error, command::shell_word};

/// The commands that begin a sync anew: what it made goes, then everything is copied.
const ANEW: &str = "tidemill sync rm FILE, then tidemill sync run FILE --replace";

/// What is wrong with the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The replication slot does not exist.
    SlotGone(String),
    /// The server removed WAL that the slot had not been read to.
    SlotLost(String),
    /// The slot was moved beyond the position: changes between were never seen.
    SlotAhead { slot: String, at: String, stored: String },
    /// A slot of the name is of another database or plugin.
    SlotForeign(String),
    /// Somebody reads the slot.
    SlotActive { slot: String, pid: String },
    /// The server is another one, or was restored.
    OtherServer { stored: String, found: String },
    /// The server was promoted or restored to an earlier point.
    Timeline { stored: u32, found: u32 },
    /// The publication does not exist.
    PublicationGone(String),
    /// A table that was followed is not in the publication any more.
    Unpublished(String),
    /// The server ends before the position: it was restored.
    Behind { end: String, stored: String },
    /// The table's columns are no longer what was captured, in a way that cannot be followed.
    Columns { table: String, what: String },
    /// The table does not exist any more.
    TableGone(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SlotGone(slot) => {
                write!(f, "replication slot {slot} is gone: changes since were not kept; to begin anew: {ANEW}")
            }
            Self::SlotLost(slot) => write!(
                f,
                "replication slot {slot} is lost: it fell behind by more than max_slot_wal_keep_size allows, and the server \
                 removed WAL it needed; to begin anew: {ANEW}"
            ),
            Self::SlotAhead { slot, at, stored } => write!(
                f,
                "replication slot {slot} is at {at}, ahead of the position {stored} in this log: changes between are missed; was \
                 the log restored from a backup, or does another log follow with it? to begin anew: {ANEW}"
            ),
            Self::SlotForeign(slot) => write!(
                f,
                "replication slot {slot} is not of this database or not of pgoutput; to drop it, in its database: SELECT \
                 pg_drop_replication_slot('{slot}')"
            ),
            Self::SlotActive { slot, pid } => write!(
                f,
                "replication slot {slot} is read by process {pid}: another worker runs this sync; stop it, or, if it is dead: \
                 SELECT pg_terminate_backend({pid})"
            ),
            Self::OtherServer { stored, found } => write!(
                f,
                "the server is not the one that was captured (system identifier {found}, was {stored}): name the right server, \
                 or begin anew: {ANEW}"
            ),
            Self::Timeline { stored, found } => write!(
                f,
                "the server's timeline is {found}, was {stored}: a standby was promoted or a backup restored, and what was \
                 captured may not be in it; to begin anew: {ANEW}"
            ),
            Self::PublicationGone(name) => {
                write!(f, "publication {name} is gone: changes since were not published; to begin anew: {ANEW}")
            }
            Self::Unpublished(table) => write!(
                f,
                "table {table} is not published any more: it was made anew, renamed or taken out of the publication, and what \
                 happened to it since is not known; to copy it anew: tidemill sync run FILE --recopy {}",
                shell_word(table)
            ),
            Self::Behind { end, stored } => write!(
                f,
                "the server's log ends at {end}, before the position {stored} in this log: it was restored from a backup; to \
                 begin anew: {ANEW}"
            ),
            Self::Columns { table, what } => write!(
                f,
                "the columns of table {table} changed: {what}; to copy the table anew: tidemill sync run FILE --recopy {}",
                shell_word(table)
            ),
            Self::TableGone(table) => write!(
                f,
                "table {table} no longer exists; to go on without it, or with one made anew: tidemill sync run FILE --recopy {}",
                shell_word(table)
            ),
        }
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        Self::conflict(stop.to_string())
    }
}
