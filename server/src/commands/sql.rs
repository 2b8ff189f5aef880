//! `tidemill sql`: one query, or a shell.

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    process::ExitCode,
};

use axum::http::Method;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::{print_bytes, reach_existing, stop_signal};
use crate::{
    cli::{Output, Sql},
    client::{Client, copy_body},
};

/// Lines of the shell's history that are kept.
const HISTORY_LINES: usize = 1_000;

const HELP: &str = "\
Statements end with a semicolon.
  \\d          all tables
  \\d TABLE    a table's columns
  \\? or help  this text
  \\q or exit  quit
";

pub async fn run(command: Sql) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let client = reach_existing(&command.log, "sql").await?;
    let work = async {
        match &command.query {
            Some(query) => ask(&client, query, command.output).await,
            None if std::io::stdin().is_terminal() => shell(&client, command.output).await,
            None => script(&client, command.output).await,
        }
    };
    let result = tokio::select! {
        result = work => result,
        _ = stop.wait_for(|stop| *stop) => Ok(()),
    };
    client.close().await?;
    result.map(|()| ExitCode::SUCCESS)
}

async fn ask(client: &Client, query: &str, output: Output) -> anyhow::Result<()> {
    let body = json!({ "query": query, "format": output.as_str() }).to_string();
    let answer = client.send_json(Method::POST, "/v1/sql", body).await?;
    copy_body(answer, print_bytes).await
}

/// Statements from standard input, the last one with or without its semicolon; the first that fails ends it.
async fn script(client: &Client, output: Output) -> anyhow::Result<()> {
    let text = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    });
    let mut pending = String::new();
    for line in text.await??.lines() {
        if is_blank(&pending)
            && let Some(word) = Meta::read(line)
        {
            match word {
                Meta::Quit => return Ok(()),
                word => word.run(client, output).await?,
            }
            continue;
        }
        for statement in take_statements(&mut pending, line) {
            ask(client, &statement, output).await?;
        }
    }
    if is_blank(&pending) { Ok(()) } else { ask(client, &pending, output).await }
}

async fn shell(client: &Client, output: Output) -> anyhow::Result<()> {
    println!("tidemill {}; \\? for help, \\q to quit", env!("CARGO_PKG_VERSION"));
    let history_file = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".tidemill_history"));
    let history = history_file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    let mut history: Vec<String> = history.lines().map(str::to_owned).collect();
    let mut editor = rustyline::DefaultEditor::new()?;
    for line in &history {
        editor.add_history_entry(line)?;
    }
    let mut pending = String::new();
    loop {
        let prompt = if pending.is_empty() { "tidemill> " } else { "     ...> " };
        let (back, line) = tokio::task::spawn_blocking(move || {
            let line = editor.readline(prompt);
            (editor, line)
        })
        .await?;
        editor = back;
        match line {
            Ok(line) => {
                let word = if pending.is_empty() { Meta::read(&line) } else { None };
                if let Some(Meta::Quit) = word {
                    break;
                }
                if let Some(word) = word {
                    complain(word.run(client, output).await);
                    continue;
                }
                if editor.add_history_entry(line.as_str())? {
                    history.push(line.clone());
                }
                for statement in take_statements(&mut pending, &line) {
                    complain(ask(client, &statement, output).await);
                }
            }
            Err(ReadlineError::Interrupted) => pending.clear(),
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(file) = history_file {
        let newest = &history[history.len().saturating_sub(HISTORY_LINES)..];
        // A shell without a history is still a shell.
        let _ = std::fs::write(file, newest.iter().map(|line| format!("{line}\n")).collect::<String>());
    }
    Ok(())
}

fn complain(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("error: {error:#}");
    }
}

/// A command of the shell itself, alone on its line.
#[derive(Debug, PartialEq, Eq)]
enum Meta {
    Quit,
    Help,
    Tables,
    Columns(String),
}

