//! What names mean in one SELECT: its relations with their columns, its aliases, and the scope around it.

use datafusion::sql::sqlparser::ast::{Ident, TableAlias};
use tidemill_core::{Error, Result};

use super::{Columns, TableKey, renamed};
use crate::{
    catalog::{folded, is_exactly, is_ignoring_case, quoted},
    table::Layout,
};

/// Something in FROM.
#[derive(Debug)]
pub(super) struct Relation {
    /// What it goes by: an alias, or a table's catalog, schema and name. Empty where nothing can qualify with it.
    pub(super) parts: Vec<String>,
    pub(super) columns: Columns,
    pub(super) hidden: Vec<String>,
    /// Set if it is a topic's table.
    pub(super) topic: Option<TableKey>,
}

impl Relation {
    pub(super) fn topic(key: TableKey, parts: Vec<String>, layout: &Layout, alias: Option<&TableAlias>) -> Self {
        let columns = Some(layout.visible());
        match alias {
            None => Self { parts, columns, hidden: layout.hidden(), topic: Some(key) },
            Some(alias) => Self {
                parts: vec![folded(&alias.name)],
                columns: renamed(columns, alias),
                hidden: layout.hidden(),
                topic: Some(key),
            },
        }
    }

    pub(super) fn derived(name: Option<String>, columns: Columns, alias: Option<&TableAlias>) -> Self {
        let (parts, columns) = match alias {
            Some(alias) => (vec![folded(&alias.name)], renamed(columns, alias)),
            None => (name.into_iter().collect(), columns),
        };
        Self { parts, columns, hidden: Vec::new(), topic: None }
    }

    pub(super) fn unknown() -> Self {
        Self { parts: Vec::new(), columns: None, hidden: Vec::new(), topic: None }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().flatten().map(String::as_str)
    }

    /// What a name means among this relation's columns.
    pub(super) fn find(&self, ident: &Ident) -> Result<Found> {
        find(ident, &[self], &[])
    }

    fn is_named(&self, qualifier: &[Ident], fits: fn(&Ident, &str) -> bool) -> bool {
        let skipped = self.parts.len().checked_sub(qualifier.len());
        skipped.is_some_and(|skipped| qualifier.iter().zip(&self.parts[skipped..]).all(|(i, name)| fits(i, name)))
    }
}

/// What a name means in a scope.
#[derive(Debug)]
pub(super) enum Found {
    /// It stands as it is.
    Here,
    /// It is a hidden column of these topics.
    Hidden(Vec<TableKey>),
    /// It is this name but for case.
    Named(String),
    /// The scope around may know it.
    Nothing,
}

/// The names of one SELECT.
#[derive(Debug)]
pub(super) struct Scope<'p> {
    pub(super) relations: Vec<Relation>,
    /// Names of the output, while clauses are visited that see them.
    pub(super) aliases: Vec<String>,
    /// Columns of USING, which `*` shows once.
    pub(super) using: Vec<String>,
    pub(super) outer: Option<&'p Scope<'p>>,
}

impl<'p> Scope<'p> {
    pub(super) fn new(outer: Option<&'p Scope<'p>>) -> Self {
        Self { relations: Vec::new(), aliases: Vec::new(), using: Vec::new(), outer }
    }

    /// The scope of an ORDER BY after a set operation: the output alone.
    pub(super) fn of_output(columns: Columns, outer: Option<&'p Scope<'p>>) -> Self {
        let mut scope = Self::new(outer);
        scope.relations.push(Relation::derived(None, columns, None));
        scope
    }

    /// The relation that a qualifier names, if exactly one.
    pub(super) fn relation(&self, qualifier: &[Ident]) -> Option<&Relation> {
        let fitting = |fits: fn(&Ident, &str) -> bool| -> Vec<&Relation> {
            self.relations.iter().filter(|relation| relation.is_named(qualifier, fits)).collect()
        };
        let exact = fitting(is_exactly);
        let found = if exact.is_empty() { fitting(is_ignoring_case) } else { exact };
        match found.as_slice() {
            [relation] => Some(relation),
            _ => None,
        }
    }

    /// What a bare name means.
    ///
    /// # Errors
    /// `Invalid` where several names are the same but for case.
    pub(super) fn find(&self, ident: &Ident) -> Result<Found> {
        let relations: Vec<&Relation> = self.relations.iter().collect();
        find(ident, &relations, &self.aliases)
    }
}

fn find(ident: &Ident, relations: &[&Relation], aliases: &[String]) -> Result<Found> {
    let visible = || relations.iter().flat_map(|relation| relation.names()).chain(aliases.iter().map(String::as_str));
    if visible().any(|name| is_exactly(ident, name)) {
        return Ok(Found::Here);
    }
    let hidden = |fits: fn(&Ident, &str) -> bool| -> Vec<TableKey> {
        let has = |relation: &&&Relation| relation.hidden.iter().any(|name| fits(ident, name));
        relations.iter().filter(has).filter_map(|relation| relation.topic.clone()).collect()
    };
    let topics = hidden(is_exactly);
    if !topics.is_empty() {
        return Ok(Found::Hidden(topics));
    }
    let mut fitting: Vec<&str> = visible().filter(|name| is_ignoring_case(ident, name)).collect();
    fitting.sort_unstable();
    fitting.dedup();
    match fitting.as_slice() {
        [name] => Ok(Found::Named((*name).to_owned())),
        [] if relations.iter().any(|relation| relation.columns.is_none()) => Ok(Found::Here),
        [] => Ok(Found::Nothing),
        several => {
            let names: Vec<String> = several.iter().map(|name| quoted(name)).collect();
            let at = ident.span.start;
            let text = format!("column {ident} may be {}; write one of them", names.join(" or "));
            Err(Error::invalid(format!("{text} ({}:{})", at.line, at.column)))
        }
    }
}
