//! Follows a server: its binlog, and the copies of tables, woven together.
//!
//! A piece of a table is read in a snapshot whose place in the binlog is known. Its rows are given out when the binlog
//! has been read up to that place; a row that a later transaction, already given out, has touched is left out. So no
//! lock is held and the result is exact at every moment after the copy.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mysql_async::Conn;

use super::{
    Knobs,
    bind::{Evolution, bind, evolution, has_unknown},
    binlog::{
        event::{Event, MariaGtid},
        rows::{Binding, Reader},
        table_map::TableMap,
    },
    catalog::{Found, collations, list, present},
    copy::{self, FIRST_ROWS, size},
    endpoint::connect,
    gtid::{MariaPosition, MysqlSet},
    position::{Copy, Flavour, HEAD, Head, Inside, Place, TABLE, TablePart, encode, join},
    stop::Stop,
    stream::Stream,
    text::Charset,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op, Row, StoredValue, TableSchema, Value},
    connector::{Copied, Follow, Polled, Source, TableState},
    endpoint::Server,
};

const MOST_CHANGES: usize = 2_000;
const MOST_BYTES: usize = 4 << 20;
const WAIT: Duration = Duration::from_millis(100);
/// A position that moves without changes is stored this often.
const TELL_INTERVAL: Duration = Duration::from_secs(5);
/// A table whose lock was not free is left alone for so long.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Table {
    schema: TableSchema,
    found: Found,
    copy: Copy,
    known: bool,
    dropped: bool,
}

/// A table number of the binlog, with the table it means, if it is ours.
struct Mapped {
    map: TableMap,
    table: Option<(usize, Binding)>,
}

/// A transaction that is being read.
struct Transaction {
    name: Option<Gtid>,
    /// Whether the next statement is all of it.
    standalone: bool,
    /// Whether it is prepared only.
    prepared: bool,
    /// Row events read to their end.
    events: u64,
    touched: BTreeSet<usize>,
    sequence: i64,
}

enum Gtid {
    Maria(MariaGtid),
    Mysql([u8; 16], u64),
}

enum Gtids {
    Maria(MariaPosition),
    Mysql(MysqlSet),
    None,
}

/// Rows of a table's copy that wait to be given out.
struct Waiting {
    table: usize,
    rows: std::vec::IntoIter<Row>,
    last: bool,
    at: Place,
}

/// A change that was given out, of a table that is being copied; of no key, of all rows.
struct Recent {
    at: Place,
    table: usize,
    key: Option<Vec<StoredValue>>,
}

#[derive(Default)]
struct Out {
    polled: Polled,
    bytes: usize,
}

impl Out {
    fn is_full(&self) -> bool {
        self.polled.changes.len() >= MOST_CHANGES || self.bytes >= MOST_BYTES
    }

    fn is_empty(&self) -> bool {
        let polled = &self.polled;
        polled.changes.is_empty()
            && polled.evolved.is_empty()
            && polled.truncated.is_empty()
            && polled.finished_tables.is_empty()
    }

    fn push(&mut self, change: Change) {
        let rows = [&change.before, &change.after];
        self.bytes += rows.into_iter().flatten().flatten().map(size).sum::<usize>();
        self.polled.changes.push(change);
    }
}

/// Follows the tables of a database.
pub struct Follower {
    server: Server,
    knobs: Knobs,
    replica: u32,
    tables: Vec<Table>,
    /// Tables of the stored position that the sync no longer names.
    left: Vec<TablePart>,
    head: Head,
    gtids: Gtids,
    collations: HashMap<u32, Charset>,
    stream: Option<Stream>,
    /// The connection for the catalog and the copies.
    side: Option<Conn>,
    maps: HashMap<u64, Mapped>,
    transaction: Option<Transaction>,
    /// What of the transaction was delivered before.
    skip: Option<Inside>,
    reader: Option<(usize, Reader)>,
    /// An event that must wait for the next poll.
    held: Option<Event>,
    /// An error that must wait for the next poll.
    failed: Option<Error>,
    waiting: Option<Waiting>,
    recent: Vec<Recent>,
    /// The place of the newest snapshot.
    snapshot: Place,
    limit: usize,
    copy_from: Instant,
    parts: BTreeMap<String, String>,
    told: Instant,
    /// Where a bounded follower ends.
    end: Option<Place>,
}

