//! One column's values as they are gathered.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use datafusion::arrow::{
    array::{
        ArrayBuilder as _, ArrayRef, BinaryViewBuilder, BooleanBuilder, Decimal128Builder, Float64Builder,
        Int32Builder, Int64Builder, StringViewBuilder, TimestampMillisecondBuilder, UInt64Builder,
    },
    buffer::Buffer,
    datatypes::DataType,
};
use serde_json::json;
use tidemill_connect::{change::Value, converter::Kind};
use tidemill_core::{Result, batch::RecordRef};

/// A builder of one of the types that tables have.
pub(super) enum ColumnBuilder {
    Int32(Int32Builder),
    Int64(Int64Builder),
    UInt64(UInt64Builder),
    Boolean(BooleanBuilder),
    Float64(Float64Builder),
    /// The builder, its precision and its scale.
    Decimal(Decimal128Builder, u8, i8),
    Instant(TimestampMillisecondBuilder),
    /// The number of the block that is the present batch, once a view points into it.
    Text(StringViewBuilder, Option<u32>),
    Binary(BinaryViewBuilder),
}

impl ColumnBuilder {
    pub(super) fn new(data_type: &DataType) -> Self {
        match data_type {
            DataType::Int32 => Self::Int32(Int32Builder::new()),
            DataType::Int64 => Self::Int64(Int64Builder::new()),
            DataType::UInt64 => Self::UInt64(UInt64Builder::new()),
            DataType::Boolean => Self::Boolean(BooleanBuilder::new()),
            DataType::Float64 => Self::Float64(Float64Builder::new()),
            DataType::Decimal128(precision, scale) => {
                Self::Decimal(Decimal128Builder::new().with_data_type(data_type.clone()), *precision, *scale)
            }
            DataType::BinaryView => Self::Binary(BinaryViewBuilder::new()),
            DataType::Timestamp(_, _) => {
                Self::Instant(TimestampMillisecondBuilder::new().with_data_type(data_type.clone()))
            }
            _ => Self::Text(StringViewBuilder::new(), None),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Int32(builder) => builder.len(),
            Self::Int64(builder) => builder.len(),
            Self::UInt64(builder) => builder.len(),
            Self::Boolean(builder) => builder.len(),
            Self::Decimal(builder, ..) => builder.len(),
            Self::Float64(builder) => builder.len(),
            Self::Instant(builder) => builder.len(),
            Self::Text(builder, _) => builder.len(),
            Self::Binary(builder) => builder.len(),
        }
    }

    pub(super) fn is_text(&self) -> bool {
        matches!(self, Self::Text(..))
    }

    pub(super) fn append_null(&mut self) {
        match self {
            Self::Int32(builder) => builder.append_null(),
            Self::Int64(builder) => builder.append_null(),
            Self::UInt64(builder) => builder.append_null(),
            Self::Boolean(builder) => builder.append_null(),
            Self::Decimal(builder, ..) => builder.append_null(),
            Self::Float64(builder) => builder.append_null(),
            Self::Instant(builder) => builder.append_null(),
            Self::Text(builder, _) => builder.append_null(),
            Self::Binary(builder) => builder.append_null(),
        }
    }

    /// Appends a value of the source, or gives it back where it does not fit.
    pub(super) fn append_value(&mut self, kind: Kind, value: Value) -> Result<(), Value> {
        match (self, value) {
            (Self::Int64(builder), Value::Integer(value)) => builder.append_value(value),
            (Self::UInt64(builder), Value::Integer(value @ 0..)) => builder.append_value(value.unsigned_abs()),
            (Self::UInt64(builder), Value::Unsigned(value)) => builder.append_value(value),
            (Self::Boolean(builder), Value::Boolean(value)) => builder.append_value(value),
            (Self::Decimal(builder, precision, scale), Value::Text(text)) => match decimal(&text, *precision, *scale) {
                Some(value) => builder.append_value(value),
                None => return Err(Value::Text(text)),
            },
            (Self::Float64(builder), Value::Real(value)) => builder.append_value(value),
            (Self::Float64(builder), Value::Integer(value)) => builder.append_value(value as f64),
            (Self::Float64(builder), Value::Unsigned(value)) => builder.append_value(value as f64),
            (Self::Text(builder, _), Value::Text(text)) => builder.append_value(text),
            (Self::Binary(builder), Value::Blob(bytes)) => builder.append_value(bytes),
            (Self::Text(builder, _), value) if kind == Kind::Any => builder.append_value(any_text(&value)),
            (_, value) => return Err(value),
        }
        Ok(())
    }

