//! Sums: exact for integers and for floats, whatever the order of the rows and whatever is taken back.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use super::{Agg, ExactSum, from_json, to_json};
use crate::{Error, Result, chunk::Selection};

/// What can be summed.
pub trait Number: Copy + Send + 'static {
    /// The running sum, which neither rounds nor overflows on the way: else it would depend on the order of the rows.
    type Total: Default + Clone + Serialize + DeserializeOwned + Send + 'static;
    /// The sum as it is given out.
    type Out: Clone + Send + 'static;

    /// Adds it, or takes it back.
    fn add(self, total: &mut Self::Total, back: bool);
    /// Adds another total.
    fn merge(total: &mut Self::Total, other: &Self::Total);
    /// The sum; `None` where it cannot be given out.
    fn out(total: &Self::Total) -> Option<Self::Out>;
}

macro_rules! integer {
    ($($int:ty),+) => {$(
        impl Number for $int {
            /// 2^63 rows of 64 bits fit.
            type Total = i128;
            type Out = i64;

            #[inline]
            fn add(self, total: &mut i128, back: bool) {
                let value = i128::from(self);
                *total += if back { -value } else { value };
            }

            fn merge(total: &mut i128, other: &i128) {
                *total += other;
            }

            fn out(total: &i128) -> Option<i64> {
                i64::try_from(*total).ok()
            }
        }
    )+};
}

integer!(i32, u32, i64, u64);

impl Number for f64 {
    type Total = ExactSum;
    type Out = f64;

    #[inline]
    fn add(self, total: &mut ExactSum, back: bool) {
        total.add(self, back);
    }

    fn merge(total: &mut ExactSum, other: &ExactSum) {
        total.merge(other);
    }

    fn out(total: &ExactSum) -> Option<f64> {
        Some(total.value())
    }
}

/// The sum of a number in each row.
pub struct Sum<T, N: Number, F> {
    number: F,
    totals: Vec<N::Total>,
    rows: PhantomData<fn(T)>,
}

impl<T, N: Number, F: Fn(&T) -> N> Sum<T, N, F> {
    /// Sums what `number` makes of each row. Integers give an `i64`, and an error where a result exceeds it; floats give
    /// the exact sum rounded once. So neither depends on the order of the rows.
    pub fn of(number: F) -> Self {
        Self { number, totals: Vec::new(), rows: PhantomData }
    }

    fn each(&mut self, data: &[T], rows: Selection<'_>, groups: &[u32], back: bool) {
        let (number, totals) = (&self.number, &mut self.totals);
        let mut add = |group: &u32, row: &T| number(row).add(&mut totals[*group as usize], back);
        // Two loops, each with a body of its own: see the keyers.
        match rows {
            Selection::All(n) => groups.iter().zip(&data[..n]).for_each(|(group, row)| add(group, row)),
            Selection::Rows(rows) => groups.iter().zip(rows).for_each(|(group, row)| add(group, &data[*row as usize])),
        }
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
        self.each(data, rows, groups, false);
        Ok(())
    }

    fn retract(&mut self, data: &Vec<T>, rows: Selection<'_>, groups: &[u32]) -> Result<()> {
        self.each(data, rows, groups, true);
        Ok(())
    }

    fn merge(&mut self, into: u32, from: &Self, group: u32) -> Result<()> {
        N::merge(&mut self.totals[into as usize], &from.totals[group as usize]);
        Ok(())
    }

    fn encode(&self, group: u32, out: &mut Vec<u8>) -> Result<()> {
        to_json(&self.totals[group as usize], out)
    }

    fn decode(&mut self, group: u32, state: &str) -> Result<()> {
        self.totals[group as usize] = from_json(state)?;
        Ok(())
    }

    fn emit(&self, groups: &[u32]) -> Result<Self::Out> {
        groups.iter().map(|group| N::out(&self.totals[*group as usize]).ok_or_else(overflow)).collect()
    }
}
