//! Runs a sync: checks both sides, opens them at their positions, and lets the two halves go.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tidemill_core::{
    clock::Clock,
    log::{Session, Writer},
    topic::{TopicPartition, TopicSpec},
};
use tokio::{sync::watch, task::JoinSet};

use super::{
    apply::{Apply, Route},
    away::{Away, Side, Waits},
    captures,
    control::Control,
    feed::{Feed, pause, reconcile_part},
    file::SyncSpec,
    health::{Health, state_after},
    known::Known,
    lanes::Lanes,
    owner_of,
    parked::{Parked, ParkedKey, dead_letters_of},
    reconcile::Reconciler,
    rounds::{self, ENDS, ends, rounds},
    schemas::{Schemas, find_or_make},
    status::{State, Status, Watched},
    topic_of,
};
use crate::{
    Error, ErrorKind, Result,
    change::TableSchema,
    connector::{Copied, Finding, Follow, Level, Sink, Source, SourceConnector},
    converter::TopicSchema,
    endpoint::same_database,
    target::{existing::OnExisting, lanes::Positions},
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

/// How a table is when a sync begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableStart {
    /// Its full name.
    pub name: String,
    /// About how many rows the source has.
    pub rows: u64,
    /// Rows that an earlier run has copied.
    pub copied: u64,
    /// Whether its copy is complete.
    pub complete: bool,
}

/// Is told how a sync gets on. Calls are frequent and must be cheap.
pub trait Observer: Send + Sync {
    /// The sync begins; these are its tables.
    fn started(&self, sync: &str, tables: &[TableStart]);
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
    /// A side is not there; it is tried again. Told at each try.
    fn waiting(&self, side: Side, error: &Error);
    /// The side is there again, after this time.
    fn back(&self, _side: Side, _away: Duration) {}
    /// Another process runs the sync; this one takes it up when that goes.
    fn stands_by(&self) {}
    /// The log failed it for a moment: it begins again where it was.
    fn begins_again(&self, _error: &Error) {}
    /// Rows that the target refuses; all of them, whenever that changes.
    fn parked(&self, _keys: &[ParkedKey]) {}
}

/// The pause after the n-th failure in a row: 200 ms, doubled up to 5 s.
pub(super) fn retry_pause(failures: u32) -> Duration {
    Duration::from_millis(100 << failures.min(6)).min(Duration::from_secs(5))
}

/// Runs one sync until it ends (`once`), `stop` turns true, or it must stop.
///
/// # Errors
/// `Unavailable` where source or target are not there at the first start, or with `once`; `Conflict` where a person must decide, with the
/// command to type; `Corrupt` and `Closed` of the log.
pub async fn run(
    session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    spec: &SyncSpec,
    options: &RunOptions,
    observer: Arc<dyn Observer>,
    control: Arc<Control>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let mut health = Health::open(&session, &spec.name).await?;
    let (status, now) = (Arc::clone(&control), Arc::clone(&clock));
    status.tell(|status| {
        let (from, to, last_error) = (spec.from.to_string(), spec.to.to_string(), health.error());
        *status = Status { sync: spec.name.clone(), from, to, state: State::Starting, last_error, ..Status::default() };
    });
    let observer: Arc<dyn Observer> =
        Arc::new(Watched { inner: observer, control: Arc::clone(&control), waits: Waits::default() });
    let mut run = pin!(async {
        let away = Mutex::new([Side::Source, Side::Target].map(|side| Away::new(&observer, side)));
        let at_target = AtomicBool::new(false);
        let sync = Runner {
            session,
            clock,
            spec,
            options: options.clone(),
            observer,
            control,
            away,
            at_target,
            followed: Mutex::default(),
            left_out: Mutex::default(),
        };
        sync.run_on(stop).await
    });
    status.open();
    let result = loop {
        tokio::select! {
            result = &mut run => break result,
            // A log that does not take this fails the run itself.
            () = status.well.notified() => drop(health.forget().await),
        }
    };
    status.close();
    let result = result.map_err(|error| Error::new(error.kind(), spec.named(&error.to_string())));
    // The sync's own error is the one to tell, whether it can be kept or not.
    let _ = match &result {
        Ok(()) if options.once => health.forget().await,
        Ok(()) => Ok(()),
        Err(error) => health.keep(spec, error, now.now()).await,
    };
    status.tell(|status| match &result {
        Ok(()) => status.state = State::Stopped,
        Err(error) => (status.state, status.last_error) = (state_after(error.kind()), Some(error.to_string())),
    });
    result.map_err(|error| spec.typed_error(&error).context(format!("sync {}", spec.name)))
}

