//! How far a follower is, as the log stores it: one part for the binlog, one for each table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    Error, ErrorKind, Result,
    change::{StoredValue, TableSchema},
};

/// Name of the part that moves with the binlog.
pub const HEAD: &str = "mysql";
/// What names of the tables' parts begin with.
pub const TABLE: &str = "table/";

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// MariaDB.
    Mariadb,
    /// MySQL.
    Mysql,
}

/// Where in the binlog the last whole transaction that was delivered ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Whose server it is.
    pub flavour: Flavour,
    /// Which server it is: MariaDB's `server_id`, MySQL's `server_uuid`.
    pub server: String,
    /// MariaDB: the last GTID of each domain. MySQL: the executed set; empty where the server keeps none.
    pub gtid: String,
    /// The binlog file.
    pub file: String,
    /// The end of the transaction in it.
    pub position: u64,
    /// What was delivered of the transaction that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<Inside>,
}

/// A place inside a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inside {
    /// Row events of any table that were read to their end.
    pub events: u64,
    /// Rows read of the next one.
    pub rows: u64,
}

/// How far a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TablePart {
    /// Its columns, as the changes delivered have them.
    pub schema: TableSchema,
    /// How far its copy is.
    pub copy: Copy,
    /// Whether it was dropped: a table of its name is another one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dropped: bool,
}

/// How far the copy of a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// Nothing of it was read; changes until then are part of what will be.
    NotStarted,
    /// Rows up to a key were read; of no key, none.
    After(Vec<StoredValue>),
    /// All rows were read.
    Done,
    /// The sync no longer follows the table: its changes are passed over.
    Left,
}

/// A place in the binlog's files. Files are ordered by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    file: u64,
    position: u64,
}

impl Place {
    /// The place of a position in a file.
    pub fn new(file: &str, position: u64) -> Self {
        let number = file.rsplit('.').next().and_then(|number| number.parse().ok());
        Self { file: number.unwrap_or(0), position }
    }
}

/// Reads the stored parts.
///
/// # Errors
/// `Corrupt` where they are malformed.
pub fn join(parts: &BTreeMap<String, String>) -> Result<Option<(Head, Vec<TablePart>)>> {
    let bad = |e: serde_json::Error| {
        Error::new(ErrorKind::Corrupt, "the stored position of the source is malformed").with_source(e)
    };
    let Some(head) = parts.get(HEAD) else { return Ok(None) };
    let head = serde_json::from_str(head).map_err(bad)?;
    let tables = parts.iter().filter(|(name, _)| name.starts_with(TABLE));
    let tables: Result<Vec<_>> = tables.map(|(_, part)| serde_json::from_str(part).map_err(bad)).collect();
    Ok(Some((head, tables?)))
}

/// A part as it is stored.
pub fn encode<T: Serialize>(part: &T) -> Result<String> {
    serde_json::to_string(part).map_err(|e| Error::internal("encode a position").with_source(e))
}