impl Follower {
    /// Opens a follower at the stored position, or at the binlog's end.
    ///
    /// # Errors
    /// `Conflict` where the server is not the one of the position, or no longer has it.
    pub async fn open(server: Server, knobs: Knobs, follow: Follow) -> Result<Self> {
        let mut conn = connect(&server).await?;
        let now = present(&mut conn).await?;
        let end = follow.once.then(|| Place::new(&now.file, now.position));
        let stored = join(&follow.stored)?;
        let replica = replica_id(&follow.log_id, &follow.sync);
        let (head, parts) = stored.unwrap_or((now, Vec::new()));
        let found = list(&mut conn, &server.database).await?;
        let collations = collations(&mut conn).await?;
        let mut tables = Vec::new();
        for schema in &follow.tables {
            let found = found.iter().find(|found| found.schema.name == schema.name);
            let found = found.ok_or_else(|| Error::not_found(format!("table {} is gone", schema.full_name())))?;
            let part = parts.iter().find(|part| part.schema.name == schema.name && part.copy != Copy::Left);
            let part = part.filter(|_| !follow.recopy.contains(&schema.full_name()));
            let table = |schema: &TableSchema, copy: Copy| Table {
                schema: schema.clone(),
                found: found.clone(),
                copy,
                known: part.is_some(),
                dropped: false,
            };
            tables.push(match part {
                Some(part) if part.copy != Copy::NotStarted => table(&part.schema, part.copy.clone()),
                _ => table(&found.schema, Copy::NotStarted),
            });
        }
        let is_left = |part: &TablePart| !follow.tables.iter().any(|table| table.name == part.schema.name);
        let left = parts.into_iter().filter(is_left).map(|part| TablePart { copy: Copy::Left, ..part }).collect();
        let mut follower = Self {
            server,
            knobs,
            replica,
            tables,
            left,
            gtids: Gtids::None,
            collations,
            stream: None,
            side: Some(conn),
            maps: HashMap::new(),
            transaction: None,
            skip: None,
            reader: None,
            held: None,
            failed: None,
            waiting: None,
            recent: Vec::new(),
            snapshot: Place::default(),
            limit: FIRST_ROWS,
            copy_from: Instant::now(),
            parts: follow.stored,
            told: Instant::now(),
            end,
            head,
        };
        follower.connect().await?;
        Ok(follower)
    }

    async fn connect(&mut self) -> Result<()> {
        let bad = || Error::new(ErrorKind::Corrupt, "the stored position of the source is malformed");
        self.gtids = match self.head.flavour {
            Flavour::Mariadb => Gtids::Maria(MariaPosition::parse(&self.head.gtid).ok_or_else(bad)?),
            Flavour::Mysql if self.head.gtid.is_empty() => Gtids::None,
            Flavour::Mysql => Gtids::Mysql(MysqlSet::parse(&self.head.gtid).ok_or_else(bad)?),
        };
        self.skip = self.head.inside;
        self.stream = Some(Stream::open(&self.server, &self.head, self.replica).await?);
        Ok(())
    }

    /// Gives up what belongs to a connection.
    fn disconnect(&mut self) {
        (self.stream, self.side, self.transaction, self.skip) = (None, None, None, None);
        (self.reader, self.held, self.waiting) = (None, None, None);
        self.maps.clear();
    }

    /// Brings the position up to what was given out.
    fn settle(&mut self) {
        match &self.gtids {
            Gtids::Maria(position) => self.head.gtid = position.to_string(),
            Gtids::Mysql(set) => self.head.gtid = set.to_string(),
            Gtids::None => {}
        }
        // While rows are passed over that were delivered before, that place stays.
        if self.skip.is_none() {
            let inside = self.transaction.as_ref().map(|transaction| Inside {
                events: transaction.events,
                rows: self.reader.as_ref().map_or(0, |(_, reader)| reader.count),
            });
            self.head.inside = inside.filter(|inside| inside.events > 0 || inside.rows > 0);
        }
    }

