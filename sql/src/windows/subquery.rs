//! The plain query that stands for a call of `TUMBLE`.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::{
    ast::{Expr, Query, SetExpr, visit_expressions_mut},
    dialect::PostgreSqlDialect,
    parser::Parser,
    tokenizer::Tokenizer,
};
use tidemill_core::{Error, Result};

use super::{COLUMNS, arguments::Tumble, assign::Part};
use crate::catalog::folded;

impl Tumble {
    /// Where the time column is named, without brackets.
    pub(crate) fn place_of_time(&self) -> String {
        let start = self.time.span.start;
        format!("{}:{}", start.line, start.column)
    }

    /// `SELECT *, <window> FROM <table>`, of the rows that have a time. Where `visible` columns are given they stand
    /// in place of `*`, and the `hidden` ones after the window's.
    ///
    /// # Errors
    /// None that a statement could cause.
    pub(crate) fn into_query(self, visible: Option<&[String]>, hidden: &[String]) -> Result<Box<Query>> {
        let text = self.text(visible, hidden);
        let fault = || Error::internal(format!("{text} is no query"));
        // Tokens without places: those of this text are not those of the user's.
        let tokens = Tokenizer::new(&PostgreSqlDialect {}, &text).tokenize().map_err(|_| fault())?;
        let mut query = Parser::new(&PostgreSqlDialect {}).with_tokens(tokens).parse_query().map_err(|_| fault())?;
        let SetExpr::Select(select) = query.body.as_mut() else { return Err(fault()) };
        let time = self.time.span;
        let _: ControlFlow<()> = visit_expressions_mut(select, |expr| {
            // Of the functions' arguments and the condition; the columns listed have been found already.
            if let Expr::Identifier(ident) = expr {
                ident.span = time;
            }
            ControlFlow::Continue(())
        });
        let [from] = select.from.as_mut_slice() else { return Err(fault()) };
        from.relation = self.data;
        Ok(query)
    }

    fn text(&self, visible: Option<&[String]>, hidden: &[String]) -> String {
        let Self { size_ms, offset_ms, .. } = self;
        let name = folded(&self.time);
        let (time, name) = (quoted(&name, '"'), quoted(&name, '\''));
        let event_time = format!("_tm_event_time({time}, {name}, '{}')", self.place_of_time());
        let window = Part::ALL.iter().zip(COLUMNS);
        let window = window
            .map(|(part, column)| format!("{}({event_time}, {size_ms}, {offset_ms}) AS {column}", part.function()));
        let quoted = |name: &String| quoted(name, '"');
        let first = visible.map_or_else(|| vec!["*".to_owned()], |visible| visible.iter().map(quoted).collect());
        let items: Vec<String> = first.into_iter().chain(window).chain(hidden.iter().map(quoted)).collect();
        format!("SELECT {} FROM t WHERE {time} IS NOT NULL", items.join(", "))
    }
}

fn quoted(text: &str, quote: char) -> String {
    format!("{quote}{}{quote}", text.replace(quote, &format!("{quote}{quote}")))
}
