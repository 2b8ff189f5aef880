//! Follows a database: the stream's transactions in the order of their commits, with the copy's rows between them.
//!
//! What was given out is never given out again by the same source: after a cut connection it goes on behind the last
//! message about a row that it took, which a transaction's commit and a count within it tell.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pgwire_replication::client::ReplicationEvent;
use sqlx::PgConnection;

use super::{
    copy::{Copier, PREFIX, Piece},
    endpoint::{connect, query_one},
    lookup::find_rows,
    pgoutput::{self, Message, Old, Relation, Tuple},
    position::{CopyState, Lsn, Partial, STREAM_PART, StreamPosition, TablePosition, encode, table_part},
    shape::{Fit, Followed, TypeNames, fills, fit},
    stop::Stop,
    stream::Stream,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op, Row, StoredValue, TableSchema, Value},
    connector::{Polled, Source, TableState},
    endpoint::Server,
};

/// What a poll gives at most.
const MAX_CHANGES: usize = 2_000;
const MAX_BYTES: usize = 4 << 20;
/// How long a poll waits for something to happen.
const WAIT: Duration = Duration::from_millis(100);
/// How often the position moves on when nothing happens to the tables.
const IDLE_ADVANCE: Duration = Duration::from_secs(10);
/// Between polls that found nothing: callers look up.
const BREATH: Duration = Duration::from_millis(1);

/// A transaction being delivered.
struct Transaction {
    commit: Lsn,
    xid: u32,
    /// Messages about rows so far.
    seen: u64,
    /// How many of them were delivered before the connection was made.
    skip: u64,
}

/// What the stream said of a table in this session.
struct Described {
    relation: Relation,
    table: Option<usize>,
    /// Where the table's columns are, once compared with what is known of it.
    places: Option<Vec<usize>>,
}

/// What a poll has found so far.
#[derive(Default)]
struct Batch {
    polled: Polled,
    bytes: usize,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.has_no_changes() && self.polled.truncated.is_empty() && self.polled.evolved.is_empty()
    }

    fn has_no_changes(&self) -> bool {
        self.polled.changes.is_empty() && self.polled.finished_tables.is_empty()
    }

    fn is_full(&self) -> bool {
        self.polled.changes.len() >= MAX_CHANGES || self.bytes >= MAX_BYTES
    }

    fn push(&mut self, change: Change) {
        let rows = [&change.before, &change.after];
        self.bytes += rows.into_iter().flatten().flatten().map(size_of_value).sum::<usize>();
        self.polled.changes.push(change);
    }
}

fn size_of_value(value: &Value) -> usize {
    16 + match value {
        Value::Text(text) => text.len(),
        Value::Blob(bytes) | Value::InvalidText(bytes) => bytes.len(),
        _ => 0,
    }
}

/// Whether an event was taken, or must begin the next poll.
#[derive(PartialEq)]
enum Taken {
    Yes,
    NotYet,
}

/// A PostgreSQL database that is followed.
pub struct PostgresSource {
    pub(super) server: Server,
    pub(super) side: Option<PgConnection>,
    pub(super) stream: Option<Stream>,
    /// Behind everything that was taken.
    pub(super) position: StreamPosition,
    /// The place that the last poll told.
    pub(super) told: Lsn,
    pub(super) told_at: Instant,
    /// The place that the log has.
    pub(super) durable: Lsn,
    pub(super) tables: Vec<Followed>,
    /// Tables of the stored position that are followed no more.
    pub(super) forgotten: Vec<String>,
    pub(super) copier: Copier,
    /// Where a bounded source ends.
    pub(super) end: Option<Lsn>,
    session: Session,
    /// An event that must begin a poll.
    held: Option<ReplicationEvent>,
    /// What was found but could not be completed.
    unsent: Option<Batch>,
}

/// What holds for one connection only.
#[derive(Default)]
struct Session {
    described: HashMap<u32, Described>,
    types: TypeNames,
    transaction: Option<Transaction>,
}

/// What a source is made of.
pub(super) struct Parts {
    pub(super) server: Server,
    pub(super) side: PgConnection,
    pub(super) stream: Stream,
    pub(super) position: StreamPosition,
    pub(super) tables: Vec<Followed>,
    pub(super) forgotten: Vec<String>,
    pub(super) copier: Copier,
    pub(super) end: Option<Lsn>,
}