/// Waits for both halves, which are tasks of their own: one reads while the other writes. Either failing ends both, and so
/// does dropping this: what is under way is dropped, and done again at the next start.
async fn first_fault(mut halves: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = halves.join_next().await {
        let fault = match ended {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error,
            Err(panic) => match panic.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Error::closed("the process ends"),
            },
        };
        halves.shutdown().await;
        return Err(fault);
    }
    Ok(())
}

/// Names of tables whose copies are to be made.
#[derive(Default)]
struct Copies {
    /// Those that begin now.
    begin: Vec<String>,
    /// Those that have not ended; they begin now or go on.
    unfinished: Vec<String>,
}

pub(super) struct Runner<'a> {
    pub(super) session: Arc<dyn Session>,
    clock: Arc<dyn Clock>,
    pub(super) spec: &'a SyncSpec,
    pub(super) options: RunOptions,
    observer: Arc<dyn Observer>,
    control: Arc<Control>,
    /// Sides that are away as the sync starts.
    away: Mutex<[Away; 2]>,
    /// Which of them is asked at the moment.
    at_target: AtomicBool,
    /// Names of the tables at work, in lower case.
    pub(super) followed: Mutex<BTreeSet<String>>,
    /// Why tables were left out, each said once.
    pub(super) left_out: Mutex<BTreeSet<String>>,
}

