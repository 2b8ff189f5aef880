//! Writes a result as text while it comes: a table for people, JSON, JSON lines and CSV for programs.
//!
//! Memory is that of a few batches. Only the table keeps rows, at most [`ALIGNED_ROWS`], to see how wide its columns are.

mod cell;

use bytes::Bytes;
use datafusion::arrow::{array::RecordBatch, datatypes::SchemaRef};
use futures::{Stream, stream};
use tidemill_core::Result;

use self::cell::{json_value, plain_text};
use crate::session::QueryResult;

/// Rows whose widths align the columns of a table; those after them are written in the same widths.
const ALIGNED_ROWS: usize = 10_000;

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns, a line of headings, the number of rows below. NULL is `NULL`; control characters are escaped.
    Table,
    /// One array of objects. Infinities and NaN are text, as JSON has no numbers for them. A column whose name repeats
    /// gets a number: `id`, `id_2`.
    Json,
    /// One object a line, as in [`Format::Json`].
    Jsonl,
    /// RFC 4180 but for line ends, which are `\n`. A heading line; NULL is empty, empty text is `""`.
    Csv,
}

impl std::str::FromStr for Format {
    type Err = tidemill_core::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "jsonl" => Ok(Self::Jsonl),
            "csv" => Ok(Self::Csv),
            _ => Err(tidemill_core::Error::invalid(format!("format {name:?} is none of table, json, jsonl, csv"))),
        }
    }
}

/// The result as text, piece by piece. A failure of the statement ends the stream with its error.
pub fn render(result: QueryResult, format: Format) -> impl Stream<Item = Result<Bytes>> + Send {
    let writer = Writer::new(&result.schema, format);
    let state = (result, writer, false);
    stream::try_unfold(state, |(mut result, mut writer, ended)| async move {
        if ended {
            return Ok(None);
        }
        loop {
            let mut out = String::new();
            let batch = result.next().await.transpose()?;
            let ended = batch.is_none();
            match &batch {
                Some(batch) => writer.batch(batch, &mut out)?,
                None => writer.end(&mut out),
            }
            if ended || !out.is_empty() {
                return Ok(Some((Bytes::from(out), (result, writer, ended))));
            }
        }
    })
}

struct Writer {
    format: Format,
    names: Vec<String>,
    /// Which columns a table aligns to the right.
    right: Vec<bool>,
    rows: u64,
    /// A table's first rows, until there are enough of them.
    kept: Vec<Vec<String>>,
    widths: Vec<usize>,
}

impl Writer {
    fn new(schema: &SchemaRef, format: Format) -> Self {
        let mut names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        match format {
            Format::Json | Format::Jsonl => make_unique(&mut names),
            Format::Table => names.iter_mut().for_each(|name| *name = escape_control(name)),
            Format::Csv => {}
        }
        let right = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
        Self { format, names, right, rows: 0, kept: Vec::new(), widths: Vec::new() }
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut String) -> Result<()> {
        if self.rows == 0 && self.format == Format::Csv {
            self.csv_head(out);
        }
        for row in 0..batch.num_rows() {
            match self.format {
                Format::Table => self.table_row(batch, row, out)?,
                Format::Csv => self.csv_row(batch, row, out)?,
                Format::Json => {
                    out.push_str(if self.rows == 0 { "[\n" } else { ",\n" });
                    self.object(batch, row, out)?;
                }
                Format::Jsonl => {
                    self.object(batch, row, out)?;
                    out.push('\n');
                }
            }
            self.rows += 1;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut String) {
        match self.format {
            Format::Json => out.push_str(if self.rows == 0 { "[]\n" } else { "\n]\n" }),
            Format::Csv if self.rows == 0 => self.csv_head(out),
            Format::Table => {
                self.align(out);
                let noun = if self.rows == 1 { "row" } else { "rows" };
                out.push_str(&format!("({} {noun})\n", self.rows));
            }
            Format::Csv | Format::Jsonl => {}
        }
    }

    fn object(&self, batch: &RecordBatch, row: usize, out: &mut String) -> Result<()> {
        out.push('{');
        for (i, name) in self.names.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(&serde_json::Value::from(name.as_str()).to_string());
            out.push(':');
            json_value(batch.column(i), row, out)?;
        }
        out.push('}');
        Ok(())
    }

    fn csv_head(&self, out: &mut String) {
        let names: Vec<String> = self.names.iter().map(|name| csv_field(name)).collect();
        out.push_str(&names.join(","));
        out.push('\n');
    }

    fn csv_row(&self, batch: &RecordBatch, row: usize, out: &mut String) -> Result<()> {
        for i in 0..self.names.len() {
            if i > 0 {
                out.push(',');
            }
            if let Some(text) = plain_text(batch.column(i), row)? {
                out.push_str(&csv_field(&text));
            }
        }
        out.push('\n');
        Ok(())
    }

    fn table_row(&mut self, batch: &RecordBatch, row: usize, out: &mut String) -> Result<()> {
        let text = |i| plain_text(batch.column(i), row).map(|text| text.map_or("NULL".into(), |t| escape_control(&t)));
        let cells: Vec<String> = (0..self.names.len()).map(text).collect::<Result<_>>()?;
        if self.widths.is_empty() {
            self.kept.push(cells);
            if self.kept.len() >= ALIGNED_ROWS {
                self.align(out);
            }
        } else {
            self.line(&cells, out);
        }
        Ok(())
    }

    /// Writes what was kept, in the widths it needs.
    fn align(&mut self, out: &mut String) {
        if !self.widths.is_empty() {
            return;
        }
        let lines = || self.kept.iter().chain([&self.names]);
        let widest = |i: usize| lines().map(|cells| cells[i].chars().count()).max().unwrap_or(0);
        self.widths = (0..self.names.len()).map(widest).collect();
        let rule: Vec<String> = self.widths.iter().map(|width| "-".repeat(width + 2)).collect();
        self.line(&self.names, out);
        out.push_str(&rule.join("+"));
        out.push('\n');
        for cells in std::mem::take(&mut self.kept) {
            self.line(&cells, out);
        }
        if self.widths.is_empty() {
            // A result without columns; the widths tell that it was begun.
            self.widths.push(0);
        }
    }

    fn line(&self, cells: &[String], out: &mut String) {
        let start = out.len();
        for (i, cell) in cells.iter().enumerate() {
            out.push_str(if i == 0 { " " } else { " | " });
            let blanks = " ".repeat(self.widths[i].saturating_sub(cell.chars().count()));
            if self.right[i] {
                out.push_str(&blanks);
                out.push_str(cell);
            } else {
                out.push_str(cell);
                out.push_str(&blanks);
            }
        }
        out.truncate(start + out[start..].trim_end().len());
        out.push('\n');
    }
}

/// A field that has commas, quotes or line ends, or could be taken for NULL, is quoted.
fn csv_field(text: &str) -> String {
    let special = text.is_empty() || text.contains([',', '"', '\n', '\r']);
    if special { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Keeps a cell on its line, and terminals from obeying it.
fn escape_control(text: &str) -> String {
    let escaped = |c: char| -> String { if c.is_control() { c.escape_default().collect() } else { c.into() } };
    if text.chars().any(char::is_control) { text.chars().map(escaped).collect() } else { text.to_owned() }
}

fn make_unique(names: &mut [String]) {
    for i in 1..names.len() {
        let taken = |name: &str, names: &[String]| names[..i].iter().any(|earlier| earlier == name);
        let mut name = names[i].clone();
        let mut number = 2;
        while taken(&name, names) {
            name = format!("{}_{number}", names[i]);
            number += 1;
        }
        names[i] = name;
    }
}