    fn all_parts(&self) -> Result<BTreeMap<String, String>> {
        let mut parts = BTreeMap::from([(HEAD.to_owned(), encode(&self.head)?)]);
        for table in &self.tables {
            let part = TablePart { schema: table.schema.clone(), copy: table.copy.clone() };
            parts.insert(format!("{TABLE}{}", table.schema.full_name()), encode(&part)?);
        }
        for part in &self.left {
            parts.insert(format!("{TABLE}{}", part.schema.full_name()), encode(part)?);
        }
        Ok(parts)
    }

    fn changed_parts(&mut self, quiet: bool) -> Result<Vec<(String, String)>> {
        if quiet && self.told.elapsed() < TELL_INTERVAL {
            return Ok(Vec::new());
        }
        self.told = Instant::now();
        let parts = self.all_parts()?;
        let changed: Vec<_> = parts.into_iter().filter(|(name, value)| self.parts.get(name) != Some(value)).collect();
        self.parts.extend(changed.iter().cloned());
        Ok(changed)
    }

    fn is_between_transactions(&self) -> bool {
        self.transaction.is_none() && self.reader.is_none() && self.held.is_none()
    }

    fn place(&self) -> Place {
        self.stream.as_ref().map(Stream::place).unwrap_or_default()
    }

    async fn fill(&mut self, out: &mut Out) -> Result<()> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let deadline = Instant::now() + WAIT;
        loop {
            if out.is_full() {
                out.polled.more = true;
                return Ok(());
            }
            if self.reader.is_some() {
                self.read_rows(out)?;
                continue;
            }
            if self.is_between_transactions() {
                if self.copy_step(out).await? {
                    out.polled.more = true;
                    return Ok(());
                }
                let copied = self.tables.iter().all(|table| table.copy == Copy::Done);
                if copied && self.end.is_some_and(|end| self.place() >= end) {
                    out.polled.ended = true;
                    return Ok(());
                }
            }
            let event = match self.held.take() {
                Some(event) => event,
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let wait = if out.is_empty() { left } else { Duration::ZERO };
                    let Some(stream) = &mut self.stream else { return Err(Error::closed("no connection")) };
                    match stream.next(wait).await? {
                        Some(event) => event,
                        None => return Ok(()),
                    }
                }
            };
            if let Some(event) = self.process(event, out).await? {
                self.held = Some(event);
                out.polled.more = true;
                return Ok(());
            }
        }
    }

    /// Takes an event; gives it back where it must wait until what was read before is out of hand.
    async fn process(&mut self, event: Event, out: &mut Out) -> Result<Option<Event>> {
        match event {
            Event::MariaGtid { gtid, standalone, prepared } => {
                let sequence = i64::try_from(gtid.sequence).unwrap_or(i64::MAX);
                self.begin(Some(Gtid::Maria(gtid)), standalone, prepared, sequence);
            }
            Event::MysqlGtid(name) => {
                let number = name.map_or(0, |(_, number)| i64::try_from(number).unwrap_or(i64::MAX));
                self.begin(name.map(|(sid, number)| Gtid::Mysql(sid, number)), true, false, number);
            }
            Event::Query { database, text } => return self.statement(database, text, out).await,
            Event::Xid => self.end_transaction(),
            Event::TableMap(map) => return self.map(map, out).await,
            Event::Rows(rows) => {
                if self.transaction.is_none() {
                    self.begin(None, false, false, 0);
                }
                let Some(mapped) = self.maps.get(&rows.table_id) else {
                    return Err(super::binlog::bytes::corrupt("rows are of a table that was not told"));
                };
                let Some(transaction) = &mut self.transaction else { return Ok(None) };
                let delivered = self.skip.map_or(0, |skip| skip.events);
                let wanted = mapped.table.as_ref().filter(|(table, _)| {
                    let table = &self.tables[*table];
                    !table.dropped && table.copy != Copy::NotStarted
                });
                let mut rows_delivered = 0;
                if transaction.events >= delivered
                    && let Some(skip) = self.skip.take()
                {
                    rows_delivered = skip.rows;
                }
                let Some((table, binding)) = wanted.filter(|_| transaction.events >= delivered) else {
                    transaction.events += 1;
                    return Ok(None);
                };
                let name = self.tables[*table].schema.full_name();
                if !rows.full {
                    return Err(Stop::NotFull { table: name }.into());
                }
                if transaction.prepared {
                    return Err(Stop::Prepared { table: name }.into());
                }
                transaction.touched.insert(*table);
                let mut reader = Reader::new(rows, binding)?;
                for _ in 0..rows_delivered {
                    reader.next(binding)?;
                }
                self.reader = Some((*table, reader));
            }
            Event::Rotate { .. } | Event::Heartbeat { .. } | Event::Other => {
                if self.transaction.is_none() {
                    self.note_place();
                }
            }
        }
        Ok(None)
    }

    fn begin(&mut self, name: Option<Gtid>, standalone: bool, prepared: bool, sequence: i64) {
        let touched = BTreeSet::new();
        self.transaction = Some(Transaction { name, standalone, prepared, events: 0, touched, sequence });
    }

    fn end_transaction(&mut self) {
        if let Some(transaction) = self.transaction.take() {
            match (&mut self.gtids, transaction.name) {
                (Gtids::Maria(position), Some(Gtid::Maria(gtid))) => position.note(gtid),
                (Gtids::Mysql(set), Some(Gtid::Mysql(sid, number))) => set.note(&uuid(sid), number),
                _ => {}
            }
        }
        self.skip = None;
        self.note_place();
    }

    /// The binlog was read to an end of a transaction.
    fn note_place(&mut self) {
        let Some(stream) = &self.stream else { return };
        if stream.place() > Place::new(&self.head.file, self.head.position) {
            let (file, position) = stream.file_and_position();
            if self.head.file != file {
                self.head.file = file.to_owned();
            }
            self.head.position = position;
        }
    }

    fn read_rows(&mut self, out: &mut Out) -> Result<()> {
        let (at, snapshot) = (self.place(), self.snapshot);
        let Some((table, reader)) = &mut self.reader else { return Ok(()) };
        let table = *table;
        let binding = self.maps.get(&reader.table_id()).and_then(|mapped| mapped.table.as_ref());
        let Some((_, binding)) = binding else { return Err(Error::internal("a table was lost while it was read")) };
        let schema = &self.tables[table].schema;
        let copying = matches!(self.tables[table].copy, Copy::After(_)) && at > snapshot;
        let sequence = self.transaction.as_ref().map_or(0, |transaction| transaction.sequence);
        while !out.is_full() {
            let Some(image) = reader.next(binding)? else {
                self.reader = None;
                if let Some(transaction) = &mut self.transaction {
                    transaction.events += 1;
                }
                return Ok(());
            };
            let keys = [&image.before, &image.after].map(|row| row.as_ref().map(|row| schema.key_of(row)));
            let is_touched = copying && !self.knobs.ignore_recent;
            let touched = keys.iter().flatten().filter(|_| is_touched);
            let touched = touched.map(|key| Recent { at, table, key: Some(stored(key)) });
            self.recent.extend(touched);
            let change = |op, key, before, after| Change { table, op, key, before, after, sequence };
            match (image.before, image.after, keys) {
                (Some(before), Some(after), [Some(old), Some(new)]) if old == new => {
                    out.push(change(Op::Update, new, Some(before), Some(after)));
                }
                (before, after, [old, new]) => {
                    if let (Some(before), Some(old)) = (before, old) {
                        out.push(change(Op::Delete, old, Some(before), None));
                    }
                    if let (Some(after), Some(new)) = (after, new) {
                        out.push(change(Op::Create, new, None, Some(after)));
                    }
                }
            }
        }
        Ok(())
    }

    async fn map(&mut self, map: TableMap, out: &mut Out) -> Result<Option<Event>> {
        if self.maps.get(&map.table_id).is_some_and(|mapped| mapped.map == map) {
            return Ok(None);
        }
        let ours = |table: &Table| table.schema.name == map.table && !table.dropped;
        let index = self.tables.iter().position(ours).filter(|_| map.database == self.server.database);
        // Events before a table's copy are passed over.
        let index = index.filter(|index| self.tables[*index].copy != Copy::NotStarted);
        let Some(index) = index else {
            // A table that begins to be copied must be bound then.
            self.maps.insert(map.table_id, Mapped { map: TableMap { columns: Vec::new(), ..map }, table: None });
            return Ok(None);
        };
        let bound = |own: &Self| {
            let table = &own.tables[index];
            bind(&map, &table.schema, &table.found, &own.collations)
        };
        let table = &self.tables[index];
        let mut binding = bound(self);
        if binding.is_err() || has_unknown(&map, &table.schema, &table.found) {
            if !out.is_empty() {
                return Ok(Some(Event::TableMap(map)));
            }
            self.refresh(index, out).await?;
            binding = bound(self);
        }
        let table = Some((index, binding?));
        self.maps.insert(map.table_id, Mapped { map, table });
        Ok(None)
    }

    /// Compares a table with what the catalog has now.
    async fn refresh(&mut self, index: usize, out: &mut Out) -> Result<()> {
        let database = self.server.database.clone();
        let found = list(self.side().await?, &database).await?;
        let table = &mut self.tables[index];
        // A table that is gone by now is told so by an event that comes.
        let Some(found) = found.into_iter().find(|found| found.schema.name == table.schema.name) else { return Ok(()) };
        match evolution(&table.schema, &found) {
            Evolution::Same => {}
            Evolution::Grown { again } => {
                table.schema = found.schema.clone();
                if again && table.copy != Copy::NotStarted {
                    table.copy = Copy::After(Vec::new());
                }
                out.polled.evolved.push((index, table.schema.clone()));
                self.waiting.take_if(|waiting| waiting.table == index);
                self.maps.retain(|_, mapped| mapped.table.as_ref().is_none_or(|(table, _)| *table != index));
            }
            Evolution::Else(what) => {
                return Err(Stop::ColumnsChanged { table: table.schema.full_name(), what }.into());
            }
        }
        table.found = found;
        Ok(())
    }

    async fn side(&mut self) -> Result<&mut Conn> {
        let conn = match self.side.take() {
            Some(conn) => conn,
            None => connect(&self.server).await?,
        };
        Ok(self.side.insert(conn))
    }

    /// Gives out rows of a copy, or reads the next piece. Whether there is something to give out.
    async fn copy_step(&mut self, out: &mut Out) -> Result<bool> {
        if self.waiting.is_none() {
            self.read_piece().await?;
        }
        let place = self.place();
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.at <= place) else { return Ok(false) };
        let (index, at) = (waiting.table, waiting.at);
        let table = &mut self.tables[index];
        let recent = self.recent.iter().filter(|recent| recent.table == index && recent.at > at);
        let mut touched = BTreeMap::new();
        let mut emptied = false;
        for recent in recent {
            match &recent.key {
                Some(key) => drop(touched.insert(format!("{key:?}"), ())),
                None => emptied = true,
            }
        }
        let mut key = None;
        while !out.is_full() {
            let Some(row) = waiting.rows.next() else { break };
            let own = table.schema.key_of(&row);
            key = Some(stored(&own));
            let is_touched = emptied || (!touched.is_empty() && touched.contains_key(&format!("{:?}", stored(&own))));
            if !is_touched {
                let (op, after) = (Op::Read, Some(row));
                out.push(Change { table: index, op, key: own, before: None, after, sequence: 0 });
            }
        }
        if let Some(key) = key {
            table.copy = Copy::After(key);
        } else if table.copy == Copy::NotStarted {
            table.copy = Copy::After(Vec::new());
        }
        if waiting.rows.len() == 0 {
            if waiting.last {
                table.copy = Copy::Done;
                out.polled.finished_tables.push(index);
                self.recent.retain(|recent| recent.table != index);
            }
            self.waiting = None;
        }
        Ok(true)
    }

    async fn read_piece(&mut self) -> Result<()> {
        let unfinished = |table: &Table| matches!(table.copy, Copy::NotStarted | Copy::After(_)) && !table.dropped;
        // One that has begun goes on first.
        let begun = self.tables.iter().position(|table| unfinished(table) && table.copy != Copy::NotStarted);
        let next = begun.or_else(|| self.tables.iter().position(unfinished));
        let Some(index) = next.filter(|_| Instant::now() >= self.copy_from) else { return Ok(()) };
        let (schema, server) = (self.tables[index].schema.clone(), self.server.clone());
        let after: Option<Row> = match &self.tables[index].copy {
            Copy::After(key) if !key.is_empty() => Some(key.iter().map(Value::from).collect()),
            _ => None,
        };
        if after.is_none() {
            self.limit = FIRST_ROWS;
        }
        let by_status = self.head.flavour == Flavour::Mariadb && !self.knobs.lock_tables;
        let limit = self.limit;
        let conn = self.side().await?;
        let read = async {
            let at = copy::begin(conn, by_status, &server, &schema).await?;
            let piece = copy::read(conn, &schema, after.as_deref(), limit).await?;
            super::stream::run(conn, "COMMIT").await?;
            Ok::<_, Error>((at, piece))
        };
        let (at, piece) = match Box::pin(read).await {
            Ok(read) => read,
            // The table's lock was not free.
            Err(error) if error.kind() == ErrorKind::Unavailable && !by_status => {
                tracing::debug!(%error, "table is busy");
                self.copy_from = Instant::now() + LOCK_PAUSE;
                self.side = None;
                return Ok(());
            }
            // Dropped or altered: an event that comes says so.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => {
                tracing::debug!(%error, "table was changed while it was copied");
                self.copy_from = Instant::now() + LOCK_PAUSE;
                return match self.tables[index].copy {
                    Copy::NotStarted => Err(error),
                    _ => Ok(()),
                };
            }
            Err(error) => return Err(error),
        };
        // Changes before the first piece are passed over: it must hold all of them.
        if self.tables[index].copy == Copy::NotStarted && at < self.place() {
            return Ok(());
        }
        self.limit = piece.next_limit(limit);
        self.snapshot = at;
        self.recent.retain(|recent| recent.at > at);
        self.waiting = Some(Waiting { table: index, rows: piece.rows.into_iter(), last: piece.last, at });
        Ok(())
    }
}

