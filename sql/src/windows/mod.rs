//! Windowing table functions: `FROM TUMBLE(TABLE orders, DESCRIPTOR(ts), INTERVAL '10 seconds')`.
//!
//! Such a function yields all columns of its table and, for each row, `window_start`, `window_end` and `window_time`,
//! the last millisecond of the window. SQL's parser knows neither `TABLE orders` nor the functions. So:
//!
//! 1. [`tokens`] puts brackets around what `TABLE` names, before the parser: then a call parses as a table function,
//!    wherever the grammar allows a table, and nowhere else. The words stay free as names.
//! 2. [`Call::of`] finds a call in FROM, and [`arguments`] reads it: table, column, [`interval`]s.
//! 3. `names::windows` resolves its names and puts a plain [`subquery`] in its place, with the functions of
//!    [`event_time`] and [`assign`].
//!
//! Which window a row belongs to is asked of [`tidemill_streams::window`] alone. A row without a time belongs to none,
//! and is left out.

mod arguments;
mod assign;
mod event_time;
mod interval;
mod subquery;
mod tokens;

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    logical_expr::ScalarUDF,
    sql::sqlparser::{
        ast::{
            Expr, FunctionArg, FunctionArguments, Ident, ObjectName, Spanned, TableAlias, TableFactor,
            TableFunctionArgs,
        },
        tokenizer::Location,
    },
};
use tidemill_core::{Error, Result};

pub(crate) use self::{arguments::Tumble, tokens::bracket_tables};
use crate::catalog::folded;

/// The functions by name. Only the first is there yet.
const FUNCTIONS: [&str; 4] = ["tumble", "hop", "cumulate", "session"];
/// The columns that a window adds.
pub(crate) const COLUMNS: [&str; 3] = ["window_start", "window_end", "window_time"];

/// The type of all instants here, that of `_timestamp`: milliseconds, UTC.
fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()))
}

/// The scalar functions that the subqueries call.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let assigned = assign::Part::ALL.map(|part| ScalarUDF::from(assign::Assign::new(part)));
    [ScalarUDF::from(event_time::EventTime::new())].into_iter().chain(assigned).map(Arc::new).collect()
}

/// A call of a windowing table function, as it was written.
#[derive(Debug)]
pub(crate) struct Call {
    name: Ident,
    args: Vec<FunctionArg>,
    pub(crate) alias: Option<TableAlias>,
}

impl Call {
    /// The call that something in FROM is, `TUMBLE(...)`, `LATERAL TUMBLE(...)` or `TABLE(TUMBLE(...))`, if it is
    /// one.
    ///
    /// # Errors
    /// `Unsupported` for the functions and clauses that are not there yet.
    pub(crate) fn of(factor: &TableFactor) -> Result<Option<Self>> {
        let (name, args, alias) = match factor {
            TableFactor::Table { name, args: Some(TableFunctionArgs { args, .. }), alias, .. } => (name, args, alias),
            TableFactor::Function { name, args, alias, .. } => (name, args, alias),
            TableFactor::TableFunction { expr: Expr::Function(function), alias } => match &function.args {
                FunctionArguments::List(list) => (&function.name, &list.args, alias),
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        let Some(name) = function_of(name) else { return Ok(None) };
        if folded(name) != FUNCTIONS[0] {
            return Err(not_yet(&name.value, name.span.start));
        }
        if has_more(factor) {
            let text = format!("TUMBLE goes without WITH ORDINALITY and TABLESAMPLE{}", at(name.span.start));
            return Err(Error::unsupported(text));
        }
        Ok(Some(Self { name: name.clone(), args: args.clone(), alias: alias.clone() }))
    }

    /// The function's name.
    pub(crate) fn function(&self) -> &'static str {
        FUNCTIONS[0]
    }

    /// Where the call stands in the statement's text.
    pub(crate) fn position(&self) -> String {
        at(self.name.span.start)
    }
}

fn function_of(name: &ObjectName) -> Option<&Ident> {
    match name.0.as_slice() {
        [only] => only.as_ident().filter(|ident| FUNCTIONS.contains(&folded(ident).as_str())),
        _ => None,
    }
}

/// Whether clauses stand beside the call that would be lost.
fn has_more(factor: &TableFactor) -> bool {
    use TableFactor as F;
    match factor {
        F::Table { with_ordinality, sample, .. } => *with_ordinality || sample.is_some(),
        F::Function { with_ordinality, .. } => *with_ordinality,
        _ => false,
    }
}

fn not_yet(function: &str, start: Location) -> Error {
    Error::unsupported(format!("{} is not supported yet{}", function.to_uppercase(), at(start)))
}

/// Where a piece of the statement stands in its text.
fn place(node: &impl Spanned) -> String {
    at(node.span().start)
}

fn at(start: Location) -> String {
    if start.line > 0 { format!(" ({}:{})", start.line, start.column) } else { String::new() }
}
