//! Resolves the names of a statement before DataFusion plans it.
//!
//! PostgreSQL folds unquoted names to lower case, and sources keep theirs as declared: `TrackId` would be `trackid`,
//! which no table has. This pass walks the parsed statement with the scopes of SQL. An unquoted name that its scope
//! has as folded is left alone; else, where exactly one name of the scope is the same but for case, it becomes that
//! name, quoted. Quoted names, literals, aliases and functions are never touched. Tables are written out in full.
//!
//! The same walk serves the hidden columns: a table one of whose hidden columns is named somewhere is planned with
//! all of them, and every `*` over it is written out without them. And it finds the windowing table functions, which
//! become subqueries here.

mod scope;
mod stars;
mod windows;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::Arc,
};

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, Ident, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, Query, Select,
    SetExpr, Statement, TableAlias, TableFactor, TableFunctionArgs, TableWithJoins, VisitMut, VisitorMut, With,
};
use tidemill_core::{Error, Result};

use self::scope::{Found, Relation, Scope};
use crate::{
    catalog::{CATALOG, Catalog, Table, folded},
    table::{Form, Layout},
    windows::Call,
};

/// Schema and name under which a table is planned; `changes_of` of it, and its like, have names of their own.
pub(crate) type TableKey = (String, String);

/// A table that a statement reads.
#[derive(Debug, Clone)]
pub(crate) struct Used {
    pub(crate) table: Arc<Table>,
    pub(crate) form: Form,
    /// Whether a hidden column of it is named.
    pub(crate) wide: bool,
}

/// Resolves all names of a query (or of the query that an EXPLAIN holds) and tells which tables it reads.
///
/// # Errors
/// `NotFound` for a table, `Invalid` for a name that several fit, `Unsupported` for clauses that would do nothing.
pub(crate) fn resolve(statement: &mut Statement, catalog: &Catalog) -> Result<BTreeMap<TableKey, Used>> {
    let mut resolved = statement.clone();
    let mut names = Names::new(catalog, BTreeSet::new());
    names.statement(&mut resolved)?;
    if !names.wide.is_empty() {
        // Only now it is known over which tables a `*` must be written out.
        resolved = statement.clone();
        names = Names::new(catalog, names.wide);
        names.statement(&mut resolved)?;
    }
    *statement = resolved;
    let Names { mut used, wide, .. } = names;
    used.iter_mut().for_each(|(key, used)| used.wide = wide.contains(key));
    Ok(used)
}

/// The columns a query or relation yields; `None` where that is not known here.
type Columns = Option<Vec<String>>;

struct Names<'c> {
    catalog: &'c Catalog,
    /// Common table expressions in scope, innermost last.
    ctes: Vec<(String, Columns)>,
    used: BTreeMap<TableKey, Used>,
    wide: BTreeSet<TableKey>,
}

impl<'c> Names<'c> {
    fn new(catalog: &'c Catalog, wide: BTreeSet<TableKey>) -> Self {
        Self { catalog, ctes: Vec::new(), used: BTreeMap::new(), wide }
    }

    fn statement(&mut self, statement: &mut Statement) -> Result<()> {
        match statement {
            Statement::Query(query) => self.query(query, None).map(|_| ()),
            Statement::Explain { statement, .. } => self.statement(statement),
            _ => Err(Error::unsupported("only queries have names to resolve")),
        }
    }

    fn query(&mut self, query: &mut Query, outer: Option<&Scope<'_>>) -> Result<Columns> {
        if !query.locks.is_empty() {
            return Err(Error::unsupported("FOR UPDATE and FOR SHARE lock nothing here; leave them out"));
        }
        let depth = self.ctes.len();
        if let Some(with) = &mut query.with {
            self.with(with, outer)?;
        }
        let (scope, columns) = match query.body.as_mut() {
            SetExpr::Select(select) => self.select(select, outer)?,
            body => {
                let columns = self.set_expr(body, outer)?;
                (Scope::of_output(columns.clone(), outer), columns)
            }
        };
        if let Some(order_by) = &mut query.order_by {
            self.visit(order_by, &scope)?;
        }
        self.ctes.truncate(depth);
        Ok(columns)
    }

