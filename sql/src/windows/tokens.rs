//! Makes calls of windowing table functions readable to the parser: `TUMBLE(TABLE t, ...` as `TUMBLE(TABLE(t), ...`.
//!
//! `TABLE` is looked at only right after the bracket of such a function, or after `=>`, and only if a name or a bracket
//! follows: nothing else that parses can stand there, so that no other statement changes. All tokens keep their places.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Word};
use tidemill_core::Result;

use super::{FUNCTIONS, not_yet};

/// Puts brackets around every table argument.
///
/// # Errors
/// `Unsupported` for the functions that are not there yet: what they take would not parse.
pub(crate) fn bracket_tables(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let starts = starts(&tokens)?;
    if starts.is_empty() {
        return Ok(tokens);
    }
    let mut starts = starts.into_iter().peekable();
    let mut out = Vec::with_capacity(tokens.len() + 2 * starts.len());
    // How deep each table argument stands that is not yet closed, and how deep we are.
    let (mut open, mut depth) = (Vec::new(), 0usize);
    for (i, token) in tokens.into_iter().enumerate() {
        let span = token.span;
        if matches!(token.token, Token::RParen | Token::Comma) && open.last() == Some(&depth) {
            open.pop();
            out.push(TokenWithSpan { token: Token::RParen, span });
        }
        match token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        out.push(token);
        if starts.next_if_eq(&i).is_some() {
            open.push(depth);
            out.push(TokenWithSpan { token: Token::LParen, span });
        }
    }
    Ok(out)
}

/// Where the word TABLE begins a table argument.
fn starts(tokens: &[TokenWithSpan]) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    // The last two tokens before this one, without spaces and comments.
    let mut before: [Option<&TokenWithSpan>; 2] = [None, None];
    let solid = |token: &&TokenWithSpan| !matches!(token.token, Token::Whitespace(_));
    for (i, token) in tokens.iter().enumerate().filter(|(_, token)| solid(token)) {
        if is_word(token, "table") {
            let next = tokens[i + 1..].iter().find(solid).map(|token| &token.token);
            if matches!(next, Some(Token::Word(_) | Token::LParen)) && is_argument_after(before)? {
                found.push(i);
            }
        }
        before = [before[1], Some(token)];
    }
    Ok(found)
}

/// Whether an argument begins after these two tokens that may be a table.
fn is_argument_after([first, second]: [Option<&TokenWithSpan>; 2]) -> Result<bool> {
    match (first, second.map(|token| &token.token)) {
        (_, Some(Token::RArrow)) => Ok(true),
        (Some(name), Some(Token::LParen)) => match FUNCTIONS.iter().position(|function| is_word(name, function)) {
            Some(0) => Ok(true),
            Some(unknown) => Err(not_yet(FUNCTIONS[unknown], name.span.start)),
            None => Ok(false),
        },
        _ => Ok(false),
    }
}

/// Whether this is the word, unquoted.
fn is_word(token: &TokenWithSpan, text: &str) -> bool {
    match &token.token {
        Token::Word(Word { value, quote_style: None, .. }) => value.eq_ignore_ascii_case(text),
        _ => false,
    }
}
