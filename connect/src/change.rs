//! What flows from a source to a sink: rows of named columns and the changes of them.
//!
//! These types are the common language of all connectors. A source fills them from its database, the
//! converter writes them as change events into topics and reads them back, a sink applies them.

use serde::{Deserialize, Serialize};

/// One column of a table, as its database declares it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The name, with the case in which it was declared.
    pub name: String,
    /// The declared type, verbatim; empty where none was declared.
    #[serde(rename = "type")]
    pub declared_type: String,
    /// Whether the column refuses NULL (key columns always do).
    pub not_null: bool,
    /// The column's place in the primary key, counted from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<u32>,
}

/// A table's shape: its name, its columns in order, its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSchema {
    /// The schema that the table is in; `None` where the database has none (SQLite).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The table's name in the source, case kept.
    pub name: String,
    /// All columns, in the source's order.
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// The name that patterns, messages and positions use: `schema.table`, or the table's alone.
    pub fn full_name(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}.{}", self.name),
            None => self.name.clone(),
        }
    }

    /// Indexes into `columns` of the key columns, in key order.
    pub fn key_columns(&self) -> Vec<usize> {
        let mut places: Vec<(u32, usize)> =
            self.columns.iter().enumerate().filter_map(|(i, column)| column.key.map(|place| (place, i))).collect();
        places.sort_unstable();
        places.into_iter().map(|(_, i)| i).collect()
    }

    /// What changed in the columns from this shape to `now`, in words. Types are told where a column kept its name.
    pub fn changes_to(&self, now: &Self) -> String {
        let mut parts = Vec::new();
        let (added, gone) = (self.missing_in(now), now.missing_in(self));
        for (what, names) in [("new", added), ("gone", gone)] {
            if !names.is_empty() {
                parts.push(format!("{what}: {}", names.join(", ")));
            }
        }
        let typed = |column: &Column| match column.declared_type.as_str() {
            "" => "untyped".to_owned(),
            declared => declared.to_owned(),
        };
        for old in &self.columns {
            let Some(new) = now.columns.iter().find(|new| new.name == old.name) else { continue };
            if new.declared_type != old.declared_type {
                parts.push(format!("{} is {}, was {}", new.name, typed(new), typed(old)));
            } else if new.key != old.key {
                parts.push(format!("{} has another place in the key", new.name));
            } else if new.not_null != old.not_null {
                let may = if new.not_null { "is NOT NULL now" } else { "may be NULL now" };
                parts.push(format!("{} {may}", new.name));
            }
        }
        if parts.is_empty() { "their order is another".into() } else { parts.join("; ") }
    }

    /// Names of columns that `other` has and this shape has not.
    fn missing_in(&self, other: &Self) -> Vec<String> {
        let missing = other.columns.iter().filter(|c| !self.columns.iter().any(|own| own.name == c.name));
        missing.map(|column| column.name.clone()).collect()
    }

    /// The key of a whole row, in key order.
    pub fn key_of(&self, row: &[Value]) -> Row {
        // Most keys are one column: this is done for every row.
        let mut keys = self.columns.iter().enumerate().filter(|(_, column)| column.key.is_some());
        if let (Some((only, _)), None) = (keys.next(), keys.next()) {
            return vec![row[only].clone()];
        }
        self.key_columns().into_iter().map(|i| row[i].clone()).collect()
    }
}

