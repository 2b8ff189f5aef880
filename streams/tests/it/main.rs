//! Tests of stream jobs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod speed;
