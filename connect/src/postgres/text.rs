//! Values from PostgreSQL's own text: one decoder for the copy, the stream and comparing, so that a value is the same
//! whichever way it came.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use sqlx::PgConnection;

use super::endpoint::{identifier, literal, postgres_error};
use crate::{
    Error, Result,
    change::{Row, TableSchema, Value},
    types::Kind,
};

/// The longest line of a copy that is taken: beyond PostgreSQL's limit of 1 GB for a value nothing is in order.
const MAX_LINE: usize = 1 << 30;

/// The kinds of a table's columns.
pub(super) fn kinds(table: &TableSchema) -> Vec<Kind> {
    table.columns.iter().map(|column| Kind::of_postgres(&column.declared_type)).collect()
}

/// A value from its text.
///
/// # Errors
/// `Corrupt` for text that is no value of the kind.
pub(super) fn decode(kind: Kind, bytes: &[u8]) -> Result<Value> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(Value::InvalidText(bytes.to_vec())) };
    let bad = || Error::corrupt(format!("a value that is no {kind:?}, of {} bytes", text.len()));
    Ok(match kind {
        Kind::Integer => Value::Integer(text.parse().map_err(|_| bad())?),
        Kind::Boolean => match text {
            "t" => Value::Boolean(true),
            "f" => Value::Boolean(false),
            _ => return Err(bad()),
        },
        Kind::Real => Value::Real(text.parse().map_err(|_| bad())?),
        Kind::Blob => Value::Blob(bytea(text).ok_or_else(bad)?),
        Kind::Time => Value::Text(trim_fraction(text).to_owned()),
        Kind::Timestamp => Value::Text(timestamp(text, "")),
        Kind::Instant => Value::Text(instant(text)),
        _ => Value::Text(text.to_owned()),
    })
}

fn bytea(text: &str) -> Option<Vec<u8>> {
    let hex = text.strip_prefix("\\x")?.as_bytes();
    if !hex.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16);
    // Two hexadecimal digits are less than 256.
    hex.chunks_exact(2).map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

