//! Values between SQLite and [`Value`]: reading, binding, exact equality, SQLite's order, identifiers, errors.

use std::cmp::Ordering;

use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{ErrorCode, Row as SqlRow};

pub use crate::change::StoredValue;
use crate::change::{Row, Value};
use crate::{Error, ErrorKind, Result};

/// Reads one value of a result row as it is stored.
pub(super) fn read_value(row: &SqlRow<'_>, index: usize) -> Result<Value> {
    let value = row.get_ref(index).map_err(|e| sqlite_error("read a value", e))?;
    Ok(match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(i) => Value::Integer(i),
        ValueRef::Real(r) => Value::Real(r),
        ValueRef::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::InvalidText(bytes.to_vec()),
        },
        ValueRef::Blob(bytes) => Value::Blob(bytes.to_vec()),
    })
}

/// Reads `count` values from `start` on.
pub(super) fn read_row(row: &SqlRow<'_>, start: usize, count: usize) -> Result<Row> {
    (start..start + count).map(|index| read_value(row, index)).collect()
}

/// A [`Value`] as a parameter of a statement; invalid text is bound as text with its own bytes.
pub(super) struct Bound<'a>(pub(super) &'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::Null => ValueRef::Null,
            Value::Unchanged => return Err(rusqlite::Error::ToSqlConversionFailure("a value that is not told".into())),
            Value::Boolean(b) => ValueRef::Integer((*b).into()),
            Value::Integer(i) => ValueRef::Integer(*i),
            // SQLite has no such integers; of itself it would make them doubles.
            Value::Unsigned(u) => return Ok(ToSqlOutput::Owned(u.to_string().into())),
            Value::Real(r) => ValueRef::Real(*r),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::InvalidText(bytes) => ValueRef::Text(bytes),
            Value::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Whether two values are the same to the bit: 1 and 1.0 differ, and so do 0.0 and -0.0.
pub fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Real(a), Value::Real(b)) => a.to_bits() == b.to_bits(),
        _ => a == b,
    }
}

/// Whether two rows are the same to the bit.
pub fn same_row(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
}

/// SQLite's order under the BINARY collation: NULL, numbers, text, blobs. 1 and 1.0 are equal here.
pub(super) fn compare_values(a: &Value, b: &Value) -> Ordering {
    fn class(value: &Value) -> u8 {
        match value {
            Value::Null | Value::Unchanged => 0,
            Value::Boolean(_) | Value::Integer(_) | Value::Unsigned(_) | Value::Real(_) => 1,
            Value::Text(_) | Value::InvalidText(_) => 2,
            Value::Blob(_) => 3,
        }
    }
    match (a, b) {
        (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
        (Value::Real(a), Value::Real(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
        (Value::Integer(a), Value::Real(b)) => compare_integer_real(*a, *b),
        (Value::Real(a), Value::Integer(b)) => compare_integer_real(*b, *a).reverse(),
        _ if class(a) == class(b) => bytes_of(a).cmp(bytes_of(b)),
        _ => class(a).cmp(&class(b)),
    }
}

/// Compares keys column by column in SQLite's order.
pub(super) fn compare_keys(a: &[Value], b: &[Value]) -> Ordering {
    a.iter().zip(b).map(|(a, b)| compare_values(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

fn bytes_of(value: &Value) -> &[u8] {
    match value {
        Value::Text(text) => text.as_bytes(),
        Value::InvalidText(bytes) | Value::Blob(bytes) => bytes,
        _ => &[],
    }
}

/// Exact comparison of an integer and a double: a cast of either alone would lose digits above 2^53.
fn compare_integer_real(integer: i64, real: f64) -> Ordering {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if real < -LIMIT {
        return Ordering::Greater;
    }
    if real >= LIMIT {
        return Ordering::Less;
    }
    let whole = real as i64;
    integer.cmp(&whole).then_with(|| (whole as f64).partial_cmp(&real).unwrap_or(Ordering::Equal))
}

/// A name as an SQL identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as an SQL string literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Whether the failure is another program's lock.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// An SQLite failure as an [`Error`] whose kind says what the caller must do.
pub(crate) fn sqlite_error(doing: impl Into<String>, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted,
        ) => ErrorKind::Unavailable,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied) => {
            ErrorKind::Denied
        }
        Some(ErrorCode::ConstraintViolation | ErrorCode::SchemaChanged | ErrorCode::TypeMismatch) => {
            ErrorKind::Conflict
        }
        Some(ErrorCode::TooBig) => ErrorKind::Unsupported,
        // A plain SQL error: our statements are fixed, so the tables are not what they were.
        Some(ErrorCode::Unknown) => ErrorKind::Conflict,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, error.to_string()).context(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_reals_compare_exactly() {
        let big = 9_007_199_254_740_993_i64;
        assert_eq!(compare_integer_real(big, 9_007_199_254_740_992.0), Ordering::Greater);
        assert_eq!(compare_integer_real(i64::MAX, 9_223_372_036_854_775_808.0), Ordering::Less);
        assert_eq!(compare_integer_real(i64::MIN, -9_223_372_036_854_775_808.0), Ordering::Equal);
        assert_eq!(compare_integer_real(1, f64::INFINITY), Ordering::Less);
        assert_eq!(compare_integer_real(-1, -1.5), Ordering::Greater);
        assert_eq!(compare_values(&Value::Integer(1), &Value::Real(1.0)), Ordering::Equal);
        assert!(!same_value(&Value::Integer(1), &Value::Real(1.0)));
        assert!(!same_value(&Value::Real(0.0), &Value::Real(-0.0)));
    }

    #[test]
    fn stored_values_survive_json() {
        let row = vec![
            Value::Null,
            Value::Integer(i64::MIN),
            Value::Real(f64::NEG_INFINITY),
            Value::Real(-0.0),
            Value::Text("a\0b".into()),
            Value::InvalidText(vec![0xff, 0]),
            Value::Blob(vec![0, 255]),
        ];
        let stored: Vec<StoredValue> = row.iter().map(StoredValue::from).collect();
        let json = serde_json::to_string(&stored).unwrap();
        let back: Vec<StoredValue> = serde_json::from_str(&json).unwrap();
        assert!(same_row(&row, &back.iter().map(Value::from).collect::<Vec<_>>()));
    }
}
