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
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use sqlx::PgConnection;

use super::{
    endpoint::{PostgresServer, connect, execute, literal, postgres_error, query_one},
    sink_positions::{begin_sql, make_positions, read_locked, stored, stored_sql, writers},
    sink_table::{self as table, Prepared},
    sink_write as write,
};
use crate::{
    Error, ErrorKind, Result,
    change::TableSchema,
    connector::{Sink, TopicChanges},
    converter::TopicSchema,
    endpoint::Server,
    target::{
        Existing, POSITIONS,
        existing::{OnExisting, Writer},
        fold,
        lanes::{Lane, Positions, is_lane, keys_are_exact},
        ledger::{Ledger, Stored, Turn},
        tables::{Owner, Tables},
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
    pub(super) async fn open(to: &PostgresServer, sync: &str, log_id: &str) -> Result<Self> {
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
            let end = (number + 1 == count)
                .then(|| self.end_sql(&self.ledger.rows_to_store(&rows, next_offsets, generation)));
            if end.is_some() {
                self.ledger.committing(next_offsets);
            }
            ended = write::apply(session, &schema, &prepared, steps, end.as_deref()).await?;
        }
        if !ended {
            let end = self.end_sql(&self.ledger.rows_to_store(&rows, next_offsets, generation));
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
        let end = self.end_sql(&lane.rows(&rows, next_offsets, generation));
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
        let (target, stored) = (self.target(), rows.get(&schema.topic));
        let (row, empty) = self
            .owner(&target)
            .make_ready(&mut PostgresTables(&mut session.conn), stored, schema, &translation)
            .await?;
        rows.insert(schema.topic.clone(), row);
        let prepared = session.prepare(schema.id, translation).await?;
        session.filling.begin(&schema.topic, empty);
        Ok(prepared)
    }

    fn owner<'a>(&'a self, target: &'a str) -> Owner<'a> {
        Owner { target, ledger: &self.ledger, on_existing: self.on_existing }
    }

    /// Writes rows of the table of positions and commits.
    fn end_sql(&self, rows: &[Stored]) -> String {
        let values = self.ledger.values_sql(rows, literal);
        if values.is_empty() {
            return "COMMIT".into();
        }
        format!(
            "INSERT INTO public.{POSITIONS} (sync, log_id, topic, next_offset, schema, columns, generation) \
             VALUES {values} ON CONFLICT (sync, topic) DO UPDATE SET next_offset = EXCLUDED.next_offset, \
             schema = EXCLUDED.schema, columns = EXCLUDED.columns, generation = EXCLUDED.generation; COMMIT"
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
        let tables: Vec<_> =
            tables.iter().map(|s| (s.topic.as_str(), Translation::new(s, Dialect::Postgres))).collect();
        let target = self.target();
        let checked = self.owner(&target).check(&mut PostgresTables(&mut session.conn), &tables, &rows).await;
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

/// The target's tables on a connection of the sink.
struct PostgresTables<'a>(&'a mut PgConnection);

#[async_trait]
impl Tables for PostgresTables<'_> {
    const DIALECT: Dialect = Dialect::Postgres;

    async fn inspect(&mut self, table: &TableSchema) -> Result<Option<TableSchema>> {
        Ok(table::inspect(self.0, table).await?.map(|found| found.table))
    }

    async fn state(&mut self, table: &TableSchema) -> Result<Existing> {
        table::state(self.0, table).await
    }

    async fn unfit(&mut self, table: &TableSchema) -> Result<Option<String>> {
        table::unfit(self.0, table).await
    }

    async fn create(&mut self, table: &TableSchema) -> Result<()> {
        table::create(self.0, table).await
    }

    async fn drop_table(&mut self, table: &TableSchema) -> Result<()> {
        table::drop_table(self.0, table).await
    }

    async fn evolve(&mut self, table: &TableSchema) -> Result<()> {
        table::evolve(self.0, table).await
    }

    async fn writers(&mut self) -> Result<Vec<Writer>> {
        writers(self.0).await
    }

    async fn forget(&mut self, sync: &str, topic: &str) -> Result<()> {
        let forget = format!(
            "DELETE FROM public.{POSITIONS} WHERE sync = {} AND split_part(topic, '#', 1) = {}",
            literal(sync),
            literal(topic)
        );
        execute(self.0, "forget who wrote a table", forget).await
    }
}

/// An error of a statement that writes: what the server refuses about a row or a table is for a person to decide.
pub(super) fn refused(doing: &str, error: sqlx::Error) -> Error {
    let error = postgres_error(doing, error);
    match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound => Error::new(ErrorKind::Conflict, error.to_string()),
        _ => error,
    }
}
