//! Tables as they are followed: their columns, how the stream lays them out, and what a change of columns means.

use std::collections::HashMap;

use sqlx::PgConnection;

use super::{
    endpoint::{literal, query},
    pgoutput::{Cell, Old, Relation, RelationColumn, Tuple},
    position::{CopyState, Lsn, TablePosition},
    stop::Stop,
    text::{decode, kinds},
};
use crate::{
    Error, Result,
    change::{Column, Op, Row, TableSchema, Value},
    types::Kind,
};

/// A table that is followed.
pub(super) struct Followed {
    pub(super) schema: TableSchema,
    kinds: Vec<Kind>,
    pub(super) copy: CopyState,
    /// Whether the stored position knew it, and it is not copied anew.
    pub(super) known: bool,
    /// Where the stream of it begins.
    pub(super) from: Option<Lsn>,
    /// Whether its part of the position is to be told.
    pub(super) changed: bool,
}

impl Followed {
    /// A table that was not followed before, or is copied anew.
    pub(super) fn new(schema: TableSchema, from: Option<Lsn>) -> Self {
        Self { kinds: kinds(&schema), schema, copy: CopyState::NotStarted, known: false, from, changed: false }
    }

    /// A table as the position has it.
    pub(super) fn known(stored: TablePosition) -> Self {
        Self { copy: stored.copy, known: true, ..Self::new(stored.schema, stored.from) }
    }

    /// Whether the stream's rows of a transaction are wanted.
    pub(super) fn wants(&self, commit: Lsn) -> bool {
        self.from.is_none_or(|from| commit >= from)
    }

    /// Takes new columns.
    pub(super) fn reshape(&mut self, schema: TableSchema) {
        (self.kinds, self.schema, self.changed) = (kinds(&schema), schema, true);
    }

    /// A row of the stream, its cells where `places` tells.
    pub(super) fn row(&self, places: &[usize], tuple: &Tuple) -> Result<Row> {
        let mut row = Vec::with_capacity(places.len());
        for (place, kind) in places.iter().zip(&self.kinds) {
            row.push(match tuple.get(*place) {
                Some(Cell::Null) => Value::Null,
                Some(Cell::Unchanged) => Value::Unchanged,
                Some(Cell::Text(text)) => decode(*kind, text)?,
                None => {
                    let name = self.schema.full_name();
                    return Err(Error::corrupt(format!("a row of table {name} in the stream is too short")));
                }
            });
        }
        Ok(row)
    }

    /// What is known of a row of which only the key is told.
    pub(super) fn only_key(&self, mut row: Row) -> Row {
        for (value, column) in row.iter_mut().zip(&self.schema.columns) {
            if column.key.is_none() {
                *value = Value::Unchanged;
            }
        }
        row
    }
}

/// A row before its change, as far as it is told.
pub(super) fn before(table: &Followed, places: &[usize], old: &Old) -> Result<Row> {
    let row = table.row(places, &old.tuple)?;
    Ok(if old.full { row } else { table.only_key(row) })
}

/// What happened to a row, with the row before and after.
pub(super) type Changed = (Op, Option<Row>, Option<Row>);

/// What an update of a row is: a change of its key is a delete and a create.
pub(super) fn update(table: &Followed, places: &[usize], old: Option<Old>, new: &Tuple) -> Result<Vec<Changed>> {
    let mut after = table.row(places, new)?;
    let before = match &old {
        Some(old) => before(table, places, old)?,
        None => table.only_key(after.clone()),
    };
    for (value, old) in after.iter_mut().zip(&before) {
        if *value == Value::Unchanged {
            value.clone_from(old);
        }
    }
    Ok(match table.schema.key_of(&before) == table.schema.key_of(&after) {
        true => vec![(Op::Update, Some(before), Some(after))],
        false => vec![(Op::Delete, Some(before), None), (Op::Create, None, Some(after))],
    })
}

