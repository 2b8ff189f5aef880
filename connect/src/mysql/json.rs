//! MySQL's binary JSON as text. MariaDB keeps JSON as text.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{
    binlog::{
        bytes::{Bytes, corrupt},
        cell::decimal,
    },
    value::{date, time},
};
use crate::Result;

/// MySQL nests no deeper.
const MAX_DEPTH: usize = 101;
/// Documents share no parts: the text is at most so many times as long as the bytes.
const MAX_GROWTH: usize = 64;

/// A binary document as text, the way MySQL writes it: `{"a": 1, "b": [1, 2]}`.
///
/// # Errors
/// `Corrupt`.
pub fn json_text(bytes: &[u8]) -> Result<String> {
    let mut writer = Writer { text: String::new(), limit: bytes.len() * MAX_GROWTH + 64 };
    match bytes.split_first() {
        // Stored for a document that had to be left out.
        None => writer.text.push_str("null"),
        Some((kind, rest)) => writer.value(*kind, rest, 0)?,
    }
    Ok(writer.text)
}

struct Writer {
    text: String,
    limit: usize,
}

impl Writer {
    fn value(&mut self, kind: u8, data: &[u8], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH || self.text.len() > self.limit {
            return Err(corrupt("a JSON document has no end"));
        }
        let mut bytes = Bytes::new(data);
        match kind {
            0 | 1 => self.container(data, kind == 1, true, depth)?,
            2 | 3 => self.container(data, kind == 3, false, depth)?,
            4 => self.text.push_str(match bytes.u8()? {
                0 => "null",
                1 => "true",
                2 => "false",
                _ => return Err(corrupt("a JSON literal is none")),
            }),
            5 => self.text.push_str(&(bytes.le(2)? as i16).to_string()),
            6 => self.text.push_str(&bytes.le(2)?.to_string()),
            7 => self.text.push_str(&(bytes.le(4)? as i32).to_string()),
            8 => self.text.push_str(&bytes.le(4)?.to_string()),
            9 => self.text.push_str(&(bytes.le(8)? as i64).to_string()),
            10 => self.text.push_str(&bytes.le(8)?.to_string()),
            11 => {
                let number = f64::from_bits(bytes.le(8)?);
                self.text.push_str(&serde_json::Number::from_f64(number).map_or("0".into(), |n| n.to_string()));
            }
            12 => {
                let length = length(&mut bytes)?;
                self.string(bytes.take(length)?)?;
            }
            15 => self.opaque(&mut bytes)?,
            _ => return Err(corrupt("a JSON value has an unknown type")),
        }
        Ok(())
    }

    fn container(&mut self, data: &[u8], large: bool, is_object: bool, depth: usize) -> Result<()> {
        let word = if large { 4 } else { 2 };
        let mut bytes = Bytes::new(data);
        let count = usize::try_from(bytes.le(word)?).map_err(|_| corrupt("a JSON count is none"))?;
        bytes.take(word)?;
        let mut keys = Bytes::new(match is_object {
            true => bytes.take(count.checked_mul(word + 2).ok_or_else(|| corrupt("a JSON count is none"))?)?,
            false => &[],
        });
        self.text.push(if is_object { '{' } else { '[' });
        for i in 0..count {
            if i > 0 {
                self.text.push_str(", ");
            }
            if is_object {
                let (start, length) = (keys.le(word)? as usize, keys.le(2)? as usize);
                let key = data.get(start..).and_then(|rest| rest.get(..length));
                self.string(key.ok_or_else(|| corrupt("a JSON key lies outside"))?)?;
                self.text.push_str(": ");
            }
            let (kind, place) = (bytes.u8()?, bytes.take(word)?);
            // Small values stand in the place itself.
            let inlined = matches!(kind, 4..=6) || (large && matches!(kind, 7 | 8));
            if inlined {
                self.value(kind, place, depth + 1)?;
            } else {
                let at = Bytes::new(place).le(word)? as usize;
                let inside = data.get(at..).filter(|_| at > 0);
                self.value(kind, inside.ok_or_else(|| corrupt("a JSON value lies outside"))?, depth + 1)?;
            }
        }
        self.text.push(if is_object { '}' } else { ']' });
        Ok(())
    }

    fn string(&mut self, bytes: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("a JSON string is not UTF-8"))?;
        self.text.push_str(&serde_json::Value::from(text).to_string());
        Ok(())
    }

    /// A value of a type that JSON does not have.
    fn opaque(&mut self, bytes: &mut Bytes<'_>) -> Result<()> {
        let kind = bytes.u8()?;
        let length = length(bytes)?;
        let data = bytes.take(length)?;
        let mut bytes = Bytes::new(data);
        match kind {
            246 => {
                let (precision, scale) = (usize::from(bytes.u8()?), usize::from(bytes.u8()?));
                if precision == 0 || precision > 65 || scale > precision {
                    return Err(corrupt("a JSON number has no digits"));
                }
                let digits = decimal(&mut bytes, precision, scale)?;
                self.text.push_str(&digits);
            }
            7 | 10 | 11 | 12 => {
                let packed = bytes.le(8)? as i64;
                let (negative, packed) = (packed < 0, packed.unsigned_abs());
                let (whole, micros) = (packed >> 24, (packed & 0xff_ffff) as u32);
                let (hours, minutes, seconds) =
                    ((whole >> 12 & 31) as u32, (whole >> 6 & 63) as u32, (whole & 63) as u32);
                let months = (whole >> 22) as u32;
                let day = date(months / 13, months % 13, (whole >> 17 & 31) as u32);
                let clock = |hours| format!("{}.{micros:06}", time(false, hours, minutes, seconds, 0));
                let moment = match kind {
                    10 => day,
                    11 => format!("{}{}", if negative { "-" } else { "" }, clock((whole >> 12 & 0x3ff) as u32)),
                    _ => format!("{day} {}", clock(hours)),
                };
                self.string(moment.as_bytes())?;
            }
            _ => self.string(format!("base64:type{kind}:{}", STANDARD.encode(data)).as_bytes())?,
        }
        Ok(())
    }
}

/// A length in groups of seven bits.
fn length(bytes: &mut Bytes<'_>) -> Result<usize> {
    let mut length = 0;
    for group in 0..5 {
        let byte = usize::from(bytes.u8()?);
        length |= (byte & 0x7f) << (7 * group);
        if byte < 0x80 {
            return Ok(length);
        }
    }
    Err(corrupt("a JSON length has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_written_as_mysql_writes_them() {
        // {"a": 1, "b": [true, "x"]}
        let document: &[u8] = &[
            0, 2, 0, 32, 0, 18, 0, 1, 0, 19, 0, 1, 0, 5, 1, 0, 2, 20, 0, b'a', b'b', 2, 0, 12, 0, 4, 1, 0, 12, 10, 0,
            1, b'x',
        ];
        assert_eq!(json_text(document).unwrap(), r#"{"a": 1, "b": [true, "x"]}"#);
        assert_eq!(json_text(&[]).unwrap(), "null");
        for end in 1..document.len() {
            assert!(json_text(&document[..end]).is_err(), "{end}");
        }
        // An array that holds itself.
        assert!(json_text(&[2, 1, 0, 7, 0, 2, 0, 0]).is_err());
    }
}
