//! Aggregates: what is known of a group's rows.
//!
//! An [`Agg`] holds the state of all groups of one window, numbered densely by a [`Keyer`](crate::key::Keyer). It is
//! called once per chunk, not per row. Aggregates in a tuple are computed side by side.

mod exact;
mod extreme;
mod fold;
mod sum;

pub use exact::ExactSum;
pub use extreme::{Max, Min};
pub use fold::Fold;
use serde_json::value::RawValue;
pub use sum::{Number, Sum};

use crate::{
    Error, Result,
    chunk::{Rows, Selection},
};

/// The state of an aggregate for the groups of one window.
pub trait Agg<D>: Send + 'static {
    /// Results as rows, one a group.
    type Out: Rows;

    /// An aggregate of the same rule without groups.
    #[must_use]
    fn fresh(&self) -> Self;

    /// What it computes, for the check that a job's state fits its code: `count`, `sum`, ...
    fn name(&self) -> String;

    /// Whether rows can be taken back.
    fn retracts(&self) -> bool;

    /// Makes room: from now on there are `groups` groups, new ones empty. Never fewer than before.
    fn grow(&mut self, groups: usize);

    /// Adds the selected rows; `groups` has the group of each, in order.
    ///
    /// # Errors
    /// `Invalid` for a row that cannot be added.
    fn update(&mut self, data: &D, rows: Selection<'_>, groups: &[u32]) -> Result<()>;

    /// Takes back rows that were added before.
    ///
    /// # Errors
    /// `Unsupported` where [`Agg::retracts`] is false.
    fn retract(&mut self, data: &D, rows: Selection<'_>, groups: &[u32]) -> Result<()>;

    /// Adds what `from` knows of its group `group` to the own group `into`.
    ///
    /// # Errors
    /// As [`Agg::update`].
    fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()>;

    /// Writes a group's state as one JSON value; the state stays as it is.
    ///
    /// # Errors
    /// `Invalid` for a state that JSON cannot tell.
    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()>;

    /// Sets a group to a state that [`Agg::encode`] wrote.
    ///
    /// # Errors
    /// `Corrupt` where it is no state of this aggregate.
    fn decode(&mut self, group: u32, state: &str) -> Result<()>;

    /// The results of these groups.
    ///
    /// # Errors
    /// `Invalid` where a result cannot be told, such as a sum that overflows.
    fn emit(&self, groups: &[u32]) -> Result<Self::Out>;
}

/// Number of rows.
#[derive(Debug, Clone, Default)]
pub struct Count(Vec<i64>);

impl<D> Agg<D> for Count {
    type Out = Vec<i64>;

    fn fresh(&self) -> Self {
        Self::default()
    }

    fn name(&self) -> String {
        "count".into()
    }

    fn retracts(&self) -> bool {
        true
    }

    fn grow(&mut self, groups: usize) {
        self.0.resize(groups, 0);
    }

    fn update(&mut self, _: &D, _: Selection<'_>, groups: &[u32]) -> Result<()> {
        groups.iter().for_each(|group| self.0[*group as usize] += 1);
        Ok(())
    }

    fn retract(&mut self, _: &D, _: Selection<'_>, groups: &[u32]) -> Result<()> {
        groups.iter().for_each(|group| self.0[*group as usize] -= 1);
        Ok(())
    }

    fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
        self.0[into as usize] += from.0[group as usize];
        Ok(())
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        to_json(&self.0[group as usize], out)
    }

    fn decode(&mut self, group: u32, state: &str) -> Result<()> {
        self.0[group as usize] = from_json(state)?;
        Ok(())
    }

    fn emit(&self, groups: &[u32]) -> Result<Vec<i64>> {
        Ok(groups.iter().map(|group| self.0[*group as usize]).collect())
    }
}

/// Aggregates side by side: the state of a tuple is an array, its results are tuples.
macro_rules! tuple_agg {
    ($n:literal: $($agg:ident $out:ident $i:tt),+) => {
        impl<D, $($agg, $out),+> Agg<D> for ($($agg,)+)
        where
            $($agg: Agg<D, Out = Vec<$out>>, $out: Clone + Send + 'static,)+
        {
            type Out = Vec<($($out,)+)>;

            fn fresh(&self) -> Self {
                ($(self.$i.fresh(),)+)
            }

            fn name(&self) -> String {
                [$(self.$i.name()),+].join(", ")
            }

            fn retracts(&self) -> bool {
                $(self.$i.retracts())&&+
            }

            fn grow(&mut self, groups: usize) {
                $(self.$i.grow(groups);)+
            }

            fn update(&mut self, data: &D, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
                $(self.$i.update(data, rows, groups)?;)+
                Ok(())
            }

            fn retract(&mut self, data: &D, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
                $(self.$i.retract(data, rows, groups)?;)+
                Ok(())
            }

            fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
                $(self.$i.merge(into, &from.$i, group)?;)+
                Ok(())
            }

            fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
                let before = [$(if $i == 0 { b'[' } else { b',' }),+];
                $(out.push(before[$i]); self.$i.encode(group, out)?;)+
                out.push(b']');
                Ok(())
            }

            fn decode(&mut self, group: u32, state: &str) -> Result<()> {
                let parts: Vec<&RawValue> = from_json(state)?;
                let parts: [&RawValue; $n] = parts.try_into().map_err(|_| not_a_state("an array of another length"))?;
                $(self.$i.decode(group, parts[$i].get())?;)+
                Ok(())
            }

            fn emit(&self, groups: &[u32]) -> Result<Self::Out> {
                let mut columns = ($(self.$i.emit(groups)?.into_iter(),)+);
                Ok(std::iter::from_fn(|| Some(($(columns.$i.next()?,)+))).collect())
            }
        }
    };
}

tuple_agg!(1: A X 0);
tuple_agg!(2: A X 0, B Y 1);
tuple_agg!(3: A X 0, B Y 1, C Z 2);
tuple_agg!(4: A X 0, B Y 1, C Z 2, E W 3);

pub(crate) fn to_json<T: serde::Serialize>(state: &T, out: &mut Vec<u8>) -> Result<()> {
    serde_json::to_writer(out, state).map_err(|e| Error::invalid("a state cannot be written as JSON").with_source(e))
}

/// Straight from the text: by way of a `serde_json::Value`, integers beyond 64 bits would be rounded to floats.
pub(crate) fn from_json<'a, T: serde::Deserialize<'a>>(state: &'a str) -> Result<T> {
    serde_json::from_str(state).map_err(|e| not_a_state(&e.to_string()))
}

fn not_a_state(what: &str) -> Error {
    Error::corrupt(format!("state of an aggregate is {what}"))
}

pub(crate) fn cannot_retract(name: &str) -> Error {
    Error::unsupported(format!("{name} cannot take rows back"))
}
