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

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use mysql_async::{Conn, prelude::Queryable};

use super::{
    endpoint::{MysqlServer, connect},
    sink_table::{self as table, Prepared},
    sink_write::{self as write, literal, refused, run},
};
use crate::{
    Error, Result,
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
    async fn open(to: &MysqlServer, sync: &str, log_id: &str) -> Result<Self> {
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
            let rows = match stored(&mut session.conn, self.ledger.sync(), false).await? {
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
        self.write_positions(session, &rows, next_offsets, generation).await?;
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
        let wanted = translation.table().clone();
        let conn = &mut session.conn;
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
                table::create(conn, &wanted, session.collation).await?;
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
        let prepared = Arc::new(table::prepare(conn, translation).await?);
        session.filling.entry(schema.topic.clone()).or_insert(filling);
        session.prepared.insert(schema.id, prepared);
        Ok(())
    }

    /// Makes room for a table that the sync does not own yet, or finds that what is there may stay.
    async fn take_over(&self, conn: &mut Conn, schema: &TopicSchema, translation: &Translation) -> Result<()> {
        let tables = [(schema.topic.clone(), translation.clone())];
        check_tables(conn, &self.target(), (&self.ledger, self.on_existing), &tables, &[]).await?;
        if self.on_existing != OnExisting::Replace {
            return Ok(());
        }
        // What is left of writers are those of other logs.
        let writers = writers(conn).await?;
        for other in existing::same_table(Dialect::Mysql, (self.ledger.sync(), &schema.topic), &writers) {
            let forget = format!(
                "DELETE FROM {POSITIONS} WHERE sync = {} AND SUBSTRING_INDEX(topic, '#', 1) = {}",
                literal(&other.sync),
                literal(&other.topic)
            );
            run(conn, "forget who wrote a table", forget).await?;
        }
        table::drop_table(conn, translation.table()).await
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
                None => {
                    let translation = Translation::new(&schema, Dialect::Mysql);
                    let prepared = Arc::new(table::prepare(&mut session.conn, translation).await?);
                    session.prepared.insert(schema.id, Arc::clone(&prepared));
                    prepared
                }
            };
            let steps = fold::steps(&schema, &prepared.translation, changes)?;
            write::apply(session, &schema, &prepared, steps).await?;
        }
        let own = lane.rows(&rows, next_offsets, generation);
        self.store(session, own.into_iter()).await?;
        run(&mut session.conn, "commit", "COMMIT").await
    }

    async fn write_positions(
        &self,
        session: &mut Session,
        rows: &HashMap<String, Stored>,
        next_offsets: &[(String, i64)],
        generation: i64,
    ) -> Result<()> {
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
        self.store(session, next.into_iter().map(row)).await
    }

    /// Writes rows of the table of positions.
    async fn store(&self, session: &mut Session, rows: impl Iterator<Item = Stored> + Send) -> Result<()> {
        let sync = literal(self.ledger.sync());
        let number = |number: Option<i64>| number.map_or("NULL".into(), |number| number.to_string());
        let values = rows.map(|row| {
            let (log_id, topic) = (literal(&row.log_id), literal(&row.topic));
            let (copy, schema) = (number(row.copy), number(row.schema));
            format!("({sync},{log_id},{topic},{},{copy},{schema},{})", row.next_offset, row.generation)
        });
        let values = values.collect::<Vec<_>>().join(",");
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
        run(&mut session.conn, "read the target's positions", "START TRANSACTION").await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), true).await?.unwrap_or_default();
        run(&mut session.conn, "read the target's positions", "COMMIT").await?;
        self.session = Some(session);
        self.ledger.check_owner(&self.target(), &rows)?;
        Ok(self.ledger.read(&rows))
    }

    async fn check(&mut self, tables: &[TopicSchema]) -> Result<()> {
        check_names(tables, Dialect::Mysql)?;
        let mut session = self.session().await?;
        let rows = stored(&mut session.conn, self.ledger.sync(), false).await?.unwrap_or_default();
        let tables: Vec<_> = tables.iter().map(|s| (s.topic.clone(), Translation::new(s, Dialect::Mysql))).collect();
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

/// Refuses tables that hold rows of others, or are empty but of another shape.
async fn check_tables(
    conn: &mut Conn,
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
            refuse_written(on_existing, ledger.log_id(), Dialect::Mysql, own, wanted, &writers)?;
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
pub(super) async fn writers(conn: &mut Conn) -> Result<Vec<Writer>> {
    let doing = "read the target's positions";
    let exists = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{POSITIONS}'"
    );
    let exists: Option<u8> = first(conn, doing, &exists).await?;
    if exists.is_none() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT sync, log_id, topic FROM {POSITIONS} WHERE `schema` IS NOT NULL");
    let rows: Vec<(String, String, String)> = conn.query(sql).await.map_err(|e| refused(doing, &e))?;
    Ok(rows.into_iter().map(|(sync, log_id, topic)| Writer { sync, log_id, topic }).collect())
}

/// The sync's rows of the table of positions, locked where asked; `None` without the table.
pub(super) async fn stored(conn: &mut Conn, sync: &str, lock: bool) -> Result<Option<Vec<Stored>>> {
    let doing = "read the target's positions";
    let exists = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = '{POSITIONS}'"
    );
    let exists: Option<u8> = first(conn, doing, &exists).await?;
    if exists.is_none() {
        return Ok(None);
    }
    read_stored(conn, sync, if lock { "FOR UPDATE" } else { "" }).await.map(Some)
}