/// Names of types by number and modifier, domains by the type they stand on.
#[derive(Default)]
pub(super) struct TypeNames(HashMap<(u32, i32), Option<String>>);

impl TypeNames {
    /// Learns the types of columns.
    pub(super) async fn learn(&mut self, conn: &mut PgConnection, columns: &[RelationColumn]) -> Result<()> {
        let missing: Vec<_> = columns
            .iter()
            .map(|column| (column.type_oid, column.modifier))
            .filter(|pair| !self.0.contains_key(pair))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let values: Vec<_> = missing.iter().map(|(oid, modifier)| format!("({oid}::oid, {modifier}::int)")).collect();
        let sql = format!(
            "WITH RECURSIVE asked (type, modifier) AS (VALUES {}), walk AS (\
               SELECT a.type AS asked, a.modifier AS asked_modifier, a.type, a.modifier FROM asked a \
               UNION ALL \
               SELECT w.asked, w.asked_modifier, t.typbasetype, CASE WHEN t.typtypmod = -1 THEN w.modifier ELSE t.typtypmod END \
               FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.type AND t.typtype = 'd') \
             SELECT w.asked::text, w.asked_modifier::text, pg_catalog.format_type(w.type, w.modifier) \
             FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.type AND t.typtype <> 'd'",
            values.join(", ")
        );
        let rows = query(conn, "look at types", sql).await?;
        self.0.extend(missing.into_iter().map(|pair| (pair, None)));
        for row in rows {
            if let [Some(oid), Some(modifier), name] = &row[..]
                && let (Ok(oid), Ok(modifier)) = (oid.parse(), modifier.parse())
            {
                self.0.insert((oid, modifier), name.clone());
            }
        }
        Ok(())
    }

    fn name(&self, column: &RelationColumn) -> Option<&str> {
        self.0.get(&(column.type_oid, column.modifier))?.as_deref()
    }
}

/// What the stream's description of a table means for what is known of it.
pub(super) enum Fit {
    /// It is as known; the place of each column in the stream's rows.
    Same(Vec<usize>),
    /// Columns were added or widened.
    Evolved(TableSchema),
}

/// Compares.
///
/// # Errors
/// `Conflict` where columns are gone or have another type.
pub(super) fn fit(known: &TableSchema, relation: &Relation, types: &TypeNames) -> Result<Fit> {
    let stop = |what: String| Error::from(Stop::Columns { table: known.full_name(), what });
    let mut places = Vec::new();
    let mut schema = known.clone();
    let mut differs = false;
    for column in &mut schema.columns {
        let place = relation.columns.iter().position(|found| found.name == column.name);
        let Some(place) = place else {
            let new: Vec<_> = added(known, relation).map(|column| column.name.as_str()).collect();
            let new = if new.is_empty() { String::new() } else { format!("; new: {}", new.join(", ")) };
            return Err(stop(format!("{} was dropped or renamed{new}", column.name)));
        };
        places.push(place);
        let now = types.name(&relation.columns[place]).unwrap_or("a type that is gone");
        if now != column.declared_type {
            if !widens(&column.declared_type, now) {
                return Err(stop(format!("{} is {now}, was {}", column.name, column.declared_type)));
            }
            differs = true;
            now.clone_into(&mut column.declared_type);
        }
    }
    for column in added(known, relation) {
        differs = true;
        let declared_type = types.name(column).unwrap_or("text").to_owned();
        // Rows from before the column have NULL in it.
        schema.columns.push(Column { name: column.name.clone(), declared_type, not_null: false, key: None });
    }
    let keyed = |column: &Column| relation.columns.iter().any(|found| found.key && found.name == column.name);
    if relation.identity != b'f'
        && let Some(column) = known.columns.iter().find(|column| column.key.is_some() != keyed(column))
    {
        return Err(stop(format!("{} joined or left the key (the replica identity)", column.name)));
    }
    Ok(if differs { Fit::Evolved(schema) } else { Fit::Same(places) })
}

