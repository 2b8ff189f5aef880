//! Applies changes to tables of PostgreSQL. Rows and positions are one transaction of the target, so each change counts
//! once.
//!
//! A batch is folded to the last change of each key. Up to 1,000 rows are one statement; more are copied into a temporary
//! table and merged from there; the first rows of a table that is known to be empty are copied into it as they are. Where a unique index of the target refuses the
//! merge (two rows that swap a value), the changes of that topic are applied one by one, in the log's order.
//!
//! A lane ([`crate::target::lanes`]) is a sink with a connection of its own that writes its part of a large batch and its
//! own place among the positions; it makes and changes no tables.
//!
//! # Durability
//!
//! When [`Sink::put`] returns, the server has flushed the transaction: `synchronous_commit` is `on`, or what the server
//! says where that is more.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{
    endpoint::{PostgresServer, TextRow, connect, execute, literal, postgres_error, query, query_one},
    sink_table::{self as table, Prepared},
    sink_write as write,
};
use crate::{
    Error, ErrorKind, Result,
    connector::{Finding, Sink, SinkConnector, SourceConnector, TableReader, TopicChanges},
    converter::TopicSchema,
    endpoint::Server,
    target::{
        Existing, POSITIONS,
        existing::{self, OnExisting, Writer, check_kept, refuse_written},
        fold, gone,
        lanes::{Lane, Positions, is_lane, keys_are_exact},
        ledger::{Ledger, Stored, Turn},
        refuse_tables,
    },
    translate::{Translation, check_names},
    types::Dialect,
};

/// What a session that writes is told: commits are durable, a lock is not waited for without end, and keys are always
/// looked up in the index (temporary tables have no statistics).
const SETTINGS: &str = "SET lock_timeout = '10s'; SET enable_hashjoin = off; SET enable_mergejoin = off; \
                        SET client_min_messages = warning";

/// A sync's target in PostgreSQL.
pub struct PostgresSink {
    server: Server,
    ledger: Ledger,
    on_existing: OnExisting,
    /// Of a lane: which it is, and the generation that it writes under.
    lane: Option<(Lane, i64)>,
    /// Gone after an error: what it had prepared was rolled back.
    session: Option<Session>,
}

/// Tables that had no row when they were prepared and got only new ones since, by topic. A sink shares it with its lanes.
#[derive(Clone, Default)]
pub(super) struct Filling(Arc<Mutex<HashMap<String, bool>>>);

impl Filling {
    pub(super) fn get(&self, topic: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied().unwrap_or(false)
    }

    pub(super) fn set(&self, topic: &str, filling: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.to_owned(), filling);
    }

    /// Says it where nothing is known yet.
    fn begin(&self, topic: &str, filling: bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(topic.to_owned()).or_insert(filling);
    }
}

/// A connection, and what was prepared on it.
pub(super) struct Session {
    pub(super) conn: PgConnection,
    /// By the schema's number.
    prepared: HashMap<u64, Arc<Prepared>>,
    pub(super) filling: Filling,
    /// Schemas whose temporary tables hold rows of this transaction.
    pub(super) staged: HashSet<u64>,
    /// The table of positions was there.
    has_positions: bool,
}

impl Session {
    async fn open(server: &Server) -> Result<Self> {
        let mut conn = connect(server).await?;
        let doing = "prepare a session";
        execute(&mut conn, doing, SETTINGS).await?;
        let durable = query_one(&mut conn, doing, "SELECT current_setting('synchronous_commit')").await?;
        if durable.as_deref() == Some("off") {
            execute(&mut conn, doing, "SET synchronous_commit = on").await?;
        }
        Ok(Self {
            conn,
            prepared: HashMap::new(),
            filling: Filling::default(),
            staged: HashSet::new(),
            has_positions: false,
        })
    }

    /// Prepares the statements of a table that is there.
    async fn prepare(&mut self, schema: u64, translation: Translation) -> Result<Arc<Prepared>> {
        let prepared = Arc::new(table::prepare(&mut self.conn, translation, self.prepared.len()).await?);
        self.prepared.insert(schema, Arc::clone(&prepared));
        Ok(prepared)
    }
}

