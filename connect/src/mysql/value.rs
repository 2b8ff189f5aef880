//! Values as a result of a prepared statement has them, and the spellings that all connectors share.

use std::fmt::Write;

use mysql_async::Value as Wire;

use super::text::utf8;
use crate::{
    Error, Result,
    change::Value,
    types::{Dialect, Kind},
};

/// What is sent for a value of a row: keys of pages and of look-ups.
pub fn parameter(value: &Value, kind: Kind) -> Wire {
    match value {
        Value::Null | Value::Unchanged => Wire::NULL,
        Value::Boolean(truth) => Wire::Int(i64::from(*truth)),
        Value::Integer(number) => Wire::Int(*number),
        Value::Unsigned(number) => Wire::UInt(*number),
        Value::Real(number) => Wire::Double(*number),
        Value::Text(text) if matches!(kind, Kind::Timestamp | Kind::Instant) => {
            Wire::Bytes(text.trim_end_matches('Z').replacen('T', " ", 1).into_bytes())
        }
        Value::Text(text) => Wire::Bytes(text.clone().into_bytes()),
        Value::InvalidText(bytes) | Value::Blob(bytes) => Wire::Bytes(bytes.clone()),
    }
}

/// How the values of a column are read from a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    Bit,
    Kind(Kind),
}

impl Reading {
    /// How values of a declared type are read.
    pub fn of(declared_type: &str) -> Self {
        let base = declared_type.get(..3).unwrap_or_default();
        if base.eq_ignore_ascii_case("bit") { Self::Bit } else { Self::Kind(Dialect::Mysql.kind(declared_type)) }
    }

    /// A value of a result.
    ///
    /// # Errors
    /// `Internal` where the column's type sends no such value.
    pub fn value(self, wire: Wire) -> Result<Value> {
        Ok(match (self, wire) {
            (_, Wire::NULL) => Value::Null,
            (Self::Bit, Wire::Bytes(bytes)) => {
                unsigned(bytes.iter().fold(0, |sum: u64, byte| sum.wrapping_shl(8) | u64::from(*byte)))
            }
            (_, Wire::Int(number)) => Value::Integer(number),
            (_, Wire::UInt(number)) => unsigned(number),
            (_, Wire::Float(number)) => float(number),
            (_, Wire::Double(number)) => Value::Real(number),
            (Self::Kind(Kind::Blob), Wire::Bytes(bytes)) => Value::Blob(bytes),
            (Self::Kind(Kind::Decimal), Wire::Bytes(bytes)) => match utf8(bytes) {
                Value::Text(digits) => Value::Text(plain_decimal(&digits)),
                other => other,
            },
            (_, Wire::Bytes(bytes)) => utf8(bytes),
            (Self::Kind(Kind::Date), Wire::Date(y, m, d, ..)) => Value::Text(date(y.into(), m.into(), d.into())),
            (Self::Kind(kind), Wire::Date(y, m, d, h, min, s, micros)) => {
                let moment = [y.into(), m.into(), d.into(), h.into(), min.into(), s.into()];
                Value::Text(datetime(moment, micros, kind == Kind::Instant))
            }
            (_, Wire::Time(negative, days, h, m, s, micros)) => {
                Value::Text(time(negative, days * 24 + u32::from(h), m.into(), s.into(), micros))
            }
            (Self::Bit, other) => return Err(Error::internal(format!("a BIT came as {}", name_of(&other)))),
        })
    }
}

fn name_of(wire: &Wire) -> &'static str {
    match wire {
        Wire::Date(..) => "a date",
        _ => "something else",
    }
}

/// A number without a sign, signed where it fits.
pub fn unsigned(number: u64) -> Value {
    i64::try_from(number).map_or(Value::Unsigned(number), Value::Integer)
}

/// The double with the shortest digits that tell the float: 0.1 stays 0.1.
pub fn float(number: f32) -> Value {
    Value::Real(number.to_string().parse().unwrap_or_else(|_| f64::from(number)))
}

/// Digits without zeros in front, as ZEROFILL sends them.
pub fn plain_decimal(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let whole = digits.find('.').unwrap_or(digits.len());
    let zeros = digits.bytes().take(whole.saturating_sub(1)).take_while(|digit| *digit == b'0').count();
    format!("{sign}{}", &digits[zeros..])
}

/// `2024-02-29`.
pub fn date(year: u32, month: u32, day: u32) -> String {
    format!("{year:04}-{month:02}-{day:02}")
}

/// `-101:02:03.5`.
pub fn time(negative: bool, hours: u32, minutes: u32, seconds: u32, micros: u32) -> String {
    let mut text = format!("{}{hours:02}:{minutes:02}:{seconds:02}", if negative { "-" } else { "" });
    fraction(&mut text, micros);
    text
}

/// `2024-02-29T13:04:05.25`, with `Z` where it is a moment. The parts are from the year to the second.
pub fn datetime(parts: [u32; 6], micros: u32, is_instant: bool) -> String {
    let [year, month, day, hours, minutes, seconds] = parts;
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}");
    fraction(&mut text, micros);
    if is_instant {
        text.push('Z');
    }
    text
}

/// A moment by its seconds since 1970; the first second of all stands for no date.
pub fn instant(seconds: u32, micros: u32) -> String {
    if seconds == 0 && micros == 0 {
        return datetime([0; 6], 0, true);
    }
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 1 March of the year 0, in eras of 400 years.
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u32::from(month <= 2);
    datetime([year, month, day, rest / 3_600, rest / 60 % 60, rest % 60], micros, true)
}

/// `.` and the digits that are not zero at the end.
fn fraction(text: &mut String, micros: u32) {
    if micros != 0 {
        // Writing to a string cannot fail.
        let _ = write!(text, ".{micros:06}");
        text.truncate(text.trim_end_matches('0').len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_spelled() {
        assert_eq!(instant(0, 0), "0000-00-00T00:00:00Z");
        assert_eq!(instant(1_709_211_845, 250_000), "2024-02-29T13:04:05.25Z");
        assert_eq!(instant(i32::MAX as u32, 999_999), "2038-01-19T03:14:07.999999Z");
        assert_eq!(instant(u32::MAX, 0), "2106-02-07T06:28:15Z");
        assert_eq!(instant(1, 0), "1970-01-01T00:00:01Z");
        assert_eq!(time(true, 838, 59, 59, 500_000), "-838:59:59.5");
    }

    #[test]
    fn numbers_are_spelled() {
        assert_eq!(float(0.1), Value::Real(0.1));
        assert_eq!(unsigned(u64::MAX), Value::Unsigned(u64::MAX));
        assert_eq!(unsigned(5), Value::Integer(5));
        for (from, to) in
            [("0001.50", "1.50"), ("-0.10", "-0.10"), ("000", "0"), ("0", "0"), ("", ""), ("-00.5", "-0.5")]
        {
            assert_eq!(plain_decimal(from), to);
        }
    }
}