fn added<'a>(known: &'a TableSchema, relation: &'a Relation) -> impl Iterator<Item = &'a RelationColumn> {
    relation.columns.iter().filter(|found| !known.columns.iter().any(|column| column.name == found.name))
}

/// Whether every value of the one type is a value of the other, with the same text.
fn widens(from: &str, to: &str) -> bool {
    let rank = |name: &str| ["smallint", "integer", "bigint"].iter().position(|known| *known == name);
    if let (Some(from), Some(to)) = (rank(from), rank(to)) {
        return to > from;
    }
    let split = |text: &str| -> (String, Option<Vec<i64>>) {
        let Some((base, rest)) = text.split_once('(') else { return (text.to_owned(), None) };
        let (inside, after) = rest.split_once(')').unwrap_or((rest, ""));
        let numbers = inside.split(',').filter_map(|part| part.trim().parse().ok()).collect();
        (format!("{base}{after}"), Some(numbers))
    };
    let ((from, old), (to, new)) = (split(from), split(to));
    match (from.as_str(), to.as_str()) {
        ("character varying", "text") => true,
        ("text", "character varying") => new.is_none(),
        ("numeric", "numeric") => match (old.as_deref(), new.as_deref()) {
            (Some(_), None) => true,
            // Another scale writes every value anew.
            (Some([old, old_scale]), Some([new, new_scale])) => old_scale == new_scale && new > old,
            _ => false,
        },
        (from, to) if from == to && from != "character" && from != "bit" => match (old.as_deref(), new.as_deref()) {
            (Some(_), None) => true,
            (Some([old]), Some([new])) => new > old,
            _ => false,
        },
        _ => false,
    }
}

/// Whether a column that is known has another type: `ALTER … TYPE … USING` may have given it any values, without an event
/// to tell.
pub(super) fn has_other_types(known: &TableSchema, now: &TableSchema) -> bool {
    known.columns.iter().zip(&now.columns).any(|(old, new)| old.declared_type != new.declared_type)
}

/// Whether rows that were there before may have other values than NULL in the new columns, without an event to tell.
pub(super) async fn fills(conn: &mut PgConnection, known: &TableSchema, now: &TableSchema) -> Result<bool> {
    let new = now.columns.iter().filter(|column| !known.columns.iter().any(|old| old.name == column.name));
    let names: Vec<_> = new.map(|column| literal(&column.name)).collect();
    if names.is_empty() {
        return Ok(false);
    }
    let schema = literal(known.schema.as_deref().unwrap_or_default());
    let sql = format!(
        "SELECT 'yes' FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {schema} AND c.relname = {} \
         AND a.attname IN ({}) AND (a.atthasdef OR a.atthasmissing OR a.attidentity <> '' OR a.attnotnull)",
        literal(&known.name),
        names.join(", ")
    );
    Ok(!query(conn, "look at new columns", sql).await?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_types_are_those_that_keep_every_text() {
        for (from, to, wider) in [
            ("integer", "bigint", true),
            ("bigint", "integer", false),
            ("character varying(5)", "character varying(9)", true),
            ("character varying(9)", "character varying(5)", false),
            ("character varying(5)", "text", true),
            ("text", "character varying(5)", false),
            ("numeric(10,2)", "numeric(12,2)", true),
            ("numeric(10,2)", "numeric(12,4)", false),
            ("numeric(10,2)", "numeric", true),
            ("numeric", "numeric(10,2)", false),
            ("timestamp(3) without time zone", "timestamp without time zone", true),
            ("timestamp without time zone", "timestamp with time zone", false),
            ("real", "double precision", false),
            ("character(3)", "character(5)", false),
            ("integer", "text", false),
        ] {
            assert_eq!(widens(from, to), wider, "{from} to {to}");
        }
    }
}