    /// Appends one of our own numbers: partition, offset or timestamp.
    pub(super) fn append_integer(&mut self, value: i64) {
        match self {
            Self::Int32(builder) => builder.append_value(i32::try_from(value).unwrap_or(i32::MAX)),
            Self::Instant(builder) => builder.append_value(value),
            Self::Int64(builder) => builder.append_value(value),
            _ => unreachable!("numbers of ours have columns of numbers"),
        }
    }

    pub(super) fn append_text(&mut self, text: &str) {
        match self {
            Self::Text(builder, _) => builder.append_value(text),
            _ => unreachable!("text has columns of text"),
        }
    }

    /// Appends bytes of the batch as text without copying them; bytes that are not UTF-8 become `\x` and their hex
    /// digits, as PostgreSQL writes its bytea.
    pub(super) fn append_slice(&mut self, batch: &Bytes, slice: Option<&[u8]>) {
        let Self::Text(builder, block) = self else { unreachable!("keys and values have columns of text") };
        let Some(slice) = slice else { return builder.append_null() };
        let number = *block.get_or_insert_with(|| builder.append_block(Buffer::from(batch.clone())));
        let offset = slice.as_ptr() as usize - batch.as_ptr() as usize;
        // A batch is at most 1 GiB, so that both numbers fit; the append checks the range and the UTF-8.
        if builder.try_append_view(number, offset as u32, slice.len() as u32).is_err() {
            builder.append_value(bytes_text(slice));
        }
    }

    /// Further slices are of another batch.
    pub(super) fn leave_block(&mut self) {
        if let Self::Text(_, block) = self {
            *block = None;
        }
    }

    pub(super) fn finish(&mut self) -> ArrayRef {
        self.leave_block();
        match self {
            Self::Int32(builder) => Arc::new(builder.finish()),
            Self::Int64(builder) => Arc::new(builder.finish()),
            Self::UInt64(builder) => Arc::new(builder.finish()),
            Self::Boolean(builder) => Arc::new(builder.finish()),
            Self::Decimal(builder, ..) => Arc::new(builder.finish()),
            Self::Float64(builder) => Arc::new(builder.finish()),
            Self::Instant(builder) => Arc::new(builder.finish()),
            Self::Text(builder, _) => Arc::new(builder.finish()),
            Self::Binary(builder) => Arc::new(builder.finish()),
        }
    }
}

/// The digits of an exact decimal, at a scale.
fn decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = usize::try_from(scale).ok()?;
    let digit = |c: &u8| c.is_ascii_digit();
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|c| digit(&c)) || fraction.len() > scale {
        return None;
    }
    let zeros = std::iter::repeat_n(b'0', scale - fraction.len());
    let mut value: i128 = 0;
    for c in whole.bytes().chain(fraction.bytes()).chain(zeros) {
        value = value.checked_mul(10)?.checked_add(i128::from(c - b'0'))?;
    }
    (value < 10_i128.checked_pow(precision.into())?).then_some(if negative { -value } else { value })
}

/// `\x` and the hex digits.
pub(crate) fn bytes_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A value of a column without a type, as text.
fn any_text(value: &Value) -> String {
    match value {
        Value::Null | Value::Unchanged => String::new(),
        Value::Boolean(value) => value.to_string(),
        Value::Unsigned(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Real(value) if value.is_infinite() => if *value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Value::Real(value) => format!("{value:?}"),
        Value::Text(text) => text.clone(),
        Value::InvalidText(bytes) | Value::Blob(bytes) => bytes_text(bytes),
    }
}

/// Headers as a JSON array of objects: names may repeat and order counts, so one object would lose some.
pub(super) fn headers_text(record: &RecordRef<'_>) -> Result<String> {
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes_text(bytes),
    };
    let header = |header: Result<tidemill_core::batch::HeaderRef<'_>>| {
        header.map(|header| json!({ "name": text(header.name), "value": header.value.map(text) }))
    };
    let headers: Vec<_> = record.headers.map(header).collect::<Result<_>>()?;
    Ok(serde_json::Value::Array(headers).to_string())
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn decimals_are_exact_or_refused() {
        assert_eq!(decimal("-12.5", 10, 2), Some(-1250));
        assert_eq!(decimal("0.99", 10, 2), Some(99));
        assert_eq!(decimal("7", 10, 0), Some(7));
        for text in ["", "-", "NaN", "1.234", "100000000.00", "1e5", "1.2.3", "--1", "+1"] {
            assert_eq!(decimal(text, 10, 2), None, "{text}");
        }
        assert_eq!(decimal(&"9".repeat(38), 38, 0), 10_i128.checked_pow(38).map(|n| n - 1));
        assert_eq!(decimal(&"9".repeat(60), 38, 0), None);
    }
}
