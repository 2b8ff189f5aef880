//! Columns of other databases as SQLite declares them.
//!
//! A declared type's name gives a column its affinity there, and a numeric one makes numbers of texts that look like
//! them. So a type whose texts may look like numbers becomes `TEXT`.

use super::{
    Planned,
    to_postgres::arguments,
    value::{Special, Want},
};
use crate::{
    converter::TopicSchema,
    types::{Dialect, Kind},
};

const TEXT: Want = Want::Text { nul: true, max: None };

pub(super) fn columns(schema: &TopicSchema) -> Vec<Planned> {
    let columns = schema.table.columns.iter().zip(&schema.kinds);
    let plan = |declared: &str, kind| match schema.connector {
        Dialect::Sqlite => Planned::new(declared, Want::Same),
        _ => column(declared, kind),
    };
    columns.map(|(column, kind)| plan(&column.declared_type, *kind)).collect()
}

fn column(declared: &str, kind: Kind) -> Planned {
    let real = || Planned::new("REAL", Want::Double { special: Special::Infinities });
    match kind {
        Kind::Integer => Planned::new("INTEGER", Want::BIGINT),
        Kind::Unsigned => Planned::new("", Want::IntegerOrText)
            .told("integers beyond 9223372036854775807 are kept as text, for SQLite has none"),
        Kind::Boolean => Planned::new("BOOLEAN", Want::Integer { min: 0, max: 1 }).told("true is 1, false is 0"),
        Kind::Real if declared.starts_with("real") || declared.starts_with("double p") => {
            real().told("a row with NaN is refused, for SQLite has none")
        }
        Kind::Real => real(),
        Kind::Decimal => match arguments(declared)[..] {
            [precision, scale] if precision <= 15 => {
                Planned::new(format!("DECIMAL({precision},{scale})"), Want::SqliteNumber)
                    .told("kept as SQLite's own numbers: zeros at the end of the fraction are not shown")
            }
            [precision] if precision <= 15 => Planned::new(format!("DECIMAL({precision})"), Want::SqliteNumber),
            _ => Planned::new("TEXT", TEXT)
                .told("kept as text, exact to the last digit: SQLite's own numbers have 15 digits"),
        },
        Kind::Blob => Planned::new("BLOB", Want::Bytes { max: None }),
        Kind::Date => Planned::new("DATE", TEXT),
        Kind::Time => Planned::new("TIME", TEXT),
        Kind::Timestamp => Planned::new("TIMESTAMP", TEXT),
        Kind::Instant => Planned::new("TIMESTAMPTZ", TEXT).told("kept as text in UTC"),
        Kind::Uuid | Kind::Json => Planned::new("TEXT", TEXT),
        Kind::Text | Kind::Any => {
            let planned = Planned::new("TEXT", TEXT);
            match declared.split(['(', ' ']).next().unwrap_or_default() {
                "text" | "char" | "varchar" | "character" | "tinytext" | "mediumtext" | "longtext" | "name" => planned,
                _ => planned.told(format!("{declared} is kept as text")),
            }
        }
    }
}
