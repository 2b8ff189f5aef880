//! What a topic already says, by key: so that a copy writes no row that is there already.
//!
//! A copy made again is compared with all rows of its topic: it writes only what differs, and deletes what is gone. A
//! first copy is compared with the rows that the capture brought before the copy reached them: each row then comes once,
//! and who adds rows up counts none twice.
//!
//! Keys and rows are held as hashes: 128 bits of a key, 64 of a row, so that a million rows take some 40 MB.

use std::{
    collections::{HashMap, HashSet, hash_map::DefaultHasher},
    hash::Hasher,
};

use bytes::Bytes;
use tidemill_core::{
    log::{FetchOptions, Session},
    record::FetchedRecord,
    topic::TopicPartition,
};

use super::schemas::Schemas;
use crate::{
    Result,
    change::{Change, Op, Value},
    converter::TopicSchema,
};

pub(super) type KeyHash = [u64; 2];

struct Known {
    row: u64,
    /// The pass in which the source last showed the row.
    pass: u32,
}

/// The rows of one topic.
pub(super) struct Reconciler {
    rows: HashMap<KeyHash, Known>,
    scope: Scope,
    pass: u32,
    /// Rows of the present copy that the topic has, where the copy goes on.
    copied: u64,
}

/// Which rows are remembered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// All: what the source does not show is gone.
    All,
    /// Those that were changed. Rows that a copy reads come by once and need not be remembered.
    Changed,
}

/// A row that the topic has and the source has no more: its newest record.
pub(super) struct Gone {
    pub(super) key: Bytes,
    /// Its delete; none where the target's table was made anew since.
    pub(super) change: Option<Change>,
}

/// Whether keys of both schemas are keys of the same rows.
pub(super) fn same_key(a: &TopicSchema, b: &TopicSchema) -> bool {
    let key = |schema: &TopicSchema| -> Vec<_> {
        let columns = schema.table.key_columns().into_iter();
        columns.map(|i| (schema.table.columns[i].name.clone(), schema.kinds.get(i).copied())).collect()
    };
    key(a) == key(b)
}

/// The delete of a row that a record has, in the topic's present schema.
/// `kept` tells that the target keeps its tables when they are copied anew.
pub(super) fn gone(key: Bytes, of: &TopicSchema, change: Change, present: &TopicSchema, kept: bool) -> Gone {
    if of.copy_id() != present.copy_id() && !(kept && same_key(of, present)) {
        // The target's table was made anew, or has no such key: only the topic still has the row.
        return Gone { key, change: None };
    }
    let before = match change.after {
        Some(row) if of.id == present.id => row,
        // Of a row that was written with other columns the key is enough.
        _ => {
            let mut row = vec![Value::Unchanged; present.table.columns.len()];
            for (column, value) in present.table.key_columns().into_iter().zip(&change.key) {
                row[column] = value.clone();
            }
            row
        }
    };
    let delete = Change { table: 0, op: Op::Delete, key: change.key, before: Some(before), after: None, sequence: 0 };
    Gone { key, change: Some(delete) }
}

impl Reconciler {
    /// For a copy that is made again.
    pub(super) async fn of_all(session: &dyn Session, schemas: &Schemas, topic: &str) -> Result<Self> {
        Self::load(session, schemas, topic, Scope::All).await
    }

    /// For a first copy, from its start or from where it was.
    pub(super) async fn of_changed(session: &dyn Session, schemas: &Schemas, topic: &str) -> Result<Self> {
        Self::load(session, schemas, topic, Scope::Changed).await
    }