impl Meta {
    /// The command that a line is, with or without a semicolon; none where it is SQL.
    fn read(line: &str) -> Option<Self> {
        let line = line.trim().trim_end_matches(';').trim_end();
        let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (command.to_ascii_lowercase().as_str(), argument.trim()) {
            ("exit" | "quit" | "\\q", "") => Some(Self::Quit),
            ("help", "") => Some(Self::Help),
            ("\\d", "") => Some(Self::Tables),
            ("\\d", table) => Some(Self::Columns(table.to_owned())),
            (other, _) if other.starts_with('\\') => Some(Self::Help),
            _ => None,
        }
    }

    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Quit => Ok(()),
            Self::Help => print_bytes(HELP.as_bytes()).map(drop),
            Self::Tables => ask(client, "show tables", output).await,
            Self::Columns(table) => ask(client, &format!("show columns from {table}"), output).await,
        }
    }
}

/// Adds a line to what waits for its semicolon, and takes out what is whole.
fn take_statements(pending: &mut String, line: &str) -> Vec<String> {
    pending.push_str(line);
    pending.push('\n');
    let (whole, rest) = statements(pending);
    *pending = if is_blank(&rest) { String::new() } else { rest };
    whole
}

/// Splits text at the semicolons that end statements; what follows the last one is the rest.
fn statements(text: &str) -> (Vec<String>, String) {
    let (mut whole, mut start) = (Vec::new(), 0);
    let (mut quote, mut comment) = (None, false);
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match (comment, quote, byte) {
            (true, _, b'\n') => comment = false,
            (true, ..) => {}
            (false, Some(open), byte) if *byte == open => quote = None,
            (false, Some(_), _) => {}
            (false, None, b'\'' | b'"') => quote = Some(*byte),
            (false, None, b'-') if bytes.get(at + 1) == Some(&b'-') => comment = true,
            (false, None, b';') => {
                whole.push(text[start..at].to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    whole.retain(|statement| !is_blank(statement));
    (whole, text[start..].to_owned())
}

/// Whether there is nothing to run in it: only white space and comments.
fn is_blank(text: &str) -> bool {
    text.lines().map(str::trim_start).all(|line| line.is_empty() || line.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use super::{Meta, statements, take_statements};

    #[test]
    fn words_alone_on_a_line_are_commands_with_and_without_a_semicolon() {
        for line in ["exit", "quit;", " EXIT ; ", "\\q", "\\q;"] {
            assert_eq!(Meta::read(line), Some(Meta::Quit), "{line}");
        }
        for line in ["help", "help;", "\\?", "\\?;", "\\what"] {
            assert_eq!(Meta::read(line), Some(Meta::Help), "{line}");
        }
        assert_eq!(Meta::read("\\d;"), Some(Meta::Tables));
        assert_eq!(Meta::read("\\d s.item;"), Some(Meta::Columns("s.item".into())));
        for line in ["select 1;", "exit now", "helpful", "", "-- exit", "quit, help"] {
            assert_eq!(Meta::read(line), None, "{line}");
        }
    }

    #[test]
    fn a_statement_is_taken_when_its_semicolon_comes() {
        let mut pending = String::new();
        assert!(take_statements(&mut pending, "select 1 -- one;").is_empty());
        assert_eq!(take_statements(&mut pending, ", 2; select"), ["select 1 -- one;\n, 2"]);
        assert_eq!(pending, " select\n");
        assert_eq!(take_statements(&mut pending, "3;"), [" select\n3"]);
        assert!(pending.is_empty());
    }

    #[test]
    fn semicolons_in_text_names_and_comments_end_nothing() {
        let (whole, rest) = statements("select ';' ; select \"a;b\" -- c;d\n, 'it''s;';; select 1");
        assert_eq!(whole, ["select ';' ", " select \"a;b\" -- c;d\n, 'it''s;'"]);
        assert_eq!(rest, " select 1");
    }
}