/// One value of a row. SQL NULL is `Null`.
///
/// Exact decimals, dates, times, JSON and UUIDs are `Text` in the spelling that [`Kind`](crate::types::Kind) tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// The row's value of this column is what it was before: the source does not tell it, and could not be asked.
    Unchanged,
    /// True or false.
    Boolean(bool),
    /// A signed 64-bit integer.
    Integer(i64),
    /// An integer beyond `i64::MAX`; smaller ones are `Integer`, so that equal numbers are equal values.
    Unsigned(u64),
    /// A double; infinities and, from some sources, NaN may occur.
    Real(f64),
    /// Valid UTF-8 text, which may hold NUL characters.
    Text(String),
    /// Text whose bytes are not UTF-8, kept as they are.
    InvalidText(Vec<u8>),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// About how many bytes of memory it takes.
    pub(crate) fn size_bytes(&self) -> usize {
        16 + match self {
            Self::Text(text) => text.len(),
            Self::Blob(bytes) | Self::InvalidText(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// The values of one row, in the order of the table's columns (or of its key).
pub type Row = Vec<Value>;

/// A key value inside a stored position. Reals are kept as their bits: JSON has no infinity and no -0.0 of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredValue {
    /// SQL NULL.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// An integer beyond `i64::MAX`.
    Unsigned(u64),
    /// The bits of a double.
    Real(u64),
    /// Valid text.
    Text(String),
    /// Invalid text, byte for byte.
    InvalidText(Vec<u8>),
    /// A blob.
    Blob(Vec<u8>),
}

impl From<&Value> for StoredValue {
    fn from(value: &Value) -> Self {
        match value {
            // No key has a value that is not told.
            Value::Null | Value::Unchanged => Self::Null,
            Value::Boolean(b) => Self::Bool(*b),
            Value::Unsigned(u) => Self::Unsigned(*u),
            Value::Integer(i) => Self::Int(*i),
            Value::Real(r) => Self::Real(r.to_bits()),
            Value::Text(text) => Self::Text(text.clone()),
            Value::InvalidText(bytes) => Self::InvalidText(bytes.clone()),
            Value::Blob(bytes) => Self::Blob(bytes.clone()),
        }
    }
}

impl From<&StoredValue> for Value {
    fn from(value: &StoredValue) -> Self {
        match value {
            StoredValue::Null => Self::Null,
            StoredValue::Bool(b) => Self::Boolean(*b),
            StoredValue::Unsigned(u) => Self::Unsigned(*u),
            StoredValue::Int(i) => Self::Integer(*i),
            StoredValue::Real(bits) => Self::Real(f64::from_bits(*bits)),
            StoredValue::Text(text) => Self::Text(text.clone()),
            StoredValue::InvalidText(bytes) => Self::InvalidText(bytes.clone()),
            StoredValue::Blob(bytes) => Self::Blob(bytes.clone()),
        }
    }
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Seen by a copy of the table, not a change.
    Read,
    /// Inserted.
    Create,
    /// Updated, its key unchanged.
    Update,
    /// Deleted.
    Delete,
}

/// One change of one row. A change of key is a `Delete` of the old key followed by a `Create` of the new one.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Index of the table in the list the source was opened with.
    pub table: usize,
    /// What happened.
    pub op: Op,
    /// The row's key, in key order.
    pub key: Row,
    /// The whole row before, for `Update` and `Delete`.
    pub before: Option<Row>,
    /// The whole row after, for `Read`, `Create` and `Update`.
    pub after: Option<Row>,
    /// The source's own number of the change (SQLite: the capture sequence, PostgreSQL: the commit's LSN, MariaDB: the
    /// transaction's sequence number); 0 for `Read`.
    pub sequence: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_name_and_types_only_where_they_differ() {
        type Spec = (&'static str, &'static str, bool, Option<u32>);
        let shape = |columns: &[Spec]| TableSchema {
            schema: None,
            name: "t".into(),
            columns: columns
                .iter()
                .map(|(name, declared, not_null, key)| Column {
                    name: (*name).into(),
                    declared_type: (*declared).into(),
                    not_null: *not_null,
                    key: *key,
                })
                .collect(),
        };
        let old = shape(&[("id", "INTEGER", true, Some(0)), ("v", "TEXT", false, None), ("p", "", false, None)]);
        let new = |columns: &[Spec]| old.changes_to(&shape(columns));
        let (id, v, p) = (("id", "INTEGER", true, Some(0)), ("v", "TEXT", false, None), ("p", "", false, None));
        assert_eq!(new(&[id, v, p, ("w", "INT", false, None)]), "new: w");
        assert_eq!(new(&[id, ("w", "TEXT", false, None)]), "new: w; gone: v, p");
        assert_eq!(new(&[id, v, ("p", "REAL", false, None)]), "p is REAL, was untyped");
        assert_eq!(new(&[id, ("v", "TEXT", true, None), p]), "v is NOT NULL now");
        assert_eq!(new(&[id, ("v", "TEXT", true, Some(1)), p]), "v has another place in the key");
        assert_eq!(new(&[v, id, p]), "their order is another");
    }
}
