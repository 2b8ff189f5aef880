//! Tests of stream jobs: a job's results beside a plain computation over all of its rows.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod bench;
mod changelog;
mod changes;
mod checks;
#[path = "../../../core/tests/it/contract/gaps.rs"]
mod gaps;
#[cfg(feature = "kafka")]
mod kafka;
mod oracle;
mod rows;
mod runtime;
#[cfg(feature = "kafka")]
#[path = "../../../connect/tests/it/servers/mod.rs"]
mod servers;
mod speed;
#[cfg(feature = "kafka")]
mod turns;
mod views;
mod watermarks;
