//! Takes events, one after another, and gives out the changes they tell.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{Follower, Gtid, Gtids, MAX_MAPS, Out, Transaction, WAIT, uuid};
use crate::{
    Error, Result,
    change::{Change, Op},
    mysql::{
        binlog::{
            bytes::corrupt,
            event::{Event, RowsKind},
            rows::Reader,
        },
        position::{Copy, Place},
        stop::Stop,
    },
};

impl Follower {
    pub(super) async fn fill(&mut self, out: &mut Out) -> Result<()> {
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
                    return Err(corrupt("rows are of a table that was not told"));
                };
                let place = self.place();
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
                if rows.kind == RowsKind::Partial {
                    return Err(Stop::Parts { table: name }.into());
                }
                if !rows.full {
                    return Err(Stop::NotFull { table: name }.into());
                }
                if transaction.prepared {
                    return Err(Stop::Prepared { table: name }.into());
                }
                transaction.touched.insert(*table);
                // A copy's rows would be older than this change.
                self.waiting.take_if(|waiting| waiting.table == *table && waiting.at < place);
                let mut reader = Reader::new(rows, binding)?;
                for _ in 0..rows_delivered {
                    reader.next(binding)?;
                }
                self.reader = Some((*table, reader));
            }
            Event::Rotate { .. } | Event::Heartbeat { .. } | Event::Payload { .. } | Event::Other => {
                if self.transaction.is_none() {
                    self.note_place();
                }
            }
        }
        Ok(None)
    }

    pub(super) fn begin(&mut self, name: Option<Gtid>, standalone: bool, prepared: bool, sequence: i64) {
        let touched = BTreeSet::new();
        self.transaction = Some(Transaction { name, standalone, prepared, events: 0, touched, sequence });
    }

    pub(super) fn end_transaction(&mut self) {
        // Tables get new numbers when the server opens them anew; each transaction tells its own.
        if self.maps.len() > MAX_MAPS {
            self.maps.clear();
        }
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
        let Some((table, reader)) = &mut self.reader else { return Ok(()) };
        let table = *table;
        let binding = self.maps.get(&reader.table_id()).and_then(|mapped| mapped.table.as_ref());
        let Some((_, binding)) = binding else { return Err(Error::internal("a table was lost while it was read")) };
        let schema = &self.tables[table].schema;
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
}
