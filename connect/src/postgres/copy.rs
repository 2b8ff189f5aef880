//! The first copy of a table, in chunks, exact while others write and while the stream runs, holding no snapshot.
//!
//! A chunk is what one short transaction reads. Then a message is written into the server's log and the rows are held until
//! the stream brings it. All transactions that the chunk's snapshot sees have their commit before the message, so they were
//! delivered before the rows go out. Of the transactions that were delivered by then, some the snapshot does not see: rows
//! they touched are older in the chunk than in the stream, and are left out.
//!
//! It is these transactions that count, and not what the stream brings between a mark before the chunk and one after it:
//! a transaction's commit is in the log, and may be delivered, *before* other transactions see it. One that committed
//! before the first mark can be invisible to a snapshot taken after it; a plain pair of watermarks would write its rows
//! back to what they were.
//!
//! What was delivered before this program began is not known by transaction. So before the first chunk it waits until
//! the transactions that are then in progress have ended, for at most a second: one that was delivered is visible within
//! far less, but for one whose commit waits for a synchronous standby. That case remains: a row that such a transaction
//! changed, copied after a restart within its wait, may go back to the row before, until it is next changed.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use sqlx::PgConnection;

use super::{
    catalog::from_item,
    endpoint::{execute, literal, query_one, quoted_table},
    lookup::page_query,
    text::{Beyond, copy_out, kinds},
};
use crate::{
    Error, Result,
    change::{Row, StoredValue, TableSchema, Value},
};

/// The prefix of our messages in the server's log.
pub(super) const PREFIX: &str = "tidemill";
const FIRST_ROWS: usize = 1_000;
const MAX_ROWS: usize = 20_000;
/// What a chunk is to hold.
const AIM_BYTES: usize = 4 << 20;
/// Where a chunk is cut, whatever was asked for.
const MAX_BYTES: usize = 64 << 20;
/// Beyond this many rows, a transaction counts as having touched every row of the table.
const MAX_TOUCHED: usize = 50_000;
/// The longest wait for what was delivered before this program began.
const SETTLE: Duration = Duration::from_secs(1);

/// Which transactions a query sees: `pg_current_snapshot()`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    xmin: u64,
    xmax: u64,
    running: HashSet<u64>,
}

impl Snapshot {
    fn parse(text: &str) -> Result<Self> {
        let bad = || Error::corrupt(format!("{text:?} is no snapshot"));
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad);
        let (xmin, xmax) = (number()?, number()?);
        let running = parts.next().unwrap_or_default().split(',').filter(|part| !part.is_empty());
        let running = running.map(|part| part.parse().map_err(|_| bad())).collect::<Result<_>>()?;
        Ok(Self { xmin, xmax, running })
    }

    /// Whether it sees a transaction that the stream names by the low half of its number.
    fn sees(&self, xid: u32) -> bool {
        // Numbers in use lie within 2^31 of each other.
        let behind = (self.xmax as u32).wrapping_sub(xid).cast_signed();
        let full = self.xmax.wrapping_sub(i64::from(behind).cast_unsigned());
        full < self.xmin || (full < self.xmax && !self.running.contains(&full))
    }
}

async fn snapshot(conn: &mut PgConnection) -> Result<Snapshot> {
    let sql = "SELECT pg_catalog.pg_current_snapshot()::text";
    Snapshot::parse(&query_one(conn, "take a snapshot", sql).await?.unwrap_or_default())
}

/// Rows of one table that a transaction touched.
#[derive(Debug)]
enum Touched {
    Keys(HashSet<Vec<StoredValue>>),
    All,
}

/// Rows read, waiting for their message.
struct Chunk {
    number: u64,
    table: usize,
    snapshot: Snapshot,
    rows: Vec<Row>,
    /// Whether the table has no more rows.
    last: bool,
    /// Whether its message was written.
    announced: bool,
}

/// A transaction's wait to begin.
enum Settle {
    /// No snapshot was taken yet; `unbounded` where the wait may not be cut short.
    Begin {
        unbounded: bool,
    },
    Waiting {
        running: HashSet<u64>,
        until: Option<Instant>,
    },
    Done,
}

