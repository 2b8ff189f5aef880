//! Columns of other databases as MySQL and MariaDB declare them.
//!
//! The sink gives every text column a collation that compares byte by byte and heeds spaces at the end; it stands in no
//! declared type. An index there has at most 3072 bytes, and a row 65535 besides its long columns.

use super::{
    Planned,
    to_postgres::{SqliteHolds, arguments, is_text, sqlite_holds},
    value::{Special, Want},
};
use crate::{
    change::Column,
    converter::TopicSchema,
    types::{Dialect, Kind},
};

/// Bytes of a key.
const INDEX_BYTES: u32 = 3072;
/// Characters, or bytes, of a key column that could be longer.
const KEY_LENGTH: u32 = 255;
/// Bytes of a row that texts of a declared length may take together.
const ROW_BYTES: u32 = 48_000;
/// Characters of a text that is kept with its declared length.
const LONGEST_VARCHAR: u32 = 4000;

pub(super) fn columns(schema: &TopicSchema) -> Vec<Planned> {
    let columns = schema.table.columns.iter().zip(&schema.kinds);
    if schema.connector == Dialect::Mysql {
        return columns.map(|(column, _)| Planned::new(&column.declared_type, Want::Same)).collect();
    }
    let share = key_share(schema);
    let mut room = ROW_BYTES;
    let plan = |(column, kind): (&Column, &Kind)| {
        let key = column.key.map(|_| share);
        match schema.connector {
            Dialect::Sqlite => of_sqlite(&column.declared_type, *kind, key),
            _ => of_postgres(&column.declared_type, *kind, key, &mut room),
        }
    };
    columns.map(plan).collect()
}

/// How many characters each column of a key that could be long may have.
fn key_share(schema: &TopicSchema) -> u32 {
    let key = schema.table.key_columns();
    let long = |i: &usize| {
        matches!(schema.kinds[*i], Kind::Text | Kind::Blob | Kind::Any | Kind::Json)
            || (schema.connector == Dialect::Sqlite && schema.kinds[*i] == Kind::Real)
    };
    let longs = key.iter().filter(|i| long(i)).count().max(1);
    // No other type takes more than a UUID's 144 bytes.
    let fixed: u32 = key.iter().map(|i| if schema.kinds[*i] == Kind::Uuid { 144 } else { 32 }).sum();
    let longs = u32::try_from(longs).unwrap_or(u32::MAX);
    (INDEX_BYTES.saturating_sub(fixed) / 4 / longs).clamp(1, KEY_LENGTH)
}

/// A text of any length; in a key one of `key` characters.
fn text(key: Option<u32>) -> Planned {
    match key {
        None => Planned::new("longtext", Want::Text { nul: true, max: None }),
        Some(length) => Planned::new(format!("varchar({length})"), Want::Text { nul: true, max: Some(length) })
            .told(format!("a key longer than {length} characters is refused, for MySQL's keys are limited")),
    }
}

fn blob(key: Option<u32>) -> Planned {
    match key {
        None => Planned::new("longblob", Want::Bytes { max: None }),
        Some(length) => Planned::new(format!("varbinary({length})"), Want::Bytes { max: Some(length) })
            .told(format!("a key longer than {length} bytes is refused, for MySQL's keys are limited")),
    }
}

fn of_sqlite(declared: &str, kind: Kind, key: Option<u32>) -> Planned {
    let double = || Planned::new("double", Want::Double { special: Special::None });
    match sqlite_holds(declared, kind) {
        SqliteHolds::Integers => Planned::new("bigint", Want::BIGINT),
        SqliteHolds::Doubles => double().told("a row with an infinity is refused, for MySQL has none"),
        SqliteHolds::Numbers => double().told("kept as doubles; a whole number beyond 2^53 or an infinity is refused"),
        SqliteHolds::Blobs => blob(key),
        SqliteHolds::Texts if is_text(declared) => text(key),
        SqliteHolds::Texts => {
            let planned = text(key);
            let told = planned.told.clone().map(|told| format!("; {told}")).unwrap_or_default();
            planned.told(format!("{declared} is kept as text, for SQLite does not check what is in it{told}"))
        }
        SqliteHolds::Anything => {
            let told = "no type is declared: numbers are kept as text, a row with bytes is refused";
            let planned = text(key);
            match key {
                None => planned.told(told),
                Some(length) => Planned { want: Want::TextKey { nul: true, max: Some(length) }, ..planned }
                    .told(format!("{told}; a key longer than {length} characters is refused")),
            }
        }
    }
}

fn of_postgres(declared: &str, kind: Kind, key: Option<u32>, room: &mut u32) -> Planned {
    let places = |name: &str| match arguments(declared)[..] {
        [places] if places <= 6 => format!("{name}({places})"),
        _ => format!("{name}(6)"),
    };
    match kind {
        Kind::Integer | Kind::Unsigned => match declared {
            "smallint" => Planned::new("smallint", Want::BIGINT),
            "integer" => Planned::new("int", Want::BIGINT),
            _ => Planned::new("bigint", Want::BIGINT),
        },
        Kind::Boolean => Planned::new("tinyint(1)", Want::Integer { min: 0, max: 1 }).told("true is 1, false is 0"),
        Kind::Real => Planned::new("double", Want::Double { special: Special::None })
            .told("a row with NaN or an infinity is refused, for MySQL has none"),
        Kind::Decimal => match arguments(declared)[..] {
            [precision, scale] if precision <= 65 && scale <= 30 && scale <= precision => {
                Planned::new(format!("decimal({precision},{scale})"), Want::Decimal { precision, scale })
            }
            _ => Planned::new("decimal(65,30)", Want::Decimal { precision: 65, scale: 30 })
                .told("a number with more than 35 digits before the point or 30 after it is refused"),
        },
        Kind::Blob => blob(key),
        Kind::Date => Planned::new("date", Want::Date { max_year: 9999 }).told(YEARS),
        Kind::Time => Planned::new(places("time"), Want::Same),
        Kind::Timestamp => {
            Planned::new(places("datetime"), Want::Moment { max_year: 9999, instant: false }).told(YEARS)
        }
        Kind::Instant => Planned::new(places("datetime"), Want::Moment { max_year: 9999, instant: false })
            .told(format!("kept as a date and time in UTC; {YEARS}")),
        Kind::Uuid => Planned::new("char(36)", Want::Same),
        Kind::Json if key.is_none() => Planned::new("json", Want::Same).told(
            "MySQL orders members and spaces anew, MariaDB keeps the text; numbers beyond a double's digits may lose some",
        ),
        Kind::Text | Kind::Any | Kind::Json => {
            let base = declared.split('(').next().unwrap_or_default();
            match (base, &arguments(declared)[..]) {
                ("character varying" | "character", [length])
                    if key.is_none_or(|most| *length <= most)
                        && *length <= LONGEST_VARCHAR
                        && (key.is_some() || length * 4 <= *room) =>
                {
                    *room = room.saturating_sub(length * 4);
                    Planned::new(format!("varchar({length})"), Want::Text { nul: true, max: Some(*length) })
                }
                ("text" | "character varying" | "character" | "name", _) => text(key),
                _ => {
                    let planned = text(key);
                    let told = planned.told.clone().map(|told| format!("; {told}")).unwrap_or_default();
                    planned.told(format!("{declared} is kept as text{told}"))
                }
            }
        }
    }
}

const YEARS: &str = "a row with a date outside the years 1 to 9999 is refused";
