//! An aggregate of the user's own: any state, and a closure that adds a row to it.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use super::{Agg, cannot_retract, from_json, to_json};
use crate::{Result, chunk::Selection};

/// Folds rows into a state that begins as its default.
pub struct Fold<T, S, F> {
    fold: F,
    states: Vec<S>,
    rows: PhantomData<fn(T)>,
}

impl<T, S, F> Fold<T, S, F>
where
    S: Default + Clone + Serialize + DeserializeOwned + Send + 'static,
    F: Fn(&mut S, &T),
{
    /// Adds rows by `fold`. Rows cannot be taken back.
    pub fn new(fold: F) -> Self {
        Self { fold, states: Vec::new(), rows: PhantomData }
    }
}

impl<T, S, F> Agg<Vec<T>> for Fold<T, S, F>
where
    T: 'static,
    S: Default + Clone + Serialize + DeserializeOwned + Send + 'static,
    F: Fn(&mut S, &T) + Clone + Send + 'static,
{
    type Out = Vec<S>;

    fn fresh(&self) -> Self {
        Self::new(self.fold.clone())
    }

    fn name(&self) -> String {
        "fold".into()
    }

    fn retracts(&self) -> bool {
        false
    }

    fn grow(&mut self, groups: usize) {
        self.states.resize_with(groups, S::default);
    }

    fn update(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        let mut groups = groups.iter();
        rows.for_each(|row| {
            if let Some(group) = groups.next() {
                (self.fold)(&mut self.states[*group as usize], &data[row]);
            }
        });
        Ok(())
    }

    fn retract(&mut self, _: &Vec<T>, _: Selection<'_>, _: &[u32]) -> Result<()> {
        Err(cannot_retract("fold"))
    }

    fn merge(&mut self, _: u32, _: &Self, _: u32) -> Result<()> {
        Err(crate::Error::unsupported("fold cannot merge two states"))
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        to_json(&self.states[group as usize], out)
    }

    fn decode(&mut self, group: u32, state: &str) -> Result<()> {
        self.states[group as usize] = from_json(state)?;
        Ok(())
    }

    fn emit(&self, groups: &[u32]) -> Result<Vec<S>> {
        Ok(groups.iter().map(|group| self.states[*group as usize].clone()).collect())
    }
}