impl PostgresSink {
    async fn open(to: &PostgresServer, sync: &str, log_id: &str) -> Result<Self> {
        let (server, ledger) = (to.server.clone(), Ledger::new(sync, log_id));
        let mut sink = Self { server, ledger, on_existing: to.on_existing, lane: None, session: None };
        let target = sink.target();
        let mut session = Session::open(&sink.server).await?;
        let rows = stored(&mut session.conn, sync, false).await?.unwrap_or_default();
        sink.ledger.check_owner(&target, &rows)?;
        sink.session = Some(session);
        Ok(sink)
    }

    fn target(&self) -> String {
        format!("postgres://{}", self.server)
    }

    async fn session(&mut self) -> Result<Session> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => Session::open(&self.server).await,
        }
    }

    /// Applies in one transaction. The session is of no use after an error.
    async fn apply(
        &mut self,
        session: &mut Session,
        changes: Vec<TopicChanges>,
        next_offsets: &[(String, i64)],
    ) -> Result<()> {
        let target = self.target();
        session.staged.clear();
        let rows = self.begin(session).await?;
        let generation = match self.ledger.begin(&target, &rows, next_offsets)? {
            Turn::Done => {
                execute(&mut session.conn, "roll back", "ROLLBACK").await?;
                self.ledger.committed(next_offsets);
                return Ok(());
            }
            Turn::Apply { generation } => generation,
        };
        self.ledger.settled(&rows);
        let rows = rows.into_iter().filter(|row| !is_lane(row));
        let mut rows: HashMap<String, Stored> = rows.map(|row| (row.topic.clone(), row)).collect();
        let count = changes.len();
        let mut ended = false;
        for (number, TopicChanges { schema, changes }) in changes.into_iter().enumerate() {
            let prepared = self.prepare(session, &mut rows, &schema).await?;
            if changes.is_empty() {
                continue;
            }
            let steps = fold::steps(&schema, &prepared.translation, changes)?;
            let end = (number + 1 == count).then(|| self.end_sql(&rows, next_offsets, generation));
            if end.is_some() {
                self.ledger.committing(next_offsets);
            }
            ended = write::apply(session, &schema, &prepared, steps, end.as_deref()).await?;
        }
        if !ended {
            let end = self.end_sql(&rows, next_offsets, generation);
            self.ledger.committing(next_offsets);
            execute(&mut session.conn, "commit", end).await?;
        }
        self.ledger.committed(next_offsets);
        Ok(())
    }

    /// As [`Self::apply`], in a lane.
    async fn apply_in_lane(
        &self,
        session: &mut Session,
        (lane, generation): (Lane, i64),
        changes: Vec<TopicChanges>,
        next_offsets: &[(String, i64)],
    ) -> Result<()> {
        session.staged.clear();
        let topics: Vec<_> = next_offsets.iter().map(|(topic, _)| literal(topic)).collect();
        let only = format!("AND topic IN ({})", topics.join(","));
        let begin = format!(
            "{}; {}",
            begin_sql(self.ledger.sync(), "pg_advisory_xact_lock_shared"),
            stored_sql(self.ledger.sync(), &only, "FOR SHARE")
        );
        let rows = read_locked(&mut session.conn, begin).await?;
        self.ledger.check_lane(&self.target(), &rows, topics.len(), generation)?;
        let end = self.store_sql(lane.rows(&rows, next_offsets, generation).into_iter()) + "COMMIT";
        let (count, mut ended) = (changes.len(), false);
        for (number, TopicChanges { schema, changes }) in changes.into_iter().enumerate() {
            let prepared = match session.prepared.get(&schema.id) {
                Some(prepared) => Arc::clone(prepared),
                None => {
                    let translation = Translation::new(&schema, Dialect::Postgres);
                    session.prepare(schema.id, translation).await?
                }
            };
            let steps = fold::steps(&schema, &prepared.translation, changes)?;
            let end = (number + 1 == count).then_some(end.as_str());
            ended = write::apply(session, &schema, &prepared, steps, end).await?;
        }
        match ended {
            true => Ok(()),
            false => execute(&mut session.conn, "commit", end).await,
        }
    }

    /// Begins a transaction with the sync's rows of the table of positions, locked.
    async fn begin(&self, session: &mut Session) -> Result<Vec<Stored>> {
        let (conn, sync) = (&mut session.conn, self.ledger.sync());
        let begin = begin_sql(sync, "pg_advisory_xact_lock");
        if session.has_positions {
            match read_locked(conn, format!("{begin}; {}", stored_sql(sync, "", "FOR UPDATE"))).await {
                Err(error) if error.kind() == ErrorKind::NotFound => execute(conn, "roll back", "ROLLBACK").await?,
                found => return found,
            }
        }
        execute(conn, "begin", begin).await?;
        let rows = match stored(conn, sync, true).await? {
            Some(rows) => rows,
            None => {
                make_positions(conn).await?;
                Vec::new()
            }
        };
        session.has_positions = true;
        Ok(rows)
    }

    /// Makes the topic's table be there with this schema.
    async fn prepare(
        &self,
        session: &mut Session,
        rows: &mut HashMap<String, Stored>,
        schema: &TopicSchema,
    ) -> Result<Arc<Prepared>> {
        if let Some(prepared) = session.prepared.get(&schema.id) {
            return Ok(Arc::clone(prepared));
        }
        let translation = Translation::new(schema, Dialect::Postgres);
        let wanted = translation.table().clone();
        let conn = &mut session.conn;
        // PostgreSQL has no unsigned integers: numbers of schemas are kept by their bits.
        let (copy, own) = (schema.copy_id().cast_signed(), schema.id.cast_signed());
        let stored = rows.get(&schema.topic);
        let ours = stored.is_some_and(|row| row.copy.is_some());
        let mut applied = stored.and_then(|row| row.schema).unwrap_or(own);
        let same_copy = ours && stored.and_then(|row| row.copy) == Some(copy);
        let found = if ours { table::inspect(conn, &wanted).await? } else { None };
        let mut filling = false;
        match found {
            Some(_) if same_copy => {
                if applied < own {
                    table::evolve(conn, &wanted).await?;
                    applied = own;
                }
            }
            None if same_copy => return Err(gone(schema, &self.target())),
            // Another copy begins. Rows that only the target has would go with the table.
            Some(found) if self.on_existing == OnExisting::Merge => {
                check_kept(&wanted, &found.table, |_| true)?;
                table::evolve(conn, &wanted).await?;
                applied = own;
            }
            _ => {
                if ours {
                    table::drop_table(conn, &wanted).await?;
                } else {
                    self.take_over(conn, schema, &translation).await?;
                }
                table::create(conn, &wanted).await?;
                filling = table::state(conn, &wanted).await? != Existing::WithRows;
                applied = own;
            }
        }
        let row = Stored {
            topic: schema.topic.clone(),
            log_id: self.ledger.log_id().to_owned(),
            next_offset: stored.map_or(0, |row| row.next_offset),
            copy: Some(copy),
            schema: Some(applied),
            generation: 0,
        };
        rows.insert(schema.topic.clone(), row);
        let prepared = session.prepare(schema.id, translation).await?;
        session.filling.begin(&schema.topic, filling);
        Ok(prepared)
    }

    /// Makes room for a table that the sync does not own yet, or finds that what is there may stay.
    async fn take_over(&self, conn: &mut PgConnection, schema: &TopicSchema, translation: &Translation) -> Result<()> {
        let tables = [(schema.topic.clone(), translation.clone())];
        check_tables(conn, &self.target(), (&self.ledger, self.on_existing), &tables, &[]).await?;
        if self.on_existing != OnExisting::Replace {
            return Ok(());
        }
        // What is left of writers are those of other logs.
        let writers = writers(conn).await?;
        for other in existing::same_table(Dialect::Postgres, (self.ledger.sync(), &schema.topic), &writers) {
            let forget = format!(
                "DELETE FROM public.{POSITIONS} WHERE sync = {} AND split_part(topic, '#', 1) = {}",
                literal(&other.sync),
                literal(&other.topic)
            );
            execute(conn, "forget who wrote a table", forget).await?;
        }
        table::drop_table(conn, translation.table()).await
    }

    /// Writes the positions and commits.
    fn end_sql(&self, rows: &HashMap<String, Stored>, next_offsets: &[(String, i64)], generation: i64) -> String {
        let mut next: BTreeMap<&str, i64> = rows.values().map(|row| (row.topic.as_str(), row.next_offset)).collect();
        next.extend(next_offsets.iter().map(|(topic, offset)| (topic.as_str(), *offset)));
        let row = |(topic, next_offset): (&str, i64)| {
            let row = rows.get(topic);
            let (copy, schema) = (row.and_then(|row| row.copy), row.and_then(|row| row.schema));
            Stored {
                topic: topic.to_owned(),
                log_id: self.ledger.log_id().to_owned(),
                next_offset,
                copy,
                schema,
                generation,
            }
        };
        self.store_sql(next.into_iter().map(row)) + "COMMIT"
    }

    /// Writes rows of the table of positions; nothing where there are none.
    fn store_sql(&self, rows: impl Iterator<Item = Stored>) -> String {
        let sync = literal(self.ledger.sync());
        let number = |number: Option<i64>| number.map_or("NULL".into(), |number| number.to_string());
        let values = rows.map(|row| {
            let (log_id, topic) = (literal(&row.log_id), literal(&row.topic));
            let (copy, schema) = (number(row.copy), number(row.schema));
            format!("({sync},{log_id},{topic},{},{copy},{schema},{})", row.next_offset, row.generation)
        });
        let values = values.collect::<Vec<_>>().join(",");
        if values.is_empty() {
            return String::new();
        }
        format!(
            "INSERT INTO public.{POSITIONS} (sync, log_id, topic, next_offset, schema, columns, generation) \
             VALUES {values} ON CONFLICT (sync, topic) DO UPDATE SET next_offset = EXCLUDED.next_offset, \
             schema = EXCLUDED.schema, columns = EXCLUDED.columns, generation = EXCLUDED.generation; "
        )
    }
}

