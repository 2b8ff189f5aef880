//! The databases' own clients, and how their machine-readable output is told apart into cells.

use std::io::Write;
use std::process::{Command, Stdio};

/// A row as a client printed it; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// Between two cells of psql's output; rows end with a zero byte, which no PostgreSQL text can hold.
pub const PSQL_CELL: &str = "\x1d-cell-\x1e";
/// What psql prints for NULL.
pub const PSQL_NULL: &str = "\x1d-null-\x1e";

/// Runs a client with a script as its standard input. `Err` is what the client said of its failure.
pub fn run(command: &mut Command, script: &[u8]) -> Result<Vec<u8>, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{:?}: {e}", command.get_program()));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A client that stops at an error reads no further; its own words say why.
        let feed = move || drop(stdin.write_all(script));
        std::thread::Builder::new().name("client".into()).spawn_scoped(scope, feed).unwrap();
        child.wait_with_output().unwrap()
    });
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Rows of psql, unaligned, with the separators above.
pub fn psql_rows(output: &[u8]) -> Vec<Row> {
    let text = String::from_utf8(output.to_vec()).expect("the client speaks UTF-8");
    let cell = |cell: &str| (cell != PSQL_NULL).then(|| cell.to_owned());
    let Some(rows) = text.strip_suffix('\0') else {
        assert!(text.is_empty(), "psql's output is cut short: {text:?}");
        return Vec::new();
    };
    rows.split('\0').map(|row| row.split(PSQL_CELL).map(cell).collect()).collect()
}

/// Rows of `mariadb --xml`, the only one of its formats in which NULL is not the text NULL.
pub fn mariadb_rows(output: &[u8]) -> Vec<Row> {
    let text = String::from_utf8_lossy(output);
    let mut rows = Vec::new();
    for row in text.split("<row>").skip(1) {
        let mut cells = Vec::new();
        let mut rest = row.split_once("</row>").expect("a row ends").0;
        while let Some((_, field)) = rest.split_once("<field name=\"") {
            let (_, after_name) = field.split_once('"').unwrap();
            let (mark, content) = after_name.split_once('>').unwrap();
            if mark.contains("xsi:nil=\"true\"") {
                cells.push(None);
                rest = content;
            } else {
                let (value, after) = content.split_once("</field>").unwrap();
                cells.push(Some(xml_text(value)));
                rest = after;
            }
        }
        rows.push(cells);
    }
    rows
}

fn xml_text(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

/// A value of SQLite with its storage class, as `.mode quote` prints it.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Null,
    Number(String),
    Text(String),
    /// In hexadecimal digits.
    Bytes(String),
}

/// Rows of `sqlite3` in the mode `quote`.
pub fn sqlite_rows(output: &[u8]) -> Vec<Vec<Literal>> {
    let text = String::from_utf8_lossy(output);
    let (mut rows, mut row) = (Vec::new(), Vec::new());
    let mut rest: &str = &text;
    while !rest.is_empty() {
        let (literal, after) = sqlite_literal(rest);
        row.push(literal);
        let end = after.starts_with('\n');
        assert!(end || after.starts_with(','), "not sqlite3's quoting: {after:.80}");
        if end {
            rows.push(std::mem::take(&mut row));
        }
        rest = &after[1..];
    }
    rows
}

fn sqlite_literal(rest: &str) -> (Literal, &str) {
    if let Some(quoted) = rest.strip_prefix('\'') {
        let mut end = 0;
        loop {
            end += quoted[end..].find('\'').expect("a text ends");
            if !quoted[end + 1..].starts_with('\'') {
                return (Literal::Text(quoted[..end].replace("''", "'")), &quoted[end + 1..]);
            }
            end += 2;
        }
    }
    if let Some(bytes) = rest.strip_prefix("X'") {
        let (digits, after) = bytes.split_once('\'').unwrap();
        return (Literal::Bytes(digits.to_lowercase()), after);
    }
    let (word, after) = rest.split_at(rest.find([',', '\n']).expect("a row ends"));
    (if word == "NULL" { Literal::Null } else { Literal::Number(word.to_owned()) }, after)
}
