//! From records to Arrow: a decoder gathers rows in builders, one for each projected column, and hands them over in
//! batches.
//!
//! A row is gathered in two steps: [`Decoder::read_event`] reads the columns of the change event, where any are asked
//! for, and [`Decoder::push`] adds what stands beside it and ends the row. Values of unprojected columns are skipped
//! by the JSON parser without being built.

mod column;
mod event;

use datafusion::{
    arrow::{array::RecordBatchOptions, datatypes::SchemaRef, record_batch::RecordBatch},
    common::{HashMap, Result as PlanResult},
};
use tidemill_connect::converter::Kind;
use tidemill_core::{
    Error, Result,
    batch::{Batch, RecordRef},
};

pub(crate) use self::column::bytes_text;
use self::column::{ColumnBuilder, headers_text};
pub(crate) use self::event::Image;
use crate::{
    catalog::Declared,
    table::{ColumnSource, Form},
};

/// Rows in a batch.
const BATCH_ROWS: usize = 8192;
/// Bytes of values after which a batch ends earlier.
const BATCH_BYTES: usize = 2 << 20;

/// Names a record in messages.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) topic: String,
    /// The table's name in SQL, and what is read of it.
    pub(crate) table: String,
    pub(crate) form: Form,
    pub(crate) partition: u32,
}

/// A projected column: where it comes from and what it has gathered.
struct Projected {
    source: ColumnSource,
    nullable: bool,
    builder: ColumnBuilder,
}

/// A column of the present schema.
struct Known {
    name: String,
    kind: Kind,
    /// Its index among the projected ones.
    projected: Option<usize>,
}

/// Gathers rows.
pub(crate) struct Decoder {
    schema: SchemaRef,
    place: Place,
    projected: Vec<Projected>,
    known: Vec<Known>,
    by_name: HashMap<String, usize>,
    /// Whether a column of the event, or its letter, is projected.
    reads_events: bool,
    /// The letter of the event read last.
    op: Option<char>,
    batch: bytes::Bytes,
    rows: usize,
    bytes: usize,
}

impl Decoder {
    pub(crate) fn new(schema: SchemaRef, sources: &[ColumnSource], declared: Option<&Declared>, place: Place) -> Self {
        let column = |(source, field): (&ColumnSource, &std::sync::Arc<datafusion::arrow::datatypes::Field>)| {
            Projected { source: *source, nullable: field.is_nullable(), builder: ColumnBuilder::new(field.data_type()) }
        };
        let projected: Vec<Projected> = sources.iter().zip(schema.fields()).map(column).collect();
        let known: Vec<Known> = declared.map_or_else(Vec::new, |declared| {
            let columns = declared.present.table.columns.iter().zip(&declared.present.kinds).enumerate();
            let known = columns.map(|(i, (column, kind))| Known {
                name: column.name.clone(),
                // A column of any kind shows every value as text.
                kind: if place.form == Form::Texts { Kind::Any } else { *kind },
                projected: sources.iter().position(|source| *source == ColumnSource::Column(i)),
            });
            known.collect()
        });
        let by_name = known.iter().enumerate().map(|(i, column)| (column.name.clone(), i)).collect();
        let of_event = |source: &ColumnSource| matches!(source, ColumnSource::Column(_) | ColumnSource::Op);
        Self {
            reads_events: sources.iter().any(of_event),
            schema,
            place,
            projected,
            known,
            by_name,
            op: None,
            batch: bytes::Bytes::new(),
            rows: 0,
            bytes: 0,
        }
    }

    /// Whether rows need [`Decoder::read_event`].
    pub(crate) fn reads_events(&self) -> bool {
        self.reads_events
    }

    /// The records pushed from now on are this batch's.
    pub(crate) fn begin(&mut self, batch: &Batch) {
        self.batch = batch.bytes().clone();
        self.projected.iter_mut().for_each(|column| column.builder.leave_block());
    }

    /// Ends a row with what stands beside the event.
    pub(crate) fn push(&mut self, record: &RecordRef<'_>) -> Result<()> {
        for column in &mut self.projected {
            let builder = &mut column.builder;
            match column.source {
                ColumnSource::Partition => builder.append_integer(i64::from(self.place.partition)),
                ColumnSource::Offset => builder.append_integer(record.offset),
                ColumnSource::Timestamp => builder.append_integer(record.timestamp),
                ColumnSource::Key => builder.append_slice(&self.batch, record.key),
                ColumnSource::Value => builder.append_slice(&self.batch, record.value),
                ColumnSource::Headers => builder.append_text(&headers_text(record)?),
                ColumnSource::Op => builder.append_text(self.op.unwrap_or('?').encode_utf8(&mut [0; 4])),
                ColumnSource::Column(_) => {}
            }
        }
        self.rows += 1;
        if self.reads_events || !self.projected.is_empty() {
            self.bytes += record.value.map_or(0, <[u8]>::len);
        }
        Ok(())
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows gathered since the last call.
    pub(crate) fn flush(&mut self) -> PlanResult<RecordBatch> {
        let arrays = self.projected.iter_mut().map(|column| column.builder.finish()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        (self.rows, self.bytes) = (0, 0);
        Ok(RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), arrays, &options)?)
    }

    /// A damaged record.
    pub(crate) fn fault(&self, record: &RecordRef<'_>, what: &str) -> Error {
        Error::corrupt(what).context(self.at(record))
    }

    fn at(&self, record: &RecordRef<'_>) -> String {
        format!("{}[{}]@{}", self.place.topic, self.place.partition, record.offset)
    }
}
