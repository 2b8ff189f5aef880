//! Which event it is, and what of it concerns a follower.

use super::{
    bytes::{Bytes, corrupt},
    compressed::inflate,
    payload,
    table_map::TableMap,
};
use crate::{Error, Result};

/// A transaction's name on MariaDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MariaGtid {
    pub domain: u32,
    pub server: u32,
    pub sequence: u64,
}

/// An event, as far as it concerns a follower.
#[derive(Debug)]
pub enum Event {
    /// Another file follows, from a position on.
    Rotate { file: String, position: u64 },
    /// A transaction begins on MariaDB; a standalone one is the next statement alone.
    MariaGtid { gtid: MariaGtid, standalone: bool, prepared: bool },
    /// A transaction begins on MySQL; none where it is anonymous.
    MysqlGtid(Option<([u8; 16], u64)>),
    /// A statement.
    Query { database: String, text: String },
    /// A transaction has ended.
    Xid,
    /// A table's columns, for the row events that follow.
    TableMap(TableMap),
    /// Rows of a table.
    Rows(Rows),
    /// A compressed transaction, whose events come one by one after it; how many bytes they have.
    Payload { size: u64 },
    /// Nothing happens on the server; this is how far it is.
    Heartbeat { file: String },
    /// It says nothing about rows.
    Other,
}

/// Which changes a row event holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsKind {
    Write,
    Update,
    Delete,
    /// After a change, in part.
    Partial,
}

/// A row event whose rows are not read yet.
#[derive(Debug)]
pub struct Rows {
    pub kind: RowsKind,
    pub table_id: u64,
    /// The number of columns.
    pub width: usize,
    /// Whether every column is present in every row.
    pub full: bool,
    /// The rows.
    pub data: Vec<u8>,
}

/// Reads an event: the type that its header has, and what comes after the header, without its checksum.
///
/// # Errors
/// `Corrupt` for damage, `Unsupported` for what carries rows in a way that is not understood.
pub fn read(kind: u8, server: u32, data: &[u8]) -> Result<Event> {
    let mut bytes = Bytes::new(data);
    Ok(match kind {
        2 => query(&mut bytes, false)?,
        165 => query(&mut bytes, true)?,
        4 => {
            let position = bytes.le(8)?;
            Event::Rotate { file: text(bytes.rest()), position }
        }
        // The second one ends a transaction that is prepared only; its rows are refused one by one.
        16 | 38 => Event::Xid,
        19 => Event::TableMap(TableMap::read(data)?),
        23 | 30 | 166 | 169 => rows(RowsKind::Write, kind, &mut bytes)?,
        24 | 31 | 167 | 170 => rows(RowsKind::Update, kind, &mut bytes)?,
        25 | 32 | 168 | 171 => rows(RowsKind::Delete, kind, &mut bytes)?,
        27 => Event::Heartbeat { file: text(data) },
        33 => {
            bytes.u8()?;
            let sid = bytes.take(16)?.try_into().map_err(|_| corrupt("a GTID is cut"))?;
            Event::MysqlGtid(Some((sid, bytes.le(8)?)))
        }
        34 => Event::MysqlGtid(None),
        162 => {
            let (sequence, domain, flags) = (bytes.le(8)?, bytes.le(4)? as u32, bytes.u8()?);
            let gtid = MariaGtid { domain, server, sequence };
            Event::MariaGtid { gtid, standalone: flags & 1 != 0, prepared: flags & 64 != 0 }
        }
        // Start, stop, format, variables of a statement, ignorable, the statement's text, earlier GTIDs, contexts of a
        // transaction, the heartbeat's second form, MariaDB's annotation, checkpoint, list and key.
        1 | 3 | 5 | 13 | 14 | 15 | 28 | 29 | 35 | 36 | 37 | 41 | 160 | 161 | 163 | 164 => Event::Other,
        40 => Event::Payload { size: payload::size(&mut bytes)? },
        // Parts of JSON documents; refused only where the table is followed.
        39 => {
            let table_id = bytes.le(6)?;
            Event::Rows(Rows { kind: RowsKind::Partial, table_id, width: 0, full: false, data: Vec::new() })
        }
        26 => return Err(Error::unsupported("the binlog tells of an incident: changes are missing in it")),
        42 => return Err(Error::unsupported("the binlog has a GTID with a tag (event 42)")),
        6..=12 | 17 | 18 => {
            return Err(Error::unsupported(format!(
                "the binlog has a statement where rows are needed (event {kind}): SET GLOBAL binlog_format = 'ROW'"
            )));
        }
        _ => return Err(Error::unsupported(format!("the binlog has an event of the unknown type {kind}"))),
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn query(bytes: &mut Bytes<'_>, compressed: bool) -> Result<Event> {
    // Thread and duration.
    bytes.take(8)?;
    let database_length = usize::from(bytes.u8()?);
    // Error code.
    bytes.take(2)?;
    bytes.sized(2)?;
    let database = text(bytes.take(database_length)?);
    bytes.u8()?;
    let statement = if compressed { text(&inflate(bytes.rest())?) } else { text(bytes.rest()) };
    Ok(Event::Query { database, text: statement })
}

fn rows(kind: RowsKind, event: u8, bytes: &mut Bytes<'_>) -> Result<Event> {
    let table_id = bytes.le(6)?;
    bytes.take(2)?;
    if matches!(event, 30..=32 | 169..=171) {
        let extra = usize::try_from(bytes.le(2)?).unwrap_or(0);
        bytes.take(extra.saturating_sub(2))?;
    }
    let width = bytes.length()?;
    let mut full = true;
    for _ in 0..if kind == RowsKind::Update { 2 } else { 1 } {
        let present = bytes.take(width.div_ceil(8))?;
        full &= (0..width).all(|column| super::bytes::bit(present, column));
    }
    let data = if event >= 160 { inflate(bytes.rest())? } else { bytes.rest().to_vec() };
    Ok(Event::Rows(Rows { kind, table_id, width, full, data }))
}
