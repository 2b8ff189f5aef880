//! Takes the stream's events one by one: transactions, rows, truncates, what it says of tables.

use std::collections::HashMap;

use pgwire_replication::client::ReplicationEvent;

use super::{
    batch::Batch,
    copy::PREFIX,
    pgoutput::{self, Message, Relation},
    position::{CopyState, Lsn, Partial},
    shape::{Fit, Followed, TypeNames, before, fills, fit, has_other_types, update},
    source::PostgresSource,
};
use crate::{
    Error, Result,
    change::{Change, Op, Value},
};

/// A transaction being delivered.
pub(super) struct Transaction {
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

/// Whether an event was taken, or must begin the next poll.
#[derive(PartialEq)]
pub(super) enum Taken {
    Yes,
    NotYet,
}

/// What holds for one connection only.
#[derive(Default)]
pub(super) struct Session {
    described: HashMap<u32, Described>,
    types: TypeNames,
    pub(super) transaction: Option<Transaction>,
}

impl PostgresSource {
    /// Takes an event of the stream.
    ///
    /// # Errors
    /// Nothing was taken then: the event may come again.
    pub(super) async fn take(&mut self, event: &ReplicationEvent, batch: &mut Batch) -> Result<Taken> {
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
            let known = &self.tables[table].schema;
            let again = has_other_types(known, &schema) || fills(side, known, &schema).await?;
            if again {
                self.tables[table].copy = CopyState::NotStarted;
                batch.polled.copied_again.push(table);
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
}
