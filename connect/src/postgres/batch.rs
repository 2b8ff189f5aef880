//! What one poll gives: how much it may be, and large values that the stream did not repeat.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{endpoint::connect, lookup::find_rows, shape::Followed, stop::Stop};
use crate::{
    ErrorKind, Result,
    change::{Change, Value},
    connector::Polled,
    endpoint::Server,
};

/// What a poll gives at most.
const MAX_CHANGES: usize = 2_000;
const MAX_BYTES: usize = 4 << 20;
/// How many rows may lack values: nobody knows how large these are before they are here.
const MAX_INCOMPLETE: usize = 100;

/// What a poll has found so far.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) polled: Polled,
    bytes: usize,
    incomplete: usize,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.has_no_changes() && self.polled.truncated.is_empty() && self.polled.evolved.is_empty()
    }

    pub(super) fn has_no_changes(&self) -> bool {
        self.polled.changes.is_empty() && self.polled.finished_tables.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.polled.changes.len() >= MAX_CHANGES || self.bytes >= MAX_BYTES || self.incomplete >= MAX_INCOMPLETE
    }

    pub(super) fn push(&mut self, change: Change) {
        let rows = [&change.before, &change.after];
        self.bytes += rows.into_iter().flatten().flatten().map(Value::size_bytes).sum::<usize>();
        self.incomplete += usize::from(is_incomplete(&change));
        self.polled.changes.push(change);
    }

    /// Asks the database for large values that the stream did not repeat: their present ones. One that is newer than the
    /// change comes again with its own change; a row that is gone is deleted by a change to come.
    /// Who needs every value a row ever had sets the table's `REPLICA IDENTITY FULL`.
    pub(super) async fn complete(
        &mut self,
        server: &Server,
        side: &mut Option<PgConnection>,
        tables: &[Followed],
    ) -> Result<()> {
        let mut by_table: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, change) in self.polled.changes.iter().enumerate().filter(|(_, change)| is_incomplete(change)) {
            by_table.entry(change.table).or_default().push(at);
        }
        for (table, places) in by_table {
            if side.is_none() {
                *side = Some(connect(server).await?);
            }
            let Some(conn) = side else { continue };
            let changes = &mut self.polled.changes;
            let schema = &tables[table].schema;
            let unknown = |column: &usize| {
                places.iter().any(|at| changes[*at].after.as_ref().is_some_and(|row| row[*column] == Value::Unchanged))
            };
            let columns: Vec<usize> = (0..schema.columns.len()).filter(unknown).collect();
            let keys: Vec<&[Value]> = places.iter().map(|at| &changes[*at].key[..]).collect();
            let found = match find_rows(conn, schema, &columns, &keys).await {
                Ok(found) => found,
                Err(error) => {
                    *side = None;
                    return Err(match error.kind() {
                        ErrorKind::Invalid | ErrorKind::NotFound => {
                            Stop::Columns { table: schema.full_name(), what: error.to_string() }.into()
                        }
                        _ => error,
                    });
                }
            };
            for (at, found) in places.iter().zip(found) {
                let (Some(found), Some(row)) = (found, &mut changes[*at].after) else { continue };
                for (column, value) in columns.iter().zip(found) {
                    if row[*column] == Value::Unchanged {
                        row[*column] = value;
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_incomplete(change: &Change) -> bool {
    change.after.as_ref().is_some_and(|row| row.contains(&Value::Unchanged))
}
