//! Columns of other databases as PostgreSQL declares them, in the spelling of `format_type`.

use super::{
    Planned,
    value::{Special, Want},
};
use crate::{
    converter::TopicSchema,
    types::{Dialect, Kind},
};

const TEXT: Want = Want::Text { nul: false, max: None };
/// The last year of a timestamp; dates go further.
const LAST_YEAR: u32 = 294_276;

pub(super) fn columns(schema: &TopicSchema) -> Vec<Planned> {
    let columns = schema.table.columns.iter().zip(&schema.kinds);
    let plan = |declared: &str, key: bool, kind| match schema.connector {
        Dialect::Postgres => own(declared),
        Dialect::Sqlite => of_sqlite(declared, key, kind),
        Dialect::Mysql => of_mysql(declared, kind),
    };
    columns.map(|(column, kind)| plan(&column.declared_type, column.key.is_some(), *kind)).collect()
}

/// Types that every PostgreSQL has stay; enums, domains and what extensions bring become text.
fn own(declared: &str) -> Planned {
    if is_built_in(declared) {
        return Planned::new(declared, Want::Same);
    }
    Planned::new("text", Want::Same).told(format!("{declared} is kept as text, for the target may not have this type"))
}

fn is_built_in(declared: &str) -> bool {
    let element = declared.trim_end_matches("[]");
    let base = element.split('(').next().unwrap_or_default().trim_end();
    let base = base.trim_end_matches(" without time zone").trim_end_matches(" with time zone");
    let spans = ["interval ", "time(", "timestamp("];
    const NAMES: &[&str] = &[
        "smallint",
        "integer",
        "bigint",
        "oid",
        "boolean",
        "real",
        "double precision",
        "numeric",
        "money",
        "text",
        "character varying",
        "character",
        "\"char\"",
        "name",
        "bytea",
        "date",
        "time",
        "timestamp",
        "interval",
        "json",
        "jsonb",
        "jsonpath",
        "uuid",
        "xml",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "bit",
        "bit varying",
        "point",
        "line",
        "lseg",
        "box",
        "path",
        "polygon",
        "circle",
        "tsvector",
        "tsquery",
        "pg_lsn",
        "xid8",
        "pg_snapshot",
        "int4range",
        "int8range",
        "numrange",
        "tsrange",
        "tstzrange",
        "daterange",
        "int4multirange",
        "int8multirange",
        "nummultirange",
        "tsmultirange",
        "tstzmultirange",
        "datemultirange",
    ];
    NAMES.contains(&base) || spans.iter().any(|span| element.starts_with(span))
}

fn of_sqlite(declared: &str, key: bool, kind: Kind) -> Planned {
    match sqlite_holds(declared, kind) {
        SqliteHolds::Integers => Planned::new("bigint", Want::BIGINT),
        SqliteHolds::Doubles => Planned::new("double precision", Want::Double { special: Special::All }),
        SqliteHolds::Numbers => Planned::new("numeric", Want::Numeric),
        SqliteHolds::Blobs => Planned::new("bytea", Want::Bytes { max: None }),
        SqliteHolds::Texts => match is_text(declared) {
            true => Planned::new("text", TEXT),
            false => Planned::new("text", TEXT)
                .told(format!("{declared} is kept as text, for SQLite does not check what is in it")),
        },
        SqliteHolds::Anything => {
            let want = if key { Want::TextKey { nul: false, max: None } } else { TEXT };
            Planned::new("text", want)
                .told("no type is declared: numbers are kept as text, a row with bytes is refused")
        }
    }
}

/// What a column of SQLite is taken to hold; other values in it are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SqliteHolds {
    Integers,
    Doubles,
    /// Integers and doubles, each as it is.
    Numbers,
    Texts,
    Blobs,
    Anything,
}

/// SQLite reads affinity out of parts of a type's name, so that `POINT` is for integers: such types are taken as text.
pub(super) fn sqlite_holds(declared: &str, kind: Kind) -> SqliteHolds {
    let upper = declared.to_ascii_uppercase();
    let base = upper.split('(').next().unwrap_or_default();
    let word = base.split_whitespace().next().unwrap_or_default();
    match kind {
        Kind::Integer if word.starts_with("INT") && !matches!(word, "INTEGER" | "INT" | "INT2" | "INT4" | "INT8") => {
            SqliteHolds::Texts
        }
        Kind::Integer if word.ends_with("INT") && word.contains("PO") => SqliteHolds::Texts,
        Kind::Integer => SqliteHolds::Integers,
        Kind::Real if ["REAL", "FLOA", "DOUB"].iter().any(|part| upper.contains(part)) => SqliteHolds::Doubles,
        Kind::Real if matches!(word, "NUMERIC" | "DECIMAL" | "NUMBER" | "DEC" | "MONEY" | "CURRENCY") => {
            SqliteHolds::Numbers
        }
        Kind::Blob => SqliteHolds::Blobs,
        Kind::Any => SqliteHolds::Anything,
        _ => SqliteHolds::Texts,
    }
}

