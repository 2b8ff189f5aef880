//! A source's place in its database, stored by the worker together with the changes that lead to it.
//!
//! One part is the place in the stream, `postgres`; one part a table is its columns and how far its copy is,
//! `table/<full name>`. A poll tells only the parts that changed.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    change::{StoredValue, TableSchema},
    connector::Copied,
};

/// Name of the stream's part.
pub(super) const STREAM_PART: &str = "postgres";
/// What the tables' parts begin with.
const TABLE_PART: &str = "table/";

/// A place in the server's log, written as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(super) struct Lsn(pub(super) u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let half = |text: &str| u32::from_str_radix(text, 16).ok().map(u64::from);
        let parsed = text.split_once('/').and_then(|(high, low)| Some(half(high)? << 32 | half(low)?));
        parsed.map(Self).ok_or_else(|| Error::corrupt(format!("{text:?} is no LSN")))
    }
}

/// The place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamPosition {
    /// The server's system identifier.
    pub(super) system: String,
    pub(super) timeline: u32,
    pub(super) slot: String,
    pub(super) publication: String,
    /// Every transaction that ends before it was delivered whole.
    pub(super) lsn: Lsn,
    /// The transaction after it that was delivered in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) partial: Option<Partial>,
}

/// A transaction that was cut in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Partial {
    /// Where its commit is.
    pub(super) commit: Lsn,
    /// How many of its messages about rows were delivered. The order of messages in a transaction is always the same.
    pub(super) delivered: u64,
}

/// A table's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TablePosition {
    pub(super) schema: TableSchema,
    pub(super) copy: CopyState,
    /// Transactions that ended before it are in the copy, whatever columns they knew: the stream's rows of them are left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<Lsn>,
}

/// How far the copy of a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CopyState {
    NotStarted,
    After(Vec<StoredValue>),
    Done,
}

impl CopyState {
    pub(super) fn copied(&self) -> Copied {
        match self {
            Self::NotStarted => Copied::NotStarted,
            Self::After(_) => Copied::Begun,
            Self::Done => Copied::Done,
        }
    }
}

/// The name of a table's part.
pub(super) fn table_part(table: &TableSchema) -> String {
    format!("{TABLE_PART}{}", table.full_name())
}

/// A part's text.
pub(super) fn encode(part: &impl Serialize) -> Result<String> {
    serde_json::to_string(part).map_err(|e| Error::internal("encode a position").with_source(e))
}

/// The stream's place and the tables of stored parts; nothing where none is stored.
pub(super) fn decode(
    stored: &BTreeMap<String, String>,
) -> Result<Option<(StreamPosition, BTreeMap<String, TablePosition>)>> {
    let bad = |name: &str, e| Error::corrupt(format!("the stored position {name} is malformed")).with_source(e);
    let Some(stream) = stored.get(STREAM_PART) else { return Ok(None) };
    let stream = serde_json::from_str(stream).map_err(|e: serde_json::Error| bad(STREAM_PART, e))?;
    let mut tables = BTreeMap::new();
    for (name, value) in stored {
        if let Some(table) = name.strip_prefix(TABLE_PART)
            // A table that was forgotten leaves an empty part.
            && !value.is_empty()
        {
            let part = serde_json::from_str(value).map_err(|e: serde_json::Error| bad(name, e))?;
            tables.insert(table.to_owned(), part);
        }
    }
    Ok(Some((stream, tables)))
}