impl Runner<'_> {
    /// Runs; a sync that ran before has the right names, and waits for databases that are away when it starts. It starts
    /// again where tables came that it is to follow.
    async fn run_on(mut self, mut stop: watch::Receiver<bool>) -> Result<()> {
        let mut failures = 0;
        loop {
            let asked = self.options.once || self.options.replace || !self.options.recopy.is_empty();
            match self.run_until_tables_come(&mut stop).await {
                Ok(true) => self.options = RunOptions::default(),
                Err(error) if error.kind() == ErrorKind::Unavailable && !asked && self.ran_before().await? => {
                    failures += 1;
                    let side = usize::from(self.at_target.load(Ordering::Acquire));
                    self.away.lock().unwrap_or_else(PoisonError::into_inner)[side].fails(&error);
                    pause(&mut stop, retry_pause(failures)).await;
                }
                Ok(false) => return Ok(()),
                Err(error) => return Err(error),
            }
            if *stop.borrow() {
                return Ok(());
            }
        }
    }

    /// Whether it ended for tables that came.
    async fn run_until_tables_come(&self, stop: &mut watch::Receiver<bool>) -> Result<bool> {
        let (tell, told) = watch::channel(false);
        let mut run = pin!(self.run(told));
        let stopped = async {
            if stop.wait_for(|stop| *stop).await.is_err() {
                // Nobody can stop it any more.
                std::future::pending::<()>().await;
            }
        };
        let again = tokio::select! {
            ended = &mut run => return ended.map(|()| false),
            () = stopped => false,
            () = self.table_comes() => true,
        };
        let _ = tell.send(true);
        run.await.map(|()| again)
    }

    /// Refuses what another sync of the log stands in the way of.
    async fn refuse_beside(&self, tables: &[TableSchema]) -> Result<()> {
        let known = Known::of(&*self.session).await?;
        if let Some((table, other)) = rounds(self.spec, &[], &known, tables).await?.first() {
            return Err(Error::conflict(format!("{}; {}", rounds::told(table, other), rounds::CURE)));
        }
        match captures::finding(self.spec, &[], &known).await? {
            // Whose it is else, the source tells itself, with the way out.
            Some(finding) if captures::other_owner(self.spec, &known).await?.is_some() => refuse(vec![finding]),
            _ => Ok(()),
        }
    }

    async fn ran_before(&self) -> Result<bool> {
        Ok(!self.session.positions(&owner_of(&self.spec.name)).await?.is_empty())
    }

    async fn run(&self, stop: watch::Receiver<bool>) -> Result<()> {
        self.at_target.store(false, Ordering::Release);
        let (from, to) = (self.spec.from.source()?, self.spec.sink()?);
        let tables = from.tables(&self.spec.tables).await?;
        if let Some(same) = same_database(&self.spec.from, &self.spec.to) {
            return Err(Error::conflict(same));
        }
        if !self.options.once {
            self.refuse_beside(&tables).await?;
        }
        // The fence comes before anything is read or made: an older worker of this sync can do no more harm.
        let writer = self.session.writer(&owner_of(&self.spec.name)).await?;
        let stored = writer.positions().clone();
        let captured = from.captured(&capture_parts(&stored))?;
        let captured = captured.iter().map(|name| name.to_ascii_lowercase()).collect();
        let tables = self.fitting(&*from, tables, &captured).await?;
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) =
            tables.iter().map(|table| table.full_name().to_ascii_lowercase()).collect();
        if stored.is_empty() {
            let (name, log_id) = (&self.spec.name, self.session.log_id());
            // What `sync check` would refuse is refused before anything is made.
            refuse(from.preflight(name, &log_id, &tables, self.options.once).await?)?;
        }
        let draft = |table: &TableSchema| TopicSchema::draft(&self.spec.name, from.dialect(), table);
        let drafts: Vec<_> = tables.iter().map(draft).collect();
        refuse_one_topic(&self.spec.name, &drafts)?;
        let log_id = self.session.log_id();
        let checked = match self.options.replace {
            false => {
                self.at_target.store(true, Ordering::Release);
                refuse(to.preflight(&self.spec.name, &log_id, &drafts).await?)?;
                let mut target = to.open(&self.spec.name, &log_id).await?;
                target.check(&drafts).await?;
                self.at_target.store(false, Ordering::Release);
                Some(target)
            }
            true => None,
        };
        let recopy = self.recopied(&tables);
        let (source, copies) = if self.options.once && stored.is_empty() {
            self.refuse_changed_columns(&tables).await?;
            (from.read(tables).await?, Copies::default())
        } else {
            self.follow(&*from, tables, &stored, recopy).await?
        };
        // A target is given up only when the source has shown that it can be copied.
        let target = match checked {
            Some(target) => target,
            None => {
                let (target, dropped) = to.replace(&self.spec.name, &log_id, &drafts).await?;
                self.observer.replaced(&dropped);
                target
            }
        };
        self.away.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().for_each(Away::works);
        self.drive(&*from, source, writer, target, copies, stop).await
    }

    /// Opens the source where the log is, and finds the copies that are still to be made.
    async fn follow(
        &self,
        from: &dyn SourceConnector,
        tables: Vec<TableSchema>,
        stored: &BTreeMap<String, String>,
        recopy: Vec<String>,
    ) -> Result<(Box<dyn Source>, Copies)> {
        let follow = Follow {
            sync: self.spec.name.clone(),
            log_id: self.session.log_id(),
            tables,
            stored: capture_parts(stored),
            recopy,
            once: self.options.once,
        };
        let mut source = from.follow(follow).await?;
        let reconciles = |table: &str| stored.contains_key(&reconcile_part(table));
        let begun = source.states().into_iter().filter(|state| state.copied == Copied::Begun);
        let again: Vec<_> = begun.map(|state| state.table).filter(|table| reconciles(table)).collect();
        source.restart_copies(&again).await?;
        let mut copies = Copies::default();
        for state in source.states().into_iter().filter(|state| state.copied != Copied::Done) {
            // A table that waits since an earlier start has nothing in its topic but what this capture brought there.
            if state.copied == Copied::NotStarted && (!state.known || reconciles(&state.table)) {
                copies.begin.push(state.table.clone());
            }
            copies.unfinished.push(state.table);
        }
        Ok((source, copies))
    }

    /// Names of the tables to copy anew, as the source spells them.
    fn recopied(&self, tables: &[TableSchema]) -> Vec<String> {
        let find = |name: &String| {
            let mut names = tables.iter().map(TableSchema::full_name);
            names.find(|known| known.eq_ignore_ascii_case(name)).unwrap_or_else(|| name.clone())
        };
        self.options.recopy.iter().map(find).collect()
    }

    /// Whether the user named a table to be copied anew.
    fn is_recopied(&self, table: &TableSchema) -> bool {
        let full_name = table.full_name();
        self.options.recopy.iter().any(|name| name.eq_ignore_ascii_case(&full_name))
    }

    async fn drive(
        &self,
        from: &dyn SourceConnector,
        source: Box<dyn Source>,
        mut writer: Box<dyn Writer>,
        target: Box<dyn Sink>,
        copies: Copies,
        stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let shapes = source.tables();
        let tables = self.topics(from, &shapes).await?;
        let schemas = Schemas::load(&*self.session).await?;
        let mut source = source;
        let mut copies = copies;
        let rereads = source.rereads();
        if !rereads {
            self.restart_lost(&mut *source, &tables, &mut *writer, &mut copies).await?;
        }
        let mut reconcilers = Vec::new();
        for schema in &tables {
            reconcilers.push(self.reconciler(rereads, schema, &schemas, &copies, &mut *writer).await?);
        }
        for (name, value) in source.position() {
            writer.set_position(&name, Some(value));
        }
        if !self.options.once {
            writer.set_position(ENDS, Some(ends(self.spec)?));
        }
        writer.commit().await?;
        source.commit().await?;
        let (counts, states) = (from.row_counts(&shapes).await, source.states());
        let start = |((shape, rows), reconciler): ((&TableSchema, u64), &Option<Reconciler>)| {
            let name = shape.full_name();
            let complete = states.iter().any(|state| state.table == name && state.copied == Copied::Done);
            let copied = reconciler.as_ref().map_or(0, Reconciler::copied);
            TableStart { name, rows, copied, complete }
        };
        let starts: Vec<_> = shapes.iter().zip(counts).zip(&reconcilers).map(start).collect();
        self.observer.started(&self.spec.name, &starts);
        let source_ended = Arc::new(AtomicBool::new(false));
        let drained = Arc::new(AtomicBool::new(false));
        let route = |schema: &TopicSchema| Route { schema: Arc::new(schema.clone()), next_offset: 0 };
        let routes = tables.iter().map(route).collect();
        let mut apply = Apply {
            session: Arc::clone(&self.session),
            sink: target,
            lanes: Lanes::new(self.spec.connections),
            positions: Positions::default(),
            unsettled: false,
            schemas: schemas.clone(),
            routes,
            keeps_tables: self.spec.on_existing == OnExisting::Merge,
            observer: Arc::clone(&self.observer),
            clock: Arc::clone(&self.clock),
            control: Arc::clone(&self.control),
            parked: Parked::open(&*self.session, &self.spec.name).await?,
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
            keeps_tables: self.spec.on_existing == OnExisting::Merge,
            reconcilers,
            observer: Arc::clone(&self.observer),
            control: Arc::clone(&self.control),
            drained,
            staged: false,
            bytes: 0,
            encoders: HashMap::new(),
            buffer: BytesMut::new(),
        };
        let feed_stop = stop.clone();
        let control = Arc::clone(&self.control);
        let feeding = async move {
            feed.run(feed_stop).await?;
            source_ended.store(true, Ordering::Release);
            control.fed.notify_one();
            Ok(())
        };
        let mut halves = JoinSet::new();
        halves.spawn(feeding);
        halves.spawn(apply.run(stop));
        first_fault(halves).await
    }

    /// A topic whose new copy was begun by a run that ended before the source knew of it: the rows must come again.
    async fn restart_lost(
        &self,
        source: &mut dyn Source,
        tables: &[TopicSchema],
        writer: &mut dyn Writer,
        copies: &mut Copies,
    ) -> Result<()> {
        let states = source.states();
        let mut lost = Vec::new();
        for schema in tables {
            let name = schema.table.full_name();
            let (part, copy) = (copy_part(&name), schema.copy_id().to_string());
            let stored = writer.positions().get(&part).cloned();
            let held =
                states.iter().any(|state| state.table == name && state.known && state.copied != Copied::NotStarted);
            if held && stored.as_ref().is_some_and(|stored| *stored != copy) {
                lost.push(name);
            }
            if stored.as_ref() != Some(&copy) {
                writer.set_position(&part, Some(copy));
            }
        }
        if !lost.is_empty() {
            source.restart_copies(&lost).await?;
            copies.begin.extend(lost.iter().cloned());
            copies.unfinished.extend(lost);
        }
        Ok(())
    }

    /// Makes the topics that are missing, and finds or makes the schema of each table.
    async fn topics(&self, from: &dyn SourceConnector, tables: &[TableSchema]) -> Result<Vec<TopicSchema>> {
        let mut found = Vec::new();
        for table in tables {
            let draft = TopicSchema::draft(&self.spec.name, from.dialect(), table);
            if self.session.topic(&draft.topic).await?.is_none() {
                self.session.create_topic(&draft.topic, &TopicSpec::default()).await?;
            }
            found.push(find_or_make(&*self.session, &draft, self.is_recopied(table)).await?);
        }
        Ok(found)
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
        let name = schema.table.full_name();
        let begins = copies.begin.contains(&name) && holds;
        if !rereads && !begins {
            return match copies.unfinished.contains(&name) {
                true => Reconciler::of_changed(&*self.session, schemas, &schema.topic).await.map(Some),
                false => Ok(None),
            };
        }
        if begins {
            writer.set_position(&reconcile_part(&name), Some("1".into()));
        }
        Reconciler::of_all(&*self.session, schemas, &schema.topic).await.map(Some)
    }

    /// A copy without a capture has no position that would notice new columns: the topic's schema does.
    async fn refuse_changed_columns(&self, tables: &[TableSchema]) -> Result<()> {
        let schemas = Schemas::load(&*self.session).await?;
        for table in tables {
            let topic = topic_of(&self.spec.name, table);
            let present = schemas.newest(&topic);
            let recopy = self.is_recopied(table);
            if let Some(present) = present.filter(|present| present.table != *table && !recopy) {
                return Err(Error::conflict(format!(
                    "the columns of table {} changed since it was copied: {}; to copy the table anew: \
                     tidemill sync run FILE --recopy {}",
                    table.full_name(),
                    present.table.changes_to(table),
                    shell_word(&table.full_name())
                )));
            }
        }
        Ok(())
    }
}