    fn with(&mut self, with: &mut With, outer: Option<&Scope<'_>>) -> Result<()> {
        for cte in &mut with.cte_tables {
            let name = folded(&cte.alias.name);
            if with.recursive {
                // Inside itself its columns are those of its first branch, which is not yet known.
                let declared = !cte.alias.columns.is_empty();
                self.ctes.push((name.clone(), declared.then(|| renamed(None, &cte.alias)).flatten()));
            }
            let columns = self.query(&mut cte.query, outer)?;
            if with.recursive {
                self.ctes.pop();
            }
            self.ctes.push((name, renamed(columns, &cte.alias)));
        }
        Ok(())
    }

    fn set_expr(&mut self, body: &mut SetExpr, outer: Option<&Scope<'_>>) -> Result<Columns> {
        match body {
            SetExpr::Select(select) => self.select(select, outer).map(|(_, columns)| columns),
            SetExpr::Query(query) => self.query(query, outer),
            SetExpr::SetOperation { left, right, .. } => {
                let columns = self.set_expr(left, outer)?;
                self.set_expr(right, outer)?;
                Ok(columns)
            }
            SetExpr::Values(values) => {
                let scope = Scope::new(outer);
                let width = values.rows.first().map_or(0, |row| row.content.len());
                self.visit(values, &scope)?;
                Ok(Some((1..=width).map(|i| format!("column{i}")).collect()))
            }
            SetExpr::Table(_) => Err(Error::unsupported("TABLE t is not supported; write: SELECT * FROM t")),
            _ => Err(Error::unsupported("only queries are supported; INSERT, UPDATE, DELETE and MERGE write")),
        }
    }

