//! The length of an INTERVAL literal, in milliseconds.
//!
//! Amounts and units are read as in every other INTERVAL of a statement. Months and years have no fixed length, and
//! nothing here is shorter than a millisecond: both are refused.

use datafusion::{
    arrow::compute::kernels::cast_utils::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config},
    sql::sqlparser::ast::{Expr, Interval, Value, ValueWithSpan},
};
use tidemill_core::{Error, Result};

use super::place;

const MS_OF_DAY: i64 = 86_400_000;
const NANOS_OF_MS: i64 = 1_000_000;

/// Reads `INTERVAL '1 hour 30 minutes'` or `INTERVAL '90' MINUTE`; `what` is its role, for messages.
///
/// # Errors
/// `Invalid` for what is no such literal, `Unsupported` for months and years.
pub(super) fn millis(expr: &Expr, what: &str) -> Result<i64> {
    let Expr::Interval(interval) = expr else {
        let text = format!("the {what} is {expr}; write an interval, as INTERVAL '10 seconds'{}", place(expr));
        return Err(Error::invalid(text));
    };
    let invalid = |why: &str| Error::invalid(format!("the {what} {expr} {why}{}", place(expr)));
    let text = text_of(interval).ok_or_else(|| invalid("is not written as INTERVAL '10 seconds'"))?;
    if has_calendar_unit(&text) {
        let why = format!("the {what} {expr} is not supported yet: months and years differ in length");
        return Err(Error::unsupported(format!("{why}{}", place(expr))));
    }
    let config = IntervalParseConfig::new(IntervalUnit::Second);
    let read = parse_interval_month_day_nano_config(&text, config).map_err(|_| invalid("is no interval"))?;
    if read.nanoseconds % NANOS_OF_MS != 0 {
        return Err(invalid("has parts of a millisecond"));
    }
    // At most 2^31 days and 2^63 nanoseconds: this fits.
    Ok(i64::from(read.days) * MS_OF_DAY + read.nanoseconds / NANOS_OF_MS)
}

/// Amounts and units in one text; `None` for intervals of several fields, and what is no literal.
fn text_of(interval: &Interval) -> Option<String> {
    let Interval {
        value,
        leading_field,
        leading_precision: None,
        last_field: None,
        fractional_seconds_precision: None,
    } = interval
    else {
        return None;
    };
    let Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(amount), .. }) = value.as_ref() else {
        return None;
    };
    Some(leading_field.as_ref().map_or_else(|| amount.clone(), |unit| format!("{amount} {unit}")))
}

fn has_calendar_unit(text: &str) -> bool {
    let units = text.split(|c: char| !c.is_ascii_alphabetic()).map(str::to_ascii_lowercase);
    let calendar = ["mon", "y", "yr", "year", "quarter", "dec", "decade", "c", "cent", "century", "centurie"];
    units.into_iter().any(|unit| {
        let unit = unit.strip_suffix('s').unwrap_or(&unit);
        calendar.contains(&unit) || unit == "month"
    })
}
