//! Runs a sync: checks both sides, opens them at their positions, and lets the two halves go.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tidemill_core::{
    clock::Clock,
    log::{Session, Table, Writer},
    suggest::nearest,
    topic::{TopicPartition, TopicSpec},
};
use tokio::sync::{Notify, watch};

use super::{
    apply::{Apply, Route},
    feed::{Feed, reconcile_part},
    file::{Endpoint, SyncSpec},
    owner_of,
    reconcile::{Reconciler, Schemas},
    topic_of,
};
use crate::{
    Error, ErrorKind, Result,
    change::TableSchema,
    command::with_file,
    connector::{Sink, Source},
    converter::{Kind, TopicSchema},
    sqlite::{
        self, Level,
        source::{Follower, Reader, Target},
    },
};

pub use crate::command::shell_word;

/// How a sync is run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Copy, and end.
    pub once: bool,
    /// Tables to copy anew, with their present columns.
    pub recopy: Vec<String>,
    /// Drop what the target holds under the names of the sync's tables, and fill them anew.
    pub replace: bool,
}

/// Is told how a sync gets on. Calls are frequent and must be cheap.
pub trait Observer: Send + Sync {
    /// The sync begins; these are its tables and how many rows each has about now.
    fn started(&self, sync: &str, tables: &[(String, u64)]);
    /// Rows of a table were read by its copy.
    fn copied(&self, table: usize, rows: u64);
    /// Rows differed from what the log has of them, and were written to it.
    fn written(&self, _rows: u64) {}
    /// These tables of the target were dropped, to be filled anew.
    fn replaced(&self, _tables: &[String]) {}
    /// A table's copy is complete in the log.
    fn finished(&self, table: usize);
    /// Records were applied to the target.
    fn applied(&self, records: u64);
    /// The target has all that the log has, and the log all that the source had.
    fn caught_up(&self);
    /// Something outside is not there; it is tried again.
    fn waiting(&self, error: &Error);
}

/// The pause after the n-th failure in a row: 200 ms, doubled up to 5 s.
pub(super) fn retry_pause(failures: u32) -> Duration {
    Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5))
}

/// Runs one sync until it ends (`once`), `stop` turns true, or it must stop.
///
/// # Errors
/// `Unavailable` where source or target are not there at the start; `Conflict` where a person must decide, with the
/// command to type; `Corrupt` and `Closed` of the log.
pub async fn run(
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    spec: &SyncSpec,
    options: &RunOptions,
    observer: Arc<dyn Observer>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let run = async {
        let sync = Runner { session, clock, spec, options, observer };
        sync.run(stop).await
    };
    run.await.map_err(|error| typeable(&error, &spec.file).context(format!("sync {}", spec.name)))
}

/// The same error, with the sync file's name in the commands of its message.
pub(super) fn typeable(error: &Error, file: &Path) -> Error {
    Error::new(error.kind(), with_file(&error.to_string(), file))
}

/// Refuses names to copy anew that no sync of a file has: neither now nor in what it captured.
///
/// # Errors
/// `NotFound` with the nearest table; `Unavailable` where a source that may have the table is not there.
pub async fn check_recopy(session: &dyn Session, specs: &[SyncSpec], names: &[String]) -> Result<()> {
    let (mut known, mut unread) = (Vec::new(), None);
    for spec in specs.iter().filter(|_| !names.is_empty()) {
        match source_tables(spec) {
            Ok(tables) => known.extend(tables.into_iter().map(|table| table.name)),
            Err(error) => unread = unread.or(Some(error.context(format!("sync {}", spec.name)))),
        }
        // A table that was dropped in the source is named to be forgotten.
        let captured = session.positions(&owner_of(&spec.name)).await?;
        known.extend(sqlite::source::captured_tables(&capture_parts(&captured))?);
    }
    let Some(unknown) = names.iter().find(|name| !known.iter().any(|known| known.eq_ignore_ascii_case(name))) else {
        return Ok(());
    };
    if let Some(unread) = unread {
        return Err(unread);
    }
    let hint = nearest(unknown, known.iter().map(String::as_str));
    let hint = hint.map(|name| format!("; the nearest is {name}")).unwrap_or_default();
    Err(Error::not_found(format!("no sync of the file has a table {unknown} to copy anew{hint}")))
}