impl PostgresSource {
    pub(super) fn new(parts: Parts) -> Self {
        let lsn = parts.position.lsn;
        Self {
            server: parts.server,
            side: Some(parts.side),
            stream: Some(parts.stream),
            position: parts.position,
            told: lsn,
            told_at: Instant::now(),
            durable: lsn,
            tables: parts.tables,
            forgotten: parts.forgotten,
            copier: parts.copier,
            end: parts.end,
            session: Session::default(),
            held: None,
            unsent: None,
        }
    }

    /// Turns off what keeps rows of the copy from undoing newer changes: for a test that shows the need of it.
    #[doc(hidden)]
    pub fn be_careless(&mut self) {
        self.copier.careless = true;
    }

    /// Behind which place of the server's log everything is given out; for status displays.
    pub fn place(&self) -> u64 {
        self.position.lsn.0
    }

    /// Makes the connections that are missing.
    async fn open(&mut self) -> Result<()> {
        if self.side.is_none() {
            self.side = Some(connect(&self.server).await?);
        }
        if self.stream.is_none()
            && let Some(side) = &mut self.side
        {
            (self.session, self.held) = (Session::default(), None);
            let resumed = Stream::resume(&self.server, side, &self.position, self.durable, false).await;
            self.stream = Some(resumed.inspect_err(|_| self.side = None)?);
        }
        Ok(())
    }

    /// Reads on until there is enough, or nothing more.
    async fn fill(&mut self) -> Result<Batch> {
        self.open().await?;
        let mut batch = Batch::default();
        if self.copier.is_ready() {
            self.emit_copy(&mut batch);
            return Ok(batch);
        }
        self.advance_copy().await?;
        let deadline = Instant::now() + WAIT;
        while !batch.is_full() && !self.copier.is_ready() {
            let event = match self.held.take() {
                Some(event) => event,
                None => match self.receive(&batch, deadline).await? {
                    Some(event) => event,
                    None => return Ok(batch),
                },
            };
            match self.take(&event, &mut batch).await {
                Ok(Taken::Yes) => {}
                Ok(Taken::NotYet) => {
                    self.held = Some(event);
                    break;
                }
                Err(error) => {
                    // What came before is given out first; the error comes again.
                    self.held = Some(event);
                    if error.kind() == ErrorKind::Unavailable {
                        self.side = None;
                    }
                    if batch.is_empty() {
                        return Err(error);
                    }
                    break;
                }
            }
            if batch.is_empty() && Instant::now() >= deadline {
                break;
            }
        }
        batch.polled.more = true;
        Ok(batch)
    }

    /// The stream's next event; the first is waited for.
    async fn receive(&mut self, batch: &Batch, deadline: Instant) -> Result<Option<ReplicationEvent>> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let wait = if batch.is_empty() { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        match stream.next(wait, &self.position.slot).await {
            Err(error) => {
                self.stream = None;
                if batch.is_empty() { Err(error) } else { Ok(None) }
            }
            other => other,
        }
    }

    /// Lets the copy of the first table that needs it go on.
    async fn advance_copy(&mut self) -> Result<()> {
        let Some(at) = self.tables.iter().position(|table| table.copy != CopyState::Done) else { return Ok(()) };
        let table = &self.tables[at];
        let after: Option<Row> = match &table.copy {
            CopyState::After(key) => Some(key.iter().map(Value::from).collect()),
            _ => None,
        };
        let fetched = self.copier.fetch(&mut self.side, at, &table.schema, after.as_deref()).await;
        fetched.map_err(|error| {
            self.side = None;
            match error.kind() {
                // The statement names columns that are no more.
                ErrorKind::Invalid => Stop::Columns { table: table.schema.full_name(), what: error.to_string() }.into(),
                ErrorKind::NotFound => Stop::TableGone(table.schema.full_name()).into(),
                _ => error,
            }
        })
    }

    fn emit_copy(&mut self, batch: &mut Batch) {
        let mut last: Option<(usize, Row)> = None;
        while !batch.is_full()
            && let Some((table, piece)) = self.copier.next()
        {
            match piece {
                Piece::Passed(key) => last = Some((table, key)),
                Piece::Row(row) => {
                    let key = self.tables[table].schema.key_of(&row);
                    last = Some((table, key.clone()));
                    batch.push(Change { table, op: Op::Read, key, before: None, after: Some(row), sequence: 0 });
                }
                Piece::End => {
                    last = None;
                    self.tables[table].copy = CopyState::Done;
                    self.tables[table].changed = true;
                    batch.polled.finished_tables.push(table);
                }
            }
        }
        if let Some((table, key)) = last {
            self.tables[table].copy = CopyState::After(key.iter().map(StoredValue::from).collect());
            self.tables[table].changed = true;
        }
        batch.polled.more = true;
    }