#[async_trait]
impl Sink for PostgresSink {
    async fn positions(&mut self) -> Result<Positions> {
        let mut session = self.session().await?;
        let begin = begin_sql(self.ledger.sync(), "pg_advisory_xact_lock");
        execute(&mut session.conn, "read the target's positions", begin).await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), true).await?.unwrap_or_default();
        execute(&mut session.conn, "read the target's positions", "COMMIT").await?;
        self.session = Some(session);
        self.ledger.check_owner(&self.target(), &rows)?;
        Ok(self.ledger.read(&rows))
    }

    async fn check(&mut self, tables: &[TopicSchema]) -> Result<()> {
        check_names(tables, Dialect::Postgres)?;
        let mut session = self.session().await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), false).await?.unwrap_or_default();
        let tables: Vec<_> = tables.iter().map(|s| (s.topic.clone(), Translation::new(s, Dialect::Postgres))).collect();
        let checked =
            check_tables(&mut session.conn, &self.target(), (&self.ledger, self.on_existing), &tables, &rows).await;
        self.session = Some(session);
        checked
    }

    async fn put(&mut self, changes: Vec<TopicChanges>, next_offsets: Vec<(String, i64)>) -> Result<()> {
        let mut session = self.session().await?;
        let applied = match self.lane {
            None => self.apply(&mut session, changes, &next_offsets).await,
            Some(lane) => self.apply_in_lane(&mut session, lane, changes, &next_offsets).await,
        };
        if applied.is_ok() {
            self.session = Some(session);
        }
        applied.map_err(|error| error.context(format!("apply to target {}", self.target())))
    }

    fn may_be_dealt(&self, schema: &TopicSchema) -> bool {
        let prepared = self.session.as_ref().and_then(|session| session.prepared.get(&schema.id));
        prepared.is_some_and(|prepared| {
            !prepared.ties.rows && keys_are_exact(prepared.translation.table(), !prepared.ties.text)
        })
    }

    async fn lane(&mut self, lane: Lane) -> Result<Box<dyn Sink>> {
        let claimed = self.session.as_ref().zip(self.ledger.generation());
        let Some((own, generation)) = claimed else {
            return Err(Error::internal("a lane is opened beside a sink that has written"));
        };
        let mut session = Session::open(&self.server).await?;
        session.filling = own.filling.clone();
        Ok(Box::new(Self {
            server: self.server.clone(),
            ledger: Ledger::new(self.ledger.sync(), self.ledger.log_id()),
            on_existing: self.on_existing,
            lane: Some((lane, generation)),
            session: Some(session),
        }))
    }
}

