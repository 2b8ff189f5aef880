//! Applies changes to tables of MariaDB and MySQL. Rows and positions are one transaction of the target, so each change
//! counts once.
//!
//! Statements that make or change tables end a transaction there, so they come before it; each can be repeated. Tables
//! are InnoDB's: other engines have no transactions, and are refused. `INSERT .. ON DUPLICATE KEY UPDATE` overwrites the
//! row of any unique index, not only the key's: a table with another unique index is written row by row, in the log's
//! order.
//!
//! A lane ([`crate::target::lanes`]) is a sink with a connection of its own that writes its part of a large batch and its
//! own place among the positions; it makes and changes no tables. It reads what is committed, for between repeatable reads
//! InnoDB locks gaps between rows, which belong to other lanes.
//!
//! # Durability
//!
//! When [`Sink::put`] returns, the transaction is committed; that it is on the disk needs
//! `innodb_flush_log_at_trx_commit = 1`, the server's default, which preflight looks at.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use mysql_async::{Conn, prelude::Queryable};

use super::{
    endpoint::{MysqlServer, connect},
    sink_positions::{locked, make_positions, read_stored, stored, writers},
    sink_table::{self as table, Prepared},
    sink_write::{self as write, literal, refused, run},
};
use crate::{
    Error, Result,
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

/// A sync's target in MariaDB or MySQL.
pub struct MysqlSink {
    server: Server,
    ledger: Ledger,
    on_existing: OnExisting,
    /// Of a lane: which it is, and the generation that it writes under.
    lane: Option<(Lane, i64)>,
    /// Gone after an error.
    session: Option<Session>,
}

/// A connection, and what is known of the server's tables on it.
pub(super) struct Session {
    pub(super) conn: Conn,
    /// The collation that compares byte by byte, spaces at the end too.
    collation: &'static str,
    /// Bytes of a statement that the server takes.
    pub(super) max_packet: usize,
    /// By the schema's number.
    prepared: HashMap<u64, Arc<Prepared>>,
    /// Whether a table got nothing but new rows since it was made, by topic.
    pub(super) filling: HashMap<String, bool>,
}

impl Session {
    async fn open(server: &Server) -> Result<Self> {
        let mut conn = connect(server).await?;
        let maria = is_mariadb(&mut conn).await?;
        let doing = "prepare a session";
        run(&mut conn, doing, "SET SESSION innodb_lock_wait_timeout = 10").await?;
        if maria {
            // Beyond a limit MariaDB makes a subquery of an IN list, and reads the whole table for it.
            run(&mut conn, doing, "SET SESSION in_predicate_conversion_threshold = 0").await?;
        }
        let packet: Option<u64> = first(&mut conn, doing, "SELECT @@max_allowed_packet").await?;
        let collations = "SELECT COLLATION_NAME FROM information_schema.COLLATIONS WHERE COLLATION_NAME IN \
                          ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin')";
        let collation: Option<String> = first(&mut conn, doing, collations).await?;
        let collation = match collation.as_deref() {
            Some("utf8mb4_nopad_bin") => "utf8mb4_nopad_bin",
            Some("utf8mb4_0900_bin") => "utf8mb4_0900_bin",
            _ => "utf8mb4_bin",
        };
        let max_packet = usize::try_from(packet.unwrap_or(1 << 20)).unwrap_or(1 << 20);
        Ok(Self { conn, collation, max_packet, prepared: HashMap::new(), filling: HashMap::new() })
    }

    /// Prepares the statements of a table that is there.
    async fn prepare(&mut self, schema: u64, translation: Translation) -> Result<Arc<Prepared>> {
        let prepared = Arc::new(table::prepare(&mut self.conn, translation).await?);
        self.prepared.insert(schema, Arc::clone(&prepared));
        Ok(prepared)
    }

    fn tables(&mut self) -> MysqlTables<'_> {
        MysqlTables { conn: &mut self.conn, collation: self.collation }
    }
}

/// The target's tables on a connection of the sink.
struct MysqlTables<'a> {
    conn: &'a mut Conn,
    collation: &'static str,
}