/// What is next of a table's copy.
pub(super) enum Piece {
    Row(Row),
    /// The copy has come this far: to a row that the stream has newer.
    Passed(Vec<Value>),
    /// The table is complete.
    End,
}

/// Reads the chunks of all tables that are to be copied, one table after another.
pub(super) struct Copier {
    slot: String,
    number: u64,
    limit: usize,
    chunk: Option<Chunk>,
    /// Rows whose message has come.
    ready: VecDeque<(usize, Piece)>,
    /// What delivered transactions touched in tables being copied.
    recent: HashMap<u32, HashMap<usize, Touched>>,
    settle: Settle,
    /// Tests turn the exclusion off, to see that it is needed.
    pub(super) careless: bool,
}

impl Copier {
    /// `unbounded` where tables were added to the publication: changes of transactions that are open now may be missing
    /// from the stream, and must be seen by the chunks.
    pub(super) fn new(slot: &str, unbounded: bool) -> Self {
        Self {
            slot: slot.to_owned(),
            // A message of an earlier run bears another number; the hasher's keys are random.
            number: RandomState::new().build_hasher().finish() >> 1,
            limit: FIRST_ROWS,
            chunk: None,
            ready: VecDeque::new(),
            recent: HashMap::new(),
            settle: Settle::Begin { unbounded },
            careless: false,
        }
    }

    /// A copy begins that nothing was noted for: what is in the middle of a table goes, and the wait begins again.
    pub(super) fn begin_again(&mut self) {
        let unbounded = matches!(self.settle, Settle::Begin { unbounded: true } | Settle::Waiting { until: None, .. });
        (self.chunk, self.settle) = (None, Settle::Begin { unbounded });
        self.ready.clear();
    }

    /// Notes that a delivered transaction touched a row of a table being copied; without a key, all of its rows.
    pub(super) fn touch(&mut self, xid: u32, table: usize, key: Option<&[Value]>) {
        let touched = self.recent.entry(xid).or_default().entry(table).or_insert_with(|| Touched::Keys(HashSet::new()));
        match (touched, key) {
            (Touched::Keys(keys), Some(key)) if keys.len() < MAX_TOUCHED => {
                keys.insert(key.iter().map(StoredValue::from).collect());
            }
            (touched, _) => *touched = Touched::All,
        }
    }

