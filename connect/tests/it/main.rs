//! Integration tests of the connect crate. The other program, which writes the sources, is Python's SQLite.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cut_test;
mod existing;
mod fuzz;
#[path = "../../../core/tests/it/contract/gaps.rs"]
mod gaps;
mod guards;
mod judge_test;
mod lanes;
mod load_test;
mod locks;
mod mysql_changes;
mod mysql_preflight;
mod mysql_snapshots;
mod mysql_source;
mod postgres_source;
mod postgres_source_faults;
mod servers;
mod servers_test;
mod sinks;
mod sinks_servers;
mod sinks_types;
mod support;
mod traps;
#[cfg(feature = "kafka")]
mod turns;
mod worker;
