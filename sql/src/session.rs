//! A session: the one place that DataFusion is set up in, and the way of a statement through it.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{BooleanArray, RecordBatch, RecordBatchOptions, StringArray},
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider,
        TableProvider,
    },
    common::Result as PlanResult,
    dataframe::DataFrame,
    execution::{
        SendableRecordBatchStream, SessionState, SessionStateBuilder,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::LogicalPlan,
    physical_plan::stream::RecordBatchStreamAdapter,
    prelude::SessionConfig,
    sql::{
        parser::Statement as PlannedStatement,
        sqlparser::ast::{Ident, Statement},
    },
};
use futures::{StreamExt as _, TryStreamExt as _};
use serde::{Deserialize, Serialize};
use tidemill_core::{Error, Result, topic::PartitionId};

use crate::{
    catalog::{CATALOG, Catalog, PUBLIC, Table, is_ignoring_case},
    error::from_datafusion,
    memory::{SharedMemory, StatementMemory, machine_bytes},
    names::{self, TableKey, Used},
    statement::{Request, headings, parse},
    table::{Form, Layout, Range, TopicTable},
    topics::Topics,
    windows,
};

/// Address space for the stack of a planning thread; memory is taken as it is touched.
const PLAN_STACK_BYTES: usize = 256 << 20;

/// How much a session may take, and where it may put what does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Memory of all statements together, in bytes; a statement gets a quarter of it. Absent: 40 % of the machine's.
    pub memory_bytes: Option<u64>,
    /// Folder for what sorts, joins and aggregates spill. Made if absent; nothing in it outlives its statement.
    pub temp_dir: PathBuf,
    /// Plan partitions that a statement works on at once. Absent: one for each core.
    pub threads: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { memory_bytes: None, temp_dir: std::env::temp_dir().join("tidemill-sql"), threads: None }
    }
}

impl Settings {
    /// All faults, each with the path of its setting.
    ///
    /// # Errors
    /// `Invalid` lists the faults.
    pub fn validate(&self) -> Result<()> {
        let mut faults = Vec::new();
        if self.memory_bytes.is_some_and(|bytes| bytes < 1 << 20) {
            faults.push("memory_bytes is below 1 MiB");
        }
        if self.threads == Some(0) {
            faults.push("threads is 0");
        }
        if faults.is_empty() { Ok(()) } else { Err(Error::invalid(faults.join("; "))) }
    }
}

/// The answer of a statement, batch by batch. Dropping the stream ends the statement.
pub struct QueryResult {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows, with DataFusion's errors; [`QueryResult::next`] and [`render()`](crate::render()) give ours.
    pub stream: SendableRecordBatchStream,
}

impl QueryResult {
    /// The next rows, if there are more.
    ///
    /// # Errors
    /// `Invalid` for what the statement asked of its values, `Unavailable` at the limit of memory, and the log's own.
    pub async fn next(&mut self) -> Option<Result<RecordBatch>> {
        let next = self.stream.next().await?;
        Some(next.map_err(|e| from_datafusion(&e)))
    }
}

impl std::fmt::Debug for QueryResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryResult").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Runs statements over the topics of a log. One session serves all users; statements share nothing but memory.
#[derive(Debug, Clone)]
pub struct Session {
    topics: Arc<dyn Topics>,
    base: Arc<SessionState>,
    memory: Arc<SharedMemory>,
}