mod statement;

fn stored(key: &[Value]) -> Vec<StoredValue> {
    key.iter().map(StoredValue::from).collect()
}

/// A number for the server's list of replicas: two followers with one number would end each other's connections.
fn replica_id(log_id: &str, sync: &str) -> u32 {
    let bytes = log_id.bytes().chain([0]).chain(sync.bytes());
    // FNV-1a; the topmost bit keeps it apart from numbers that people give.
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 1 << 31
}

fn uuid(sid: [u8; 16]) -> String {
    let hex: String = sid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[async_trait]
impl Source for Follower {
    fn tables(&self) -> Vec<TableSchema> {
        self.tables.iter().map(|table| table.schema.clone()).collect()
    }

    fn position(&self) -> Vec<(String, String)> {
        self.all_parts().map(|parts| parts.into_iter().collect()).unwrap_or_default()
    }

    fn rereads(&self) -> bool {
        false
    }

    fn states(&self) -> Vec<TableState> {
        let state = |table: &Table| TableState {
            table: table.schema.full_name(),
            copied: match table.copy {
                Copy::NotStarted => Copied::NotStarted,
                Copy::After(_) => Copied::Begun,
                Copy::Done | Copy::Left => Copied::Done,
            },
            known: table.known,
        };
        self.tables.iter().map(state).collect()
    }

    async fn restart_copies(&mut self, tables: &[String]) -> Result<()> {
        for table in self.tables.iter_mut().filter(|table| tables.contains(&table.schema.full_name())) {
            table.copy = Copy::NotStarted;
        }
        self.waiting = None;
        Ok(())
    }

    async fn poll(&mut self) -> Result<Polled> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut out = Out::default();
        let filled = Box::pin(self.fill(&mut out)).await;
        self.settle();
        if let Err(error) = filled {
            self.disconnect();
            if out.is_empty() {
                return Err(error);
            }
            // What was read before the failure is given out first.
            self.failed = Some(error);
            out.polled.more = true;
        }
        let quiet = out.is_empty() && !out.polled.ended;
        out.polled.position = self.changed_parts(quiet)?;
        Ok(out.polled)
    }

    async fn commit(&mut self) -> Result<()> {
        // The server is told nothing: it keeps its binlog by time.
        Ok(())
    }
}
