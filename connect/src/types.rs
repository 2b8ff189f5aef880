//! Databases and their types: what values of a column look like in topics.

use serde::{Deserialize, Serialize};

use crate::change::Value;

/// A kind of database; its types are written as it declares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
    /// MySQL and MariaDB.
    Mysql,
}

/// What values of a column look like to readers that want one type a column.
///
/// | kind | values | spelling |
/// |---|---|---|
/// | `Integer` | `Integer` | |
/// | `Unsigned` | `Integer`, `Unsigned` | integers from 0 to 2^64 - 1 |
/// | `Boolean` | `Boolean` | |
/// | `Real` | `Real`, `Integer` | |
/// | `Text`, `Blob` | `Text`, `Blob` | |
/// | `Decimal` | `Text` | digits with the column's scale: `-12.50`; `NaN`, `Infinity`, `-Infinity` |
/// | `Date` | `Text` | `2024-02-29`; what the source has beyond the calendar (`infinity`, `0000-00-00`) as it writes it |
/// | `Time` | `Text` | `13:04:05`, with `.` and as many digits as are not zero at the end; MySQL's may be beyond a day |
/// | `Timestamp` | `Text` | a date and time of no zone: `2024-02-29T13:04:05.25` |
/// | `Instant` | `Text` | a moment, in UTC: `2024-02-29T13:04:05.25Z` |
/// | `Json` | `Text` | the document as the source writes it |
/// | `Uuid` | `Text` | `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, small letters |
/// | `Any` | any | |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// 64-bit integers.
    Integer,
    /// Integers from 0 to 2^64 - 1.
    Unsigned,
    /// True and false.
    Boolean,
    /// Doubles; integers among them are widened.
    Real,
    /// Exact decimals, as text.
    Decimal,
    /// Text.
    Text,
    /// Bytes.
    Blob,
    /// Dates, as text.
    Date,
    /// Times of a day or lengths of time, as text.
    Time,
    /// Dates with times and no zone, as text.
    Timestamp,
    /// Moments, as text in UTC.
    Instant,
    /// JSON documents, as text.
    Json,
    /// UUIDs, as text.
    Uuid,
    /// No type declared: any value.
    Any,
}

impl Dialect {
    /// What a column declared like this holds.
    pub fn kind(self, declared_type: &str) -> Kind {
        match self {
            Self::Sqlite => Kind::of_sqlite(declared_type),
            Self::Postgres => Kind::of_postgres(declared_type),
            Self::Mysql => Kind::of_mysql(declared_type),
        }
    }

    /// Its name in a sync file's URLs and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
        }
    }
}

