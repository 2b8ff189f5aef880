//! Sums: exact for integers and for floats, whatever the order of the rows and whatever is taken back.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value as Json;

use super::{Agg, ExactSum, from_json, to_json};
use crate::{Error, Result, chunk::Selection};

/// What can be summed.
pub trait Number: Copy + Send + 'static {
    /// The running sum, which never rounds on the way.
    type Total: Default + Clone + Serialize + DeserializeOwned + Send + 'static;
    /// The sum as it is given out.
    type Out: Clone + Send + 'static;

    /// Adds it, or takes it back; `None` where the total cannot hold the sum.
    fn add(self, total: &mut Self::Total, back: bool) -> Option<()>;
    /// Adds another total; `None` as above.
    fn merge(total: &mut Self::Total, other: &Self::Total) -> Option<()>;
    /// The sum.
    fn out(total: &Self::Total) -> Self::Out;
}

macro_rules! integer {
    ($($int:ty),+) => {$(
        impl Number for $int {
            type Total = i64;
            type Out = i64;

            #[inline]
            fn add(self, total: &mut i64, back: bool) -> Option<()> {
                let value = i64::try_from(self).ok()?;
                *total = if back { total.checked_sub(value)? } else { total.checked_add(value)? };
                Some(())
            }

            fn merge(total: &mut i64, other: &i64) -> Option<()> {
                *total = total.checked_add(*other)?;
                Some(())
            }

            fn out(total: &i64) -> i64 {
                *total
            }
        }
    )+};
}

integer!(i32, u32, i64, u64);

impl Number for f64 {
    type Total = ExactSum;
    type Out = f64;

    #[inline]
    fn add(self, total: &mut ExactSum, back: bool) -> Option<()> {
        total.add(self, back);
        Some(())
    }

    fn merge(total: &mut ExactSum, other: &ExactSum) -> Option<()> {
        total.merge(other);
        Some(())
    }

    fn out(total: &ExactSum) -> f64 {
        total.value()
    }
}

/// The sum of a number in each row.
pub struct Sum<T, N: Number, F> {
    number: F,
    totals: Vec<N::Total>,
    rows: PhantomData<fn(T)>,
}

impl<T, N: Number, F: Fn(&T) -> N> Sum<T, N, F> {
    /// Sums what `number` makes of each row. Integers give an `i64`, and an error where it overflows; floats give the
    /// exact sum rounded once, so it does not depend on the order of the rows.
    pub fn of(number: F) -> Self {
        Self { number, totals: Vec::new(), rows: PhantomData }
    }

    fn each(&mut self, data: &[T], rows: Selection<'_>, groups: &[u32], back: bool) -> Result<()> {
        let (number, totals) = (&self.number, &mut self.totals);
        let mut add = |group: &u32, row: &T| number(row).add(&mut totals[*group as usize], back);
        // Two loops, each with a body of its own: see the keyers.
        let added = match rows {
            Selection::All(n) => groups.iter().zip(&data[..n]).try_for_each(|(group, row)| add(group, row)),
            Selection::Rows(rows) => {
                groups.iter().zip(rows).try_for_each(|(group, row)| add(group, &data[*row as usize]))
            }
        };
        added.ok_or_else(overflow)
    }
}

fn overflow() -> Error {
    Error::invalid("a sum exceeds 64 bits")
}

impl<T, N, F> Agg<Vec<T>> for Sum<T, N, F>
where
    T: 'static,
    N: Number,
    F: Fn(&T) -> N + Clone + Send + 'static,
{
    type Out = Vec<N::Out>;

    fn fresh(&self) -> Self {
        Self::of(self.number.clone())
    }

    fn name(&self) -> String {
        "sum".into()
    }

    fn retracts(&self) -> bool {
        true
    }

    fn grow(&mut self, groups: usize) {
        self.totals.resize_with(groups, N::Total::default);
    }

    fn update(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        self.each(data, rows, groups, false)
    }

    fn retract(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        self.each(data, rows, groups, true)
    }

    fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
        N::merge(&mut self.totals[into as usize], &from.totals[group as usize]).ok_or_else(overflow)
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        to_json(&self.totals[group as usize], out)
    }

    fn decode(&mut self, group: u32, state: Json) -> Result<()> {
        self.totals[group as usize] = from_json(state)?;
        Ok(())
    }

    fn emit(&self, groups: &[u32]) -> Result<Self::Out> {
        Ok(groups.iter().map(|group| N::out(&self.totals[*group as usize])).collect())
    }
}