/// Whether a type's name says text, so that there is nothing to tell.
pub(super) fn is_text(declared: &str) -> bool {
    let upper = declared.to_ascii_uppercase();
    upper == "TEXT" || upper == "CLOB"
}

fn of_mysql(declared: &str, kind: Kind) -> Planned {
    let lower = declared.to_ascii_lowercase();
    let base = lower.split(['(', ' ']).next().unwrap_or_default();
    let unsigned = lower.contains("unsigned");
    let places = |name: &str, zone: &str| match arguments(&lower)[..] {
        [places] => format!("{name}({places}) {zone} time zone"),
        _ => format!("{name}(0) {zone} time zone"),
    };
    match kind {
        Kind::Unsigned => Planned::new("numeric(20,0)", Want::Decimal { precision: 20, scale: 0 })
            .told("kept as numeric, for PostgreSQL has no unsigned integers"),
        Kind::Integer => match (base, unsigned) {
            ("tinyint" | "year", _) | ("smallint", false) => Planned::new("smallint", Want::BIGINT),
            ("smallint", true) | ("mediumint", _) | ("int" | "integer", false) => Planned::new("integer", Want::BIGINT),
            _ => Planned::new("bigint", Want::BIGINT),
        },
        Kind::Boolean => Planned::new("boolean", Want::Same),
        Kind::Decimal => match arguments(&lower)[..] {
            [precision, scale] => Planned::new(format!("numeric({precision},{scale})"), Want::Numeric),
            [precision] => Planned::new(format!("numeric({precision},0)"), Want::Numeric),
            _ => Planned::new("numeric", Want::Numeric),
        },
        Kind::Real if base == "float" => Planned::new("real", Want::Double { special: Special::All }),
        Kind::Real => Planned::new("double precision", Want::Double { special: Special::All }),
        Kind::Blob => match base {
            "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
                Planned::new("bytea", Want::Bytes { max: None })
            }
            _ => Planned::new("bytea", Want::Bytes { max: None })
                .told(format!("{declared} is kept as the bytes in which MySQL stores it")),
        },
        Kind::Date => Planned::new("date", Want::Date { max_year: 9999 }).told(NO_ZERO_DATES),
        Kind::Timestamp => {
            Planned::new(places("timestamp", "without"), Want::Moment { max_year: LAST_YEAR, instant: true })
                .told(NO_ZERO_DATES)
        }
        Kind::Instant => Planned::new(places("timestamp", "with"), Want::Moment { max_year: LAST_YEAR, instant: true })
            .told(NO_ZERO_DATES),
        Kind::Time => Planned::new("interval", TEXT).told("kept as interval, for it may be negative or beyond a day"),
        Kind::Json => Planned::new("json", TEXT),
        Kind::Uuid => Planned::new("uuid", TEXT),
        Kind::Text | Kind::Any => match (base, &arguments(&lower)[..]) {
            ("char" | "varchar", [length]) => Planned::new(format!("character varying({length})"), TEXT)
                .told("a row with a NUL character in a text is refused; text compares byte by byte"),
            ("tinytext" | "text" | "mediumtext" | "longtext", _) => Planned::new("text", TEXT)
                .told("a row with a NUL character in a text is refused; text compares byte by byte"),
            _ => {
                let short = if declared.len() > 40 { base } else { declared };
                Planned::new("text", TEXT).told(format!("{short} is kept as text"))
            }
        },
    }
}

const NO_ZERO_DATES: &str = "a row with a zero date (0000-00-00) is refused, for PostgreSQL has none";

/// The numbers in the first brackets of a declared type.
pub(super) fn arguments(declared: &str) -> Vec<u32> {
    let Some((_, rest)) = declared.split_once('(') else { return Vec::new() };
    let inside = rest.split(')').next().unwrap_or_default();
    let numbers: Option<Vec<u32>> = inside.split(',').map(|part| part.trim().parse().ok()).collect();
    numbers.unwrap_or_default()
}