/// Position part that says under which copy of its topic a table's rows are in the log.
fn copy_part(table: &str) -> String {
    format!("copy/{table}")
}

/// The parts of a stored position that are the source's own.
pub(super) fn capture_parts(stored: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    stored
        .iter()
        .filter(|(name, _)| {
            !name.starts_with(&reconcile_part("")) && !name.starts_with(&copy_part("")) && *name != ENDS
        })
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

/// Two names that are one when they are written as a topic's would mix their rows.
fn refuse_one_topic(sync: &str, drafts: &[TopicSchema]) -> Result<()> {
    let mut seen = BTreeMap::from([(dead_letters_of(sync), "the sync's own dead letters".to_owned())]);
    for draft in drafts {
        let name = draft.table.full_name();
        if let Some(other) = seen.insert(draft.topic.clone(), name.clone()) {
            return Err(Error::conflict(format!(
                "table {name} would share topic {} with {other}: leave one of them out, or give it a sync of its own",
                draft.topic
            )));
        }
    }
    Ok(())
}

fn refuse(findings: Vec<Finding>) -> Result<()> {
    let mut refused = findings.into_iter().filter(|finding| finding.level == Level::Refuse);
    let Some(finding) = refused.next() else { return Ok(()) };
    let cure = finding.cure.map(|cure| format!("; {cure}")).unwrap_or_default();
    let more = match refused.count() {
        0 => String::new(),
        more => format!(" (and {more} more: tidemill sync check FILE)"),
    };
    Err(Error::conflict(format!("{}: {}{cure}{more}", finding.subject, finding.message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Dialect;

    #[test]
    fn names_that_are_one_topic_are_refused() {
        let draft = |name: &str| {
            let table = TableSchema { schema: None, name: name.into(), columns: Vec::new() };
            TopicSchema::draft("s", Dialect::Sqlite, &table)
        };
        assert!(refuse_one_topic("s", &[draft("a b"), draft("a_x21b")]).is_ok());
        let error = refuse_one_topic("s", &[draft("a b"), draft("a_x20b")]).expect_err("one topic");
        assert!(error.to_string().contains("table a_x20b would share topic s.a_x20b with a b"), "{error}");
        assert!(refuse_one_topic("s", &[draft("dead-letters")]).is_err());
    }
}