    fn select<'s>(&mut self, select: &mut Select, outer: Option<&'s Scope<'s>>) -> Result<(Scope<'s>, Columns)> {
        if select.into.is_some() {
            return Err(Error::unsupported("SELECT INTO makes a table; only queries are supported"));
        }
        let mut scope = Scope::new(outer);
        for from in &mut select.from {
            self.table_with_joins(from, &mut scope)?;
        }
        self.stars(select, &scope)?;
        self.visit(&mut select.projection, &scope)?;
        self.visit(&mut select.distinct, &scope)?;
        self.visit(&mut select.selection, &scope)?;
        self.visit(&mut select.named_window, &scope)?;
        let columns = stars::output(&select.projection, &scope);
        scope.aliases = columns.clone().unwrap_or_default();
        self.visit(&mut select.group_by, &scope)?;
        self.visit(&mut select.having, &scope)?;
        self.visit(&mut select.qualify, &scope)?;
        Ok((scope, columns))
    }

    fn table_with_joins(&mut self, from: &mut TableWithJoins, scope: &mut Scope<'_>) -> Result<()> {
        self.factor(&mut from.relation, scope)?;
        for join in &mut from.joins {
            self.factor(&mut join.relation, scope)?;
            match constraint_of(&mut join.join_operator) {
                Some(JoinConstraint::On(condition)) => self.visit(condition, scope)?,
                Some(JoinConstraint::Using(columns)) => {
                    for ident in columns.iter_mut().filter_map(only_ident) {
                        self.column(ident, scope)?;
                        scope.using.push(folded(ident));
                    }
                }
                Some(JoinConstraint::Natural) if scope.relations.iter().any(|r| self.is_wide(r)) => {
                    let text = "NATURAL JOIN would join the hidden columns too; write: JOIN ... USING (...)";
                    return Err(Error::unsupported(text));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn factor(&mut self, factor: &mut TableFactor, scope: &mut Scope<'_>) -> Result<()> {
        if let Some(call) = Call::of(factor)? {
            let relation = self.windowed(call, factor, scope)?;
            scope.relations.push(relation);
            return Ok(());
        }
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                let relation = self.named(name, alias.as_ref())?;
                scope.relations.push(relation);
            }
            TableFactor::Table { name, alias, args, .. } if form_called(name).is_some() => {
                let arguments = args.take().map(|args| args.args).unwrap_or_default();
                let relation = self.form_of(name, alias, &arguments)?;
                scope.relations.push(relation);
            }
            TableFactor::Table { name, alias, args: Some(TableFunctionArgs { args, .. }), .. } => {
                let function = idents(name);
                self.visit(args, scope)?;
                scope.relations.push(Relation::derived(function.last().map(folded), None, alias.as_ref()));
            }
            TableFactor::Derived { subquery, alias, .. } => {
                let columns = self.query(subquery, Some(scope))?;
                scope.relations.push(Relation::derived(None, columns, alias.as_ref()));
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => {
                self.table_with_joins(table_with_joins, scope)?;
            }
            other => {
                self.visit(other, scope)?;
                scope.relations.push(Relation::unknown());
            }
        }
        Ok(())
    }

    /// A name in FROM: of a common table expression, of DataFusion's own lists, or of a topic's table.
    fn named(&mut self, name: &mut ObjectName, alias: Option<&TableAlias>) -> Result<Relation> {
        let parts = idents(name);
        if let [only] = parts.as_slice() {
            let text = folded(only);
            if let Some((_, columns)) = self.ctes.iter().rev().find(|(cte, _)| *cte == text) {
                return Ok(Relation::derived(Some(text), columns.clone(), alias));
            }
        }
        if parts.len() > 1 && folded(&parts[parts.len() - 2]) == "information_schema" {
            return Ok(Relation::derived(parts.last().map(folded), None, alias));
        }
        let table = Arc::clone(self.catalog.find(&parts)?);
        let form = if table.declared.is_some() { Form::Current } else { Form::Raw };
        let key = (table.schema.clone(), table.name.clone());
        Ok(self.topic(name, key, Used { table, form, wide: false }, alias))
    }

    /// `changes_of(t)` and its like: a topic in another form.
    fn form_of(
        &mut self,
        name: &mut ObjectName,
        alias: &mut Option<TableAlias>,
        arguments: &[FunctionArg],
    ) -> Result<Relation> {
        let Some((function, form)) = form_called(name) else { return Err(Error::internal("no form of a table")) };
        let parts = match arguments {
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(ident)))] => vec![ident.clone()],
            [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(parts)))] => parts.clone(),
            _ => {
                let text = format!("{function} takes the name of one table: {function}(schema.\"Table\")");
                return Err(Error::invalid(text));
            }
        };
        let table = Arc::clone(self.catalog.find(&parts)?);
        if table.declared.is_none() && form != Form::Raw {
            let are = if form == Form::Changes { "its records are its changes" } else { "its records are text" };
            let text = format!("{} is not filled by a sync; {are}: select from it", table.sql_name());
            return Err(Error::invalid(text));
        }
        let key = (table.schema.clone(), format!("{function}({})", table.name));
        // As in PostgreSQL a function in FROM goes by its own name.
        let alias = alias.get_or_insert_with(|| TableAlias {
            explicit: true,
            name: Ident::new(function),
            columns: Vec::new(),
            at: None,
        });
        Ok(self.topic(name, key, Used { table, form, wide: false }, Some(alias)))
    }

    fn topic(&mut self, name: &mut ObjectName, key: TableKey, used: Used, alias: Option<&TableAlias>) -> Relation {
        let layout = Layout::of(&used.table, used.form);
        let parts = [CATALOG, &key.0, &key.1].map(str::to_owned).to_vec();
        let span = idents(name).last().map(|ident| ident.span);
        let part = |text: &String| {
            let ident = Ident::with_quote('"', text);
            ObjectNamePart::Identifier(span.map_or(ident.clone(), |span| Ident { span, ..ident }))
        };
        name.0 = parts.iter().map(part).collect();
        self.used.insert(key.clone(), used);
        Relation::topic(key, parts, &layout, alias)
    }

    fn is_wide(&self, relation: &Relation) -> bool {
        relation.topic.as_ref().is_some_and(|key| self.wide.contains(key))
    }

    /// Resolves a bare name.
    fn column(&mut self, ident: &mut Ident, scope: &Scope<'_>) -> Result<()> {
        let mut at = Some(scope);
        while let Some(scope) = at {
            match scope.find(ident)? {
                Found::Here => return Ok(()),
                Found::Hidden(topics) => {
                    self.wide.extend(topics);
                    return Ok(());
                }
                Found::Named(name) => {
                    rename(ident, &name);
                    return Ok(());
                }
                Found::Nothing => at = scope.outer,
            }
        }
        Ok(())
    }

    /// Resolves a name with a table's before it.
    fn compound(&mut self, parts: &mut [Ident], scope: &Scope<'_>) -> Result<()> {
        let [qualifier @ .., column] = parts else { return Ok(()) };
        let mut at = Some(scope);
        while let Some(scope) = at {
            if let Some(relation) = scope.relation(qualifier) {
                let names = &relation.parts[relation.parts.len() - qualifier.len()..];
                qualifier.iter_mut().zip(names).for_each(|(ident, name)| rename(ident, name));
                return match relation.find(column)? {
                    Found::Hidden(topics) => {
                        self.wide.extend(topics);
                        Ok(())
                    }
                    Found::Named(name) => {
                        rename(column, &name);
                        Ok(())
                    }
                    Found::Here | Found::Nothing => Ok(()),
                };
            }
            at = scope.outer;
        }
        Ok(())
    }

    fn visit(&mut self, node: &mut impl VisitMut, scope: &Scope<'_>) -> Result<()> {
        match node.visit(&mut Expressions { names: self, scope, depth: 0 }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(error) => Err(error),
        }
    }
}