#[async_trait]
impl Tables for MysqlTables<'_> {
    const DIALECT: Dialect = Dialect::Mysql;

    async fn inspect(&mut self, table: &TableSchema) -> Result<Option<TableSchema>> {
        Ok(table::inspect(self.conn, table).await?.map(|found| found.table))
    }

    async fn state(&mut self, table: &TableSchema) -> Result<Existing> {
        table::state(self.conn, table).await
    }

    async fn unfit(&mut self, table: &TableSchema) -> Result<Option<String>> {
        table::unfit(self.conn, table).await
    }

    async fn create(&mut self, table: &TableSchema) -> Result<()> {
        table::create(self.conn, table, self.collation).await
    }

    async fn drop_table(&mut self, table: &TableSchema) -> Result<()> {
        table::drop_table(self.conn, table).await
    }

    async fn evolve(&mut self, table: &TableSchema) -> Result<()> {
        table::evolve(self.conn, table).await
    }

    async fn writers(&mut self) -> Result<Vec<Writer>> {
        writers(self.conn).await
    }

    async fn forget(&mut self, sync: &str, topic: &str) -> Result<()> {
        let forget = format!(
            "DELETE FROM {POSITIONS} WHERE sync = {} AND SUBSTRING_INDEX(topic, '#', 1) = {}",
            literal(sync),
            literal(topic)
        );
        run(self.conn, "forget who wrote a table", forget).await
    }
}

async fn is_mariadb(conn: &mut Conn) -> Result<bool> {
    let version: Option<String> = first(conn, "prepare a session", "SELECT VERSION()").await?;
    Ok(version.is_some_and(|version| version.contains("MariaDB")))
}

/// The first value of a query.
pub(super) async fn first<T>(conn: &mut Conn, doing: &str, sql: &str) -> Result<Option<T>>
where
    T: mysql_async::prelude::FromRow + Send + 'static,
{
    conn.query_first(sql).await.map_err(|e| refused(doing, &e))
}

impl MysqlSink {
    pub(super) async fn open(to: &MysqlServer, sync: &str, log_id: &str) -> Result<Self> {
        let (server, ledger) = (to.server.clone(), Ledger::new(sync, log_id));
        let mut sink = Self { server, ledger, on_existing: to.on_existing, lane: None, session: None };
        let mut session = Session::open(&sink.server).await?;
        let rows = stored(&mut session.conn, sync, false).await?.unwrap_or_default();
        sink.ledger.check_owner(&sink.target(), &rows)?;
        sink.session = Some(session);
        Ok(sink)
    }

    fn target(&self) -> String {
        format!("mysql://{}", self.server)
    }

