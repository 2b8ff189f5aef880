//! Windowing table functions in FROM: each becomes a subquery over its table, whose names are resolved here.
//!
//! The subquery has the table's columns, the window's, and, where the table is planned with them, its hidden columns:
//! so they can be named through the function as without it, and `*` leaves them out as without it.

use datafusion::sql::sqlparser::ast::{Ident, TableAlias, TableAliasColumnDef, TableFactor};
use tidemill_core::{Error, Result, suggest::nearest};

use super::{
    Names, rename, renamed,
    scope::{Found, Relation, Scope},
};
use crate::{
    catalog::folded,
    windows::{COLUMNS, Call, Tumble},
};

impl Names<'_> {
    /// Writes a call out and tells what relation it is.
    pub(super) fn windowed(&mut self, call: Call, factor: &mut TableFactor, scope: &Scope<'_>) -> Result<Relation> {
        // As in PostgreSQL a function in FROM goes by its own name.
        let own_name =
            || TableAlias { explicit: true, name: Ident::new(call.function()), columns: Vec::new(), at: None };
        let mut alias = call.alias.clone().unwrap_or_else(own_name);
        let mut tumble = call.arguments()?;
        let mut inner = Scope::new(Some(scope));
        self.factor(&mut tumble.data, &mut inner)?;
        let data = inner.relations.pop().unwrap_or_else(Relation::unknown);
        self.time_column(&mut tumble, &data)?;
        let columns = match &data.columns {
            Some(columns) => Some(with_windows(columns, &call)?),
            None => None,
        };
        let hidden: &[String] = if self.is_wide(&data) { &data.hidden } else { &[] };
        let visible = data.columns.as_deref().filter(|_| !hidden.is_empty());
        let relation = Relation {
            parts: vec![folded(&alias.name)],
            columns: renamed(columns.clone(), &alias),
            hidden: data.hidden.clone(),
            topic: data.topic.clone(),
        };
        // A subquery's columns may have other names than are known here.
        if data.topic.is_some() {
            name_the_rest(&mut alias, columns.iter().flatten().chain(hidden));
        }
        let subquery = tumble.into_query(visible, hidden)?;
        *factor = TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None };
        Ok(relation)
    }

    fn time_column(&mut self, tumble: &mut Tumble, data: &Relation) -> Result<()> {
        match data.find(&tumble.time)? {
            Found::Here => Ok(()),
            Found::Hidden(topics) => {
                self.wide.extend(topics);
                Ok(())
            }
            Found::Named(name) => {
                rename(&mut tumble.time, &name);
                Ok(())
            }
            Found::Nothing => {
                let name = folded(&tumble.time);
                let known = data.columns.iter().flatten().chain(&data.hidden).map(String::as_str);
                let hint = nearest(&name, known).map(|near| format!("; nearest is {near:?}"));
                let place = tumble.place_of_time();
                Err(Error::invalid(format!("no column {name:?}{} ({place})", hint.unwrap_or_default())))
            }
        }
    }
}

fn with_windows(columns: &[String], call: &Call) -> Result<Vec<String>> {
    if let Some(own) = columns.iter().find(|own| COLUMNS.contains(&own.as_str())) {
        let cure = format!("rename it: TABLE (SELECT {own} AS ..., ... FROM ...)");
        let text = format!("the table of TUMBLE has a column {own:?} of its own; {cure}{}", call.position());
        return Err(Error::invalid(text));
    }
    Ok(columns.iter().cloned().chain(COLUMNS.map(str::to_owned)).collect())
}

/// The planner wants names for all columns or for none.
fn name_the_rest<'n>(alias: &mut TableAlias, all: impl Iterator<Item = &'n String>) {
    let named = alias.columns.len();
    if named > 0 {
        let def = |name: &String| TableAliasColumnDef { name: Ident::with_quote('"', name), data_type: None };
        alias.columns.extend(all.skip(named).map(def));
    }
}
