//! `_tm_event_time(value, column, place)`: a row's time, from what its column holds.
//!
//! Timestamps of any unit, BIGINT as milliseconds since 1970-01-01 UTC, and text as SQLite writes date-times. What is
//! between two milliseconds belongs to the earlier one, also before 1970. A value that is no time fails the query; NULL
//! stays NULL.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, AsArray as _, PrimitiveArray, StringArrayType, timezone::Tz},
        compute::kernels::cast_utils::string_to_datetime,
        datatypes::{
            ArrowPrimitiveType, DataType, Field, FieldRef, Int64Type, TimeUnit, TimestampMicrosecondType,
            TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
        },
    },
    common::{Result as PlanResult, ScalarValue},
    logical_expr::{ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility},
};
use tidemill_core::{Error, Result};

use super::{assign::misused, instant};
use crate::error::wrap;

/// Times beyond, either way, are refused: 250,000 years from 1970, what can be written out with room for windows.
const LIMIT_MS: i64 = 8_000_000_000_000_000;

type Times = PrimitiveArray<TimestampMillisecondType>;

/// The function. Column and place are literals, for messages.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct EventTime {
    signature: Signature,
}

impl EventTime {
    pub(super) fn new() -> Self {
        Self { signature: Signature::any(3, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for EventTime {
    fn name(&self) -> &str {
        "_tm_event_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> PlanResult<DataType> {
        Ok(instant())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        use DataType as D;
        let ([value, ..], [_, Some(column), Some(place)]) = (args.arg_fields, args.scalar_arguments) else {
            return Err(misused());
        };
        match value.data_type() {
            D::Timestamp(..) | D::Int64 | D::Utf8View | D::Utf8 | D::LargeUtf8 | D::Null => {
                Ok(Arc::new(Field::new(self.name(), instant(), value.is_nullable())))
            }
            other => Err(wrap(Column::of(column, place)?.of_wrong_type(other))),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        let [value, ColumnarValue::Scalar(column), ColumnarValue::Scalar(place)] = args.args.as_slice() else {
            return Err(misused());
        };
        let column = Column::of(column, place)?;
        let times = column.times(&value.to_array(args.number_rows)?).map_err(wrap)?;
        Ok(ColumnarValue::Array(Arc::new(times.with_data_type(instant())) as ArrayRef))
    }
}

/// The column that times are read from, as it is named in messages.
struct Column<'a> {
    name: &'a str,
    place: &'a str,
}

impl<'a> Column<'a> {
    fn of(name: &'a ScalarValue, place: &'a ScalarValue) -> PlanResult<Self> {
        match (name.try_as_str(), place.try_as_str()) {
            (Some(Some(name)), Some(Some(place))) => Ok(Self { name, place }),
            _ => Err(misused()),
        }
    }

    fn times(&self, values: &ArrayRef) -> Result<Times> {
        use TimeUnit as U;
        match values.data_type() {
            DataType::Timestamp(U::Second, _) => self.of_seconds(values.as_primitive::<TimestampSecondType>()),
            DataType::Timestamp(U::Millisecond, _) => self.checked(values.as_primitive::<TimestampMillisecondType>()),
            DataType::Timestamp(U::Microsecond, _) => Ok(floored::<TimestampMicrosecondType>(values, 1_000)),
            DataType::Timestamp(U::Nanosecond, _) => Ok(floored::<TimestampNanosecondType>(values, 1_000_000)),
            DataType::Int64 => self.checked(values.as_primitive::<Int64Type>()),
            DataType::Utf8View => self.parsed(values.as_string_view()),
            DataType::Utf8 => self.parsed(values.as_string::<i32>()),
            DataType::LargeUtf8 => self.parsed(values.as_string::<i64>()),
            DataType::Null => Ok(Times::new_null(values.len())),
            other => Err(self.of_wrong_type(other)),
        }
    }

    fn checked<T: ArrowPrimitiveType<Native = i64>>(&self, values: &PrimitiveArray<T>) -> Result<Times> {
        values.try_unary(|ms| match (-LIMIT_MS..=LIMIT_MS).contains(&ms) {
            true => Ok(ms),
            false => Err(self.beyond(ms)),
        })
    }

    fn of_seconds(&self, values: &PrimitiveArray<TimestampSecondType>) -> Result<Times> {
        self.checked::<TimestampMillisecondType>(&values.unary(|seconds| seconds.saturating_mul(1_000)))
    }

    fn parsed<'s>(&self, values: impl StringArrayType<'s>) -> Result<Times> {
        let utc: Tz = "+00:00".parse().map_err(|_| Error::internal("UTC is no time zone"))?;
        let parse = |text: Option<&str>| match text {
            Some(text) => parse(&utc, text).map(Some).ok_or_else(|| self.no_date_time(text)),
            None => Ok(None),
        };
        values.iter().map(parse).collect()
    }

    fn no_date_time(&self, text: &str) -> Error {
        let Self { name, place } = self;
        let forms = "write 2026-11-21 10:00:00, 2026-11-21T10:00:00.250Z or 2026-11-21";
        Error::invalid(format!("column {name:?} is text {text:?}, which is no date-time; {forms} ({place})"))
    }

    fn beyond(&self, ms: i64) -> Error {
        let Self { name, place } = self;
        let text = format!("column {name:?} is {ms}, which is no time in milliseconds since 1970 that can be written");
        Error::invalid(format!("{text} ({place})"))
    }

    fn of_wrong_type(&self, found: &DataType) -> Error {
        let Self { name, place } = self;
        let found = match found {
            DataType::Float64 => "DOUBLE".to_owned(),
            DataType::Int32 => "INTEGER".to_owned(),
            DataType::BinaryView | DataType::Binary => "BYTEA".to_owned(),
            other => other.to_string().to_uppercase(),
        };
        let wanted = "TIMESTAMP, BIGINT (milliseconds since 1970) or TEXT (ISO 8601)";
        Error::invalid(format!("column {name:?} is {found}; a time is {wanted} ({place})"))
    }
}

/// Finer times as milliseconds: the one that each lies in.
fn floored<T: ArrowPrimitiveType<Native = i64>>(values: &ArrayRef, parts: i64) -> Times {
    values.as_primitive::<T>().unary(|value| value.div_euclid(parts))
}

/// A date-time in UTC unless it says a zone.
fn parse(utc: &Tz, text: &str) -> Option<i64> {
    if let Ok(time) = string_to_datetime(utc, text) {
        return Some(time.timestamp_millis());
    }
    // `10:00` without seconds is SQLite's too.
    let bytes = text.as_bytes();
    let (head, tail) = bytes.split_at_checked("2026-11-21 10:00".len())?;
    let mut full = [0; 32];
    let end = bytes.len() + 3;
    full.get_mut(..head.len())?.copy_from_slice(head);
    full.get_mut(head.len()..head.len() + 3)?.copy_from_slice(b":00");
    full.get_mut(head.len() + 3..end)?.copy_from_slice(tail);
    let full = std::str::from_utf8(full.get(..end)?).ok()?;
    string_to_datetime(utc, full).ok().map(|time| time.timestamp_millis())
}