impl Session {
    /// Opens a session.
    ///
    /// # Errors
    /// `Invalid` for the settings; those of making the folder.
    pub fn new(topics: Arc<dyn Topics>, settings: Settings) -> Result<Self> {
        settings.validate()?;
        std::fs::create_dir_all(&settings.temp_dir)
            .map_err(|e| Error::from(e).context(format!("make {}", settings.temp_dir.display())))?;
        let bytes = settings.memory_bytes.unwrap_or_else(|| machine_bytes() / 5 * 2);
        let memory = SharedMemory::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        let disk =
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![settings.temp_dir.clone()]));
        let runtime = RuntimeEnvBuilder::new().with_disk_manager_builder(disk).build_arc();
        let base = SessionStateBuilder::new()
            .with_config(config(&settings))
            .with_runtime_env(runtime.map_err(|e| from_datafusion(&e))?)
            .with_scalar_functions(windows::functions())
            .with_default_features()
            .build();
        Ok(Self { topics, base: Arc::new(base), memory })
    }

    /// Runs one statement. It sees the records below the ends of the topics at this moment, of all its tables at once.
    ///
    /// # Errors
    /// `Invalid` for the text, with line and column where they are known; `NotFound` for a table; `Unsupported` for what
    /// is no query. Errors of running come out of the stream.
    ///
    /// # Cancel safety
    /// When the future or the result is dropped the statement ends: planning under way and a read under way finish first.
    pub async fn query(&self, sql: &str) -> Result<QueryResult> {
        let (session, sql) = (self.clone(), sql.to_owned());
        on_deep_stack(async move { session.answer(&sql).await }).await
    }

    /// Runs on a thread of its own, which may block.
    async fn answer(&self, sql: &str) -> Result<QueryResult> {
        let request = parse(sql)?;
        let catalog = Catalog::load(self.topics.as_ref())?;
        match request {
            Request::Query(statement) => self.run(*statement, catalog).await,
            Request::Tables(schema, pattern) => show_tables(&catalog, schema.as_ref(), pattern.as_deref()),
            Request::Columns(table) => show_columns(catalog.find(&table)?),
        }
    }

    async fn run(&self, mut statement: Statement, catalog: Catalog) -> Result<QueryResult> {
        let headings = headings(&statement);
        let used = names::resolve(&mut statement, &catalog)?;
        let ranges = self.cut(&used)?;
        let tables = Tables { topics: Arc::clone(&self.topics), catalog, used, ranges };
        let state = self.state(Arc::new(tables))?;
        let planned = PlannedStatement::Statement(Box::new(statement));
        let failed = |e| from_datafusion(&e);
        let plan = state.statement_to_plan(planned).await.map_err(failed)?;
        refuse_writes(&plan)?;
        let stream = DataFrame::new(state, plan).execute_stream().await.map_err(failed)?;
        Ok(with_headings(stream, &headings))
    }

    /// One consistent cut over all that the statement reads.
    fn cut(&self, used: &BTreeMap<TableKey, Used>) -> Result<HashMap<PartitionId, (i64, i64)>> {
        let mut partitions: Vec<PartitionId> =
            used.values().flat_map(|used| used.table.topic.partitions.iter().copied()).collect();
        partitions.sort_unstable();
        partitions.dedup();
        let ranges = self.topics.cut(&partitions)?;
        Ok(partitions.into_iter().zip(ranges).collect())
    }

    /// The state of one statement: its own tables and its own share of memory.
    fn state(&self, tables: Arc<Tables>) -> Result<SessionState> {
        let runtime = RuntimeEnv {
            memory_pool: Arc::new(StatementMemory::new(&self.memory)),
            ..self.base.runtime_env().as_ref().clone()
        };
        let mut state = SessionStateBuilder::new_from_existing(self.base.as_ref().clone())
            .with_runtime_env(Arc::new(runtime))
            .build();
        let database = MemoryCatalogProvider::new();
        let mut schemas: Vec<&str> = tables.catalog.tables.iter().map(|table| table.schema.as_str()).collect();
        schemas.push(PUBLIC);
        schemas.dedup();
        for schema in schemas {
            let provider = SchemaTables { schema: schema.to_owned(), tables: Arc::clone(&tables) };
            database.register_schema(schema, Arc::new(provider)).map_err(|e| from_datafusion(&e))?;
        }
        let databases = MemoryCatalogProviderList::new();
        databases.register_catalog(CATALOG.to_owned(), Arc::new(database));
        state.register_catalog_list(Arc::new(databases));
        Ok(state)
    }
}

fn config(settings: &Settings) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, PUBLIC)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    if let Some(threads) = settings.threads {
        config = config.with_target_partitions(threads);
    }
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.execution.time_zone = Some("+00:00".to_owned());
    config
}

/// Parsing and planning recurse once for each operator of an expression, in several layers: more than a worker's stack
/// holds.
async fn on_deep_stack<T: Send + 'static>(planning: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let (answer, planned) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("tidemill-sql-plan".to_owned()).stack_size(PLAN_STACK_BYTES);
    thread
        .spawn(move || {
            // The statement may be dropped by now; then nobody wants the plan.
            let _ = answer.send(runtime.block_on(planning));
        })
        .map_err(|e| Error::from(e).context("start a thread for planning"))?;
    planned.await.map_err(|_| Error::internal("planning the statement panicked"))?
}

/// The parser's statements were checked; this holds whatever the planner makes of them.
fn refuse_writes(plan: &LogicalPlan) -> Result<()> {
    match plan {
        LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_) => {
            Err(Error::unsupported("only queries are supported"))
        }
        _ => Ok(()),
    }
}

/// All tables as DataFusion sees them for one statement.
#[derive(Debug)]
struct Tables {
    topics: Arc<dyn Topics>,
    catalog: Catalog,
    used: BTreeMap<TableKey, Used>,
    ranges: HashMap<PartitionId, (i64, i64)>,
}

impl Tables {
    fn provider(&self, used: &Used) -> Arc<dyn TableProvider> {
        let partitions = used.table.topic.partitions.iter().zip(0..);
        let range = |(partition, number): (&PartitionId, u32)| {
            let (start, end) = self.ranges.get(partition)?;
            Some(Range { partition: *partition, number, start: *start, end: *end })
        };
        let ranges = partitions.filter_map(range).collect();
        let table = Arc::clone(&used.table);
        Arc::new(TopicTable::new(Arc::clone(&self.topics), table, used.form, used.wide, ranges))
    }
}

