//! What a statement in the binlog means for the tables that are followed.

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A transaction begins.
    Begin,
    /// It has ended.
    Commit,
    /// It is undone, wholly or back to a savepoint.
    Rollback,
    /// A transaction of two phases begins.
    Xa,
    /// All rows of a table go.
    Truncate(Name),
    /// Tables go; the names that occur.
    Drop(Vec<Name>),
    /// A database goes.
    DropDatabase(String),
    /// Rows change, and the statement alone tells it; the names that occur.
    Rows(Vec<Name>),
    /// Tables change; the names that occur. `loses` where rows may go or come without an event.
    Alter { names: Vec<Name>, loses: bool, creates: bool },
    /// Nothing of the kind.
    Other,
}

/// A name, with its database where one is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub database: Option<String>,
    pub name: String,
}

impl Name {
    /// Whether it means a table, said where `current` is the database.
    pub fn means(&self, current: &str, database: &str, table: &str) -> bool {
        self.name.eq_ignore_ascii_case(table)
            && self.database.as_deref().unwrap_or(current).eq_ignore_ascii_case(database)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word or a quoted name; whether it is quoted.
    Word(String, bool),
    Mark(char),
}

/// What is made and dropped, and is no table.
const OTHERS: [&str; 8] = ["VIEW", "TRIGGER", "PROCEDURE", "FUNCTION", "EVENT", "USER", "ROLE", "SERVER"];

impl Statement {
    /// Reads a statement.
    pub fn parse(text: &str) -> Self {
        let mut tokens = tokens(text);
        let is =
            |token: &Token, name: &str| matches!(token, Token::Word(word, false) if word.eq_ignore_ascii_case(name));
        // SET STATEMENT name = value FOR statement.
        if tokens.len() > 1
            && is(&tokens[0], "SET")
            && is(&tokens[1], "STATEMENT")
            && let Some(at) = tokens.iter().position(|token| is(token, "FOR"))
        {
            tokens.drain(..=at);
        }
        let word = |n: usize| match tokens.get(n) {
            Some(Token::Word(word, false)) => word.to_ascii_uppercase(),
            _ => String::new(),
        };
        let has = |name: &str| {
            let is = |token: &Token| matches!(token, Token::Word(word, false) if word.eq_ignore_ascii_case(name));
            tokens.iter().any(is)
        };
        let names = || names(tokens.get(1..).unwrap_or_default());
        // What a statement makes or drops, whatever words stand in its columns.
        let made = || {
            let kinds = OTHERS.iter().chain(&["TABLE", "TEMPORARY", "INDEX", "SEQUENCE", "DATABASE", "SCHEMA"]);
            let known: Vec<_> = kinds.collect();
            let mut words = (1..tokens.len()).map(word);
            words.find(|word| known.iter().any(|known| **known == *word)).unwrap_or_default()
        };
        match word(0).as_str() {
            "BEGIN" | "START" => Self::Begin,
            "COMMIT" => Self::Commit,
            "ROLLBACK" => Self::Rollback,
            "XA" => Self::Xa,
            "TRUNCATE" => {
                let rest = &tokens[if word(1) == "TABLE" { 2 } else { 1 }.min(tokens.len())..];
                self::names(rest).into_iter().next().map_or(Self::Other, Self::Truncate)
            }
            "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "LOAD" | "CALL" | "WITH" => Self::Rows(names()),
            "DROP" if matches!(word(1).as_str(), "DATABASE" | "SCHEMA") => {
                names().pop().map_or(Self::Other, |name| Self::DropDatabase(name.name))
            }
            "DROP" if matches!(word(1).as_str(), "TABLE" | "TABLES") => Self::Drop(names()),
            // A temporary table hides a table of its name; it is no table of ours.
            "DROP" | "CREATE" if made() == "TEMPORARY" => Self::Other,
            "DROP" | "CREATE" if OTHERS.contains(&made().as_str()) => Self::Other,
            "CREATE" => Self::Alter { names: names(), loses: word(1) == "OR" && has("TABLE"), creates: has("TABLE") },
            "RENAME" if word(1) != "USER" => Self::Alter { names: names(), loses: true, creates: false },
            "DROP" => Self::Alter { names: names(), loses: false, creates: false },
            "ALTER" => {
                let partition = has("PARTITION") && ["TRUNCATE", "DROP", "EXCHANGE", "CONVERT"].into_iter().any(has);
                let renames = (0..tokens.len())
                    .any(|n| word(n) == "RENAME" && !["COLUMN", "INDEX", "KEY"].contains(&word(n + 1).as_str()));
                // ALTER IGNORE drops the rows that stand in its way.
                let loses = partition || renames || word(1) == "IGNORE" || has("TABLESPACE");
                Self::Alter { names: names(), loses, creates: false }
            }
            _ => Self::Other,
        }
    }
}

/// All that may be names, with what stands before their dots.
fn names(tokens: &[Token]) -> Vec<Name> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Token::Word(first, _) = &tokens[at] else {
            at += 1;
            continue;
        };
        match (tokens.get(at + 1), tokens.get(at + 2)) {
            (Some(Token::Mark('.')), Some(Token::Word(second, _))) => {
                names.push(Name { database: Some(first.clone()), name: second.clone() });
                at += 3;
            }
            _ => {
                names.push(Name { database: None, name: first.clone() });
                at += 1;
            }
        }
    }
    names
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        rest = match first {
            '/' if after.starts_with('*') => match after[1..].trim_start_matches('M').strip_prefix('!') {
                // What is inside is executed.
                Some(inside) => inside.trim_start_matches(|c: char| c.is_ascii_digit()),
                None => after[1..].split_once("*/").map_or("", |(_, rest)| rest),
            },
            '#' => after.split_once('\n').map_or("", |(_, rest)| rest),
            '-' if after.starts_with("- ") => after.split_once('\n').map_or("", |(_, rest)| rest),
            '\'' => quoted(after, '\'').1,
            '`' | '"' => {
                let (name, rest) = quoted(after, first);
                tokens.push(Token::Word(name, true));
                rest
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned(), false));
                &rest[end..]
            }
            c if c.is_whitespace() => after,
            c => {
                tokens.push(Token::Mark(c));
                after
            }
        };
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// What stands before the closing quote, and the rest after it.
fn quoted(text: &str, quote: char) -> (String, &str) {
    let mut inside = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' if quote != '`' => {
                inside.extend(chars.next().map(|(_, char)| char));
            }
            c if c == quote && chars.peek().is_some_and(|(_, next)| *next == quote) => {
                inside.push(quote);
                chars.next();
            }
            c if c == quote => return (inside, &text[at + quote.len_utf8()..]),
            c => inside.push(c),
        }
    }
    (inside, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_told_apart() {
        let is_about = |text: &str, table: &str| match Statement::parse(text) {
            Statement::Truncate(name) => name.means("shop", "shop", table),
            Statement::Drop(names) | Statement::Rows(names) | Statement::Alter { names, .. } => {
                names.iter().any(|name| name.means("shop", "shop", table))
            }
            _ => false,
        };
        for (text, expected) in [
            ("TRUNCATE TABLE `or``d`", false),
            ("truncate orders", true),
            ("/* c */ TRUNCATE /*!40000 TABLE */ shop . orders", true),
            ("truncate table other.orders", false),
            ("alter table `shop`.`orders` add c int", true),
            ("ALTER TABLE x ADD note varchar(9) DEFAULT 'orders'", false),
            ("create index i on orders (a)", true),
            ("DROP TABLE IF EXISTS `a`,`orders` /* generated by server */", true),
            ("rename table orders to old", true),
            ("create temporary table orders (a int)", false),
            ("insert into orders values (1)", true),
            ("-- orders\nalter table b add c int", false),
            ("ALTER TABLE \"orders\" ADD x INT", true),
        ] {
            assert_eq!(is_about(text, "orders"), expected, "{text}");
        }
        assert_eq!(Statement::parse("SAVEPOINT `a`"), Statement::Other);
        assert_eq!(Statement::parse("ROLLBACK TO `a`"), Statement::Rollback);
        assert!(matches!(Statement::parse("alter table t drop partition p0"), Statement::Alter { loses: true, .. }));
        assert!(matches!(Statement::parse("create or replace table t (a int)"), Statement::Alter { loses: true, .. }));
        for broken in ["", "'", "`", "/*", "TRUNCATE", "/*!", "alter", "\"\\", "drop database"] {
            Statement::parse(broken);
        }
    }

    #[test]
    fn words_of_columns_and_settings_do_not_hide_a_statement() {
        let parse = Statement::parse;
        assert!(matches!(parse("SET STATEMENT max_statement_time=0 FOR TRUNCATE t"), Statement::Truncate(_)));
        assert!(matches!(parse("set statement a=1 for update t set v = 1"), Statement::Rows(_)));
        let made = parse("CREATE TABLE t (id int primary key, role text, user text, event int)");
        assert!(matches!(made, Statement::Alter { creates: true, .. }), "{made:?}");
        assert_eq!(parse("CREATE OR REPLACE VIEW v AS SELECT * FROM t"), Statement::Other);
        let loses = |text| matches!(parse(text), Statement::Alter { loses: true, .. });
        assert!(loses("ALTER TABLE t RENAME TO x, ADD COLUMN c INT"));
        assert!(loses("ALTER IGNORE TABLE t ADD UNIQUE (v)"));
        assert!(!loses("ALTER TABLE t RENAME COLUMN a TO b"));
    }
}
