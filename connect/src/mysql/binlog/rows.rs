//! Rows of a row event, bound to the columns that a topic has.

use super::{
    bytes::{Bytes, bit, corrupt},
    cell::Cell,
    event::{Rows, RowsKind},
};
use crate::{
    Result,
    change::{Row, Value},
};

/// How the rows of a table are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// Each column of the binlog, and the topic's column it fills.
    pub cells: Vec<(Cell, Option<usize>)>,
    /// A row in which no column is filled.
    pub empty: Row,
}

/// A row event that is being read.
#[derive(Debug)]
pub struct Reader {
    rows: Rows,
    read: usize,
    /// Number of rows read.
    pub count: u64,
}

/// One row of an event.
#[derive(Debug, PartialEq)]
pub struct Image {
    pub before: Option<Row>,
    pub after: Option<Row>,
}

impl Reader {
    /// Begins with the first row.
    ///
    /// # Errors
    /// `Corrupt` where the event has another number of columns than its table.
    pub fn new(rows: Rows, binding: &Binding) -> Result<Self> {
        if rows.width != binding.cells.len() {
            return Err(corrupt("a row has another number of columns than its table"));
        }
        Ok(Self { rows, read: 0, count: 0 })
    }

    /// The event's table.
    pub fn table_id(&self) -> u64 {
        self.rows.table_id
    }

    /// The next row.
    ///
    /// # Errors
    /// `Corrupt`.
    pub fn next(&mut self, binding: &Binding) -> Result<Option<Image>> {
        let data = self.rows.data.get(self.read..).unwrap_or_default();
        if data.is_empty() {
            return Ok(None);
        }
        let mut bytes = Bytes::new(data);
        let first = row(&mut bytes, binding)?;
        let (before, after) = match self.rows.kind {
            RowsKind::Write => (None, Some(first)),
            RowsKind::Delete => (Some(first), None),
            RowsKind::Partial => return Err(corrupt("its rows are not whole")),
            RowsKind::Update => (Some(first), Some(row(&mut bytes, binding)?)),
        };
        let read = data.len() - bytes.rest().len();
        if read == 0 {
            return Err(corrupt("a row has no bytes"));
        }
        self.read += read;
        self.count += 1;
        Ok(Some(Image { before, after }))
    }
}

fn row(bytes: &mut Bytes<'_>, binding: &Binding) -> Result<Row> {
    let nulls = bytes.take(binding.cells.len().div_ceil(8))?;
    let mut row = binding.empty.clone();
    for (i, (cell, to)) in binding.cells.iter().enumerate() {
        let value = if bit(nulls, i) { Value::Null } else { cell.read(bytes)? };
        if let Some(to) = to {
            row[*to] = value;
        }
    }
    Ok(row)
}