    async fn take(&mut self, event: &ReplicationEvent, batch: &mut Batch) -> Result<Taken> {
        match event {
            ReplicationEvent::Begin { final_lsn, xid, .. } => {
                let commit = Lsn(final_lsn.as_u64());
                let skip = match self.position.partial {
                    _ if commit < self.position.lsn => u64::MAX,
                    Some(partial) if partial.commit == commit => partial.delivered,
                    _ => 0,
                };
                self.session.transaction = Some(Transaction { commit, xid: *xid, seen: 0, skip });
            }
            ReplicationEvent::Commit { lsn, end_lsn, .. } => {
                self.session.transaction = None;
                self.position.lsn = self.position.lsn.max(Lsn(end_lsn.as_u64()));
                self.position.partial.take_if(|partial| partial.commit.0 <= lsn.as_u64());
            }
            ReplicationEvent::KeepAlive { wal_end, .. } => {
                if self.session.transaction.is_none() && self.position.partial.is_none() {
                    self.position.lsn = self.position.lsn.max(Lsn(wal_end.as_u64()));
                }
            }
            ReplicationEvent::Message { prefix, content, .. } if prefix == PREFIX => {
                let tables = &self.tables;
                self.copier.message(content, |table| tables[table].schema.clone());
            }
            ReplicationEvent::XLogData { data, .. } => return self.take_data(pgoutput::decode(data)?, batch).await,
            ReplicationEvent::Message { .. } | ReplicationEvent::StoppedAt { .. } => {}
        }
        Ok(Taken::Yes)
    }

    async fn take_data(&mut self, message: Message, batch: &mut Batch) -> Result<Taken> {
        let relation = match &message {
            Message::Other => return Ok(Taken::Yes),
            Message::Relation(relation) => {
                self.describe(relation.clone());
                return Ok(Taken::Yes);
            }
            Message::Truncate { .. } => None,
            Message::Insert { relation, .. } | Message::Update { relation, .. } | Message::Delete { relation, .. } => {
                Some(*relation)
            }
        };
        let Some(transaction) = &self.session.transaction else {
            return Err(Error::corrupt("the stream brought a row outside of a transaction"));
        };
        let (commit, xid, seen) = (transaction.commit, transaction.xid, transaction.seen + 1);
        if seen > transaction.skip {
            let taken = match relation {
                None => self.take_truncate(&message, xid, commit, batch),
                Some(relation) => self.take_row(relation, message, xid, commit, batch).await?,
            };
            if taken == Taken::NotYet {
                return Ok(taken);
            }
            self.position.partial = Some(Partial { commit, delivered: seen });
        }
        if let Some(transaction) = &mut self.session.transaction {
            transaction.seen = seen;
        }
        Ok(Taken::Yes)
    }

    fn describe(&mut self, relation: Relation) {
        let is_it = |table: &Followed| {
            table.schema.schema.as_deref() == Some(relation.schema.as_str()) && table.schema.name == relation.name
        };
        let table = self.tables.iter().position(is_it);
        self.session.described.insert(relation.id, Described { relation, table, places: None });
    }

    fn take_truncate(&mut self, message: &Message, xid: u32, commit: Lsn, batch: &mut Batch) -> Taken {
        let Message::Truncate { relations } = message else { return Taken::Yes };
        let tables = relations.iter().filter_map(|id| self.session.described.get(id)?.table);
        let tables: Vec<usize> = tables.filter(|table| self.tables[*table].wants(commit)).collect();
        if !tables.is_empty() && !batch.has_no_changes() {
            return Taken::NotYet;
        }
        for table in tables {
            if self.tables[table].copy != CopyState::Done {
                self.copier.touch(xid, table, None);
            }
            batch.polled.truncated.push(table);
        }
        Taken::Yes
    }