/// Visits the expressions of one scope. A query inside them is a scope of its own and is not entered twice.
struct Expressions<'n, 'c, 's> {
    names: &'n mut Names<'c>,
    scope: &'s Scope<'s>,
    depth: usize,
}

impl VisitorMut for Expressions<'_, '_, '_> {
    type Break = Error;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Error> {
        self.depth += 1;
        if self.depth > 1 {
            return ControlFlow::Continue(());
        }
        match self.names.query(query, Some(self.scope)) {
            Ok(_) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(e),
        }
    }

    fn post_visit_query(&mut self, _query: &mut Query) -> ControlFlow<Error> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Error> {
        let resolved = match expr {
            _ if self.depth > 0 => Ok(()),
            Expr::Identifier(ident) => self.names.column(ident, self.scope),
            Expr::CompoundIdentifier(parts) => self.names.compound(parts, self.scope),
            _ => Ok(()),
        };
        resolved.map_or_else(ControlFlow::Break, ControlFlow::Continue)
    }
}

/// The columns under an alias's own names for them.
fn renamed(columns: Columns, alias: &TableAlias) -> Columns {
    if alias.columns.is_empty() {
        return columns;
    }
    let mut names: Vec<String> = alias.columns.iter().map(|column| folded(&column.name)).collect();
    names.extend(columns.unwrap_or_default().into_iter().skip(names.len()));
    Some(names)
}

fn rename(ident: &mut Ident, name: &str) {
    if folded(ident) != name {
        name.clone_into(&mut ident.value);
        ident.quote_style = Some('"');
    }
}

fn idents(name: &ObjectName) -> Vec<Ident> {
    name.0.iter().filter_map(|part| part.as_ident().cloned()).collect()
}

fn only_ident(name: &mut ObjectName) -> Option<&mut Ident> {
    match name.0.as_mut_slice() {
        [ObjectNamePart::Identifier(ident)] => Some(ident),
        _ => None,
    }
}

/// The functions in FROM that read a topic in another form.
const FORMS: [(&str, Form); 3] = [("changes_of", Form::Changes), ("texts_of", Form::Texts), ("records_of", Form::Raw)];

fn form_called(name: &ObjectName) -> Option<(&'static str, Form)> {
    let [only] = &idents(name)[..] else { return None };
    let called = folded(only);
    FORMS.into_iter().find(|(function, _)| *function == called)
}

fn constraint_of(operator: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    use JoinOperator as J;
    match operator {
        J::Join(c) | J::Inner(c) | J::Left(c) | J::LeftOuter(c) | J::Right(c) | J::RightOuter(c) => Some(c),
        J::FullOuter(c) | J::CrossJoin(c) | J::Semi(c) | J::LeftSemi(c) | J::RightSemi(c) => Some(c),
        J::Anti(c) | J::LeftAnti(c) | J::RightAnti(c) | J::StraightJoin(c) => Some(c),
        _ => None,
    }
}