/// Names of tables whose copies are to be made.
#[derive(Default)]
struct Copies {
    /// Those that begin now.
    begin: Vec<String>,
    /// Those that have not ended; they begin now or go on.
    unfinished: Vec<String>,
}

struct Runner<'a> {
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    spec: &'a SyncSpec,
    options: &'a RunOptions,
    observer: Arc<dyn Observer>,
}

impl Runner<'_> {
    async fn run(self, stop: watch::Receiver<bool>) -> Result<()> {
        let (Endpoint::Sqlite(from), Endpoint::Sqlite(to)) = (&self.spec.from, &self.spec.to);
        let tables = source_tables(self.spec)?;
        let same = sqlite::preflight::check_target_is_not_source(from, to);
        if !same.ok {
            return Err(Error::conflict(same.message));
        }
        // The fence comes before anything is read or made: an older worker of this sync can do no more harm.
        let writer = self.session.writer(&owner_of(&self.spec.name)).await?;
        let stored = writer.positions().clone();
        if stored.is_empty() {
            refuse_unfit(from, &tables, self.options.once)?;
        }
        let named = |table: &TableSchema| (topic_of(&self.spec.name, &table.name), table.clone());
        let named: Vec<_> = tables.iter().map(named).collect();
        let target = (to.clone(), self.spec.name.clone(), self.session.log_id());
        let checked = match self.options.replace {
            false => {
                let mut target = Target::open(target.0.clone(), target.1.clone(), target.2.clone()).await?;
                target.check(&named).await?;
                Some(target)
            }
            true => None,
        };
        let copies_only = self.options.once && stored.is_empty();
        let recopy = self.recopied(&tables)?;
        let (source, copies): (Box<dyn Source>, Copies) = if copies_only {
            self.refuse_changed_columns(&tables).await?;
            (Box::new(Reader::open(from.clone(), tables).await?), Copies::default())
        } else {
            let parts = capture_parts(&stored);
            let mut follower = Follower::open(from.clone(), tables, parts, recopy, self.options.once).await?;
            let again: Vec<_> =
                follower.unfinished().into_iter().filter(|t| stored.contains_key(&reconcile_part(t))).collect();
            follower.restart_copy(again).await?;
            // A table that waits since an earlier start has nothing in its topic but what this capture brought there.
            let anew = |table: &String| !follower.knew(table) || stored.contains_key(&reconcile_part(table));
            let begin = follower.not_started().into_iter().filter(anew).collect();
            let unfinished = [follower.unfinished(), follower.not_started()].concat();
            let copies = Copies { begin, unfinished };
            (Box::new(follower), copies)
        };
        // A target is given up only when the source has shown that it can be copied.
        let target = match checked {
            Some(target) => target,
            None => {
                let (target, dropped) = Target::replace(target.0, target.1, target.2, named).await?;
                self.observer.replaced(&dropped);
                target
            }
        };
        self.drive(source, writer, target, &copies, stop).await
    }

    /// Names of the tables to copy anew, as the source spells them.
    fn recopied(&self, tables: &[TableSchema]) -> Result<Vec<String>> {
        let find = |name: &String| {
            let found = tables.iter().find(|table| table.name.eq_ignore_ascii_case(name));
            found.map_or_else(|| name.clone(), |table| table.name.clone())
        };
        Ok(self.options.recopy.iter().map(find).collect())
    }

    async fn drive(
        &self,
        source: Box<dyn Source>,
        mut writer: Box<dyn Writer>,
        target: Target,
        copies: &Copies,
        stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let tables = self.topics(&source.tables()).await?;
        let schemas = self.schemas().await?;
        self.observer.started(&self.spec.name, &row_counts(&self.spec.from, &tables));
        let rereads = source.rereads();
        let mut reconcilers = Vec::new();
        for schema in &tables {
            reconcilers.push(self.reconciler(rereads, schema, &schemas, copies, &mut *writer).await?);
        }
        for (name, value) in source.position() {
            writer.set_position(&name, Some(value));
        }
        writer.commit().await?;
        let mut source = source;
        source.commit().await?;
        let fed = Arc::new(Notify::new());
        let source_ended = Arc::new(AtomicBool::new(false));
        let drained = Arc::new(AtomicBool::new(false));
        let routes = tables.iter().map(|schema| Route { schema: schema.clone(), next_offset: 0 }).collect();
        let mut apply = Apply {
            session: Arc::clone(&self.session),
            sink: Box::new(target),
            schemas: schemas.clone(),
            routes,
            observer: Arc::clone(&self.observer),
            fed: Arc::clone(&fed),
            drained: Arc::clone(&drained),
            source_ended: Arc::clone(&source_ended),
        };
        apply.prepare().await?;
        let feed = Feed {
            source,
            writer,
            session: Arc::clone(&self.session),
            clock: Arc::clone(&self.clock),
            schemas,
            tables,
            reconcilers,
            observer: Arc::clone(&self.observer),
            fed: Arc::clone(&fed),
            drained,
            staged: false,
        };
        let feed_stop = stop.clone();
        let feeding = async {
            feed.run(feed_stop).await?;
            source_ended.store(true, Ordering::Release);
            fed.notify_one();
            Ok(())
        };
        // Either half failing ends both: what is under way in the other is dropped, and done again at the next start.
        tokio::try_join!(feeding, apply.run(stop)).map(drop)
    }

    /// Makes the topics that are missing, and finds or makes the schema of each table.
    async fn topics(&self, tables: &[TableSchema]) -> Result<Vec<TopicSchema>> {
        let mut found = Vec::new();
        for table in tables {
            let topic = topic_of(&self.spec.name, &table.name);
            if self.session.topic(&topic).await?.is_none() {
                self.session.create_topic(&topic, &TopicSpec::default()).await?;
            }
            found.push(self.schema(topic, table).await?);
        }
        Ok(found)
    }

    async fn schema(&self, topic: String, table: &TableSchema) -> Result<TopicSchema> {
        let recopy = self.options.recopy.iter().any(|name| name.eq_ignore_ascii_case(&table.name));
        loop {
            let all = self.session.table(Table::Schemas).await?;
            let mut known = Vec::new();
            for entry in all.values() {
                known.push(TopicSchema::decode(entry.value.as_bytes())?);
            }
            let present = known.iter().filter(|schema| schema.topic == topic).max_by_key(|schema| schema.id);
            if let Some(present) = present
                && present.table == *table
                && !recopy
            {
                return Ok(present.clone());
            }
            let id = known.iter().map(|schema| schema.id).max().unwrap_or(0) + 1;
            let kinds = table.columns.iter().map(|column| Kind::of_sqlite(&column.declared_type)).collect();
            let (sync, connector) = (self.spec.name.clone(), "sqlite".to_owned());
            let schema = TopicSchema { id, topic: topic.clone(), connector, sync, table: table.clone(), kinds };
            let value =
                serde_json::to_string(&schema).map_err(|e| Error::internal("encode a schema").with_source(e))?;
            match self.session.put(Table::Schemas, &TopicSchema::record_key(id), Some(value), None).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                other => return other.map(|()| schema),
            }
        }
    }

    async fn schemas(&self) -> Result<Schemas> {
        let mut schemas = Schemas::default();
        for entry in self.session.table(Table::Schemas).await?.values() {
            let schema = TopicSchema::decode(entry.value.as_bytes())?;
            schemas.by_id.insert(schema.id, schema);
        }
        Ok(schemas)
    }

    /// A copy that begins while its topic already holds rows writes only what differs; any other copy leaves out what the
    /// capture has brought.
    async fn reconciler(
        &self,
        rereads: bool,
        schema: &TopicSchema,
        schemas: &Schemas,
        copies: &Copies,
        writer: &mut dyn Writer,
    ) -> Result<Option<Reconciler>> {
        let partition = TopicPartition::new(&schema.topic, 0);
        let bounds = self.session.bounds(&[partition]).await?;
        let holds = bounds.first().is_some_and(|b| b.durable_offset > b.log_start_offset);
        let begins = copies.begin.contains(&schema.table.name) && holds;
        if !rereads && !begins {
            return match copies.unfinished.contains(&schema.table.name) {
                true => Reconciler::of_changed(&*self.session, schemas, &schema.topic).await.map(Some),
                false => Ok(None),
            };
        }
        if begins {
            writer.set_position(&reconcile_part(&schema.table.name), Some("1".into()));
        }
        Reconciler::of_all(&*self.session, schemas, &schema.topic).await.map(Some)
    }

    /// A copy without a capture has no position that would notice new columns: the topic's schema does.
    async fn refuse_changed_columns(&self, tables: &[TableSchema]) -> Result<()> {
        let schemas = self.schemas().await?;
        for table in tables {
            let topic = topic_of(&self.spec.name, &table.name);
            let present = schemas.by_id.values().filter(|s| s.topic == topic).max_by_key(|s| s.id);
            let recopy = self.options.recopy.iter().any(|name| name.eq_ignore_ascii_case(&table.name));
            if let Some(present) = present.filter(|present| present.table != *table && !recopy) {
                return Err(Error::conflict(format!(
                    "the columns of table {} changed since it was copied: {}; to copy the table anew: \
                     tidemill sync run FILE --recopy {}",
                    table.name,
                    present.table.changes_to(table),
                    shell_word(&table.name)
                )));
            }
        }
        Ok(())
    }
}

