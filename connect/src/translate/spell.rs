//! One spelling for what means the same: decimals, JSON, fractions of seconds, zeros.

use serde_json::{Map, Value as Json};

use crate::{change::Value, types::Kind};

/// Doubles below this that are whole are the same as their integers.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A value as both sides of a comparison spell it. Between databases of one kind only JSON is spelled anew: MySQL and
/// MariaDB, of one kind here, write it differently.
pub(super) fn comparable(value: Value, kind: Kind, verbatim: bool) -> Value {
    match (kind, value) {
        (Kind::Json, Value::Text(text)) => Value::Text(canonical_json(text)),
        (_, value) if verbatim => value,
        (Kind::Decimal, Value::Text(text)) => Value::Text(trim_decimal(text)),
        (Kind::Time | Kind::Timestamp | Kind::Instant, Value::Text(text)) => Value::Text(trim_fraction(text)),
        (Kind::Real | Kind::Any, Value::Real(real)) if real.fract() == 0.0 && real.abs() < EXACT => {
            // Below 2^53 the cast is exact; it also makes -0.0 the same as 0.
            Value::Integer(real as i64)
        }
        (_, value) => value,
    }
}

/// What is made the same of values of one kind in the topic and another in the target, for people.
pub(super) fn normalised(from: Kind, to: Kind, verbatim: bool) -> Option<&'static str> {
    Some(match (from, to) {
        (_, Kind::Json) => "with members of JSON in any order, and 1.0 as 1",
        _ if verbatim => return None,
        (_, Kind::Decimal) | (Kind::Decimal, _) => "without zeros at the end of the fraction",
        (Kind::Boolean, Kind::Boolean) => return None,
        (Kind::Boolean, _) => "with true as 1, false as 0",
        (Kind::Instant, _) => "in UTC, without zeros at the end of the fraction of a second",
        (_, Kind::Time | Kind::Timestamp | Kind::Instant) => "without zeros at the end of the fraction of a second",
        (Kind::Real, Kind::Real) => "as numbers: 1.0 as 1, -0 as 0",
        (Kind::Real, _) => "with numbers as their text",
        _ => return None,
    })
}

/// A decimal without zeros at the end of its fraction.
pub(super) fn trim_decimal(text: String) -> String {
    if !text.contains('.') {
        return text;
    }
    let trimmed = text.trim_end_matches('0').trim_end_matches('.');
    match trimmed {
        "-0" | "" | "-" => "0".into(),
        _ => trimmed.to_owned(),
    }
}

/// A time without zeros at the end of its fraction of a second.
pub(super) fn trim_fraction(text: String) -> String {
    let Some((whole, rest)) = text.split_once('.') else { return text };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at(end);
    match fraction.trim_end_matches('0') {
        "" => format!("{whole}{zone}"),
        fraction => format!("{whole}.{fraction}{zone}"),
    }
}

/// A document with its members in order, and its numbers spelled one way; what is no JSON stays as it is.
fn canonical_json(text: String) -> String {
    match serde_json::from_str::<Json>(&text) {
        Ok(json) => sorted(json).to_string(),
        Err(_) => text,
    }
}

fn sorted(json: Json) -> Json {
    match json {
        Json::Object(object) => {
            let mut members: Vec<_> = object.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Json::Object(members.into_iter().collect::<Map<_, _>>())
        }
        Json::Array(items) => Json::Array(items.into_iter().map(sorted).collect()),
        Json::Number(number) => match number.as_f64() {
            Some(real) if number.is_f64() && real.fract() == 0.0 && real.abs() < EXACT => (real as i64).into(),
            _ => Json::Number(number),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_meanings_have_one_spelling() {
        for (a, b) in [("1.50", "1.5"), ("-0.00", "0"), ("100", "100"), ("0.0", "0"), ("10.0", "10"), ("NaN", "NaN")] {
            assert_eq!(trim_decimal(a.into()), b);
        }
        for (a, b) in [
            ("2024-01-01T00:00:00.250000Z", "2024-01-01T00:00:00.25Z"),
            ("2024-01-01T00:00:00.000", "2024-01-01T00:00:00"),
            ("-838:59:59.10", "-838:59:59.1"),
            ("0044-03-15T01:00:00.50 BC", "0044-03-15T01:00:00.5 BC"),
            ("infinity", "infinity"),
        ] {
            assert_eq!(trim_fraction(a.into()), b);
        }
        for (a, b) in [
            (r#"{"b": 1.0, "a": [ 1e2 ]}"#, r#"{"a":[100],"b":1}"#),
            ("1.5", "1.5"),
            ("{", "{"),
            (r#""ä""#, r#""ä""#),
            ("18446744073709551615", "18446744073709551615"),
        ] {
            assert_eq!(canonical_json(a.into()), b);
        }
        let zero = comparable(Value::Real(-0.0), Kind::Real, false);
        assert_eq!(zero, Value::Integer(0));
        assert_eq!(comparable(Value::Real(1e300), Kind::Real, false), Value::Real(1e300));
    }
}
