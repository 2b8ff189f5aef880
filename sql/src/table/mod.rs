//! A topic as a table of DataFusion: its columns, what is pushed into its scan, and the reading of its partitions.
//!
//! One topic partition is one plan partition. Each is read on a blocking thread, which ends when its stream is dropped.

mod bounds;
mod changes;
mod current;
mod layout;
mod raw;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    catalog::{Session, TableProvider},
    common::Result as PlanResult,
    execution::{SendableRecordBatchStream, TaskContext},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{
        ExecutionPlan,
        stream::RecordBatchReceiverStream,
        streaming::{PartitionStream, StreamingTableExec},
    },
};
use tidemill_core::{Error, Result, batch::Batch, topic::PartitionId};
use tokio::sync::mpsc::Sender;

pub(crate) use layout::{ColumnSource, Layout};

use crate::{
    catalog::Table,
    decode::{Decoder, Place},
    error::wrap,
    topics::Topics,
};

/// Bytes asked of the log at once.
const READ_BYTES: usize = 4 << 20;
/// Batches that a scan may be ahead of its reader.
const AHEAD: usize = 2;

/// What a scan makes of a topic's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// The newest row of each key.
    Current,
    /// The newest row of each key, every column as text, whatever it holds.
    Texts,
    /// Every change, one row each.
    Changes,
    /// Every record as it is.
    Raw,
}

/// A partition and the offsets of it that a statement sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) partition: PartitionId,
    /// Its number in the topic.
    pub(crate) number: u32,
    pub(crate) start: i64,
    pub(crate) end: i64,
}

/// A topic in one of its forms, over the offsets of one statement.
#[derive(Debug)]
pub(crate) struct TopicTable {
    topics: Arc<dyn Topics>,
    table: Arc<Table>,
    form: Form,
    layout: Layout,
    schema: SchemaRef,
    ranges: Vec<Range>,
}

impl TopicTable {
    /// The table; `wide` has the hidden columns too.
    pub(crate) fn new(topics: Arc<dyn Topics>, table: Arc<Table>, form: Form, wide: bool, ranges: Vec<Range>) -> Self {
        let layout = Layout::of(&table, form);
        let schema = layout.schema(wide);
        Self { topics, table, form, layout, schema, ranges }
    }
}

#[async_trait]
impl TableProvider for TopicTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> PlanResult<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match bounds::narrows(filter, self.form) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> PlanResult<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => Arc::clone(&self.schema),
        };
        let sources: Vec<ColumnSource> = match projection {
            Some(columns) => columns.iter().map(|i| self.layout.source(*i)).collect(),
            None => (0..self.schema.fields().len()).map(|i| self.layout.source(i)).collect(),
        };
        let mut ranges = bounds::narrow(&self.ranges, filters, self.form);
        if ranges.is_empty() {
            // A plan has at least one partition; this one yields nothing.
            ranges.push(Range { partition: PartitionId(0), number: 0, start: 0, end: 0 });
        }
        let streams = ranges.into_iter().map(|range| {
            let scan = Scan {
                topics: Arc::clone(&self.topics),
                table: Arc::clone(&self.table),
                form: self.form,
                schema: Arc::clone(&schema),
                sources: sources.clone(),
                range,
            };
            Arc::new(scan) as Arc<dyn PartitionStream>
        });
        let streams = streams.collect();
        Ok(Arc::new(StreamingTableExec::try_new(Arc::clone(&schema), streams, None, [], false, None)?))
    }
}

/// The scan of one partition.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    topics: Arc<dyn Topics>,
    table: Arc<Table>,
    form: Form,
    schema: SchemaRef,
    sources: Vec<ColumnSource>,
    range: Range,
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(Arc::clone(&self.schema), AHEAD);
        let scan = self.clone();
        let output = Output { sender: stream.tx() };
        stream.spawn_blocking(move || match scan.form {
            Form::Current | Form::Texts => current::run(&scan, &output, &context),
            Form::Changes => changes::run(&scan, &output),
            Form::Raw => raw::run(&scan, &output),
        });
        stream.build()
    }
}

impl Scan {
    fn decoder(&self) -> Decoder {
        let place = Place {
            topic: self.table.topic.name.clone(),
            table: self.table.sql_name(),
            partition: self.range.number,
            form: self.form,
        };
        Decoder::new(Arc::clone(&self.schema), &self.sources, self.table.declared.as_ref(), place)
    }

    /// Hands over every batch that may hold records of the range, until there are no more or nobody listens.
    fn for_each_batch(&self, output: &Output, mut each: impl FnMut(Batch) -> PlanResult<Flow>) -> PlanResult<Flow> {
        let Range { partition, end, start: mut at, .. } = self.range;
        while at < end {
            if output.is_closed() {
                return Ok(Flow::Stop);
            }
            let read = self.topics.read(partition, at, READ_BYTES, end);
            let (batches, next) = lift(read.map_err(|e| self.context(e)))?;
            if next <= at {
                return Err(wrap(self.context(Error::internal(format!("a read at {at} did not go on")))));
            }
            at = next;
            for batch in batches.into_iter().filter(|batch| !is_control(batch)) {
                if each(batch)? == Flow::Stop {
                    return Ok(Flow::Stop);
                }
            }
        }
        Ok(Flow::Continue)
    }

    fn context(&self, error: Error) -> Error {
        error.context(format!("{}[{}]", self.table.topic.name, self.range.number))
    }

    fn holds(&self, offset: i64) -> bool {
        (self.range.start..self.range.end).contains(&offset)
    }
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

/// Where a scan's Arrow batches go.
struct Output {
    sender: Sender<PlanResult<RecordBatch>>,
}

impl Output {
    /// Whether the statement was dropped.
    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    fn send(&self, batch: RecordBatch) -> Flow {
        match self.sender.blocking_send(Ok(batch)) {
            Ok(()) => Flow::Continue,
            Err(_) => Flow::Stop,
        }
    }

    /// Sends what the decoder has gathered once that is a batch's worth.
    fn send_full(&self, decoder: &mut Decoder) -> PlanResult<Flow> {
        if decoder.is_full() { Ok(self.send(decoder.flush()?)) } else { Ok(Flow::Continue) }
    }

    fn send_rest(&self, decoder: &mut Decoder) -> PlanResult<()> {
        if !decoder.is_empty() {
            self.send(decoder.flush()?);
        }
        Ok(())
    }
}

/// Markers of transactions hold no rows.
fn is_control(batch: &Batch) -> bool {
    batch.header().attributes & 0x20 != 0
}

/// Errors of ours inside the closures that DataFusion runs.
fn lift<T>(result: Result<T>) -> PlanResult<T> {
    result.map_err(wrap)
}
