//! Folds the changes of a batch to what is left of each key: one row to write, or one to delete.
//!
//! A source that does not tell a large value which an update left alone gives [`Value::Unchanged`]. It is taken from an
//! earlier row of the batch; else only the columns that are told are updated.

use std::collections::HashMap;

use crate::{
    Result,
    change::{Change, Op, Row, StoredValue, Value},
    converter::TopicSchema,
    diff::key_text,
    translate::Translation,
};

/// What is left of a topic's changes, in the target's terms. No key occurs twice.
#[derive(Debug, Default)]
pub struct Folded {
    /// Keys of rows to delete.
    pub deletes: Vec<Row>,
    /// Whole rows to insert, or to write over those of the same key.
    pub upserts: Vec<Row>,
    /// Rows of which some values are what they were.
    pub partials: Vec<Row>,
    /// Nothing but rows of a copy and new ones: they may go into an empty table as they are.
    pub only_new: bool,
    /// A row changed its key and kept values that are not told: only one change after the other is right.
    pub in_order: bool,
}

/// One change in the target's terms.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Deletes the row of a key.
    Delete(Row),
    /// Writes a whole row.
    Upsert(Row),
    /// Writes the values that are told.
    Partial(Row),
    /// Gives the row of the key these values; it has another key then.
    Move(Row, Row),
}

/// What is known of a key.
enum Last {
    Deleted,
    Row { row: Row, whole: bool },
}

/// Each change in the target's terms, in order.
///
/// # Errors
/// `Conflict` names the table, the key, the column and the value that the target cannot hold.
pub fn steps(schema: &TopicSchema, translation: &Translation, changes: Vec<Change>) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::with_capacity(changes.len());
    let mut last_sequence = None;
    for change in changes {
        let refused = |error: crate::Error| {
            error.context(format!("topic {}, {}", schema.topic, key_text(&schema.table, &change.key)))
        };
        let step = match change.after {
            None => Step::Delete(translation.key(change.key.clone()).map_err(refused)?),
            Some(row) => {
                let row = translation.row(row).map_err(refused)?;
                match row.contains(&Value::Unchanged) {
                    false => Step::Upsert(row),
                    true if change.op == Op::Create && last_sequence == Some(change.sequence) => match steps.pop() {
                        Some(Step::Delete(old)) => Step::Move(old, row),
                        Some(other) => {
                            steps.push(other);
                            Step::Partial(row)
                        }
                        None => Step::Partial(row),
                    },
                    true => Step::Partial(row),
                }
            }
        };
        last_sequence = Some(change.sequence);
        steps.push(step);
    }
    Ok(steps)
}

/// Folds steps to the last of each key.
pub fn fold(translation: &Translation, steps: Vec<Step>) -> Folded {
    let table = translation.table();
    let mut folded = Folded { only_new: true, ..Folded::default() };
    let mut order: Vec<(Row, Last)> = Vec::with_capacity(steps.len());
    let mut places: HashMap<Vec<StoredValue>, usize> = HashMap::with_capacity(steps.len());
    for step in steps {
        match step {
            Step::Delete(key) => {
                folded.only_new = false;
                *entry(&mut order, &mut places, key) = Last::Deleted;
            }
            Step::Upsert(row) => {
                let key = table.key_of(&row);
                *entry(&mut order, &mut places, key) = Last::Row { row, whole: true };
            }
            Step::Partial(row) => {
                folded.only_new = false;
                merge(entry(&mut order, &mut places, table.key_of(&row)), row);
            }
            Step::Move(old, row) => {
                folded.only_new = false;
                let was = std::mem::replace(entry(&mut order, &mut places, old), Last::Deleted);
                match was {
                    Last::Row { row: earlier, whole: true } => {
                        let row = filled(row, &earlier);
                        let key = table.key_of(&row);
                        *entry(&mut order, &mut places, key) = Last::Row { row, whole: true };
                    }
                    _ => folded.in_order = true,
                }
            }
        }
    }
    for (key, last) in order {
        match last {
            Last::Deleted => folded.deletes.push(key),
            Last::Row { row, whole: true } => folded.upserts.push(row),
            Last::Row { row, whole: false } => folded.partials.push(row),
        }
    }
    folded
}