/// Refuses tables that hold rows of others, or are empty but of another shape.
async fn check_tables(
    conn: &mut PgConnection,
    target: &str,
    (ledger, on_existing): (&Ledger, OnExisting),
    tables: &[(String, Translation)],
    stored: &[Stored],
) -> Result<()> {
    let (mut filled, mut unfit) = (Vec::new(), Vec::new());
    let writers = writers(conn).await?;
    for (topic, translation) in tables {
        if stored.iter().any(|row| row.topic == *topic && row.copy.is_some()) {
            continue;
        }
        let wanted = translation.table();
        let existing = table::state(conn, wanted).await?;
        if existing != Existing::No {
            let own = (ledger.sync(), topic.as_str());
            refuse_written(on_existing, ledger.log_id(), Dialect::Postgres, own, wanted, &writers)?;
        }
        if on_existing.refuses(existing) {
            filled.push(wanted.full_name());
        } else if on_existing.keeps(existing)
            && let Some(why) = table::unfit(conn, wanted).await?
        {
            unfit.push(format!("{} ({why})", wanted.full_name()));
        }
    }
    refuse_tables(target, &filled, &unfit, on_existing == OnExisting::Merge)
}

/// All syncs that write to the target, with their topics that have tables.
pub(super) async fn writers(conn: &mut PgConnection) -> Result<Vec<Writer>> {
    let doing = "read the target's positions";
    let exists = format!("SELECT to_regclass('public.{POSITIONS}')::text");
    if query_one(conn, doing, exists).await?.is_none() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT sync, log_id, topic FROM public.{POSITIONS} WHERE schema IS NOT NULL");
    let writer = |row: TextRow| {
        let [sync, log_id, topic] = <[Option<String>; 3]>::try_from(row).ok()?;
        Some(Writer { sync: sync?, log_id: log_id?, topic: topic? })
    };
    Ok(query(conn, doing, sql).await?.into_iter().filter_map(writer).collect())
}

