//! Follows a server: its binlog, and the copies of tables, woven together.
//!
//! A piece of a table is read in a snapshot whose place in the binlog is known. Its rows are given out when the binlog
//! has been read exactly up to that place. So no lock is held and the result is exact at every moment after the copy.
//!
//! | file | what it does |
//! |---|---|
//! | `events` | takes events, gives out changes |
//! | `statement` | statements: ends of transactions, tables that change |
//! | `tables` | binds the binlog's tables to those that are followed |
//! | `copying` | pieces of tables, in between |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mysql_async::Conn;

use super::{
    Knobs,
    binlog::{
        event::{Event, MariaGtid},
        rows::{Binding, Reader},
        table_map::TableMap,
    },
    catalog::{Found, collations, list, present},
    copy::FIRST_ROWS,
    endpoint::connect,
    gtid::{MariaPosition, MysqlSet},
    lag::shown,
    position::{Copy, Flavour, HEAD, Head, Inside, Place, TABLE, TablePart, encode, join},
    stream::Stream,
    text::Charset,
};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Row, TableSchema, Value},
    connector::{Copied, Follow, Polled, Source, SourceLag, TableState},
    endpoint::Server,
};

/// So many tables of the binlog are remembered.
const MAX_MAPS: usize = 1_000;
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
        self.bytes += rows.into_iter().flatten().flatten().map(Value::size_bytes).sum::<usize>();
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
    /// Whether the binlog does not name columns.
    unnamed: bool,
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
                dropped: part.is_some_and(|part| part.dropped),
            };
            tables.push(match part {
                Some(part) if part.copy != Copy::NotStarted => table(&part.schema, part.copy.clone()),
                // Of a new start, every change since then is given out.
                _ if follow.stored.is_empty() => table(&found.schema, Copy::After(Vec::new())),
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
            unnamed: false,
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
            let part = TablePart { schema: table.schema.clone(), copy: table.copy.clone(), dropped: table.dropped };
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
}

mod copying;
mod events;
mod statement;
mod tables;

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
            copied: match &table.copy {
                Copy::NotStarted => Copied::NotStarted,
                Copy::After(key) if key.is_empty() && !table.known => Copied::NotStarted,
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

    async fn lag(&mut self) -> Result<SourceLag> {
        Ok(SourceLag { position: Some(shown(&self.head)), ..SourceLag::default() })
    }
}
