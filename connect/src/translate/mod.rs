//! What a target makes of a source's tables: names, types and values.
//!
//! Between databases of one kind everything stays as it is. Between different kinds each column gets the target's type
//! that holds all its values, or, where there is none, one that holds them as text; [`Translation::losses`] tells what
//! changes. A value that the target cannot hold is refused, never rounded, cut or made NULL.
//!
//! The worker makes one translation for each topic; sinks write its rows, and `verify` compares them with what the target
//! gives back. `docs/TYPES.md` is generated from this module.

mod names;
mod spell;
mod to_mysql;
mod to_postgres;
mod to_sqlite;
mod value;

#[cfg(test)]
#[cfg(test)]
mod table;
#[cfg(test)]
mod tests;

pub use self::names::{check_names, target_name};

use self::value::Want;
use crate::{
    Error, Result,
    change::{Column, Row, TableSchema, Value},
    converter::TopicSchema,
    types::{Dialect, Kind},
};

/// A column's type in the target, what its values become, and what a person should know of it.
#[derive(Debug, Clone)]
struct Planned {
    declared_type: String,
    want: Want,
    told: Option<String>,
}

impl Planned {
    fn new(declared_type: impl Into<String>, want: Want) -> Self {
        Self { declared_type: declared_type.into(), want, told: None }
    }

    fn told(mut self, sentence: impl Into<String>) -> Self {
        self.told = Some(sentence.into());
        self
    }
}

/// How the rows of a topic become rows of a target.
#[derive(Debug, Clone)]
pub struct Translation {
    table: TableSchema,
    /// The columns of the table are the source's own, values and all.
    verbatim: bool,
    columns: Vec<Planned>,
    /// What the values look like in the topic, and in the target.
    from: Vec<Kind>,
    kinds: Vec<Kind>,
    key: Vec<usize>,
}

impl Translation {
    /// The translation of a topic for a kind of target.
    pub fn new(schema: &TopicSchema, to: Dialect) -> Self {
        let from = schema.connector;
        let columns = match to {
            Dialect::Sqlite => to_sqlite::columns(schema),
            Dialect::Postgres => to_postgres::columns(schema),
            Dialect::Mysql => to_mysql::columns(schema),
        };
        let declare = |(column, planned): (&Column, &Planned)| Column {
            declared_type: planned.declared_type.clone(),
            ..column.clone()
        };
        let (schema_name, name) = target_name(from, &schema.table, to);
        let table = TableSchema {
            schema: schema_name,
            name,
            columns: schema.table.columns.iter().zip(&columns).map(declare).collect(),
        };
        let kinds = columns.iter().map(|planned| to.kind(&planned.declared_type)).collect();
        let key = table.key_columns();
        Self { key, table, verbatim: from == to, columns, from: schema.kinds.clone(), kinds }
    }

    /// The table as the target declares it.
    pub fn table(&self) -> &TableSchema {
        &self.table
    }

    /// Places in a row of the key's columns, in key order.
    pub fn key_columns(&self) -> &[usize] {
        &self.key
    }

    /// What the values of each column look like in the target.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Column by column what the target holds otherwise than the source: the column, and a sentence.
    pub fn losses(&self) -> Vec<(String, String)> {
        let told = self.table.columns.iter().zip(&self.columns);
        told.filter_map(|(column, planned)| Some((column.name.clone(), planned.told.clone()?))).collect()
    }

    /// What is passed over where a row of the topic is compared with the target's: the columns, and what is made of them.
    pub fn normalised(&self) -> Vec<String> {
        let mut told: Vec<(&str, Vec<&str>)> = Vec::new();
        for ((column, from), kind) in self.table.columns.iter().zip(&self.from).zip(&self.kinds) {
            let Some(sentence) = spell::normalised(*from, *kind, self.verbatim) else { continue };
            match told.iter_mut().find(|(known, _)| *known == sentence) {
                Some((_, columns)) => columns.push(&column.name),
                None => told.push((sentence, vec![&column.name])),
            }
        }
        told.into_iter().map(|(sentence, columns)| format!("{} {sentence}", columns.join(", "))).collect()
    }

    /// A row of the topic as the target holds it. A value that the source did not tell stays one.
    ///
    /// # Errors
    /// `Conflict` names the column and the value that the target cannot hold; `Invalid` for a row of another width.
    pub fn row(&self, row: Row) -> Result<Row> {
        if row.len() != self.columns.len() {
            return Err(Error::invalid(format!(
                "a row of {} has {} values, the table {} columns",
                self.table.full_name(),
                row.len(),
                self.columns.len()
            )));
        }
        row.into_iter().enumerate().map(|(column, value)| self.value(column, value)).collect()
    }

    /// A key of the topic as the target holds it.
    ///
    /// # Errors
    /// As [`Translation::row`].
    pub fn key(&self, key: Row) -> Result<Row> {
        if key.len() != self.key.len() {
            return Err(Error::invalid(format!(
                "a key of {} has {} values, not {}",
                self.table.full_name(),
                key.len(),
                self.key.len()
            )));
        }
        key.into_iter().zip(&self.key).map(|(value, column)| self.value(*column, value)).collect()
    }

    /// A row of the target with what means the same spelled the same.
    pub fn comparable(&self, row: Row) -> Row {
        let spell = |(value, kind): (Value, &Kind)| spell::comparable(value, *kind, self.verbatim);
        row.into_iter().zip(&self.kinds).map(spell).collect()
    }

    fn value(&self, column: usize, value: Value) -> Result<Value> {
        let planned = &self.columns[column];
        planned.want.convert(value).map_err(|(shown, why)| {
            let name = &self.table.columns[column].name;
            let holds = match planned.declared_type.as_str() {
                "" => "an untyped column",
                declared => declared,
            };
            Error::conflict(format!(
                "column {name} of target table {} ({holds}) cannot hold {shown}: {why}",
                self.table.full_name()
            ))
        })
    }
}
