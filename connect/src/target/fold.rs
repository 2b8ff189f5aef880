//! Folds the changes of a batch to what is left of each key: one row to write, or one to delete.
//!
//! A source that does not tell a large value which an update left alone gives [`Value::Unchanged`]. It is taken from an
//! earlier row of the batch; else only the columns that are told are updated.

use std::{
    borrow::Cow,
    collections::HashMap,
    hash::{Hash, Hasher},
};

use crate::{
    Result,
    change::{Change, Op, Row, Value},
    converter::TopicSchema,
    diff::key_text,
    translate::Translation,
};

/// A row that mostly stands in a step and is not copied out of it.
pub type Folding<'a> = Cow<'a, [Value]>;

/// What is left of a topic's changes, in the target's terms. No key occurs twice.
#[derive(Debug, Default)]
pub struct Folded<'a> {
    /// Keys of rows to delete.
    pub deletes: Vec<Folding<'a>>,
    /// Whole rows to insert, or to write over those of the same key.
    pub upserts: Vec<Folding<'a>>,
    /// Rows of which some values are what they were.
    pub partials: Vec<Folding<'a>>,
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
enum Last<'a> {
    /// Deleted; its key.
    Deleted(&'a [Value]),
    Row {
        row: Folding<'a>,
        whole: bool,
    },
}

/// A key where it stands. Equal keys are equal in every bit, as they are in the target.
#[derive(Clone, Copy)]
struct Key<'a> {
    values: &'a [Value],
    places: &'a [usize],
}

impl<'a> Key<'a> {
    fn iter(self) -> impl Iterator<Item = &'a Value> {
        self.places.iter().map(move |place| &self.values[*place])
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.places.len() == other.places.len() && self.iter().zip(other.iter()).all(|(a, b)| same(a, b))
    }
}

impl Eq for Key<'_> {}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for value in self.iter() {
            match value {
                // No key has a value that is not told.
                Value::Null | Value::Unchanged => state.write_u8(0),
                Value::Boolean(b) => b.hash(state),
                Value::Integer(i) => i.hash(state),
                Value::Unsigned(u) => u.hash(state),
                Value::Real(r) => r.to_bits().hash(state),
                Value::Text(text) => text.hash(state),
                Value::InvalidText(bytes) | Value::Blob(bytes) => bytes.hash(state),
            }
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Real(a), Value::Real(b)) => a.to_bits() == b.to_bits(),
        (Value::Null | Value::Unchanged, Value::Null | Value::Unchanged) => true,
        _ => a == b,
    }
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
            None => match translation.key(change.key.clone()) {
                Ok(key) => Step::Delete(key),
                // A key that the target cannot hold has no row there.
                Err(_) => {
                    last_sequence = None;
                    continue;
                }
            },
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
pub fn fold<'a>(translation: &Translation, steps: &'a [Step]) -> Folded<'a> {
    let in_row = translation.key_columns();
    let in_key: Vec<usize> = (0..in_row.len()).collect();
    let mut folded = Folded { only_new: true, ..Folded::default() };
    let mut lasts: Vec<Last<'a>> = Vec::with_capacity(steps.len());
    let mut places: HashMap<Key<'_>, usize> = HashMap::with_capacity(steps.len());
    for step in steps {
        match step {
            Step::Delete(key) => {
                folded.only_new = false;
                *entry(&mut lasts, &mut places, Key { values: key, places: &in_key }) = Last::Deleted(key);
            }
            Step::Upsert(row) => {
                let last = entry(&mut lasts, &mut places, Key { values: row, places: in_row });
                *last = Last::Row { row: Cow::Borrowed(row), whole: true };
            }
            Step::Partial(row) => {
                folded.only_new = false;
                merge(entry(&mut lasts, &mut places, Key { values: row, places: in_row }), row);
            }
            Step::Move(old, row) => {
                folded.only_new = false;
                let last = entry(&mut lasts, &mut places, Key { values: old, places: &in_key });
                let was = std::mem::replace(last, Last::Deleted(old));
                match was {
                    Last::Row { row: earlier, whole: true } => {
                        let moved = filled(row, &earlier);
                        let last = entry(&mut lasts, &mut places, Key { values: row, places: in_row });
                        *last = Last::Row { row: moved, whole: true };
                    }
                    _ => folded.in_order = true,
                }
            }
        }
    }
    for last in lasts {
        match last {
            Last::Deleted(key) => folded.deletes.push(Cow::Borrowed(key)),
            Last::Row { row, whole: true } => folded.upserts.push(row),
            Last::Row { row, whole: false } => folded.partials.push(row),
        }
    }
    folded
}

