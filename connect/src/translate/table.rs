//! `docs/TYPES.md`, made from the translations themselves.

use std::fmt::Write as _;

use super::Translation;
use crate::{
    change::{Column, TableSchema},
    converter::TopicSchema,
    types::Dialect,
};

/// Types of a source, as it declares them.
pub(super) fn types(dialect: Dialect) -> &'static [&'static str] {
    match dialect {
        Dialect::Sqlite => &[
            "INTEGER",
            "BIGINT",
            "BOOLEAN",
            "REAL",
            "DOUBLE",
            "NUMERIC(10,2)",
            "DECIMAL(10,2)",
            "TEXT",
            "VARCHAR(20)",
            "DATE",
            "DATETIME",
            "JSON",
            "BLOB",
            "",
        ],
        Dialect::Postgres => &[
            "smallint",
            "integer",
            "bigint",
            "boolean",
            "real",
            "double precision",
            "numeric(10,2)",
            "numeric(40,10)",
            "numeric",
            "text",
            "character varying(20)",
            "character(5)",
            "bytea",
            "date",
            "time without time zone",
            "timestamp without time zone",
            "timestamp(3) with time zone",
            "time with time zone",
            "interval",
            "json",
            "jsonb",
            "uuid",
            "inet",
            "integer[]",
            "int4range",
            "mood (an enum)",
        ],
        Dialect::Mysql => &[
            "tinyint(1)",
            "tinyint(4)",
            "smallint(6)",
            "smallint(5) unsigned",
            "mediumint(9)",
            "int(11)",
            "int(10) unsigned",
            "bigint(20)",
            "bigint(20) unsigned",
            "bit(8)",
            "year(4)",
            "decimal(10,2)",
            "decimal(65,30)",
            "float",
            "double",
            "char(5)",
            "varchar(20)",
            "text",
            "longtext",
            "binary(3)",
            "varbinary(20)",
            "blob",
            "date",
            "time(6)",
            "datetime",
            "timestamp(3)",
            "json",
            "uuid",
            "enum('a','b')",
            "set('a','b')",
            "point",
        ],
    }
}

pub(super) const DIALECTS: [Dialect; 3] = [Dialect::Postgres, Dialect::Mysql, Dialect::Sqlite];

/// A table with a key and one column more.
pub(super) fn one_column(from: Dialect, declared: &str, key: bool) -> TopicSchema {
    let column = |name: &str, declared: &str, key| Column {
        name: name.into(),
        declared_type: declared.into(),
        not_null: false,
        key,
    };
    let id = column("id", if from == Dialect::Postgres { "bigint" } else { "BIGINT" }, Some(0));
    let columns = vec![id, column("v", declared, key.then_some(1))];
    let schema = (from == Dialect::Postgres).then(|| "public".to_owned());
    TopicSchema::draft("s", from, &TableSchema { schema, name: "t".into(), columns })
}

/// The type that a column gets, and what is told of it.
fn becomes(from: Dialect, declared: &str, key: bool, to: Dialect) -> (String, Option<String>) {
    let declared = declared.split(" (an").next().unwrap_or_default();
    let translation = Translation::new(&one_column(from, declared, key), to);
    let column = &translation.table().columns[1].declared_type;
    let shown = if column.is_empty() { "no type".into() } else { format!("`{column}`") };
    (shown, translation.losses().into_iter().find(|(name, _)| name == "v").map(|(_, told)| told))
}

/// The whole page.
pub(super) fn page() -> String {
    let mut page = String::from(
        "# Types\n\nWhat a column of one database becomes in another. This page is made from the code by a test: \
         `UPDATE_TYPES=1 cargo test -p tidemill-connect types_page`.\n\n\
         Between databases of one kind types and values stay as they are; of PostgreSQL, types that are not its own \
         (enums, domains, those of extensions) become `text`. A value that the target's column cannot hold is refused \
         with the names of table, key and column; it is never rounded, cut or made NULL. `tidemill sync plan` tells the \
         notes for the tables of a sync.\n\nIn MySQL and MariaDB all text compares byte by byte, spaces at the end \
         too. `verify` takes for equal what means the same: decimals but for zeros at their end, 0 and -0, JSON but for \
         spaces and the order of members.\n",
    );
    for from in DIALECTS {
        for to in DIALECTS.into_iter().filter(|to| *to != from) {
            let _ = write!(page, "\n## {from} to {to}\n\n| {from} | {to} | note |\n|---|---|---|\n");
            for declared in types(from) {
                let (becomes, told) = becomes(from, declared, false, to);
                let declared = if declared.is_empty() { "no type".into() } else { format!("`{declared}`") };
                let _ = writeln!(page, "| {declared} | {becomes} | {} |", told.unwrap_or_default());
            }
            if to == Dialect::Mysql {
                let texts = if from == Dialect::Postgres { ["text", "bytea"] } else { ["TEXT", "BLOB"] };
                for declared in texts {
                    let (becomes, told) = self::becomes(from, declared, true, to);
                    let _ = writeln!(page, "| `{declared}` in a key | {becomes} | {} |", told.unwrap_or_default());
                }
            }
        }
    }
    page
}
