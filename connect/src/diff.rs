//! What differs between a table of the source and of the target.

use crate::change::{Row, TableSchema, Value};

/// The most keys that a [`TableDiff`] lists of each kind.
pub const MAX_KEYS: usize = 100;

/// What differs between a table of the source and of the target.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TableDiff {
    /// Keys looked at, on either side.
    pub rows: u64,
    /// How many rows only the source has.
    pub missing_rows: u64,
    /// How many rows only the target has.
    pub extra_rows: u64,
    /// How many rows differ.
    pub differing_rows: u64,
    /// How many rows differ since the target refused them; they are in none of the other counts but `rows`.
    pub parked_rows: u64,
    /// Keys of the first missing rows.
    pub missing: Vec<Row>,
    /// Keys of the first extra rows.
    pub extra: Vec<Row>,
    /// Keys of the first differing rows.
    pub differing: Vec<Row>,
}

impl TableDiff {
    /// Whether both sides are the same.
    pub fn is_equal(&self) -> bool {
        self.total() == 0
    }

    /// How many rows are missing, extra or different.
    pub fn total(&self) -> u64 {
        self.missing_rows + self.extra_rows + self.differing_rows
    }

    /// How many rows are the same on both sides.
    pub fn equal_rows(&self) -> u64 {
        self.rows.saturating_sub(self.total() + self.parked_rows)
    }

    /// Whether the keys of all of them are listed, so that looking them up again can tell what became of them.
    pub fn is_listed(&self) -> bool {
        self.total() == (self.missing.len() + self.extra.len() + self.differing.len()) as u64
    }

    pub(crate) fn note(&mut self, what: What, key: Row) {
        let (count, keys) = match what {
            What::Missing => (&mut self.missing_rows, &mut self.missing),
            What::Extra => (&mut self.extra_rows, &mut self.extra),
            What::Differing => (&mut self.differing_rows, &mut self.differing),
        };
        *count += 1;
        if keys.len() < MAX_KEYS {
            keys.push(key);
        }
    }
}

/// What is wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Missing,
    Extra,
    Differing,
}

/// A key for people: `TrackId=7000`, values as SQL writes them.
pub fn key_text(schema: &TableSchema, key: &Row) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let value = |value: &Value| match value {
        Value::Null | Value::Unchanged => "NULL".to_owned(),
        Value::Boolean(b) => b.to_string(),
        Value::Unsigned(u) => u.to_string(),
        Value::Integer(i) => i.to_string(),
        Value::Real(r) => format!("{r:?}"),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::InvalidText(bytes) => format!("CAST(x'{}' AS TEXT)", hex(bytes)),
        Value::Blob(bytes) => format!("x'{}'", hex(bytes)),
    };
    let columns = schema.key_columns().into_iter().map(|column| &schema.columns[column].name);
    let parts: Vec<_> = columns.zip(key).map(|(name, part)| format!("{name}={}", value(part))).collect();
    parts.join(", ")
}