/// The place of a key; a new one is of an untold row, which a partial row fills.
fn entry<'a>(order: &'a mut Vec<(Row, Last)>, places: &mut HashMap<Vec<StoredValue>, usize>, key: Row) -> &'a mut Last {
    let place = *places.entry(key.iter().map(StoredValue::from).collect()).or_insert(order.len());
    if place == order.len() {
        order.push((key, Last::Row { row: Row::new(), whole: false }));
    }
    &mut order[place].1
}

fn merge(last: &mut Last, row: Row) {
    match last {
        Last::Row { row: earlier, whole } => {
            let merged = if earlier.is_empty() { row } else { filled(row, earlier) };
            *last = Last::Row { row: merged, whole: *whole };
        }
        // A row that was deleted and is updated was made by somebody else: what is told of it is written where it is.
        Last::Deleted => *last = Last::Row { row, whole: false },
    }
}

/// A row with what it does not tell taken from an earlier one.
fn filled(row: Row, earlier: &[Value]) -> Row {
    row.into_iter().zip(earlier).map(|(now, was)| if now == Value::Unchanged { was.clone() } else { now }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        change::{Column, TableSchema},
        types::Dialect,
    };

    fn schema() -> TopicSchema {
        let column = |name: &str, declared: &str, key| Column {
            name: name.into(),
            declared_type: declared.into(),
            not_null: key == Some(0),
            key,
        };
        let columns = vec![column("id", "integer", Some(0)), column("a", "text", None), column("b", "text", None)];
        let table = TableSchema { schema: Some("public".into()), name: "t".into(), columns };
        TopicSchema::draft("s", Dialect::Postgres, &table)
    }

    fn text(text: &str) -> Value {
        if text == "?" { Value::Unchanged } else { Value::Text(text.into()) }
    }

    fn row(id: i64, a: &str, b: &str) -> Row {
        vec![Value::Integer(id), text(a), text(b)]
    }

    fn change(op: Op, id: i64, after: Option<Row>, sequence: i64) -> Change {
        Change { table: 0, op, key: vec![Value::Integer(id)], before: None, after, sequence }
    }

    fn folded(changes: Vec<Change>) -> Folded {
        let schema = schema();
        let translation = Translation::new(&schema, Dialect::Postgres);
        fold(&translation, steps(&schema, &translation, changes).unwrap())
    }

    #[test]
    fn the_last_change_of_a_key_is_left() {
        let left = folded(vec![
            change(Op::Create, 1, Some(row(1, "x", "y")), 1),
            change(Op::Update, 1, Some(row(1, "?", "z")), 2),
            change(Op::Create, 2, Some(row(2, "x", "y")), 3),
            change(Op::Delete, 2, None, 4),
            change(Op::Update, 3, Some(row(3, "?", "p")), 5),
            change(Op::Update, 3, Some(row(3, "q", "?")), 6),
            change(Op::Update, 4, Some(row(4, "?", "p")), 7),
        ]);
        assert_eq!(left.upserts, [row(1, "x", "z")]);
        assert_eq!(left.deletes, [vec![Value::Integer(2)]]);
        assert_eq!(left.partials, [row(3, "q", "p"), row(4, "?", "p")]);
        assert!(!left.only_new && !left.in_order);
        assert!(folded(vec![change(Op::Read, 1, Some(row(1, "x", "y")), 0)]).only_new);
    }

    #[test]
    fn a_row_with_another_key_keeps_what_is_not_told() {
        let moved = |first: Vec<Change>| {
            let key_change = [change(Op::Delete, 1, None, 9), change(Op::Create, 2, Some(row(2, "?", "new")), 9)];
            folded(first.into_iter().chain(key_change).collect())
        };
        let known = moved(vec![change(Op::Create, 1, Some(row(1, "big", "y")), 1)]);
        assert_eq!((known.upserts, known.in_order), (vec![row(2, "big", "new")], false));
        assert!(moved(Vec::new()).in_order);
    }
}
