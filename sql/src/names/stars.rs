//! `*` and what a SELECT yields.

use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Select, SelectItem, SelectItemQualifiedWildcardKind as Kind,
    WildcardAdditionalOptions as Options,
};
use tidemill_core::{Error, Result};

use super::{Columns, Names, idents, scope::Relation, scope::Scope};
use crate::catalog::folded;

impl Names<'_> {
    /// Writes out every `*` over a table whose hidden columns are planned, and gives `t.*` the name `t` is planned by.
    pub(super) fn stars(&self, select: &mut Select, scope: &Scope<'_>) -> Result<()> {
        let mut items = Vec::with_capacity(select.projection.len());
        for item in std::mem::take(&mut select.projection) {
            match item {
                SelectItem::Wildcard(options) if scope.relations.iter().any(|r| self.is_wide(r)) => {
                    refuse_options(&options)?;
                    self.write_out_all(scope, &mut items)?;
                }
                SelectItem::QualifiedWildcard(Kind::ObjectName(name), options) => {
                    match scope.relation(&idents(&name)) {
                        Some(relation) if self.is_wide(relation) => {
                            refuse_options(&options)?;
                            write_out(relation, &[], &mut items);
                        }
                        Some(relation) => items.push(star_of(relation, options)),
                        None => items.push(SelectItem::QualifiedWildcard(Kind::ObjectName(name), options)),
                    }
                }
                other => items.push(other),
            }
        }
        select.projection = items;
        Ok(())
    }

    fn write_out_all(&self, scope: &Scope<'_>, items: &mut Vec<SelectItem>) -> Result<()> {
        let mut shown: Vec<String> = Vec::new();
        for relation in &scope.relations {
            if relation.parts.is_empty() {
                return Err(Error::unsupported("* beside hidden columns needs an alias for every subquery in FROM"));
            }
            match &relation.columns {
                Some(columns) => {
                    write_out(relation, &shown, items);
                    shown.extend(columns.iter().filter(|column| scope.using.contains(column)).cloned());
                }
                None => items.push(star_of(relation, Options::default())),
            }
        }
        Ok(())
    }
}

fn refuse_options(options: &Options) -> Result<()> {
    if *options == Options::default() {
        return Ok(());
    }
    Err(Error::unsupported("* with EXCEPT, REPLACE or RENAME beside hidden columns; write the columns"))
}

fn write_out(relation: &Relation, but: &[String], items: &mut Vec<SelectItem>) {
    for column in relation.columns.iter().flatten().filter(|column| !but.contains(column)) {
        let parts = relation.parts.iter().chain([column]).map(|part| Ident::with_quote('"', part)).collect();
        items.push(SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)));
    }
}

fn star_of(relation: &Relation, options: Options) -> SelectItem {
    let part = |part: &String| ObjectNamePart::Identifier(Ident::with_quote('"', part));
    let name = ObjectName(relation.parts.iter().map(part).collect());
    SelectItem::QualifiedWildcard(Kind::ObjectName(name), options)
}

/// The names of a SELECT's output, of columns that can be named at all; `None` where they are not all known.
pub(super) fn output(projection: &[SelectItem], scope: &Scope<'_>) -> Columns {
    let mut names = Vec::new();
    for item in projection {
        match item {
            SelectItem::UnnamedExpr(Expr::Identifier(ident)) => names.push(folded(ident)),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => names.extend(parts.last().map(folded)),
            SelectItem::UnnamedExpr(expr) => names.push(expr.to_string()),
            SelectItem::ExprWithAlias { alias, .. } => names.push(folded(alias)),
            SelectItem::ExprWithAliases { aliases, .. } => names.extend(aliases.iter().map(folded)),
            SelectItem::Wildcard(_) => {
                for relation in &scope.relations {
                    names.extend(relation.columns.clone()?);
                }
            }
            SelectItem::QualifiedWildcard(Kind::ObjectName(name), _) => {
                names.extend(scope.relation(&idents(name))?.columns.clone()?);
            }
            SelectItem::QualifiedWildcard(..) => return None,
        }
    }
    Some(names)
}