/// The sync's rows of the table of positions, locked where asked; `None` without the table.
pub(super) async fn stored(conn: &mut PgConnection, sync: &str, lock: bool) -> Result<Option<Vec<Stored>>> {
    let doing = "read the target's positions";
    let exists = format!("SELECT to_regclass('public.{POSITIONS}')::text");
    if query_one(conn, doing, exists).await?.is_none() {
        return Ok(None);
    }
    let lock = if lock { "FOR UPDATE" } else { "" };
    read_stored(query(conn, doing, stored_sql(sync, "", lock)).await?).map(Some)
}

/// Begins a transaction with the sync's lock, by this function. Rows are locked too, but before there are any, two workers
/// that start at once would both find none; and who waits for a row's lock does not see the rows that a lane added.
fn begin_sql(sync: &str, lock: &str) -> String {
    format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {lock}(hashtext({}))", literal(&format!("tidemill/{sync}")))
}

/// The rows of a statement that comes after the lock's, whose answer has one column.
async fn read_locked(conn: &mut PgConnection, sql: String) -> Result<Vec<Stored>> {
    read_stored(query(conn, "begin", sql).await?.into_iter().filter(|row| row.len() > 1).collect())
}

/// Reads the sync's rows, `only` some, with a lock.
fn stored_sql(sync: &str, only: &str, lock: &str) -> String {
    format!(
        "SELECT topic, log_id, next_offset::text, schema::text, columns::text, generation::text \
         FROM public.{POSITIONS} WHERE sync = {} {only} ORDER BY topic {lock}",
        literal(sync)
    )
}

fn read_stored(rows: Vec<TextRow>) -> Result<Vec<Stored>> {
    let row = |row: Vec<Option<String>>| -> Option<Stored> {
        let mut cells = row.into_iter();
        let mut next = || cells.next().flatten();
        let (topic, log_id) = (next()?, next()?);
        let mut number = || next().map(|text| text.parse::<i64>());
        let (next_offset, copy, schema) = (number()?.ok()?, number().transpose().ok()?, number().transpose().ok()?);
        Some(Stored { topic, log_id, next_offset, copy, schema, generation: number()?.ok()? })
    };
    let malformed = || Error::corrupt(format!("table {POSITIONS} of the target is malformed"));
    rows.into_iter().map(row).collect::<Option<Vec<_>>>().ok_or_else(malformed)
}