/// One schema. Tables that the statement does not read have columns for the information schema, and no rows.
#[derive(Debug)]
struct SchemaTables {
    schema: String,
    tables: Arc<Tables>,
}

#[async_trait]
impl SchemaProvider for SchemaTables {
    fn table_names(&self) -> Vec<String> {
        let listed = self.tables.catalog.tables.iter().filter(|t| t.schema == self.schema && !t.is_internal());
        listed.map(|table| table.name.clone()).collect()
    }

    async fn table(&self, name: &str) -> PlanResult<Option<Arc<dyn TableProvider>>> {
        if let Some(used) = self.tables.used.get(&(self.schema.clone(), name.to_owned())) {
            return Ok(Some(self.tables.provider(used)));
        }
        let table = self.tables.catalog.tables.iter().find(|table| table.schema == self.schema && table.name == name);
        Ok(table.map(|table| {
            let used = Used { table: Arc::clone(table), form: form_of(table), wide: false };
            self.tables.provider(&used)
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.catalog.tables.iter().any(|table| table.schema == self.schema && table.name == name)
    }
}

fn form_of(table: &Table) -> Form {
    if table.declared.is_some() { Form::Current } else { Form::Raw }
}

fn show_tables(catalog: &Catalog, schema: Option<&Ident>, pattern: Option<&str>) -> Result<QueryResult> {
    let fits = |table: &&Arc<Table>| {
        !table.is_internal()
            && schema.is_none_or(|schema| is_ignoring_case(schema, &table.schema))
            && pattern.is_none_or(|pattern| is_like(&table.name, pattern))
    };
    let tables: Vec<&Arc<Table>> = catalog.tables.iter().filter(fits).collect();
    let column = |text: fn(&Table) -> &str| StringArray::from_iter_values(tables.iter().map(|table| text(table)));
    listing(vec![
        ("schema", Arc::new(column(|table| &table.schema))),
        ("table", Arc::new(column(|table| &table.name))),
        ("topic", Arc::new(column(|table| &table.topic.name))),
    ])
}

fn show_columns(table: &Table) -> Result<QueryResult> {
    let schema = Layout::of(table, form_of(table)).schema(false);
    let fields = schema.fields();
    let names = StringArray::from_iter_values(fields.iter().map(|field| field.name()));
    let types = StringArray::from_iter_values(fields.iter().map(|field| sql_type(field.data_type())));
    let nullable: BooleanArray = fields.iter().map(|field| Some(field.is_nullable())).collect();
    listing(vec![("column", Arc::new(names)), ("type", Arc::new(types)), ("nullable", Arc::new(nullable))])
}

fn sql_type(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Int32 => "INTEGER",
        DataType::Int64 => "BIGINT",
        DataType::Float64 => "DOUBLE",
        DataType::BinaryView => "BYTEA",
        DataType::Timestamp(..) => "TIMESTAMPTZ",
        _ => "TEXT",
    }
}

fn listing(columns: Vec<(&str, datafusion::arrow::array::ArrayRef)>) -> Result<QueryResult> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), false)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).map_err(|e| from_datafusion(&e.into()))?;
    let rows = futures::stream::iter([Ok(batch)]);
    Ok(QueryResult { schema: Arc::clone(&schema), stream: Box::pin(RecordBatchStreamAdapter::new(schema, rows)) })
}

/// SQL's LIKE, ignoring case: `%` is any text, `_` one character.
fn is_like(text: &str, pattern: &str) -> bool {
    fn fits(text: &[char], pattern: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|skip| fits(&text[skip..], rest)),
            [one, rest @ ..] => text.first().is_some_and(|c| *one == '_' || c == one) && fits(&text[1..], rest),
        }
    }
    let chars = |text: &str| text.to_lowercase().chars().collect::<Vec<_>>();
    fits(&chars(text), &chars(pattern))
}

/// Gives unnamed output columns the text of their expression as heading; DataFusion's own names spell out the tables.
fn with_headings(stream: SendableRecordBatchStream, headings: &[Option<String>]) -> QueryResult {
    let schema = stream.schema();
    if headings.len() != schema.fields().len() || headings.iter().all(Option::is_none) {
        return QueryResult { schema, stream };
    }
    let field = |(field, heading): (&Arc<Field>, &Option<String>)| match heading {
        Some(heading) => Arc::new(field.as_ref().clone().with_name(heading)),
        None => Arc::clone(field),
    };
    let fields: Vec<Arc<Field>> = schema.fields().iter().zip(headings).map(field).collect();
    let schema = Arc::new(Schema::new(fields));
    let renamed = Arc::clone(&schema);
    let batches = stream.and_then(move |batch| {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&renamed), batch.columns().to_vec(), &options);
        futures::future::ready(batch.map_err(Into::into))
    });
    let stream = RecordBatchStreamAdapter::new(Arc::clone(&schema), batches.boxed());
    QueryResult { schema, stream: Box::pin(stream) }
}
