//! What becomes of one value.

use crate::change::Value;

use super::spell::trim_decimal;

/// What a target's column wants of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// It as it is.
    Same,
    /// An integer within bounds; true is 1.
    Integer { min: i64, max: i64 },
    /// A double. `special` tells whether infinities and NaN may be.
    Double { special: Special },
    /// A number as SQLite keeps it: an integer where it is whole, else a double.
    SqliteNumber,
    /// An exact decimal of any length, with PostgreSQL's infinities and NaN.
    Numeric,
    /// An exact decimal of so many digits, `scale` of them after the point.
    Decimal { precision: u32, scale: u32 },
    /// Text, and numbers as text. `max` counts characters.
    Text { nul: bool, max: Option<u32> },
    /// As `Text`, in a key whose numbers and texts must not become one.
    TextKey { nul: bool, max: Option<u32> },
    /// Bytes, at most so many.
    Bytes { max: Option<u32> },
    /// A date of the calendar from year `1` to `max_year`.
    Date { max_year: u32 },
    /// A date with a time, of the same years; a moment loses its `Z` unless `instant`.
    Moment { max_year: u32, instant: bool },
    /// An integer up to `i64::MAX`, text beyond.
    IntegerOrText,
}

/// Which doubles that are no numbers a target has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// Infinities and NaN.
    All,
    /// Infinities.
    Infinities,
    /// None.
    None,
}

/// Integers of this size and less are doubles without loss.
const EXACT: u64 = 1 << 53;

impl Want {
    /// Any 64-bit integer.
    pub(super) const BIGINT: Self = Self::Integer { min: i64::MIN, max: i64::MAX };

    /// The value as the target holds it.
    ///
    /// # Errors
    /// The value as a message shows it, and why it cannot be.
    pub(super) fn convert(self, value: Value) -> Result<Value, (String, String)> {
        match (self, value) {
            (_, value @ (Value::Null | Value::Unchanged)) | (Self::Same, value) => Ok(value),
            (_, value) => self.converted(&value).map_err(|why| (shown(&value), why)),
        }
    }

    fn converted(self, value: &Value) -> Result<Value, String> {
        match self {
            Self::Same => Ok(value.clone()),
            Self::Integer { min, max } => {
                let integer = match value {
                    Value::Boolean(b) => i64::from(*b),
                    Value::Integer(i) => *i,
                    Value::Unsigned(_) => return Err(format!("it is beyond {max}")),
                    _ => return Err("it is no integer".into()),
                };
                if integer < min || integer > max {
                    return Err(format!("it is not within {min} and {max}"));
                }
                Ok(Value::Integer(integer))
            }
            Self::Double { special } => double(value, special).map(Value::Real),
            Self::SqliteNumber => sqlite_number(value),
            Self::Numeric => numeric(value).map(Value::Text),
            Self::Decimal { precision, scale } => decimal(value, precision, scale).map(Value::Text),
            Self::Text { nul, max } => text(value, nul, max).map(Value::Text),
            Self::TextKey { nul, max } => {
                if let Value::Text(text) = value
                    && spells_number(text)
                {
                    return Err("as a key it would be the same as the number that it spells".into());
                }
                text(value, nul, max).map(Value::Text)
            }
            Self::Bytes { max } => match value {
                Value::Blob(bytes) if max.is_none_or(|max| bytes.len() <= max as usize) => {
                    Ok(Value::Blob(bytes.clone()))
                }
                Value::Blob(bytes) => {
                    Err(format!("it has {} bytes, the column holds {}", bytes.len(), max.unwrap_or_default()))
                }
                _ => Err("it is not bytes".into()),
            },
            Self::Date { max_year } => {
                let text = own_text(value, "a date")?;
                check_date(text, max_year)?;
                Ok(Value::Text(text.to_owned()))
            }
            Self::Moment { max_year, instant } => {
                let text = own_text(value, "a date with a time")?;
                let (date, _) = text.split_once('T').ok_or_else(|| no_date(text))?;
                check_date(date, max_year)?;
                if text.ends_with(" BC") {
                    return Err(no_date(text));
                }
                let text = if instant { text } else { text.trim_end_matches('Z') };
                Ok(Value::Text(text.to_owned()))
            }
            Self::IntegerOrText => match value {
                Value::Integer(_) => Ok(value.clone()),
                Value::Unsigned(u) => Ok(Value::Text(u.to_string())),
                _ => Err("it is no integer".into()),
            },
        }
    }
}

fn double(value: &Value, special: Special) -> Result<f64, String> {
    let real = match value {
        Value::Real(real) => *real,
        // Checked to be exact.
        Value::Integer(i) if i.unsigned_abs() <= EXACT => *i as f64,
        Value::Integer(_) => return Err("as a double it would be another number".into()),
        _ => return Err("it is no number".into()),
    };
    if real.is_finite() || special == Special::All || (special == Special::Infinities && real.is_infinite()) {
        return Ok(real);
    }
    Err(format!("the target has no {}", if real.is_nan() { "NaN" } else { "infinity" }))
}