async fn make_positions(conn: &mut PgConnection) -> Result<()> {
    let sql = format!(
        "CREATE TABLE public.{POSITIONS} (sync text NOT NULL, log_id text NOT NULL, topic text NOT NULL, \
         next_offset bigint NOT NULL, schema bigint, columns bigint, generation bigint NOT NULL, \
         PRIMARY KEY (sync, topic))"
    );
    execute(conn, "make the table of positions", sql).await
}

#[async_trait]
impl SinkConnector for PostgresServer {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        super::sink_preflight::preflight(self, sync, log_id, tables).await
    }

    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>> {
        Ok(Box::new(PostgresSink::open(self, sync, log_id).await?))
    }

    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)> {
        check_names(tables, Dialect::Postgres)?;
        let mut conn = connect(&self.server).await?;
        let doing = || format!("replace tables of target postgres://{}", self.server);
        execute(&mut conn, &doing(), "BEGIN").await?;
        let known = stored(&mut conn, sync, true).await?.is_some();
        let mut dropped = Vec::new();
        for schema in tables {
            if known {
                give_up_rows_of_others(&mut conn, sync, log_id, schema).await?;
            }
            let table = Translation::new(schema, Dialect::Postgres).table().clone();
            if table::state(&mut conn, &table).await? != Existing::No {
                table::drop_table(&mut conn, &table).await?;
                dropped.push(table.full_name());
            }
        }
        if known {
            let forget = format!("DELETE FROM public.{POSITIONS} WHERE sync = {}", literal(sync));
            execute(&mut conn, &doing(), forget).await?;
        }
        execute(&mut conn, &doing(), "COMMIT").await?;
        Ok((Box::new(PostgresSink::open(self, sync, log_id).await?), dropped))
    }

    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>> {
        let target = format!("postgres://{}", self.server);
        let mut conn = connect(&self.server).await?;
        let doing = "forget the sync's positions";
        execute(&mut conn, doing, "BEGIN").await?;
        let Some(rows) = stored(&mut conn, sync, true).await? else { return Ok(None) };
        Ledger::new(sync, log_id).check_owner(&target, &rows)?;
        execute(&mut conn, doing, format!("DELETE FROM public.{POSITIONS} WHERE sync = {}", literal(sync))).await?;
        let left = query_one(&mut conn, doing, format!("SELECT count(*)::text FROM public.{POSITIONS}")).await?;
        if left.as_deref() == Some("0") {
            execute(&mut conn, doing, format!("DROP TABLE public.{POSITIONS}")).await?;
        }
        execute(&mut conn, doing, "COMMIT").await?;
        Ok(Some(format!("target {target}: positions removed, its tables stay")))
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        SourceConnector::reader(self).await
    }
}

/// Forgets that syncs of other logs wrote a table that is about to go; refuses where one of this log does.
async fn give_up_rows_of_others(conn: &mut PgConnection, sync: &str, log_id: &str, schema: &TopicSchema) -> Result<()> {
    let doing = "read the target's positions";
    let suffix = literal(schema.topic.strip_prefix(sync).unwrap_or(&schema.topic));
    let others = format!(
        "FROM public.{POSITIONS} WHERE sync <> {} AND split_part(topic, '#', 1) = sync || {suffix}",
        literal(sync)
    );
    let sql = format!("SELECT sync {others} AND log_id = {} LIMIT 1", literal(log_id));
    if let Some(other) = query_one(conn, doing, sql).await? {
        return Err(Error::conflict(format!(
            "target table {} is written by sync {other} of this log: remove that one first",
            schema.table.full_name()
        )));
    }
    execute(conn, doing, format!("DELETE {others}")).await
}

/// An error of a statement that writes: what the server refuses about a row or a table is for a person to decide.
pub(super) fn refused(doing: &str, error: sqlx::Error) -> Error {
    let error = postgres_error(doing, error);
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound => Error::new(ErrorKind::Conflict, error.to_string()),
        _ => error,
    }
}