/// The parts of a stored position that are the source's own.
fn capture_parts(stored: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    stored
        .iter()
        .filter(|(name, _)| !name.starts_with(&reconcile_part("")))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// The tables that a sync's patterns name now.
///
/// # Errors
/// `Unavailable` where the source is not there, `NotFound` for a pattern that matches nothing.
pub(super) fn source_tables(spec: &SyncSpec) -> Result<Vec<TableSchema>> {
    let Endpoint::Sqlite(path) = &spec.from;
    if !path.exists() {
        return Err(Error::unavailable(format!("source {} does not exist", path.display())));
    }
    let conn = sqlite::open_source(path)?;
    sqlite::match_tables(&spec.tables, &sqlite::list_tables(&conn)?)
}

/// Refuses what `sync check` would refuse, before anything is made.
fn refuse_unfit(path: &Path, tables: &[TableSchema], once: bool) -> Result<()> {
    let conn = sqlite::open_source(path)?;
    let findings = match once {
        true => sqlite::preflight::preflight_tables(&conn, tables),
        false => sqlite::preflight(&conn, tables),
    };
    let refused = findings.into_iter().find(|finding| finding.level == Level::Refuse);
    let Some(finding) = refused else { return Ok(()) };
    let cure = finding.cure.map(|cure| format!("; {cure}")).unwrap_or_default();
    Err(Error::conflict(format!("{}: {}{cure}", finding.subject, finding.message)))
}

/// About how many rows each table has; for progress only.
fn row_counts(from: &Endpoint, tables: &[TopicSchema]) -> Vec<(String, u64)> {
    let Endpoint::Sqlite(path) = from;
    let conn = sqlite::open_source(path).ok();
    let count = |name: &str| -> Option<u64> {
        let sql = format!("SELECT count(*) FROM {}", sqlite::value::identifier(name));
        conn.as_ref()?.query_row(&sql, [], |row| row.get::<_, i64>(0)).ok().map(i64::unsigned_abs)
    };
    tables.iter().map(|schema| (schema.table.name.clone(), count(&schema.table.name).unwrap_or(0))).collect()
}
