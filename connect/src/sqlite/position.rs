//! A capture's place in its source, stored by the worker together with the changes that lead to it.

use serde::{Deserialize, Serialize};

use super::value::StoredValue;
use crate::change::TableSchema;

/// Where a capture is. Opaque to the worker: it stores it as JSON and gives it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The random identity written into the source when the capture was installed.
    pub(super) source: String,
    /// The last journal sequence that was read.
    pub(super) seq: i64,
    /// The mark that the source carries.
    pub(super) mark: String,
    /// The mark that it may get once this position is durable.
    pub(super) next: String,
    /// Every captured table.
    pub(super) tables: Vec<TablePosition>,
}

/// One table's part of a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TablePosition {
    pub(super) schema: TableSchema,
    pub(super) copy: CopyState,
}

/// How far the copy of a table is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CopyState {
    NotStarted,
    After(Vec<StoredValue>),
    Done,
}

impl Position {
    /// The last captured sequence, for status displays.
    pub fn sequence(&self) -> i64 {
        self.seq
    }

    /// Whether every table has been copied.
    pub fn copied(&self) -> bool {
        self.tables.iter().all(|table| table.copy == CopyState::Done)
    }

    /// Names of the tables whose copy has begun but not ended.
    pub fn unfinished(&self) -> Vec<String> {
        let begun = self.tables.iter().filter(|table| matches!(table.copy, CopyState::After(_)));
        begun.map(|table| table.schema.name.clone()).collect()
    }

    /// Names of the tables whose copy has not begun.
    pub fn not_started(&self) -> Vec<String> {
        let waiting = self.tables.iter().filter(|table| table.copy == CopyState::NotStarted);
        waiting.map(|table| table.schema.name.clone()).collect()
    }
}
