//! Copies tables piece by piece, in between the changes.
//!
//! A piece is given out at the moment at which the stream has reached the place of its snapshot, so that its rows are
//! neither older nor newer than the changes before them. A snapshot that is behind what was delivered is not taken: the
//! server sends a transaction as soon as the binlog has it, which is before the engine shows its rows.

use std::time::Instant;

use mysql_async::Conn;

use super::{Follower, Gtids, LOCK_PAUSE, Out, Table, Waiting};
use crate::{
    Error, ErrorKind, Result,
    change::{Change, Op, Row, StoredValue, Value},
    mysql::{
        catalog::gtid_at,
        copy::{self, FIRST_ROWS},
        endpoint::connect,
        gtid::MariaPosition,
        position::{Copy, Flavour, Place},
        stream::run,
    },
};

impl Follower {
    pub(super) async fn side(&mut self) -> Result<&mut Conn> {
        let conn = match self.side.take() {
            Some(conn) => conn,
            None => connect(&self.server).await?,
        };
        Ok(self.side.insert(conn))
    }

    /// Gives out rows of a copy, or reads the next piece. Whether there is something to give out.
    pub(super) async fn copy_step(&mut self, out: &mut Out) -> Result<bool> {
        if self.waiting.is_none() {
            self.read_piece().await?;
        }
        let place = self.place();
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.at <= place) else { return Ok(false) };
        let index = waiting.table;
        let table = &mut self.tables[index];
        let mut key = None;
        while !out.is_full() {
            let Some(row) = waiting.rows.next() else { break };
            let own = table.schema.key_of(&row);
            key = Some(own.iter().map(StoredValue::from).collect());
            let (op, after) = (Op::Read, Some(row));
            out.push(Change { table: index, op, key: own, before: None, after, sequence: 0 });
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
            run(conn, "COMMIT").await?;
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
        let (file, position) = at;
        let at = Place::new(&file, position);
        if !self.knobs.stale_snapshots && at < self.reached() && !self.holds_all(&file, position).await? {
            self.copy_from = Instant::now() + LOCK_PAUSE;
            return Ok(());
        }
        self.limit = piece.next_limit(limit);
        self.waiting = Some(Waiting { table: index, rows: piece.rows.into_iter(), last: piece.last, at });
        Ok(())
    }

    /// How far changes were given out or passed over, also before this connection.
    fn reached(&self) -> Place {
        self.place().max(Place::new(&self.head.file, self.head.position))
    }

    /// Whether at a place before the one that was reached all transactions were there: what came after it were none.
    async fn holds_all(&mut self, file: &str, position: u64) -> Result<bool> {
        let there = gtid_at(self.side().await?, file, position).await?;
        let there = there.and_then(|text| MariaPosition::parse(&text));
        Ok(match (&self.gtids, there) {
            (Gtids::Maria(own), Some(there)) => own.is_within(&there),
            _ => false,
        })
    }
}
