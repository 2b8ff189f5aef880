//! The columns of a table: the visible ones, then the hidden ones, and what each is filled from.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, Schema, SchemaRef, TimeUnit};
use tidemill_connect::converter::Kind;

use super::Form;
use crate::catalog::Table;

/// What a column is filled from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ColumnSource {
    /// The partition's number in its topic.
    Partition,
    /// The record's offset.
    Offset,
    /// The record's timestamp.
    Timestamp,
    /// The record's key.
    Key,
    /// The record's value.
    Value,
    /// The record's headers.
    Headers,
    /// The letter of the change.
    Op,
    /// The column of this index in the present schema.
    Column(usize),
}

/// The columns of a table in one form.
#[derive(Debug)]
pub(crate) struct Layout {
    columns: Vec<(Field, ColumnSource)>,
    visible: usize,
}

impl Layout {
    pub(crate) fn of(table: &Table, form: Form) -> Self {
        use ColumnSource as S;
        let (first, hidden): (&[S], &[S]) = match form {
            Form::Current | Form::Texts => (&[], &[S::Partition, S::Offset, S::Timestamp, S::Key, S::Headers]),
            Form::Changes => (&[S::Op, S::Offset, S::Timestamp], &[S::Partition, S::Key, S::Headers]),
            Form::Raw => (&[S::Key, S::Value], &[S::Partition, S::Offset, S::Timestamp, S::Headers]),
        };
        let declared = match form {
            Form::Raw => Vec::new(),
            Form::Texts => declared_columns(table).into_iter().map(as_text).collect(),
            Form::Current | Form::Changes => declared_columns(table),
        };
        // A column of the source keeps its name; the one of ours that it hides is not to be had.
        let ours = |sources: &[S]| -> Vec<(Field, S)> {
            let fields = sources.iter().map(|source| (field_of(*source), *source));
            fields.filter(|(field, _)| declared.iter().all(|(own, _)| own.name() != field.name())).collect()
        };
        let mut columns = ours(first);
        let hidden = ours(hidden);
        columns.extend(declared);
        let visible = columns.len();
        columns.extend(hidden);
        Self { columns, visible }
    }

    pub(crate) fn schema(&self, wide: bool) -> SchemaRef {
        let count = if wide { self.columns.len() } else { self.visible };
        Arc::new(Schema::new(self.columns[..count].iter().map(|(field, _)| field.clone()).collect::<Vec<_>>()))
    }

    pub(super) fn source(&self, index: usize) -> ColumnSource {
        self.columns[index].1
    }

    /// Names of the columns that `*` means.
    pub(crate) fn visible(&self) -> Vec<String> {
        self.columns[..self.visible].iter().map(|(field, _)| field.name().clone()).collect()
    }

    /// Names of the others.
    pub(crate) fn hidden(&self) -> Vec<String> {
        self.columns[self.visible..].iter().map(|(field, _)| field.name().clone()).collect()
    }
}

fn declared_columns(table: &Table) -> Vec<(Field, ColumnSource)> {
    let Some(declared) = &table.declared else { return Vec::new() };
    let schema = &declared.present;
    let columns = schema.table.columns.iter().zip(&schema.kinds).zip(&declared.nullable).enumerate();
    let field = |(i, ((column, kind), nullable)): (usize, ((&tidemill_connect::change::Column, &Kind), &bool))| {
        (Field::new(&column.name, type_of(*kind, &column.declared_type), *nullable), ColumnSource::Column(i))
    };
    columns.map(field).collect()
}

/// A column that takes every value as text, and NULL too.
fn as_text((field, source): (Field, ColumnSource)) -> (Field, ColumnSource) {
    (Field::new(field.name(), DataType::Utf8View, true), source)
}

/// The Arrow type of a column's values. Dates and times stay text: sources have some that no calendar has.
fn type_of(kind: Kind, declared_type: &str) -> DataType {
    match kind {
        Kind::Integer => DataType::Int64,
        Kind::Unsigned => DataType::UInt64,
        Kind::Boolean => DataType::Boolean,
        Kind::Real => DataType::Float64,
        Kind::Decimal => match decimal_size(declared_type) {
            Some((precision, scale)) => DataType::Decimal128(precision, scale),
            None => DataType::Utf8View,
        },
        Kind::Text
        | Kind::Any
        | Kind::Date
        | Kind::Time
        | Kind::Timestamp
        | Kind::Instant
        | Kind::Json
        | Kind::Uuid => DataType::Utf8View,
        Kind::Blob => DataType::BinaryView,
    }
}

/// Precision and scale of `numeric(10,2)`, where Arrow's 38 digits hold them; a decimal of any size stays text.
fn decimal_size(declared_type: &str) -> Option<(u8, i8)> {
    let (_, rest) = declared_type.split_once('(')?;
    let (inside, _) = rest.split_once(')')?;
    let (precision, scale) = inside.split_once(',').unwrap_or((inside, "0"));
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    ((1..=DECIMAL128_MAX_PRECISION).contains(&precision) && (0..=precision as i8).contains(&scale))
        .then_some((precision, scale))
}

fn field_of(source: ColumnSource) -> Field {
    // The zone is written as an offset: Arrow reads zone names only with a database of them compiled in.
    let instant = DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()));
    match source {
        ColumnSource::Partition => Field::new("_partition", DataType::Int32, false),
        ColumnSource::Offset => Field::new("_offset", DataType::Int64, false),
        ColumnSource::Timestamp => Field::new("_timestamp", instant, false),
        ColumnSource::Key => Field::new("_key", DataType::Utf8View, true),
        ColumnSource::Value => Field::new("_value", DataType::Utf8View, true),
        ColumnSource::Headers => Field::new("_headers", DataType::Utf8View, false),
        ColumnSource::Op => Field::new("_op", DataType::Utf8View, false),
        ColumnSource::Column(_) => unreachable!("declared columns have fields of their own"),
    }
}
