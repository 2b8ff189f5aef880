//! The smallest and the largest of a group. Each value is kept with its number of rows, so that rows can be taken back.

use std::{collections::BTreeMap, marker::PhantomData};

use serde::{Serialize, de::DeserializeOwned};

use super::{Agg, from_json, to_json};
use crate::{Result, chunk::Selection};

/// What can be compared.
pub trait Comparable: Ord + Clone + Serialize + DeserializeOwned + Send + 'static {}

impl<V: Ord + Clone + Serialize + DeserializeOwned + Send + 'static> Comparable for V {}

macro_rules! extreme {
    ($(#[$doc:meta])* $name:ident, $text:literal, $end:ident) => {
        $(#[$doc])*
        pub struct $name<T, V, F> {
            value: F,
            groups: Vec<BTreeMap<V, i64>>,
            rows: PhantomData<fn(T)>,
        }

        impl<T, V: Comparable, F: Fn(&T) -> V> $name<T, V, F> {
            /// Of what `value` makes of each row. `None` for a group that has no rows any more.
            pub fn of(value: F) -> Self {
                Self { value, groups: Vec::new(), rows: PhantomData }
            }

            fn each(&mut self, data: &[T], rows: Selection<'_>, groups: &[u32], by: i64) {
                let mut groups = groups.iter();
                rows.for_each(|row| {
                    if let Some(group) = groups.next() {
                        count(&mut self.groups[*group as usize], (self.value)(&data[row]), by);
                    }
                });
            }
        }

        impl<T, V, F> Agg<Vec<T>> for $name<T, V, F>
        where
            T: 'static,
            V: Comparable,
            F: Fn(&T) -> V + Clone + Send + 'static,
        {
            type Out = Vec<Option<V>>;

            fn fresh(&self) -> Self {
                Self::of(self.value.clone())
            }

            fn name(&self) -> String {
                $text.into()
            }

            fn retracts(&self) -> bool {
                true
            }

            fn grow(&mut self, groups: usize) {
                self.groups.resize_with(groups, BTreeMap::new);
            }

            fn update(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
                self.each(data, rows, groups, 1);
                Ok(())
            }

            fn retract(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
                self.each(data, rows, groups, -1);
                Ok(())
            }

            fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
                for (value, rows) in &from.groups[group as usize] {
                    count(&mut self.groups[into as usize], value.clone(), *rows);
                }
                Ok(())
            }

            fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
                to_json(&self.groups[group as usize].iter().collect::<Vec<_>>(), out)
            }

            fn decode(&mut self, group: u32, state: &str) -> Result<()> {
                let values: Vec<(V, i64)> = from_json(state)?;
                self.groups[group as usize] = values.into_iter().collect();
                Ok(())
            }

            fn emit(&self, groups: &[u32]) -> Result<Self::Out> {
                // A value whose deletes came before its inserts has a negative count, and is not there yet.
                let there = |group: &u32| {
                    let mut values = self.groups[*group as usize].iter().filter(|(_, rows)| **rows > 0);
                    values.$end().map(|(value, _)| value.clone())
                };
                Ok(groups.iter().map(there).collect())
            }
        }
    };
}

extreme! {
    /// The smallest value of a group.
    Min, "min", next
}
extreme! {
    /// The largest value of a group.
    Max, "max", next_back
}

fn count<V: Ord>(values: &mut BTreeMap<V, i64>, value: V, by: i64) {
    use std::collections::btree_map::Entry;
    match values.entry(value) {
        Entry::Vacant(place) => {
            place.insert(by);
        }
        Entry::Occupied(mut rows) => {
            *rows.get_mut() += by;
            if *rows.get() == 0 {
                rows.remove();
            }
        }
    }
}
