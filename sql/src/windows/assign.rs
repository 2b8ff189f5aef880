//! The scalar functions that give a row's window: `_tm_tumble_start(time, size, offset)`, and its end and time.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array as _, ArrayRef, AsArray as _, PrimitiveArray},
        datatypes::{DataType, Field, FieldRef, TimestampMillisecondType},
    },
    common::{DataFusionError, Result as PlanResult, ScalarValue},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, TypeSignature, Volatility,
    },
};
use tidemill_core::Error;
use tidemill_streams::window::Window;

use super::{arguments::tumbling, instant};
use crate::error::wrap;

/// A column that a window adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Start,
    End,
    /// The last millisecond: the time of what a window's rows come to.
    Time,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Start, Self::End, Self::Time];

    pub(super) fn function(self) -> &'static str {
        match self {
            Self::Start => "_tm_tumble_start",
            Self::End => "_tm_tumble_end",
            Self::Time => "_tm_tumble_time",
        }
    }

    fn of(self, window: Window) -> i64 {
        match self {
            Self::Start => window.start,
            Self::End => window.end,
            Self::Time => window.end.saturating_sub(1),
        }
    }
}

/// The function of one part. Its times are instants, size and offset literal milliseconds.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Assign {
    part: Part,
    signature: Signature,
}

impl Assign {
    pub(super) fn new(part: Part) -> Self {
        let arguments = TypeSignature::Exact(vec![instant(), DataType::Int64, DataType::Int64]);
        Self { part, signature: Signature::new(arguments, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Assign {
    fn name(&self) -> &str {
        self.part.function()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> PlanResult<DataType> {
        Ok(instant())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> PlanResult<FieldRef> {
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), instant(), nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> PlanResult<ColumnarValue> {
        let [times, size, offset] = args.args.as_slice() else { return Err(misused()) };
        let windows = tumbling(literal(size)?, literal(offset)?);
        windows.validate().map_err(wrap)?;
        let times = times.to_array(args.number_rows)?;
        let times = times.as_primitive::<TimestampMillisecondType>();
        // Rows that follow each other mostly share a window.
        let mut window = windows.window_of(0);
        let part = |time: &i64| {
            if !window.contains(*time) {
                window = windows.window_of(*time);
            }
            self.part.of(window)
        };
        let values = times.values().iter().map(part).collect();
        let parts = PrimitiveArray::<TimestampMillisecondType>::new(values, times.nulls().cloned());
        Ok(ColumnarValue::Array(Arc::new(parts.with_data_type(instant())) as ArrayRef))
    }
}

fn literal(value: &ColumnarValue) -> PlanResult<i64> {
    match value {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(ms))) => Ok(*ms),
        _ => Err(misused()),
    }
}

pub(super) fn misused() -> DataFusionError {
    wrap(Error::invalid("functions named _tm_ are not for use in statements; write: FROM TUMBLE(...)"))
}
