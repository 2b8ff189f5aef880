//! Windows of event time. Which window a row belongs to is decided here and nowhere else: stream jobs and SQL ask the
//! same functions.

mod aggregate;
mod pane;
mod split;

use std::time::Duration;

pub use aggregate::{Changed, Groups, GroupsOf, WindowAggregate};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An interval of event time: `start` belongs to it, `end` does not. Milliseconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// First instant of the window.
    pub start: i64,
    /// First instant after the window.
    pub end: i64,
}

impl Window {
    /// Whether `time` lies in the window.
    pub fn contains(&self, time: i64) -> bool {
        (self.start..self.end).contains(&time)
    }
}

/// Windows of one size, side by side: each instant lies in exactly one. They begin at 1970-01-01T00:00Z plus the offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tumbling {
    size_ms: i64,
    offset_ms: i64,
    grace_ms: i64,
}

impl Tumbling {
    /// Windows of `size`, at least a millisecond; parts of a millisecond are cut.
    pub fn of(size: Duration) -> Self {
        Self { size_ms: millis(size), offset_ms: 0, grace_ms: 0 }
    }

    /// Moves all windows by `offset`.
    #[must_use]
    pub fn offset(self, offset: Duration) -> Self {
        Self { offset_ms: millis(offset), ..self }
    }

    /// Keeps a window open until the watermark has passed its end by `grace`; only then it is closed and emitted.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        Self { grace_ms: millis(grace), ..self }
    }

    /// The windows' size in milliseconds.
    pub fn size_ms(&self) -> i64 {
        self.size_ms
    }

    /// How long after its end a window stays open, in milliseconds.
    pub fn grace_ms(&self) -> i64 {
        self.grace_ms
    }

    /// The windows in words, for the check that a job's state fits its code.
    pub fn describe(&self) -> String {
        let Self { size_ms, offset_ms, grace_ms } = self;
        format!("tumbling windows of {size_ms} ms, offset {offset_ms} ms, grace {grace_ms} ms")
    }

    /// Checks what the constructors take as it comes.
    ///
    /// # Errors
    /// `Invalid` for a size below a millisecond, or anything beyond 1,000 years.
    pub fn validate(&self) -> Result<()> {
        const LIMIT_MS: i64 = 1000 * 366 * 86_400_000;
        if self.size_ms == 0 {
            return Err(Error::invalid("a window's size must be at least 1 ms"));
        }
        if self.size_ms > LIMIT_MS || self.offset_ms > LIMIT_MS || self.grace_ms > LIMIT_MS {
            return Err(Error::invalid("a window's size, offset and grace may not exceed 1,000 years"));
        }
        Ok(())
    }

    /// The window that `time` lies in. Saturates at the ends of what an `i64` can tell.
    pub fn window_of(&self, time: i64) -> Window {
        let into = time.wrapping_sub(self.offset_ms).rem_euclid(self.size_ms.max(1));
        let start = time.saturating_sub(into);
        Window { start, end: start.saturating_add(self.size_ms) }
    }

    /// Whether a window is closed: the watermark has passed its end and grace. What still comes for it is late.
    pub fn is_closed(&self, window: Window, watermark: i64) -> bool {
        window.end.saturating_add(self.grace_ms) <= watermark
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn each_instant_has_one_window() {
        let windows = Tumbling::of(seconds(10));
        assert_eq!(windows.window_of(0), Window { start: 0, end: 10_000 });
        assert_eq!(windows.window_of(9_999), Window { start: 0, end: 10_000 });
        assert_eq!(windows.window_of(10_000), Window { start: 10_000, end: 20_000 });
        assert_eq!(windows.window_of(-1), Window { start: -10_000, end: 0 });
        let moved = windows.offset(seconds(3));
        assert_eq!(moved.window_of(2_999), Window { start: -7_000, end: 3_000 });
        assert_eq!(moved.window_of(3_000), Window { start: 3_000, end: 13_000 });
    }

    #[test]
    fn a_window_closes_at_its_end_and_grace() {
        let windows = Tumbling::of(seconds(10)).grace(seconds(2));
        let window = windows.window_of(5);
        assert!(!windows.is_closed(window, 11_999));
        assert!(windows.is_closed(window, 12_000));
        assert!(windows.is_closed(window, i64::MAX));
    }

    #[test]
    fn sizes_are_checked() {
        assert!(Tumbling::of(Duration::ZERO).validate().is_err());
        assert!(Tumbling::of(Duration::from_micros(999)).validate().is_err());
        assert!(Tumbling::of(Duration::MAX).validate().is_err());
        assert!(Tumbling::of(seconds(1)).validate().is_ok());
    }
}