    /// Compares what the stream says of a table with what is known, when the first row comes.
    async fn resolve(&mut self, id: u32, commit: Lsn, batch: &mut Batch) -> Result<Option<Taken>> {
        let described = self.session.described.get(&id);
        let described = described.ok_or_else(|| Error::corrupt("the stream brought a row of no known table"))?;
        let table = described.table.filter(|table| self.tables[*table].wants(commit));
        let Some(table) = table else { return Ok(Some(Taken::Yes)) };
        if described.places.is_some() {
            return Ok(None);
        }
        let Some(side) = &mut self.side else { return Err(Error::unavailable("the connection is gone")) };
        self.session.types.learn(side, &described.relation.columns).await?;
        let mut fitted = fit(&self.tables[table].schema, &described.relation, &self.session.types)?;
        if let Fit::Evolved(schema) = fitted {
            if !batch.is_empty() {
                return Ok(Some(Taken::NotYet));
            }
            let again = fills(side, &self.tables[table].schema, &schema).await?;
            if again {
                self.tables[table].copy = CopyState::NotStarted;
            }
            if again || self.tables[table].copy != CopyState::Done {
                // Rows that were read for the copy have the columns of before.
                self.copier.begin_again();
            }
            self.tables[table].reshape(schema.clone());
            batch.polled.evolved.push((table, schema));
            fitted = fit(&self.tables[table].schema, &described.relation, &self.session.types)?;
        }
        if let (Fit::Same(places), Some(described)) = (fitted, self.session.described.get_mut(&id)) {
            described.places = Some(places);
        }
        Ok(None)
    }

    async fn take_row(&mut self, id: u32, message: Message, xid: u32, commit: Lsn, batch: &mut Batch) -> Result<Taken> {
        if let Some(taken) = self.resolve(id, commit, batch).await? {
            return Ok(taken);
        }
        let Some(Described { table: Some(table), places: Some(places), .. }) = self.session.described.get(&id) else {
            return Ok(Taken::Yes);
        };
        let at = *table;
        let table = &self.tables[at];
        let changes = match message {
            Message::Insert { new, .. } => vec![(Op::Create, None, Some(table.row(places, &new)?))],
            Message::Update { old, new, .. } => update(table, places, old, &new)?,
            Message::Delete { old, .. } => vec![(Op::Delete, Some(before(table, places, &old)?), None)],
            _ => Vec::new(),
        };
        let copying = table.copy != CopyState::Done;
        for (op, before, after) in changes {
            let Some(row) = after.as_ref().or(before.as_ref()) else { continue };
            let key = table.schema.key_of(row);
            if key.contains(&Value::Unchanged) {
                let name = table.schema.full_name();
                return Err(Error::corrupt(format!("a row of table {name} in the stream has no key")));
            }
            if copying {
                self.copier.touch(xid, at, Some(&key));
            }
            batch.push(Change { table: at, op, key, before, after, sequence: commit.0.cast_signed() });
        }
        Ok(Taken::Yes)
    }

