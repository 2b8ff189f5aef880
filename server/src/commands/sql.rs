//! `tidemill sql`: one query, or a shell.

use std::{
    io::{IsTerminal, Read},
    path::PathBuf,
    process::ExitCode,
};

use axum::http::Method;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::{print_bytes, stop_signal};
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
  \\q          quit
";

pub async fn run(command: Sql) -> anyhow::Result<ExitCode> {
    let mut stop = stop_signal()?;
    let client = Client::connect(&command.log, "sql").await?;
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
    let (mut whole, rest) = statements(&text.await??);
    whole.extend((!is_blank(&rest)).then_some(rest));
    for statement in whole {
        ask(client, &statement, output).await?;
    }
    Ok(())
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
            Ok(line) if pending.is_empty() && line.trim_start().starts_with('\\') => {
                if !meta(client, line.trim(), output).await {
                    break;
                }
            }
            Ok(line) => {
                if editor.add_history_entry(line.as_str())? {
                    history.push(line.clone());
                }
                pending.push_str(&line);
                pending.push('\n');
                let (whole, rest) = statements(&pending);
                pending = if is_blank(&rest) { String::new() } else { rest };
                for statement in whole {
                    if let Err(error) = ask(client, &statement, output).await {
                        eprintln!("error: {error:#}");
                    }
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

/// A command of the shell itself; false ends it.
async fn meta(client: &Client, line: &str, output: Output) -> bool {
    let (command, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim().trim_end_matches(';');
    let result = match command {
        "\\q" => return false,
        "\\d" if argument.is_empty() => ask(client, "show tables", output).await,
        "\\d" => ask(client, &format!("show columns from {argument}"), output).await,
        _ => print_bytes(HELP.as_bytes()).map(drop),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
    }
    true
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
    use super::statements;

    #[test]
    fn semicolons_in_text_names_and_comments_end_nothing() {
        let (whole, rest) = statements("select ';' ; select \"a;b\" -- c;d\n, 'it''s;';; select 1");
        assert_eq!(whole, ["select ';' ", " select \"a;b\" -- c;d\n, 'it''s;'"]);
        assert_eq!(rest, " select 1");
    }
}