    /// The next rows whose place in the stream has come.
    pub(super) fn next(&mut self) -> Option<(usize, Piece)> {
        self.ready.pop_front()
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn idle(&self) -> bool {
        self.chunk.is_none() && self.ready.is_empty()
    }

    /// Whether the transactions to wait for have ended.
    async fn settled(&mut self, conn: &mut PgConnection) -> Result<bool> {
        match &mut self.settle {
            Settle::Done => return Ok(true),
            Settle::Begin { unbounded } => {
                let until = if *unbounded { None } else { Some(Instant::now() + SETTLE) };
                let now = snapshot(conn).await?;
                self.settle = Settle::Waiting { running: now.running, until };
            }
            Settle::Waiting { running, .. } => {
                let now = snapshot(conn).await?;
                running.retain(|xid| now.running.contains(xid));
                // Later snapshots see these, too.
                self.recent.retain(|xid, _| !now.sees(*xid));
            }
        }
        let Settle::Waiting { running, until } = &self.settle else { return Ok(false) };
        if running.is_empty() || until.is_some_and(|until| Instant::now() >= until) {
            self.settle = Settle::Done;
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads the next chunk of a table and writes its message, unless one is under way or the wait is not over.
    ///
    /// # Errors
    /// The connection is of no use after one. The chunk is read again.
    pub(super) async fn fetch(
        &mut self,
        conn: &mut Option<PgConnection>,
        table: usize,
        schema: &TableSchema,
        after: Option<&[Value]>,
    ) -> Result<()> {
        let Some(side) = conn else { return Ok(()) };
        if self.chunk.as_ref().is_some_and(|chunk| !chunk.announced) {
            return self.announce(side).await;
        }
        if !self.idle() || !self.settled(side).await? {
            return Ok(());
        }
        let doing = format!("copy table {}", schema.full_name());
        let from = from_item(side, schema).await?;
        // The lock comes before the snapshot: a table that is rewritten meanwhile looks empty to older snapshots.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '10s'; \
             LOCK TABLE {} IN ACCESS SHARE MODE",
            quoted_table(schema.schema.as_deref(), &schema.name)
        );
        execute(side, &doing, begin).await?;
        let snapshot = snapshot(side).await?;
        let sql = page_query(schema, &from, after, self.limit);
        let (rows, size, whole) = copy_out(side, &doing, kinds(schema), &sql, MAX_BYTES, Beyond::Stop).await?;
        self.number += 1;
        let last = whole && rows.len() < self.limit;
        if let Some(average) = size.checked_div(rows.len()) {
            self.limit = (AIM_BYTES / average.max(1)).clamp(1, MAX_ROWS).min(self.limit.saturating_mul(4));
        }
        self.chunk = Some(Chunk { number: self.number, table, snapshot, rows, last, announced: false });
        if !whole {
            // The rest of the answer still comes in there. The message is written on another connection.
            *conn = None;
            return Ok(());
        }
        execute(side, &doing, "COMMIT").await?;
        self.announce(side).await
    }

    /// Writes the message. A transaction number makes the commit flush it: the stream brings what is flushed.
    async fn announce(&mut self, side: &mut PgConnection) -> Result<()> {
        let content = literal(&format!("{}:{}", self.slot, self.number));
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_catalog.pg_current_xact_id()::text, \
             pg_catalog.pg_logical_emit_message(false, '{PREFIX}', {content})::text; COMMIT"
        );
        let written = execute(side, "write the copy's message", sql).await;
        match (&written, &mut self.chunk) {
            (Ok(()), Some(chunk)) => chunk.announced = true,
            _ => self.chunk = None,
        }
        written
    }

    /// The stream brought a message.
    pub(super) fn message(&mut self, content: &[u8], schema: impl Fn(usize) -> TableSchema) {
        let expected = |chunk: &mut Chunk| format!("{}:{}", self.slot, chunk.number).as_bytes() == content;
        let Some(chunk) = self.chunk.take_if(expected) else { return };
        if !self.careless {
            self.recent.retain(|xid, _| !chunk.snapshot.sees(*xid));
        } else {
            self.recent.clear();
        }
        let mut newer: HashSet<&Vec<StoredValue>> = HashSet::new();
        for touched in self.recent.values().filter_map(|tables| tables.get(&chunk.table)) {
            match touched {
                Touched::Keys(keys) => newer.extend(keys),
                // Too much is newer: the chunk is read again.
                Touched::All => return,
            }
        }
        let schema = schema(chunk.table);
        let is_newer = |row: &Row| {
            let key = schema.key_of(row);
            newer.contains(&key.iter().map(StoredValue::from).collect::<Vec<_>>()).then_some(key)
        };
        for row in chunk.rows {
            let piece = match if newer.is_empty() { None } else { is_newer(&row) } {
                Some(key) => Piece::Passed(key),
                None => Piece::Row(row),
            };
            self.ready.push_back((chunk.table, piece));
        }
        if chunk.last {
            self.ready.push_back((chunk.table, Piece::End));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it() {
        let snapshot = Snapshot::parse("100:110:102,105").unwrap();
        let seen: Vec<_> = (98..112).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [98, 99, 100, 101, 103, 104, 106, 107, 108, 109]);
        // Around the place where the low half begins again.
        let snapshot = Snapshot::parse("8589934590:8589934594:8589934591").unwrap();
        assert!(snapshot.sees(u32::MAX - 1) && snapshot.sees(0) && snapshot.sees(1));
        assert!(!snapshot.sees(u32::MAX) && !snapshot.sees(2));
        assert!(Snapshot::parse("5:6:").unwrap().sees(5));
        for bad in ["", "1", "1:x:", "1:2:x"] {
            assert!(Snapshot::parse(bad).is_err());
        }
    }
}
