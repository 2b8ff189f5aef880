//! A sum of floats without rounding errors.
//!
//! The sum is kept as a few floats that do not overlap, smallest first, whose exact sum is the exact sum of all that was
//! added. So it does not depend on the order, and what is taken back leaves no trace.
//!
//! # Source
//! J. R. Shewchuk, Adaptive Precision Floating-Point Arithmetic, 1997: grow-expansion. R. Hettinger's use of it in
//! Python's `math.fsum`, whose final rounding this follows.

use serde::{Deserialize, Serialize};

/// The exact sum of finite floats; infinities and not-a-numbers are counted beside it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExactSum {
    /// Parts that do not overlap, in order of magnitude.
    parts: Vec<f64>,
    /// How many of +infinity, -infinity and NaN are in the sum.
    #[serde(default, skip_serializing_if = "is_finite")]
    special: [i64; 3],
    /// What went beyond the largest float on the way, in units of 2^1023: as rare as it is necessary.
    #[serde(default, skip_serializing_if = "is_zero")]
    beyond: i64,
}

fn is_finite(special: &[i64; 3]) -> bool {
    *special == [0; 3]
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(beyond: &i64) -> bool {
    *beyond == 0
}

/// 2^1023: a power of two, so that it is taken off a float without rounding.
const HUGE: f64 = 8.988_465_674_311_58e307;

impl ExactSum {
    /// Adds `value`, or takes it back.
    #[inline]
    pub fn add(&mut self, value: f64, back: bool) {
        if !value.is_finite() {
            let kind = if value.is_nan() { 2 } else { usize::from(value < 0.0) };
            self.special[kind] += if back { -1 } else { 1 };
            return;
        }
        self.grow(if back { -value } else { value });
    }

    fn grow(&mut self, value: f64) {
        let mut x = value;
        let mut kept = 0;
        for i in 0..self.parts.len() {
            let mut y = self.parts[i];
            if x.abs() < y.abs() {
                std::mem::swap(&mut x, &mut y);
            }
            let mut high = x + y;
            while high.is_infinite() {
                // The larger is at least 2^1023 in size, and both have one sign: 2^1023 comes off it exactly.
                self.beyond += if x > 0.0 { 1 } else { -1 };
                x -= x.signum() * HUGE;
                if x.abs() < y.abs() {
                    std::mem::swap(&mut x, &mut y);
                }
                high = x + y;
            }
            let low = y - (high - x);
            if low != 0.0 {
                self.parts[kept] = low;
                kept += 1;
            }
            x = high;
        }
        self.parts.truncate(kept);
        if x != 0.0 {
            self.parts.push(x);
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Self) {
        other.parts.iter().for_each(|part| self.grow(*part));
        self.special.iter_mut().zip(other.special).for_each(|(mine, more)| *mine += more);
        self.beyond += other.beyond;
    }

    /// The sum, rounded once to the nearest float, ties to even.
    pub fn value(&self) -> f64 {
        match self.special {
            [0, 0, 0] => {}
            [_, 0, 0] => return f64::INFINITY,
            [0, _, 0] => return f64::NEG_INFINITY,
            _ => return f64::NAN,
        }
        if self.beyond != 0 {
            return self.beyond_value();
        }
        let mut parts = self.parts.iter().rev();
        let Some(mut high) = parts.next().copied() else { return 0.0 };
        let mut low = 0.0;
        let mut next = parts.next();
        while let Some(part) = next {
            let x = high;
            high = x + part;
            low = part - (high - x);
            next = parts.next();
            if low != 0.0 {
                break;
            }
        }
        // A tie was rounded to even; what lies below decides whether it was a tie at all.
        if let Some(below) = next
            && ((low < 0.0 && *below < 0.0) || (low > 0.0 && *below > 0.0))
        {
            let doubled = low * 2.0;
            let up = high + doubled;
            if up - high == doubled {
                high = up;
            }
        }
        high
    }

    /// Puts back what went beyond; it may fit again after rows were taken back.
    fn beyond_value(&self) -> f64 {
        let mut rest = Self { beyond: 0, ..self.clone() };
        let unit = if self.beyond > 0 { HUGE } else { -HUGE };
        for _ in 0..self.beyond.unsigned_abs().min(4) {
            rest.grow(unit);
        }
        if rest.beyond == 0 && self.beyond.unsigned_abs() <= 4 { rest.value() } else { unit.signum() * f64::INFINITY }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut sum = ExactSum::default();
        values.iter().for_each(|value| sum.add(*value, false));
        sum.value()
    }

    #[test]
    fn known_sums_are_exact() {
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[1e100, 1.0, -1e100]), 1.0);
        assert_eq!(sum(&[1e308, 1e308, -1e308]), 1e308);
        assert_eq!(sum(&[1e16, 1.0, 1e-16]), 10_000_000_000_000_002.0);
        assert_eq!(sum(&[f64::MAX, f64::MAX]), f64::INFINITY);
        assert_eq!(sum(&[f64::INFINITY, 1.0]), f64::INFINITY);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert_eq!(sum(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn order_and_detours_do_not_matter(
            values in prop::collection::vec(prop::num::f64::NORMAL, 0..40),
            detour in prop::collection::vec(prop::num::f64::ANY, 0..40),
            seed in any::<u64>(),
        ) {
            let expected = sum(&values);
            let mut shuffled = values.clone();
            let mut state = seed | 1;
            for i in (1..shuffled.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                shuffled.swap(i, (state >> 33) as usize % (i + 1));
            }
            let mut total = ExactSum::default();
            detour.iter().for_each(|value| total.add(*value, false));
            shuffled.iter().for_each(|value| total.add(*value, false));
            detour.iter().for_each(|value| total.add(*value, true));
            prop_assert_eq!(total.value(), expected);
            let json = serde_json::to_string(&total).unwrap();
            let back: ExactSum = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back, total);
        }
    }
}