/// The place of a key; a new one is of an untold row, which a partial row fills.
fn entry<'a, 'm, 'k>(
    lasts: &'m mut Vec<Last<'a>>,
    places: &mut HashMap<Key<'k>, usize>,
    key: Key<'k>,
) -> &'m mut Last<'a> {
    let place = *places.entry(key).or_insert(lasts.len());
    if place == lasts.len() {
        lasts.push(Last::Row { row: Cow::Borrowed(&[]), whole: false });
    }
    &mut lasts[place]
}

fn merge<'a>(last: &mut Last<'a>, row: &'a [Value]) {
    match last {
        Last::Row { row: earlier, .. } => {
            *earlier = if earlier.is_empty() { Cow::Borrowed(row) } else { filled(row, earlier) };
        }
        // A row that was deleted and is updated was made by somebody else: what is told of it is written where it is.
        Last::Deleted(_) => *last = Last::Row { row: Cow::Borrowed(row), whole: false },
    }
}

/// A row with what it does not tell taken from an earlier one.
fn filled<'a>(row: &[Value], earlier: &[Value]) -> Folding<'a> {
    let value = |(now, was): (&Value, &Value)| if *now == Value::Unchanged { was.clone() } else { now.clone() };
    Cow::Owned(row.iter().zip(earlier).map(value).collect())
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

    /// Deletes, upserts, partials; whether only new, in order.
    fn folded(changes: Vec<Change>) -> ([Vec<Row>; 3], bool, bool) {
        let schema = schema();
        let translation = Translation::new(&schema, Dialect::Postgres);
        let steps = steps(&schema, &translation, changes).unwrap();
        let Folded { deletes, upserts, partials, only_new, in_order } = fold(&translation, &steps);
        let owned = |rows: Vec<Folding<'_>>| rows.into_iter().map(Cow::into_owned).collect();
        ([deletes, upserts, partials].map(owned), only_new, in_order)
    }

    #[test]
    fn the_last_change_of_a_key_is_left() {
        let ([deletes, upserts, partials], only_new, in_order) = folded(vec![
            change(Op::Create, 1, Some(row(1, "x", "y")), 1),
            change(Op::Update, 1, Some(row(1, "?", "z")), 2),
            change(Op::Create, 2, Some(row(2, "x", "y")), 3),
            change(Op::Delete, 2, None, 4),
            change(Op::Update, 3, Some(row(3, "?", "p")), 5),
            change(Op::Update, 3, Some(row(3, "q", "?")), 6),
            change(Op::Update, 4, Some(row(4, "?", "p")), 7),
        ]);
        assert_eq!(upserts, [row(1, "x", "z")]);
        assert_eq!(deletes, [vec![Value::Integer(2)]]);
        assert_eq!(partials, [row(3, "q", "p"), row(4, "?", "p")]);
        assert!(!only_new && !in_order);
        assert!(folded(vec![change(Op::Read, 1, Some(row(1, "x", "y")), 0)]).1);
    }

    #[test]
    fn a_delete_of_a_key_that_the_target_cannot_hold_has_nothing_to_do() {
        let table = TableSchema { schema: None, name: "t".into(), columns: schema().table.columns };
        let schema = TopicSchema::draft("s", Dialect::Sqlite, &table);
        let translation = Translation::new(&schema, Dialect::Postgres);
        let delete = |key| Change { key: vec![key], ..change(Op::Delete, 1, None, 1) };
        let untold = change(Op::Create, 2, Some(row(2, "?", "b")), 1);
        let changes = vec![delete(Value::Blob(vec![1])), untold, delete(Value::Integer(3))];
        let steps = steps(&schema, &translation, changes).unwrap();
        // Nor is the row after it taken for one that had that key.
        assert_eq!(steps, [Step::Partial(row(2, "?", "b")), Step::Delete(vec![Value::Integer(3)])]);
    }

    #[test]
    fn a_row_with_another_key_keeps_what_is_not_told() {
        let moved = |first: Vec<Change>| {
            let key_change = [change(Op::Delete, 1, None, 9), change(Op::Create, 2, Some(row(2, "?", "new")), 9)];
            folded(first.into_iter().chain(key_change).collect())
        };
        let known = moved(vec![change(Op::Create, 1, Some(row(1, "big", "y")), 1)]);
        let ([deletes, upserts, _], _, in_order) = known;
        assert_eq!((upserts, in_order), (vec![row(2, "big", "new")], false));
        assert_eq!(deletes, [vec![Value::Integer(1)]]);
        assert!(moved(Vec::new()).2);
    }
}