/// Without zeros at the end of a fraction.
fn trim_fraction(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

/// `infinity` and years before Christ stay as they are written.
fn timestamp(text: &str, zone: &str) -> String {
    match text.split_once(' ') {
        Some((date, time)) if time.starts_with(|c: char| c.is_ascii_digit()) && !time.ends_with("BC") => {
            let mut moment = String::with_capacity(text.len() + zone.len());
            for part in [date, "T", trim_fraction(time), zone] {
                moment.push_str(part);
            }
            moment
        }
        _ => text.to_owned(),
    }
}

/// Sessions ask for UTC. Another zone's text is moved there, so that a pooler that loses settings does no harm.
fn instant(text: &str) -> String {
    if let Some(utc) = text.strip_suffix("+00") {
        return timestamp(utc, "Z");
    }
    moved_to_utc(text).unwrap_or_else(|| text.to_owned())
}

fn moved_to_utc(text: &str) -> Option<String> {
    let (date, rest) = text.split_once(' ')?;
    let at = rest.find(['+', '-'])?;
    let (time, offset) = rest.split_at(at);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let seconds = |text: &str| -> Option<i64> {
        let mut parts = [0_i64; 3];
        for (i, part) in text.split(':').enumerate() {
            *parts.get_mut(i)? = part.parse().ok().filter(|n| (0..1000).contains(n))?;
        }
        Some(parts[0] * 3600 + parts[1] * 60 + parts[2])
    };
    let offset = match offset.strip_prefix('-') {
        Some(west) => -seconds(west)?,
        None => seconds(offset.trim_start_matches('+'))?,
    };
    let mut fields = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (fields.next()??, fields.next()??, fields.next()??);
    if !(1..=999_999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let moment = days_from_civil(year, month, day) * 86_400 + seconds(time)? - offset;
    let (year, month, day) = civil_from_days(moment.div_euclid(86_400));
    let time = moment.rem_euclid(86_400);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let (h, m, s) = (time / 3600, time / 60 % 60, time % 60);
    Some(format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}{point}{fraction}Z"))
}

/// Days since 1970-01-01 of a date, counted in years that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// A value as a literal without a type; PostgreSQL reads it as the type of the column beside it.
pub(super) fn value_literal(value: &Value) -> String {
    match value {
        Value::Null | Value::Unchanged => "NULL".into(),
        Value::Boolean(b) => literal(if *b { "t" } else { "f" }),
        Value::Integer(i) => literal(&i.to_string()),
        Value::Unsigned(u) => literal(&u.to_string()),
        Value::Real(r) if r.is_infinite() => literal(if *r > 0.0 { "Infinity" } else { "-Infinity" }),
        Value::Real(r) => literal(&r.to_string()),
        Value::Text(text) => literal(text),
        Value::InvalidText(bytes) => literal(&String::from_utf8_lossy(bytes)),
        Value::Blob(bytes) => {
            let mut hex = String::with_capacity(2 + bytes.len() * 2);
            hex.push_str("\\x");
            for byte in bytes {
                hex.push_str(&format!("{byte:02x}"));
            }
            literal(&hex)
        }
    }
}

/// A key as a row of literals.
pub(super) fn key_literal(key: &[Value]) -> String {
    format!("({})", key.iter().map(value_literal).collect::<Vec<_>>().join(", "))
}

/// The table's columns, quoted, in their order.
pub(super) fn column_list(table: &TableSchema) -> String {
    table.columns.iter().map(|column| identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

/// The key's columns, quoted, in key order.
pub(super) fn key_list(table: &TableSchema) -> String {
    let names = table.key_columns().into_iter().map(|i| identifier(&table.columns[i].name));
    names.collect::<Vec<_>>().join(", ")
}

/// Splits what `COPY TO STDOUT` sends into rows.
pub(super) struct CopyRows {
    kinds: Vec<Kind>,
    rest: BytesMut,
}

impl CopyRows {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        Self { kinds, rest: BytesMut::new() }
    }

    /// The rows that end in these bytes.
    pub(super) fn feed(&mut self, bytes: &Bytes, out: &mut Vec<Row>) -> Result<()> {
        // PostgreSQL sends a row a message; the protocol does not promise it.
        if self.rest.len() + bytes.len() > MAX_LINE {
            return Err(Error::corrupt("a row of a copy is beyond 1 GB"));
        }
        self.rest.extend_from_slice(bytes);
        let mut scanned = self.rest.len() - bytes.len();
        while let Some(end) = self.rest[scanned..].iter().position(|byte| *byte == b'\n') {
            let line = self.rest.split_to(scanned + end + 1);
            out.push(self.row(&line[..line.len() - 1])?);
            scanned = 0;
        }
        Ok(())
    }

    fn row(&self, line: &[u8]) -> Result<Row> {
        let mut row = Vec::with_capacity(self.kinds.len());
        let mut buffer = Vec::new();
        if !(self.kinds.is_empty() && line.is_empty()) {
            for cell in line.split(|byte| *byte == b'\t') {
                let Some(kind) = self.kinds.get(row.len()) else { break };
                row.push(match cell {
                    b"\\N" => Value::Null,
                    _ if cell.contains(&b'\\') => {
                        unescape(cell, &mut buffer);
                        decode(*kind, &buffer)?
                    }
                    _ => decode(*kind, cell)?,
                });
            }
        }
        match row.len() == self.kinds.len() {
            true => Ok(row),
            false => Err(Error::corrupt("a row of a copy has not the columns that were asked for")),
        }
    }
}

/// PostgreSQL writes a backslash before these letters and itself; it reads octal and hexadecimal, but never writes them.
fn unescape(cell: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut bytes = cell.iter();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'v') => 11,
                Some(other) => *other,
                None => b'\\',
            },
            other => *other,
        });
    }
}

/// What to do with rows beyond a budget of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    /// Stop reading: the connection is of no use then.
    Stop,
    /// Read on and forget them.
    Forget,
}

