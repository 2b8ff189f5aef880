//! One value of an Arrow array as text or as JSON.

use datafusion::arrow::{
    array::{Array, AsArray as _},
    datatypes::{DataType, Float32Type, Float64Type},
    util::display::{ArrayFormatter, FormatOptions},
};
use tidemill_core::{Error, Result};

use crate::decode::bytes_text;

/// The value as text; `None` is NULL. Numbers are shortest, instants RFC 3339, bytes `\x` and hex digits.
pub(super) fn plain_text(array: &dyn Array, row: usize) -> Result<Option<String>> {
    if array.is_null(row) {
        return Ok(None);
    }
    let text = match array.data_type() {
        DataType::Null => return Ok(None),
        DataType::Utf8View => array.as_string_view().value(row).to_owned(),
        DataType::Utf8 => array.as_string::<i32>().value(row).to_owned(),
        DataType::Binary => bytes_text(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes_text(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes_text(array.as_binary_view().value(row)),
        DataType::Float64 => float_text(array.as_primitive::<Float64Type>().value(row)),
        // Through its own text: the shortest of the float is not that of the double.
        DataType::Float32 => match array.as_primitive::<Float32Type>().value(row) {
            value if value.is_finite() => format!("{value:?}"),
            value => float_text(f64::from(value)),
        },
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Struct(_) => {
            let mut text = String::new();
            json_value(array, row, &mut text)?;
            text
        }
        _ => formatted(array, row)?,
    };
    Ok(Some(text))
}

/// Appends the value as JSON.
pub(super) fn json_value(array: &dyn Array, row: usize, out: &mut String) -> Result<()> {
    if array.is_null(row) {
        out.push_str("null");
        return Ok(());
    }
    match array.data_type() {
        DataType::List(_) => return json_list(array.as_list::<i32>().value(row).as_ref(), out),
        DataType::LargeList(_) => return json_list(array.as_list::<i64>().value(row).as_ref(), out),
        DataType::FixedSizeList(..) => return json_list(array.as_fixed_size_list().value(row).as_ref(), out),
        DataType::Struct(_) => return json_struct(array, row, out),
        _ => {}
    }
    let Some(text) = plain_text(array, row)? else {
        out.push_str("null");
        return Ok(());
    };
    let is_finite = || !text.ends_with(|c: char| c.is_ascii_alphabetic());
    let bare = array.data_type().is_numeric() && is_finite() || *array.data_type() == DataType::Boolean;
    if bare {
        out.push_str(&text)
    } else {
        out.push_str(&serde_json::Value::from(text).to_string())
    }
    Ok(())
}

fn json_list(items: &dyn Array, out: &mut String) -> Result<()> {
    out.push('[');
    for i in 0..items.len() {
        if i > 0 {
            out.push(',');
        }
        json_value(items, i, out)?;
    }
    out.push(']');
    Ok(())
}

fn json_struct(array: &dyn Array, row: usize, out: &mut String) -> Result<()> {
    let fields = array.as_struct();
    out.push('{');
    for (i, (name, column)) in fields.column_names().into_iter().zip(fields.columns()).enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(name).to_string());
        out.push(':');
        json_value(column, row, out)?;
    }
    out.push('}');
    Ok(())
}

/// PostgreSQL's words for what is not finite; otherwise the shortest text that reads back as the same double.
fn float_text(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        format!("{value:?}")
    }
}

fn formatted(array: &dyn Array, row: usize) -> Result<String> {
    let fault = |e: datafusion::arrow::error::ArrowError| Error::internal("a value cannot be written").with_source(e);
    let options = FormatOptions::default().with_display_error(false);
    let formatter = ArrayFormatter::try_new(array, &options).map_err(fault)?;
    formatter.value(row).try_to_string().map_err(fault)
}