fn sqlite_number(value: &Value) -> Result<Value, String> {
    let real = match value {
        Value::Integer(_) => return Ok(value.clone()),
        Value::Text(text) if !text.contains('.') && text.parse::<i64>().is_ok() => {
            return Ok(text.parse().map(Value::Integer).unwrap_or(Value::Null));
        }
        Value::Text(text) => text.parse::<f64>().map_err(|_| "it is no number".to_owned())?,
        _ => double(value, Special::Infinities)?,
    };
    if !real.is_finite() {
        return Err("the target has no such number".into());
    }
    // Whole numbers below 2^53: the cast is exact.
    Ok(if real.fract() == 0.0 && real.abs() < EXACT as f64 { Value::Integer(real as i64) } else { Value::Real(real) })
}

/// A number in digits, without an exponent.
fn number_text(value: &Value) -> Option<String> {
    match value {
        Value::Boolean(b) => Some(i64::from(*b).to_string()),
        Value::Integer(i) => Some(i.to_string()),
        Value::Unsigned(u) => Some(u.to_string()),
        Value::Real(real) if real.is_nan() => Some("NaN".into()),
        Value::Real(real) if real.is_infinite() => {
            Some(if *real > 0.0 { "Infinity".into() } else { "-Infinity".into() })
        }
        Value::Real(real) if *real == 0.0 => Some("0".into()),
        Value::Real(real) => Some(real.to_string()),
        _ => None,
    }
}

fn numeric(value: &Value) -> Result<String, String> {
    match value {
        Value::Text(text) if matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity") || digits(text).is_some() => {
            Ok(text.clone())
        }
        _ => number_text(value).ok_or_else(|| "it is no number".into()),
    }
}

/// The digits before and after the point.
fn digits(text: &str) -> Option<(&str, &str)> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let all = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    (all(whole) && all(fraction) && !(whole.is_empty() && fraction.is_empty())).then_some((whole, fraction))
}

fn decimal(value: &Value, precision: u32, scale: u32) -> Result<String, String> {
    let text = numeric(value)?;
    let Some((whole, fraction)) = digits(&text) else { return Err(format!("the target has no {text}")) };
    if fraction.trim_end_matches('0').len() > scale as usize {
        return Err(format!("it has more than {scale} digits after the point"));
    }
    let before = precision.saturating_sub(scale);
    if whole.trim_start_matches('0').len() > before as usize {
        return Err(format!("it has more than {before} digits before the point"));
    }
    Ok(if fraction.len() > scale as usize { trim_decimal(text) } else { text })
}

fn text(value: &Value, nul: bool, max: Option<u32>) -> Result<String, String> {
    let text = match value {
        Value::Text(text) => text.clone(),
        Value::InvalidText(_) => return Err("its bytes are not UTF-8".into()),
        Value::Blob(_) => return Err("it is bytes, not text".into()),
        Value::Real(real) if real.is_finite() => format!("{real:?}"),
        _ => number_text(value).ok_or("it is no text")?,
    };
    if !nul && text.contains('\0') {
        return Err("the target's text has no NUL character".into());
    }
    if let Some(max) = max
        && text.len() > max as usize
        && text.chars().count() > max as usize
    {
        return Err(format!("it has {} characters, the column holds {max}", text.chars().count()));
    }
    Ok(text)
}

/// Whether a text is what [`text`] makes of a number.
fn spells_number(text: &str) -> bool {
    if let Ok(integer) = text.parse::<i64>() {
        return integer.to_string() == text;
    }
    matches!(text, "Infinity" | "-Infinity") || text.parse::<f64>().is_ok_and(|real| format!("{real:?}") == text)
}

fn own_text<'a>(value: &'a Value, what: &str) -> Result<&'a str, String> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(format!("it is not {what}")),
    }
}

fn no_date(text: &str) -> String {
    match text {
        "infinity" | "-infinity" => "the target has no infinite dates".into(),
        _ => "it is no date that the target has".into(),
    }
}

/// Whether a date is one of the calendar, in the years that the target has.
fn check_date(text: &str, max_year: u32) -> Result<(), String> {
    let refused = || no_date(text);
    let mut parts = text.split('-');
    let mut next = |least: usize, most: usize| -> Option<u32> {
        let part = parts.next()?;
        let fits = (least..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        if fits { part.parse().ok() } else { None }
    };
    let (year, month, day) = (next(4, 7), next(2, 2), next(2, 2));
    let (Some(year), Some(month), Some(day), None) = (year, month, day, parts.next()) else { return Err(refused()) };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err(refused()),
    };
    if year == 0 || day == 0 || day > days {
        return Err(refused());
    }
    if year > max_year {
        return Err(format!("the target's years end at {max_year}"));
    }
    Ok(())
}

/// A value in a message: not all of a long one.
fn shown(value: &Value) -> String {
    const MOST: usize = 40;
    let cut = |text: &str| {
        let start: String = text.chars().take(MOST).collect();
        if start.len() == text.len() { format!("{text:?}") } else { format!("{start:?}...") }
    };
    match value {
        Value::Text(text) => cut(text),
        Value::InvalidText(bytes) => format!("{} bytes of invalid text", bytes.len()),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
        Value::Null => "NULL".into(),
        Value::Unchanged => "an untold value".into(),
        Value::Boolean(b) => b.to_string(),
        Value::Integer(i) => i.to_string(),
        Value::Unsigned(u) => u.to_string(),
        Value::Real(real) => format!("{real:?}"),
    }
}