impl std::fmt::Display for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    /// The kind that SQLite's rules of affinity give a declared type, with dates, times and JSON as text.
    pub fn of_sqlite(declared_type: &str) -> Self {
        let upper = declared_type.to_ascii_uppercase();
        let has = |parts: &[&str]| parts.iter().any(|part| upper.contains(part));
        if has(&["INT", "BOOL"]) {
            Self::Integer
        } else if has(&["CHAR", "CLOB", "TEXT", "DATE", "TIME", "JSON"]) {
            Self::Text
        } else if has(&["BLOB"]) {
            Self::Blob
        } else if upper.trim().is_empty() || upper == "ANY" {
            Self::Any
        } else {
            Self::Real
        }
    }

    /// The kind of a type as PostgreSQL's `format_type` writes it, domains by the type they stand on. Arrays, ranges,
    /// enums and all that has no kind of its own are text, as PostgreSQL writes it.
    pub fn of_postgres(declared_type: &str) -> Self {
        if declared_type.ends_with("[]") {
            return Self::Text;
        }
        let (base, zone) = match declared_type.split_once('(') {
            Some((base, rest)) => (base, rest.ends_with("with time zone") && !rest.ends_with("without time zone")),
            None => (declared_type, declared_type.ends_with(" with time zone")),
        };
        match base.trim_end_matches(" with time zone").trim_end_matches(" without time zone").trim() {
            "smallint" | "integer" | "bigint" | "oid" => Self::Integer,
            "boolean" => Self::Boolean,
            "real" | "double precision" => Self::Real,
            "numeric" => Self::Decimal,
            "bytea" => Self::Blob,
            "date" => Self::Date,
            // A time with a zone is no moment: it stays as it is written.
            "time" if !zone => Self::Time,
            "timestamp" if zone => Self::Instant,
            "timestamp" => Self::Timestamp,
            "json" | "jsonb" => Self::Json,
            "uuid" => Self::Uuid,
            _ => Self::Text,
        }
    }

    /// The kind of a type as MySQL's `COLUMN_TYPE` writes it; `json` also stands for a MariaDB column that checks
    /// `json_valid`.
    pub fn of_mysql(declared_type: &str) -> Self {
        let lower = declared_type.to_ascii_lowercase();
        let base = lower.split(['(', ' ']).next().unwrap_or_default();
        match base {
            "bigint" if lower.contains("unsigned") => Self::Unsigned,
            "bit" => Self::Unsigned,
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "year" => Self::Integer,
            "decimal" | "numeric" => Self::Decimal,
            "float" | "double" | "real" => Self::Real,
            "date" => Self::Date,
            "time" => Self::Time,
            "datetime" => Self::Timestamp,
            "timestamp" => Self::Instant,
            "json" => Self::Json,
            "uuid" => Self::Uuid,
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "geometry" | "point"
            | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon" | "geometrycollection" => {
                Self::Blob
            }
            _ => Self::Text,
        }
    }

    /// Whether a value is what readers of the column expect.
    pub fn fits(self, value: &Value) -> bool {
        match self {
            _ if *value == Value::Null => true,
            Self::Any => !matches!(value, Value::Unchanged),
            Self::Integer => matches!(value, Value::Integer(_)),
            Self::Unsigned => matches!(value, Value::Integer(0..) | Value::Unsigned(_)),
            Self::Boolean => matches!(value, Value::Boolean(_)),
            Self::Real => matches!(value, Value::Integer(_) | Value::Real(_)),
            Self::Blob => matches!(value, Value::Blob(_)),
            Self::Text
            | Self::Decimal
            | Self::Date
            | Self::Time
            | Self::Timestamp
            | Self::Instant
            | Self::Json
            | Self::Uuid => matches!(value, Value::Text(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_have_kinds() {
        for (dialect, declared, kind) in [
            (Dialect::Sqlite, "VARCHAR(10)", Kind::Text),
            (Dialect::Sqlite, "json", Kind::Text),
            (Dialect::Sqlite, "NUMERIC(10,2)", Kind::Real),
            (Dialect::Postgres, "numeric(10,2)", Kind::Decimal),
            (Dialect::Postgres, "numeric(10,2)[]", Kind::Text),
            (Dialect::Postgres, "timestamp(3) with time zone", Kind::Instant),
            (Dialect::Postgres, "timestamp(3) without time zone", Kind::Timestamp),
            (Dialect::Postgres, "timestamp without time zone", Kind::Timestamp),
            (Dialect::Postgres, "time with time zone", Kind::Text),
            (Dialect::Postgres, "time(6) without time zone", Kind::Time),
            (Dialect::Postgres, "character varying(5)", Kind::Text),
            (Dialect::Postgres, "interval", Kind::Text),
            (Dialect::Mysql, "bigint(20) unsigned", Kind::Unsigned),
            (Dialect::Mysql, "int(10) unsigned", Kind::Integer),
            (Dialect::Mysql, "enum('a','b(')", Kind::Text),
            (Dialect::Mysql, "decimal(65,30)", Kind::Decimal),
            (Dialect::Mysql, "timestamp(6)", Kind::Instant),
            (Dialect::Mysql, "varbinary(16)", Kind::Blob),
        ] {
            assert_eq!(dialect.kind(declared), kind, "{dialect} {declared}");
        }
    }
}
