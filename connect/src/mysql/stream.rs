//! The connection over which the server sends its binlog.

use std::{
    panic::AssertUnwindSafe,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use mysql_async::{BinlogStream, BinlogStreamRequest, Conn, prelude::Queryable};

use super::{
    binlog::{
        bytes::corrupt,
        event::{self, Event},
    },
    catalog::check,
    endpoint::{connect, driver_error},
    position::{Flavour, Head, Place},
    stop::Stop,
};
use crate::{Error, ErrorKind, Result, endpoint::Server};

/// The server tells this often that it is there while nothing happens; also how soon a follower knows how far it is.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// A server that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(30);
/// The error of a server that cannot send from where it was asked to.
const CANNOT_SEND: u16 = 1236;

/// Events, from a position on.
pub struct Stream {
    events: BinlogStream,
    file: String,
    position: u64,
    heard: Instant,
    /// Bytes of a compressed transaction whose events are still to come.
    packed: u64,
}

impl Stream {
    /// Asks the server to send what follows a position, after checking that it is the same server.
    ///
    /// # Errors
    /// `Conflict` where the server is another one, was restored or no longer has the position.
    pub async fn open(server: &Server, head: &Head, replica: u32) -> Result<Self> {
        let mut conn = connect(server).await?;
        check(&mut conn, head).await?;
        let nanos = HEARTBEAT.as_nanos();
        run(&mut conn, &format!("SET @master_heartbeat_period = {nanos}, @source_heartbeat_period = {nanos}")).await?;
        run(&mut conn, "SET SESSION net_write_timeout = 600").await?;
        let request = BinlogStreamRequest::new(replica);
        let request = match head.flavour {
            Flavour::Mariadb => {
                // GTIDs consist of numbers and signs between them.
                let gtid: String = head.gtid.chars().filter(|c| c.is_ascii_digit() || matches!(c, '-' | ',')).collect();
                run(&mut conn, "SET @mariadb_slave_capability = 4").await?;
                run(&mut conn, &format!("SET @slave_connect_state = '{gtid}'")).await?;
                run(&mut conn, "SET @slave_gtid_strict_mode = 1, @slave_gtid_ignore_duplicates = 0").await?;
                request
            }
            Flavour::Mysql if !head.gtid.is_empty() => {
                let sids = head.gtid.split(',').map(|part| part.trim().parse());
                let sids: Result<Vec<_>, _> = sids.collect();
                let sids = sids.map_err(|_| Error::internal(format!("{:?} is no set of GTIDs", head.gtid)))?;
                request.with_gtid().with_gtid_set(sids)
            }
            Flavour::Mysql => request.with_filename(head.file.as_bytes()).with_pos(head.position),
        };
        let events = Box::pin(conn.get_binlog_stream(request)).await.map_err(|e| sending_error(&e))?;
        Ok(Self { events, file: head.file.clone(), position: 4, heard: Instant::now(), packed: 0 })
    }

    /// How far the server is known to be read.
    pub fn place(&self) -> Place {
        Place::new(&self.file, self.position)
    }

    /// The same, as the server counts.
    pub fn file_and_position(&self) -> (&str, u64) {
        (&self.file, self.position)
    }

    /// The next event; `None` where none came in time. Without a time, only one that is here already.
    ///
    /// # Errors
    /// `Unavailable` where the connection broke, `Conflict` where the server cannot send.
    pub async fn next(&mut self, wait: Duration) -> Result<Option<Event>> {
        // The driver's reader of events may panic on damage; it is given up then.
        let next = AssertUnwindSafe(self.events.next()).catch_unwind();
        let next = match wait.is_zero() {
            true => next.now_or_never(),
            false => tokio::time::timeout(wait, next).await.ok(),
        };
        let Some(next) = next else {
            if self.heard.elapsed() > SILENCE {
                let silence = SILENCE.as_secs();
                return Err(Error::unavailable(format!("the server said nothing for {silence} s")));
            }
            return Ok(None);
        };
        let next = next.map_err(|_| Error::unavailable("the server sent what is no event"))?;
        let event = next.ok_or_else(|| Error::unavailable("the server ended the binlog's connection"))?;
        let event = event.map_err(|e| sending_error(&e))?;
        self.heard = Instant::now();
        let header = event.header();
        let read = event::read(header.event_type_raw(), header.server_id(), event.data())?;
        self.packed = left(self.packed, header.event_size().into(), &read)?;
        match &read {
            // Before the format is known the driver leaves the checksum at the name's end.
            Event::Rotate { file, position } if number_ends(file) == self.file => {
                self.position = self.position.max(*position)
            }
            Event::Rotate { file, position } => {
                (self.file, self.position) = (number_ends(file).to_owned(), *position);
            }
            // A checksum may look like a part of the number.
            Event::Heartbeat { file } if *file != self.file => {
                (self.file, self.position) = (file.clone(), header.log_pos().into());
            }
            _ => self.advance(header.log_pos()),
        }
        Ok(Some(read))
    }

    /// An event ends at a position, of which it has 32 bits; none where the server made it up.
    fn advance(&mut self, log_pos: u32) {
        let wrapped = self.position & !u64::from(u32::MAX) | u64::from(log_pos);
        let next = if wrapped + (1 << 31) < self.position { wrapped + (1 << 32) } else { wrapped };
        if log_pos != 0 {
            self.position = self.position.max(next);
        }
    }
}

/// How many bytes of a compressed transaction are left after an event of so many. The driver says nothing where it
/// cannot unpack one.
fn left(packed: u64, bytes: u64, event: &Event) -> Result<u64> {
    let outside =
        matches!(event, Event::MysqlGtid(_) | Event::Rotate { .. } | Event::Heartbeat { .. } | Event::Payload { .. });
    match event {
        _ if packed > 0 && outside => Err(corrupt("a compressed transaction cannot be unpacked")),
        Event::Payload { size } => Ok(*size),
        _ if packed == 0 => Ok(0),
        _ => packed.checked_sub(bytes).ok_or_else(|| corrupt("a compressed transaction is too long")),
    }
}

/// A file's name up to the end of its number.
fn number_ends(file: &str) -> &str {
    let number = file.rfind('.').map_or(0, |dot| dot + 1);
    let length = file[number..].find(|c: char| !c.is_ascii_digit());
    length.map_or(file, |length| &file[..number + length])
}

fn sending_error(error: &mysql_async::Error) -> Error {
    match error {
        mysql_async::Error::Server(refused) if refused.code == CANNOT_SEND => {
            Stop::Purged(refused.message.to_string()).into()
        }
        // What cannot be read now can be after a new connection.
        mysql_async::Error::Io(_) => Error::unavailable(driver_error(error).message().to_owned()),
        other => {
            let error = driver_error(other);
            if error.kind() == ErrorKind::Internal { Error::unavailable(error.message().to_owned()) } else { error }
        }
    }
}

/// Runs a statement.
pub async fn run(conn: &mut Conn, sql: &str) -> Result<()> {
    conn.query_drop(sql).await.map_err(|e| driver_error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_transaction_is_whole_or_refused() {
        let begun = left(0, 500, &Event::Payload { size: 100 }).unwrap();
        let rest = left(begun, 60, &Event::Other).unwrap();
        assert_eq!(left(rest, 40, &Event::Xid).unwrap(), 0);
        assert!(left(rest, 41, &Event::Xid).is_err());
        // The driver gave none of it.
        assert!(left(begun, 60, &Event::MysqlGtid(None)).is_err());
        assert!(left(begun, 60, &Event::Heartbeat { file: String::new() }).is_err());
    }
}
