//! How a job gets on: counters that anybody may read while it runs.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Counters of a running job. They count what was processed, durable or not.
#[derive(Debug)]
pub struct Status {
    records: AtomicU64,
    late: AtomicU64,
    dead: AtomicU64,
    epochs: AtomicU64,
    watermark: AtomicI64,
    /// Timestamp of the record read last where more are waiting, `i64::MAX` where none are.
    behind: AtomicI64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            records: AtomicU64::new(0),
            late: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            epochs: AtomicU64::new(0),
            watermark: AtomicI64::new(i64::MIN),
            behind: AtomicI64::new(i64::MAX),
        }
    }
}

impl Status {
    /// Records read.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Late rows, of all steps.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Records that could not be decoded and were set aside.
    pub fn dead_letters(&self) -> u64 {
        self.dead.load(Ordering::Relaxed)
    }

    /// Epochs committed by this process.
    pub fn epochs(&self) -> u64 {
        self.epochs.load(Ordering::Relaxed)
    }

    /// The lowest watermark of all sources, milliseconds since 1970 UTC; `None` before there is one.
    pub fn watermark(&self) -> Option<i64> {
        Some(self.watermark.load(Ordering::Relaxed)).filter(|watermark| *watermark != i64::MIN)
    }

    /// How far the job is behind at `now`, in milliseconds: the age of the record it read last where more are waiting.
    pub fn lag_ms(&self, now: i64) -> i64 {
        match self.behind.load(Ordering::Relaxed) {
            i64::MAX => 0,
            timestamp => now.saturating_sub(timestamp).max(0),
        }
    }

    pub(crate) fn add_records(&self, n: usize) {
        self.records.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_late(&self, n: usize) {
        self.late.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_dead(&self, n: usize) {
        self.dead.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_watermark(&self, watermark: i64) {
        self.watermark.store(watermark, Ordering::Relaxed);
    }

    pub(crate) fn set_behind(&self, timestamp: Option<i64>) {
        self.behind.store(timestamp.unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Counts a committed epoch and returns its number.
    pub(crate) fn add_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed) + 1
    }
}
