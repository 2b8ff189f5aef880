//! Follows a database: the stream's transactions in the order of their commits, with the copy's rows between them.
//!
//! What was given out is never given out again by the same source: after a cut connection it goes on behind the last
//! message about a row that it took, which a transaction's commit and a count within it tell.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use pgwire_replication::client::ReplicationEvent;
use sqlx::PgConnection;

use super::{
    batch::Batch,
    copy::{Copier, Piece},
    endpoint::{connect, query_one},
    lag::lag,
    position::{CopyState, Lsn, STREAM_PART, StreamPosition, TablePosition, encode, table_part},
    shape::Followed,
    slot::look_at_tables,
    stop::Stop,
    stream::Stream,
    take::{Session, Taken},
};
use crate::{
    ErrorKind, Result,
    change::{Change, Op, Row, StoredValue, TableSchema, Value},
    connector::{Polled, Source, SourceLag, TableState},
    endpoint::Server,
};

/// How long a poll waits for something to happen.
const WAIT: Duration = Duration::from_millis(100);
/// How often the position moves on when nothing happens to the tables.
const IDLE_ADVANCE: Duration = Duration::from_secs(10);
/// How often the tables are looked at: a table that was swapped for another brings no event of that.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Between polls that found nothing: callers look up.
const BREATH: Duration = Duration::from_millis(1);

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
    pub(super) session: Session,
    looked_at: Instant,
    /// Tables that are not there any more, said once.
    gone: Vec<String>,
    /// An event that must begin a poll.
    held: Option<ReplicationEvent>,
    /// What was found but could not be completed.
    unsent: Option<Batch>,
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
            looked_at: Instant::now(),
            gone: Vec::new(),
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
            // A server that shuts down waits for who reads its stream: a stream that nobody reads would hold it up for ever.
            self.side = Some(connect(&self.server).await.inspect_err(|_| self.stream = None)?);
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

    /// Looks whether the tables are still those that are followed; the poll does it now and then.
    ///
    /// # Errors
    /// `Conflict` where one was made anew or is published no more.
    pub async fn look_at_tables(&mut self) -> Result<()> {
        let Some(side) = &mut self.side else { return Ok(()) };
        let tables: Vec<_> = self.tables.iter().map(|table| &table.schema).collect();
        let gone = look_at_tables(side, &self.position.publication, &tables).await.inspect_err(|error| {
            if error.kind() == ErrorKind::Unavailable {
                self.side = None;
            }
        })?;
        for table in gone.iter().filter(|table| !self.gone.contains(table)) {
            tracing::warn!(table, "table was dropped or renamed in the source; its topic and target stay");
        }
        (self.gone, self.looked_at) = (gone, Instant::now());
        Ok(())
    }

    /// Reads on until there is enough, or nothing more.
    async fn fill(&mut self) -> Result<Batch> {
        self.open().await?;
        if self.looked_at.elapsed() >= LOOK_INTERVAL {
            self.look_at_tables().await?;
        }
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
        // Where the copy is: at the last row that is given out, or at one behind it that is not.
        let mut passed: Option<(usize, Row)> = None;
        let mut ended = false;
        while !batch.is_full()
            && let Some((table, piece)) = self.copier.next()
        {
            match piece {
                Piece::Passed(key) => (passed, ended) = (Some((table, key)), false),
                Piece::Row(row) => {
                    let key = self.tables[table].schema.key_of(&row);
                    (passed, ended) = (None, false);
                    batch.push(Change { table, op: Op::Read, key, before: None, after: Some(row), sequence: 0 });
                }
                Piece::End => {
                    ended = true;
                    self.tables[table].copy = CopyState::Done;
                    self.tables[table].changed = true;
                    batch.polled.finished_tables.push(table);
                }
            }
        }
        let given = || batch.polled.changes.last().map(|change| (change.table, change.key.clone()));
        if let Some((table, key)) = passed.or_else(given).filter(|_| !ended) {
            self.tables[table].copy = CopyState::After(key.iter().map(StoredValue::from).collect());
            self.tables[table].changed = true;
        }
        batch.polled.more = true;
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

    async fn lag(&mut self) -> Result<SourceLag> {
        let Some(side) = &mut self.side else { return Ok(SourceLag::default()) };
        let measured = lag(side, &self.position).await;
        if measured.is_err() {
            self.side = None;
        }
        measured
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
        if let Some(batch) = &mut self.unsent {
            batch.complete(&self.server, &mut self.side, &self.tables).await?;
        }
        let batch = self.unsent.take().unwrap_or_default();
        self.finish(batch)
    }

    async fn read_ahead(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.read_ahead().await;
        }
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