    async fn session(&mut self) -> Result<Session> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => Session::open(&self.server).await,
        }
    }

    /// Makes the tables, then applies in one transaction. The session is of no use after an error.
    async fn apply(
        &mut self,
        session: &mut Session,
        changes: Vec<TopicChanges>,
        next_offsets: &[(String, i64)],
    ) -> Result<()> {
        let target = self.target();
        let mut known: HashMap<String, Stored> = HashMap::new();
        let unprepared = changes.iter().any(|changes| !session.prepared.contains_key(&changes.schema.id));
        if unprepared {
            let rows = match locked(&mut session.conn, self.ledger.sync()).await? {
                Some(rows) => rows,
                None => {
                    make_positions(&mut session.conn).await?;
                    Vec::new()
                }
            };
            // Who may not write the positions may not change the tables either.
            if self.ledger.begin(&target, &rows, next_offsets)? == Turn::Done {
                self.ledger.committed(next_offsets);
                return Ok(());
            }
            known = rows.into_iter().filter(|row| !is_lane(row)).map(|row| (row.topic.clone(), row)).collect();
            for changes in &changes {
                self.prepare(session, &mut known, &changes.schema).await?;
            }
        }
        run(&mut session.conn, "begin", "START TRANSACTION").await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), true).await?.unwrap_or_default();
        let generation = match self.ledger.begin(&target, &rows, next_offsets)? {
            Turn::Done => {
                run(&mut session.conn, "roll back", "ROLLBACK").await?;
                self.ledger.committed(next_offsets);
                return Ok(());
            }
            Turn::Apply { generation } => generation,
        };
        self.ledger.settled(&rows);
        let rows = rows.into_iter().filter(|row| !is_lane(row));
        let mut rows: HashMap<String, Stored> = rows.map(|row| (row.topic.clone(), row)).collect();
        for (topic, row) in known {
            let next_offset = rows.get(&topic).map_or(0, |row| row.next_offset);
            rows.insert(topic, Stored { next_offset, ..row });
        }
        for TopicChanges { schema, changes } in changes {
            let Some(prepared) = session.prepared.get(&schema.id).map(Arc::clone) else {
                return Err(Error::internal("a table is prepared before its changes"));
            };
            if changes.is_empty() {
                continue;
            }
            let steps = fold::steps(&schema, &prepared.translation, changes)?;
            write::apply(session, &schema, &prepared, steps).await?;
        }
        self.store(session, &self.ledger.rows_to_store(&rows, next_offsets, generation)).await?;
        self.ledger.committing(next_offsets);
        run(&mut session.conn, "commit", "COMMIT").await?;
        self.ledger.committed(next_offsets);
        Ok(())
    }

    /// Makes the topic's table be there with this schema.
    async fn prepare(
        &self,
        session: &mut Session,
        rows: &mut HashMap<String, Stored>,
        schema: &TopicSchema,
    ) -> Result<()> {
        if session.prepared.contains_key(&schema.id) {
            return Ok(());
        }
        let translation = Translation::new(schema, Dialect::Mysql);
        let (target, stored) = (self.target(), rows.get(&schema.topic));
        let (row, empty) = self.owner(&target).make_ready(&mut session.tables(), stored, schema, &translation).await?;
        rows.insert(schema.topic.clone(), row);
        session.prepare(schema.id, translation).await?;
        session.filling.entry(schema.topic.clone()).or_insert(empty);
        Ok(())
    }

    fn owner<'a>(&'a self, target: &'a str) -> Owner<'a> {
        Owner { target, ledger: &self.ledger, on_existing: self.on_existing }
    }

    /// As [`Self::apply`], in a lane.
    async fn apply_in_lane(
        &self,
        session: &mut Session,
        (lane, generation): (Lane, i64),
        changes: Vec<TopicChanges>,
        next_offsets: &[(String, i64)],
    ) -> Result<()> {
        let topics: Vec<_> = next_offsets.iter().map(|(topic, _)| literal(topic)).collect();
        let only = format!("AND topic IN ({}) LOCK IN SHARE MODE", topics.join(","));
        run(&mut session.conn, "begin", "START TRANSACTION").await?;
        let rows = read_stored(&mut session.conn, self.ledger.sync(), &only).await?;
        self.ledger.check_lane(&self.target(), &rows, topics.len(), generation)?;
        for TopicChanges { schema, changes } in changes {
            let prepared = match session.prepared.get(&schema.id) {
                Some(prepared) => Arc::clone(prepared),
                None => session.prepare(schema.id, Translation::new(&schema, Dialect::Mysql)).await?,
            };
            let steps = fold::steps(&schema, &prepared.translation, changes)?;
            write::apply(session, &schema, &prepared, steps).await?;
        }
        self.store(session, &lane.rows(&rows, next_offsets, generation)).await?;
        run(&mut session.conn, "commit", "COMMIT").await
    }

    /// Writes rows of the table of positions.
    async fn store(&self, session: &mut Session, rows: &[Stored]) -> Result<()> {
        let values = self.ledger.values_sql(rows, literal);
        if values.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "INSERT INTO {POSITIONS} (sync, log_id, topic, next_offset, `schema`, `columns`, generation) VALUES {values} \
             ON DUPLICATE KEY UPDATE next_offset = VALUES(next_offset), `schema` = VALUES(`schema`), \
             `columns` = VALUES(`columns`), generation = VALUES(generation)"
        );
        run(&mut session.conn, "write the target's positions", sql).await
    }
}

#[async_trait]
impl Sink for MysqlSink {
    async fn positions(&mut self) -> Result<Positions> {
        let mut session = self.session().await?;
        let rows = locked(&mut session.conn, self.ledger.sync()).await?.unwrap_or_default();
        self.session = Some(session);
        self.ledger.check_owner(&self.target(), &rows)?;
        Ok(self.ledger.read(&rows))
    }

    async fn check(&mut self, tables: &[TopicSchema]) -> Result<()> {
        check_names(tables, Dialect::Mysql)?;
        let mut session = self.session().await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), false).await?.unwrap_or_default();
        let tables: Vec<_> = tables.iter().map(|s| (s.topic.as_str(), Translation::new(s, Dialect::Mysql))).collect();
        let target = self.target();
        let checked = self.owner(&target).check(&mut session.tables(), &tables, &rows).await;
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
            !prepared.other_unique && keys_are_exact(prepared.translation.table(), prepared.exact_text)
        })
    }

    async fn lane(&mut self, lane: Lane) -> Result<Box<dyn Sink>> {
        let Some(generation) = self.ledger.generation() else {
            return Err(Error::internal("a lane is opened beside a sink that has written"));
        };
        let mut session = Session::open(&self.server).await?;
        let statements = "SELECT @@log_bin = 1 AND @@binlog_format = 'STATEMENT'";
        let statements: Option<u8> = first(&mut session.conn, "open a lane", statements).await?;
        if statements == Some(1) {
            return Err(Error::unsupported("the target logs statements, and these need repeatable reads"));
        }
        let level = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED";
        run(&mut session.conn, "open a lane", level).await?;
        Ok(Box::new(Self {
            server: self.server.clone(),
            ledger: Ledger::new(self.ledger.sync(), self.ledger.log_id()),
            on_existing: self.on_existing,
            lane: Some((lane, generation)),
            session: Some(session),
        }))
    }
}