/// The rows of a query, through `COPY`, until they hold `budget` bytes; whether these are all.
///
/// # Errors
/// After an error, too, the connection is of no use.
pub(super) async fn copy_out(
    conn: &mut PgConnection,
    doing: &str,
    kinds: Vec<Kind>,
    query: &str,
    budget: usize,
    beyond: Beyond,
) -> Result<(Vec<Row>, usize, bool)> {
    let mut stream =
        conn.copy_out_raw(&format!("COPY ({query}) TO STDOUT")).await.map_err(|e| postgres_error(doing, e))?;
    let (mut splitter, mut rows, mut size, mut whole) = (CopyRows::new(kinds), Vec::new(), 0, true);
    while let Some(bytes) = stream.try_next().await.map_err(|e| postgres_error(doing, e))? {
        if !whole {
            continue;
        }
        size += bytes.len();
        splitter.feed(&bytes, &mut rows)?;
        whole = size <= budget || rows.is_empty();
        if !whole && beyond == Beyond::Stop {
            break;
        }
    }
    Ok((rows, size, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_the_spelling_of_its_kind() {
        let text = |kind, from: &str| match decode(kind, from.as_bytes()) {
            Ok(Value::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        for (kind, from, to) in [
            (Kind::Instant, "2024-02-29 13:04:05.25+00", "2024-02-29T13:04:05.25Z"),
            (Kind::Instant, "2024-02-29 23:04:05.250-05:30", "2024-03-01T04:34:05.25Z"),
            (Kind::Instant, "2024-01-01 01:00:00+02", "2023-12-31T23:00:00Z"),
            (Kind::Instant, "0044-03-15 12:00:00+00 BC", "0044-03-15 12:00:00+00 BC"),
            (Kind::Instant, "294276-12-31 23:59:59.999999+00", "294276-12-31T23:59:59.999999Z"),
            (Kind::Instant, "-infinity", "-infinity"),
            (Kind::Timestamp, "2024-02-29 13:04:05", "2024-02-29T13:04:05"),
            (Kind::Timestamp, "4713-01-01 00:00:00 BC", "4713-01-01 00:00:00 BC"),
            (Kind::Timestamp, "infinity", "infinity"),
            (Kind::Time, "24:00:00", "24:00:00"),
            (Kind::Time, "01:02:03.100", "01:02:03.1"),
            (Kind::Decimal, "-0.00", "-0.00"),
        ] {
            assert_eq!(text(kind, from), to);
        }
        assert_eq!(decode(Kind::Real, b"-Infinity").unwrap(), Value::Real(f64::NEG_INFINITY));
        assert!(matches!(decode(Kind::Real, b"NaN").unwrap(), Value::Real(r) if r.is_nan()));
        assert_eq!(decode(Kind::Blob, b"\\x00ff").unwrap(), Value::Blob(vec![0, 255]));
        assert_eq!(decode(Kind::Text, b"\xff").unwrap(), Value::InvalidText(vec![255]));
        for (kind, bad) in [(Kind::Blob, "\\x0"), (Kind::Integer, "1.5"), (Kind::Boolean, "true")] {
            assert!(decode(kind, bad.as_bytes()).is_err());
        }
    }

    #[test]
    fn rows_of_a_copy_are_split_wherever_the_bytes_are_cut() {
        let sent = b"1\ta\\tb\\\\N\\n\n2\t\\N\n3\t\n";
        let whole = {
            let (mut rows, mut out) = (CopyRows::new(vec![Kind::Integer, Kind::Text]), Vec::new());
            rows.feed(&Bytes::from_static(sent), &mut out).unwrap();
            out
        };
        assert_eq!(whole[0], [Value::Integer(1), Value::Text("a\tb\\N\n".into())]);
        assert_eq!(whole[1], [Value::Integer(2), Value::Null]);
        assert_eq!(whole[2], [Value::Integer(3), Value::Text(String::new())]);
        for cut in 0..sent.len() {
            let (mut rows, mut out) = (CopyRows::new(vec![Kind::Integer, Kind::Text]), Vec::new());
            rows.feed(&Bytes::copy_from_slice(&sent[..cut]), &mut out).unwrap();
            rows.feed(&Bytes::copy_from_slice(&sent[cut..]), &mut out).unwrap();
            assert_eq!(out, whole);
        }
        assert!(CopyRows::new(vec![Kind::Text]).feed(&Bytes::from_static(b"a\tb\n"), &mut Vec::new()).is_ok());
        assert!(CopyRows::new(vec![Kind::Text; 3]).feed(&Bytes::from_static(b"a\tb\n"), &mut Vec::new()).is_err());
    }
}
