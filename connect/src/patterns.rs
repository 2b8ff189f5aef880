//! Patterns of table names, as sync files write them: `orders`, `public.*`, and `!audit_*` for what is left out.
//!
//! What is left out is left out wherever it stands in the list.

use crate::{Error, Result, change::TableSchema};

/// What a pattern of tables to leave out begins with.
pub(crate) const NOT: char = '!';

/// The tables that patterns name and no `!` pattern leaves out, in the tables' order and each once.
///
/// # Errors
/// `NotFound`, in the words of `no_match`, for a pattern that matches nothing. A `!` pattern with a `*` may match nothing;
/// one that names a table is a misspelling then, and would let through what somebody wants kept back. `NotFound`, too,
/// where nothing is left.
pub(crate) fn select(
    patterns: &[String],
    tables: Vec<TableSchema>,
    matches: impl Fn(&str, &TableSchema) -> bool,
    no_match: impl Fn(&str, &[TableSchema]) -> String,
) -> Result<Vec<TableSchema>> {
    let left_out: Vec<&str> = patterns.iter().filter_map(|pattern| pattern.strip_prefix(NOT)).collect();
    let wanted: Vec<&str> = patterns.iter().map(String::as_str).filter(|pattern| !pattern.starts_with(NOT)).collect();
    let must = wanted.iter().chain(left_out.iter().filter(|pattern| !pattern.contains('*')));
    for pattern in must {
        if !tables.iter().any(|table| matches(pattern, table)) {
            return Err(Error::not_found(no_match(pattern, &tables)));
        }
    }
    let any = |patterns: &[&str], table: &TableSchema| patterns.iter().any(|pattern| matches(pattern, table));
    let found: Vec<_> = tables.into_iter().filter(|table| any(&wanted, table) && !any(&left_out, table)).collect();
    match found.is_empty() && !left_out.is_empty() {
        true => Err(Error::not_found("every table that the patterns name is left out by one with a !")),
        false => Ok(found),
    }
}

/// Whether a name fits a pattern, in which `*` stands for any text and the case of ASCII letters does not count.
pub(crate) fn glob(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// What to write into a sync file so that a table stays out.
pub(crate) fn leave_out(table: &str) -> String {
    format!("leave it out by \"{NOT}{table}\" in the sync's tables")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_written() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("Orders", "orders", true),
            ("order", "orders", false),
            ("o*s", "orders", true),
            ("o*d*s", "orders", true),
            ("o*x*s", "orders", false),
            ("*ers", "orders", true),
            ("*er", "orders", false),
            ("ord*ers*s", "orders", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_left_out_is_left_out_wherever_it_stands() {
        let table = |name: &str| TableSchema { schema: None, name: name.into(), columns: Vec::new() };
        let tables = || ["orders", "audit_log", "audit_old", "items"].map(table).to_vec();
        let found = |patterns: &[&str]| {
            let patterns: Vec<_> = patterns.iter().map(|pattern| pattern.to_string()).collect();
            let found = select(&patterns, tables(), |p, t| glob(p, &t.name), |p, _| format!("no table {p}"));
            found.map(|found| found.into_iter().map(|table| table.name).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(found(&["*", "!audit_*"]).expect("some"), "orders items");
        assert_eq!(found(&["!AUDIT_*", "*"]).expect("some"), "orders items");
        assert_eq!(found(&["audit_*", "!audit_log"]).expect("some"), "audit_old");
        assert_eq!(
            found(&["*", "!later_*"]).expect("a pattern that may match one day"),
            "orders audit_log audit_old items"
        );
        for (patterns, said) in [
            (["*", "!audit_lgo"], "no table audit_lgo"),
            (["itmes", "!audit_*"], "no table itmes"),
            (["*", "!*"], "every"),
        ] {
            assert!(found(&patterns).expect_err(said).to_string().contains(said));
        }
    }
}
