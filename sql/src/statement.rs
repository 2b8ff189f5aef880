//! Parses a text into the one statement it must be, and tells what to do for it.

use datafusion::sql::sqlparser::{
    ast::{
        Expr, Ident, SelectItem, SetExpr, ShowStatementFilter, ShowStatementFilterPosition, ShowStatementOptions,
        Statement,
    },
    dialect::PostgreSqlDialect,
    parser::{Parser, ParserError},
    tokenizer::{Token, TokenWithSpan, Tokenizer},
};
use tidemill_core::{Error, Result};

use crate::windows::bracket_tables;

/// Longest text of a statement.
const MAX_BYTES: usize = 1 << 20;
/// Most operators: expressions are trees as deep as their chains are long, and are walked with recursion.
const MAX_OPERATORS: usize = 500;

/// What a statement asks for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A query, or an EXPLAIN of one.
    Query(Box<Statement>),
    /// The tables, of one schema or of all, whose name is like the pattern.
    Tables(Option<Ident>, Option<String>),
    /// The columns of a table.
    Columns(Vec<Ident>),
}

/// Reads one statement.
///
/// # Errors
/// `Invalid` with line and column where it does not parse; `Unsupported` names what it would do.
pub(crate) fn parse(text: &str) -> Result<Request> {
    let mut statements = Parser::new(&PostgreSqlDialect {})
        .with_tokens_with_locations(tokens(text)?)
        .parse_statements()
        .map_err(|e| syntax_fault(&e))?;
    let statement = statements.pop().ok_or_else(|| Error::invalid("no statement"))?;
    if !statements.is_empty() {
        return Err(Error::invalid(format!("{} statements; only one at a time", statements.len() + 1)));
    }
    request(statement)
}

/// The tokens of a statement that is not too much, as the parser can take them.
fn tokens(text: &str) -> Result<Vec<TokenWithSpan>> {
    if text.len() > MAX_BYTES {
        return Err(Error::invalid(format!("statement of {} bytes exceeds {MAX_BYTES}", text.len())));
    }
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location();
    let tokens = tokens.map_err(|e| syntax_fault(&e.into()))?;
    let operators = tokens.iter().filter(|token| is_operator(&token.token)).count();
    if operators > MAX_OPERATORS {
        let text =
            format!("statement of {operators} operators exceeds {MAX_OPERATORS}; write long lists with IN or VALUES");
        return Err(Error::invalid(text));
    }
    bracket_tables(tokens)
}

fn syntax_fault(error: &ParserError) -> Error {
    let text = error.to_string();
    Error::invalid(text.strip_prefix("sql parser error: ").unwrap_or(&text).to_owned())
}

fn is_operator(token: &Token) -> bool {
    match token {
        Token::Word(word) => {
            let is = |name: &str| word.quote_style.is_none() && word.value.eq_ignore_ascii_case(name);
            ["and", "or", "not", "union", "except", "intersect", "is", "join", "at"].into_iter().any(is)
        }
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Whitespace(_) | Token::Comma => false,
        Token::LParen | Token::RParen | Token::Period | Token::SemiColon | Token::Placeholder(_) => false,
        _ => true,
    }
}

fn request(statement: Statement) -> Result<Request> {
    match statement {
        Statement::Query(_) => Ok(Request::Query(Box::new(statement))),
        Statement::Explain { statement: inner, .. } if !matches!(*inner, Statement::Query(_)) => Err(refused(&inner)),
        Statement::Explain { .. } => Ok(Request::Query(Box::new(statement))),
        Statement::ExplainTable { table_name, .. } => {
            Ok(Request::Columns(table_name.0.iter().filter_map(|part| part.as_ident().cloned()).collect()))
        }
        Statement::ShowTables { show_options, .. } => {
            let schema = parent(&show_options).and_then(|mut parts| parts.pop());
            Ok(Request::Tables(schema, like(&show_options)?))
        }
        Statement::ShowColumns { show_options, .. } => match parent(&show_options) {
            Some(parts) => Ok(Request::Columns(parts)),
            None => Err(Error::invalid("SHOW COLUMNS of what? write: SHOW COLUMNS FROM a table")),
        },
        other => Err(refused(&other)),
    }
}

fn parent(options: &ShowStatementOptions) -> Option<Vec<Ident>> {
    let name = options.show_in.as_ref()?.parent_name.as_ref()?;
    Some(name.0.iter().filter_map(|part| part.as_ident().cloned()).collect())
}

fn like(options: &ShowStatementOptions) -> Result<Option<String>> {
    let filter = options.filter_position.as_ref().map(|position| match position {
        ShowStatementFilterPosition::Infix(filter) | ShowStatementFilterPosition::Suffix(filter) => filter,
    });
    match filter {
        None => Ok(None),
        Some(ShowStatementFilter::Like(pattern) | ShowStatementFilter::ILike(pattern)) => Ok(Some(pattern.clone())),
        Some(_) => Err(Error::unsupported("SHOW TABLES filters with LIKE only")),
    }
}

/// The first words of the statement say what it is.
fn refused(statement: &Statement) -> Error {
    let text = statement.to_string();
    let words = |n: usize| text.split_whitespace().take(n).collect::<Vec<_>>().join(" ").to_uppercase();
    let name = match text.split_whitespace().next().unwrap_or_default().to_uppercase().as_str() {
        "CREATE" | "DROP" | "ALTER" => words(2),
        _ => words(1),
    };
    Error::unsupported(format!(
        "{name} is not supported: only SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, SHOW COLUMNS and DESCRIBE are"
    ))
}

/// Headings for the output where its columns have no names: the expressions as they were written. `None` for the
/// others, and for all where a `*` makes the columns uncountable.
pub(crate) fn headings(statement: &Statement) -> Vec<Option<String>> {
    let Statement::Query(query) = statement else { return Vec::new() };
    let mut body = query.body.as_ref();
    let select = loop {
        match body {
            SetExpr::Select(select) => break select,
            SetExpr::Query(query) => body = query.body.as_ref(),
            SetExpr::SetOperation { left, .. } => body = left,
            _ => return Vec::new(),
        }
    };
    let is_star = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    if select.projection.iter().any(is_star) {
        return Vec::new();
    }
    let heading = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_)) => None,
        SelectItem::UnnamedExpr(expr) => Some(expr.to_string()),
        _ => None,
    };
    select.projection.iter().map(heading).collect()
}
