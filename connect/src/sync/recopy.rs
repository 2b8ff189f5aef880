//! Which tables `--recopy` means.

use tidemill_core::{log::Session, suggest::nearest};

use super::{file::SyncSpec, owner_of, run::capture_parts};
use crate::{Error, Result};

/// The full names of tables to copy anew. A name without its schema does where only one table of the file's syncs has it,
/// now or in what they captured.
///
/// # Errors
/// `NotFound` with the nearest table, `Conflict` where a name means several tables; `Unavailable` where a source that may
/// have the table is not there.
pub async fn resolve_recopy(session: &dyn Session, specs: &[SyncSpec], names: &[String]) -> Result<Vec<String>> {
    let (mut known, mut unread): (Vec<(String, String)>, _) = (Vec::new(), None);
    for spec in specs.iter().filter(|_| !names.is_empty()) {
        let source = spec.from.source()?;
        match source.tables(&spec.tables).await {
            Ok(tables) => known.extend(tables.into_iter().map(|table| (table.full_name(), table.name))),
            Err(error) => unread = unread.or(Some(error.context(format!("sync {}", spec.name)))),
        }
        // A table that was dropped in the source is named to be forgotten.
        let captured = session.positions(&owner_of(&spec.name)).await?;
        for name in source.captured(&capture_parts(&captured))? {
            let bare = name.split_once('.').map_or(name.as_str(), |(_, bare)| bare).to_owned();
            known.push((name, bare));
        }
    }
    names.iter().map(|name| resolve(name, &known, unread.as_ref())).collect()
}

/// The one table of those known, by full and bare name, that a name means.
fn resolve(name: &str, known: &[(String, String)], unread: Option<&Error>) -> Result<String> {
    if let Some((full, _)) = known.iter().find(|(full, _)| full.eq_ignore_ascii_case(name)) {
        return Ok(full.clone());
    }
    let bare = known.iter().filter(|(_, bare)| bare.eq_ignore_ascii_case(name));
    let mut meant: Vec<&str> = bare.map(|(full, _)| full.as_str()).collect();
    meant.sort_unstable();
    meant.dedup();
    match (&meant[..], unread) {
        // A source that cannot be read may have the table, too.
        (_, Some(unread)) => Err(unread.duplicate()),
        ([one], None) => Ok((*one).to_owned()),
        ([], None) => {
            let hint = nearest(name, known.iter().flat_map(|(full, bare)| [full.as_str(), bare.as_str()]));
            let hint = hint.map(|name| format!("; the nearest is {name}")).unwrap_or_default();
            Err(Error::not_found(format!("no sync of the file has a table {name} to copy anew{hint}")))
        }
        (several, None) => {
            let several = several.join(", ");
            Err(Error::conflict(format!("the table {name} to copy anew may be each of {several}: name it in full")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_means_the_one_table_that_has_it() {
        let known = ["public.Orders", "public.items", "old.items", "public.items", "main"]
            .map(|full: &str| (full.to_owned(), full.split_once('.').map_or(full, |(_, bare)| bare).to_owned()));
        let resolved = |name: &str| resolve(name, &known, None);
        assert_eq!(resolved("orders").expect("one"), "public.Orders");
        assert_eq!(resolved("OLD.items").expect("in full"), "old.items");
        assert_eq!(resolved("main").expect("no schema"), "main");
        let several = resolved("items").expect_err("two");
        assert!(several.to_string().contains("old.items, public.items: name it in full"), "{several}");
        assert!(resolved("order").expect_err("none").to_string().contains("the nearest is Orders"));
        // A source that is away may have another one.
        let away = Error::unavailable("away");
        assert_eq!(resolve("orders", &known, Some(&away)).expect_err("away").kind(), crate::ErrorKind::Unavailable);
        assert!(resolve("public.orders", &known, Some(&away)).is_ok());
    }
}
