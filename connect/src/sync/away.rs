//! A side that is not there: told when it goes and when it is back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::run::Observer;
use crate::Error;

/// A side of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where rows come from.
    Source,
    /// Where rows go.
    Target,
}

impl Side {
    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// Since when a side does not answer.
pub(super) struct Away {
    observer: Arc<dyn Observer>,
    side: Side,
    since: Option<Instant>,
}

impl Away {
    pub(super) fn new(observer: &Arc<dyn Observer>, side: Side) -> Self {
        Self { observer: Arc::clone(observer), side, since: None }
    }

    /// It did not answer.
    pub(super) fn fails(&mut self, error: &Error) {
        self.since.get_or_insert_with(Instant::now);
        self.observer.waiting(self.side, error);
    }

    /// It answered.
    pub(super) fn works(&mut self) {
        if let Some(since) = self.since.take() {
            self.observer.back(self.side, since.elapsed());
        }
    }
}

/// Which sides were said to be away: one line when a side goes, one when it is back, whatever comes between.
#[derive(Debug, Default)]
pub struct Waits(Mutex<[bool; 2]>);

impl Waits {
    /// A side is away; whether that is new.
    pub fn begins(&self, side: Side) -> bool {
        !self.set(side, true)
    }

    /// A side is back; whether it was away.
    pub fn ends(&self, side: Side) -> bool {
        self.set(side, false)
    }

    /// Whether any side is away.
    pub fn any(&self) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) != [false; 2]
    }

    fn set(&self, side: Side, away: bool) -> bool {
        let mut sides = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut sides[side as usize], away)
    }
}

/// A time as people say it: `3.2 s`, `45 s`, `12 min`, `3.5 h`.
pub fn spoken(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_secs() {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{seconds:.0} s"),
        120..7_200 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_goes_once_and_comes_back_once() {
        let waits = Waits::default();
        assert!(!waits.ends(Side::Source) && waits.begins(Side::Source) && !waits.begins(Side::Source));
        assert!(waits.begins(Side::Target) && waits.ends(Side::Source) && waits.any());
        assert!(waits.ends(Side::Target) && !waits.any() && waits.begins(Side::Source));
        let said = [3_210, 45_400, 720_000, 12_600_000].map(|ms| spoken(Duration::from_millis(ms)));
        assert_eq!(said, ["3.2 s", "45 s", "12 min", "3.5 h"]);
    }
}