/// Reads the sync's rows of the table of positions; `rest` says which, and their lock.
async fn read_stored(conn: &mut Conn, sync: &str, rest: &str) -> Result<Vec<Stored>> {
    let sql = format!(
        "SELECT topic, log_id, next_offset, `schema`, `columns`, generation FROM {POSITIONS} WHERE sync = {} {rest}",
        literal(sync)
    );
    type Cells = (String, String, i64, Option<i64>, Option<i64>, i64);
    let rows: Vec<Cells> = conn.query(sql).await.map_err(|e| refused("read the target's positions", &e))?;
    let row = |(topic, log_id, next_offset, copy, schema, generation): Cells| Stored {
        topic,
        log_id,
        next_offset,
        copy,
        schema,
        generation,
    };
    Ok(rows.into_iter().map(row).collect())
}

async fn make_positions(conn: &mut Conn) -> Result<()> {
    // A key of InnoDB has at most 3072 bytes, and a character counts as four of them.
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {POSITIONS} (sync varchar(128) NOT NULL, log_id varchar(128) NOT NULL, \
         topic varchar(512) NOT NULL, next_offset bigint NOT NULL, `schema` bigint, `columns` bigint, \
         generation bigint NOT NULL, PRIMARY KEY (sync, topic)) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 \
         COLLATE = utf8mb4_bin"
    );
    run(conn, "make the table of positions", sql).await
}

#[async_trait]
impl SinkConnector for MysqlServer {
    fn dialect(&self) -> Dialect {
        Dialect::Mysql
    }

    async fn preflight(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<Vec<Finding>> {
        super::sink_preflight::preflight(self, sync, log_id, tables).await
    }

    async fn open(&self, sync: &str, log_id: &str) -> Result<Box<dyn Sink>> {
        Ok(Box::new(MysqlSink::open(self, sync, log_id).await?))
    }

    async fn replace(&self, sync: &str, log_id: &str, tables: &[TopicSchema]) -> Result<(Box<dyn Sink>, Vec<String>)> {
        check_names(tables, Dialect::Mysql)?;
        let mut conn = connect(&self.server).await?;
        let known = stored(&mut conn, sync, false).await?.is_some();
        // Dropping a table ends a transaction: whether all may go is looked at first, and positions go before tables.
        for schema in tables.iter().filter(|_| known) {
            give_up_rows_of_others(&mut conn, sync, log_id, schema, false).await?;
        }
        let mut present = Vec::new();
        for schema in tables {
            let table = Translation::new(schema, Dialect::Mysql).table().clone();
            if table::state(&mut conn, &table).await? != Existing::No {
                present.push(table);
            }
        }
        if known {
            for schema in tables {
                give_up_rows_of_others(&mut conn, sync, log_id, schema, true).await?;
            }
            let forget = format!("DELETE FROM {POSITIONS} WHERE sync = {}", literal(sync));
            run(&mut conn, "forget the sync's positions", forget).await?;
        }
        for table in &present {
            table::drop_table(&mut conn, table).await?;
        }
        let dropped = present.iter().map(|table| table.name.clone()).collect();
        Ok((Box::new(MysqlSink::open(self, sync, log_id).await?), dropped))
    }

    async fn forget(&self, sync: &str, log_id: &str) -> Result<Option<String>> {
        let target = format!("mysql://{}", self.server);
        let mut conn = connect(&self.server).await?;
        let doing = "forget the sync's positions";
        let Some(rows) = stored(&mut conn, sync, false).await? else { return Ok(None) };
        Ledger::new(sync, log_id).check_owner(&target, &rows)?;
        run(&mut conn, doing, format!("DELETE FROM {POSITIONS} WHERE sync = {}", literal(sync))).await?;
        let left: Option<u8> = first(&mut conn, doing, &format!("SELECT 1 FROM {POSITIONS} LIMIT 1")).await?;
        if left.is_none() {
            run(&mut conn, doing, format!("DROP TABLE {POSITIONS}")).await?;
        }
        Ok(Some(format!("target {target}: positions removed, its tables stay")))
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        SourceConnector::reader(self).await
    }
}

/// Refuses where another sync of this log writes a table that is about to go; if `forget`, forgets that syncs of other
/// logs did.
async fn give_up_rows_of_others(
    conn: &mut Conn,
    sync: &str,
    log_id: &str,
    schema: &TopicSchema,
    forget: bool,
) -> Result<()> {
    let doing = "read the target's positions";
    let suffix = literal(schema.topic.strip_prefix(sync).unwrap_or(&schema.topic));
    let others = format!(
        "FROM {POSITIONS} WHERE sync <> {} AND SUBSTRING_INDEX(topic, '#', 1) = CONCAT(sync, {suffix})",
        literal(sync)
    );
    let sql = format!("SELECT sync {others} AND log_id = {} LIMIT 1", literal(log_id));
    let other: Option<String> = first(conn, doing, &sql).await?;
    if let Some(other) = other {
        return Err(Error::conflict(format!(
            "target table {} is written by sync {other} of this log: remove that one first",
            schema.table.full_name()
        )));
    }
    match forget {
        true => run(conn, doing, format!("DELETE {others}")).await,
        false => Ok(()),
    }
}