    /// Reads a topic from its start to its present end.
    async fn load(session: &dyn Session, schemas: &Schemas, topic: &str, scope: Scope) -> Result<Self> {
        let mut this = Self { rows: HashMap::new(), scope, pass: 1, copied: 0 };
        let copy = schemas.newest(topic).map(|newest| newest.copy_id());
        scan(session, topic, |record| {
            let Some(key) = &record.key else { return Ok(()) };
            let hash = hash_key(key);
            match schemas.decode(&record)? {
                Some((schema, change)) if change.op == Op::Read && scope == Scope::Changed => {
                    this.copied += u64::from(Some(schema.copy_id()) == copy);
                }
                Some((schema, change)) if change.op != Op::Delete => {
                    let row = hash_row(schema.copy_id(), change.after.as_deref().unwrap_or_default());
                    this.rows.insert(hash, Known { row, pass: 0 });
                }
                _ => {
                    this.rows.remove(&hash);
                }
            }
            Ok(())
        })
        .await?;
        Ok(this)
    }

    /// How many rows an earlier run has copied, where the copy goes on; for progress only.
    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    /// Whether a change must be written: a row read again that the topic has as it is need not.
    pub(super) fn admit(&mut self, schema: &TopicSchema, change: &Change) -> bool {
        if change.op == Op::Read && self.scope == Scope::Changed && self.rows.is_empty() {
            return true;
        }
        let key = hash_key(schema.encode_key(&change.key).as_bytes());
        let Some(after) = &change.after else {
            self.rows.remove(&key);
            return true;
        };
        let row = hash_row(schema.copy_id(), after);
        if change.op == Op::Read && self.scope == Scope::Changed {
            return self.rows.get(&key).is_none_or(|known| known.row != row);
        }
        let before = self.rows.insert(key, Known { row, pass: self.pass });
        change.op != Op::Read || before.is_none_or(|known| known.row != row)
    }

    /// Ends a pass over the table: the rows that are there and the source did not show, nor shows with the `last` keys.
    pub(super) fn end_pass(&mut self, last: &HashSet<KeyHash>) -> HashSet<KeyHash> {
        if self.scope == Scope::Changed {
            return HashSet::new();
        }
        let unseen = self.rows.iter().filter(|(key, known)| known.pass != self.pass && !last.contains(*key));
        let unseen: HashSet<_> = unseen.map(|(key, _)| *key).collect();
        self.rows.retain(|key, _| !unseen.contains(key));
        unseen
    }

    /// The source reads all from the start: what it showed before proves nothing.
    pub(super) fn begin_again(&mut self) {
        self.pass += 1;
    }
}

pub(super) async fn scan(
    session: &dyn Session,
    topic: &str,
    mut each: impl FnMut(FetchedRecord) -> Result<()> + Send,
) -> Result<()> {
    let partition = TopicPartition::new(topic, 0);
    let bounds = session.bounds(std::slice::from_ref(&partition)).await?;
    let Some(bounds) = bounds.first() else { return Ok(()) };
    let options = FetchOptions { max_bytes: 4 << 20, end: Some(bounds.durable_offset), ..FetchOptions::default() };
    let mut offset = bounds.log_start_offset;
    while offset < bounds.durable_offset {
        let chunk = session.fetch(&partition, offset, &options).await?;
        chunk.records.into_iter().try_for_each(&mut each)?;
        offset = chunk.next_offset;
    }
    Ok(())
}

pub(super) fn hash_key(key: &[u8]) -> KeyHash {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        hasher.write(key);
        hasher.finish()
    };
    [half(1), half(2)]
}

fn hash_row(copy_id: u64, row: &[Value]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(copy_id);
    for value in row {
        let (tag, bytes): (u8, &[u8]) = match value {
            Value::Null => (0, &[]),
            Value::Boolean(b) => (6, &[u8::from(*b)]),
            Value::Unsigned(u) => (7, &u.to_le_bytes()),
            Value::Unchanged => (8, &[]),
            Value::Integer(i) => (1, &i.to_le_bytes()),
            Value::Real(r) => (2, &r.to_bits().to_le_bytes()),
            Value::Text(text) => (3, text.as_bytes()),
            Value::InvalidText(bytes) => (4, bytes),
            Value::Blob(bytes) => (5, bytes),
        };
        hasher.write_u8(tag);
        hasher.write_usize(bytes.len());
        hasher.write(bytes);
    }
    hasher.finish()
}
