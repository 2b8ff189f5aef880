//! What the sinks of database servers have in common: changes folded to one a key, and the ledger of positions that
//! keeps two workers of one sync apart.

pub mod existing;
pub mod fold;
pub mod lanes;
pub mod ledger;
pub(crate) mod tables;

use crate::{Error, Result, change::TableSchema, command::shell_word, converter::TopicSchema};

/// The table in which a target keeps how far each sync is.
pub const POSITIONS: &str = "_tidemill_sync";
/// The command that gives up what a target holds.
pub const REPLACE: &str = "tidemill sync run FILE --replace";

/// What is in a target under a table's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// No table.
    No,
    /// An empty table.
    Empty,
    /// Rows.
    WithRows,
}

/// Refuses tables that hold rows which the log did not write, or are empty but of another shape.
///
/// # Errors
/// `Conflict` names all of them.
pub fn refuse_tables(target: &str, filled: &[String], unfit: &[String], merge: bool) -> Result<()> {
    let mut faults = Vec::new();
    match filled {
        [] => {}
        [one] => {
            faults.push(format!("target table {one} in {target} exists and holds rows that this log did not write"))
        }
        _ => faults.push(format!(
            "target tables {} in {target} exist and hold rows that this log did not write",
            filled.join(", ")
        )),
    }
    match unfit {
        [] => {}
        _ if merge => faults
            .push(format!("what {target} has does not fit the source and cannot be merged into: {}", unfit.join(", "))),
        [one] => faults.push(format!("target table {one} in {target} is empty but not as the source would have it")),
        _ => faults.push(format!(
            "target tables {} in {target} are empty but not as the source would have them",
            unfit.join(", ")
        )),
    }
    if faults.is_empty() {
        return Ok(());
    }
    let them = if filled.len() + unfit.len() == 1 { "it" } else { "them" };
    Err(Error::conflict(format!(
        "{}; name another target, leave {them} out, take {them} over with on_existing = \"merge\", or drop {them} and copy \
         {them} anew: {REPLACE}",
        faults.join("; ")
    )))
}

/// A table that this sync filled is not there any more: its rows would not come again.
pub fn gone(schema: &TopicSchema, target: &str) -> Error {
    let table = schema.table.full_name();
    Error::conflict(format!(
        "the table of {table} in {target} is gone, and the rows it had are not sent again; to copy it anew: tidemill sync run \
         FILE --recopy {}",
        shell_word(&table)
    ))
}

/// What keeps an empty table from being used: a column that is missing, another, or of another type, or another key.
/// Columns beyond ours must accept that no row names them, which `optional` tells.
pub fn unfit(wanted: &TableSchema, found: &TableSchema, optional: impl Fn(&str) -> bool) -> Option<String> {
    for column in &wanted.columns {
        let Some(own) = found.columns.iter().find(|own| own.name == column.name) else {
            return Some(format!("has no column {}", column.name));
        };
        if !same_type(&own.declared_type, &column.declared_type) {
            return Some(format!("column {} is {}, not {}", column.name, own.declared_type, column.declared_type));
        }
        if own.key != column.key {
            return Some(format!("column {} has another place in the key", column.name));
        }
    }
    let foreign = found.columns.iter().find(|own| {
        !wanted.columns.iter().any(|column| column.name == own.name) && (own.key.is_some() || !optional(&own.name))
    });
    foreign.map(|own| format!("has a column {} that no row would fill", own.name))
}

/// Whether two declared types are the same type. Old servers tell integers' widths of display, new ones do not.
pub fn same_type(a: &str, b: &str) -> bool {
    fn plain(declared: &str) -> String {
        let lower = declared.to_ascii_lowercase();
        let base = lower.split(['(', ' ']).next().unwrap_or_default().to_owned();
        match base.as_str() {
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "year" => {
                let unsigned = if lower.contains("unsigned") { " unsigned" } else { "" };
                format!("{}{unsigned}", if base == "integer" { "int" } else { &base })
            }
            // MariaDB's JSON is a text with a check.
            "json" => "longtext".into(),
            _ => lower.replace(", ", ","),
        }
    }
    plain(a) == plain(b)
}
