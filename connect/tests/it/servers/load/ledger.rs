//! What a load committed, in order.

use std::collections::BTreeMap;

use super::super::judge::Cell;

/// The cells of a row in the spelling of [`judge::normal`](super::super::judge::normal), in the order of the columns.
pub type Row = Vec<Cell>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Insert,
    Update,
    Delete,
}

/// A committed change of one row. A change of the key is two: a delete of the old key and an insert of the new one.
#[derive(Clone, Debug)]
pub struct Change {
    pub transaction: u64,
    pub table: String,
    pub op: Op,
    pub key: Vec<String>,
    pub before: Option<Row>,
    pub after: Option<Row>,
    /// It is half of a change of the key.
    pub moved: bool,
}

/// A change as a test found it in a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub table: String,
    pub op: Op,
    pub key: Vec<String>,
    pub after: Option<Row>,
}

#[derive(Clone, Default)]
pub struct Ledger {
    pub changes: Vec<Change>,
}

type ByKey<'a> = BTreeMap<(&'a str, &'a [String]), Vec<(Op, Option<&'a Row>)>>;

impl Ledger {
    pub(super) fn push(&mut self, changes: Vec<Change>) {
        self.changes.extend(changes);
    }

    /// Number of the last transaction.
    pub fn last(&self) -> u64 {
        self.changes.last().map_or(0, |change| change.transaction)
    }

    /// The changes of later transactions than this.
    pub fn after(&self, transaction: u64) -> Self {
        Self { changes: self.changes.iter().filter(|change| change.transaction > transaction).cloned().collect() }
    }

    /// The rows of a table after all changes, by key.
    pub fn rows(&self, table: &str) -> BTreeMap<Vec<String>, Row> {
        let mut rows = BTreeMap::new();
        for change in self.changes.iter().filter(|change| change.table == table) {
            match &change.after {
                Some(row) => rows.insert(change.key.clone(), row.clone()),
                None => rows.remove(&change.key),
            };
        }
        rows
    }

    /// The stream that a perfect reader gives.
    pub fn seen(&self) -> Vec<Seen> {
        let seen = |change: &Change| Seen {
            table: change.table.clone(),
            op: change.op,
            key: change.key.clone(),
            after: change.after.clone(),
        };
        self.changes.iter().map(seen).collect()
    }

    /// Checks that a stream holds each change once and in order per key; a line for each key of which it does not.
    pub fn differences(&self, stream: &[Seen]) -> Vec<String> {
        let (mut expected, mut found) = (ByKey::new(), ByKey::new());
        for change in &self.changes {
            let key = (change.table.as_str(), change.key.as_slice());
            expected.entry(key).or_default().push((change.op, change.after.as_ref()));
        }
        for seen in stream {
            found.entry((&seen.table, &seen.key)).or_default().push((seen.op, seen.after.as_ref()));
        }
        let mut told = Vec::new();
        for (key, expected) in &expected {
            let found = found.remove(key).unwrap_or_default();
            if found != *expected {
                let first = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
                told.push(format!(
                    "{} {:?}: {} changes instead of {}; number {first} is {} instead of {}",
                    key.0,
                    key.1,
                    found.len(),
                    expected.len(),
                    shown(found.get(first)),
                    shown(expected.get(first)),
                ));
            }
        }
        told.extend(
            found.iter().map(|(key, found)| format!("{} {:?}: {} changes of nothing", key.0, key.1, found.len())),
        );
        told
    }
}

fn shown(change: Option<&(Op, Option<&Row>)>) -> String {
    change.map_or("missing".to_owned(), |change| format!("{change:?}").chars().take(300).collect())
}