    /// Asks the database for large values that the stream did not repeat: their present ones. One that is newer than the
    /// change comes again with its own change; a row that is gone is deleted by a change to come.
    async fn complete(&mut self) -> Result<()> {
        let Some(batch) = &mut self.unsent else { return Ok(()) };
        let incomplete = |change: &Change| change.after.as_ref().is_some_and(|row| row.contains(&Value::Unchanged));
        let mut by_table: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, change) in batch.polled.changes.iter().enumerate().filter(|(_, change)| incomplete(change)) {
            by_table.entry(change.table).or_default().push(at);
        }
        for (table, places) in by_table {
            if self.side.is_none() {
                self.side = Some(connect(&self.server).await?);
            }
            let Some(side) = &mut self.side else { continue };
            let changes = &mut batch.polled.changes;
            let schema = &self.tables[table].schema;
            let unknown = |column: &usize| {
                places.iter().any(|at| changes[*at].after.as_ref().is_some_and(|row| row[*column] == Value::Unchanged))
            };
            let columns: Vec<usize> = (0..schema.columns.len()).filter(unknown).collect();
            let keys: Vec<&[Value]> = places.iter().map(|at| &changes[*at].key[..]).collect();
            let found = match find_rows(side, schema, &columns, &keys).await {
                Ok(found) => found,
                Err(error) => {
                    self.side = None;
                    return Err(match error.kind() {
                        ErrorKind::Invalid | ErrorKind::NotFound => {
                            Stop::Columns { table: schema.full_name(), what: error.to_string() }.into()
                        }
                        _ => error,
                    });
                }
            };
            for (at, found) in places.iter().zip(found) {
                let (Some(found), Some(row)) = (found, &mut changes[*at].after) else { continue };
                for (column, value) in columns.iter().zip(found) {
                    if row[*column] == Value::Unchanged {
                        row[*column] = value;
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the position to what is complete.
    fn finish(&mut self, batch: Batch) -> Result<Polled> {
        let empty = batch.is_empty();
        let mut polled = batch.polled;
        let copying = self.tables.iter().any(|table| table.copy != CopyState::Done);
        polled.more |= copying || self.held.is_some() || self.copier.is_ready();
        let quiet = self.session.transaction.is_none() && self.held.is_none() && !copying;
        polled.ended = quiet && self.end.is_some_and(|end| self.position.lsn >= end);
        let moved = self.position.lsn > self.told;
        if !empty || (moved && (polled.ended || self.told_at.elapsed() >= IDLE_ADVANCE)) {
            polled.position = self.parts(false)?;
            (self.told, self.told_at) = (self.position.lsn, Instant::now());
            self.tables.iter_mut().for_each(|table| table.changed = false);
        }
        if empty {
            polled.pause = BREATH;
        }
        Ok(polled)
    }

    fn parts(&self, all: bool) -> Result<Vec<(String, String)>> {
        let mut parts = vec![(STREAM_PART.to_owned(), encode(&self.position)?)];
        for table in self.tables.iter().filter(|table| all || table.changed) {
            let part = TablePosition { schema: table.schema.clone(), copy: table.copy.clone(), from: table.from };
            parts.push((table_part(&table.schema), encode(&part)?));
        }
        Ok(parts)
    }
}

/// A row before its change, as far as it is told.
fn before(table: &Followed, places: &[usize], old: &Old) -> Result<Row> {
    let row = table.row(places, &old.tuple)?;
    Ok(if old.full { row } else { table.only_key(row) })
}

type Changed = (Op, Option<Row>, Option<Row>);

fn update(table: &Followed, places: &[usize], old: Option<Old>, new: &Tuple) -> Result<Vec<Changed>> {
    let mut after = table.row(places, new)?;
    let before = match &old {
        Some(old) => before(table, places, old)?,
        None => table.only_key(after.clone()),
    };
    for (value, old) in after.iter_mut().zip(&before) {
        if *value == Value::Unchanged {
            value.clone_from(old);
        }
    }
    Ok(match table.schema.key_of(&before) == table.schema.key_of(&after) {
        true => vec![(Op::Update, Some(before), Some(after))],
        false => vec![(Op::Delete, Some(before), None), (Op::Create, None, Some(after))],
    })
}

#[async_trait]
impl Source for PostgresSource {
    fn tables(&self) -> Vec<TableSchema> {
        self.tables.iter().map(|table| table.schema.clone()).collect()
    }

    fn position(&self) -> Vec<(String, String)> {
        let mut parts = self.parts(true).unwrap_or_default();
        parts.extend(self.forgotten.iter().map(|name| (name.clone(), String::new())));
        parts
    }

    fn rereads(&self) -> bool {
        false
    }

    fn states(&self) -> Vec<TableState> {
        let state = |table: &Followed| TableState {
            table: table.schema.full_name(),
            copied: table.copy.copied(),
            known: table.known,
        };
        self.tables.iter().map(state).collect()
    }

    async fn restart_copies(&mut self, tables: &[String]) -> Result<()> {
        if tables.is_empty() {
            return Ok(());
        }
        for table in self.tables.iter_mut().filter(|table| tables.contains(&table.schema.full_name())) {
            (table.copy, table.changed) = (CopyState::NotStarted, true);
        }
        self.copier.begin_again();
        Ok(())
    }

    async fn poll(&mut self) -> Result<Polled> {
        if self.unsent.is_none() {
            self.unsent = Some(self.fill().await?);
        }
        self.complete().await?;
        let batch = self.unsent.take().unwrap_or_default();
        self.finish(batch)
    }

    async fn commit(&mut self) -> Result<()> {
        self.durable = self.told;
        if let Some(stream) = &self.stream {
            stream.confirm(self.durable);
        }
        Ok(())
    }
}

/// Where the server's log ends now, as far as it is on disk.
pub(super) async fn log_end(conn: &mut PgConnection) -> Result<Lsn> {
    query_one(conn, "look at the log's end", "SELECT pg_catalog.pg_current_wal_flush_lsn()::text")
        .await?
        .unwrap_or_default()
        .try_into()
}
