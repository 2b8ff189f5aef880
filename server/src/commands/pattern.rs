//! How a record is printed, as its user wrote it: `%k=%s\\n`. The letters are kcat's.

use std::borrow::Cow;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value as Json;
use tidemill_core::Error;

/// What stands for something in a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Topic,
    Partition,
    Offset,
    Time,
    Key,
    Value,
    KeyBytes,
    ValueBytes,
    Headers,
}

const FIELDS: [(char, Field); 9] = [
    ('t', Field::Topic),
    ('p', Field::Partition),
    ('o', Field::Offset),
    ('T', Field::Time),
    ('k', Field::Key),
    ('s', Field::Value),
    ('K', Field::KeyBytes),
    ('S', Field::ValueBytes),
    ('h', Field::Headers),
];

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Field(Field),
}

/// A pattern that was understood.
#[derive(Debug)]
pub struct Pattern(Vec<Piece>);

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `Invalid` names what means nothing in it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut pieces = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '%' => match chars.next() {
                    Some('%') => push(&mut pieces, b"%"),
                    Some(letter) => pieces.push(Piece::Field(field(letter)?)),
                    None => return Err(Error::invalid("the pattern ends with a single %; a percent sign is %%")),
                },
                '\\' => push(&mut pieces, &[escaped(&mut chars)?]),
                _ => push(&mut pieces, c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        Ok(Self(pieces))
    }

    /// Prints a record, as the API gives it.
    ///
    /// # Errors
    /// A record that is not as the API gives them.
    pub fn print(&self, topic: &str, record: &Json, out: &mut Vec<u8>) -> anyhow::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Field(field) => out.extend_from_slice(&print_field(*field, topic, record)?),
            }
        }
        Ok(())
    }
}

fn push(pieces: &mut Vec<Piece>, text: &[u8]) {
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.extend_from_slice(text),
        _ => pieces.push(Piece::Text(text.to_vec())),
    }
}

fn field(letter: char) -> Result<Field, Error> {
    let found = FIELDS.iter().find(|(known, _)| *known == letter).map(|(_, field)| *field);
    let all: String = FIELDS.iter().map(|(known, _)| format!(" %{known}")).collect();
    found.ok_or_else(|| Error::invalid(format!("%{letter} stands for nothing in a pattern; there are{all} %%")))
}

fn escaped(chars: &mut std::str::Chars<'_>) -> Result<u8, Error> {
    match chars.next() {
        Some('n') => Ok(b'\n'),
        Some('t') => Ok(b'\t'),
        Some('r') => Ok(b'\r'),
        Some('\\') => Ok(b'\\'),
        Some('x') => {
            let digits: String = chars.by_ref().take(2).collect();
            let hex = digits.len() == 2 && digits.chars().all(|c| c.is_ascii_hexdigit());
            let byte = if hex { u8::from_str_radix(&digits, 16).ok() } else { None };
            byte.ok_or_else(|| {
                Error::invalid(format!("\\x{digits} in the pattern is not \\x and two hexadecimal digits"))
            })
        }
        other => {
            let other = other.map(String::from).unwrap_or_default();
            Err(Error::invalid(format!("\\{other} means nothing in a pattern; there are \\n \\t \\r \\\\ \\xHH")))
        }
    }
}

fn print_field<'a>(field: Field, topic: &'a str, record: &'a Json) -> anyhow::Result<Cow<'a, [u8]>> {
    let number = |name: &str| Cow::Owned(record[name].to_string().into_bytes());
    let bytes = |name: &str| anyhow::Ok(bytes_of(record, name)?.unwrap_or_default());
    let length = |name: &str| {
        let length = bytes_of(record, name)?.map_or("-1".to_owned(), |bytes| bytes.len().to_string());
        anyhow::Ok(Cow::Owned(length.into_bytes()))
    };
    match field {
        Field::Topic => Ok(Cow::Borrowed(topic.as_bytes())),
        Field::Partition => Ok(number("partition")),
        Field::Offset => Ok(number("offset")),
        Field::Time => Ok(number("timestamp")),
        Field::Key => bytes("key"),
        Field::Value => bytes("value"),
        Field::KeyBytes => length("key"),
        Field::ValueBytes => length("value"),
        Field::Headers => {
            let empty = Vec::new();
            let all = record["headers"].as_array().unwrap_or(&empty).iter();
            let texts =
                all.map(|h| format!("{}={}", h[0].as_str().unwrap_or_default(), h[1].as_str().unwrap_or("NULL")));
            Ok(Cow::Owned(texts.collect::<Vec<_>>().join(",").into_bytes()))
        }
    }
}

/// The bytes of a record's key or value; `None` for null.
pub fn bytes_of<'a>(record: &'a Json, name: &str) -> anyhow::Result<Option<Cow<'a, [u8]>>> {
    if let Some(text) = record[name].as_str() {
        return Ok(Some(Cow::Borrowed(text.as_bytes())));
    }
    match record[format!("{name}_base64")].as_str() {
        Some(text) => Ok(Some(Cow::Owned(BASE64_STANDARD.decode(text)?))),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn print(pattern: &str, record: &Json) -> String {
        let mut out = Vec::new();
        Pattern::parse(pattern).unwrap().print("orders", record, &mut out).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn each_letter_prints_its_field() {
        let record = json!({
            "partition": 2, "offset": 7, "timestamp": 1700, "key": "a", "value_base64": "/w==",
            "headers": [["x", "1"], ["y", null]],
        });
        assert_eq!(print(r"%t[%p]@%o %T %k %K %S %h %%\t\x41\n", &record), "orders[2]@7 1700 a 1 1 x=1,y=NULL %\tA\n");
        assert_eq!(print("%s", &record).as_bytes(), "\u{fffd}".as_bytes());
        let null = json!({ "partition": 0, "offset": 0, "timestamp": 0, "key": null, "value": "", "headers": [] });
        assert_eq!(print("<%k|%s|%K|%S|%h>é", &null), "<||-1|0|>é");
    }

    #[test]
    fn what_means_nothing_is_named() {
        for (pattern, part) in [
            ("%q", "%q stands for nothing"),
            ("100%", "single %"),
            (r"\q", r"\q means nothing"),
            (r"\x4", r"\x4"),
            ("\\", "\\"),
        ] {
            let error = Pattern::parse(pattern).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
